/* Kernels with one fault each, named on the command line: what the emulator and the sanitizers must report. The same
 * kernels without their fault, `sound`, must pass. Exit 0: nobody noticed. */
#include "worker/device/cuda/tensor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static constexpr int THREADS = 64;

/* out[i] = the mean of in[i] and its mirror image within the block, through shared memory. */
static __global__ void mirror(float *out, const float *in, int count, bool barrier, int excess) {
    LS_SHARED(float, tile, [THREADS]);
    const int thread = static_cast<int>(threadIdx.x), i = static_cast<int>(ls_grid_thread());
    if (i < count) tile[thread] = in[i];
    if (barrier) __syncthreads();
    if (i < count + excess) out[i] = 0.5f * (tile[thread] + tile[THREADS - 1 - thread]);
}

static __global__ void shared_overrun(float *out, int excess) {
    LS_DYNAMIC_SHARED(float, row);
    row[threadIdx.x + static_cast<unsigned>(excess)] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = row[threadIdx.x];
}

static __global__ void static_overrun(float *out, int excess) {
    LS_SHARED(float, row, [THREADS]);
    row[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = row[(threadIdx.x + static_cast<unsigned>(excess)) % (THREADS + 1)];
}

static __global__ void vectors(float4 *out, const float *in) {
    out[threadIdx.x] = reinterpret_cast<const float4 *>(in)[threadIdx.x];
}

static __global__ void two_barriers(float *out, bool diverge) {
    if (diverge && threadIdx.x % 2)
        __syncthreads();
    else
        __syncthreads(); /* another place: on a GPU this may pass or hang */
    out[threadIdx.x] = 1.0f;
}

static __global__ void lane_has_left(unsigned *out, bool leave) {
    if (leave && threadIdx.x % LS_WARP == 7) return;
    out[threadIdx.x] = __ballot_sync(LS_ALL_LANES, 1);
}

static __global__ void caller_outside_mask(int *out, unsigned mask) {
    out[threadIdx.x] = __shfl_xor_sync(mask, static_cast<int>(threadIdx.x), 1);
}

static __global__ void masks_differ(int *out, bool differ) {
    const bool high = threadIdx.x % LS_WARP >= 16;
    out[threadIdx.x] = __any_sync(differ && high ? 0xfffffffeu : LS_ALL_LANES, 1);
}

static __global__ void lanes_at_different_operations(int *out, bool differ) {
    if (differ && threadIdx.x % 2)
        __syncwarp();
    else
        out[threadIdx.x] = __any_sync(LS_ALL_LANES, 1);
    if (!differ) __syncwarp();
}

static __global__ void waits_for_a_lane_at_the_barrier(int *out, bool wait) {
    if (threadIdx.x % LS_WARP != 0 || !wait)
        out[threadIdx.x] = __any_sync(wait ? LS_ALL_LANES : 1u << threadIdx.x % LS_WARP, 1);
    __syncthreads();
}

/* Each block writes what its neighbour reads. */
static __global__ void blocks_race(float *values, bool race) {
    const unsigned own = blockIdx.x * THREADS + threadIdx.x,
                   other = (own + (race ? THREADS : 0)) % (gridDim.x * THREADS);
    values[own] = values[other] + 1.0f;
}

/* Nobody wrote the tile: what is read is no number, in the second block too. */
static __global__ void reads_what_nobody_wrote(float *out, bool write) {
    LS_SHARED(float, tile, [THREADS]);
    if (write || (threadIdx.x > 0 && blockIdx.x == 0)) tile[threadIdx.x] = 1.0f;
    __syncthreads();
    out[ls_grid_thread()] = tile[blockIdx.x == 0 ? 0 : threadIdx.x];
}

/* out[i] = in of the neighbour within the block, copied beside arithmetic. */
static __global__ void copied(float *out, const float *in, bool wait, bool barrier, int offset) {
    LS_SHARED(float, tile, [THREADS + 4]);
    const int thread = static_cast<int>(threadIdx.x);
    ls_copy_aside<4>(tile + thread, in + thread, true);
    if (thread == 0) ls_copy_aside<16>(tile + THREADS + offset, in, false);
    if (wait) ls_copies_wait();
    if (barrier) __syncthreads();
    out[thread] = tile[(thread + 1) % THREADS] + tile[THREADS];
    ls_copies_wait();
}
static __global__ void never_waits(const float *in) {
    LS_SHARED(float, tile, [THREADS]);
    ls_copy_aside<4>(tile + threadIdx.x, in + threadIdx.x, true);
}

static int count_nan(const float *values, int count) {
    int found = 0;
    for (int i = 0; i < count; i++) found += isnan(values[i]);
    return found;
}

int main(int argument_count, char **arguments) {
    const char *fault = argument_count > 1 ? arguments[1] : "";
    const bool sound = !strcmp(fault, "sound");
    const int count = 3 * THREADS - 5;
    float *in = static_cast<float *>(malloc(static_cast<size_t>(count) * sizeof *in));
    float *out = static_cast<float *>(malloc(static_cast<size_t>(count) * sizeof *out));
    float *aligned = static_cast<float *>(aligned_alloc(16, (4 * THREADS + 4) * sizeof *aligned));
    float4 *wide = static_cast<float4 *>(aligned_alloc(16, THREADS * sizeof *wide));
    int *numbers = static_cast<int *>(malloc(THREADS * sizeof *numbers));
    for (int i = 0; i < count; i++) in[i] = out[i] = 1.0f;
    for (int i = 0; i < 4 * THREADS + 4; i++) aligned[i] = 1.0f;
    const auto is = [=](const char *name) { return sound || !strcmp(fault, name); };
    const int bad = sound ? 0 : 1;
    const size_t row_bytes = THREADS * sizeof(float);

    if (is("out-of-bounds")) LS_LAUNCH(mirror, 3, THREADS, 0, 0, out, in, count, true, bad);
    if (is("missing-barrier")) LS_LAUNCH(mirror, 3, THREADS, 0, 0, out, in, count, sound, 0);
    if (is("dynamic-shared-overrun")) LS_LAUNCH(shared_overrun, 1, THREADS, row_bytes, 0, out, bad);
    if (is("static-shared-overrun")) LS_LAUNCH(static_overrun, 1, THREADS, 0, 0, out, bad);
    if (is("misaligned")) LS_LAUNCH(vectors, 1, THREADS, 0, 0, wide, aligned + bad);
    if (is("divergent-barrier")) LS_LAUNCH(two_barriers, 1, THREADS, 0, 0, out, !sound);
    if (is("lane-has-left")) LS_LAUNCH(lane_has_left, 1, THREADS, 0, 0, reinterpret_cast<unsigned *>(numbers), !sound);
    if (is("caller-outside-mask"))
        LS_LAUNCH(caller_outside_mask, 1, THREADS, 0, 0, numbers, sound ? LS_ALL_LANES : 0xfffffffeu);
    if (is("masks-differ")) LS_LAUNCH(masks_differ, 1, THREADS, 0, 0, numbers, !sound);
    if (is("different-operations")) LS_LAUNCH(lanes_at_different_operations, 1, THREADS, 0, 0, numbers, !sound);
    if (is("waits-forever")) LS_LAUNCH(waits_for_a_lane_at_the_barrier, 1, THREADS, 0, 0, numbers, !sound);
    if (is("blocks-race")) LS_LAUNCH(blocks_race, 2, THREADS, 0, 0, out, !sound);
    if (is("broken-warp")) LS_LAUNCH(two_barriers, 1, sound ? THREADS : THREADS - 1, 0, 0, out, false);
    if (is("too-much-shared")) {
        const size_t bytes = 60 << 10;
        if (sound) LS_ALLOW_SHARED(shared_overrun, bytes);
        LS_LAUNCH(shared_overrun, 1, THREADS, bytes, 0, out, 0);
    }
    if (is("missing-copy-barrier")) LS_LAUNCH(copied, 1, THREADS, 0, 0, out, in, true, sound, 0);
    if (is("misaligned-copy")) LS_LAUNCH(copied, 1, THREADS, 0, 0, out, in, true, true, bad);
    if (is("copy-under-way-at-the-end") && !sound) LS_LAUNCH(never_waits, 1, THREADS, 0, 0, in);
    if (is("copy-not-awaited")) {
        LS_LAUNCH(copied, 1, THREADS, 0, 0, out, in, sound, true, 0);
        const int found = count_nan(out, THREADS);
        if (found > 0) {
            fprintf(stderr, "not a number, %d times\n", found);
            return 1;
        }
    }
    if (is("unwritten-shared")) {
        LS_LAUNCH(reads_what_nobody_wrote, 2, THREADS, 0, 0, out, sound);
        const int found = count_nan(out, 2 * THREADS);
        if (found > 0 || !sound) {
            fprintf(stderr, "not a number, %d times\n", found);
            return 1;
        }
    }
    free(in), free(out), free(aligned), free(wide), free(numbers);
    return 0;
}
