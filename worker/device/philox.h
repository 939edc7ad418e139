/* Philox 4x32-10 (Salmon et al. 2011, section 3.3), a random number generator that has a counter and no state: one text
 * for the kernels of every device. */
#ifndef LS_WORKER_DEVICE_PHILOX_H
#define LS_WORKER_DEVICE_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define LS_PHILOX_FUNCTION static __host__ __device__ __forceinline__
#else
#define LS_PHILOX_FUNCTION static inline __attribute__((always_inline))
#endif

struct ls_philox {
    uint32_t a, b, c, d;
};

/* Four random words of a counter: ten rounds of two 32-bit multiplications; the key, the seed's two halves at first,
 * grows by Weyl constants. By value, so that a loop over counters is vectorised. */
LS_PHILOX_FUNCTION struct ls_philox ls_philox_draw(struct ls_philox x, uint64_t seed) {
    uint32_t low_key = (uint32_t)seed, high_key = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t first = (uint64_t)0xD2511F53 * x.a, second = (uint64_t)0xCD9E8D57 * x.c;
        x.a = (uint32_t)(second >> 32) ^ x.b ^ low_key;
        x.b = (uint32_t)second;
        x.c = (uint32_t)(first >> 32) ^ x.d ^ high_key;
        x.d = (uint32_t)first;
        low_key += 0x9E3779B9;
        high_key += 0xBB67AE85;
    }
    return x;
}

#endif
