/* Any bytes as the config.json and the tokenizer.json of a model folder: refused, or what was understood can be written
 * and read again. covers: common/hf_config.c common/byte_tokenizer.c */
#include "common/byte_tokenizer.h"
#include "common/hf_config.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool fact) {
    if (!fact) abort();
}

static void try_config(const uint8_t *data, size_t size) {
    static struct ls_config config, again;
    struct ls_error error = {0};
    struct ls_hf_tokens tokens, tokens_again;
    char *json;
    enum ls_code code = ls_hf_config_parse((const char *)data, size, &config, &tokens, &error);
    require(code == LS_OK || (code == LS_CHECKPOINT && error.code == code && error.text[0]));
    if (code) return;
    int64_t document = tokens.end_count ? tokens.ends[0] : -1;
    require(config.model.num_attention_heads % config.model.num_key_value_heads == 0);
    require(ls_hf_config_write(&config, document, &json, &error) == LS_OK);
    require(ls_hf_config_parse(json, strlen(json), &again, &tokens_again, &error) == LS_OK);
    require(!memcmp(&config.model, &again.model, sizeof config.model));
    require(document < 0 || tokens_again.ends[0] == document);
    free(json);
}

static void try_tokenizer(const uint8_t *data, size_t size) {
    struct ls_error error = {0};
    char *json;
    ls_byte_tokenizer_matches((const char *)data, size);
    require(ls_byte_tokenizer_write(&json, &error) == LS_OK);
    require(ls_byte_tokenizer_matches(json, strlen(json)));
    free(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    try_config(data, size);
    try_tokenizer(data, size);
    return 0;
}
