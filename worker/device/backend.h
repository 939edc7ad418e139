/* What a kind of device provides. device.h's functions call these; only the device kinds themselves include this file.
 */
#ifndef LS_WORKER_DEVICE_BACKEND_H
#define LS_WORKER_DEVICE_BACKEND_H

#include "worker/device/device.h"

enum ls_copy_kind { LS_COPY_TO_DEVICE, LS_COPY_TO_HOST, LS_COPY_WITHIN_DEVICE };

/* Each member has the contract of the function of device.h whose name it bears. */
struct ls_backend {
    bool host_reads;
    void (*device_destroy)(struct ls_device *device);
    void *(*allocate)(struct ls_device *device, size_t bytes);
    void (*free)(struct ls_device *device, void *memory);
    void *(*allocate_host)(struct ls_device *device, size_t bytes);
    void (*free_host)(struct ls_device *device, void *memory);
    struct ls_stream *(*stream_create)(struct ls_device *device, bool background);
    void (*stream_destroy)(struct ls_stream *stream);
    enum ls_code (*stream_synchronize)(struct ls_stream *stream, struct ls_error *error);
    void (*stream_wait)(struct ls_stream *stream, struct ls_event *event);
    void (*stream_wait_measured)(struct ls_stream *stream, struct ls_event *event);
    double (*stream_waited_seconds)(const struct ls_stream *stream);
    void (*stream_copy)(struct ls_stream *stream, void *to, const void *from, size_t bytes, enum ls_copy_kind kind);
    void (*stream_fill_zero)(struct ls_stream *stream, void *memory, size_t bytes);
    void (*stream_call)(struct ls_stream *stream, ls_host_function *function, const void *argument, size_t bytes);
    void (*stream_submit)(struct ls_stream *stream, enum ls_op op, const void *arguments, size_t bytes);
    struct ls_event *(*event_create)(struct ls_device *device);
    void (*event_destroy)(struct ls_event *event);
    void (*event_record)(struct ls_event *event, struct ls_stream *stream);
    enum ls_code (*event_synchronize)(struct ls_event *event, struct ls_error *error);
    const struct ls_device_info *(*info)(const struct ls_device *device);
    int64_t (*free_bytes)(const struct ls_device *device);
    struct ls_device_gauges (*gauges)(const struct ls_device *device); /* NULL: nothing is known */
    /* NULL, all five: there is nothing to choose */
    void (*rehearse)(struct ls_device *device, bool on);
    bool (*recall)(struct ls_device *device, const void *choices, int64_t bytes);
    enum ls_code (*choose)(struct ls_device *device, void **choices, int64_t *bytes, struct ls_error *error);
    enum ls_code (*adopt)(struct ls_device *device, const void *choices, int64_t bytes, bool *whole,
                          struct ls_error *error);
    void (*abandon)(struct ls_device *device);
    size_t (*workspace)(const struct ls_device *device, enum ls_op op, const void *arguments);
};

/* The first members of every device, stream and event; a kind appends its own. */
struct ls_device {
    const struct ls_backend *backend;
    char numerics_id[256];
    bool fixed; /* see ls_device_set_fixed */
};
struct ls_stream {
    struct ls_device *device;
};
struct ls_event {
    struct ls_device *device;
};

/* How much of attention cuDNN is given at a time, by the shape alone: `batch` sequences with all heads, or one sequence
 * with `kv_heads` key-value heads and the queries' heads that go with them. Both divide what there is; 0: nothing, the
 * type or the size of heads is not for it. `bytes` of workspace are reserved for a piece: its deterministic backward
 * stores a T x T matrix for each head. */
struct ls_attention_piece {
    int64_t batch, kv_heads, bytes;
};
struct ls_attention_piece ls_cuda_attention_piece(const struct ls_op_attention_backward *op);

/* The workspace of a CUDA device's operations, by their arguments alone. */
size_t ls_cuda_planned_workspace(const struct ls_device *device, enum ls_op op, const void *arguments);

/* Asserts what every kind of device may rely on: shapes not negative, pointers given where the shape needs them. */
void ls_op_check(enum ls_op op, const void *arguments, size_t bytes);
/* The type that an operation was asked for; LS_ERROR, naming the operation, when there is none of that number. */
enum ls_code ls_op_type(enum ls_op op, const void *arguments, enum ls_dtype *dtype, struct ls_error *error);
const char *ls_op_name(enum ls_op op);

#endif
