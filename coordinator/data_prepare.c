/* Preparing a dataset in two passes: the first counts documents and text, the second writes them. */
#define _GNU_SOURCE
#include "coordinator/data_prepare.h"

#include "common/files.h"
#include "common/tokenizer.h"
#include "coordinator/data_progress.h"
#include "coordinator/shard_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* What a pass over all inputs has met. */
struct counts {
    int64_t documents, bytes;
};

/* Where validation begins: at a document, or at a byte of the only one. */
struct cut {
    int64_t document, byte;
};

struct pass {
    struct counts counts;
    struct ls_data_progress progress;
    struct cut cut;
    int64_t line_end_before,
        line_end_after; /* around cut.byte: bytes up to and with a newline; 0, INT64_MAX: none met */
    struct ls_shard_writer *train, *validation;
    struct ls_shard_tokenizer tokenizer;
};

static enum ls_code advance(struct pass *pass, size_t count, struct ls_error *error) {
    pass->counts.bytes += (int64_t)count;
    if (ls_data_progress_add(&pass->progress, (int64_t)count)) return LS_OK;
    return ls_fail(error, LS_STOPPED, LS_SCOPE_CALL, "stopped; nothing was written to the output folder");
}

static enum ls_code visit_all(const struct ls_data_prepare_options *options, const struct ls_text_splitter *splitter,
                              const char *what, int64_t total, ls_text_visit visit, struct pass *pass,
                              struct ls_error *error) {
    pass->counts = (struct counts){0};
    pass->progress = ls_data_progress_start(what, total);
    enum ls_code code = LS_OK;
    for (int i = 0; i < options->input_count && !code; i++)
        code = ls_text_read(options->inputs[i], options->format, options->json_key, splitter, visit, pass, error);
    ls_data_progress_end(&pass->progress);
    return code;
}

static enum ls_code count_piece(void *context, const char *bytes, size_t count, bool starts_document,
                                struct ls_error *error) {
    struct pass *pass = context;
    (void)bytes;
    pass->counts.documents += starts_document;
    return advance(pass, count, error);
}

/* Looks for the line ends around cut.byte. */
static enum ls_code find_line_ends(void *context, const char *bytes, size_t count, bool starts_document,
                                   struct ls_error *error) {
    struct pass *pass = context;
    (void)starts_document;
    const int64_t offset = pass->counts.bytes,
                  before = pass->cut.byte - offset; /* bytes of this piece before the cut */
    const size_t first_part = before <= 0 ? 0 : (uint64_t)before < count ? (size_t)before : count;
    const char *last = memrchr(bytes, '\n', first_part), *next = memchr(bytes + first_part, '\n', count - first_part);
    if (last) pass->line_end_before = offset + (last - bytes) + 1;
    if (next && pass->line_end_after == INT64_MAX) pass->line_end_after = offset + (next - bytes) + 1;
    return advance(pass, count, error);
}

/* Decides where validation begins. `counts` is what the first pass met. */
static enum ls_code choose_cut(const struct ls_data_prepare_options *options, const struct ls_text_splitter *splitter,
                               const struct counts *counts, struct pass *pass, struct ls_error *error) {
    pass->cut = (struct cut){INT64_MAX, INT64_MAX};
    if (options->validation == 0) return LS_OK;
    if (counts->documents > 1) {
        int64_t validation = llround((double)counts->documents * options->validation);
        validation = validation < 1 ? 1 : validation >= counts->documents ? counts->documents - 1 : validation;
        pass->cut.document = counts->documents - validation;
        return LS_OK;
    }
    int64_t validation = llround((double)counts->bytes * options->validation);
    if (validation < 1) validation = 1;
    if (validation >= counts->bytes)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "data: %lld bytes of text are too few to split off validation. Add text, or say --validation 0.",
                       (long long)counts->bytes);
    pass->cut.byte = counts->bytes - validation;
    pass->line_end_before = 0;
    pass->line_end_after = INT64_MAX;
    enum ls_code code =
        visit_all(options, splitter, "looking for a line end", counts->bytes, find_line_ends, pass, error);
    if (code) return code;
    /* At the first line end from there on, unless nothing would be left; a text without lines is cut where it is. */
    if (pass->line_end_before == pass->cut.byte) return LS_OK;
    if (pass->line_end_after < counts->bytes)
        pass->cut.byte = pass->line_end_after;
    else if (pass->line_end_before > 0)
        pass->cut.byte = pass->line_end_before;
    return LS_OK;
}

static enum ls_code write_piece(void *context, const char *bytes, size_t count, bool starts_document,
                                struct ls_error *error) {
    struct pass *pass = context;
    pass->counts.documents += starts_document;
    enum ls_code code = advance(pass, count, error);
    if (code) return code;
    if (pass->counts.documents > pass->cut.document)
        return ls_shard_writer_add(pass->validation, bytes, count, starts_document, error);
    /* Of the only document, the part from the cut on is a document of its own in validation. */
    const int64_t after = pass->counts.bytes - pass->cut.byte;
    const size_t second = after <= 0 ? 0 : (uint64_t)after < count ? (size_t)after : count;
    if (second < count) code = ls_shard_writer_add(pass->train, bytes, count - second, starts_document, error);
    if (!code && second > 0)
        code = ls_shard_writer_add(pass->validation, bytes + (count - second), second, (int64_t)second == after, error);
    return code;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status, (void)kind, (void)place;
    remove(path);
    return 0;
}

static void remove_folder(const char *path) {
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* Refuses early what the disk cannot hold: 2 bytes a token. How many tokens a tokenizer makes is not known before. */
static enum ls_code check_space(const char *folder, const struct counts *counts, bool bytes, struct ls_error *error) {
    struct statvfs system;
    if (!bytes || statvfs(folder, &system)) return LS_OK; /* writing will tell */
    const uint64_t needed = 2 * (uint64_t)(counts->bytes + counts->documents),
                   space = (uint64_t)system.f_bavail * system.f_frsize;
    if (needed <= space) return LS_OK;
    return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                   "data: the tokens need %llu MB, the disk of %s has %llu MB left. Make room, or write elsewhere.",
                   (unsigned long long)(needed / 1000000 + 1), folder, (unsigned long long)(space / 1000000));
}

static enum ls_code write_splits(const struct ls_data_prepare_options *options, const struct ls_text_splitter *splitter,
                                 const char *folder, const struct counts *counts, struct pass *pass,
                                 struct ls_error *error) {
    char train[PATH_MAX], validation[PATH_MAX];
    if (snprintf(train, sizeof train, "%s/train", folder) >= (int)sizeof train ||
        snprintf(validation, sizeof validation, "%s/validation", folder) >= (int)sizeof validation)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "the path %.200s... is too long", folder);
    enum ls_code code =
        ls_shard_writer_create(train, "train", options->shard_tokens, &pass->tokenizer, &pass->train, error);
    if (!code && options->validation > 0)
        code = ls_shard_writer_create(validation, "validation", options->shard_tokens, &pass->tokenizer,
                                      &pass->validation, error);
    if (!code) code = visit_all(options, splitter, "writing", counts->bytes, write_piece, pass, error);
    if (!code && (pass->counts.documents != counts->documents || pass->counts.bytes != counts->bytes))
        code = ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "data: the text changed while it was read: %lld bytes at first, then %lld. Try again when "
                       "nobody writes to it.",
                       (long long)counts->bytes, (long long)pass->counts.bytes);
    if (!code) code = ls_shard_writer_finish(pass->train, error);
    if (!code && pass->validation) code = ls_shard_writer_finish(pass->validation, error);
    return code;
}

static void print_split(const char *output, const char *name, const struct ls_shard_writer *writer) {
    if (!writer) return;
    const struct ls_shard_writer_totals totals = ls_shard_writer_totals(writer);
    printf("%s/%s: %lld tokens, %lld bytes of text, %lld document%s, %zu shard%s\n", output, name,
           (long long)totals.tokens, (long long)totals.text_bytes, (long long)totals.documents,
           totals.documents == 1 ? "" : "s", totals.shards, totals.shards == 1 ? "" : "s");
}

/* Gives the finished folder its name, unless something got that name meanwhile. */
static enum ls_code publish(const char *folder, const char *output, const char *parent, struct ls_error *error) {
    enum ls_code code = ls_folder_sync(folder, LS_DATA, error);
    if (code) return code;
    int failed = renameat2(AT_FDCWD, folder, AT_FDCWD, output, RENAME_NOREPLACE);
    if (failed && errno == EINVAL) failed = rename(folder, output); /* a file system without the flag */
    if (failed)
        return ls_fail(error, errno == EEXIST ? LS_USAGE : LS_DATA, LS_SCOPE_CALL,
                       "data: cannot rename %s to %s: %s. Choose another -o.", folder, output, strerror(errno));
    return ls_folder_sync(parent, LS_DATA, error);
}

/* Where the dataset is built: a hidden folder beside the output. */
static enum ls_code name_folders(const char *output, char parent[PATH_MAX], char folder[PATH_MAX],
                                 struct ls_error *error) {
    const char *slash = strrchr(output, '/'), *name = slash ? slash + 1 : output;
    const int length = !slash ? 1 : slash == output ? 1 : (int)(slash - output);
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "-o '%s' does not end in the name of a folder", output);
    if (snprintf(parent, PATH_MAX, "%.*s", length, slash ? output : ".") >= PATH_MAX ||
        snprintf(folder, PATH_MAX, "%s/.%s.preparing-%ld", parent, name, (long)getpid()) >= PATH_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "the path %.200s... is too long", output);
    return LS_OK;
}

/* The passes, with the output known not to exist. */
static enum ls_code prepare(const struct ls_data_prepare_options *options, const struct ls_text_splitter *splitter,
                            const struct ls_shard_tokenizer *tokenizer, const char *output, struct ls_error *error) {
    char parent[PATH_MAX], folder[PATH_MAX];
    enum ls_code code = name_folders(output, parent, folder, error);
    if (code) return code;
    struct pass pass = {.tokenizer = *tokenizer};
    code = visit_all(options, splitter, "reading", 0, count_piece, &pass, error);
    const struct counts counts = pass.counts;
    if (!code && counts.documents == 0)
        code = ls_fail(error, LS_DATA, LS_SCOPE_CALL, "data: there is no text in %s%s. Name files that have some.",
                       options->inputs[0], options->input_count > 1 ? " and the other inputs" : "");
    if (!code) code = choose_cut(options, splitter, &counts, &pass, error);
    if (!code) code = ls_folder_make(parent, LS_DATA, error);
    if (!code) code = check_space(parent, &counts, !tokenizer->encoder, error);
    if (code) return code;
    if (mkdir(folder, 0777))
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "data: cannot make the folder %s: %s. Choose another place with -o.", folder, strerror(errno));
    code = write_splits(options, splitter, folder, &counts, &pass, error);
    if (!code) code = publish(folder, output, parent, error);
    if (!code) {
        print_split(output, "train", pass.train);
        print_split(output, "validation", pass.validation);
    }
    ls_shard_writer_destroy(pass.train);
    ls_shard_writer_destroy(pass.validation);
    if (code) remove_folder(folder);
    return code;
}

/* The token that begins a document, *name: the one that was asked for, or the first of those that models use for it. */
static enum ls_code choose_document_token(const struct ls_data_prepare_options *options,
                                          struct ls_shard_tokenizer *tokenizer, const char **name,
                                          struct ls_error *error) {
    static const char *const usual[] = {"<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<s>", "</s>"};
    const char *const *names = options->document_token ? &options->document_token : usual;
    const size_t count = options->document_token ? 1 : sizeof usual / sizeof *usual;
    for (size_t i = 0; i < count; i++) {
        *name = names[i];
        tokenizer->document_token = ls_tokenizer_find(tokenizer->encoder, names[i]);
        if (tokenizer->document_token >= 0) return LS_OK;
    }
    return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                   options->document_token ? "the tokenizer %s has no token '%s'. Give --document-token one it has."
                                           : "the tokenizer %s has none of the tokens that usually begin a document%s. "
                                             "Name one with --document-token.",
                   options->tokenizer, options->document_token ? options->document_token : "");
}

/* The tokenizer and its files, the caller's even after an error. */
static enum ls_code read_tokenizer(const struct ls_data_prepare_options *options, struct ls_shard_tokenizer *tokenizer,
                                   struct ls_error *error) {
    static const char name[] = "tokenizer.json", config_name[] = "tokenizer_config.json";
    char path[PATH_MAX], config[PATH_MAX + sizeof config_name];
    struct stat status;
    const bool folder = stat(options->tokenizer, &status) == 0 && S_ISDIR(status.st_mode);
    if (snprintf(path, sizeof path, "%s%s%s", options->tokenizer, folder ? "/" : "", folder ? name : "") >=
        (int)sizeof path)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "the path %.200s... is too long", options->tokenizer);
    enum ls_code code =
        ls_file_read(path, LS_TOKENIZER_JSON_BYTES_MAX, &tokenizer->json, &tokenizer->json_bytes, LS_DATA, error);
    if (code)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "--tokenizer %s: %s. It is 'byte', a tokenizer.json, or a folder that has one.",
                       options->tokenizer, error->text);
    const size_t base = strrchr(path, '/') ? (size_t)(strrchr(path, '/') - path) + 1 : 0;
    snprintf(config, sizeof config, "%.*s%s", (int)base, path, config_name);
    const char *document = "";
    code = ls_tokenizer_parse(tokenizer->json, tokenizer->json_bytes, path, &tokenizer->encoder, error);
    if (!code) code = choose_document_token(options, tokenizer, &document, error);
    if (code || (strcmp(path + base, name) == 0 && ls_file_read(config, LS_TOKENIZER_JSON_BYTES_MAX, &tokenizer->config,
                                                                &tokenizer->config_bytes, LS_DATA, NULL) == LS_OK))
        return code;
    code = ls_tokenizer_config_write(document, &tokenizer->config, error);
    if (!code) tokenizer->config_bytes = strlen(tokenizer->config);
    return code;
}

enum ls_code ls_data_prepare(const struct ls_data_prepare_options *options, struct ls_error *error) {
    char output[PATH_MAX];
    struct stat status;
    if (snprintf(output, sizeof output, "%s", options->output) >= (int)sizeof output)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "the path %.200s... is too long", options->output);
    for (size_t length = strlen(output); length > 1 && output[length - 1] == '/';) output[--length] = 0;
    if (lstat(output, &status) == 0)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "%s exists already, and nothing is overwritten. Remove it, or choose another folder with -o.",
                       output);
    struct ls_text_splitter *splitter = NULL;
    struct ls_shard_tokenizer tokenizer = {0};
    enum ls_code code = options->split_on ? ls_text_splitter_create(options->split_on, &splitter, error) : LS_OK;
    if (!code && options->tokenizer) code = read_tokenizer(options, &tokenizer, error);
    if (!code) code = prepare(options, splitter, &tokenizer, output, error);
    ls_text_splitter_destroy(splitter);
    ls_tokenizer_destroy(tokenizer.encoder);
    free(tokenizer.json);
    free(tokenizer.config);
    return code;
}
