/* Tensor cores, for 16-bit elements: tiles in shared memory, copies into them that run beside arithmetic, and products
 * of a warp. The instructions are those of every GPU from sm_80 on ("Parallel Thread Execution ISA": mma.m16n8k16,
 * ldmatrix, cp.async); the emulator has its own (tests/emulator/tensor.h).
 *
 * A tile has rows of WIDTH elements, 64 or 128, in chunks of 16 bytes; chunk c of row r lies in the place of chunk
 * c ^ (r % 8), so that the same chunk of eight neighbouring rows takes all 32 banks.
 *
 * A product of a warp is d [16, 8] += a [16, 16] b [16, 8]. With g = lane / 4 and t = lane % 4, a lane holds
 *     d[0], d[1]       of row g, columns 2t and 2t + 1; d[2], d[3] the same of row g + 8
 *     a[0] .. a[3]     two elements each, from columns 2t (row g, row g + 8), then from columns 2t + 8
 *     b0, b1           column g, rows 2t and 2t + 1; rows 2t + 8 and 2t + 9
 * Two d side by side, rounded, are an a. */
#ifndef LS_WORKER_DEVICE_CUDA_TENSOR_H
#define LS_WORKER_DEVICE_CUDA_TENSOR_H

#include "worker/device/cuda/element.h"

#ifdef LS_EMULATE
#include "tests/emulator/tensor.h"
#else

static __device__ __forceinline__ unsigned ls_shared_address(const void *place) {
    return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

/* Four 8 x 8 matrices: the rows of matrix i begin at the `row` that lanes 8 i .. 8 i + 7 give. to[i] is, of matrix i,
 * row g, columns 2t and 2t + 1; transposed: column g, rows 2t and 2t + 1. */
static __device__ __forceinline__ void ls_load_matrices(unsigned (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(ls_shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void ls_load_matrices_transposed(unsigned (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(ls_shared_address(row))
                 : "memory");
}

static __device__ __forceinline__ void ls_multiply_tile(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                                        __nv_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ void ls_multiply_tile(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                                        __half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* BYTES (4 or 16, to which both are aligned) of global memory to shared memory, zeros where `there` is false and
 * nothing is read; this thread sees them after ls_copies_wait(), others after a barrier behind that. */
template <int BYTES> static __device__ __forceinline__ void ls_copy_aside(void *to, const void *from, bool there) {
    static_assert(BYTES == 4 || BYTES == 16, "what one copy takes");
    const int bytes = there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ls_shared_address(to)), "l"(from), "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(ls_shared_address(to)), "l"(from), "r"(bytes)
                     : "memory");
}
static __device__ __forceinline__ void ls_copies_wait() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* `x`, of which the compiler knows no more: what is made of it is not kept in registers over a loop. */
static __device__ __forceinline__ int ls_made_anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

/* 2^x to 2 units in the last place; 0 below the normal range. */
static __device__ __forceinline__ float ls_power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

#endif

static __device__ __forceinline__ int ls_lane() {
    return static_cast<int>(threadIdx.x) % LS_WARP;
}

/* Where channel 0 of row `row` lies in a tile, in elements; channel c, in the same chunk or another, is at this ^ c. */
template <int WIDTH> static __device__ __forceinline__ int ls_tile_row(int row) {
    static_assert(WIDTH == 64 || WIDTH == 128, "eight chunks or sixteen");
    return row * WIDTH + row % 8 * 8;
}

/* The address `bytes` further on, modulo 2^64: with a difference of two addresses, one from the other. */
template <typename T> static __device__ __forceinline__ const T *ls_moved(const T *from, uintptr_t bytes) {
    return reinterpret_cast<const T *>(reinterpret_cast<uintptr_t>(from) + bytes);
}
template <typename T> static __device__ __forceinline__ uintptr_t ls_distance(const T *from, const T *to) {
    return reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from);
}

/* Copies rows of `size` channels into tiles, one tile after another, by all THREADS of a block: zeros beyond the `rows`
 * and channels that are there. `size` and `stride` are multiples of 8, `from` is aligned to 16 bytes. */
template <int THREADS, int WIDTH, typename T> class ls_tile_reader {
    static constexpr int CHUNKS = WIDTH / 8, STEP = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && STEP % 8 == 0, "each thread keeps to its chunk");
    const T *next; /* this thread's next chunk */
    int left;      /* rows from there on */

  public:
    __device__ __forceinline__ ls_tile_reader(const T *from, int64_t stride, int rows, int size) {
        const int thread = static_cast<int>(threadIdx.x), first = thread / CHUNKS, channel = thread % CHUNKS * 8;
        next = from + first * stride + channel;
        left = channel < size ? rows - first : 0;
    }

    /* Begins with the next ROWS rows; beside them, into the tile behind, those of TILES - 1 other matrices of the same
     * strides, each `bytes` after the one before it. */
    template <int ROWS, int TILES = 1>
    __device__ __forceinline__ void read(T *tile, int64_t stride, uintptr_t bytes = 0) {
        static_assert(ROWS % STEP == 0, "each thread has as many chunks");
        const int thread = ls_made_anew(static_cast<int>(threadIdx.x));
        T *const to = tile + (ls_tile_row<WIDTH>(thread / CHUNKS) ^ thread % CHUNKS * 8);
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP) {
#pragma unroll
            for (int other = 0; other < TILES; other++)
                ls_copy_aside<16>(to + (other * ROWS + i) * WIDTH, ls_moved(next, bytes * other), i < left);
            next += STEP * stride;
        }
        left -= ROWS;
    }
};

/* Where a lane finds its row of what follows, from the first row on; ^ channel, a multiple of 16. Rows begin at
 * multiples of 8.
 *     of an a, rows [0, 16) and 16 channels, or, transposed, of two b: b[0], b[1] of the first 8 channels, b[2], b[3]
 * of the other 8, the rows being theirs of two b whose columns are rows [0, 8) and [8, 16), for products of rows by
 * rows */
template <int WIDTH> static __device__ __forceinline__ int ls_place_of_a() {
    const int lane = ls_made_anew(ls_lane());
    return ls_tile_row<WIDTH>(lane % 16) ^ lane / 16 * 8;
}
template <int WIDTH> static __device__ __forceinline__ int ls_place_of_b() {
    const int lane = ls_made_anew(ls_lane());
    return ls_tile_row<WIDTH>(lane / 16 * 8 + lane % 8) ^ lane / 8 % 2 * 8;
}

/* Two numbers rounded to T, the first in the lower half. */
template <typename T> static __device__ __forceinline__ unsigned ls_pair(float low, float high) {
    const T pair[2] = {ls_from_float<T>(low), ls_from_float<T>(high)};
    unsigned bits;
    memcpy(&bits, reinterpret_cast<const char *>(pair), sizeof bits);
    return bits;
}

/* d [16 M, 8 N] += rows of tile a times rows of tile b, over WIDTH channels; both begin at a row of their tile. */
template <int WIDTH, int M, int N, typename T>
static __device__ __forceinline__ void ls_multiply_rows(float (&d)[M][N][4], const T *a_tile, int a_row,
                                                        const T *b_tile, int b_row) {
    static_assert(N % 2 == 0, "b comes in pairs");
    const int place_of_a = ls_place_of_a<WIDTH>(), place_of_b = ls_place_of_b<WIDTH>();
#pragma unroll
    for (int channel = 0; channel < WIDTH; channel += 16) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) ls_load_matrices(a[m], a_tile + (a_row + m * 16) * WIDTH + (place_of_a ^ channel));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned b[4];
            ls_load_matrices(b, b_tile + (b_row + n * 8) * WIDTH + (place_of_b ^ channel));
#pragma unroll
            for (int m = 0; m < M; m++) {
                ls_multiply_tile(d[m][n], a[m], b[0], b[1], T());
                ls_multiply_tile(d[m][n + 1], a[m], b[2], b[3], T());
            }
        }
    }
}

/* s [16 M, 8 N] rounded to T, as factors: a[n][m] has rows from 16 m and columns from 16 n on. */
template <typename T, int M, int N>
static __device__ __forceinline__ void ls_round(unsigned (&a)[N / 2][M][4], const float (&s)[M][N][4]) {
    static_assert(N % 2 == 0, "two neighbours are an a");
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[n / 2][m][n % 2 * 2] = ls_pair<T>(s[m][n][0], s[m][n][1]);
            a[n / 2][m][n % 2 * 2 + 1] = ls_pair<T>(s[m][n][2], s[m][n][3]);
        }
}

/* Of the 2 M rows of d [16 M, ..] that a lane holds, the i-th. */
static __device__ __forceinline__ int ls_row_of(int i, int lane) {
    return i / 2 * 16 + i % 2 * 8 + lane / 4;
}

/* d [16 M, WIDTH] += a [16 M, 16 K] times rows [row, row + 16 K) of a tile. */
template <int WIDTH, int M, int K, typename T>
static __device__ __forceinline__ void ls_multiply_add(float (&d)[M][WIDTH / 8][4], const unsigned (&a)[K][M][4],
                                                       const T *tile, int row) {
    const int place = ls_place_of_a<WIDTH>();
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int c = 0; c < WIDTH / 8; c += 2) {
            unsigned b[4];
            ls_load_matrices_transposed(b, tile + (row + k * 16) * WIDTH + (place ^ c * 8));
#pragma unroll
            for (int m = 0; m < M; m++) {
                ls_multiply_tile(d[m][c], a[k][m], b[0], b[1], T());
                ls_multiply_tile(d[m][c + 1], a[k][m], b[2], b[3], T());
            }
        }
}

/* Writes a warp's d [16 M, WIDTH], row i times factor[i of the lane's rows], to `rows` rows of `size` channels, in 16
 * bytes each, through the warp's own 16 M rows of a tile, from `own` on, which only this warp uses. A lane's rows are
 * g, g + 8, g + 16, ... */
template <int WIDTH, int M, typename T>
static __device__ __forceinline__ void ls_store_rows(T *to, int64_t stride, int rows, int size, T *tile, int own,
                                                     const float (&d)[M][WIDTH / 8][4], const float (&factor)[2 * M]) {
    constexpr int CHUNKS = WIDTH / 8;
    const int lane = ls_lane(), g = lane / 4, t = lane % 4;
    __syncwarp(); /* what the warp had there has been read */
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int upper = 0; upper < 2; upper++)
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                const float by = factor[m * 2 + upper];
                const unsigned pair = ls_pair<T>(d[m][c][upper * 2] * by, d[m][c][upper * 2 + 1] * by);
                const int row = own + m * 16 + upper * 8; /* of g 0 */
                *reinterpret_cast<unsigned *>(tile + row * WIDTH + ((ls_tile_row<WIDTH>(g) ^ c * 8) + 2 * t)) = pair;
            }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < M * 16 * CHUNKS / LS_WARP; i++) {
        const int item = i * LS_WARP + lane, row = item / CHUNKS, chunk = item % CHUNKS;
        if (row < rows && chunk * 8 < size)
            *reinterpret_cast<int4 *>(to + row * stride + chunk * 8) =
                *reinterpret_cast<const int4 *>(tile + (ls_tile_row<WIDTH>(own + row) ^ chunk * 8));
    }
}

#endif
