/* Models: tables of blocks and tensors, dispatch to the family, and what the families share. */
#include "worker/model/model.h"
#include "worker/model/family.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYOUT_ALIGNMENT = 256, LAYER_TENSORS_MAX = 16, HEAD_SIZE_MAX = 1 << 14 };

static const int64_t PARAMETERS_MAX = INT64_C(1) << 42; /* 4 T: no product of two sizes overflows */

static enum ls_code refuse(struct ls_error *error, const char *key, int64_t value, const char *rule) {
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "model: %s is %lld, it must be %s. Change it in the configuration.",
                   key, (long long)value, rule);
}

static enum ls_code check_sizes(const struct ls_model *model, struct ls_error *error) {
    const struct {
        const char *key;
        int64_t value, maximum;
    } sizes[] = {
        {"model.vocab_size", model->vocabulary, INT32_MAX},
        {"model.hidden_size", model->channels, 1 << 20},
        {"model.num_hidden_layers", model->layers, LS_CONFIG_LAYERS_MAX},
        {"model.num_attention_heads", model->heads, 1 << 14},
        {"model.num_key_value_heads", model->kv_heads, 1 << 14},
        {"model.intermediate_size", model->hidden, 1 << 22},
        {"model.max_position_embeddings", model->positions, INT32_MAX},
        {"data.sequence_length", model->length, INT32_MAX},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i].value < 1) return refuse(error, sizes[i].key, sizes[i].value, "at least 1");
        if (sizes[i].value > sizes[i].maximum) {
            char rule[48];
            snprintf(rule, sizeof rule, "at most %lld", (long long)sizes[i].maximum);
            return refuse(error, sizes[i].key, sizes[i].value, rule);
        }
    }
    if (model->length > model->positions) {
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "model: sequences of %lld tokens do not fit in %lld positions. Lower data.sequence_length or raise "
            "model.max_position_embeddings.",
            (long long)model->length, (long long)model->positions);
    }
    return LS_OK;
}

enum ls_dtype ls_model_dtype_of(const struct ls_config *config) {
    switch (config->precision) {
    case LS_PRECISION_BF16: return LS_BF16;
    case LS_PRECISION_FP16: return LS_FP16;
    case LS_PRECISION_FP32: break;
    }
    return LS_FP32;
}

enum ls_code ls_model_create(const struct ls_config *config, struct ls_model **result, struct ls_error *error) {
    struct ls_model *model = calloc(1, sizeof *model);
    if (model == NULL) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "model: no memory for its tables. Free some.");
    bool gpt2 = config->model.model_type == LS_GPT2;
    *model = (struct ls_model){
        .family = gpt2 ? &ls_model_gpt2 : &ls_model_llama,
        .rope_scaling = config->model.rope_scaling,
        .rope_theta = config->model.rope_theta,
        .length = config->data.sequence_length,
        .positions = config->model.max_position_embeddings ? config->model.max_position_embeddings
                                                           : config->data.sequence_length,
        .vocabulary = config->model.vocab_size,
        .channels = config->model.hidden_size,
        .layers = config->model.num_hidden_layers,
        .heads = config->model.num_attention_heads,
        .kv_heads = gpt2 || !config->model.num_key_value_heads ? config->model.num_attention_heads
                                                               : config->model.num_key_value_heads,
        .hidden =
            gpt2 && !config->model.intermediate_size ? 4 * config->model.hidden_size : config->model.intermediate_size,
        .epsilon = (float)(gpt2 ? config->model.layer_norm_epsilon : config->model.rms_norm_eps),
        .deviation = (float)config->model.initializer_range,
        .dtype = ls_model_dtype_of(config),
        .tied = config->model.tie_word_embeddings,
        .qkv_bias = config->model.model_type == LS_QWEN2,
        .head_norm = config->model.model_type == LS_QWEN3,
        .window = config->model.sliding_window,
    };
    enum ls_code code = check_sizes(model, error);
    if (code != LS_OK) goto destroy_model;
    model->head_size = gpt2 || !config->model.head_dim ? model->channels / model->heads : config->model.head_dim;
    if ((gpt2 || !config->model.head_dim) && model->channels % model->heads != 0) {
        code =
            ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                    "model: hidden_size %lld is not a multiple of num_attention_heads %lld. Choose sizes that divide.",
                    (long long)model->channels, (long long)model->heads);
        goto destroy_model;
    }
    if (model->head_size < 1 || model->head_size > HEAD_SIZE_MAX) {
        code = refuse(error, "model.head_dim", model->head_size, "between 1 and 16384");
        goto destroy_model;
    }
    int blocks = (int)model->layers + 2;
    model->blocks = calloc((size_t)blocks, sizeof *model->blocks);
    model->tensors = calloc((size_t)blocks * LAYER_TENSORS_MAX, sizeof *model->tensors);
    if (model->blocks == NULL || model->tensors == NULL) {
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "model: no memory for the tables of %d blocks. Free some.",
                       blocks);
        goto destroy_model;
    }
    code = model->family->describe(model, error);
    if (code != LS_OK) goto destroy_model;
    assert(model->block_count == blocks);
    if (model->parameter_count > PARAMETERS_MAX) {
        code = refuse(error, "the number of parameters", model->parameter_count, "at most 2^42");
        goto destroy_model;
    }
    *result = model;
    return LS_OK;

destroy_model:
    ls_model_destroy(model);
    return code;
}

void ls_model_destroy(struct ls_model *model) {
    if (model == NULL) return;
    free(model->tensors);
    free(model->blocks);
    free(model);
}

void ls_model_add_block(struct ls_model *model, enum ls_block_kind kind, const char *prefix,
                        const struct ls_tensor_row *rows, int count) {
    assert(count <= LAYER_TENSORS_MAX);
    struct ls_block *block = &model->blocks[model->block_count];
    *block = (struct ls_block){.kind = kind, .first_tensor = model->tensor_count};
    if (kind == LS_BLOCK_LAYER) {
        snprintf(block->name, sizeof block->name, "layer %d", model->block_count - 1);
    } else {
        snprintf(block->name, sizeof block->name, "%s", kind == LS_BLOCK_EMBEDDING ? "embedding" : "head");
    }
    for (int i = 0; i < count; i++) {
        const struct ls_tensor_row *row = &rows[i];
        if (row->name == NULL) continue;
        struct ls_tensor *tensor = &model->tensors[model->tensor_count++];
        bool matrix = row->columns != 0;
        assert(!matrix || block->count == block->decay_count);
        *tensor = (struct ls_tensor){
            .dimensions = matrix ? 2 : 1,
            .shape = {row->rows, matrix ? row->columns : 0},
            .count = matrix ? row->rows * row->columns : row->rows,
            .block = model->block_count,
            .offset = block->count,
            .mean = row->mean,
            .deviation = row->deviation,
        };
        snprintf(tensor->name, sizeof tensor->name, "%s%s", prefix, row->name);
        block->count += tensor->count;
        if (matrix) block->decay_count += tensor->count;
    }
    block->tensor_count = model->tensor_count - block->first_tensor;
    model->parameter_count += block->count;
    model->block_count++;
}

int ls_model_block_count(const struct ls_model *model) {
    return model->block_count;
}

const struct ls_block *ls_model_block(const struct ls_model *model, int block) {
    assert(block >= 0 && block < model->block_count);
    return &model->blocks[block];
}

int ls_model_tensor_count(const struct ls_model *model) {
    return model->tensor_count;
}

const struct ls_tensor *ls_model_tensor(const struct ls_model *model, int tensor) {
    assert(tensor >= 0 && tensor < model->tensor_count);
    return &model->tensors[tensor];
}

int64_t ls_model_parameter_count(const struct ls_model *model) {
    return model->parameter_count;
}

enum ls_dtype ls_model_dtype(const struct ls_model *model) {
    return model->dtype;
}

bool ls_model_head_is_tied(const struct ls_model *model) {
    return model->tied;
}

double ls_model_flops_per_token(const struct ls_model *model) {
    double parameters = (double)model->parameter_count;
    if (model->family == &ls_model_gpt2) parameters -= (double)(model->positions * model->channels);
    return 6 * parameters + 6.0 * (double)(model->layers * model->heads * model->head_size) * (double)model->length;
}

void ls_model_initialize(const struct ls_model *model, int block, int64_t first, int64_t count, uint64_t seed,
                         struct ls_stream *stream, float *output) {
    const struct ls_block *b = ls_model_block(model, block);
    int64_t end = first + count;
    for (int i = b->first_tensor; i < b->first_tensor + b->tensor_count; i++) {
        const struct ls_tensor *tensor = &model->tensors[i];
        int64_t from = first > tensor->offset ? first : tensor->offset;
        int64_t to = end < tensor->offset + tensor->count ? end : tensor->offset + tensor->count;
        if (from >= to) continue;
        ls_op(stream, initialize, .output = output + (from - first), .seed = seed, .tensor = (uint64_t)i,
              .first = from - tensor->offset, .count = to - from, .mean = tensor->mean, .deviation = tensor->deviation);
    }
    int64_t padding = first > b->count ? first : b->count;
    if (padding < end) ls_fill_zero(stream, output + (padding - first), (size_t)(end - padding) * sizeof(float));
}

/* Inverse wavelength of pair i of HD / 2, in radians a position: theta^(-2i / HD) (Su et al. 2021, section 3.2.2). With
 * Llama 3's scaling (Meta's apply_scaling; rope_type "llama3" at Hugging Face) wavelengths beyond original /
 * low_freq_factor turn `factor` times slower, those below original / high_freq_factor as before, and those between in
 * proportion. */
static double rope_frequency(const struct ls_model *model, int64_t i) {
    const struct ls_config_rope_scaling *scaling = &model->rope_scaling;
    double frequency = pow(model->rope_theta, -2.0 * (double)i / (double)model->head_size);
    if (!scaling->llama3) return frequency;
    double turns = (double)scaling->original_max_position_embeddings * frequency / (2 * M_PI);
    double smooth = (turns - scaling->low_freq_factor) / (scaling->high_freq_factor - scaling->low_freq_factor);
    if (smooth <= 0) return frequency / scaling->factor;
    if (smooth >= 1) return frequency;
    return (1 - smooth) * frequency / scaling->factor + smooth * frequency;
}

int64_t ls_model_table_bytes(const struct ls_model *model) {
    if (model->family == &ls_model_gpt2) return 0;
    return model->length * model->head_size * (int64_t)sizeof(float);
}

enum ls_code ls_model_fill_tables(const struct ls_model *model, struct ls_stream *stream, void *tables,
                                  struct ls_error *error) {
    size_t bytes = (size_t)ls_model_table_bytes(model);
    if (bytes == 0) return LS_OK;
    int64_t pairs = model->head_size / 2;
    float *table = malloc(bytes);
    if (table == NULL) {
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "model: no memory for %zu bytes of rotary angles. Free some.",
                       bytes);
    }
    for (int64_t i = 0; i < pairs; i++) {
        double frequency = rope_frequency(model, i);
        for (int64_t t = 0; t < model->length; t++) {
            table[(t * pairs + i) * 2] = (float)cos((double)t * frequency);
            table[(t * pairs + i) * 2 + 1] = (float)sin((double)t * frequency);
        }
    }
    ls_copy_to_device(stream, tables, table, bytes);
    enum ls_code code = ls_stream_synchronize(stream, error);
    free(table);
    return code;
}

void ls_block_forward(const struct ls_model *model, int block, const struct ls_block_pass *pass) {
    enum ls_block_kind kind = ls_model_block(model, block)->kind;
    assert(kind != LS_BLOCK_HEAD && pass->cached + pass->length <= model->length);
    assert(pass->cache == NULL || pass->sequences == 1);
    if (pass->sequences == 0) return;
    if (kind == LS_BLOCK_EMBEDDING) {
        model->family->embedding_forward(model, pass);
    } else {
        model->family->layer_forward(model, block, pass);
    }
}

void ls_block_recompute(const struct ls_model *model, int block, const struct ls_block_pass *pass) {
    if (ls_model_block(model, block)->kind != LS_BLOCK_LAYER || pass->sequences == 0) return;
    model->family->layer_recompute(model, block, pass);
}

void ls_block_backward(const struct ls_model *model, int block, const struct ls_block_pass *pass) {
    enum ls_block_kind kind = ls_model_block(model, block)->kind;
    assert(kind != LS_BLOCK_HEAD && pass->gradients != NULL);
    if (pass->sequences == 0) return;
    if (kind == LS_BLOCK_EMBEDDING) {
        model->family->embedding_backward(model, pass);
    } else {
        model->family->layer_backward(model, block, pass);
    }
}

void *ls_layout_bytes(struct ls_layout *layout, int64_t bytes) {
    void *memory = layout->base == NULL ? NULL : layout->base + layout->bytes;
    layout->bytes += (bytes + LAYOUT_ALIGNMENT - 1) / LAYOUT_ALIGNMENT * LAYOUT_ALIGNMENT;
    return memory;
}

float *ls_layout_floats(struct ls_layout *layout, int64_t count) {
    return ls_layout_bytes(layout, count * (int64_t)sizeof(float));
}

void *ls_layout_elements(struct ls_layout *layout, const struct ls_model *model, int64_t count) {
    return ls_layout_bytes(layout, count * ls_dtype_bytes(model->dtype));
}

int64_t ls_model_cache_bytes(const struct ls_model *model) {
    return model->length * 2 * model->kv_heads * model->head_size * ls_dtype_bytes(model->dtype);
}

int64_t ls_model_saved_bytes(const struct ls_model *model, int block, int64_t sequences) {
    int64_t saved = 0, recomputed = 0;
    if (ls_model_block(model, block)->kind == LS_BLOCK_LAYER)
        model->family->saved_bytes(model, sequences * model->length, &saved, &recomputed);
    return saved;
}

int64_t ls_model_recomputed_bytes(const struct ls_model *model, int block, int64_t sequences) {
    int64_t saved = 0, recomputed = 0;
    if (ls_model_block(model, block)->kind == LS_BLOCK_LAYER)
        model->family->saved_bytes(model, sequences * model->length, &saved, &recomputed);
    return recomputed;
}

void ls_linear_forward(const struct ls_model *model, struct ls_stream *stream, void *y, const void *x, const void *w,
                       const void *residual, int64_t R, int64_t IN, int64_t OUT) {
    ls_op(stream, gemm, .c = y, .a = x, .b = w, .m = R, .n = OUT, .k = IN, .lda = IN, .ldb = IN, .ldc = OUT,
          .transpose_b = true, .residual = residual, .dtype = model->dtype);
}

void ls_linear_backward(const struct ls_model *model, struct ls_stream *stream, void *dx, float *dw, const void *dy,
                        const void *x, const void *w, int64_t R, int64_t IN, int64_t OUT) {
    ls_op(stream, gemm, .c = dw, .a = dy, .b = x, .m = OUT, .n = IN, .k = R, .lda = OUT, .ldb = IN, .ldc = IN,
          .transpose_a = true, .accumulate = true, .c_fp32 = true, .dtype = model->dtype);
    ls_op(stream, gemm, .c = dx, .a = dy, .b = w, .m = R, .n = IN, .k = OUT, .lda = OUT, .ldb = IN, .ldc = IN,
          .dtype = model->dtype);
}
