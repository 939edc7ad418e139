/* The byte tokenizer's tokenizer.json. */
#include "common/byte_tokenizer.h"

#include <jansson.h>
#include <string.h>

/* The byte-level alphabet of GPT-2: printable bytes of Latin-1 stand for themselves, the others, in order, for the
 * characters from U+0100 on. Fills text[256][3] with UTF-8. */
static void make_alphabet(char text[256][3]) {
    unsigned next = 256;
    for (unsigned byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        unsigned character = printable ? byte : next++;
        if (character < 128) {
            text[byte][0] = (char)character;
            text[byte][1] = 0;
        } else {
            text[byte][0] = (char)(0xc0 | character >> 6);
            text[byte][1] = (char)(0x80 | (character & 63));
        }
        text[byte][2] = 0;
    }
}

static json_t *make_vocabulary(void) {
    char alphabet[256][3];
    json_t *vocabulary = json_object();
    make_alphabet(alphabet);
    for (int byte = 0; byte < 256; byte++)
        if (json_object_set_new(vocabulary, alphabet[byte], json_integer(byte))) {
            json_decref(vocabulary);
            return NULL;
        }
    if (json_object_set_new(vocabulary, LS_BYTE_TEXT_DOCUMENT, json_integer(LS_BYTE_TOKEN_DOCUMENT))) {
        json_decref(vocabulary);
        return NULL;
    }
    return vocabulary;
}

static enum ls_code dump(json_t *root, char **json, struct ls_error *error) {
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (!text) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer.json: no memory");
    *json = text;
    return LS_OK;
}

enum ls_code ls_byte_tokenizer_write(char **json, struct ls_error *error) {
    json_t *added =
        json_pack("[{s:i,s:s,s:b,s:b,s:b,s:b,s:b}]", "id", LS_BYTE_TOKEN_DOCUMENT, "content", LS_BYTE_TEXT_DOCUMENT,
                  "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1);
    json_t *splitter =
        json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0);
    json_t *decoder =
        json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0);
    json_t *model = json_pack("{s:s,s:n,s:n,s:n,s:n,s:b,s:b,s:b,s:o,s:[]}", "type", "BPE", "dropout", "unk_token",
                              "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
                              "ignore_merges", 0, "vocab", make_vocabulary(), "merges");
    return dump(json_pack("{s:s,s:n,s:n,s:o,s:n,s:o,s:n,s:o,s:o}", "version", "1.0", "truncation", "padding",
                          "added_tokens", added, "normalizer", "pre_tokenizer", splitter, "post_processor", "decoder",
                          decoder, "model", model),
                json, error);
}

static bool splits_bytes(const json_t *splitter) {
    const char *type = json_string_value(json_object_get(splitter, "type"));
    return type && strcmp(type, "ByteLevel") == 0 && json_is_false(json_object_get(splitter, "add_prefix_space"));
}

bool ls_byte_tokenizer_matches(const char *json, size_t count) {
    json_t *root = json_loadb(json, count, JSON_REJECT_DUPLICATES, NULL), *vocabulary = make_vocabulary();
    const json_t *model = json_object_get(root, "model"), *normalizer = json_object_get(root, "normalizer");
    const json_t *merges = json_object_get(model, "merges");
    bool same = vocabulary && json_equal(json_object_get(model, "vocab"), vocabulary) && json_is_array(merges) &&
                json_array_size(merges) == 0 && (!normalizer || json_is_null(normalizer)) &&
                splits_bytes(json_object_get(root, "pre_tokenizer"));
    json_decref(vocabulary);
    json_decref(root);
    return same;
}
