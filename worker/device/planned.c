/* The device of plans for GPUs: what operations need there, on hosts without CUDA too. */
#include "worker/device/backend.h"
#include "worker/device/cuda/workspace.h"

#include <stdlib.h>

/* PIECE_BYTES: of workspace, that cuDNN's attention should get by with. A sequence of 1024 tokens and 12 heads takes 33
 * MiB, so eight go at a time: some 800 blocks of threads, several for each multiprocessor. Above
 * GROUP_BYTES_MOST for the heads of one key-value head it costs more memory than it is worth. */
enum {
    PIECE_BYTES = 320 << 20,
    GROUP_BYTES_MOST = 1 << 30,
    TILE = 128,
    SPARE_BYTES = 64 << 10,
    CHANNELS_STEP = 8,
    CHANNELS_MOST = 256
};

static int64_t largest_divisor(int64_t count, int64_t most) {
    for (int64_t divisor = most < count ? most : count; divisor > 1; divisor--)
        if (count % divisor == 0) return divisor;
    return 1;
}

/* The probabilities' gradient in 16 bits with lengths rounded up to whole tiles; for queries, keys and values one
 * gradient of every head in fp32; two numbers for each query. */
static int64_t head_bytes(const struct ls_op_attention_backward *op) {
    const int64_t length = (op->length + TILE - 1) / TILE * TILE;
    return length * length * 2 + 3 * length * op->head_size * (int64_t)sizeof(float) +
           2 * length * (int64_t)sizeof(float);
}

struct ls_attention_piece ls_cuda_attention_piece(const struct ls_op_attention_backward *op) {
    struct ls_attention_piece piece = {0};
    if (op->dtype == LS_FP32 || op->head_size % CHANNELS_STEP != 0 || op->head_size > CHANNELS_MOST || op->batch == 0)
        return piece;
    const int64_t group = op->heads / op->kv_heads, sequence = op->heads * head_bytes(op);
    if (group * head_bytes(op) > GROUP_BYTES_MOST) return piece;
    piece.batch = largest_divisor(op->batch, PIECE_BYTES / sequence);
    piece.kv_heads =
        sequence <= PIECE_BYTES ? op->kv_heads : largest_divisor(op->kv_heads, PIECE_BYTES / (group * head_bytes(op)));
    piece.bytes = piece.batch * piece.kv_heads * group * head_bytes(op) + SPARE_BYTES;
    return piece;
}

/* A forward that a backward may follow; its piece is that of the backward. */
static size_t forward_bytes(const struct ls_op_attention_forward *op) {
    const struct ls_op_attention_backward backward = {.batch = op->batch,
                                                      .length = op->query_length,
                                                      .heads = op->heads,
                                                      .kv_heads = op->kv_heads,
                                                      .head_size = op->head_size,
                                                      .dtype = op->dtype};
    return op->query_length == op->key_length ? (size_t)ls_cuda_attention_piece(&backward).bytes : 0;
}

/* Our own backward keeps a sum for each query. */
static size_t backward_bytes(const struct ls_op_attention_backward *op) {
    const size_t own = (size_t)(op->batch * op->heads * op->length) * sizeof(float);
    const size_t piece = (size_t)ls_cuda_attention_piece(op).bytes;
    return own > piece ? own : piece;
}

size_t ls_cuda_planned_workspace(const struct ls_device *device, enum ls_op op, const void *arguments) {
    (void)device;
    switch (op) {
    case LS_OP_attention_forward: return forward_bytes(arguments);
    case LS_OP_attention_backward: return backward_bytes(arguments);
    case LS_OP_embedding_backward: return (size_t)ls_cuda_embedding_workspace(arguments);
    case LS_OP_gemm: return (size_t)ls_cuda_gemm_workspace(arguments);
    case LS_OP_bias_backward:
        return (size_t)ls_cuda_column_workspace(((const struct ls_op_bias_backward *)arguments)->columns, 1);
    case LS_OP_layernorm_backward: {
        const struct ls_op_layernorm_backward *norm = arguments;
        return (size_t)ls_cuda_norm_workspace(norm->columns, norm->dtype, 2);
    }
    case LS_OP_rmsnorm_backward: {
        const struct ls_op_rmsnorm_backward *norm = arguments;
        return (size_t)ls_cuda_norm_workspace(norm->columns, norm->dtype, 1);
    }
    case LS_OP_head_norm_backward:
        return (size_t)ls_cuda_column_workspace(((const struct ls_op_head_norm_backward *)arguments)->head_size, 1);
    default: return 0;
    }
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
