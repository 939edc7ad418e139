/* device.h's functions: checks common to every kind of device, then that kind's own code. */
#include "worker/device/backend.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

static const size_t op_bytes[LS_OP_COUNT] = {
#define X(name) sizeof(struct ls_op_##name),
    LS_OPERATIONS(X)
#undef X
};

#define X(name) _Static_assert(sizeof(struct ls_op_##name) <= LS_STREAM_ARGUMENT_MAX, "a stream's entry holds " #name);
LS_OPERATIONS(X)
#undef X

static void check_gemm(const struct ls_op_gemm *op) {
    assert(op->m >= 0 && op->n >= 0 && op->k >= 0);
    assert(op->m == 0 || op->n == 0 || (op->c && (op->k == 0 || (op->a && op->b))));
    assert(op->ldc >= op->n && op->lda >= (op->transpose_a ? op->m : op->k) &&
           op->ldb >= (op->transpose_b ? op->k : op->n));
    assert(op->epilogue == LS_EPILOGUE_NONE || !op->accumulate);
    assert((op->epilogue != LS_EPILOGUE_BIAS && op->epilogue != LS_EPILOGUE_BIAS_GELU) || op->bias);
    assert((op->epilogue != LS_EPILOGUE_BIAS_GELU && op->epilogue != LS_EPILOGUE_GELU_GRAD) || op->aux);
    assert(!op->residual || (op->k > 0 && op->epilogue <= LS_EPILOGUE_BIAS && !op->accumulate && !op->c_fp32));
    assert(!op->bias_gradient || (op->m > 0 && op->epilogue == LS_EPILOGUE_NONE && !op->transpose_b &&
                                  op->ldb == op->n && (op->c_fp32 || op->dtype == LS_FP32)));
    assert(op->spare.m >= 0 && op->spare.n >= 0 && op->spare.k >= 0);
    assert(op->spare.m + op->spare.n + op->spare.k == 0 ||
           (op->epilogue == LS_EPILOGUE_NONE && !op->bias_gradient && !op->residual && op->ldc >= op->n + op->spare.n &&
            op->lda >= (op->transpose_a ? op->m + op->spare.m : op->k + op->spare.k) &&
            op->ldb >= (op->transpose_b ? op->k + op->spare.k : op->n + op->spare.n)));
    (void)op;
}

static void check_attention(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t kv_heads,
                            int64_t head_size, int64_t q_stride, int64_t kv_stride, int64_t output_stride) {
    assert(batch >= 0 && queries >= 0 && keys >= queries && heads > 0 && kv_heads > 0 && heads % kv_heads == 0 &&
           head_size > 0);
    assert(q_stride >= heads * head_size && kv_stride >= kv_heads * head_size && output_stride >= heads * head_size);
    (void)batch, (void)queries, (void)keys, (void)heads, (void)kv_heads, (void)head_size;
    (void)q_stride, (void)kv_stride, (void)output_stride;
}

void ls_op_check(enum ls_op op, const void *arguments, size_t bytes) {
    assert((unsigned)op < LS_OP_COUNT && arguments && bytes == op_bytes[op]);
    (void)bytes;
    switch (op) {
    case LS_OP_gemm: check_gemm(arguments); break;
    case LS_OP_attention_forward: {
        const struct ls_op_attention_forward *a = arguments;
        assert(a->output && a->q && a->k && a->v);
        check_attention(a->batch, a->query_length, a->key_length, a->heads, a->kv_heads, a->head_size, a->q_stride,
                        a->kv_stride, a->output_stride);
        break;
    }
    case LS_OP_attention_backward: {
        const struct ls_op_attention_backward *a = arguments;
        assert(a->q_gradient && a->k_gradient && a->v_gradient && a->output_gradient && a->output);
        assert(a->q && a->k && a->v && a->lse);
        check_attention(a->batch, a->length, a->length, a->heads, a->kv_heads, a->head_size, a->q_stride, a->kv_stride,
                        a->output_stride);
        break;
    }
    case LS_OP_cross_entropy: {
        const struct ls_op_cross_entropy *a = arguments;
        assert(a->logits && a->loss && a->targets && a->row_loss && (!a->gradient || a->gradient_scale));
        assert(a->vocabulary > 0 && a->stride >= a->vocabulary);
        (void)a;
        break;
    }
    case LS_OP_rope: {
        const struct ls_op_rope *a = arguments;
        assert(a->x && a->table && a->length > 0 && a->head_size % 2 == 0 && a->stride >= a->heads * a->head_size);
        (void)a;
        break;
    }
    case LS_OP_layernorm_forward: {
        const struct ls_op_layernorm_forward *a = arguments;
        assert(a->output && a->weight && a->bias && a->columns > 0);
        (void)a;
        break;
    }
    case LS_OP_rmsnorm_forward: {
        const struct ls_op_rmsnorm_forward *a = arguments;
        assert(a->output && a->weight && a->columns > 0);
        (void)a;
        break;
    }
    case LS_OP_head_norm_forward: {
        const struct ls_op_head_norm_forward *a = arguments;
        assert(a->output && a->input && a->weight && a->head_size > 0 && a->stride >= a->heads * a->head_size);
        (void)a;
        break;
    }
    case LS_OP_head_norm_backward: {
        const struct ls_op_head_norm_backward *a = arguments;
        assert(a->input_gradient && a->weight_gradient && a->output_gradient && a->input && a->weight && a->rstd);
        assert(a->head_size > 0 && a->stride >= a->heads * a->head_size);
        (void)a;
        break;
    }
    default: break;
    }
}

static const char *const names[LS_OP_COUNT] = {
#define X(name) #name,
    LS_OPERATIONS(X)
#undef X
};

/* Where each operation's arguments hold their type; operations without one work on fp32 by definition. */
static const size_t dtype_offset[LS_OP_COUNT] = {
#define D(name) [LS_OP_##name] = offsetof(struct ls_op_##name, dtype)
    D(gemm),
    D(bias_backward),
    D(gelu_forward),
    D(gelu_backward),
    D(swiglu_forward),
    D(swiglu_backward),
    D(layernorm_forward),
    D(layernorm_backward),
    D(rmsnorm_forward),
    D(rmsnorm_backward),
    D(head_norm_forward),
    D(head_norm_backward),
    D(embedding_forward),
    D(embedding_backward),
    D(rope),
    D(attention_forward),
    D(attention_backward),
    D(cross_entropy),
    D(add),
    D(squared_norm),
    D(momentum),
    D(normalize),
    D(polynomial),
    D(update),
    D(convert),
    D(widen),
#undef D
};

enum ls_code ls_op_type(enum ls_op op, const void *arguments, enum ls_dtype *dtype, struct ls_error *error) {
    enum ls_dtype type = LS_FP32;
    if (dtype_offset[op]) memcpy(&type, (const char *)arguments + dtype_offset[op], sizeof type);
    if (type != LS_FP32 && type != LS_BF16 && type != LS_FP16)
        return ls_fail(error, LS_ERROR, LS_SCOPE_CALL,
                       "device: operation %s was asked for type %d, which no device knows. This is a mistake in the "
                       "program; report it.",
                       names[op], (int)type);
    *dtype = type;
    return LS_OK;
}

const char *ls_op_name(enum ls_op op) {
    return names[op];
}

void ls_device_destroy(struct ls_device *device) {
    if (device) device->backend->device_destroy(device);
}

void ls_device_set_fixed(struct ls_device *device, bool fixed) {
    device->fixed = fixed;
}

const struct ls_device_info *ls_device_info(const struct ls_device *device) {
    return device->backend->info(device);
}

int64_t ls_device_free_bytes(const struct ls_device *device) {
    return device->backend->free_bytes(device);
}

struct ls_device_gauges ls_device_gauges(const struct ls_device *device) {
    return device->backend->gauges ? device->backend->gauges(device) : (struct ls_device_gauges){0};
}

void ls_device_rehearse(struct ls_device *device, bool on) {
    if (device->backend->rehearse) device->backend->rehearse(device, on);
}

bool ls_device_recall(struct ls_device *device, const void *choices, int64_t bytes) {
    return device->backend->recall && device->backend->recall(device, choices, bytes);
}

enum ls_code ls_device_choose(struct ls_device *device, void **choices, int64_t *bytes, struct ls_error *error) {
    *choices = NULL;
    *bytes = 0;
    return device->backend->choose ? device->backend->choose(device, choices, bytes, error) : LS_OK;
}

enum ls_code ls_device_adopt(struct ls_device *device, const void *choices, int64_t bytes, bool *whole,
                             struct ls_error *error) {
    *whole = true;
    return device->backend->adopt && bytes > 0 ? device->backend->adopt(device, choices, bytes, whole, error) : LS_OK;
}

void ls_device_abandon(struct ls_device *device) {
    if (device->backend->abandon) device->backend->abandon(device);
}

const char *ls_device_numerics_id(const struct ls_device *device) {
    return device->numerics_id;
}

bool ls_device_host_reads(const struct ls_device *device) {
    return device->backend->host_reads;
}

void *ls_device_allocate(struct ls_device *device, size_t bytes) {
    return device->backend->allocate(device, bytes);
}

void ls_device_free(struct ls_device *device, void *memory) {
    if (memory) device->backend->free(device, memory);
}

void *ls_device_allocate_host(struct ls_device *device, size_t bytes) {
    return device->backend->allocate_host(device, bytes);
}

void ls_device_free_host(struct ls_device *device, void *memory) {
    if (memory) device->backend->free_host(device, memory);
}

struct ls_stream *ls_stream_create(struct ls_device *device, bool background) {
    return device->backend->stream_create(device, background);
}

void ls_stream_destroy(struct ls_stream *stream) {
    if (stream) stream->device->backend->stream_destroy(stream);
}

struct ls_device *ls_stream_device(struct ls_stream *stream) {
    return stream->device;
}

enum ls_code ls_stream_synchronize(struct ls_stream *stream, struct ls_error *error) {
    return stream->device->backend->stream_synchronize(stream, error);
}

struct ls_event *ls_event_create(struct ls_device *device) {
    return device->backend->event_create(device);
}

void ls_event_destroy(struct ls_event *event) {
    if (event) event->device->backend->event_destroy(event);
}

void ls_event_record(struct ls_event *event, struct ls_stream *stream) {
    assert(event->device == stream->device);
    event->device->backend->event_record(event, stream);
}

void ls_stream_wait(struct ls_stream *stream, struct ls_event *event) {
    assert(event->device == stream->device);
    stream->device->backend->stream_wait(stream, event);
}

void ls_stream_wait_measured(struct ls_stream *stream, struct ls_event *event) {
    assert(event->device == stream->device);
    stream->device->backend->stream_wait_measured(stream, event);
}

double ls_stream_waited_seconds(const struct ls_stream *stream) {
    return stream->device->backend->stream_waited_seconds(stream);
}

enum ls_code ls_event_synchronize(struct ls_event *event, struct ls_error *error) {
    return event->device->backend->event_synchronize(event, error);
}

void ls_copy_to_device(struct ls_stream *stream, void *device_memory, const void *host_memory, size_t bytes) {
    assert(bytes == 0 || (device_memory && host_memory));
    if (bytes) stream->device->backend->stream_copy(stream, device_memory, host_memory, bytes, LS_COPY_TO_DEVICE);
}

void ls_copy_to_host(struct ls_stream *stream, void *host_memory, const void *device_memory, size_t bytes) {
    assert(bytes == 0 || (device_memory && host_memory));
    if (bytes) stream->device->backend->stream_copy(stream, host_memory, device_memory, bytes, LS_COPY_TO_HOST);
}

void ls_copy(struct ls_stream *stream, void *to, const void *from, size_t bytes) {
    assert(bytes == 0 || (to && from));
    if (bytes && to != from) stream->device->backend->stream_copy(stream, to, from, bytes, LS_COPY_WITHIN_DEVICE);
}

void ls_fill_zero(struct ls_stream *stream, void *memory, size_t bytes) {
    assert(bytes == 0 || memory);
    if (bytes) stream->device->backend->stream_fill_zero(stream, memory, bytes);
}

void ls_stream_call(struct ls_stream *stream, ls_host_function *function, const void *argument, size_t bytes) {
    assert(bytes <= LS_STREAM_ARGUMENT_MAX);
    stream->device->backend->stream_call(stream, function, argument, bytes);
}

void ls_stream_submit(struct ls_stream *stream, enum ls_op op, const void *arguments, size_t bytes) {
    ls_op_check(op, arguments, bytes);
    stream->device->backend->stream_submit(stream, op, arguments, bytes);
}

size_t ls_op_workspace(const struct ls_device *device, enum ls_op op, const void *arguments) {
    return device->backend->workspace(device, op, arguments);
}
