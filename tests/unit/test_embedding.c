/* Embedding against references that add in the promised order: the bits must be equal. */
#include "tests/unit/support.h"

struct problem {
    int64_t batch, length, channels, vocabulary, first;
    bool positions;
    int threads;
};

static void check(struct problem p) {
    const int64_t rows = p.batch * p.length, count = rows * p.channels, places = p.first + p.length;
    float *tokens_table = random_floats(p.vocabulary * p.channels, 1),
          *position_table = random_floats(places * p.channels, 1);
    float *output = random_floats(count, 1), *gradient = random_floats(count, 1);
    float *d_token = random_floats(p.vocabulary * p.channels, 1), *d_position = random_floats(p.length * p.channels, 1);
    float *token_expected = copy_floats(d_token, p.vocabulary * p.channels);
    float *position_expected = copy_floats(d_position, p.length * p.channels);
    int32_t *tokens = malloc((size_t)rows * sizeof *tokens);
    for (int64_t r = 0; r < rows; r++) tokens[r] = (int32_t)random_below(p.vocabulary);
    struct support s = support_open(p.threads, LS_STREAMS_EAGER);
    ls_op(s.stream, embedding_forward, .output = output, .tokens = tokens, .token_table = tokens_table,
          .position_table = p.positions ? position_table : NULL, .batch = p.batch, .length = p.length,
          .channels = p.channels, .first_position = p.first);
    ls_op(s.stream, embedding_backward, .token_gradient = d_token, .position_gradient = p.positions ? d_position : NULL,
          .output_gradient = gradient, .tokens = tokens, .batch = p.batch, .length = p.length, .channels = p.channels,
          .vocabulary = p.vocabulary);
    support_close(s);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < p.channels; c++) {
            float expected = tokens_table[tokens[r] * p.channels + c];
            if (p.positions) expected += position_table[(p.first + r % p.length) * p.channels + c];
            assert_true(output[r * p.channels + c] == expected);
            token_expected[tokens[r] * p.channels + c] +=
                gradient[r * p.channels + c]; /* the order (b, t) is promised */
            if (p.positions) position_expected[r % p.length * p.channels + c] += gradient[r * p.channels + c];
        }
    check_same_bits("token gradient", d_token, token_expected, p.vocabulary * p.channels);
    check_same_bits("position gradient", d_position, position_expected, p.length * p.channels);
    free(tokens_table), free(position_table), free(output), free(gradient), free(d_token), free(d_position);
    free(token_expected), free(position_expected), free(tokens);
}

static void embedding_adds_tables_and_sums_gradients_in_order(void **state) {
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        check((struct problem){
            .batch = 1, .length = 1, .channels = 1, .vocabulary = 1, .positions = true, .threads = threads});
        check((struct problem){
            .batch = 3, .length = 17, .channels = 65, .vocabulary = 11, .positions = true, .threads = threads});
        check((struct problem){.batch = 2, .length = 131, .channels = 257, .vocabulary = 7, .threads = threads});
        check((struct problem){.batch = 2,
                               .length = 130,
                               .channels = 130,
                               .vocabulary = 300,
                               .first = 5,
                               .positions = true,
                               .threads = threads});
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(embedding_adds_tables_and_sums_gradients_in_order)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
