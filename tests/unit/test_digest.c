/* Digests: the same numbers as another binding of xxHash gives, and sums that forget the order. */
#include "common/digest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct ls_digest sample(uint32_t source, uint32_t shard, uint64_t index, uint64_t position, int64_t count) {
    int32_t tokens[1024];
    for (int32_t i = 0; i < count; i++) tokens[i] = (i * i + 7 * i) % 50257;
    return ls_digest_sample(source, shard, index, position, tokens, count);
}

static void assert_digest(struct ls_digest digest, const char *expected) {
    char hex[33];
    ls_digest_format(digest, hex);
    assert_string_equal(hex, expected);
}

static void samples_sums_and_chains_are_those_of_another_implementation(void **state) {
    (void)state;
    struct ls_digest sum = {0, 0}, link = {0, 0};
#define SAMPLE(step, source, shard, index, position, count, digest, sum_after, link_after)                             \
    {                                                                                                                  \
        struct ls_digest one = sample(source, shard, index, position, count);                                          \
        assert_digest(one, digest);                                                                                    \
        assert_digest(sum = ls_digest_add(sum, one), sum_after);                                                       \
        assert_digest(link = ls_digest_chain(link, step, one), link_after);                                            \
    }
#include "tests/reference/digest.inc"
#undef SAMPLE
}

static void sums_carry_into_the_high_half_and_wrap(void **state) {
    (void)state;
    struct ls_digest all = {UINT64_MAX, UINT64_MAX}, one = {1, 0};
    assert_digest(ls_digest_add(all, one), "00000000000000000000000000000000");
    assert_digest(ls_digest_add((struct ls_digest){UINT64_MAX, 4}, one), "00000000000000050000000000000000");
}

static void hex_comes_back_and_anything_else_is_refused(void **state) {
    (void)state;
    struct ls_digest digest = {1, 2};
    assert_int_equal(ls_digest_parse("0123456789abcdefFEDCBA9876543210", &digest), 0);
    assert_true(digest.high == 0x0123456789abcdef && digest.low == 0xfedcba9876543210);
    static const char *const bad[] = {"",
                                      "0",
                                      "0123456789abcdefFEDCBA987654321",
                                      "0123456789abcdefFEDCBA98765432100",
                                      "0123456789abcdefFEDCBA987654321g",
                                      "0x23456789abcdefFEDCBA9876543210",
                                      " 123456789abcdefFEDCBA9876543210",
                                      "-123456789abcdefFEDCBA9876543210"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_int_equal(ls_digest_parse(bad[i], &digest), -1);
    assert_true(digest.high == 0x0123456789abcdef && digest.low == 0xfedcba9876543210);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(samples_sums_and_chains_are_those_of_another_implementation),
        cmocka_unit_test(sums_carry_into_the_high_half_and_wrap),
        cmocka_unit_test(hex_comes_back_and_anything_else_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
