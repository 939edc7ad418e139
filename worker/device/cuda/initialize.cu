/* Counter-based normal numbers: the CPU's rule (Philox 4x32-10 and Box-Muller in double). log, cos and sin of the two
 * differ by at most two units in the last place of a double, so an element is the same float, or, once in some hundred
 * million, the next. */
#include "worker/device/cuda/element.h"
#include "worker/device/philox.h"

namespace {

constexpr int THREADS = 256;

/* A thread makes a group of four normals: elements 4 group .. 4 group + 3 of the tensor, of which some lie outside what
 * is asked for. */
__global__ void __launch_bounds__(THREADS) normal(struct ls_op_initialize op, int64_t first_group, int64_t groups) {
    const double two_pi = 6.283185307179586476925286766559;
    for (int64_t i = ls_grid_thread(); i < groups; i += ls_grid_threads()) {
        const uint64_t group = static_cast<uint64_t>(first_group + i);
        const struct ls_philox words =
            ls_philox_draw({static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32),
                            static_cast<uint32_t>(op.tensor), static_cast<uint32_t>(op.tensor >> 32)},
                           op.seed);
        const uint32_t word[4] = {words.a, words.b, words.c, words.d};
#pragma unroll
        for (int pair = 0; pair < 4; pair += 2) {
            const double radius = sqrt(-2.0 * log((static_cast<double>(word[pair]) + 1.0) * 0x1p-32));
            const double angle = two_pi * (static_cast<double>(word[pair + 1]) * 0x1p-32);
            const double normals[2] = {radius * cos(angle), radius * sin(angle)};
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int64_t at = (first_group + i) * 4 + pair + k - op.first;
                if (at >= 0 && at < op.count)
                    op.output[at] = static_cast<float>(static_cast<double>(op.mean) +
                                                       static_cast<double>(op.deviation) * normals[k]);
            }
        }
    }
}

__global__ void __launch_bounds__(THREADS) fill(float *output, int64_t count, float value) {
    for (int64_t i = ls_grid_thread(); i < count; i += ls_grid_threads()) output[i] = value;
}

} // namespace

cudaError_t ls_cuda_initialize(const struct ls_op_initialize *op, cudaStream_t stream) {
    if (op->count <= 0) return cudaSuccess;
    if (op->deviation == 0.0f)
        return LS_LAUNCH(fill, ls_blocks(op->count, THREADS), THREADS, 0, stream, op->output, op->count, op->mean);
    const int64_t first_group = op->first / 4, groups = (op->first + op->count + 3) / 4 - first_group;
    return LS_LAUNCH(normal, ls_blocks(groups, THREADS), THREADS, 0, stream, *op, first_group, groups);
}
