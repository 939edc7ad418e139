/* `lockstep generate`. */
#define _GNU_SOURCE
#include "coordinator/command_generate.h"

#include "common/byte_tokenizer.h"
#include "common/config.h"
#include "common/encoding.h"
#include "common/files.h"
#include "common/hf_config.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "coordinator/command_line.h"
#include "worker/checkpoint/load.h"
#include "worker/device/device.h"
#include "worker/model/inference.h"
#include "worker/model/model.h"
#include "worker/model/sampling.h"

#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    OPTION_PROMPT = 256,
    OPTION_PROMPT_IDS,
    OPTION_MAX_TOKENS,
    OPTION_TEMPERATURE,
    OPTION_TOP_K,
    OPTION_SEED,
    OPTION_LOGITS
};
enum { TOKENS_MAX = 1 << 20, ROWS_PER_PASS = 256, CONFIG_BYTES_MAX = 1 << 20 };

static const struct argp_option OPTIONS[] = {
    {"prompt", OPTION_PROMPT, "TEXT", 0, "The text to continue, by the folder's tokenizer.", 0},
    {"prompt-ids", OPTION_PROMPT_IDS, "IDS", 0, "Token ids to continue, as 1,2,3; prints ids.", 0},
    {"max-tokens", OPTION_MAX_TOKENS, "N", 0, "Tokens to generate at most. Default 200.", 0},
    {"temperature", OPTION_TEMPERATURE, "T", 0, "0 takes the most likely token; default 0.8.", 0},
    {"top-k", OPTION_TOP_K, "K", 0, "Draw from the K most likely tokens; default 0, all.", 0},
    {"seed", OPTION_SEED, "S", 0, "The same seed gives the same text. Default 0.", 0},
    {"logits", OPTION_LOGITS, "FILE", 0,
     "Also write the logits after every token of the result to FILE: a safetensors file with 'logits' [tokens, "
     "vocabulary] "
     "and 'tokens' [tokens].",
     0},
    {0}};

struct request {
    const char *folder, *prompt, *prompt_ids, *logits_path;
    long max_tokens;
    struct ls_sampler sampler;
};

static double parse_temperature(const struct argp_state *state, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= 0) || value > 1000)
        argp_error(state, "--temperature takes a number from 0 to 1000, not '%s'", text);
    return value;
}

static error_t parse_option(int option, char *argument, struct argp_state *state) {
    struct request *request = state->input;
    switch (option) {
    case OPTION_PROMPT: request->prompt = argument; return 0;
    case OPTION_PROMPT_IDS: request->prompt_ids = argument; return 0;
    case OPTION_MAX_TOKENS:
        request->max_tokens = ls_command_number(state, "--max-tokens", argument, 0, TOKENS_MAX);
        return 0;
    case OPTION_TEMPERATURE: request->sampler.temperature = parse_temperature(state, argument); return 0;
    case OPTION_TOP_K: request->sampler.top_k = ls_command_number(state, "--top-k", argument, 0, INT32_MAX); return 0;
    case OPTION_SEED:
        request->sampler.seed = (uint64_t)ls_command_number(state, "--seed", argument, 0, INT64_MAX);
        return 0;
    case OPTION_LOGITS: request->logits_path = argument; return 0;
    case ARGP_KEY_ARG:
        if (request->folder) argp_error(state, "one folder, not also '%s'", argument);
        request->folder = argument;
        return 0;
    case ARGP_KEY_END:
        if (!request->folder) argp_error(state, "which FOLDER? A checkpoint, such as runs/NAME/final");
        if (!request->prompt == !request->prompt_ids) argp_error(state, "give either --prompt or --prompt-ids");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* The sequence so far and what generates it. */
struct generation {
    struct request request;
    struct ls_config config;
    struct ls_hf_tokens special;
    struct ls_device *device;
    struct ls_model *model;
    struct ls_inference *inference;
    struct ls_tokenizer *tokenizer; /* of a prompt of text; NULL: tokens are bytes */
    int32_t *tokens;                /* the prompt, then what was generated */
    int64_t count, prompt_count;
    float *logits;
    int32_t *order;
};

static enum ls_code read_under(const char *folder, const char *name, size_t limit, char **bytes, size_t *count,
                               struct ls_error *error) {
    int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "generate: cannot open the folder %s: %s. Name a checkpoint, such as runs/NAME/final.", folder,
                       strerror(errno));
    enum ls_code code = ls_file_read_under(descriptor, name, limit, bytes, count, LS_CHECKPOINT, error);
    close(descriptor);
    if (!code || !error) return code;
    return ls_fail(error, code, LS_SCOPE_CALL,
                   "generate: %s is no model folder: %s. Name a checkpoint, such as runs/NAME/final.", folder,
                   error->text);
}

static enum ls_code read_config(struct generation *generation, struct ls_error *error) {
    char *json;
    size_t count;
    enum ls_code code = read_under(generation->request.folder, "config.json", CONFIG_BYTES_MAX, &json, &count, error);
    if (code) return code;
    code = ls_hf_config_parse(json, count, &generation->config, &generation->special, error);
    free(json);
    return code ? ls_fail_within(error, "%s", generation->request.folder) : LS_OK;
}

/* The folder's tokenizer: bytes, or what its tokenizer.json describes. */
static enum ls_code open_tokenizer(struct generation *generation, struct ls_error *error) {
    const char *folder = generation->request.folder;
    const int64_t V = generation->config.model.vocab_size;
    struct ls_error cause = {0};
    char *json;
    size_t count;
    enum ls_code code = read_under(folder, "tokenizer.json", LS_TOKENIZER_JSON_BYTES_MAX, &json, &count, &cause);
    bool bytes = false;
    if (!code) {
        bytes = ls_byte_tokenizer_matches(json, count);
        if (!bytes) code = ls_tokenizer_parse(json, count, "tokenizer.json", &generation->tokenizer, &cause);
        free(json);
    }
    const int64_t ids = bytes ? LS_BYTE_VOCABULARY : code ? 0 : ls_tokenizer_vocabulary(generation->tokenizer);
    if (!code && ids > V)
        code = ls_fail(&cause, LS_USAGE, LS_SCOPE_CALL, "its tokenizer has %lld ids, the model %lld", (long long)ids,
                       (long long)V);
    if (!code) return LS_OK;
    return ls_fail(
        error, LS_USAGE, LS_SCOPE_CALL,
        "generate: the text of a prompt needs the tokenizer of %s: %s Or give token ids: --prompt-ids 1,2,3.", folder,
        cause.text);
}

static enum ls_code parse_ids(struct generation *generation, struct ls_error *error) {
    const char *next = generation->request.prompt_ids;
    int64_t V = generation->config.model.vocab_size;
    for (;;) {
        char *end;
        errno = 0;
        long long id = strtoll(next, &end, 10);
        if (end == next || errno || id < 0 || id >= V || (*end && *end != ','))
            return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                           "generate: --prompt-ids has '%.20s' where a token id from 0 to %lld should be. Write 1,2,3.",
                           next, (long long)V - 1);
        generation->tokens[generation->count++] = (int32_t)id;
        if (!*end) return LS_OK;
        next = end + 1;
    }
}

/* For a prompt of so many tokens and what is generated. */
static enum ls_code make_room(struct generation *generation, size_t prompt, struct ls_error *error) {
    generation->tokens = calloc(prompt + (size_t)generation->request.max_tokens, sizeof *generation->tokens);
    if (generation->tokens) return LS_OK;
    return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "generate: no memory for the tokens");
}

/* As the model's tokenizer begins a text. An empty prompt starts a document. */
static enum ls_code encode_prompt(struct generation *generation, const char *prompt, struct ls_error *error) {
    struct ls_token_ids ids = {0};
    size_t prefix_count;
    const int32_t *prefix = ls_tokenizer_prefix(generation->tokenizer, &prefix_count);
    struct ls_encoding *encoding = NULL;
    enum ls_code code = ls_encoding_create(generation->tokenizer, &encoding, error);
    if (!code) code = ls_encoding_add(encoding, prompt, strlen(prompt), true, &ids, error);
    ls_encoding_destroy(encoding);
    if (!code) code = make_room(generation, prefix_count + ids.count + 1, error);
    for (size_t i = 0; i < prefix_count && !code; i++) generation->tokens[generation->count++] = prefix[i];
    for (size_t i = 0; i < ids.count && !code; i++) generation->tokens[generation->count++] = ids.ids[i];
    free(ids.ids);
    if (code || generation->count > 0) return code;
    if (generation->special.end_count == 0)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "generate: the prompt is empty, and config.json of %s names no token that begins a document. "
                       "Give a prompt.",
                       generation->request.folder);
    generation->tokens[generation->count++] = generation->special.ends[0];
    return LS_OK;
}

static void put_bytes(struct generation *generation, const char *prompt) {
    for (const char *c = prompt; *c; c++) generation->tokens[generation->count++] = (unsigned char)*c;
    if (!*prompt) generation->tokens[generation->count++] = LS_BYTE_TOKEN_DOCUMENT;
}

static enum ls_code parse_prompt(struct generation *generation, struct ls_error *error) {
    const struct request *request = &generation->request;
    const size_t most = strlen(request->prompt ? request->prompt : request->prompt_ids) + 1;
    enum ls_code code = request->prompt ? open_tokenizer(generation, error) : LS_OK;
    if (code) return code;
    if (most > TOKENS_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "generate: the prompt is longer than %d bytes. Shorten it.",
                       TOKENS_MAX);
    if (request->prompt && generation->tokenizer) {
        code = encode_prompt(generation, request->prompt, error);
    } else {
        code = make_room(generation, most, error);
        if (!code && request->prompt)
            put_bytes(generation, request->prompt);
        else if (!code)
            code = parse_ids(generation, error);
    }
    generation->prompt_count = generation->count;
    return code;
}

/* The cache holds what can be generated, or the model's whole window when that is shorter. */
static enum ls_code build(struct generation *generation, struct ls_error *error) {
    int64_t window = generation->config.model.max_position_embeddings;
    int64_t wanted = generation->count + generation->request.max_tokens;
    generation->config.data.sequence_length = wanted < window ? wanted : window;
    int64_t rows = generation->config.data.sequence_length;
    int64_t V = generation->config.model.vocab_size;
    enum ls_code code = ls_model_create(&generation->config, &generation->model, error);
    if (!code) code = ls_device_create_cpu(0, LS_STREAMS_EAGER, &generation->device, error);
    if (!code)
        code = ls_inference_create(generation->model, generation->device, rows < ROWS_PER_PASS ? rows : ROWS_PER_PASS,
                                   &generation->inference, error);
    if (code) return code;
    generation->logits = calloc((size_t)V, sizeof *generation->logits);
    generation->order = calloc((size_t)V, sizeof *generation->order);
    if (generation->logits && generation->order) return LS_OK;
    return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "generate: no memory for %lld logits", (long long)V);
}

static enum ls_code load_weights(struct generation *generation, struct ls_error *error) {
    struct ls_weights *weights;
    enum ls_code code = ls_weights_open(generation->request.folder, generation->model, &weights, error);
    if (code) return code;
    for (int b = 0; b < ls_model_block_count(generation->model) && !code; b++) {
        int64_t count = ls_model_block(generation->model, b)->count;
        float *parameters = malloc((size_t)(count + 1) * sizeof *parameters);
        if (!parameters)
            code = ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "generate: no memory for %lld weights", (long long)count);
        else
            code = ls_weights_read(weights, b, 0, count, parameters, error);
        if (!code) code = ls_inference_put_block(generation->inference, b, parameters, error);
        free(parameters);
    }
    ls_weights_close(weights);
    return code;
}

/* Appends the tokens that the cache has not seen. When the window is full the sequence goes on from its last half. */
static enum ls_code advance(struct generation *generation, int64_t *seen, struct ls_error *error) {
    int64_t capacity = ls_inference_capacity(generation->inference), unseen = generation->count - *seen;
    if (unseen > capacity - ls_inference_position(generation->inference)) {
        int64_t half = capacity / 2 > 1 ? capacity / 2 : 1;
        unseen = generation->count < half ? generation->count : half;
        ls_inference_reset(generation->inference);
    }
    enum ls_code code = ls_inference_append(generation->inference, generation->tokens + generation->count - unseen,
                                            unseen, false, generation->logits, error);
    if (!code) *seen = generation->count;
    return code;
}

static bool is_end(const struct generation *generation, int32_t token) {
    for (int i = 0; i < generation->special.end_count; i++)
        if (generation->special.ends[i] == token) return true;
    return false;
}

/* *begins: text begins with this token, then with the next one. */
static void print_token(const struct generation *generation, int64_t index, bool *begins) {
    int32_t token = generation->tokens[index];
    bool special = false;
    size_t count = 0;
    const char *text =
        generation->tokenizer ? ls_tokenizer_said(generation->tokenizer, token, begins, &count, &special) : NULL;
    if (!generation->request.prompt)
        printf("%s%d", index ? "," : "", token);
    else if (text && !special)
        fwrite(text, 1, count, stdout);
    else if (!generation->tokenizer && token < LS_BYTE_TOKEN_DOCUMENT)
        putchar(token);
    if (index >= generation->prompt_count) fflush(stdout);
}

/* What is behind the tokens that the tokenizer puts in front begins the text. */
static bool print_prompt(const struct generation *generation) {
    size_t prefix = 0;
    bool begins = true;
    if (generation->tokenizer) ls_tokenizer_prefix(generation->tokenizer, &prefix);
    for (int64_t i = 0; i < generation->count; i++) {
        if ((size_t)i <= prefix) begins = true;
        print_token(generation, i, &begins);
    }
    return begins;
}

static enum ls_code generate(struct generation *generation, struct ls_error *error) {
    int64_t V = generation->config.model.vocab_size, seen = 0;
    struct ls_sampler sampler = generation->request.sampler;
    enum ls_code code = LS_OK;
    bool begins = print_prompt(generation);
    for (long made = 0; made < generation->request.max_tokens && !code; made++) {
        int32_t token = 0;
        code = advance(generation, &seen, error);
        if (!code) code = ls_sample(&sampler, generation->logits, V, generation->order, &token, error);
        if (code || is_end(generation, token)) break;
        generation->tokens[generation->count++] = token;
        print_token(generation, generation->count - 1, &begins);
    }
    putchar('\n');
    if (!code && (fflush(stdout) || ferror(stdout)))
        code = ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "generate: cannot write the text: %s", strerror(errno));
    return code;
}

static enum ls_code write_file(const char *path, const void *const *parts, const size_t *sizes, int count,
                               struct ls_error *error) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool failed = file < 0;
    for (int i = 0; i < count && !failed; i++) failed = ls_write_all(file, parts[i], sizes[i]) != 0;
    if (file >= 0 && close(file)) failed = true;
    if (!failed) return LS_OK;
    return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "generate: cannot write %s: %s", path, strerror(errno));
}

/* Runs the whole sequence once more and writes all its logits. */
static enum ls_code write_logits(struct generation *generation, struct ls_error *error) {
    int64_t count = generation->count, V = generation->config.model.vocab_size;
    struct ls_tensor_info infos[] = {
        {.name = "logits", .type = LS_TENSOR_F32, .dimensions = 2, .shape = {count, V}},
        {.name = "tokens", .type = LS_TENSOR_I32, .dimensions = 1, .shape = {count}},
    };
    char *header = NULL;
    size_t header_bytes = 0;
    if (count > ls_inference_capacity(generation->inference))
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "generate: --logits needs all %lld tokens in the model's window of %lld. Ask for fewer.",
                       (long long)count, (long long)ls_inference_capacity(generation->inference));
    float *logits = malloc((size_t)(count * V) * sizeof *logits);
    enum ls_code code = logits ? ls_safetensors_header(infos, 2, NULL, 0, &header, &header_bytes, error)
                               : ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "generate: no memory for the logits");
    ls_inference_reset(generation->inference);
    if (!code) code = ls_inference_append(generation->inference, generation->tokens, count, true, logits, error);
    const void *parts[] = {header, logits, generation->tokens};
    const size_t sizes[] = {header_bytes, (size_t)(count * V) * sizeof *logits,
                            (size_t)count * sizeof *generation->tokens};
    if (!code) code = write_file(generation->request.logits_path, parts, sizes, 3, error);
    free(header);
    free(logits);
    return code;
}

int ls_command_generate(int argc, char **argv) {
    static const struct argp parser = {
        .options = OPTIONS,
        .parser = parse_option,
        .args_doc = "FOLDER",
        .doc = "Continues a text with the model in FOLDER: a checkpoint, or what transformers saved for GPT-2, Llama, "
               "Qwen2, Qwen3 or Mistral. "
               "Ends at the end-of-document token. Text beyond the model's window goes on from the last half of it."};
    struct generation generation = {.request = {.max_tokens = 200, .sampler = {.temperature = 0.8}}};
    struct ls_error error = {0};
    ls_command_parse(&parser, argc, argv, &generation.request);
    enum ls_code code = read_config(&generation, &error);
    if (!code) code = parse_prompt(&generation, &error);
    if (!code) code = build(&generation, &error);
    if (!code) code = load_weights(&generation, &error);
    if (!code) code = generate(&generation, &error);
    if (!code && generation.request.logits_path) code = write_logits(&generation, &error);
    ls_inference_destroy(generation.inference);
    ls_model_destroy(generation.model);
    ls_tokenizer_destroy(generation.tokenizer);
    if (generation.device) ls_device_destroy(generation.device);
    free(generation.tokens);
    free(generation.logits);
    free(generation.order);
    return ls_report_exit(code, error.text);
}
