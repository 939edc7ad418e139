/* Token and position embedding. Backward cuts the channels into tasks, so that each table element has one writer that
 * meets its rows in order: deterministic without atomics or sorting. */
#include "worker/device/cpu/kernels.h"

#include <string.h>

enum { ELEMENTS_PER_TASK = 16384, CHANNELS_PER_TASK = 64 };

static void forward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_embedding_forward *op = arguments;
    const int64_t channels = op->channels;
    for (int64_t row = begin; row < end; row++) {
        const float *token = (const float *)op->token_table + op->tokens[row] * channels;
        float *output = (float *)op->output + row * channels;
        if (op->position_table) {
            const float *position =
                (const float *)op->position_table + (op->first_position + row % op->length) * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) output[c] = token[c] + position[c];
        } else {
            memcpy(output, token, (size_t)channels * sizeof *output);
        }
    }
}

void ls_cpu_embedding_forward(int threads, const struct ls_op_embedding_forward *op) {
    const int64_t grain = op->channels >= ELEMENTS_PER_TASK ? 1 : ELEMENTS_PER_TASK / op->channels;
    ls_cpu_parallel(threads, op->batch * op->length, grain, forward, op);
}

static void backward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_embedding_backward *op = arguments;
    const int64_t rows = op->batch * op->length, channels = op->channels;
    for (int64_t row = 0; row < rows; row++) {
        const float *gradient = (const float *)op->output_gradient + row * channels;
        if (op->token_gradient) {
            float *token = (float *)op->token_gradient + op->tokens[row] * channels;
#pragma omp simd
            for (int64_t c = begin; c < end; c++) token[c] += gradient[c];
        }
        if (op->position_gradient) {
            float *position = (float *)op->position_gradient + row % op->length * channels;
#pragma omp simd
            for (int64_t c = begin; c < end; c++) position[c] += gradient[c];
        }
    }
}

void ls_cpu_embedding_backward(int threads, const struct ls_op_embedding_backward *op) {
    if (op->batch * op->length * op->channels < ELEMENTS_PER_TASK) threads = 1;
    ls_cpu_parallel(threads, op->channels, CHANNELS_PER_TASK, backward, op);
}
