/* GPT-2 and Llama against PyTorch: loss, every gradient and ten AdamW steps (tests/reference/README.md), for GPT-2 ten
 * of SGD, for GPT-2 and a Llama ten of Muon by the shards of one rank; loss and gradients in bf16 too. */
#include "tests/unit/model_harness.h"

#include "common/safetensors.h"
#include "worker/data/prefetch.h"
#include "worker/shard/shard.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <unistd.h>

#include "worker/device/cpu/low_precision.h"

enum { STEPS = 10 };

struct reference {
    struct ls_safetensors *file;
    struct ls_config config;
    int64_t sequences;
    int32_t *tokens, *targets, *document_start; /* [STEPS + 1, sequences, length] */
    double losses[STEPS + 1], norms[STEPS];
};

static const struct ls_tensor_info *find(const struct reference *reference, const char *group, const char *name) {
    char key[160];
    snprintf(key, sizeof key, "%s%s", group, name);
    const struct ls_tensor_info *info = ls_safetensors_find(reference->file, key);
    if (info == NULL) fail_msg("the reference has no %s", key);
    return info;
}

static void read_all(const struct reference *reference, const char *name, void *elements) {
    const struct ls_tensor_info *info = find(reference, "", name);
    struct ls_error error;
    if (ls_safetensors_read(reference->file, info, 0, ls_tensor_elements(info), elements, &error) != LS_OK) {
        fail_msg("%s", error.text);
    }
}

static int32_t *read_batches(const struct reference *reference, const char *name) {
    int32_t *values = malloc((size_t)ls_tensor_elements(find(reference, "", name)) * sizeof *values);
    assert_non_null(values);
    read_all(reference, name, values);
    return values;
}

static float *read_tensor(const struct reference *reference, const char *group, const struct ls_tensor *tensor) {
    const struct ls_tensor_info *info = find(reference, group, tensor->name);
    assert_int_equal(info->dimensions, tensor->dimensions);
    for (int i = 0; i < tensor->dimensions; i++) assert_int_equal(info->shape[i], tensor->shape[i]);
    float *values = malloc((size_t)tensor->count * sizeof *values);
    struct ls_error error;
    assert_non_null(values);
    if (ls_safetensors_read_fp32(reference->file, info, 0, tensor->count, values, &error) != LS_OK) {
        fail_msg("%s", error.text);
    }
    return values;
}

static json_t *metadata(const struct reference *reference, const char *key) {
    const char *text = ls_safetensors_metadata(reference->file, key);
    assert_non_null(text);
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    return json;
}

static double number(json_t *json, const char *key) {
    return json_number_value(json_object_get(json, key));
}

static int64_t integer(json_t *json, const char *key) {
    return json_integer_value(json_object_get(json, key));
}

static void load(struct reference *reference, const char *name) {
    *reference = (struct reference){0};
    int folder = open("tests/reference", O_RDONLY | O_DIRECTORY);
    if (folder < 0) fail_msg("run this from the top of the source tree");
    struct ls_error error;
    if (ls_safetensors_open(folder, name, &reference->file, &error) != LS_OK) fail_msg("%s", error.text);
    close(folder);

    json_t *json = metadata(reference, "config"), *scaling = json_object_get(json, "rope_scaling");
    const char *type = json_string_value(json_object_get(json, "model_type"));
    int family = 0;
    while (family < LS_MODEL_TYPES && strcmp(type, ls_model_type_name((enum ls_model_type)family)) != 0) family++;
    assert_true(family < LS_MODEL_TYPES);
    struct ls_config *config = &reference->config;
    config->model.model_type = (enum ls_model_type)family;
    config->model.vocab_size = integer(json, "vocab_size");
    config->model.hidden_size = integer(json, "hidden_size");
    config->model.num_hidden_layers = integer(json, "num_hidden_layers");
    config->model.num_attention_heads = integer(json, "num_attention_heads");
    config->model.num_key_value_heads = integer(json, "num_key_value_heads");
    config->model.head_dim = integer(json, "head_dim");
    config->model.intermediate_size = integer(json, "intermediate_size");
    config->model.max_position_embeddings = integer(json, "max_position_embeddings");
    config->model.tie_word_embeddings = json_is_true(json_object_get(json, "tie_word_embeddings"));
    config->model.layer_norm_epsilon = number(json, "layer_norm_epsilon");
    config->model.rms_norm_eps = number(json, "rms_norm_eps");
    config->model.rope_theta = number(json, "rope_theta");
    config->model.sliding_window = integer(json, "sliding_window");
    config->model.rope_scaling = (struct ls_config_rope_scaling){
        .llama3 = scaling != NULL,
        .factor = number(scaling, "factor"),
        .low_freq_factor = number(scaling, "low_freq_factor"),
        .high_freq_factor = number(scaling, "high_freq_factor"),
        .original_max_position_embeddings = integer(scaling, "original_max_position_embeddings"),
    };
    json_decref(json);
    json = metadata(reference, "optimizer");
    config->optimizer.lr = number(json, "lr");
    config->optimizer.beta1 = number(json, "beta1");
    config->optimizer.beta2 = number(json, "beta2");
    config->optimizer.eps = number(json, "eps");
    config->optimizer.weight_decay = number(json, "weight_decay");
    config->train.gradient_clipping = number(json, "gradient_clipping");
    json_decref(json);

    const struct ls_tensor_info *tokens = find(reference, "", "tokens");
    assert_int_equal(tokens->shape[0], STEPS + 1);
    reference->sequences = tokens->shape[1];
    config->data.sequence_length = tokens->shape[2];
    reference->tokens = read_batches(reference, "tokens");
    reference->targets = read_batches(reference, "targets");
    reference->document_start = read_batches(reference, "document_start");
    for (int64_t row = 0; row < (STEPS + 1) * reference->sequences; row++)
        ls_prefetch_limit(reference->document_start + row * config->data.sequence_length, config->data.sequence_length,
                          config->model.sliding_window);
    read_all(reference, "losses", reference->losses);
    read_all(reference, "gradient_norms", reference->norms);
}

static void unload(struct reference *reference) {
    free(reference->tokens);
    free(reference->targets);
    free(reference->document_start);
    ls_safetensors_close(reference->file);
}

/* To the model's parameters, in their type. */
static void upload_tensor(struct harness *h, const struct ls_tensor *tensor, const float *values) {
    char *place = (char *)h->parameters[tensor->block] + tensor->offset * ls_dtype_bytes(ls_model_dtype(h->model));
    if (ls_model_dtype(h->model) == LS_FP32) {
        harness_upload(h, place, values, tensor->count * (int64_t)sizeof(float));
        return;
    }
    uint16_t *narrow = malloc((size_t)tensor->count * sizeof *narrow);
    assert_non_null(narrow);
    for (int64_t i = 0; i < tensor->count; i++) narrow[i] = ls_bf16_narrow(values[i]);
    harness_upload(h, place, narrow, tensor->count * (int64_t)sizeof *narrow);
    free(narrow);
}

static struct harness *start(const struct reference *reference) {
    struct harness *h = harness_create(&reference->config, reference->sequences, 2, LS_STREAMS_EAGER);
    for (int i = 0; i < ls_model_tensor_count(h->model); i++) {
        const struct ls_tensor *tensor = ls_model_tensor(h->model, i);
        float *values = read_tensor(reference, "initial/", tensor);
        upload_tensor(h, tensor, values);
        free(values);
    }
    return h;
}

static struct harness_batch batch_of(const struct reference *reference, int step) {
    int64_t offset = step * reference->sequences * reference->config.data.sequence_length;
    return (struct harness_batch){
        .tokens = reference->tokens + offset,
        .targets = reference->targets + offset,
        .document_start = reference->document_start + offset,
        .sequences = reference->sequences,
    };
}

static int64_t count_targets(const struct reference *reference, const struct harness_batch *batch) {
    int64_t count = 0;
    for (int64_t i = 0; i < batch->sequences * reference->config.data.sequence_length; i++)
        count += batch->targets[i] >= 0;
    return count;
}

static void assert_close(const char *what, double found, double expected, double tolerance) {
    if (!(fabs(found - expected) <= tolerance * fabs(expected))) {
        fail_msg("%s is %.9g, PyTorch has %.9g: off by %.2g", what, found, expected, fabs(found / expected - 1));
    }
}

struct difference {
    double norm, largest, reference_norm, reference_largest;
};

static struct difference compare(const float *found, const float *expected, int64_t first, int64_t count) {
    struct difference d = {0};
    for (int64_t i = first; i < first + count; i++) {
        double difference = fabs((double)found[i] - (double)expected[i]), reference = fabs((double)expected[i]);
        d.norm += difference * difference;
        d.reference_norm += reference * reference;
        if (!(difference <= d.largest)) d.largest = difference;
        if (reference > d.reference_largest) d.reference_largest = reference;
    }
    d.norm = sqrt(d.norm);
    d.reference_norm = sqrt(d.reference_norm);
    return d;
}

/* GPT-2's key bias adds the same to all scores of a query: its gradient is zero and only rounding remains. The middle
 * third of c_attn.bias. */
static bool has_key_bias(const struct ls_tensor *tensor) {
    return strstr(tensor->name, "c_attn.bias") != NULL;
}

static void check_gradient(const struct ls_tensor *tensor, const float *found, const float *expected, int64_t first,
                           int64_t count) {
    struct difference d = compare(found, expected, first, count);
    if (!(d.norm <= 1e-5 * d.reference_norm)) {
        fail_msg("gradient of %s: the difference has norm %.3g, PyTorch's gradient %.3g", tensor->name, d.norm,
                 d.reference_norm);
    }
    if (!(d.largest <= 1e-4 * d.reference_largest)) {
        fail_msg("gradient of %s: an element is off by %.3g, PyTorch's largest is %.3g", tensor->name, d.largest,
                 d.reference_largest);
    }
}

static void check_loss_and_gradients(const char *name) {
    struct reference reference;
    load(&reference, name);
    struct harness *h = start(&reference);
    struct harness_batch batch = batch_of(&reference, 0);
    double targets = (double)count_targets(&reference, &batch);

    double loss = harness_run(h, &batch, (float)(1 / targets)) / targets;
    assert_close("the loss", loss, reference.losses[0], 1e-5);
    for (int i = 0; i < ls_model_tensor_count(h->model); i++) {
        const struct ls_tensor *tensor = ls_model_tensor(h->model, i);
        float *found = harness_tensor(h, h->gradients, i), *expected = read_tensor(&reference, "gradient/", tensor);
        if (has_key_bias(tensor)) {
            int64_t third = tensor->count / 3;
            check_gradient(tensor, found, expected, 0, third);
            check_gradient(tensor, found, expected, 2 * third, third);
            /* the rest: rounding of sums of about 70 terms below 0.1, single precision */
            for (int64_t j = third; j < 2 * third; j++) assert_true(fabsf(found[j]) < 1e-7F);
        } else {
            check_gradient(tensor, found, expected, 0, tensor->count);
        }
        free(found);
        free(expected);
    }
    harness_destroy(h);
    unload(&reference);
}

/* A rounding to bf16 changes a value by at most 2^-9 of it. Some twenty of them lie between a weight and the loss, and
 * again as many between the loss and a gradient; they are of either sign and add up like a walk, to the root of their
 * number: below 2 % of the loss would be off by a factor of ten, gradients get 8 % by the same count. */
static void check_bf16(const char *name) {
    struct reference reference;
    load(&reference, name);
    reference.config.precision = LS_PRECISION_BF16;
    struct harness *h = start(&reference);
    struct harness_batch batch = batch_of(&reference, 0);
    const double targets = (double)count_targets(&reference, &batch);
    const double loss = harness_run(h, &batch, (float)(1 / targets)) / targets;
    assert_close("the loss", loss, reference.losses[0], 2e-3);
    assert_true(fabs(loss - reference.losses[0]) > 1e-7); /* it did compute in another type */
    for (int i = 0; i < ls_model_tensor_count(h->model); i++) {
        const struct ls_tensor *tensor = ls_model_tensor(h->model, i);
        if (has_key_bias(tensor)) continue;
        float *found = harness_tensor(h, h->gradients, i), *expected = read_tensor(&reference, "gradient/", tensor);
        const struct difference d = compare(found, expected, 0, tensor->count);
        if (!(d.norm <= 0.08 * d.reference_norm))
            fail_msg("gradient of %s: the difference has norm %.3g, PyTorch's gradient %.3g", tensor->name, d.norm,
                     d.reference_norm);
        free(found);
        free(expected);
    }
    harness_destroy(h);
    unload(&reference);
}

static void check_loss_without_documents(const char *name) {
    struct reference reference;
    load(&reference, name);
    struct harness *h = start(&reference);
    struct harness_batch batch = batch_of(&reference, 0);
    double expected, targets = (double)count_targets(&reference, &batch);
    read_all(&reference, "loss_without_documents", &expected);
    const int64_t length = reference.config.data.sequence_length, window = reference.config.model.sliding_window;
    int32_t *start = calloc((size_t)(reference.sequences * length), sizeof *start);
    assert_non_null(start);
    for (int64_t row = 0; row < reference.sequences; row++) ls_prefetch_limit(start + row * length, length, window);
    batch.document_start = window ? start : NULL;
    assert_close("the loss", harness_run(h, &batch, 0) / targets, expected, 1e-5);
    free(start);
    harness_destroy(h);
    unload(&reference);
}

/* The optimizer's device memory: moments of each block and the scalars of a step. */
struct optimizer {
    enum ls_update_rule rule;
    float *m[16], *v[16], *factor, *norm, *learning_rate;
    double *squared, *partial;
    int64_t *step;
    int32_t *found_inf;
};

static void optimizer_create(struct harness *h, struct optimizer *o) {
    int64_t most = 0;
    for (int i = 0; i < h->blocks; i++) {
        int64_t count = ls_model_block(h->model, i)->count;
        o->m[i] = harness_buffer(h, count * (int64_t)sizeof(float));
        o->v[i] = harness_buffer(h, count * (int64_t)sizeof(float));
        if (count > most) most = count;
    }
    o->factor = harness_buffer(h, sizeof(float));
    o->norm = harness_buffer(h, sizeof(float));
    o->learning_rate = harness_buffer(h, sizeof(float));
    o->squared = harness_buffer(h, sizeof(double));
    o->partial = harness_buffer(h, (most + 1023) / 1024 * (int64_t)sizeof(double));
    o->step = harness_buffer(h, sizeof(int64_t));
    o->found_inf = harness_buffer(h, sizeof(int32_t));
}

static double optimizer_step(struct harness *h, struct optimizer *o, const struct ls_config *config, int64_t step) {
    float rate = (float)config->optimizer.lr, norm;
    harness_upload(h, o->learning_rate, &rate, sizeof rate);
    harness_upload(h, o->step, &step, sizeof step);
    ls_fill_zero(h->stream, o->squared, sizeof *o->squared);
    for (int i = 0; i < h->blocks; i++) {
        ls_op(h->stream, squared_norm, .result = o->squared, .input = h->gradients[i],
              .count = ls_model_block(h->model, i)->count, .partial = o->partial);
    }
    ls_op(h->stream, clip, .factor = o->factor, .norm = o->norm, .found_inf = o->found_inf, .squared = o->squared,
          .maximum = (float)config->train.gradient_clipping);
    for (int i = 0; i < h->blocks; i++) {
        const struct ls_block *block = ls_model_block(h->model, i);
        ls_op(h->stream, update, .rule = o->rule, .parameter = h->parameters[i], .m = o->m[i], .v = o->v[i],
              .gradient = h->gradients[i], .factor = o->factor, .learning_rate = o->learning_rate, .step = o->step,
              .found_inf = o->found_inf, .count = block->count, .decay_count = block->decay_count,
              .beta1 = (float)config->optimizer.beta1, .beta2 = (float)config->optimizer.beta2,
              .epsilon = (float)config->optimizer.eps, .weight_decay = (float)config->optimizer.weight_decay);
    }
    harness_download(h, &norm, o->norm, sizeof norm);
    return norm;
}

/* One rank's shards, for a rule that is more than an operation. */
struct sharded {
    struct ls_arena_plan *plan;
    struct ls_arena *arena;
    struct ls_comm *comm;
    struct ls_shard_comms comms;
    struct ls_shard *shard;
};

static void sharded_create(struct harness *h, struct sharded *s, const struct ls_config *config) {
    s->plan = calloc(1, sizeof *s->plan);
    assert_non_null(s->plan);
    const int first = ls_shard_plan(config, h->model, 1, s->plan);
    assert_int_equal(ls_arena_create(h->device, s->plan, &s->arena, NULL), LS_OK);
    assert_int_equal(ls_comm_create_threads(1, &s->comm, NULL), LS_OK);
    assert_int_equal(ls_shard_comms_create(config, s->comm, &s->comms, NULL), LS_OK);
    assert_int_equal(ls_shard_create(config, h->model, &s->comms, h->stream, s->arena, first, &s->shard, NULL), LS_OK);
    for (int i = 0; i < h->blocks; i++)
        ls_copy(h->stream, ls_shard_held(s->shard, i).parameters, h->parameters[i],
                (size_t)ls_model_block(h->model, i)->count * sizeof(float));
}

static double sharded_step(struct harness *h, struct sharded *s, const struct ls_config *config, int64_t step) {
    float norm;
    ls_shard_begin(s->shard, 1);
    for (int i = h->blocks - 1; i >= 0; i--) {
        ls_copy(h->stream, ls_shard_gradients(s->shard, i), h->gradients[i],
                (size_t)ls_model_block(h->model, i)->count * sizeof(float));
        ls_shard_reduce(s->shard, i, true);
    }
    ls_shard_update(s->shard, (float)config->optimizer.lr, 0, step);
    for (int i = 0; i < h->blocks; i++) {
        ls_copy(h->stream, h->parameters[i], ls_shard_acquire(s->shard, i),
                (size_t)ls_model_block(h->model, i)->count * sizeof(float));
        ls_shard_release(s->shard, i);
    }
    harness_download(h, &norm, ls_shard_scalars(s->shard).norm, sizeof norm);
    return norm;
}

static void sharded_destroy(struct sharded *s) {
    ls_shard_destroy(s->shard);
    ls_shard_comms_destroy(&s->comms);
    ls_comm_destroy(s->comm);
    ls_arena_destroy(s->arena);
    free(s->plan);
}

static void check_ten_steps(const char *name, enum ls_update_rule rule) {
    struct reference reference;
    load(&reference, name);
    const char *final = "final/";
    const bool muon = rule == LS_UPDATE_GIVEN;
    if (muon) {
        final = "muon_final/";
        reference.config.optimizer.type = LS_MUON;
        reference.config.optimizer.momentum = 0.95; /* as the script has it */
        reference.config.zero.replicas = 1;
        reference.config.train.global_batch_size = reference.config.train.micro_batch_size = reference.sequences;
        read_all(&reference, "muon_losses", reference.losses + 1);
        read_all(&reference, "muon_gradient_norms", reference.norms);
    }
    if (rule == LS_UPDATE_SGD) {
        final = "sgd_final/";
        reference.config.optimizer.lr = 3e-2; /* as the script has it; momentum 0.9 is beta1, decay there is none */
        reference.config.optimizer.weight_decay = 0.0;
        read_all(&reference, "sgd_losses", reference.losses + 1);
        read_all(&reference, "sgd_gradient_norms", reference.norms);
    }
    struct harness *h = start(&reference);
    struct optimizer optimizer = {.rule = rule};
    struct sharded sharded;
    if (muon)
        sharded_create(h, &sharded, &reference.config);
    else
        optimizer_create(h, &optimizer);
    for (int step = 1; step <= STEPS; step++) {
        struct harness_batch batch = batch_of(&reference, step);
        double targets = (double)count_targets(&reference, &batch);
        harness_zero_gradients(h);
        double loss = harness_run(h, &batch, (float)(1 / targets)) / targets;
        assert_close("the loss of a step", loss, reference.losses[step], 1e-5);
        double norm = muon ? sharded_step(h, &sharded, &reference.config, step)
                           : optimizer_step(h, &optimizer, &reference.config, step);
        assert_close("the norm of the gradient", norm, reference.norms[step - 1], 1e-5);
    }
    for (int i = 0; i < ls_model_tensor_count(h->model); i++) {
        const struct ls_tensor *tensor = ls_model_tensor(h->model, i);
        float *found = harness_tensor(h, h->parameters, i), *expected = read_tensor(&reference, final, tensor);
        float *initial = read_tensor(&reference, "initial/", tensor);
        int64_t third = tensor->count / 3;
        /* Adam divides the key bias's rounding by itself: those weights move by any sign, and change nothing. */
        struct difference d = compare(found, expected, 0, has_key_bias(tensor) ? third : tensor->count);
        struct difference last = compare(found, expected, has_key_bias(tensor) ? 2 * third : 0, third);
        struct difference moved = compare(found, initial, 0, third);
        if (!(d.norm <= 1e-5 * d.reference_norm) || !(last.norm <= 1e-5 * last.reference_norm)) {
            fail_msg("%s after %d steps: the difference has norm %.3g, PyTorch's weights %.3g", tensor->name, STEPS,
                     fmax(d.norm, last.norm), d.reference_norm);
        }
        assert_true(moved.norm > 1e-3 * moved.reference_norm);
        free(found);
        free(expected);
        free(initial);
    }
    if (muon) sharded_destroy(&sharded);
    harness_destroy(h);
    unload(&reference);
}

static void gpt2_loss_and_gradients_are_pytorchs(void **state) {
    (void)state;
    check_loss_and_gradients("gpt2.safetensors");
}

static void llama_loss_and_gradients_are_pytorchs(void **state) {
    (void)state;
    check_loss_and_gradients("llama.safetensors");
}

static void qwen2_loss_and_gradients_are_pytorchs(void **state) {
    (void)state;
    check_loss_and_gradients("qwen2.safetensors");
}

static void qwen3_loss_and_gradients_are_pytorchs(void **state) {
    (void)state;
    check_loss_and_gradients("qwen3.safetensors");
}

static void mistral_loss_and_gradients_are_pytorchs(void **state) {
    (void)state;
    check_loss_and_gradients("mistral.safetensors");
}

static void losses_without_documents_are_pytorchs(void **state) {
    (void)state;
    check_loss_without_documents("gpt2.safetensors");
    check_loss_without_documents("llama.safetensors");
    check_loss_without_documents("qwen3.safetensors");
    check_loss_without_documents("qwen2.safetensors");
    check_loss_without_documents("mistral.safetensors");
}

static void gpt2_takes_ten_adamw_steps_as_pytorch_does(void **state) {
    (void)state;
    check_ten_steps("gpt2.safetensors", LS_UPDATE_ADAMW);
}

static void gpt2_takes_ten_sgd_steps_as_pytorch_does(void **state) {
    (void)state;
    check_ten_steps("gpt2.safetensors", LS_UPDATE_SGD);
}

static void gpt2_takes_ten_muon_steps_as_pytorch_does(void **state) {
    (void)state;
    check_ten_steps("gpt2.safetensors", LS_UPDATE_GIVEN);
}

static void llama_takes_ten_muon_steps_as_pytorch_does(void **state) {
    (void)state;
    check_ten_steps("llama.safetensors", LS_UPDATE_GIVEN);
}

static void llama_takes_ten_adamw_steps_as_pytorch_does(void **state) {
    (void)state;
    check_ten_steps("llama.safetensors", LS_UPDATE_ADAMW);
}

static void qwen2_takes_ten_adamw_steps_as_pytorch_does(void **state) {
    (void)state;
    check_ten_steps("qwen2.safetensors", LS_UPDATE_ADAMW);
}

static void qwen3_takes_ten_adamw_steps_as_pytorch_does(void **state) {
    (void)state;
    check_ten_steps("qwen3.safetensors", LS_UPDATE_ADAMW);
}

static void mistral_takes_ten_adamw_steps_as_pytorch_does(void **state) {
    (void)state;
    check_ten_steps("mistral.safetensors", LS_UPDATE_ADAMW);
}

static void in_bf16_losses_and_gradients_are_near_pytorchs(void **state) {
    (void)state;
    check_bf16("gpt2.safetensors");
    check_bf16("llama.safetensors");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_loss_and_gradients_are_pytorchs),
        cmocka_unit_test(llama_loss_and_gradients_are_pytorchs),
        cmocka_unit_test(qwen2_loss_and_gradients_are_pytorchs),
        cmocka_unit_test(qwen3_loss_and_gradients_are_pytorchs),
        cmocka_unit_test(mistral_loss_and_gradients_are_pytorchs),
        cmocka_unit_test(losses_without_documents_are_pytorchs),
        cmocka_unit_test(in_bf16_losses_and_gradients_are_near_pytorchs),
        cmocka_unit_test(gpt2_takes_ten_adamw_steps_as_pytorch_does),
        cmocka_unit_test(gpt2_takes_ten_sgd_steps_as_pytorch_does),
        cmocka_unit_test(gpt2_takes_ten_muon_steps_as_pytorch_does),
        cmocka_unit_test(llama_takes_ten_muon_steps_as_pytorch_does),
        cmocka_unit_test(llama_takes_ten_adamw_steps_as_pytorch_does),
        cmocka_unit_test(qwen2_takes_ten_adamw_steps_as_pytorch_does),
        cmocka_unit_test(qwen3_takes_ten_adamw_steps_as_pytorch_does),
        cmocka_unit_test(mistral_takes_ten_adamw_steps_as_pytorch_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
