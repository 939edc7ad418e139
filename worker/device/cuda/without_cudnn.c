/* Attention in a build that had no headers of cuDNN: our kernels'. */
#include "worker/device/cuda/sdpa.h"

#include <string.h>

enum ls_code ls_cuda_sdpa_create(struct ls_cuda_device *device, struct ls_cuda_sdpa **sdpa, struct ls_error *error) {
    (void)device, (void)error;
    *sdpa = NULL;
    return LS_OK;
}
void ls_cuda_sdpa_destroy(struct ls_cuda_sdpa *sdpa) {
    (void)sdpa;
}
const char *ls_cuda_sdpa_version(const struct ls_cuda_sdpa *sdpa) {
    (void)sdpa;
    return NULL;
}
void ls_cuda_sdpa_note(struct ls_cuda_sdpa *sdpa, enum ls_op op, const void *arguments) {
    (void)sdpa, (void)op, (void)arguments;
}
void ls_cuda_sdpa_choose(struct ls_cuda_sdpa *sdpa, struct ls_sdpa_choice *choice) {
    (void)sdpa;
    memset(choice, 0, sizeof *choice);
}
bool ls_cuda_sdpa_recall(struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_choice *choice) {
    (void)sdpa;
    return !choice->used;
}
bool ls_cuda_sdpa_adopt(struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_choice *choice) {
    (void)sdpa;
    return !choice->used;
}
void ls_cuda_sdpa_abandon(struct ls_cuda_sdpa *sdpa) {
    (void)sdpa;
}
bool ls_cuda_sdpa_forward(struct ls_cuda_sdpa *sdpa, struct ls_stream *stream,
                          const struct ls_op_attention_forward *op) {
    (void)sdpa, (void)stream, (void)op;
    return false;
}
bool ls_cuda_sdpa_backward(struct ls_cuda_sdpa *sdpa, struct ls_stream *stream,
                           const struct ls_op_attention_backward *op) {
    (void)sdpa, (void)stream, (void)op;
    return false;
}
