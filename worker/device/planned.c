/* The device of plans for GPUs: what operations need there, on hosts without CUDA too. */
#include "worker/device/backend.h"

#include <stdlib.h>

/* Attention's backward keeps a sum for each query of each head. */
size_t ls_cuda_planned_workspace(const struct ls_device *device, enum ls_op op, const void *arguments) {
    const struct ls_op_attention_backward *backward = arguments;
    (void)device;
    if (op != LS_OP_attention_backward) return 0;
    return (size_t)(backward->batch * backward->heads * backward->length) * sizeof(float);
}

static void destroy(struct ls_device *device) {
    free(device);
}

static const struct ls_device_info *info(const struct ls_device *device) {
    static const struct ls_device_info gpu = {.kind = LS_DEVICE_KIND_CUDA};
    (void)device;
    return &gpu;
}

enum ls_code ls_device_create_planned_cuda(struct ls_device **device, struct ls_error *error) {
    static const struct ls_backend backend = {
        .device_destroy = destroy, .info = info, .workspace = ls_cuda_planned_workspace};
    struct ls_device *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "device: no memory for the record of a device");
    made->backend = &backend;
    *device = made;
    return LS_OK;
}
