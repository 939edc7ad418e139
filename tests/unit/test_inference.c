/* Inference with a cache agrees with training's forward however the tokens are cut into calls; sampling follows its
 * distribution. The arithmetic itself is compared with another system by tests/integration/test_generate.sh. */
#include "tests/unit/model_harness.h"

#include "worker/model/inference.h"
#include "worker/model/sampling.h"

#include <math.h>

enum { LENGTH = 17, VOCABULARY = 37 };

static struct ls_error error;

#define expect_ok(call)                                                                                                \
    do {                                                                                                               \
        if ((call) != LS_OK) fail_msg("%s: %s", #call, error.text);                                                    \
    } while (0)

static struct ls_config make_config(bool llama, bool tied) {
    struct ls_config config = {0};
    config.model.model_type = llama ? LS_LLAMA : LS_GPT2;
    config.model.vocab_size = VOCABULARY;
    config.model.hidden_size = 24;
    config.model.num_hidden_layers = 2;
    config.model.num_attention_heads = 6;
    config.model.num_key_value_heads = 2;
    config.model.head_dim = llama ? 6 : 4;
    config.model.intermediate_size = 35;
    config.model.max_position_embeddings = 20;
    config.model.tie_word_embeddings = tied;
    config.model.layer_norm_epsilon = config.model.rms_norm_eps = 1e-5;
    config.model.rope_theta = 10000;
    config.model.initializer_range = 0.3;
    config.data.sequence_length = LENGTH;
    return config;
}

static void make_tokens(int32_t *tokens) {
    for (int i = 0; i < LENGTH; i++) tokens[i] = (i * i * 5 + 3 * i + 1) % VOCABULARY;
}

/* -log softmax(logits)[target], in double. */
static double negative_log_likelihood(const float *logits, int32_t target) {
    double sum = 0, top = (double)logits[0];
    for (int i = 1; i < VOCABULARY; i++) top = (double)logits[i] > top ? (double)logits[i] : top;
    for (int i = 0; i < VOCABULARY; i++) sum += exp((double)logits[i] - top);
    return log(sum) + top - (double)logits[target];
}

/* An inference with the weights of the harness. */
static struct ls_inference *make_inference(struct harness *h, int64_t rows) {
    struct ls_inference *inference;
    expect_ok(ls_inference_create(h->model, h->device, rows, &inference, &error));
    for (int b = 0; b < h->blocks; b++) {
        int64_t bytes = ls_model_block(h->model, b)->count * (int64_t)sizeof(float);
        float *values = malloc((size_t)bytes);
        assert_non_null(values);
        harness_download(h, values, h->parameters[b], bytes);
        expect_ok(ls_inference_put_block(inference, b, values, &error));
        free(values);
    }
    return inference;
}

/* Every target's loss by training's own forward, one target at a time, is that of the cached logits. Sums of at most 35
 * products in another order: 1e-5 leaves room. */
static void check_against_training(bool llama, bool tied) {
    struct ls_config config = make_config(llama, tied);
    struct harness *h = harness_create(&config, 1, 1, LS_STREAMS_EAGER);
    int32_t tokens[LENGTH], targets[LENGTH];
    static float logits[LENGTH * VOCABULARY];
    harness_initialize(h, 11);
    make_tokens(tokens);
    struct ls_inference *inference = make_inference(h, 5);
    expect_ok(ls_inference_append(inference, tokens, LENGTH, true, logits, &error));
    for (int t = 0; t < LENGTH; t++) {
        for (int i = 0; i < LENGTH; i++) targets[i] = i == t ? (t * 3) % VOCABULARY : -1;
        struct harness_batch batch = {.tokens = tokens, .targets = targets, .sequences = 1};
        double trained = harness_run(h, &batch, 0);
        double cached = negative_log_likelihood(logits + t * VOCABULARY, targets[t]);
        if (!(fabs(trained - cached) <= 1e-5 * fmax(1, trained)))
            fail_msg("position %d: %.9g by training, %.9g cached", t, trained, cached);
    }
    ls_inference_destroy(inference);
    harness_destroy(h);
}

static void gpt2_logits_give_the_losses_of_training(void **unused) {
    (void)unused;
    check_against_training(false, true);
    check_against_training(false, false);
}

static void llama_logits_give_the_losses_of_training(void **unused) {
    (void)unused;
    check_against_training(true, true);
    check_against_training(true, false);
}

/* The calls differ in the shapes of their products, so sums may round differently: 1e-5 of the largest logit. */
static void check_cuts(bool llama) {
    struct ls_config config = make_config(llama, true);
    struct harness *h = harness_create(&config, 1, 1, LS_STREAMS_EAGER);
    int32_t tokens[LENGTH];
    static float whole[LENGTH * VOCABULARY], cut[LENGTH * VOCABULARY];
    harness_initialize(h, 12);
    make_tokens(tokens);
    struct ls_inference *inference = make_inference(h, LENGTH);
    expect_ok(ls_inference_append(inference, tokens, LENGTH, true, whole, &error));
    assert_int_equal(ls_inference_position(inference), LENGTH);
    assert_int_equal(ls_inference_capacity(inference), LENGTH);
    float largest = 0;
    for (int i = 0; i < LENGTH * VOCABULARY; i++) largest = fmaxf(largest, fabsf(whole[i]));
    for (int piece = 1; piece < LENGTH; piece++) {
        memset(cut, 0, sizeof cut);
        ls_inference_reset(inference);
        for (int first = 0; first < LENGTH; first += piece) {
            int count = LENGTH - first < piece ? LENGTH - first : piece;
            expect_ok(ls_inference_append(inference, tokens + first, count, true, cut + first * VOCABULARY, &error));
        }
        for (int i = 0; i < LENGTH * VOCABULARY; i++)
            if (!(fabsf(cut[i] - whole[i]) <= 1e-5f * largest))
                fail_msg("pieces of %d: logit %d of position %d is %g, in one pass %g", piece, i % VOCABULARY,
                         i / VOCABULARY, (double)cut[i], (double)whole[i]);
        /* Only the last position's are asked for. */
        float last[VOCABULARY];
        ls_inference_reset(inference);
        expect_ok(ls_inference_append(inference, tokens, piece, false, last, &error));
        for (int i = 0; i < VOCABULARY; i++)
            assert_true(fabsf(last[i] - whole[(piece - 1) * VOCABULARY + i]) <= 1e-5f * largest);
    }
    ls_inference_destroy(inference);
    harness_destroy(h);
}

static void logits_do_not_depend_on_how_the_tokens_are_cut_into_calls(void **unused) {
    (void)unused;
    check_cuts(false);
    check_cuts(true);
}

static int32_t sample(struct ls_sampler *sampler, const float *logits, int64_t V) {
    int32_t order[8], token = -1;
    expect_ok(ls_sample(sampler, logits, V, order, &token, &error));
    return token;
}

static void temperature_zero_and_top_1_take_the_most_likely_token(void **unused) {
    (void)unused;
    const float logits[] = {1, 5, -3, 5, 2};
    struct ls_sampler greedy = {0}, top = {.temperature = 2, .top_k = 1};
    for (int i = 0; i < 20; i++) {
        assert_int_equal(sample(&greedy, logits, 5), 1);
        assert_int_equal(sample(&top, logits, 5), 1);
    }
}

/* Probabilities 1/7, 2/7, 4/7 at temperature 1 and, the logits halved, 1 : sqrt 2 : 2 at temperature 2. 20,000 draws:
 * five standard deviations are at most 0.018. */
static void draws_follow_the_softmax_at_the_temperature(void **unused) {
    (void)unused;
    const float logits[] = {0, logf(2), logf(4)};
    const double sqrt_sum = 3 + sqrt(2), expected[2][3] = {
                                             {1 / 7.0, 2 / 7.0, 4 / 7.0},
                                             {1 / sqrt_sum, sqrt(2) / sqrt_sum, 2 / sqrt_sum},
                                         };
    for (int hot = 0; hot < 2; hot++) {
        struct ls_sampler sampler = {.temperature = 1 + hot, .seed = 3};
        int counts[3] = {0};
        for (int i = 0; i < 20000; i++) counts[sample(&sampler, logits, 3)]++;
        for (int i = 0; i < 3; i++) assert_true(fabs(counts[i] / 20000.0 - expected[hot][i]) < 0.018);
    }
}

static void top_k_draws_only_from_the_k_most_likely(void **unused) {
    (void)unused;
    const float logits[] = {0.5f, 2, 1, 1.5f, 1};
    struct ls_sampler sampler = {.temperature = 1, .top_k = 3, .seed = 9};
    int counts[5] = {0};
    for (int i = 0; i < 3000; i++) counts[sample(&sampler, logits, 5)]++;
    /* Of the equal logits of 2 and 4 the lower token counts as more likely. */
    assert_true(counts[1] > 0 && counts[3] > 0 && counts[2] > 0 && counts[0] == 0 && counts[4] == 0);
}

static void the_same_seed_draws_the_same_tokens_and_another_does_not(void **unused) {
    (void)unused;
    const float logits[8] = {0};
    struct ls_sampler a = {.temperature = 1, .seed = 1}, b = a, c = {.temperature = 1, .seed = 2};
    int different = 0;
    for (int i = 0; i < 100; i++) {
        int32_t token = sample(&a, logits, 8);
        assert_int_equal(sample(&b, logits, 8), token);
        different += sample(&c, logits, 8) != token;
    }
    assert_true(different > 50);
}

static void a_logit_that_is_not_finite_is_an_error_that_names_the_token(void **unused) {
    (void)unused;
    const float logits[] = {0, NAN, 1};
    int32_t order[3], token;
    struct ls_sampler sampler = {0};
    assert_int_equal(ls_sample(&sampler, logits, 3, order, &token, &error), LS_NONFINITE);
    assert_non_null(strstr(error.text, "token 1"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_logits_give_the_losses_of_training),
        cmocka_unit_test(llama_logits_give_the_losses_of_training),
        cmocka_unit_test(logits_do_not_depend_on_how_the_tokens_are_cut_into_calls),
        cmocka_unit_test(temperature_zero_and_top_1_take_the_most_likely_token),
        cmocka_unit_test(draws_follow_the_softmax_at_the_temperature),
        cmocka_unit_test(top_k_draws_only_from_the_k_most_likely),
        cmocka_unit_test(the_same_seed_draws_the_same_tokens_and_another_does_not),
        cmocka_unit_test(a_logit_that_is_not_finite_is_an_error_that_names_the_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
