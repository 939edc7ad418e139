/* Trainings of some thousand steps beside the same in double precision (double_model.h), in every kind of product:
 * fp32, with train.reduction: fixed, bf16, and fp16 with its loss scale, on the matrix unit where there is one and then
 * without. Two trainings part in their last bits and from there on, so the comparison is made at many steps along the
 * way by itself: from the run's own parameters and batch the loss, every gradient, the norm and every element of the
 * AdamW update are computed in double. What is allowed follows from the same step computed once more with the roundings
 * of the type imitated. Beside that the whole curve of losses is held against that of a training done in double.
 *
 * STEPS_SHORT steps of each; LS_TEST_LONG=1: STEPS_LONG (four minutes). LS_TEST_PRINT=1 prints every comparison. */
#include "double_model.h"
#include "support.h"

#include "common/config.h"
#include "worker/comm/comm.h"
#include "worker/replica.h"
#include "worker/shard/state.h"

enum { STEPS_SANITIZED = 8, STEPS_SHORT = 50, STEPS_LONG = 2000, WINDOW = 50, SAMPLES = 2, TENSORS_MOST = 32 };

/* How many times that of imitated roundings, as norms over a tensor, the device's error may be: a sample of so few
 * numbers as a bias has can be this far from another. In the geometric mean over all tensors and steps it would be less
 * than once, since what is imitated are the largest relative errors that a rounding can have, were it not for numbers
 * that are nearly equal and therefore rounded alike, as probabilities are before anything is learned. */
static const double TIMES = 3, TIMES_IN_MEAN = 1.25;
/* The loss is a single number. */
static const double TIMES_LOSS = 6;
/* Along a tensor's gradient itself errors of many numbers cancel, but not those to one side, as truncation makes them.
 * Their mean over the steps compared may be this many times the spread of such a mean of imitated roundings. */
static const double TIMES_ALONG = 8;
enum { SAMPLES_ENOUGH = 8 }; /* fewer do not tell of their spread */

/* What the update adds to: in fp32 the parameters themselves. */
static const float *master_of(const struct shard_block *block) {
    return block->master ? block->master : block->parameters;
}

static bool is_long(void) {
    const char *mode = getenv("LS_TEST_LONG");
    return mode && strcmp(mode, "1") == 0;
}

static bool prints(void) {
    return getenv("LS_TEST_PRINT") != NULL;
}

/* Sanitizers see all there is in a few steps, each of which takes fifteen times as long under them. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool SANITIZED = true;
#else
static const bool SANITIZED = false;
#endif

/* The long form: the first 20 steps, and every 50th. */
static bool is_compared(int64_t step) {
    if (SANITIZED) return step == STEPS_SANITIZED;
    return step <= (is_long() ? 20 : 3) || step % (is_long() ? 50 : 10) == 0;
}

/* Sizes whose tiles stick out on every side, with uneven micro-batches; one that fills tiles; and one whose sums over a
 * micro-batch's tokens take a matrix unit two blocks in bf16 and three in fp32, for a few steps. */
static const struct subject {
    const char *name, *yaml;
    int64_t vocabulary, sequences, part; /* part: one in so many of the steps */
} subjects[] = {
    {"a GPT-2 of 33 channels",
     "model: {model_type: gpt2, hidden_size: 33, num_hidden_layers: 2, num_attention_heads: 3, intermediate_size: 75}\n"
     "data: {train: [{path: 'synthetic:9000'}], sequence_length: 23}\n"
     "train: {steps: 1, global_batch_size: 11, micro_batch_size: 6}\n",
     61, 11, 1},
    {"a Llama of 37 channels",
     "model: {model_type: llama, hidden_size: 37, num_hidden_layers: 2, num_attention_heads: 4,\n"
     "        num_key_value_heads: 2, head_dim: 10, intermediate_size: 45}\n"
     "data: {train: [{path: 'synthetic:9000'}], sequence_length: 29}\n"
     "train: {steps: 1, global_batch_size: 9, micro_batch_size: 5}\n",
     53, 9, 1},
    {"a GPT-2 of 64 channels",
     "model: {model_type: gpt2, hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 2,\n"
     "        intermediate_size: 128, tie_word_embeddings: false}\n"
     "data: {train: [{path: 'synthetic:9000'}], sequence_length: 32}\n"
     "train: {steps: 1, global_batch_size: 8, micro_batch_size: 4}\n",
     64, 8, 1},
    {"a Llama with micro-batches of 800 tokens",
     "model: {model_type: llama, hidden_size: 40, num_hidden_layers: 1, num_attention_heads: 5,\n"
     "        num_key_value_heads: 1, intermediate_size: 50, tie_word_embeddings: true}\n"
     "data: {train: [{path: 'synthetic:9000'}], sequence_length: 100}\n"
     "train: {steps: 1, global_batch_size: 8, micro_batch_size: 8}\n",
     47, 8, 5},
};
enum { SUBJECTS = sizeof subjects / sizeof *subjects };

static int64_t steps_of(const struct subject *subject) {
    return SANITIZED ? STEPS_SANITIZED : (is_long() ? STEPS_LONG : STEPS_SHORT) / subject->part;
}

/* The second moment's long memory keeps AdamW's correction away from 1 for thousands of steps: after 1000 it is 1.6. */
static struct ls_config config_of(const struct subject *subject) {
    static const char *const settings[] = {"optimizer.betas=[0.9, 0.999]", "optimizer.weight_decay=0.01"};
    struct ls_config config;
    struct ls_error error;
    if (ls_config_parse(subject->yaml, strlen(subject->yaml), "test", settings, 2, &config, &error))
        fail_msg("%s", error.text);
    config.model.vocab_size = subject->vocabulary;
    return config;
}

static double learning_rate(int64_t step) {
    return step < 20 ? 1e-2 * (double)step / 20 : 1e-2;
}

static uint32_t hash(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return (uint32_t)(x >> 32);
}

/* A step's sequences on the host. What follows a token of the first quarter of the vocabulary is certain, which makes
 * logits grow for as long as the training lasts; else it is the same function of the token half of the time, in three
 * of ten the token five places earlier, or by chance. In one place of 16 a document begins. */
struct batch {
    int32_t *tokens, *targets, *document_start;
    int64_t sequences, length, counted;
};

static struct batch batch_create(const struct subject *subject, const struct ls_config *config) {
    struct batch b = {.sequences = subject->sequences, .length = config->data.sequence_length};
    const size_t count = (size_t)(b.sequences * b.length);
    b.tokens = calloc(count, sizeof *b.tokens);
    b.targets = calloc(count, sizeof *b.targets);
    b.document_start = calloc(count, sizeof *b.document_start);
    assert_true(b.tokens && b.targets && b.document_start);
    return b;
}

static void batch_free(struct batch *b) {
    free(b->tokens);
    free(b->targets);
    free(b->document_start);
}

static int32_t next_token(const int32_t *tokens, int64_t i, int32_t vocabulary, uint64_t key) {
    const uint32_t chance = hash(key) % 10;
    const int32_t follows = (tokens[i] * 7 + 3) % vocabulary;
    if (tokens[i] < vocabulary / 4 || chance < 5) return follows;
    if (chance < 8 && i >= 5) return tokens[i - 5];
    return (int32_t)(hash(key + (1ull << 40)) % (uint32_t)vocabulary);
}

static void batch_fill(struct batch *b, int32_t vocabulary, int64_t step) {
    b->counted = 0;
    for (int64_t s = 0; s < b->sequences; s++) {
        int32_t *tokens = b->tokens + s * b->length, *targets = b->targets + s * b->length,
                *start = b->document_start + s * b->length;
        const uint64_t key = ((uint64_t)step * 64 + (uint64_t)s) * 256 + 0x9E3779B97F4A7C15u;
        tokens[0] = (int32_t)(hash(key) % (uint32_t)vocabulary);
        start[0] = 0;
        for (int64_t t = 0; t < b->length; t++) {
            const uint64_t own = (key + 1 + (uint64_t)t) * 0x9E3779B97F4A7C15u;
            const bool ends = hash(own + (1ull << 41)) % 16 == 0;
            const int32_t next =
                ends ? (int32_t)(hash(own) % (uint32_t)vocabulary) : next_token(tokens, t, vocabulary, own);
            targets[t] = ends ? -1 : next;
            b->counted += !ends;
            if (t + 1 == b->length) continue;
            tokens[t + 1] = next;
            start[t + 1] = ends ? (int32_t)t + 1 : start[t];
        }
    }
}

static struct double_batch double_batch_of(const struct batch *b) {
    return (struct double_batch){b->tokens, b->targets, b->document_start, b->sequences};
}

/* The reference by itself: each tensor's gradient against the change of the loss, in some of its elements. */
static void the_reference_has_the_gradients_of_its_loss(void **state) {
    (void)state;
    for (int i = 0; i < SUBJECTS; i++) {
        const struct ls_config config = config_of(&subjects[i]);
        struct ls_model *model;
        assert_int_equal(ls_model_create(&config, &model, NULL), LS_OK);
        struct double_model *d = double_create(&config, model, 2);
        struct batch batch = batch_create(&subjects[i], &config);
        batch_fill(&batch, (int32_t)subjects[i].vocabulary, 1);
        batch.sequences = 2;
        const struct double_batch input = double_batch_of(&batch);
        for (int64_t p = 0; p < d->count; p++) d->parameters[p] = random_between(-0.3, 0.3);
        double_run(d, &input, 1);
        double *gradients = double_array(d->count);
        memcpy(gradients, d->gradients, (size_t)d->count * sizeof *gradients);
        const double typical = double_norm_of_gradients(d) / sqrt((double)d->count), step = 1e-5;
        for (int t = 0; t < ls_model_tensor_count(model); t++)
            for (int sample = 0; sample < (SANITIZED ? 1 : 3); sample++) {
                const int64_t at = d->place[t] + random_below(ls_model_tensor(model, t)->count);
                const double value = d->parameters[at];
                d->parameters[at] = value + step;
                const double above = double_run(d, &input, 1);
                d->parameters[at] = value - step;
                const double change = (above - double_run(d, &input, 1)) / (2 * step);
                d->parameters[at] = value;
                /* third derivatives times the step's square, and the loss's last digits over the step */
                if (!(fabs(change - gradients[at]) <= 1e-6 * (fabs(change) + typical)))
                    fail_msg("%s: gradient of %s is %.12g, the loss changes by %.12g", subjects[i].name,
                             ls_model_tensor(model, t)->name, gradients[at], change);
            }
        free(gradients);
        batch_free(&batch);
        double_destroy(d);
        ls_model_destroy(model);
    }
}

/* A run in one kind of product, and the reference beside it. */
struct kind {
    const char *name;
    enum ls_precision precision;
    bool fixed;
};

struct training {
    const struct subject *subject;
    const struct kind *kind;
    struct ls_config config;
    struct ls_device *device;
    struct ls_comm *comm;
    struct ls_replica *replica;
    struct ls_shard *shard;
    const struct ls_model *model;
    struct double_model *exact;
    struct batch batch;
    int64_t step, updates; /* this one; updates made */
    /* Of the state before the update, all tensors one after another */
    float *gradients, *master, *m, *v;
    double *noise, *expected; /* squares of what roundings do to gradients, and the exact ones */
    double factor;            /* what gradients are multiplied by: the loss scale */
    /* What was seen: the worst, sums of errors along each tensor's gradient and of squares of imitated ones, parts of
     * it, and the sum of the logarithms of gradients' ratios */
    double worst_gradient, worst_loss, worst_update, along[TENSORS_MOST], noise_along[TENSORS_MOST], logarithms;
    int64_t worst_step, compared, skipped, ratios;
    char worst_tensor[96];
};

static float *floats(int64_t count) {
    float *x = calloc((size_t)count, sizeof *x);
    assert_non_null(x);
    return x;
}

static struct training *training_create(const struct subject *subject, const struct kind *kind) {
    struct training *t = calloc(1, sizeof *t);
    struct ls_error error;
    assert_non_null(t);
    t->subject = subject;
    t->kind = kind;
    t->config = config_of(subject);
    t->config.precision = kind->precision;
    t->config.train.reduction = kind->fixed ? LS_REDUCTION_FIXED : LS_REDUCTION_FAST;
    if (ls_device_create_cpu(1, LS_STREAMS_EAGER, &t->device, &error)) fail_msg("%s", error.text);
    if (ls_comm_create_threads(1, &t->comm, &error)) fail_msg("%s", error.text);
    if (ls_replica_create(&t->config, t->device, t->comm, NULL, &t->replica, &error)) fail_msg("%s", error.text);
    ls_replica_initialize(t->replica);
    /* so large that the first steps' gradients overflow */
    if (kind->precision == LS_PRECISION_FP16) ls_replica_loss_scale(t->replica)->factor = LS_LOSS_SCALE_MAX;
    t->shard = ls_replica_shard(t->replica);
    t->model = ls_replica_model(t->replica);
    assert_true(ls_model_tensor_count(t->model) <= TENSORS_MOST);
    t->exact = double_create(&t->config, t->model, subject->sequences);
    t->batch = batch_create(subject, &t->config);
    t->gradients = floats(t->exact->count), t->master = floats(t->exact->count);
    t->m = floats(t->exact->count), t->v = floats(t->exact->count);
    t->noise = double_array(t->exact->count), t->expected = double_array(t->exact->count);
    return t;
}

static void training_destroy(struct training *t) {
    ls_replica_destroy(t->replica);
    ls_comm_destroy(t->comm);
    ls_device_destroy(t->device);
    double_destroy(t->exact);
    batch_free(&t->batch);
    free(t->gradients), free(t->master), free(t->m), free(t->v), free(t->noise), free(t->expected), free(t);
}

static void synchronize(struct training *t) {
    struct ls_error error;
    if (ls_stream_synchronize(ls_replica_stream(t->replica), &error)) fail_msg("%s", error.text);
}

/* The relative size of half a unit in the last place, at most, and half of the smallest number. */
static double unit_of(enum ls_precision precision) {
    return precision == LS_PRECISION_FP32 ? 0x1p-24 : precision == LS_PRECISION_BF16 ? 0x1p-8 : 0x1p-11;
}
static int bits_of(enum ls_precision precision) {
    return precision == LS_PRECISION_BF16 ? 8 : 11;
}
static double smallest_of(enum ls_precision precision) {
    return precision == LS_PRECISION_FP16 ? 0x1p-24 : 0x1p-133;
}

/* To the nearest number of the type, ties to even. */
static double round_to(enum ls_precision precision, double x) {
    int exponent;
    frexp(x, &exponent);
    const double unit = fmax(ldexp(1, exponent - bits_of(precision)), smallest_of(precision));
    return nearbyint(x / unit) * unit;
}

/* The value of 16 bits of bf16 or fp16. */
static double value_of(enum ls_precision precision, uint16_t bits) {
    const int digits = bits_of(precision) - 1, exponent = (bits & 0x7fff) >> digits,
              fraction = bits & ((1 << digits) - 1);
    const int bias = precision == LS_PRECISION_FP16 ? 15 : 127;
    const double value =
        exponent ? ldexp(fraction + (1 << digits), exponent - bias - digits) : ldexp(fraction, 1 - bias - digits);
    return bits & 0x8000 ? -value : value;
}

/* Gradients, state and parameters, which the update has not changed yet; the parameters, as products take them, go into
 * the reference. */
static void take_state(struct training *t) {
    for (int block = 0; block < ls_model_block_count(t->model); block++)
        ls_shard_wait_for(t->shard, t->shard->blocks[block].reduced);
    synchronize(t);
    for (int i = 0; i < ls_model_tensor_count(t->model); i++) {
        const struct ls_tensor *tensor = ls_model_tensor(t->model, i);
        const struct shard_block *block = &t->shard->blocks[tensor->block];
        const size_t bytes = (size_t)tensor->count * sizeof(float);
        const int64_t at = t->exact->place[i], from = tensor->offset;
        memcpy(t->gradients + at, ls_shard_own_gradients(t->shard, block) + from, bytes);
        memcpy(t->master + at, master_of(block) + from, bytes);
        memcpy(t->m + at, block->m + from, bytes);
        memcpy(t->v + at, block->v + from, bytes);
        for (int64_t j = 0; j < tensor->count; j++)
            t->exact->parameters[at + j] =
                t->config.precision == LS_PRECISION_FP32
                    ? (double)((const float *)block->parameters)[from + j]
                    : value_of(t->config.precision, ((const uint16_t *)block->parameters)[from + j]);
    }
}

static void fail_here(const struct training *t, const char *what, const char *tensor, double found, double allowed) {
    fail_msg("%s in %s, step %lld: %s%s is off by %.4g, %.4g is allowed", t->subject->name, t->kind->name,
             (long long)t->step, what, tensor, found, allowed);
}

/* The step in double with the type's roundings, SAMPLES times. t->noise: the root mean square of their effect on each
 * gradient. Returns that on the loss, whose rows are off independently of one another. */
static double imitate_roundings(struct training *t, const struct double_batch *batch, double weight) {
    struct double_model *d = t->exact;
    const int64_t rows = batch->sequences * d->T;
    double *row_loss = double_array(rows), squares = 0;
    memcpy(row_loss, d->row_loss, (size_t)rows * sizeof *row_loss);
    memset(t->noise, 0, (size_t)d->count * sizeof *t->noise);
    d->unit = unit_of(t->config.precision);
    d->sums = t->config.precision == LS_PRECISION_FP32;
    d->least = t->config.precision == LS_PRECISION_FP16 ? 0x1p-25 : 0;
    d->loss_scale = t->factor;
    for (int sample = 0; sample < SAMPLES; sample++) {
        double_run(d, batch, weight);
        for (int64_t r = 0; r < rows; r++) squares += pow(d->row_loss[r] - row_loss[r], 2) / SAMPLES;
        for (int k = 0; k < ls_model_tensor_count(t->model); k++) {
            double along = 0, whole = 0;
            for (int64_t i = d->place[k]; i < d->place[k] + ls_model_tensor(t->model, k)->count; i++) {
                const double off = d->gradients[i] - t->expected[i];
                t->noise[i] += off * off / SAMPLES;
                along += off * t->expected[i], whole += t->expected[i] * t->expected[i];
            }
            t->noise_along[k] += pow(along / whole, 2) / SAMPLES;
        }
    }
    d->unit = 0;
    free(row_loss);
    return sqrt(squares);
}

static void compare_loss_and_gradients(struct training *t, double loss) {
    struct double_model *d = t->exact;
    const struct double_batch batch = double_batch_of(&t->batch);
    const double weight = 1 / (double)t->batch.counted, expected = double_run(d, &batch, weight);
    memcpy(t->expected, d->gradients, (size_t)d->count * sizeof *t->expected);
    const double allowed = TIMES_LOSS * imitate_roundings(t, &batch, weight), off = fabs(loss - expected);
    for (int i = 0; i < ls_model_tensor_count(t->model); i++) {
        const struct ls_tensor *tensor = ls_model_tensor(t->model, i);
        double error = 0, imitated = 0, along = 0, whole = 0;
        for (int64_t j = d->place[i]; j < d->place[i] + tensor->count; j++) {
            const double g = t->expected[j], difference = (double)t->gradients[j] / t->factor - g;
            error += difference * difference, imitated += t->noise[j];
            along += difference * g, whole += g * g;
        }
        const double ratio = sqrt(error / imitated);
        if (prints()) printf("step %lld %s: %.2f\n", (long long)t->step, tensor->name, ratio);
        if (!(ratio <= TIMES)) fail_here(t, "gradient of ", tensor->name, sqrt(error), TIMES * sqrt(imitated));
        t->logarithms += log(ratio), t->ratios++;
        t->along[i] += along / whole;
        if (ratio <= t->worst_gradient) continue;
        t->worst_gradient = ratio, t->worst_step = t->step;
        snprintf(t->worst_tensor, sizeof t->worst_tensor, "%s", tensor->name);
    }
    t->compared++;
    t->worst_loss = fmax(t->worst_loss, off / allowed);
    if (!(off <= allowed)) fail_here(t, "the loss", "", off, allowed);
}

/* Every element of the update from the device's own gradients and state, within roundings (u) of each term: of the clip
 * factor, the gradient times it, that times 1 - beta and the sum, with one to spare, five for the first moment; eight
 * for the second, where the first two count twice and the square is one; four of these behind a root, and eight from
 * there to the update. */
static void compare_update(struct training *t, const struct ls_replica_result *result, double rate) {
    const double u = 0x1p-24, b1 = (double)(float)t->config.optimizer.beta1,
                 b2 = (double)(float)t->config.optimizer.beta2;
    const double most = t->config.train.gradient_clipping, eps = t->config.optimizer.eps;
    double squares = 0;
    for (int64_t i = 0; i < t->exact->count; i++) squares += (double)t->gradients[i] * (double)t->gradients[i];
    const double norm = sqrt(squares) / t->factor, clip = (norm > most ? most / norm : 1) / t->factor;
    if (!(fabs((double)result->norm - norm) <= 2 * u * norm))
        fail_here(t, "the norm", "", (double)result->norm - norm, 0);
    const double first = 1 - pow(b1, (double)t->updates), second = 1 - pow(b2, (double)t->updates);
    for (int k = 0; k < ls_model_tensor_count(t->model); k++) {
        const struct ls_tensor *tensor = ls_model_tensor(t->model, k);
        const struct shard_block *block = &t->shard->blocks[tensor->block];
        const double decay = tensor->dimensions == 2 ? t->config.optimizer.weight_decay : 0;
        for (int64_t j = 0; j < tensor->count; j++) {
            const int64_t i = t->exact->place[k] + j, at = tensor->offset + j;
            const double g = (double)t->gradients[i] * clip, old = (double)t->master[i];
            const double m = b1 * (double)t->m[i] + (1 - b1) * g, v = b2 * (double)t->v[i] + (1 - b2) * g * g;
            const double m_off = 5 * u * (fabs(b1 * (double)t->m[i]) + fabs((1 - b1) * g)) + 0x1p-148;
            const double down = sqrt(v / second) + eps, update = m / first / down;
            const double expected = old - rate * (update + decay * old), found = (double)master_of(block)[at];
            const double off = rate * (m_off / first / down + 12 * u * (fabs(update) + decay * fabs(old))) +
                               2 * u * (fabs(old) + fabs(expected));
            if (!(fabs((double)block->m[at] - m) <= m_off))
                fail_here(t, "the first moment of ", tensor->name, fabs((double)block->m[at] - m), m_off);
            if (!(fabs((double)block->v[at] - v) <= 8 * u * v + 0x1p-148))
                fail_here(t, "the second moment of ", tensor->name, fabs((double)block->v[at] - v), 8 * u * v);
            if (!(fabs(found - expected) <= off))
                fail_here(t, "the update of ", tensor->name, fabs(found - expected), off);
            t->worst_update = fmax(t->worst_update, fabs(found - expected) / off);
            if (t->config.precision == LS_PRECISION_FP32) continue;
            const double copy = value_of(t->config.precision, ((const uint16_t *)block->parameters)[at]);
            if (copy != round_to(t->config.precision, found))
                fail_here(t, "the rounded copy of ", tensor->name, fabs(copy - found), 0);
        }
    }
}

/* An update that is passed over changes nothing. */
static void compare_nothing(struct training *t) {
    for (int i = 0; i < ls_model_tensor_count(t->model); i++) {
        const struct ls_tensor *tensor = ls_model_tensor(t->model, i);
        const struct shard_block *block = &t->shard->blocks[tensor->block];
        const size_t bytes = (size_t)tensor->count * sizeof(float);
        assert_memory_equal(master_of(block) + tensor->offset, t->master + t->exact->place[i], bytes);
        assert_memory_equal(block->m + tensor->offset, t->m + t->exact->place[i], bytes);
        assert_memory_equal(block->v + tensor->offset, t->v + t->exact->place[i], bytes);
    }
}

/* Runs the next step, and compares it if it is one of those. Returns the loss of a token. */
static double training_step(struct training *t) {
    struct ls_error error;
    const struct batch *b = &t->batch;
    const int64_t micro = t->config.train.micro_batch_size, slots = (b->sequences + micro - 1) / micro;
    const bool compared = is_compared(++t->step);
    const double rate = (double)(float)learning_rate(t->step);
    batch_fill(&t->batch, (int32_t)t->subject->vocabulary, t->step);
    t->factor = (double)ls_replica_loss_scale(t->replica)->factor;
    if (t->factor == 0) t->factor = 1;
    ls_replica_begin(t->replica, t->step, b->counted, b->sequences);
    for (int64_t slot = 0; slot < slots; slot++) {
        const int64_t first = slot * micro, at = first * b->length;
        const struct ls_micro_batch part = {.inputs = b->tokens + at,
                                            .targets = b->targets + at,
                                            .document_start = b->document_start + at,
                                            .sequences = b->sequences - first < micro ? b->sequences - first : micro,
                                            .slot = slot};
        ls_replica_train(t->replica, &part, slot == slots - 1);
    }
    if (compared) take_state(t);
    ls_replica_update(t->replica, (float)rate, t->updates + 1);
    struct ls_replica_result result;
    if (ls_replica_finish(t->replica, &result, &error)) fail_msg("%s", error.text);
    if (result.not_finite || !isfinite(result.loss))
        fail_msg("%s in %s, step %lld: loss %g, norm %g", t->subject->name, t->kind->name, (long long)t->step,
                 result.loss, (double)result.norm);
    t->updates += !result.skipped, t->skipped += result.skipped;
    if (compared && result.skipped) compare_nothing(t);
    if (compared && !result.skipped) {
        compare_loss_and_gradients(t, result.loss);
        compare_update(t, &result, rate);
    }
    return result.loss / (double)b->counted;
}

/* The curve of losses of a training done in double throughout, from the same initial values. */
static const double *exact_curve(int subject, const struct training *t) {
    static double curves[SUBJECTS][STEPS_LONG];
    static bool known[SUBJECTS];
    if (known[subject]) return curves[subject];
    struct double_model *d = double_create(&t->config, t->model, t->subject->sequences);
    struct batch batch = batch_create(t->subject, &t->config);
    for (int i = 0; i < ls_model_tensor_count(t->model); i++) {
        const struct ls_tensor *tensor = ls_model_tensor(t->model, i);
        for (int64_t j = 0; j < tensor->count; j++)
            d->parameters[d->place[i] + j] = (double)master_of(&t->shard->blocks[tensor->block])[tensor->offset + j];
    }
    for (int64_t step = 1; step <= steps_of(t->subject); step++) {
        batch_fill(&batch, (int32_t)t->subject->vocabulary, step);
        const struct double_batch input = double_batch_of(&batch);
        curves[subject][step - 1] = double_run(d, &input, 1 / (double)batch.counted) / (double)batch.counted;
        double_update(d, &t->config, learning_rate(step), step);
    }
    batch_free(&batch);
    double_destroy(d);
    known[subject] = true;
    return curves[subject];
}

/* Means of the losses over windows against those of the training in double: two trainings that have parted are at most
 * as far from each other as two draws of a mean of so many losses, 4 times their spread. Returns the largest part of
 * that. */
static double check_curve(const struct training *t, const double *curve, const double *expected) {
    double worst = 0;
    for (int64_t begin = 0; begin + WINDOW <= steps_of(t->subject); begin += WINDOW) {
        double mean = 0, own = 0, squares = 0;
        for (int64_t s = begin; s < begin + WINDOW; s++) mean += expected[s] / WINDOW, own += curve[s] / WINDOW;
        for (int64_t s = begin; s < begin + WINDOW; s++) squares += pow(expected[s] - mean, 2) / (WINDOW - 1);
        const double allowed = 4 * sqrt(2 * squares / WINDOW);
        if (!(fabs(own - mean) <= allowed))
            fail_msg("%s in %s: mean loss of steps %lld to %lld is %.6f, in double %.6f; %.6f is allowed",
                     t->subject->name, t->kind->name, (long long)begin + 1, (long long)begin + WINDOW, own, mean,
                     allowed);
        worst = fmax(worst, fabs(own - mean) / mean);
    }
    return worst;
}

/* Beside imitated roundings all gradients are off by that of a token's weight, in fp32. */
static void check_all_gradients(const struct training *t) {
    const double n = (double)t->compared, mean = exp(t->logarithms / (double)t->ratios);
    double worst = 0;
    for (int i = 0; i < ls_model_tensor_count(t->model); i++) {
        const double along = t->along[i] / n, allowed = TIMES_ALONG * sqrt(t->noise_along[i]) / n + 0x1p-24;
        const char *tensor = ls_model_tensor(t->model, i)->name;
        if (prints()) printf("%s: along the gradient %.3g, %.3g is allowed\n", tensor, along, allowed);
        if (t->compared * SAMPLES >= SAMPLES_ENOUGH && !(fabs(along) <= allowed))
            fail_msg("%s in %s: the gradient of %s is too long by %.4g of itself, %.4g is allowed", t->subject->name,
                     t->kind->name, tensor, along, allowed);
        worst = fmax(worst, fabs(along) / allowed);
    }
    if (!(mean <= TIMES_IN_MEAN))
        fail_msg("%s in %s: gradients are off by %.3f times imitated roundings in the mean", t->subject->name,
                 t->kind->name, mean);
    printf(
        "# %s in %s, %lld steps, %lld compared, %lld without an update: gradients off by %.2f times imitated roundings "
        "in the mean, at most %.2f (%s, step %lld); of what is allowed along gradients %.2f, of the loss %.2f, of the "
        "update %.2f\n",
        t->subject->name, t->kind->name, (long long)t->step, (long long)t->compared, (long long)t->skipped, mean,
        t->worst_gradient, t->worst_tensor, (long long)t->worst_step, worst, t->worst_loss, t->worst_update);
}

static void check_kind(const struct kind *kind) {
    for (int i = 0; i < SUBJECTS; i++) {
        struct training *t = training_create(&subjects[i], kind);
        double curve[STEPS_LONG];
        synchronize(t);
        const double *expected = exact_curve(i, t);
        for (int64_t step = 0; step < steps_of(t->subject); step++) curve[step] = training_step(t);
        check_all_gradients(t);
        const double worst = check_curve(t, curve, expected);
        printf("# means of %d losses are at most %.1e of themselves from those in double\n", (int)WINDOW, worst);
        training_destroy(t);
    }
}

static void fp32_follows_double_precision(void **state) {
    (void)state;
    check_kind(&(struct kind){"fp32", LS_PRECISION_FP32, false});
}

static void fp32_with_fixed_reduction_follows_double_precision(void **state) {
    (void)state;
    check_kind(&(struct kind){"fp32 with train.reduction: fixed", LS_PRECISION_FP32, true});
}

static void bf16_follows_double_precision(void **state) {
    (void)state;
    check_kind(&(struct kind){"bf16", LS_PRECISION_BF16, false});
}

static void fp16_follows_double_precision(void **state) {
    (void)state;
    check_kind(&(struct kind){"fp16", LS_PRECISION_FP16, false});
}

int main(int argc, char **argv) {
    (void)argc;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_reference_has_the_gradients_of_its_loss),
        cmocka_unit_test(fp32_follows_double_precision),
        cmocka_unit_test(fp32_with_fixed_reduction_follows_double_precision),
        cmocka_unit_test(bf16_follows_double_precision),
        cmocka_unit_test(fp16_follows_double_precision),
    };
    return support_again_without_pairs(cmocka_run_group_tests(tests, NULL, NULL), argv);
}
