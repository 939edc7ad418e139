/* Hugging Face's config.json, read and written. */
#include "common/hf_config.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

enum { SIZE_MAX_ALLOWED = 1 << 30 };

/* What the file says wrong; the format is a literal. */
#define refuse(error, ...) ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL, "config.json: " __VA_ARGS__)

static const char *text_of(const json_t *root, const char *key) {
    const char *text = json_string_value(json_object_get(root, key));
    return text ? text : "";
}

/* The first of up to two spellings that is there and not null. */
static const json_t *member(const json_t *root, const char *key, const char *other) {
    const json_t *value = json_object_get(root, key);
    if (json_is_null(value)) value = NULL;
    if (!value && other) value = json_object_get(root, other);
    return json_is_null(value) ? NULL : value;
}

/* Reads a size >= 1; absent: `standard`, or refused when that is 0. */
static enum ls_code read_size(const json_t *root, const char *key, const char *other, int64_t standard, int64_t *size,
                              struct ls_error *error) {
    const json_t *value = member(root, key, other);
    if (!value && standard > 0) {
        *size = standard;
        return LS_OK;
    }
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > SIZE_MAX_ALLOWED)
        return refuse(error, "'%s' is missing or not a number from 1 to 2^30", key);
    *size = json_integer_value(value);
    return LS_OK;
}

static enum ls_code read_number(const json_t *root, const char *key, double standard, double *number,
                                struct ls_error *error) {
    const json_t *value = member(root, key, NULL);
    *number = value ? json_number_value(value) : standard;
    if ((value && !json_is_number(value)) || !isfinite(*number) || *number <= 0)
        return refuse(error, "'%s' is not a number above 0", key);
    return LS_OK;
}

/* Weights may begin as zeros. */
static enum ls_code read_deviation(const json_t *root, double *deviation, struct ls_error *error) {
    const json_t *value = member(root, "initializer_range", NULL);
    *deviation = value ? json_number_value(value) : 0.02;
    if ((value && !json_is_number(value)) || !isfinite(*deviation) || *deviation < 0)
        return refuse(error, "'initializer_range' is not a number from 0 on");
    return LS_OK;
}

static enum ls_code read_flag(const json_t *root, const char *key, bool standard, bool *flag, struct ls_error *error) {
    const json_t *value = member(root, key, NULL);
    if (value && !json_is_boolean(value)) return refuse(error, "'%s' is neither true nor false", key);
    *flag = value ? json_is_true(value) : standard;
    return LS_OK;
}

/* Features that change the arithmetic: each key must be absent, null or the value this program computes. */
static enum ls_code require_flag(const json_t *root, const char *key, bool required, struct ls_error *error) {
    bool flag = required;
    enum ls_code code = read_flag(root, key, required, &flag, error);
    if (code || flag == required) return code;
    return refuse(error, "'%s': %s is not supported here, only %s", key, flag ? "true" : "false",
                  required ? "true" : "false");
}

static enum ls_code read_tokens(const json_t *root, struct ls_hf_tokens *tokens, struct ls_error *error) {
    const json_t *bos = member(root, "bos_token_id", NULL), *eos = member(root, "eos_token_id", NULL);
    size_t ends = json_is_array(eos) ? json_array_size(eos) : eos ? 1 : 0;
    if ((bos && !json_is_integer(bos)) || ends > LS_HF_END_TOKENS_MAX)
        return refuse(error, "bos_token_id is not a number, or eos_token_id is a list of more than %d",
                      LS_HF_END_TOKENS_MAX);
    *tokens = (struct ls_hf_tokens){.bos = bos ? json_integer_value(bos) : -1};
    for (size_t i = 0; i < ends; i++) {
        const json_t *end = json_is_array(eos) ? json_array_get(eos, i) : eos;
        if (!json_is_integer(end)) return refuse(error, "eos_token_id holds something that is not a number");
        tokens->ends[tokens->end_count++] = json_integer_value(end);
    }
    return LS_OK;
}

static enum ls_code parse_gpt2(const json_t *root, struct ls_config *config, struct ls_error *error) {
    const char *activation = text_of(root, "activation_function");
    bool known =
        *activation == 0 || strcmp(activation, "gelu_new") == 0 || strcmp(activation, "gelu_pytorch_tanh") == 0;
    if (!known) return refuse(error, "'activation_function': '%.60s' is not supported, only gelu_new", activation);
    enum ls_code code = read_size(root, "n_embd", "hidden_size", 768, &config->model.hidden_size, error);
    if (!code) code = read_size(root, "n_layer", "num_hidden_layers", 12, &config->model.num_hidden_layers, error);
    if (!code) code = read_size(root, "n_head", "num_attention_heads", 12, &config->model.num_attention_heads, error);
    if (!code)
        code = read_size(root, "n_positions", "max_position_embeddings", 1024, &config->model.max_position_embeddings,
                         error);
    if (!code)
        code = read_size(root, "n_inner", NULL, 4 * config->model.hidden_size, &config->model.intermediate_size, error);
    if (!code) code = read_number(root, "layer_norm_epsilon", 1e-5, &config->model.layer_norm_epsilon, error);
    if (!code) code = read_flag(root, "tie_word_embeddings", true, &config->model.tie_word_embeddings, error);
    if (!code) code = require_flag(root, "scale_attn_weights", true, error);
    if (!code) code = require_flag(root, "scale_attn_by_inverse_layer_idx", false, error);
    if (!code) code = require_flag(root, "add_cross_attention", false, error);
    config->model.num_key_value_heads = config->model.num_attention_heads;
    return code;
}

/* `rope` is rope_parameters or rope_scaling. */
static enum ls_code parse_rope(const json_t *rope, struct ls_config *config, struct ls_error *error) {
    const char *type = text_of(rope, "rope_type");
    if (*type == 0) type = text_of(rope, "type");
    if (*type == 0 || strcmp(type, "default") == 0) return LS_OK;
    if (strcmp(type, "llama3") != 0)
        return refuse(error, "the rope type '%.60s' is not supported, only default and llama3", type);
    config->model.rope_scaling.llama3 = true;
    enum ls_code code = read_number(rope, "factor", 0, &config->model.rope_scaling.factor, error);
    if (!code) code = read_number(rope, "low_freq_factor", 0, &config->model.rope_scaling.low_freq_factor, error);
    if (!code) code = read_number(rope, "high_freq_factor", 0, &config->model.rope_scaling.high_freq_factor, error);
    if (!code)
        code = read_size(rope, "original_max_position_embeddings", NULL, 0,
                         &config->model.rope_scaling.original_max_position_embeddings, error);
    if (!code && config->model.rope_scaling.high_freq_factor <= config->model.rope_scaling.low_freq_factor)
        code = refuse(error, "high_freq_factor must be above low_freq_factor");
    return code;
}

static enum ls_code parse_llama_rope(const json_t *root, struct ls_config *config, struct ls_error *error) {
    const json_t *parameters = member(root, "rope_parameters", "rope_scaling");
    if (parameters && !json_is_object(parameters)) return refuse(error, "the rope parameters are not an object");
    const json_t *theta_holder = member(parameters, "rope_theta", NULL) ? parameters : root;
    double rotary = 1;
    enum ls_code code = read_number(theta_holder, "rope_theta", 10000, &config->model.rope_theta, error);
    if (!code) code = read_number(root, "partial_rotary_factor", 1, &rotary, error);
    if (!code && member(parameters, "partial_rotary_factor", NULL))
        code = read_number(parameters, "partial_rotary_factor", 1, &rotary, error);
    if (!code && rotary < 1) code = refuse(error, "'partial_rotary_factor' below 1 is not supported");
    return code ? code : parse_rope(parameters, config, error);
}

/* Attention over a window of positions instead of all earlier ones. */
static enum ls_code refuse_windows(const json_t *root, struct ls_error *error) {
    enum ls_code code = require_flag(root, "use_sliding_window", false, error);
    const json_t *types = member(root, "layer_types", NULL), *type;
    size_t i;
    if (!code && types && !json_is_array(types)) return refuse(error, "'layer_types' is not a list");
    json_array_foreach(types, i, type) {
        const char *text = json_string_value(type);
        if (!code && (!text || strcmp(text, "full_attention") != 0))
            code = refuse(error, "'layer_types': '%.60s' is not supported, only full_attention", text ? text : "?");
    }
    return code;
}

/* Where nothing is said Mistral has a window of 4096 tokens, where null is none. */
static enum ls_code parse_window(const json_t *root, struct ls_config *config, struct ls_error *error) {
    config->model.sliding_window = 0;
    if (json_is_null(json_object_get(root, "sliding_window"))) return LS_OK;
    return read_size(root, "sliding_window", NULL, 4096, &config->model.sliding_window, error);
}

/* Llama, Qwen 2 and 3 and Mistral, which differ in what is always there and in what is taken when nothing is said. */
static enum ls_code parse_llama(const json_t *root, struct ls_config *config, struct ls_error *error) {
    const bool mistral = config->model.model_type == LS_MISTRAL,
               qwen = config->model.model_type == LS_QWEN2 || config->model.model_type == LS_QWEN3;
    const char *activation = text_of(root, "hidden_act");
    if (*activation && strcmp(activation, "silu") != 0)
        return refuse(error, "'hidden_act': '%.60s' is not supported, only silu", activation);
    /* Of these null is another thing than nothing: as many as there are heads. */
    const int64_t few = json_object_get(root, "num_key_value_heads") ? 0 : qwen ? 32 : mistral ? 8 : 0;
    enum ls_code code = read_size(root, "hidden_size", NULL, 0, &config->model.hidden_size, error);
    if (!code) code = read_size(root, "num_hidden_layers", NULL, 0, &config->model.num_hidden_layers, error);
    if (!code) code = read_size(root, "num_attention_heads", NULL, 0, &config->model.num_attention_heads, error);
    if (!code)
        code = read_size(root, "num_key_value_heads", NULL, few ? few : config->model.num_attention_heads,
                         &config->model.num_key_value_heads, error);
    if (!code) code = read_size(root, "intermediate_size", NULL, 0, &config->model.intermediate_size, error);
    if (!code)
        code = read_size(root, "max_position_embeddings", NULL,
                         qwen      ? 32768
                         : mistral ? 131072
                                   : 2048,
                         &config->model.max_position_embeddings, error);
    if (!code) code = read_number(root, "rms_norm_eps", 1e-6, &config->model.rms_norm_eps, error);
    if (!code) code = read_flag(root, "tie_word_embeddings", false, &config->model.tie_word_embeddings, error);
    if (!code) code = require_flag(root, "attention_bias", false, error);
    if (!code) code = require_flag(root, "mlp_bias", false, error);
    if (!code && qwen) code = refuse_windows(root, error);
    if (!code && mistral) code = parse_window(root, config, error);
    return code ? code : parse_llama_rope(root, config, error);
}

/* The rules between sizes that the arithmetic needs. */
static enum ls_code check_heads(const json_t *root, struct ls_config *config, struct ls_error *error) {
    int64_t heads = config->model.num_attention_heads, hidden = config->model.hidden_size;
    int64_t standard = hidden % heads == 0 ? hidden / heads : 0;
    bool rotary = config->model.model_type != LS_GPT2;
    if (config->model.model_type == LS_QWEN3) standard = 128;
    if (!rotary && !standard)
        return refuse(error, "n_embd %lld is no multiple of n_head %lld", (long long)hidden, (long long)heads);
    config->model.head_dim = standard;
    enum ls_code code = rotary ? read_size(root, "head_dim", NULL, standard, &config->model.head_dim, error) : LS_OK;
    if (code) return code;
    if (heads % config->model.num_key_value_heads)
        return refuse(error, "num_attention_heads %lld is no multiple of num_key_value_heads %lld", (long long)heads,
                      (long long)config->model.num_key_value_heads);
    if (rotary && config->model.head_dim % 2)
        return refuse(error, "head_dim %lld is odd; rotary embeddings need pairs", (long long)config->model.head_dim);
    return LS_OK;
}

static enum ls_code parse_model(const json_t *root, struct ls_config *config, struct ls_hf_tokens *tokens,
                                struct ls_error *error) {
    const char *type = text_of(root, "model_type");
    int family = 0;
    while (family < LS_MODEL_TYPES && strcmp(type, ls_model_type_name((enum ls_model_type)family)) != 0) family++;
    memset(&config->model, 0, sizeof config->model);
    if (family == LS_MODEL_TYPES)
        return refuse(error, "'model_type': '%.60s' is not supported, only gpt2, llama, qwen2, qwen3 and mistral",
                      type);
    if (member(root, "quantization_config", NULL)) return refuse(error, "quantised weights are not supported");
    bool gpt2 = family == LS_GPT2;
    config->model.model_type = (enum ls_model_type)family;
    config->model.layer_norm_epsilon = 1e-5;
    config->model.rms_norm_eps = 1e-6;
    config->model.rope_theta = 10000;
    enum ls_code code = read_size(root, "vocab_size", NULL, gpt2 ? 50257 : 0, &config->model.vocab_size, error);
    if (!code) code = read_deviation(root, &config->model.initializer_range, error);
    if (!code) code = read_tokens(root, tokens, error);
    if (!code) code = gpt2 ? parse_gpt2(root, config, error) : parse_llama(root, config, error);
    return code ? code : check_heads(root, config, error);
}

enum ls_code ls_hf_config_parse(const char *json, size_t count, struct ls_config *config, struct ls_hf_tokens *tokens,
                                struct ls_error *error) {
    json_error_t cause;
    json_t *root = json_loadb(json, count, JSON_REJECT_DUPLICATES, &cause);
    if (!root) return refuse(error, "not valid JSON (line %d: %.100s)", cause.line, cause.text);
    enum ls_code code = parse_model(root, config, tokens, error);
    json_decref(root);
    return code;
}

static json_t *token_or_null(int64_t token) {
    return token < 0 ? json_null() : json_integer(token);
}

static json_t *write_gpt2(const struct ls_config *config) {
    return json_pack("{s:s,s:[s],s:I,s:I,s:I,s:I,s:I,s:s,s:f,s:f,s:f,s:f,s:b,s:b}", "model_type", "gpt2",
                     "architectures", "GPT2LMHeadModel", "n_embd", (json_int_t)config->model.hidden_size, "n_layer",
                     (json_int_t)config->model.num_hidden_layers, "n_head",
                     (json_int_t)config->model.num_attention_heads, "n_positions",
                     (json_int_t)config->model.max_position_embeddings, "n_inner",
                     (json_int_t)config->model.intermediate_size, "activation_function", "gelu_new",
                     "layer_norm_epsilon", config->model.layer_norm_epsilon, "resid_pdrop", 0.0, "embd_pdrop", 0.0,
                     "attn_pdrop", 0.0, "scale_attn_weights", 1, "use_cache", 1);
}

static json_t *write_llama(const struct ls_config *config) {
    static const char *const architectures[LS_MODEL_TYPES] = {[LS_LLAMA] = "LlamaForCausalLM",
                                                              [LS_QWEN2] = "Qwen2ForCausalLM",
                                                              [LS_QWEN3] = "Qwen3ForCausalLM",
                                                              [LS_MISTRAL] = "MistralForCausalLM"};
    const struct ls_config_rope_scaling *scaling = &config->model.rope_scaling;
    json_t *rope =
        scaling->llama3
            ? json_pack("{s:s,s:f,s:f,s:f,s:I}", "rope_type", "llama3", "factor", scaling->factor, "low_freq_factor",
                        scaling->low_freq_factor, "high_freq_factor", scaling->high_freq_factor,
                        "original_max_position_embeddings", (json_int_t)scaling->original_max_position_embeddings)
            : json_null();
    const char *own = "use_sliding_window";
    json_t *value = json_false();
    if (config->model.model_type == LS_LLAMA) own = "mlp_bias";
    if (config->model.model_type == LS_MISTRAL) {
        own = "sliding_window";
        value = config->model.sliding_window ? json_integer((json_int_t)config->model.sliding_window) : json_null();
    }
    return json_pack("{s:s,s:[s],s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s,s:f,s:f,s:o,s:f,s:o,s:b,s:b}", "model_type",
                     ls_model_type_name(config->model.model_type), "architectures",
                     architectures[config->model.model_type], "hidden_size", (json_int_t)config->model.hidden_size,
                     "num_hidden_layers", (json_int_t)config->model.num_hidden_layers, "num_attention_heads",
                     (json_int_t)config->model.num_attention_heads, "num_key_value_heads",
                     (json_int_t)config->model.num_key_value_heads, "head_dim", (json_int_t)config->model.head_dim,
                     "intermediate_size", (json_int_t)config->model.intermediate_size, "max_position_embeddings",
                     (json_int_t)config->model.max_position_embeddings, "hidden_act", "silu", "rms_norm_eps",
                     config->model.rms_norm_eps, "rope_theta", config->model.rope_theta, "rope_scaling", rope,
                     "attention_dropout", 0.0, own, value, "attention_bias", 0, "use_cache", 1);
}

enum ls_code ls_hf_config_write(const struct ls_config *config, int64_t document_token, char **json,
                                struct ls_error *error) {
    static const char *const torch_dtypes[] = {
        [LS_PRECISION_FP32] = "float32", [LS_PRECISION_BF16] = "bfloat16", [LS_PRECISION_FP16] = "float16"};
    json_t *root = config->model.model_type == LS_GPT2 ? write_gpt2(config) : write_llama(config);
    json_t *common =
        json_pack("{s:I,s:f,s:b,s:s,s:o,s:o}", "vocab_size", (json_int_t)config->model.vocab_size, "initializer_range",
                  config->model.initializer_range, "tie_word_embeddings", (int)config->model.tie_word_embeddings,
                  "torch_dtype", torch_dtypes[config->precision], "bos_token_id", token_or_null(document_token),
                  "eos_token_id", token_or_null(document_token));
    char *text = root && common && json_object_update(root, common) == 0 ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(common);
    json_decref(root);
    if (!text) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "config.json: no memory");
    *json = text;
    return LS_OK;
}
