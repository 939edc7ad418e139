/* Whether cuDNN computes the run's attention: its plans are compared with our own kernels on random values, and
 * measured. */
#include "worker/device/cuda/sdpa_plans.h"

#include "common/log.h"
#include "worker/device/cpu/low_precision.h"
#include "worker/device/cuda/kernels.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { REPEATS = 5, VALUES = 65521 }; /* VALUES: a prime, so that rows and sequences differ */

/* A tensor of heads in 16 bits: `width` elements of each token of each sequence. */
struct rows {
    const char *name;
    void *memory; /* on the device */
    int64_t batch, length, width, stride, batch_stride;
};

/* The operations with their tensors, and host copies of results. */
struct trial {
    struct ls_cuda_sdpa *sdpa;
    cudaStream_t stream;
    struct ls_op_attention_forward forward;
    struct ls_op_attention_backward backward;
    cudaEvent_t events[2];
    uint16_t *values;                               /* [largest span] for filling */
    uint16_t *ours, *theirs;                        /* [largest span] */
    float *our_lse, *their_lse;                     /* [batch, heads, length] */
    double forward_difference, backward_difference; /* of the norm, the largest of the tensors' */
    struct ls_sdpa_reason *why;
};

static struct rows rows_of(const struct trial *t, const char *name, const void *memory, bool kv) {
    const struct ls_op_attention_backward *op = &t->backward;
    return (struct rows){.name = name,
                         .memory = (void *)(uintptr_t)memory,
                         .batch = op->batch,
                         .length = op->length,
                         .width = (kv ? op->kv_heads : op->heads) * op->head_size,
                         .stride = kv ? op->kv_stride : op->q_stride,
                         .batch_stride = kv ? op->kv_batch_stride : op->q_batch_stride};
}
static struct rows output_rows(const struct trial *t, const char *name, const void *memory) {
    struct rows rows = rows_of(t, name, memory, false);
    rows.stride = t->backward.output_stride;
    rows.batch_stride = t->backward.output_batch_stride;
    return rows;
}

/* Elements from the first to behind the last. */
static int64_t span_of(const struct rows *rows) {
    return (rows->batch - 1) * rows->batch_stride + (rows->length - 1) * rows->stride + rows->width;
}

static bool is_done(struct trial *t, cudaError_t status, const char *what) {
    if (!status) status = cudaStreamSynchronize(t->stream);
    if (!status) return true;
    snprintf(t->why->text, sizeof t->why->text, "%s ended with %s", what, cudaGetErrorName(cudaGetLastError()));
    return false;
}

/* Numbers in [-2, 2), the same ones every time. What lies between the tensor's rows is overwritten too: it belongs to
 * its neighbours, which are filled likewise. */
static bool fill(struct trial *t, const struct rows *rows, uint64_t salt) {
    const int64_t count = span_of(rows);
    const bool bf16 = t->backward.dtype == LS_BF16;
    static const uint64_t odd = 0x9e3779b97f4a7c15u;
    for (int64_t i = 0; i < count && i < VALUES; i++) {
        const uint64_t bits = ((uint64_t)i + 1 + salt * VALUES) * odd;
        const float value = (float)((bits ^ bits >> 31) * odd >> 40) * 0x1p-22f - 2.0f;
        t->values[i] = bf16 ? ls_bf16_narrow(value) : ls_fp16_narrow(value);
    }
    for (int64_t i = VALUES; i < count; i++) t->values[i] = t->values[i - VALUES];
    return is_done(t, cudaMemcpyAsync(rows->memory, t->values, (size_t)count * 2, cudaMemcpyHostToDevice, t->stream),
                   "a copy");
}

static bool fetch(struct trial *t, void *to, const void *from, size_t bytes) {
    return is_done(t, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, t->stream), "a copy");
}

/* Every bit set is not a number: what the library leaves out shows. */
static bool spoil(struct trial *t, const struct rows *rows) {
    return is_done(t, cudaMemsetAsync(rows->memory, 0xff, (size_t)span_of(rows) * 2, t->stream), "a fill");
}

/* The difference's norm over ours, and its largest element over our root mean square. Both kinds of kernels round
 * results to 2^-9 of themselves (bf16; fp16: 2^-12), and the library rounds probabilities and their gradients before
 * it multiplies them: a few times that for the norm. Large elements are some ten times the mean, and so are their
 * errors. A key too many or too few in each row moves the norm by a tenth. */
static bool compare(struct trial *t, const struct rows *rows, double *difference) {
    const bool bf16 = t->backward.dtype == LS_BF16;
    const double norm_most = bf16 ? 0x1p-6 : 0x1p-9, element_most = 16 * norm_most;
    double ours = 0, apart = 0, worst = 0;
    for (int64_t b = 0; b < rows->batch; b++)
        for (int64_t i = 0; i < rows->length; i++) {
            const int64_t first = b * rows->batch_stride + i * rows->stride;
            for (int64_t j = first; j < first + rows->width; j++) {
                const double a = (double)ls_load(t->backward.dtype, t->ours, j);
                const double d = fabs(a - (double)ls_load(t->backward.dtype, t->theirs, j));
                ours += a * a;
                apart += d * d;
                worst = d > worst || isnan(d) ? d : worst;
            }
        }
    const double norm = sqrt(apart / ours);
    const double element = worst / sqrt(ours / (double)(rows->batch * rows->length * rows->width));
    if (norm > *difference || isnan(norm)) *difference = norm;
    if (norm <= norm_most && element <= element_most) return true;
    snprintf(t->why->text, sizeof t->why->text,
             "%s of cuDNN %s differs from ours by %.2g of its norm (%.2g is allowed), an element by %.2g of the mean "
             "(%.2g)",
             rows->name, t->sdpa->library->version, norm, norm_most, element, element_most);
    return false;
}

static bool compare_lse(struct trial *t) {
    const int64_t count = t->forward.batch * t->forward.heads * t->forward.query_length;
    for (int64_t i = 0; i < count; i++) {
        const double most = 1e-3 * fmax(1, fabs((double)t->our_lse[i]));
        if (fabs((double)t->our_lse[i] - (double)t->their_lse[i]) <= most) continue;
        snprintf(t->why->text, sizeof t->why->text, "the logarithm of a sum of exponentials of cuDNN %s is %g, ours %g",
                 t->sdpa->library->version, (double)t->their_lse[i], (double)t->our_lse[i]);
        return false;
    }
    return true;
}

static bool is_started(struct trial *t, cudnnStatus_t status, const char *what) {
    if (status) {
        snprintf(t->why->text, sizeof t->why->text, "%s answered %d, %s", what, (int)status,
                 t->sdpa->library->cudnnGetErrorString(status));
        return false;
    }
    return is_done(t, cudaSuccess, what);
}

static bool fill_inputs(struct trial *t) {
    const struct rows q = rows_of(t, "", t->forward.q, false), k = rows_of(t, "", t->forward.k, true),
                      v = rows_of(t, "", t->forward.v, true);
    return fill(t, &q, 1) && fill(t, &k, 2) && fill(t, &v, 3);
}

static bool check_forward(struct trial *t) {
    const struct rows output = output_rows(t, "the output", t->forward.output);
    const size_t bytes = (size_t)span_of(&output) * 2,
                 lse_bytes = (size_t)(t->forward.batch * t->forward.heads * t->forward.query_length) * sizeof(float);
    return is_done(t, ls_cuda_attention_forward(&t->forward, t->stream), "our forward") &&
           fetch(t, t->ours, output.memory, bytes) && fetch(t, t->our_lse, t->forward.lse, lse_bytes) &&
           spoil(t, &output) && is_done(t, cudaMemsetAsync(t->forward.lse, 0xff, lse_bytes, t->stream), "a fill") &&
           is_started(t, ls_sdpa_run_forward(t->sdpa, t->stream, &t->forward), "the forward") &&
           fetch(t, t->theirs, output.memory, bytes) && fetch(t, t->their_lse, t->forward.lse, lse_bytes) &&
           compare(t, &output, &t->forward_difference) && compare_lse(t);
}

/* Takes the results of our forward. A gradient's rows hold those of the others in between, so each is fetched
 * by itself. */
static bool check_backward(struct trial *t) {
    const struct ls_op_attention_backward *op = &t->backward;
    const struct rows d_output = output_rows(t, "", op->output_gradient);
    const struct rows gradients[] = {rows_of(t, "the gradient of queries", op->q_gradient, false),
                                     rows_of(t, "the gradient of keys", op->k_gradient, true),
                                     rows_of(t, "the gradient of values", op->v_gradient, true)};
    if (!fill(t, &d_output, 4) || !is_done(t, ls_cuda_attention_forward(&t->forward, t->stream), "our forward"))
        return false;
    for (int i = 0; i < 3; i++) {
        const size_t bytes = (size_t)span_of(&gradients[i]) * 2;
        if (!is_done(t, ls_cuda_attention_backward(op, t->stream), "our backward") ||
            !fetch(t, t->ours, gradients[i].memory, bytes) || !spoil(t, &gradients[i]) ||
            !is_started(t, ls_sdpa_run_backward(t->sdpa, t->stream, op), "the backward") ||
            !fetch(t, t->theirs, gradients[i].memory, bytes) || !compare(t, &gradients[i], &t->backward_difference) ||
            !is_started(t, ls_sdpa_run_backward(t->sdpa, t->stream, op), "the backward") ||
            !fetch(t, t->ours, gradients[i].memory, bytes))
            return false;
        if (memcmp(t->ours, t->theirs, bytes) == 0) continue;
        snprintf(t->why->text, sizeof t->why->text, "%s of cuDNN %s has other bits each time", gradients[i].name,
                 t->sdpa->library->version);
        return false;
    }
    return true;
}

static int run(struct trial *t, int64_t direction, bool ours) {
    if (direction == LS_SDPA_USES_FORWARD)
        return ours ? (int)ls_cuda_attention_forward(&t->forward, t->stream)
                    : (int)ls_sdpa_run_forward(t->sdpa, t->stream, &t->forward);
    return ours ? (int)ls_cuda_attention_backward(&t->backward, t->stream)
                : (int)ls_sdpa_run_backward(t->sdpa, t->stream, &t->backward);
}

static int run_our_forward(void *trial) {
    return run(trial, LS_SDPA_USES_FORWARD, true);
}

/* Milliseconds, HUGE_VAL when it fails. */
static double time_run(struct trial *t, int64_t direction, bool ours) {
    float milliseconds = 0;
    if (cudaEventRecord(t->events[0], t->stream) || run(t, direction, ours) ||
        cudaEventRecord(t->events[1], t->stream) || cudaEventSynchronize(t->events[1]) ||
        cudaEventElapsedTime(&milliseconds, t->events[0], t->events[1]))
        return HUGE_VAL;
    return (double)milliseconds;
}

static const char *name_of(int64_t direction) {
    return direction == LS_SDPA_USES_FORWARD ? "forward" : "backward";
}

/* The best of a few runs of each, which take turns on a GPU that is at work already: the comparison in between left it
 * idle. */
static bool is_faster(struct trial *t, int64_t direction) {
    double theirs = HUGE_VAL, ours = HUGE_VAL;
    ls_cuda_warm_up(t->stream, run_our_forward, t);
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        theirs = fmin(theirs, time_run(t, direction, false));
        ours = fmin(ours, time_run(t, direction, true));
    }
    const struct ls_op_attention_backward *op = &t->backward;
    ls_log(LS_LOG_INFO,
           "attention of %lld x %lld tokens, %lld heads on %lld of %lld channels: %s by cuDNN %.3f ms, by our kernels "
           "%.3f ms",
           (long long)op->batch, (long long)op->length, (long long)op->heads, (long long)op->kv_heads,
           (long long)op->head_size, name_of(direction), theirs, ours);
    if (theirs < ours) return true;
    snprintf(t->why->text, sizeof t->why->text, "cuDNN %s takes longer", t->sdpa->library->version);
    return false;
}

/* Memory, a stream and events for the trial; end() in every case. */
static bool begin(struct trial *t) {
    const struct rows all[] = {rows_of(t, "", t->forward.q, false), rows_of(t, "", t->forward.k, true),
                               output_rows(t, "", t->forward.output)};
    int64_t most = 0;
    for (int i = 0; i < 3; i++) most = span_of(&all[i]) > most ? span_of(&all[i]) : most;
    const size_t queries = (size_t)(t->forward.batch * t->forward.heads * t->forward.query_length);
    t->values = malloc((size_t)most * sizeof *t->values);
    t->ours = malloc((size_t)most * sizeof *t->ours);
    t->theirs = malloc((size_t)most * sizeof *t->theirs);
    t->our_lse = malloc(queries * sizeof *t->our_lse);
    t->their_lse = malloc(queries * sizeof *t->their_lse);
    cudaError_t status = cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && !status; i++) status = cudaEventCreateWithFlags(&t->events[i], cudaEventDefault);
    if (!status && t->values && t->ours && t->theirs && t->our_lse && t->their_lse) return true;
    snprintf(t->why->text, sizeof t->why->text, "no memory for the comparison with ours (%s)",
             cudaGetErrorName(cudaGetLastError()));
    return false;
}

static void end(struct trial *t) {
    if (t->stream) cudaStreamSynchronize(t->stream);
    for (int i = 0; i < 2; i++)
        if (t->events[i]) cudaEventDestroy(t->events[i]);
    if (t->stream) cudaStreamDestroy(t->stream);
    free(t->values);
    free(t->ours);
    free(t->theirs);
    free(t->our_lse);
    free(t->their_lse);
}

/* True where forward and backward of one attention in 16 bits were noted. */
static bool is_noted(const struct ls_cuda_sdpa *sdpa) {
    const struct ls_op_attention_forward *forward = &sdpa->forward;
    const struct ls_op_attention_backward *backward = &sdpa->backward;
    return forward->output && backward->output && backward->dtype != LS_FP32 && forward->dtype == backward->dtype &&
           forward->batch == backward->batch && forward->batch > 0 && forward->query_length == backward->length &&
           forward->key_length == backward->length && forward->heads == backward->heads &&
           forward->kv_heads == backward->kv_heads && forward->head_size == backward->head_size &&
           forward->lse == backward->lse;
}

/* The library's numbers of the plans' engines are those that were chosen. */
static bool has_engines(const struct ls_cuda_sdpa *sdpa, int64_t direction, const struct ls_sdpa_choice *choice,
                        struct ls_sdpa_reason *why) {
    for (int i = 0; i < LS_SDPA_PLANS; i++) {
        if (ls_sdpa_direction(i) != direction || !sdpa->plans[i].batch || sdpa->plans[i].engine == choice->engine[i])
            continue;
        snprintf(why->text, sizeof why->text, "the library's proposal %lld is engine %lld here, %lld was chosen",
                 (long long)choice->position[i], (long long)sdpa->plans[i].engine, (long long)choice->engine[i]);
        return false;
    }
    return true;
}

/* Plans of one direction by the library's first usable proposals, or those that were chosen; true where their results
 * are right and, if that counts, they are faster. */
static bool try_direction(struct trial *t, int64_t direction, const struct ls_sdpa_choice *wanted, bool timed) {
    return ls_sdpa_make_plans(t->sdpa, direction, wanted, t->why) &&
           (!wanted || has_engines(t->sdpa, direction, wanted, t->why)) &&
           (direction == LS_SDPA_USES_FORWARD ? check_forward(t) : check_backward(t)) &&
           (!timed || is_faster(t, direction));
}

static void say_used(const struct trial *t, int64_t direction) {
    const bool forward = direction == LS_SDPA_USES_FORWARD;
    ls_log(LS_LOG_INFO,
           "attention: %s by cuDNN %s where a micro-batch has no document boundary, engine %lld; it differs from our "
           "kernels by %.1e of the norm",
           name_of(direction), t->sdpa->library->version,
           (long long)t->sdpa->plans[forward ? LS_SDPA_FORWARD : LS_SDPA_BACKWARD].engine,
           forward ? t->forward_difference : t->backward_difference);
}

/* The directions, of those asked for, that the library serves. The log says what came of each. */
static int64_t try_library(struct ls_cuda_sdpa *sdpa, int64_t directions, const struct ls_sdpa_choice *wanted,
                           bool timed) {
    struct ls_sdpa_reason why = {""};
    struct trial trial = {.sdpa = sdpa, .forward = sdpa->forward, .backward = sdpa->backward, .why = &why};
    int64_t used = 0;
    if (!ls_sdpa_is_suitable(sdpa, &why)) {
        ls_log(LS_LOG_INFO, "attention: our own kernels; %s", why.text);
        return 0;
    }
    trial.forward.document_start = trial.backward.document_start = NULL;
    const bool begun = begin(&trial) && fill_inputs(&trial);
    for (int64_t direction = LS_SDPA_USES_FORWARD; direction <= LS_SDPA_USES_BACKWARD; direction *= 2) {
        if (!(directions & direction)) continue;
        if (begun && try_direction(&trial, direction, wanted, timed)) {
            used |= direction;
            say_used(&trial, direction);
        } else {
            ls_log(LS_LOG_INFO, "attention: %s by our own kernels; %s", name_of(direction), why.text);
            ls_sdpa_clear_plans(sdpa, direction);
        }
    }
    end(&trial);
    return used;
}

/* What a choice is for. */
static void describe(const struct ls_cuda_sdpa *sdpa, struct ls_sdpa_choice *choice) {
    const struct ls_op_attention_backward *op = &sdpa->backward;
    memset(choice, 0, sizeof *choice);
    choice->capability = sdpa->device->info.capability;
    choice->batch = op->batch, choice->length = op->length, choice->heads = op->heads;
    choice->kv_heads = op->kv_heads, choice->head_size = op->head_size, choice->dtype = (int64_t)op->dtype;
    if (sdpa->library) memcpy(choice->version, sdpa->library->version, sizeof choice->version);
}

static bool is_for(const struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_choice *choice, struct ls_sdpa_reason *why) {
    struct ls_sdpa_choice here;
    describe(sdpa, &here);
    if (choice->capability == here.capability && memcmp(choice->version, here.version, sizeof here.version) == 0 &&
        choice->batch == here.batch && choice->length == here.length && choice->heads == here.heads &&
        choice->kv_heads == here.kv_heads && choice->head_size == here.head_size && choice->dtype == here.dtype)
        return true;
    snprintf(why->text, sizeof why->text,
             "cuDNN %.*s on compute capability %lld.%lld was chosen for another attention, GPU or version; here is %s "
             "on %d.%d",
             LS_SDPA_VERSION_MAX, choice->version, (long long)choice->capability / 10,
             (long long)choice->capability % 10, sdpa->library ? sdpa->library->version : "none",
             sdpa->device->info.capability / 10, sdpa->device->info.capability % 10);
    return false;
}

void ls_cuda_sdpa_choose(struct ls_cuda_sdpa *sdpa, struct ls_sdpa_choice *choice) {
    describe(sdpa, choice);
    if (!is_noted(sdpa)) return;
    ls_cuda_use(sdpa->device);
    choice->used = try_library(sdpa, LS_SDPA_BOTH, NULL, !sdpa->device->base.fixed);
    for (int i = 0; i < LS_SDPA_PLANS; i++) {
        const bool is_there = choice->used & ls_sdpa_direction(i) && sdpa->plans[i].batch;
        choice->position[i] = is_there ? sdpa->plans[i].position : -1;
        choice->engine[i] = is_there ? sdpa->plans[i].engine : -1;
    }
}

bool ls_cuda_sdpa_recall(struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_choice *choice) {
    struct ls_sdpa_reason why = {"it is not found right here"};
    ls_cuda_use(sdpa->device);
    const bool fits =
        is_for(sdpa, choice, &why) &&
        (!choice->used || (is_noted(sdpa) && try_library(sdpa, choice->used, choice, false) == choice->used));
    if (!fits) ls_log(LS_LOG_INFO, "attention: the choice of an earlier attempt is not used; %s", why.text);
    if (!fits) ls_sdpa_clear_plans(sdpa, LS_SDPA_BOTH);
    return fits;
}

/* On the rank that has just made them. */
static bool has_plans(const struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_choice *choice) {
    for (int i = 0; i < LS_SDPA_PLANS; i++)
        if ((choice->position[i] >= 0) != (sdpa->plans[i].descriptor != NULL) ||
            (choice->position[i] >= 0 &&
             (sdpa->plans[i].position != choice->position[i] || sdpa->plans[i].engine != choice->engine[i])))
            return false;
    return true;
}

static bool make_chosen(struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_choice *choice, struct ls_sdpa_reason *why) {
    if (!ls_sdpa_is_suitable(sdpa, why)) return false;
    for (int64_t direction = LS_SDPA_USES_FORWARD; direction <= LS_SDPA_USES_BACKWARD; direction *= 2)
        if (choice->used & direction &&
            (!ls_sdpa_make_plans(sdpa, direction, choice, why) || !has_engines(sdpa, direction, choice, why)))
            return false;
    return true;
}

bool ls_cuda_sdpa_adopt(struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_choice *choice) {
    struct ls_sdpa_reason why = {""};
    ls_cuda_use(sdpa->device);
    const bool usable =
        choice->used && is_for(sdpa, choice, &why) && (has_plans(sdpa, choice) || make_chosen(sdpa, choice, &why));
    if (choice->used && !usable) ls_log(LS_LOG_WARNING, "attention: our own kernels; %s", why.text);
    if (!usable) ls_sdpa_clear_plans(sdpa, LS_SDPA_BOTH);
    sdpa->used = usable ? choice->used : 0;
    return usable || !choice->used;
}
