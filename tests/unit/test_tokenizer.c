/* Tokenizers against those of Hugging Face (tests/reference/tokenizer.py), and what is refused. */
#include "common/encoding.h"
#include "common/files.h"
#include "tests/unit/support.h"

#include <jansson.h>

static const char *const names[] = {"gpt2", "llama3", "digits", "qwen", "spaced", "llama2", "across", "words", "bytes"};
enum { KINDS = sizeof names / sizeof *names };

__attribute__((noinline)) static char *read_text(const char *name, size_t *count) {
    char path[256], *text = NULL;
    snprintf(path, sizeof path, "tests/reference/tokenizer/%s.json", name);
    assert_int_equal(ls_file_read(path, LS_TOKENIZER_JSON_BYTES_MAX, &text, count, LS_DATA, NULL), LS_OK);
    return text;
}

static struct ls_tokenizer *open_tokenizer(const char *name) {
    struct ls_tokenizer *tokenizer;
    size_t count;
    char *text = read_text(name, &count);
    assert_int_equal(ls_tokenizer_parse(text, count, name, &tokenizer, NULL), LS_OK);
    free(text);
    return tokenizer;
}

static struct ls_encoding *begin(struct ls_tokenizer *tokenizer) {
    struct ls_encoding *encoding;
    assert_int_equal(ls_encoding_create(tokenizer, &encoding, NULL), LS_OK);
    return encoding;
}

static struct ls_token_ids encode(struct ls_tokenizer *tokenizer, const char *text, size_t count) {
    struct ls_token_ids ids = {0};
    struct ls_encoding *encoding = begin(tokenizer);
    assert_int_equal(ls_encoding_add(encoding, text, count, true, &ids, NULL), LS_OK);
    ls_encoding_destroy(encoding);
    return ids;
}

static void ids_are_those_of_hugging_face(void **state) {
    (void)state;
    char name[32] = "";
    struct ls_tokenizer *tokenizer = NULL;
    struct ls_encoding *encoding = NULL; /* one text behind the other */
    json_t *cases = json_load_file("tests/reference/tokenizer/cases.json", JSON_ALLOW_NUL, NULL), *one;
    size_t index, tokenizers = 0;
    json_array_foreach(cases, index, one) {
        const char *wanted = json_string_value(json_object_get(one, "tokenizer"));
        const json_t *text = json_object_get(one, "text"), *ids = json_object_get(one, "ids");
        if (strcmp(name, wanted) != 0) {
            ls_encoding_destroy(encoding);
            ls_tokenizer_destroy(tokenizer);
            tokenizer = open_tokenizer(wanted);
            encoding = begin(tokenizer);
            snprintf(name, sizeof name, "%s", wanted);
            tokenizers++;
        }
        struct ls_token_ids got = {0};
        assert_int_equal(ls_encoding_add(encoding, json_string_value(text), json_string_length(text), true, &got, NULL),
                         LS_OK);
        for (size_t i = 0; i < got.count && i < json_array_size(ids); i++)
            if (got.ids[i] != json_integer_value(json_array_get(ids, i)))
                fail_msg("%s: token %zu of \"%s\" is %d, not %lld", name, i, json_string_value(text), got.ids[i],
                         (long long)json_integer_value(json_array_get(ids, i)));
        if (got.count != json_array_size(ids))
            fail_msg("%s: \"%s\" has %zu tokens, not %zu", name, json_string_value(text), got.count,
                     json_array_size(ids));
        free(got.ids);
    }
    assert_true(index > 400 && tokenizers == sizeof names / sizeof *names);
    ls_encoding_destroy(encoding);
    ls_tokenizer_destroy(tokenizer);
    json_decref(cases);
}

/* Words, spaces, signs, characters of every length, bytes that are none, and added tokens, whole and cut off. */
static char *random_text(size_t count, bool utf8) {
    static const char *const parts[] = {"the",
                                        " LORD",
                                        "'s",
                                        "'ll",
                                        "'re",
                                        "  ",
                                        "\n",
                                        " \n\n",
                                        "\t",
                                        " \n  \n",
                                        "\r\n ",
                                        "aaaaaaaaaaaaaaaaaaaaaaaaaa",
                                        "12345",
                                        "\xc3\xa9",
                                        "\xe4\xb8\xad",
                                        "\xf0\x9f\x98\x80",
                                        "\xc2\xa0",
                                        "...",
                                        "<|endoftext|>",
                                        "<|endof",
                                        "<|begin_of_text|>",
                                        "<|",
                                        "\xcc\x81",
                                        "e\xcc\xa3\xcc\x81",
                                        "\xe1\x84\x80\xe1\x85\xa1",
                                        "\xe1\x86\xa8",
                                        "\xe2\x96\x81",
                                        " a",
                                        "<s>",
                                        "</",
                                        "</s>",
                                        "\xe0\xa7\x87\xe0\xa6\xbe",
                                        "\xe1\x80\xa5\xe1\x80\xae",
                                        "\xff",
                                        "\xe4\xb8"}; /* the last two are no UTF-8 */
    char *text = malloc(count + 64);
    size_t used = 0;
    assert_non_null(text);
    while (used < count) {
        const char *part = parts[random_below(sizeof parts / sizeof *parts - (utf8 ? 2 : 0))];
        memcpy(text + used, part, strlen(part));
        used += strlen(part);
    }
    text[used] = 0;
    return text;
}

/* The ids of text[count] are the same in pieces of fewer than `most` bytes, some of them of none; 1: of one byte. */
static void same_in_pieces(struct ls_tokenizer *tokenizer, const char *text, int count, int most) {
    struct ls_token_ids whole = encode(tokenizer, text, (size_t)count), pieces = {0};
    struct ls_encoding *encoding = begin(tokenizer);
    for (int known = 0, next; known < count; known = next) {
        next = known + (most > 1 ? (int)random_below((uint64_t)most) : 1);
        if (next > count) next = count;
        assert_int_equal(ls_encoding_add(encoding, text + known, (size_t)(next - known), next == count, &pieces, NULL),
                         LS_OK);
    }
    assert_int_equal(pieces.count, whole.count);
    assert_memory_equal(pieces.ids, whole.ids, whole.count * sizeof *whole.ids);
    free(whole.ids), free(pieces.ids);
    ls_encoding_destroy(encoding);
}

static void a_text_that_comes_in_pieces_has_the_same_ids(void **state) {
    (void)state;
    for (int repeat = 0; repeat < 20 * KINDS; repeat++) {
        struct ls_tokenizer *tokenizer = open_tokenizer(names[repeat % KINDS]);
        char *text = random_text(20000, repeat % 3 == 0);
        same_in_pieces(tokenizer, text, 20000, repeat < 10 * KINDS ? 40 : 9000);
        free(text);
        ls_tokenizer_destroy(tokenizer);
    }
}

/* Line ends that belong to what was before them, looked at after each byte. */
static void the_last_pieces_wait_for_what_follows(void **state) {
    (void)state;
    static const char *const units[] = {"x \n  \n", "xy \n  \n", "it's \r\n \n ", "xyz \n  \n12 "};
    for (int i = 0; i < 4 * KINDS; i++) {
        struct ls_tokenizer *tokenizer = open_tokenizer(names[i / 4]);
        char text[6000];
        for (size_t k = 0; k < sizeof text; k++) text[k] = units[i % 4][k % strlen(units[i % 4])];
        same_in_pieces(tokenizer, text, sizeof text, 1);
        ls_tokenizer_destroy(tokenizer);
    }
}

/* Ids come while a text is under way: what waits for more does not grow with it. */
static void ids_do_not_wait_for_the_end(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        struct ls_tokenizer *tokenizer = open_tokenizer(names[kind]);
        char *text = random_text(30000, true);
        for (char *added = text; (added = strchr(added, '<'));) *added = 'x'; /* they end what is before them */
        struct ls_token_ids whole = encode(tokenizer, text, 30000), begun = {0};
        struct ls_encoding *encoding = begin(tokenizer);
        for (int i = 0; i < 30; i++)
            assert_int_equal(ls_encoding_add(encoding, text + 1000 * i, 1000, false, &begun, NULL), LS_OK);
        if (begun.count < whole.count * 2 / 3) fail_msg("%s: %zu of %zu tokens", names[kind], begun.count, whole.count);
        assert_memory_equal(begun.ids, whole.ids, begun.count * sizeof *whole.ids);
        free(text), free(whole.ids), free(begun.ids);
        ls_encoding_destroy(encoding);
        ls_tokenizer_destroy(tokenizer);
    }
}

/* Byte for byte where a tokenizer changes nothing, and where it puts a space in front of every text. U+2581 is a space
 * to it. */
static void tokens_say_the_text_again(void **state) {
    (void)state;
    static const char *const faithful[] = {"gpt2", "llama3", "digits", "llama2"};
    static const char *const special_tokens[] = {"<|begin_of_text|>", "<|endoftext|>", "<|end", "<s>", "</s>"};
    for (size_t kind = 0; kind < sizeof faithful / sizeof *faithful; kind++) {
        struct ls_tokenizer *tokenizer = open_tokenizer(faithful[kind]);
        char *text = random_text(5000, false);
        for (char *space; kind == 3 && (space = strstr(text, "\xe2\x96\x81"));) memset(space, ' ', 3);
        struct ls_token_ids ids = encode(tokenizer, text, 5000);
        size_t at = 0, count;
        bool begins = true, special;
        for (size_t i = 0; i < ids.count; i++) {
            const char *bytes = ls_tokenizer_said(tokenizer, ids.ids[i], &begins, &count, &special);
            assert_non_null(bytes);
            assert_true(at + count <= 5000);
            if (memcmp(bytes, text + at, count))
                fail_msg("%s: %.*s is not %.20s", faithful[kind], (int)count, bytes, text + at);
            bool known = false;
            for (size_t k = 0; k < sizeof special_tokens / sizeof *special_tokens; k++)
                known |= ids.ids[i] == ls_tokenizer_find(tokenizer, special_tokens[k]);
            assert_int_equal(special, known);
            at += count;
        }
        assert_int_equal(at, 5000);
        assert_null(ls_tokenizer_said(tokenizer, -1, &begins, &at, &special));
        assert_null(ls_tokenizer_said(tokenizer, ls_tokenizer_vocabulary(tokenizer), &begins, &at, &special));
        free(text), free(ids.ids);
        ls_tokenizer_destroy(tokenizer);
    }
}

static void said_is(const char *name, const char *text, const char *wanted) {
    struct ls_tokenizer *tokenizer = open_tokenizer(name);
    struct ls_token_ids ids = encode(tokenizer, text, strlen(text));
    char said[100] = "";
    bool begins = true, special;
    for (size_t i = 0, count; i < ids.count; i++) {
        const char *bytes = ls_tokenizer_said(tokenizer, ids.ids[i], &begins, &count, &special);
        snprintf(said + strlen(said), sizeof said - strlen(said), "%.*s", (int)count, bytes);
    }
    assert_string_equal(said, wanted);
    free(ids.ids);
    ls_tokenizer_destroy(tokenizer);
}

static void a_space_put_in_front_is_not_said(void **state) {
    (void)state;
    said_is("llama2", "  a</s> b", "  a</s> b");
    said_is("words", "a b</s>c </s>\xe4\xb8\xad", "a b</s>c </s>\xe4\xb8\xad");
    said_is("words", " a", "a"); /* none was put there: the tokens of "a" */
    said_is("spaced", "a b</s>c", "a b</s>c");
    said_is("across", "a b</s> c</s>d", "a b</s> c</s>d"); /* first text alone */
    said_is("qwen", "e\xcc\x81", "\xc3\xa9");
}

static void special_tokens_are_found_and_the_prefix_is_the_model_s(void **state) {
    (void)state;
    struct ls_tokenizer *llama = open_tokenizer("llama3"), *gpt2 = open_tokenizer("gpt2");
    size_t count;
    const int32_t *prefix = ls_tokenizer_prefix(llama, &count);
    assert_int_equal(count, 1);
    assert_int_equal(prefix[0], ls_tokenizer_find(llama, "<|begin_of_text|>"));
    ls_tokenizer_prefix(gpt2, &count);
    assert_int_equal(count, 0);
    assert_int_equal(ls_tokenizer_find(gpt2, "<|endoftext|>"), 0); /* the trainer's first */
    assert_int_equal(ls_tokenizer_find(gpt2, "<|begin_of_text|>"), -1);
    assert_true(ls_tokenizer_find(gpt2, " the") > 256);
    assert_int_equal(ls_tokenizer_vocabulary(gpt2), 700);
    ls_tokenizer_destroy(llama);
    ls_tokenizer_destroy(gpt2);
}

/* Random letters, with a space before every fifth or none, become fewer tokens, which say them again. */
static void letters_say_themselves(int count, bool spaces) {
    struct ls_tokenizer *tokenizer = open_tokenizer("gpt2");
    char *text = malloc((size_t)count);
    assert_non_null(text);
    for (int i = 0; i < count; i++) text[i] = spaces && i % 6 == 0 ? ' ' : (char)('a' + random_below(26));
    struct ls_token_ids ids = encode(tokenizer, text, (size_t)count);
    size_t at = 0, length;
    bool begins = true, special;
    for (size_t i = 0; i < ids.count; i++) {
        const char *bytes = ls_tokenizer_said(tokenizer, ids.ids[i], &begins, &length, &special);
        assert_memory_equal(bytes, text + at, length);
        at += length;
    }
    assert_int_equal(at, count);
    assert_true(ids.count < (size_t)count);
    free(text), free(ids.ids);
    ls_tokenizer_destroy(tokenizer);
}

/* More pieces than are remembered, so that most share their place with others. */
static void many_different_words_say_themselves(void **state) {
    (void)state;
    letters_say_themselves(600000, true);
}

/* One piece: joined as ever, and in time that does not grow with its square. */
static void a_piece_may_be_long(void **state) {
    (void)state;
    letters_say_themselves(300000, false);
}

/* Text with its first `from` made `to`; takes the text. */
static char *change(char *text, const char *from, const char *to) {
    const size_t size = strlen(text) + strlen(to) + 1;
    char *changed = malloc(size);
    const char *place = strstr(text, from);
    assert_non_null(changed);
    if (!place) fail_msg("the tokenizer has no %s", from);
    snprintf(changed, size, "%.*s%s%s", (int)(place - text), text, to, place + strlen(from));
    free(text);
    return changed;
}

static void refused_text(char *text, const char *why) {
    struct ls_tokenizer *tokenizer;
    struct ls_error error = {0};
    assert_int_equal(ls_tokenizer_parse(text, strlen(text), "tokenizer.json", &tokenizer, &error), LS_DATA);
    if (!strstr(error.text, why)) fail_msg("not for %s: %s", why, error.text);
    free(text);
}

static void refused_of(const char *name, const char *from, const char *to, const char *why) {
    size_t count;
    refused_text(change(read_text(name, &count), from, to), why);
}

static void refused(const char *from, const char *to, const char *why) {
    refused_of("gpt2", from, to, why);
}

static void what_would_give_other_ids_is_refused(void **state) {
    (void)state;
    refused_of("llama3", "\"Regex\":\"", "\"Regex\":\"(?<=a)b|", "a pattern that looks behind");
    refused("\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}", "the normalizer 'Lowercase'");
    refused("\"normalizer\":null",
            "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"x\"},"
            "{\"type\":\"NFC\"}]}",
            "(NFC) behind another");
    refused("\"normalizer\":null",
            "\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"ab\"},\"content\":\"\"}",
            "not one character");
    refused("\"normalizer\":null",
            "\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"0123456789abcdef\"}",
            "more than 15 bytes");
    refused_of("qwen", "\"normalized\":false", "\"normalized\":true", "in text that it has changed");
    refused_of("words", "\"prepend_scheme\":\"always\"", "\"prepend_scheme\":\"often\"", "prepend_scheme 'often'");
    refused_of("words", "\"replacement\":\"\xe2\x96\x81\"", "\"replacement\":\"__\"", "replacement is not one");
    refused_of("words", "\"byte_fallback\":true", "\"byte_fallback\":false", "nor has it bytes as a fallback");
    refused_of("llama2", "\"<0x41>\":", "\"<0xzz>\":", "no token for the byte 0x41");
    refused_of("llama2", "\"merges\":[", "\"merges\":[[\"<0x41>\",\"a\"],", "a merge, number 0");
    size_t count;
    refused_text(change(change(read_text("llama2", &count), "\"merges\":[", "\"merges\":[[\"<0x41>\",\"a\"],"),
                        "\"vocab\":{", "\"vocab\":{\"<0x41>a\":1000,"),
                 "a merge, number 0");
    refused_of("llama2", "\"ignore_merges\":false", "\"ignore_merges\":true", "whole texts among its tokens");
    refused_of("llama2", "\"id\":2,", "\"id\":300,", "the id of '</s>' to another token too");
    refused_of("digits", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false",
               "{\"type\":\"ByteLevel\",\"add_prefix_space\":true", "in front of pieces");
    refused("\"dropout\":null", "\"dropout\":0.1", "dropout");
    refused("\"type\":\"BPE\"", "\"type\":\"Unigram\"", "a model 'Unigram'");
    refused("\"lstrip\":false", "\"lstrip\":true", "spaces around the added token '<|endoftext|>'");
    refused("\"pre_tokenizer\":{\"type\":\"ByteLevel\"", "\"pre_tokenizer\":{\"type\":\"Whitespace\"",
            "cuts text by 'Whitespace'");
    refused("\"pre_tokenizer\":{", "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[]},\"x\":{",
            "neither of the byte level");
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
        cmocka_unit_test(the_last_pieces_wait_for_what_follows),
        cmocka_unit_test(ids_do_not_wait_for_the_end),
        cmocka_unit_test(tokens_say_the_text_again),
        cmocka_unit_test(a_space_put_in_front_is_not_said),
        cmocka_unit_test(special_tokens_are_found_and_the_prefix_is_the_model_s),
        cmocka_unit_test(many_different_words_say_themselves),
        cmocka_unit_test(a_piece_may_be_long),
        cmocka_unit_test(what_would_give_other_ids_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
