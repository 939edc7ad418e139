/* Datasets: opening the shards of a source, locating samples, and reading them with their document boundaries. */
#define _GNU_SOURCE
#include "common/dataset.h"
#include "common/dataset_json.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/token_shard.h"

#define XXH_STATIC_LINKING_ONLY /* for the layout of the streaming state */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static const char synthetic_prefix[] = "synthetic:";

struct shard {
    struct ls_token_shard tokens; /* file -1: synthetic */
    struct ls_shard_info info;
    int64_t first_sample;
    char *path; /* info's, to be freed */
};

struct ls_dataset {
    int64_t sequence_length, samples, tokens, documents, text_bytes;
    int64_t vocab_size, document_token;
    bool document_token_at_end;
    char tokenizer[PATH_MAX];
    size_t shard_count;
    struct shard *shards;
};

/* The names of the files a dataset is made of, in its order. */
struct names {
    char **items;
    size_t count;
};

static void free_names(struct names *names) {
    for (size_t i = 0; i < names->count; i++) free(names->items[i]);
    free(names->items);
    *names = (struct names){0};
}

static enum ls_code add_name(struct names *names, const char *name, const char *folder, struct ls_error *error) {
    if (names->count == LS_DATASET_SHARDS_MAX)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: %s has more than %d token files. Join some of them.",
                       folder, LS_DATASET_SHARDS_MAX);
    char **items = reallocarray(names->items, names->count + 1, sizeof *items);
    if (items) names->items = items;
    if (!items || !(items[names->count] = strdup(name)))
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the names of the files in %s", folder);
    names->count++;
    return LS_OK;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names in `folder` that match `pattern`, sorted by byte. */
static enum ls_code list_folder(const char *folder, const char *pattern, struct names *names, struct ls_error *error) {
    DIR *stream = opendir(folder);
    if (!stream)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: cannot open the folder %s: %s", folder, strerror(errno));
    enum ls_code code = LS_OK;
    bool prepared = false;
    for (struct dirent *entry; !code && (entry = readdir(stream));) {
        prepared |= strcmp(entry->d_name, "train") == 0;
        if (fnmatch(pattern, entry->d_name, FNM_PERIOD) == 0) code = add_name(names, entry->d_name, folder, error);
    }
    closedir(stream);
    if (code) return code;
    if (names->count == 0)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: %s has no %s and no file that matches '%s'. %s", folder,
                       LS_DATASET_JSON, pattern,
                       prepared ? "The dataset is in its folder 'train'; say so in the path."
                                : "Make a dataset with 'lockstep data prepare', or correct the path.");
    qsort(names->items, names->count, sizeof *names->items, compare_names);
    return LS_OK;
}

/* Each of them stays open. */
static enum ls_code refuse_count(const struct ls_dataset *dataset, const char *folder, struct ls_error *error) {
    struct rlimit limit = {0};
    getrlimit(RLIMIT_NOFILE, &limit);
    return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB,
                   "data: %s has %zu token files, and this process may have %llu files open (ulimit -n), others among "
                   "them. Raise its hard limit ('ulimit -Hn'), or join some of the files.",
                   folder, dataset->shard_count, (unsigned long long)limit.rlim_cur);
}

/* Fills dataset->shards[number] from the file `name` of the open folder. */
static enum ls_code open_shard(struct ls_dataset *dataset, size_t number, int folder, const char *folder_path,
                               const char *name, const struct ls_dataset_json *description, bool headerless,
                               struct ls_error *error) {
    struct shard *shard = &dataset->shards[number];
    if (asprintf(&shard->path, "%s/%s", folder_path, name) < 0) {
        shard->path = NULL;
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the name of %s", name);
    }
    errno = 0;
    /* Names out of dataset.json are data; names out of the folder itself may be links the user made. */
    int file = description ? ls_file_open_under(folder, name, LS_DATA, error)
                           : openat(folder, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0 && errno == EMFILE) return refuse_count(dataset, folder_path, error);
    if (file < 0 && description) return ls_fail_within(error, "data: %s", folder_path);
    if (file < 0)
        return ls_fail(error, ls_file_code(errno, LS_DATA), LS_SCOPE_JOB, "data: cannot open %s: %s", shard->path,
                       strerror(errno));
    shard->tokens.file = file;
    enum ls_code code = ls_token_shard_inspect(file, shard->path, headerless, &shard->tokens, error);
    if (code) return code;
    if (headerless && shard->tokens.token_bytes != 2)
        return ls_fail(
            error, LS_DATA, LS_SCOPE_JOB,
            "data: %s has a header that says %d bytes a token, its source says 'dtype: uint16'. Leave dtype out.",
            shard->path, shard->tokens.token_bytes);
    if (description && description->shards[number].tokens != shard->tokens.tokens)
        return ls_fail(
            error, LS_DATA, LS_SCOPE_JOB,
            "data: %s holds %lld tokens, %s says %lld. One of the two is of another dataset; copy both again.",
            shard->path, (long long)shard->tokens.tokens, LS_DATASET_JSON,
            (long long)description->shards[number].tokens);
    if (shard->tokens.magic != dataset->shards[0].tokens.magic)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "data: %s is of another kind (%d bytes a token) than %s. Keep one kind in a dataset.",
                       shard->path, shard->tokens.token_bytes, dataset->shards[0].path);
    snprintf(shard->info.name, sizeof shard->info.name, "%s", name);
    shard->info.path = shard->path;
    return LS_OK;
}

static enum ls_code make_shards(struct ls_dataset *dataset, size_t count, struct ls_error *error) {
    dataset->shards = calloc(count, sizeof *dataset->shards);
    if (!dataset->shards)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for a dataset of %zu shards", count);
    dataset->shard_count = count;
    for (size_t i = 0; i < count; i++) dataset->shards[i].tokens.file = -1;
    return LS_OK;
}

static enum ls_code open_shards(struct ls_dataset *dataset, const char *folder_path, const struct names *names,
                                const struct ls_dataset_json *description, bool headerless, struct ls_error *error) {
    enum ls_code code = make_shards(dataset, names->count, error);
    if (code) return code;
    int folder = open(folder_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: cannot open the folder %s: %s", folder_path,
                       strerror(errno));
    ls_files_allow(names->count);
    for (size_t i = 0; i < names->count && !code; i++)
        code = open_shard(dataset, i, folder, folder_path, names->items[i], description, headerless, error);
    close(folder);
    return code;
}

/* The vocabulary and document token that belong to the magic of the files. */
static void describe_by_magic(struct ls_dataset *dataset) {
    const int magic = dataset->shards[0].tokens.magic;
    dataset->document_token = -1;
    if (magic == LS_SHARD_MAGIC_UINT16) {
        dataset->vocab_size = 50257;
        dataset->document_token = 50256;
        strcpy(dataset->tokenizer, "gpt2");
    } else if (magic == LS_SHARD_MAGIC_UINT32) {
        dataset->vocab_size = 128256;
        dataset->document_token = 128000;
        strcpy(dataset->tokenizer, "llama3");
    }
}

static void describe_by_json(struct ls_dataset *dataset, const char *folder,
                             const struct ls_dataset_json *description) {
    for (size_t i = 0; i < dataset->shard_count; i++)
        memcpy(dataset->shards[i].info.xxh3, description->shards[i].xxh3, sizeof dataset->shards[i].info.xxh3);
    dataset->vocab_size = description->vocab_size;
    dataset->document_token = description->document_token;
    dataset->document_token_at_end = description->document_token_at_end;
    dataset->documents = description->documents;
    dataset->text_bytes = description->text_bytes;
    /* A file beside dataset.json is named from there. */
    const bool beside = strncmp(description->tokenizer, "./", 2) == 0;
    if (snprintf(dataset->tokenizer, sizeof dataset->tokenizer, "%s%s%s", beside ? folder : "", beside ? "/" : "",
                 description->tokenizer + (beside ? 2 : 0)) >= (int)sizeof dataset->tokenizer)
        dataset->tokenizer[0] = 0;
}

/* A folder whose dataset.json is `description` (in `path`). */
static enum ls_code open_described(struct ls_dataset *dataset, const char *path,
                                   const struct ls_dataset_json *description, bool headerless, struct ls_error *error) {
    struct names names = {0};
    enum ls_code code = LS_OK;
    for (size_t i = 0; i < description->shard_count && !code; i++)
        code = add_name(&names, description->shards[i].name, path, error);
    if (!code) code = open_shards(dataset, path, &names, description, headerless, error);
    if (!code) describe_by_json(dataset, path, description);
    free_names(&names);
    return code;
}

static enum ls_code open_folder(struct ls_dataset *dataset, const char *path, bool headerless, struct ls_error *error) {
    char json_path[PATH_MAX];
    if (snprintf(json_path, sizeof json_path, "%s/%s", path, LS_DATASET_JSON) >= (int)sizeof json_path)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: path too long: %.200s...", path);
    struct names names = {0};
    enum ls_code code;
    if (access(json_path, F_OK) == 0) {
        char *text;
        size_t bytes;
        code = ls_file_read(json_path, LS_DATASET_JSON_BYTES_MAX, &text, &bytes, LS_DATA, error);
        if (code) return code;
        struct ls_dataset_json description;
        code = ls_dataset_json_parse(text, bytes, json_path, &description, error);
        free(text);
        if (code) return code;
        code = open_described(dataset, path, &description, headerless, error);
        ls_dataset_json_free(&description);
        return code;
    }
    code = list_folder(path, "*.bin", &names, error);
    if (!code) code = open_shards(dataset, path, &names, NULL, headerless, error);
    if (!code) describe_by_magic(dataset);
    free_names(&names);
    return code;
}

/* A file, or the files that match a pattern: `path` is split at its last slash. */
static enum ls_code open_files(struct ls_dataset *dataset, const char *path, bool pattern, bool headerless,
                               struct ls_error *error) {
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/'), *last = slash ? slash + 1 : path;
    const int length = slash == path ? 1 : slash ? (int)(slash - path) : 0;
    if (length >= PATH_MAX) return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: path too long: %.200s...", path);
    snprintf(folder, sizeof folder, "%.*s", slash ? length : 1, slash ? path : ".");
    struct names names = {0};
    enum ls_code code = pattern ? list_folder(folder, last, &names, error) : add_name(&names, last, folder, error);
    if (!code) code = open_shards(dataset, folder, &names, NULL, headerless, error);
    if (!code) describe_by_magic(dataset);
    free_names(&names);
    return code;
}

static enum ls_code open_synthetic(struct ls_dataset *dataset, const char *path, struct ls_error *error) {
    const char *number = path + strlen(synthetic_prefix);
    char *end;
    errno = 0;
    const long long tokens = strtoll(number, &end, 10);
    if (errno || end == number || *end || *number < '0' || *number > '9' || tokens > INT64_MAX / 8)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "data: '%s' is not synthetic:TOKENS with a number of tokens, as in synthetic:1000000", path);
    enum ls_code code = make_shards(dataset, 1, error);
    if (code) return code;
    struct shard *shard = &dataset->shards[0];
    if (!(shard->path = strdup(path)))
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the name of %s", path);
    shard->tokens = (struct ls_token_shard){.file = -1, .token_bytes = 2, .tokens = tokens};
    strcpy(shard->info.name, "synthetic");
    shard->info.path = shard->path;
    dataset->vocab_size = 257;
    dataset->document_token = 256;
    dataset->text_bytes = tokens;
    strcpy(dataset->tokenizer, "byte");
    return LS_OK;
}

static enum ls_code open_source(struct ls_dataset *dataset, const struct ls_config_source *source,
                                struct ls_error *error) {
    const char *path = source->path, *slash = strrchr(path, '/');
    const bool headerless = strcmp(source->dtype, "uint16") == 0;
    if (source->dtype[0] && !headerless)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "data: dtype '%s' of %s is not known; uint16 is.", source->dtype,
                       path);
    const bool synthetic = strncmp(path, synthetic_prefix, strlen(synthetic_prefix)) == 0;
    if (synthetic && headerless)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "data: %s has no dtype. Leave it out.", path);
    if (synthetic) return open_synthetic(dataset, path, error);
    struct stat status;
    if (stat(path, &status) == 0)
        return S_ISDIR(status.st_mode) ? open_folder(dataset, path, headerless, error)
                                       : open_files(dataset, path, false, headerless, error);
    if (errno == ENOENT && strpbrk(slash ? slash + 1 : path, "*?["))
        return open_files(dataset, path, true, headerless, error);
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                   "data: cannot open %s: %s. Make the dataset with 'lockstep data prepare', or correct the path.",
                   path, strerror(errno));
}

/* What the source itself says goes before what was found. */
static enum ls_code apply_document_token(struct ls_dataset *dataset, const struct ls_config_source *source,
                                         struct ls_error *error) {
    if (source->document_token_id < 0) return LS_OK;
    if (dataset->vocab_size && source->document_token_id >= dataset->vocab_size)
        return ls_fail(
            error, LS_DATA, LS_SCOPE_JOB,
            "data: document_token %lld of %s is not one of the dataset's %lld ids. Correct it or leave it out.",
            (long long)source->document_token_id, source->path, (long long)dataset->vocab_size);
    dataset->document_token = source->document_token_id;
    dataset->document_token_at_end = source->document_token_at_end;
    return LS_OK;
}

/* Counts the samples of each shard, once all are open. */
static enum ls_code count_samples(struct ls_dataset *dataset, const char *path, struct ls_error *error) {
    const int64_t T = dataset->sequence_length;
    for (size_t i = 0; i < dataset->shard_count; i++) {
        struct shard *shard = &dataset->shards[i];
        struct ls_shard_info *info = &shard->info;
        info->tokens = shard->tokens.tokens;
        info->samples = info->tokens > 0 ? (info->tokens - 1) / T : 0;
        info->tail = info->tokens - (info->samples ? info->samples * T + 1 : 0);
        info->bytes = shard->tokens.bytes;
        info->mtime_nanoseconds = shard->tokens.mtime_nanoseconds;
        info->token_bytes = shard->tokens.token_bytes;
        shard->first_sample = dataset->samples;
        if (__builtin_add_overflow(dataset->tokens, info->tokens, &dataset->tokens))
            return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: %s has more than 2^63 tokens", path);
        dataset->samples += info->samples;
    }
    if (dataset->samples == 0)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "data: %s holds %lld tokens in %zu file(s), none of them the %lld that one sample of "
                       "data.sequence_length %lld needs. "
                       "Add text or make sequences shorter.",
                       path, (long long)dataset->tokens, dataset->shard_count, (long long)(T + 1), (long long)T);
    return LS_OK;
}

enum ls_code ls_dataset_open(const struct ls_config_source *source, int64_t sequence_length,
                             struct ls_dataset **dataset, struct ls_error *error) {
    assert(sequence_length >= 1);
    struct ls_dataset *opened = calloc(1, sizeof *opened);
    if (!opened) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the dataset %s", source->path);
    opened->sequence_length = sequence_length;
    enum ls_code code = open_source(opened, source, error);
    if (!code) code = apply_document_token(opened, source, error);
    if (!code) code = count_samples(opened, source->path, error);
    if (code)
        ls_dataset_close(opened);
    else
        *dataset = opened;
    return code;
}

void ls_dataset_close(struct ls_dataset *dataset) {
    if (!dataset) return;
    for (size_t i = 0; i < dataset->shard_count; i++) {
        if (dataset->shards[i].tokens.file >= 0) close(dataset->shards[i].tokens.file);
        free(dataset->shards[i].path);
    }
    free(dataset->shards);
    free(dataset);
}

int64_t ls_dataset_samples(const struct ls_dataset *dataset) {
    return dataset->samples;
}

int64_t ls_dataset_tokens(const struct ls_dataset *dataset) {
    return dataset->tokens;
}

int64_t ls_dataset_vocab_size(const struct ls_dataset *dataset) {
    return dataset->vocab_size;
}

int64_t ls_dataset_document_token(const struct ls_dataset *dataset) {
    return dataset->document_token;
}

bool ls_dataset_document_token_at_end(const struct ls_dataset *dataset) {
    return dataset->document_token_at_end;
}

int64_t ls_dataset_documents(const struct ls_dataset *dataset) {
    return dataset->documents;
}

int64_t ls_dataset_text_bytes(const struct ls_dataset *dataset) {
    return dataset->text_bytes;
}

double ls_dataset_bytes_per_token(const struct ls_dataset *dataset) {
    return (double)dataset->text_bytes / (double)dataset->tokens;
}

const char *ls_dataset_tokenizer(const struct ls_dataset *dataset) {
    return dataset->tokenizer;
}

size_t ls_dataset_shard_count(const struct ls_dataset *dataset) {
    return dataset->shard_count;
}

const struct ls_shard_info *ls_dataset_shard(const struct ls_dataset *dataset, size_t shard) {
    assert(shard < dataset->shard_count);
    return &dataset->shards[shard].info;
}

/* Over the shards; sequence_length 0: over what dataset.json says of their bytes, in place of T. */
static void digest(const struct ls_dataset *dataset, int64_t sequence_length, char digits[33]) {
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset(&state);
    const int64_t common[] = {sequence_length, dataset->vocab_size, dataset->document_token,
                              dataset->document_token_at_end, (int64_t)dataset->shard_count};
    XXH3_128bits_update(&state, common, sizeof common);
    for (size_t i = 0; i < dataset->shard_count; i++) {
        const struct shard *shard = &dataset->shards[i];
        const int64_t fields[] = {shard->tokens.magic, shard->tokens.token_bytes, shard->tokens.tokens,
                                  shard->tokens.bytes};
        XXH3_128bits_update(&state, shard->info.name, strlen(shard->info.name) + 1);
        XXH3_128bits_update(&state, fields, sizeof fields);
        if (sequence_length == 0) XXH3_128bits_update(&state, shard->info.xxh3, sizeof shard->info.xxh3);
    }
    XXH128_hash_t hash = XXH3_128bits_digest(&state);
    ls_digest_format((struct ls_digest){.low = hash.low64, .high = hash.high64}, digits);
}

void ls_dataset_digest(const struct ls_dataset *dataset, char digits[33]) {
    digest(dataset, dataset->sequence_length, digits);
}

void ls_dataset_content_digest(const struct ls_dataset *dataset, char digits[33]) {
    digest(dataset, 0, digits);
}

void ls_dataset_locate(const struct ls_dataset *dataset, int64_t sample, uint32_t *shard, uint64_t *index) {
    assert(sample >= 0 && sample < dataset->samples);
    /* The last shard that begins at or before the sample; shards without samples begin where the next one does. */
    size_t low = 0, high = dataset->shard_count;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (dataset->shards[middle].first_sample <= sample)
            low = middle;
        else
            high = middle;
    }
    *shard = (uint32_t)low;
    *index = (uint64_t)(sample - dataset->shards[low].first_sample);
}

/* Token `position` of the synthetic dataset: SplitMix64's output function of it. The two bytes it is made of are
 * and-ed, which gives small values more weight, so that there is something to learn. */
static int32_t synthetic_token(int64_t position) {
    uint64_t z = ((uint64_t)position + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (int32_t)(z & z >> 8 & 0xff);
}

enum ls_code ls_dataset_read_tokens(const struct ls_dataset *dataset, size_t number, int64_t first, int64_t count,
                                    int32_t *tokens, struct ls_error *error) {
    const struct shard *shard = &dataset->shards[number];
    assert(number < dataset->shard_count && first >= 0 && count >= 1 && first + count <= shard->tokens.tokens);
    if (shard->tokens.file >= 0) return ls_token_shard_read(&shard->tokens, shard->path, first, count, tokens, error);
    for (int64_t i = 0; i < count; i++) tokens[i] = synthetic_token(first + i);
    return LS_OK;
}

/* The same, with ids checked. */
static enum ls_code read_known_tokens(const struct ls_dataset *dataset, size_t number, int64_t first, int64_t count,
                                      int64_t vocab, int32_t *tokens, struct ls_error *error) {
    enum ls_code code = ls_dataset_read_tokens(dataset, number, first, count, tokens, error);
    if (code) return code;
    int32_t largest = 0;
    for (int64_t i = 0; i < count; i++) largest = tokens[i] > largest ? tokens[i] : largest;
    if (largest < vocab) return LS_OK;
    int64_t offset = 0;
    while (tokens[offset] < vocab) offset++;
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                   "data: token %lld of %s is %d, the model's vocabulary has %lld. Set model.vocab_size to the "
                   "tokenizer's, or prepare the text again.",
                   (long long)(first + offset), dataset->shards[number].path, tokens[offset], (long long)vocab);
}

enum ls_code ls_dataset_read(const struct ls_dataset *dataset, int64_t sample, int64_t vocab, bool document_mask,
                             int32_t *inputs, int32_t *targets, int32_t *document_start, struct ls_error *error) {
    const int64_t T = dataset->sequence_length;
    uint32_t number;
    uint64_t index;
    ls_dataset_locate(dataset, sample, &number, &index);
    const int64_t first = (int64_t)index * T;
    enum ls_code code = read_known_tokens(dataset, number, first, T, vocab, inputs, error);
    if (!code) code = read_known_tokens(dataset, number, first + T, 1, vocab, &targets[T - 1], error);
    if (code) return code;
    memcpy(targets, inputs + 1, (size_t)(T - 1) * sizeof *targets);
    const bool at_end = dataset->document_token_at_end;
    int32_t start = 0;
    for (int64_t t = 0; t < T; t++) {
        /* Position t is the first of its document, or the target of position t is the first of the next one. */
        const bool opens =
            at_end ? t > 0 && inputs[t - 1] == dataset->document_token : inputs[t] == dataset->document_token;
        const bool last = (at_end ? inputs[t] : targets[t]) == dataset->document_token;
        if (opens && document_mask) start = (int32_t)t;
        document_start[t] = start;
        if (last) targets[t] = -1;
    }
    return LS_OK;
}

enum ls_code ls_dataset_scan(const struct ls_dataset *dataset, size_t shard, int64_t vocab, struct ls_digest *hash,
                             bool (*progress)(void *context, int64_t bytes), void *context, struct ls_error *error) {
    const struct shard *scanned = &dataset->shards[shard];
    assert(scanned->tokens.file >= 0);
    return ls_token_shard_scan(&scanned->tokens, scanned->path, vocab, hash, progress, context, error);
}
