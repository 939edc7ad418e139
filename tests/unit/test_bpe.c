/* Byte-level BPE against Hugging Face tokenizers (tests/reference/bpe.py), and what it refuses. */
#include "common/bpe.h"
#include "common/files.h"
#include "tests/unit/support.h"

#include <jansson.h>

__attribute__((noinline)) static char *read_text(const char *name, size_t *count) {
    char path[256], *text = NULL;
    snprintf(path, sizeof path, "tests/reference/bpe/%s.json", name);
    assert_int_equal(ls_file_read(path, LS_BPE_JSON_BYTES_MAX, &text, count, LS_DATA, NULL), LS_OK);
    return text;
}

static struct ls_bpe *open_bpe(const char *name) {
    struct ls_bpe *bpe;
    size_t count;
    char *text = read_text(name, &count);
    assert_int_equal(ls_bpe_parse(text, count, name, &bpe, NULL), LS_OK);
    free(text);
    return bpe;
}

static struct ls_bpe_ids encode(struct ls_bpe *bpe, const char *text, size_t count) {
    struct ls_bpe_ids ids = {0};
    size_t used;
    assert_int_equal(ls_bpe_encode(bpe, text, count, true, &ids, &used, NULL), LS_OK);
    assert_int_equal(used, count);
    return ids;
}

static void ids_are_those_of_hugging_face(void **state) {
    (void)state;
    char name[32] = "";
    struct ls_bpe *bpe = NULL;
    json_t *cases = json_load_file("tests/reference/bpe/cases.json", JSON_ALLOW_NUL, NULL), *one;
    size_t index, tokenizers = 0;
    json_array_foreach(cases, index, one) {
        const char *wanted = json_string_value(json_object_get(one, "tokenizer"));
        const json_t *text = json_object_get(one, "text"), *ids = json_object_get(one, "ids");
        if (strcmp(name, wanted) != 0) {
            ls_bpe_destroy(bpe);
            bpe = open_bpe(wanted);
            snprintf(name, sizeof name, "%s", wanted);
            tokenizers++;
        }
        struct ls_bpe_ids got = encode(bpe, json_string_value(text), json_string_length(text));
        assert_int_equal(got.count, json_array_size(ids));
        for (size_t i = 0; i < got.count; i++)
            if (got.ids[i] != json_integer_value(json_array_get(ids, i)))
                fail_msg("%s: token %zu of \"%s\" is %d, not %lld", name, i, json_string_value(text), got.ids[i],
                         (long long)json_integer_value(json_array_get(ids, i)));
        free(got.ids);
    }
    assert_true(index > 100 && tokenizers == 3);
    ls_bpe_destroy(bpe);
    json_decref(cases);
}

/* Words, spaces, signs, characters of every length, bytes that are none, and added tokens, whole and cut off. */
static char *random_text(size_t count) {
    static const char *const parts[] = {"the",
                                        " LORD",
                                        "'s",
                                        "'ll",
                                        "'re",
                                        "  ",
                                        "\n",
                                        " \n\n",
                                        "\t",
                                        "12345",
                                        "\xc3\xa9",
                                        "\xe4\xb8\xad",
                                        "\xf0\x9f\x98\x80",
                                        "\xff",
                                        "\xe4\xb8",
                                        "\xc2\xa0",
                                        "...",
                                        "<|endoftext|>",
                                        "<|endof",
                                        "<|begin_of_text|>",
                                        "<|",
                                        "aaaaaaaaaaaaaaaaaaaaaaaaaa"};
    char *text = malloc(count + 64);
    size_t used = 0;
    assert_non_null(text);
    while (used < count) {
        const char *part = parts[random_below(sizeof parts / sizeof *parts)];
        memcpy(text + used, part, strlen(part));
        used += strlen(part);
    }
    return text;
}

static void a_text_that_comes_in_pieces_has_the_same_ids(void **state) {
    (void)state;
    static const char *const names[] = {"gpt2", "llama3", "digits"};
    enum { BYTES = 6000 };
    for (int repeat = 0; repeat < 60; repeat++) {
        struct ls_bpe *bpe = open_bpe(names[repeat % 3]);
        char *text = random_text(BYTES);
        struct ls_bpe_ids whole = encode(bpe, text, BYTES), pieces = {0};
        size_t taken = 0, known = 0, used;
        while (known < BYTES) {
            known += (size_t)random_below(repeat < 30 ? 40 : 900);
            if (known > BYTES) known = BYTES;
            assert_int_equal(ls_bpe_encode(bpe, text + taken, known - taken, known == BYTES, &pieces, &used, NULL),
                             LS_OK);
            taken += used;
            assert_true(taken <= known);
            if (known - taken > 400) fail_msg("%zu bytes wait", known - taken);
        }
        assert_int_equal(taken, BYTES);
        assert_int_equal(pieces.count, whole.count);
        assert_memory_equal(pieces.ids, whole.ids, whole.count * sizeof *whole.ids);
        free(text), free(whole.ids), free(pieces.ids);
        ls_bpe_destroy(bpe);
    }
}

static void tokens_say_the_text_again(void **state) {
    (void)state;
    struct ls_bpe *bpe = open_bpe("llama3");
    char *text = random_text(5000);
    struct ls_bpe_ids ids = encode(bpe, text, 5000);
    size_t at = 0;
    for (size_t i = 0; i < ids.count; i++) {
        size_t count;
        bool special;
        const char *bytes = ls_bpe_bytes(bpe, ids.ids[i], &count, &special);
        assert_non_null(bytes);
        assert_true(at + count <= 5000);
        assert_memory_equal(bytes, text + at, count);
        assert_int_equal(special, count > 5 && memcmp(bytes, "<|begin_of_text|>", count) == 0);
        at += count;
    }
    assert_int_equal(at, 5000);
    assert_null(ls_bpe_bytes(bpe, -1, &at, NULL));
    assert_null(ls_bpe_bytes(bpe, ls_bpe_vocabulary(bpe), &at, NULL));
    free(text), free(ids.ids);
    ls_bpe_destroy(bpe);
}

static void special_tokens_are_found_and_the_prefix_is_the_model_s(void **state) {
    (void)state;
    struct ls_bpe *llama = open_bpe("llama3"), *gpt2 = open_bpe("gpt2");
    size_t count;
    const int32_t *prefix = ls_bpe_prefix(llama, &count);
    assert_int_equal(count, 1);
    assert_int_equal(prefix[0], ls_bpe_find(llama, "<|begin_of_text|>"));
    ls_bpe_prefix(gpt2, &count);
    assert_int_equal(count, 0);
    assert_int_equal(ls_bpe_find(gpt2, "<|endoftext|>"), 0); /* the trainer's first */
    assert_int_equal(ls_bpe_find(gpt2, "<|begin_of_text|>"), -1);
    assert_true(ls_bpe_find(gpt2, " the") > 256);
    assert_int_equal(ls_bpe_vocabulary(gpt2), 700);
    ls_bpe_destroy(llama);
    ls_bpe_destroy(gpt2);
}

/* More pieces than are remembered, so that most share their place with others. */
static void many_different_words_say_themselves(void **state) {
    (void)state;
    enum { BYTES = 600000 };
    struct ls_bpe *bpe = open_bpe("gpt2");
    char *text = malloc(BYTES);
    assert_non_null(text);
    for (int i = 0; i < BYTES; i++) text[i] = i % 6 == 0 ? ' ' : (char)('a' + random_below(26));
    struct ls_bpe_ids ids = encode(bpe, text, BYTES);
    size_t at = 0, count;
    for (size_t i = 0; i < ids.count; i++) {
        const char *bytes = ls_bpe_bytes(bpe, ids.ids[i], &count, NULL);
        assert_memory_equal(bytes, text + at, count);
        at += count;
    }
    assert_int_equal(at, BYTES);
    free(text), free(ids.ids);
    ls_bpe_destroy(bpe);
}

/* One piece of 300,000 letters: joined as ever, and in time that does not grow with its square. */
static void a_piece_may_be_long(void **state) {
    (void)state;
    enum { BYTES = 300000 };
    struct ls_bpe *bpe = open_bpe("gpt2");
    char *text = malloc(BYTES);
    assert_non_null(text);
    for (int i = 0; i < BYTES; i++) text[i] = (char)('a' + random_below(26));
    struct ls_bpe_ids ids = encode(bpe, text, BYTES);
    size_t at = 0, count;
    for (size_t i = 0; i < ids.count; i++) {
        const char *bytes = ls_bpe_bytes(bpe, ids.ids[i], &count, NULL);
        assert_memory_equal(bytes, text + at, count);
        at += count;
    }
    assert_int_equal(at, BYTES);
    assert_true(ids.count < BYTES);
    free(text), free(ids.ids);
    ls_bpe_destroy(bpe);
}

/* tokenizer.json with its first `from` made `to`. */
static void refused(const char *from, const char *to, const char *why) {
    struct ls_bpe *bpe;
    struct ls_error error = {0};
    size_t count;
    char *text = read_text("gpt2", &count), *changed = malloc(count + 1000);
    const char *place = strstr(text, from);
    assert_non_null(changed);
    if (!place) fail_msg("the tokenizer has no %s", from);
    const int length = snprintf(changed, count + 1000, "%.*s%s%s", (int)(place - text), text, to, place + strlen(from));
    assert_int_equal(ls_bpe_parse(changed, (size_t)length, "tokenizer.json", &bpe, &error), LS_DATA);
    if (!strstr(error.text, why)) fail_msg("%s -> %s: %s", from, to, error.text);
    free(text), free(changed);
}

static void what_would_give_other_ids_is_refused(void **state) {
    (void)state;
    refused("\"add_prefix_space\":false", "\"add_prefix_space\":true", "puts a space in front");
    refused("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", "the normalizer 'NFC'");
    refused("\"byte_fallback\":false", "\"byte_fallback\":true", "byte_fallback");
    refused("\"dropout\":null", "\"dropout\":0.1", "dropout");
    refused("\"type\":\"BPE\"", "\"type\":\"Unigram\"", "a model 'Unigram'");
    refused("\"lstrip\":false", "\"lstrip\":true", "spaces around the added token '<|endoftext|>'");
    refused("\"pre_tokenizer\":{\"type\":\"ByteLevel\"", "\"pre_tokenizer\":{\"type\":\"Whitespace\"",
            "not of the byte level");
    refused("\"pre_tokenizer\":{", "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[]},\"x\":{",
            "not of the byte level");
    refused(
        "\"pre_tokenizer\":{",
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},"
        "\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"use_regex\":false}]},\"x\":{",
        "a pattern that is not understood");
    refused("\"pre_tokenizer\":{",
            "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"String\":"
            "\"a\"},"
            "\"behavior\":\"Removed\"},{\"type\":\"ByteLevel\"}]},\"x\":{",
            "the behavior 'Removed'");
    refused("\"!\":1", "\"!\":-1", "no id from 0 on");
    refused("\"!\":1", "\"!\":2", "to another token too");
    refused("\"$\":4,", "", "no token for the byte 0x24");
    refused("\"merges\":[", "\"merges\":[\"\xc4\xa0 zzzzz\",", "a merge, number 0");
    refused("\"merges\":[", "\"merges\":[[\"a\"],", "a merge, number 0");
    refused("}", "", "Is it a tokenizer.json?");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_hugging_face),
        cmocka_unit_test(a_text_that_comes_in_pieces_has_the_same_ids),
        cmocka_unit_test(tokens_say_the_text_again),
        cmocka_unit_test(special_tokens_are_found_and_the_prefix_is_the_model_s),
        cmocka_unit_test(many_different_words_say_themselves),
        cmocka_unit_test(a_piece_may_be_long),
        cmocka_unit_test(what_would_give_other_ids_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
