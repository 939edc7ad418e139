/* Plans for pieces of the run's attention, and their execution. How it is chosen is in sdpa_choice.c. */
#include "worker/device/cuda/sdpa_plans.h"

#include "common/log.h"
#include "worker/device/cuda/stream.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PROPOSALS = 8, SUMS_ALIGNMENT = 256, POINTER_ALIGNMENT = 16, VERSION_LEAST = 91002, VERSION_ANY_LENGTH = 91600 };

/* ---- plans ---- */

/* "the graph answered 3000, CUDNN_STATUS_NOT_SUPPORTED" */
static void say_failed(const struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_graph *graph, struct ls_sdpa_reason *why) {
    snprintf(why->text, sizeof why->text, "%s answered %d, %s", graph->failed, (int)graph->status,
             sdpa->library->cudnnGetErrorString(graph->status));
}

/* What was wrong with the proposals that were passed over. */
struct passed_over {
    int nondeterministic, unplanned;
    char engines[PROPOSALS * 24]; /* numbers of those that are not deterministic, ", " between them */
    int64_t workspace;            /* the least that one of the others needs */
};

static void pass_over(struct passed_over *passed, int64_t engine) {
    const size_t length = strlen(passed->engines);
    snprintf(passed->engines + length, sizeof passed->engines - length, "%s%lld", length ? ", " : "",
             (long long)engine);
    passed->nondeterministic++;
}

static bool is_nondeterministic(const struct ls_cudnn *library, cudnnBackendDescriptor_t engine) {
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t count = 0;
    if (library->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                          CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes))
        return true; /* what says nothing about itself is not trusted */
    for (int64_t i = 0; i < count && i < CUDNN_NUMERICAL_NOTE_TYPE_COUNT; i++)
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return true;
    return false;
}

/* An executable plan of a proposal, if it can be used. */
static bool try_proposal(struct ls_cuda_sdpa *sdpa, struct ls_sdpa_plan *plan, cudnnBackendDescriptor_t config,
                         int64_t workspace_most, struct passed_over *passed) {
    const struct ls_cudnn *library = sdpa->library;
    cudnnBackendDescriptor_t engine = ls_sdpa_graph_add(&plan->graph, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    cudnnBackendDescriptor_t made = ls_sdpa_graph_add(&plan->graph, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    int64_t count = 0, workspace = 0;
    if (!engine || !made) return false;
    cudnnStatus_t status = library->cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE,
                                                             CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine);
    if (!status)
        status = library->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &count,
                                                   &plan->engine);
    if (!status && is_nondeterministic(library, engine)) {
        pass_over(passed, plan->engine);
        return false;
    }
    if (!status)
        status = library->cudnnBackendSetAttribute(made, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
                                                   &sdpa->handle);
    if (!status)
        status = library->cudnnBackendSetAttribute(made, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                                                   CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config);
    if (!status) status = library->cudnnBackendFinalize(made);
    if (!status)
        status = library->cudnnBackendGetAttribute(made, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                                   &count, &workspace);
    if (status) {
        passed->unplanned++;
        return false;
    }
    if (workspace > workspace_most) {
        if (!passed->workspace || workspace < passed->workspace) passed->workspace = workspace;
        return false;
    }
    plan->descriptor = made;
    return true;
}

/* The library's proposals, the one it thinks best first. */
static int ask(struct ls_cuda_sdpa *sdpa, struct ls_sdpa_graph *graph, cudnnBackendDescriptor_t configs[PROPOSALS]) {
    const struct ls_cudnn *library = sdpa->library;
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    const cudnnBackendDescriptor_t heuristics = ls_sdpa_graph_add(graph, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    int64_t count = 0;
    for (int i = 0; i < PROPOSALS; i++) configs[i] = ls_sdpa_graph_add(graph, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (graph->status) return 0;
    cudnnStatus_t status = library->cudnnBackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                                                             CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph->graph);
    if (!status)
        status =
            library->cudnnBackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (!status) status = library->cudnnBackendFinalize(heuristics);
    if (!status)
        status = library->cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                   CUDNN_TYPE_BACKEND_DESCRIPTOR, PROPOSALS, &count, configs);
    graph->status = status;
    graph->failed = "the question for engines";
    return status ? 0 : (int)(count < PROPOSALS ? count : PROPOSALS);
}

/* A plan for `batch` sequences and `kv_heads` key-value heads. wanted -1: the first proposal that can be used. */
static bool make_plan(struct ls_cuda_sdpa *sdpa, enum ls_sdpa_plan_kind kind, int64_t wanted,
                      struct ls_sdpa_reason *why) {
    struct ls_sdpa_plan *plan = &sdpa->plans[kind];
    const struct ls_op_attention_backward *op = &sdpa->backward;
    const bool backward = kind >= LS_SDPA_BACKWARD;
    const struct ls_sdpa_shape shape = {.batch = plan->batch,
                                        .length = op->length,
                                        .heads = plan->kv_heads * (op->heads / op->kv_heads),
                                        .kv_heads = plan->kv_heads,
                                        .head_size = op->head_size,
                                        .q_stride = op->q_stride,
                                        .q_batch_stride = op->q_batch_stride,
                                        .kv_stride = op->kv_stride,
                                        .kv_batch_stride = op->kv_batch_stride,
                                        .output_stride = op->output_stride,
                                        .output_batch_stride = op->output_batch_stride,
                                        .dtype = op->dtype};
    cudnnBackendDescriptor_t configs[PROPOSALS];
    struct passed_over passed = {0};
    const cudnnStatus_t status =
        (backward ? ls_sdpa_graph_backward : ls_sdpa_graph_forward)(sdpa->library, sdpa->handle, &shape, &plan->graph);
    const int count = status ? 0 : ask(sdpa, &plan->graph, configs);
    if (plan->graph.status) {
        say_failed(sdpa, &plan->graph, why);
        return false;
    }
    const int64_t workspace_most =
        sdpa->piece.bytes - (backward ? ls_sdpa_sums_bytes(shape.batch * shape.heads * shape.length) : 0);
    for (int i = 0; i < count && !plan->descriptor; i++)
        if ((wanted < 0 || wanted == i) && try_proposal(sdpa, plan, configs[i], workspace_most, &passed))
            plan->position = i;
    const char *name = backward ? "the backward" : "the forward";
    if (plan->descriptor) {
        if (wanted < 0 && passed.nondeterministic > 0)
            ls_log(
                LS_LOG_INFO,
                "attention: %s of cuDNN by engine %lld, the library's proposal %lld of %d; not taken because they are "
                "not deterministic: %s",
                name, (long long)plan->engine, (long long)plan->position + 1, count, passed.engines);
        return true;
    }
    snprintf(
        why->text, sizeof why->text,
        "%s has no engine for it: %d proposed, %d of them not deterministic%s%s%s, %d without a plan; workspace of "
        "at least %lld bytes, %lld are reserved",
        name, count, passed.nondeterministic, passed.nondeterministic ? " (" : "", passed.engines,
        passed.nondeterministic ? ")" : "", passed.unplanned, (long long)passed.workspace, (long long)workspace_most);
    return false;
}

int64_t ls_sdpa_sums_bytes(int64_t count) {
    return (count * (int64_t)sizeof(float) + SUMS_ALIGNMENT - 1) / SUMS_ALIGNMENT * SUMS_ALIGNMENT;
}

void ls_sdpa_clear_plans(struct ls_cuda_sdpa *sdpa, int64_t directions) {
    sdpa->used &= ~directions;
    for (int i = 0; i < LS_SDPA_PLANS; i++) {
        if (!(ls_sdpa_direction(i) & directions)) continue;
        ls_sdpa_graph_clear(&sdpa->plans[i].graph);
        memset(&sdpa->plans[i], 0, sizeof sdpa->plans[i]);
    }
}

bool ls_sdpa_is_suitable(const struct ls_cuda_sdpa *sdpa, struct ls_sdpa_reason *why) {
    const struct ls_op_attention_backward *op = &sdpa->backward;
    if (!sdpa->library) {
        snprintf(why->text, sizeof why->text, "%s", sdpa->missing.text);
        return false;
    }
    const size_t version = sdpa->library->cudnnGetVersion();
    if (version < VERSION_LEAST || (version < VERSION_ANY_LENGTH && op->length % 128 != 0)) {
        snprintf(why->text, sizeof why->text,
                 "cuDNN %s is too old for %lld tokens: 9.16.0, or for multiples of 128 9.10.2", sdpa->library->version,
                 (long long)op->length);
        return false;
    }
    if (!sdpa->piece.batch) {
        snprintf(why->text, sizeof why->text, "heads of %lld channels on %lld tokens are not for it",
                 (long long)op->head_size, (long long)op->length);
        return false;
    }
    /* Where a piece begins its statistics begin, in fp32. */
    const int64_t group = op->heads / op->kv_heads, piece_bytes = sdpa->piece.kv_heads * group * op->length * 4;
    if ((op->batch > 1 || sdpa->piece.kv_heads < op->kv_heads) && piece_bytes % POINTER_ALIGNMENT != 0) {
        snprintf(why->text, sizeof why->text, "%lld heads on %lld tokens do not end on a multiple of %d bytes",
                 (long long)(sdpa->piece.kv_heads * group), (long long)op->length, POINTER_ALIGNMENT);
        return false;
    }
    return true;
}

bool ls_sdpa_make_plans(struct ls_cuda_sdpa *sdpa, int64_t direction, const struct ls_sdpa_choice *wanted,
                        struct ls_sdpa_reason *why) {
    const struct ls_op_attention_backward *op = &sdpa->backward;
    ls_sdpa_clear_plans(sdpa, direction);
    ls_cuda_use(sdpa->device);
    const cudnnStatus_t status = sdpa->handle ? CUDNN_STATUS_SUCCESS : sdpa->library->cudnnCreate(&sdpa->handle);
    if (status) {
        sdpa->handle = NULL;
        snprintf(why->text, sizeof why->text, "cudnnCreate of %s answered %d, %s", sdpa->library->path, (int)status,
                 sdpa->library->cudnnGetErrorString(status));
        return false;
    }
    const struct ls_sdpa_plan sizes[LS_SDPA_PLANS] = {
        [LS_SDPA_FORWARD] = {.batch = op->batch, .kv_heads = op->kv_heads},
        [LS_SDPA_FORWARD_SINGLE] = {.batch = op->batch > 1, .kv_heads = op->kv_heads},
        [LS_SDPA_BACKWARD] = {.batch = sdpa->piece.batch, .kv_heads = sdpa->piece.kv_heads},
        [LS_SDPA_BACKWARD_SINGLE] = {.batch = sdpa->piece.batch > 1, .kv_heads = sdpa->piece.kv_heads}};
    bool made = true;
    for (int i = 0; i < LS_SDPA_PLANS && made; i++) {
        if (ls_sdpa_direction(i) != direction) continue;
        sdpa->plans[i].batch = sizes[i].batch;
        sdpa->plans[i].kv_heads = sizes[i].kv_heads;
        if (sizes[i].batch) made = make_plan(sdpa, i, wanted ? wanted->position[i] : -1, why);
    }
    if (!made) ls_sdpa_clear_plans(sdpa, direction);
    return made;
}

/* ---- execution ---- */

/* The tensors of one execution. */
struct given {
    int count;
    int64_t ids[LS_SDPA_TENSORS];
    void *pointers[LS_SDPA_TENSORS];
};

static void give(struct given *given, enum ls_sdpa_tensor id, const void *pointer) {
    given->ids[given->count] = id;
    given->pointers[given->count++] = (void *)(uintptr_t)pointer;
}

static cudnnStatus_t execute(const struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_plan *plan,
                             const struct given *given, void *workspace) {
    const struct ls_cudnn *library = sdpa->library;
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t status = library->cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (status) return status;
    status = library->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, given->count,
                                               given->ids);
    if (!status)
        status = library->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
                                                   given->count, given->pointers);
    if (!status)
        status = library->cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                                                   &workspace);
    if (!status) status = library->cudnnBackendFinalize(pack);
    if (!status) status = library->cudnnBackendExecute(sdpa->handle, plan->descriptor, pack);
    library->cudnnBackendDestroyDescriptor(pack);
    return status;
}

/* The plan for what is left of a batch: the large one serves whole batches of the noted size alone, for whose workspace
 * there is room. */
static const struct ls_sdpa_plan *plan_for(const struct ls_cuda_sdpa *sdpa, enum ls_sdpa_plan_kind kind,
                                           int64_t batch) {
    const struct ls_sdpa_plan *plan = &sdpa->plans[kind];
    return plan->batch == 1 || batch == sdpa->backward.batch ? plan : plan + 1;
}

static const char *at(const void *memory, int64_t elements) {
    return (const char *)memory + 2 * elements;
}

cudnnStatus_t ls_sdpa_run_forward(const struct ls_cuda_sdpa *sdpa, cudaStream_t stream,
                                  const struct ls_op_attention_forward *op) {
    const struct ls_sdpa_plan *plan = plan_for(sdpa, LS_SDPA_FORWARD, op->batch);
    cudnnStatus_t status = sdpa->library->cudnnSetStream(sdpa->handle, stream);
    for (int64_t b = 0; b < op->batch && !status; b += plan->batch) {
        struct given given = {0};
        give(&given, LS_SDPA_Q, at(op->q, b * op->q_batch_stride));
        give(&given, LS_SDPA_K, at(op->k, b * op->kv_batch_stride));
        give(&given, LS_SDPA_V, at(op->v, b * op->kv_batch_stride));
        give(&given, LS_SDPA_OUTPUT, at(op->output, b * op->output_batch_stride));
        give(&given, LS_SDPA_STATISTICS, op->lse + b * op->heads * op->query_length);
        give(&given, LS_SDPA_SCALE, &sdpa->scale);
        give(&given, LS_SDPA_MASKED, &sdpa->masked);
        status = execute(sdpa, plan, &given, op->workspace);
    }
    return status;
}

static cudnnStatus_t run_backward_piece(const struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_plan *plan,
                                        const struct ls_op_attention_backward *op, int64_t b, int64_t kv) {
    const int64_t group = op->heads / op->kv_heads, head = kv * group;
    const int64_t q = b * op->q_batch_stride + head * op->head_size;
    const int64_t keys = b * op->kv_batch_stride + kv * op->head_size;
    const int64_t output = b * op->output_batch_stride + head * op->head_size;
    struct given given = {0};
    give(&given, LS_SDPA_Q, at(op->q, q));
    give(&given, LS_SDPA_K, at(op->k, keys));
    give(&given, LS_SDPA_V, at(op->v, keys));
    give(&given, LS_SDPA_OUTPUT, at(op->output, output));
    give(&given, LS_SDPA_OUTPUT_GRADIENT, at(op->output_gradient, output));
    give(&given, LS_SDPA_STATISTICS, op->lse + (b * op->heads + head) * op->length);
    give(&given, LS_SDPA_SUMS, op->workspace);
    give(&given, LS_SDPA_Q_GRADIENT, at(op->q_gradient, q));
    give(&given, LS_SDPA_K_GRADIENT, at(op->k_gradient, keys));
    give(&given, LS_SDPA_V_GRADIENT, at(op->v_gradient, keys));
    give(&given, LS_SDPA_SCALE, &sdpa->scale);
    give(&given, LS_SDPA_MASKED, &sdpa->masked);
    give(&given, LS_SDPA_ONE, &sdpa->one);
    const int64_t sums = ls_sdpa_sums_bytes(plan->batch * plan->kv_heads * group * op->length);
    return execute(sdpa, plan, &given, (char *)op->workspace + sums);
}

cudnnStatus_t ls_sdpa_run_backward(const struct ls_cuda_sdpa *sdpa, cudaStream_t stream,
                                   const struct ls_op_attention_backward *op) {
    const struct ls_sdpa_plan *plan = plan_for(sdpa, LS_SDPA_BACKWARD, op->batch);
    cudnnStatus_t status = sdpa->library->cudnnSetStream(sdpa->handle, stream);
    for (int64_t b = 0; b < op->batch && !status; b += plan->batch)
        for (int64_t kv = 0; kv < op->kv_heads && !status; kv += plan->kv_heads)
            status = run_backward_piece(sdpa, plan, op, b, kv);
    return status;
}

static bool is_aligned(const void *const *pointers, int count) {
    bool aligned = true;
    for (int i = 0; i < count; i++) aligned = aligned && pointers[i] && (uintptr_t)pointers[i] % POINTER_ALIGNMENT == 0;
    return aligned;
}

/* A failure to launch. Where the same bits are promised nothing else may take its place. */
static bool gave_up(struct ls_cuda_sdpa *sdpa, struct ls_stream *stream, cudnnStatus_t status) {
    struct ls_error error;
    if (!status) return false;
    const cudaError_t fault = ls_cuda_fault(sdpa->device);
    if (fault) {
        ls_cuda_stream_note(stream, fault, "attention, or a kernel before it");
        return false;
    }
    ls_fail(&error, LS_ERROR, LS_SCOPE_RANK,
            "device: cuDNN %s answered %d, %s, in attention that it computed before. Look for Xid in the kernel's log; "
            "without cuDNN (LOCKSTEP_CUDA_LIBRARIES) attention is computed by our own kernels.",
            sdpa->library->version, (int)status, sdpa->library->cudnnGetErrorString(status));
    if (sdpa->device->base.fixed)
        ls_cuda_stream_fail(stream, &error);
    else
        ls_log(LS_LOG_WARNING, "%s They serve from now on.", error.text);
    if (!sdpa->device->base.fixed) sdpa->used = 0;
    return !sdpa->device->base.fixed;
}

bool ls_cuda_sdpa_forward(struct ls_cuda_sdpa *sdpa, struct ls_stream *stream,
                          const struct ls_op_attention_forward *op) {
    if (!sdpa || !(sdpa->used & LS_SDPA_USES_FORWARD) || op->document_start || !op->lse || op->batch <= 0) return false;
    const struct ls_op_attention_forward *noted = &sdpa->forward;
    const void *const pointers[] = {op->q, op->k, op->v, op->output, op->lse, op->workspace};
    if (op->dtype != noted->dtype || op->query_length != noted->query_length || op->key_length != noted->key_length ||
        op->heads != noted->heads || op->kv_heads != noted->kv_heads || op->head_size != noted->head_size ||
        op->q_stride != noted->q_stride || op->kv_stride != noted->kv_stride ||
        op->output_stride != noted->output_stride || op->q_batch_stride != noted->q_batch_stride ||
        op->kv_batch_stride != noted->kv_batch_stride || op->output_batch_stride != noted->output_batch_stride ||
        op->scale != noted->scale || op->batch > noted->batch || !is_aligned(pointers, 6))
        return false;
    return !gave_up(sdpa, stream, ls_sdpa_run_forward(sdpa, ls_cuda_stream(stream), op));
}

bool ls_cuda_sdpa_backward(struct ls_cuda_sdpa *sdpa, struct ls_stream *stream,
                           const struct ls_op_attention_backward *op) {
    if (!sdpa || !(sdpa->used & LS_SDPA_USES_BACKWARD) || op->document_start || op->batch <= 0) return false;
    const struct ls_op_attention_backward *noted = &sdpa->backward;
    const void *const pointers[] = {op->q,          op->k,          op->v,          op->output, op->output_gradient,
                                    op->q_gradient, op->k_gradient, op->v_gradient, op->lse,    op->workspace};
    if (op->dtype != noted->dtype || op->length != noted->length || op->heads != noted->heads ||
        op->kv_heads != noted->kv_heads || op->head_size != noted->head_size || op->q_stride != noted->q_stride ||
        op->kv_stride != noted->kv_stride || op->output_stride != noted->output_stride ||
        op->q_batch_stride != noted->q_batch_stride || op->kv_batch_stride != noted->kv_batch_stride ||
        op->output_batch_stride != noted->output_batch_stride || op->scale != noted->scale ||
        op->batch > noted->batch || !is_aligned(pointers, 10))
        return false;
    return !gave_up(sdpa, stream, ls_sdpa_run_backward(sdpa, ls_cuda_stream(stream), op));
}

/* ---- life ---- */

void ls_cuda_sdpa_note(struct ls_cuda_sdpa *sdpa, enum ls_op op, const void *arguments) {
    if (!sdpa) return;
    if (op == LS_OP_attention_forward && !sdpa->forward.output)
        sdpa->forward = *(const struct ls_op_attention_forward *)arguments;
    if (op == LS_OP_attention_backward && !sdpa->backward.output)
        sdpa->backward = *(const struct ls_op_attention_backward *)arguments;
    sdpa->scale = sdpa->forward.scale;
    if (sdpa->backward.output) sdpa->piece = ls_cuda_attention_piece(&sdpa->backward);
}

const char *ls_cuda_sdpa_version(const struct ls_cuda_sdpa *sdpa) {
    return sdpa && sdpa->library ? sdpa->library->version : NULL;
}

void ls_cuda_sdpa_abandon(struct ls_cuda_sdpa *sdpa) {
    if (sdpa) ls_sdpa_clear_plans(sdpa, LS_SDPA_BOTH);
}

enum ls_code ls_cuda_sdpa_create(struct ls_cuda_device *device, struct ls_cuda_sdpa **sdpa, struct ls_error *error) {
    struct ls_cuda_sdpa *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "device: no memory for the records of attention");
    made->device = device;
    made->masked = -INFINITY;
    made->one = 1.0f;
    if (ls_library_cudnn(&made->library, &made->missing)) made->library = NULL;
    *sdpa = made;
    return LS_OK;
}

void ls_cuda_sdpa_destroy(struct ls_cuda_sdpa *sdpa) {
    if (!sdpa) return;
    ls_sdpa_clear_plans(sdpa, LS_SDPA_BOTH);
    if (sdpa->handle) sdpa->library->cudnnDestroy(sdpa->handle);
    free(sdpa);
}
