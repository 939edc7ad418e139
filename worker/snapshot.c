/* Block by block: device, host memory, file, and back. */
#include "worker/snapshot.h"

#include "worker/checkpoint/load.h"
#include "worker/checkpoint/part.h"
#include "worker/checkpoint/save.h"

#include <stdlib.h>
#include <string.h>

/* Of state that is read at a time, where the host reads the device's memory. */
enum { PIECE_ELEMENTS = 2 << 20 };

struct ls_snapshot {
    struct ls_comm *comm;
    struct ls_device *device;
    const struct ls_config *config;
    struct ls_replica *replica;
    void *weights;         /* of the largest block, in the model's type, where one is needed */
    float *master, *m, *v; /* [slice_elements] each */
    int64_t slice_elements;
    struct ls_saver *saver;
    struct ls_progress_record *progress; /* NULL: none */
};

static int64_t largest_block(const struct ls_model *model) {
    int64_t largest = 1;
    for (int block = 0; block < ls_model_block_count(model); block++)
        if (ls_model_block(model, block)->count > largest) largest = ls_model_block(model, block)->count;
    return largest;
}

/* The first rank's slice is as large as any. */
static int64_t largest_slice(const struct ls_config *config, int64_t elements, int64_t ranks) {
    int64_t first, count;
    ls_checkpoint_slice(elements, 0, ranks, ls_shard_replicas(config), ls_shard_slice_unit(config), &first, &count);
    return count;
}

/* Host memory of a snapshot. Where the host reads the device's memory, state and weights are written from where they
 * lie: a whole block is needed at stage 3 alone, whose ring it is, and slices for reading, in pieces. */
struct buffers {
    int64_t weights_bytes, slice_elements;
};

static struct buffers buffers_of(const struct ls_config *config, const struct ls_model *model, int64_t ranks,
                                 bool bounce) {
    const int64_t largest = largest_block(model), slice = largest_slice(config, largest, ranks);
    return (struct buffers){.weights_bytes =
                                bounce || config->zero.stage == 3 ? largest * ls_dtype_bytes(ls_model_dtype(model)) : 0,
                            .slice_elements = bounce || slice < PIECE_ELEMENTS ? slice : PIECE_ELEMENTS};
}

int64_t ls_snapshot_host_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks,
                               bool bounce) {
    const struct buffers buffers = buffers_of(config, model, ranks, bounce);
    int64_t state = 0;
    for (enum ls_checkpoint_kind kind = 0; kind < LS_CHECKPOINT_KINDS; kind++)
        state +=
            ls_dtype_bytes(ls_checkpoint_state_dtype(config, kind)) * (ls_checkpoint_held(config, model, kind) / ranks);
    return buffers.weights_bytes + LS_CHECKPOINT_KINDS * buffers.slice_elements * (int64_t)sizeof(float) +
           (state >= LS_PART_LARGE_BYTES ? 2 * LS_PART_BUFFER_BYTES : 0);
}

enum ls_code ls_snapshot_create(const struct ls_saver_options *options, struct ls_snapshot **snapshot,
                                struct ls_error *error) {
    const struct ls_model *model = ls_replica_model(options->replica);
    const int64_t ranks = ls_comm_size(options->comm);
    const bool bounces = options->bounce || !ls_device_host_reads(options->device);
    const struct buffers buffers = buffers_of(options->config, model, ranks, bounces);
    struct ls_snapshot *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the records of checkpoints");
    *made = (struct ls_snapshot){.comm = options->comm,
                                 .device = options->device,
                                 .config = options->config,
                                 .replica = options->replica,
                                 .progress = options->progress,
                                 .slice_elements = buffers.slice_elements};
    made->weights = ls_device_allocate_host(made->device, (size_t)buffers.weights_bytes);
    made->master = ls_device_allocate_host(made->device, (size_t)made->slice_elements * sizeof(float));
    made->m = ls_device_allocate_host(made->device, (size_t)made->slice_elements * sizeof(float));
    made->v = ls_device_allocate_host(made->device, (size_t)made->slice_elements * sizeof(float));
    enum ls_code code = LS_OK;
    if (!made->weights || !made->master || !made->m || !made->v)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK,
                       "memory: no %lld bytes of host memory for saving checkpoints. Run on more memory.",
                       (long long)ls_snapshot_host_bytes(options->config, model, ranks, bounces));
    struct ls_saver_options saver = *options;
    saver.weights = made->weights;
    saver.weights_bytes = buffers.weights_bytes;
    saver.slices[LS_CHECKPOINT_MASTER] = made->master;
    saver.slices[LS_CHECKPOINT_EXP_AVG] = made->m;
    saver.slices[LS_CHECKPOINT_EXP_AVG_SQ] = made->v;
    if (!code) code = ls_saver_create(&saver, &made->saver, error);
    if (code) {
        ls_snapshot_destroy(made);
        return code;
    }
    *snapshot = made;
    return LS_OK;
}

void ls_snapshot_destroy(struct ls_snapshot *snapshot) {
    if (!snapshot) return;
    ls_saver_destroy(snapshot->saver);
    ls_device_free_host(snapshot->device, snapshot->weights);
    ls_device_free_host(snapshot->device, snapshot->master);
    ls_device_free_host(snapshot->device, snapshot->m);
    ls_device_free_host(snapshot->device, snapshot->v);
    free(snapshot);
}

int64_t ls_snapshot_bytes(const struct ls_snapshot *snapshot) {
    return ls_checkpoint_bytes(snapshot->config, ls_replica_model(snapshot->replica), ls_comm_size(snapshot->comm));
}

struct ls_saver *ls_snapshot_saver(struct ls_snapshot *snapshot) {
    return snapshot->saver;
}

/* Where elements of a block go: fp32 device memory, NULL for none. */
struct destination {
    float *master, *m, *v;
};

/* Where blocks come from: a checkpoint, or, when `reader` is NULL, weights without moments, which are then zero. */
struct source {
    const struct ls_checkpoint_reader *reader;
    const struct ls_weights *weights;
};

/* As ls_checkpoint_reader_read(). */
static enum ls_code read_source(const struct source *source, int block, int64_t first, int64_t count, float *parameters,
                                float *m, float *v, struct ls_error *error) {
    if (source->reader) return ls_checkpoint_reader_read(source->reader, block, first, count, parameters, m, v, error);
    if (m) memset(m, 0, (size_t)count * sizeof *m);
    if (v) memset(v, 0, (size_t)count * sizeof *v);
    return parameters ? ls_weights_read(source->weights, block, first, count, parameters, error) : LS_OK;
}

/* `count` elements from `first` of the block into device memory; they fit the host memory of a slice. */
static enum ls_code read_piece(struct ls_snapshot *snapshot, const struct source *source, int block, int64_t first,
                               int64_t count, struct destination to, struct ls_error *error) {
    struct ls_stream *stream = ls_replica_stream(snapshot->replica);
    const size_t bytes = (size_t)count * sizeof(float);
    enum ls_code code = read_source(source, block, first, count, to.master ? snapshot->master : NULL,
                                    to.m ? snapshot->m : NULL, to.v ? snapshot->v : NULL, error);
    if (code) return code;
    if (snapshot->progress) /* one that reads gets on, however long all of it takes */
        ls_progress_mark(snapshot->progress, LS_PHASE_LOAD,
                         atomic_load_explicit(&snapshot->progress->step, memory_order_relaxed), 0, (uint64_t)block);
    if (to.master) ls_copy_to_device(stream, to.master, snapshot->master, bytes);
    if (to.m) ls_copy_to_device(stream, to.m, snapshot->m, bytes);
    if (to.v) ls_copy_to_device(stream, to.v, snapshot->v, bytes);
    return LS_OK;
}

/* What blocks compute with, from the master parameters in the folder; those of another type than fp32 come by the
 * scratch. */
static enum ls_code read_parameters(struct ls_snapshot *snapshot, const struct source *source, int block,
                                    const struct ls_shard_held *held, struct ls_error *error) {
    struct ls_stream *stream = ls_replica_stream(snapshot->replica);
    const enum ls_dtype dtype = ls_model_dtype(ls_replica_model(snapshot->replica));
    int64_t most = snapshot->slice_elements;
    if (dtype != LS_FP32 && held->scratch_count < most) most = held->scratch_count;
    enum ls_code code = LS_OK;
    for (int64_t done = 0; done < held->count && !code; done += most) {
        const int64_t count = held->count - done < most ? held->count - done : most;
        char *to = (char *)held->parameters + done * ls_dtype_bytes(dtype);
        float *fp32 = dtype == LS_FP32 ? (float *)(void *)to : held->m;
        code =
            read_piece(snapshot, source, block, held->first + done, count, (struct destination){.master = fp32}, error);
        if (!code && dtype != LS_FP32)
            ls_op(stream, convert, .output = to, .input = fp32, .count = count, .dtype = dtype);
        if (!code) code = ls_stream_synchronize(stream, error);
    }
    return code;
}

static enum ls_code read_block(struct ls_snapshot *snapshot, const struct source *source, int block,
                               struct ls_error *error) {
    const struct ls_shard_held held = ls_shard_held(ls_replica_shard(snapshot->replica), block);
    enum ls_code code = read_parameters(snapshot, source, block, &held, error);
    const int64_t most = snapshot->slice_elements;
    for (int64_t done = 0; done < held.state_count && !code; done += most) {
        const int64_t count = held.state_count - done < most ? held.state_count - done : most;
        const struct destination to = {.master = held.master ? held.master + done : NULL, .m = held.m + done};
        code = read_piece(snapshot, source, block, held.state_first + done, count, to, error);
        if (!code) code = ls_stream_synchronize(ls_replica_stream(snapshot->replica), error);
    }
    const int64_t second_count = held.v ? held.state_first + held.state_count - held.second_first : 0;
    for (int64_t done = 0; done < second_count && !code; done += most) {
        const int64_t count = second_count - done < most ? second_count - done : most;
        code = read_piece(snapshot, source, block, held.second_first + done, count,
                          (struct destination){.v = held.v + done}, error);
        if (!code) code = ls_stream_synchronize(ls_replica_stream(snapshot->replica), error);
    }
    return code;
}

static enum ls_code read_blocks(struct ls_snapshot *snapshot, const struct source *source, struct ls_error *error) {
    enum ls_code code = LS_OK;
    for (int block = 0; block < ls_model_block_count(ls_replica_model(snapshot->replica)) && !code; block++)
        code = read_block(snapshot, source, block, error);
    return code;
}

enum ls_code ls_snapshot_read(struct ls_snapshot *snapshot, const char *folder, struct ls_error *error) {
    struct ls_checkpoint_reader *reader;
    enum ls_code code = ls_checkpoint_reader_open(folder, ls_replica_model(snapshot->replica), &reader, error);
    if (code) return code;
    code = read_blocks(snapshot, &(struct source){.reader = reader}, error);
    const struct ls_loss_scale saved = ls_checkpoint_reader_loss_scale(reader);
    struct ls_loss_scale *scale = ls_replica_loss_scale(snapshot->replica);
    if (!code && scale->factor && saved.factor) *scale = saved;
    ls_checkpoint_reader_close(reader);
    return code;
}

enum ls_code ls_snapshot_read_weights(struct ls_snapshot *snapshot, const char *folder, struct ls_error *error) {
    struct ls_weights *weights;
    enum ls_code code = ls_weights_open(folder, ls_replica_model(snapshot->replica), &weights, error);
    if (code) return code;
    code = read_blocks(snapshot, &(struct source){.weights = weights}, error);
    ls_weights_close(weights);
    return code;
}
