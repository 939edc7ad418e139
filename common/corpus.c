/* Opening the datasets of a configuration, and what follows from them together. */
#define _GNU_SOURCE
#include "common/corpus.h"

#include "common/digest.h"
#include "common/key_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { CONTENT_BYTES = 32 }; /* digits of a digest */

static enum ls_code open_sources(const struct ls_config_source *sources, int count, int64_t sequence_length,
                                 struct ls_dataset **datasets, int *opened, struct ls_error *error) {
    for (int i = 0; i < count; i++) {
        enum ls_code code = ls_dataset_open(&sources[i], sequence_length, &datasets[i], error);
        if (code != LS_OK) return code;
        *opened = i + 1;
    }
    return LS_OK;
}

static enum ls_code make_order(struct ls_corpus *corpus, const struct ls_config *config, struct ls_error *error) {
    uint64_t samples[LS_CONFIG_SOURCES_MAX], weights[LS_CONFIG_SOURCES_MAX] = {0};
    for (int i = 0; i < corpus->train_count; i++) {
        samples[i] = (uint64_t)ls_dataset_samples(corpus->train[i]);
        weights[i] = (uint64_t)config->data.train[i].weight;
    }
    enum ls_code code = ls_order_create(config->data.seed, samples, weights[0] ? weights : NULL, corpus->train_count,
                                        &corpus->order, error);
    if (code == LS_OK) corpus->epoch_length = ls_order_epoch_length(corpus->order);
    return code;
}

static void digest_text(const char *text, size_t length, char digest[33]) {
    XXH128_hash_t hash = XXH3_128bits(text, length);
    ls_digest_format((struct ls_digest){.low = hash.low64, .high = hash.high64}, digest);
}

/* Over what the datasets of data.train hold, and the keys that say what the order makes of them. */
static enum ls_code digest_train(struct ls_corpus *corpus, const struct ls_config *config, struct ls_error *error) {
    char *all = NULL, content[33];
    size_t bytes = 0;
    FILE *out = open_memstream(&all, &bytes);
    if (!out) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to open the datasets");
    for (int i = 0; i < corpus->train_count; i++) {
        ls_dataset_content_digest(corpus->train[i], content);
        fprintf(out, "%s\n", content);
    }
    for (int i = 0; i < ls_config_keys.count; i++) {
        const struct ls_key *key = &ls_config_keys.keys[i];
        if (!ls_key_is_of_data(key)) continue;
        fputs(key->name, out);
        ls_key_write_value(out, key, config, true);
        fputc('\n', out);
    }
    const bool failed = fclose(out) != 0;
    if (!failed) digest_text(all, bytes, corpus->train_digest);
    free(all);
    return failed ? ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to open the datasets") : LS_OK;
}

/* Sums, the vocabulary and the digests. */
static enum ls_code summarise(struct ls_corpus *corpus, const struct ls_config *config, struct ls_error *error) {
    char text[(2 * LS_CONFIG_SOURCES_MAX + 2) * 34 + 32];
    char contents[LS_CONFIG_SOURCES_MAX * CONTENT_BYTES + 1] = "";
    size_t length = 0;
    double validation_tokens = 0, validation_bytes = 0;
    for (int part = 0; part < 2; part++) {
        int count = part ? corpus->validation_count : corpus->train_count;
        struct ls_dataset **datasets = part ? corpus->validation : corpus->train;
        length += (size_t)snprintf(text + length, sizeof text - length, "%s\n", part ? "validation" : "train");
        for (int i = 0; i < count; i++) {
            char digest[33];
            ls_dataset_digest(datasets[i], digest);
            length += (size_t)snprintf(text + length, sizeof text - length, "%s\n", digest);
            int64_t vocab = ls_dataset_vocab_size(datasets[i]);
            if (vocab > corpus->vocab_size) corpus->vocab_size = vocab;
            *(part ? &corpus->validation_samples : &corpus->train_samples) += ls_dataset_samples(datasets[i]);
            if (!part) continue;
            ls_dataset_content_digest(datasets[i], contents + (size_t)i * CONTENT_BYTES);
            double tokens = (double)ls_dataset_tokens(datasets[i]);
            validation_tokens += tokens;
            validation_bytes += tokens * ls_dataset_bytes_per_token(datasets[i]);
            if (ls_dataset_bytes_per_token(datasets[i]) <= 0) validation_bytes = -1e300;
        }
    }
    if (validation_tokens > 0 && validation_bytes > 0)
        corpus->validation_bytes_per_token = validation_bytes / validation_tokens;
    digest_text(text, length, corpus->digest);
    digest_text(contents, (size_t)corpus->validation_count * CONTENT_BYTES, corpus->validation_digest);
    return digest_train(corpus, config, error);
}

enum ls_code ls_corpus_open(const struct ls_config *config, struct ls_corpus **result, struct ls_error *error) {
    struct ls_corpus *corpus = calloc(1, sizeof *corpus);
    if (!corpus) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to open the datasets");
    int64_t length = config->data.sequence_length;
    enum ls_code code =
        open_sources(config->data.train, config->data.train_count, length, corpus->train, &corpus->train_count, error);
    if (code == LS_OK)
        code = open_sources(config->data.validation, config->data.validation_count, length, corpus->validation,
                            &corpus->validation_count, error);
    if (code == LS_OK) code = make_order(corpus, config, error);
    if (code == LS_OK) code = summarise(corpus, config, error);
    if (code != LS_OK) {
        ls_corpus_close(corpus);
        return code;
    }
    *result = corpus;
    return LS_OK;
}

void ls_corpus_close(struct ls_corpus *corpus) {
    if (!corpus) return;
    for (int i = 0; i < corpus->train_count; i++) ls_dataset_close(corpus->train[i]);
    for (int i = 0; i < corpus->validation_count; i++) ls_dataset_close(corpus->validation[i]);
    ls_order_destroy(corpus->order);
    free(corpus);
}

enum ls_code ls_corpus_list(const struct ls_corpus *corpus, const struct ls_config *config, char **text,
                            struct ls_error *error) {
    char digest[33];
    size_t bytes;
    FILE *out = open_memstream(text, &bytes);
    if (!out) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to list the datasets");
    for (int i = 0; i < corpus->train_count; i++) {
        ls_dataset_digest(corpus->train[i], digest);
        fprintf(out, "%s %s\n", digest, config->data.train[i].path);
    }
    for (int i = 0; i < corpus->validation_count; i++) {
        ls_dataset_digest(corpus->validation[i], digest);
        fprintf(out, "%s %s\n", digest, config->data.validation[i].path);
    }
    if (fclose(out) == 0) return LS_OK;
    free(*text);
    return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to list the datasets");
}

enum ls_code ls_corpus_list_train(const struct ls_corpus *corpus, const struct ls_config *config, char **text,
                                  struct ls_error *error) {
    char digest[33];
    size_t bytes;
    FILE *out = open_memstream(text, &bytes);
    if (!out) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to list the datasets");
    for (int i = 0; i < corpus->train_count; i++) {
        ls_dataset_content_digest(corpus->train[i], digest);
        fprintf(out, "%s %lld %s\n", digest, (long long)ls_dataset_samples(corpus->train[i]),
                config->data.train[i].path);
    }
    if (fclose(out) == 0) return LS_OK;
    free(*text);
    return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to list the datasets");
}

enum ls_code ls_corpus_resolve_vocab(const struct ls_corpus *corpus, struct ls_config *config, struct ls_error *error) {
    int64_t vocab = corpus->vocab_size;
    if (config->model.vocab_size == 0) config->model.vocab_size = vocab;
    if (config->model.vocab_size == 0)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "model.vocab_size is not given, and no dataset says how many ids its tokenizer has. Set model.vocab_size.");
    if (config->model.vocab_size < vocab && config->model.init_from[0])
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "model.vocab_size is %lld, as model.init_from has it, the datasets have %lld token ids. Their "
                       "ids have to be those of that model's tokenizer: name datasets that were made with it.",
                       (long long)config->model.vocab_size, (long long)vocab);
    if (config->model.vocab_size < vocab)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "model.vocab_size is %lld, the datasets have %lld token ids. Set model.vocab_size: %lld, or leave it out.",
            (long long)config->model.vocab_size, (long long)vocab, (long long)vocab);
    return LS_OK;
}

enum ls_code ls_corpus_end(const struct ls_corpus *corpus, const struct ls_config *config, int64_t *total_steps,
                           uint64_t *end_position, struct ls_error *error) {
    const uint64_t most = UINT64_C(1) << 60;
    uint64_t batch = (uint64_t)config->train.global_batch_size, epochs = (uint64_t)config->train.epochs;
    if (config->train.steps > 0) {
        if ((uint64_t)config->train.steps > most / batch)
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "train.steps x train.global_batch_size is beyond 2^60 sequences. Lower one.");
        *total_steps = config->train.steps;
        *end_position = UINT64_MAX;
        return LS_OK;
    }
    if (corpus->epoch_length == 0)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "train.epochs has no meaning for data.train with weights: an epoch is not defined. Give train.steps.");
    if (epochs > most / corpus->epoch_length)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "train.epochs: %llu epochs are beyond 2^60 sequences. Lower it.",
                       (unsigned long long)epochs);
    *end_position = epochs * corpus->epoch_length;
    *total_steps = (int64_t)((*end_position + batch - 1) / batch);
    return LS_OK;
}
