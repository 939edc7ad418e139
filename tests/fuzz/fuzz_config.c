/* Any bytes as a configuration: it is refused with a usage error, or what it says survives being written and read
 * again. What follows a NUL byte is given as --set, since a file cannot hold one. */
/* covers: common/config.c common/config_rules.c common/config_write.c common/key_table.c common/yaml_tree.c */
#include "common/config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool fact) {
    if (!fact) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct ls_config config, again;
    struct ls_error error = {0};
    char *text = calloc(1, size + 1);
    require(text);
    if (size) memcpy(text, data, size);
    size_t length = strlen(text);
    const char *setting = length < size ? text + length + 1 : NULL;
    enum ls_code code = ls_config_parse(text, length, "fuzz.yaml", &setting, setting != NULL, &config, &error);
    require(code == LS_OK || (code == LS_USAGE && error.code == LS_USAGE && error.text[0]));
    if (code == LS_OK) {
        char *yaml, digest[33], digest_again[33];
        require(ls_config_write(&config, &yaml, &error) == LS_OK);
        require(ls_config_parse(yaml, strlen(yaml), "again.yaml", NULL, 0, &again, &error) == LS_OK);
        require(!memcmp(&config, &again, sizeof config));
        ls_config_digest(&config, digest);
        ls_config_digest(&again, digest_again);
        require(!strcmp(digest, digest_again));
        free(yaml);
        for (int64_t ranks = 0; ranks < 5; ranks++)
            require(ls_config_check_ranks(&config, ranks, &error) == LS_OK ||
                    (error.code == LS_USAGE && error.text[0]));
        require(ls_config_micro_batches(&config, config.train.global_batch_size, 1) > 0);
    }
    free(text);
    return 0;
}
