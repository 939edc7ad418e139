/* Hugging Face's config.json to and from the model part of our configuration, for GPT-2, Llama,
 * Qwen 2 and 3, and Mistral. */
#ifndef LS_COMMON_HF_CONFIG_H
#define LS_COMMON_HF_CONFIG_H

#include "common/config.h"
#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

enum { LS_HF_END_TOKENS_MAX = 8 };

/* What config.json says beside the shape. */
struct ls_hf_tokens {
    int64_t bos;                        /* bos_token_id, -1: none */
    int64_t ends[LS_HF_END_TOKENS_MAX]; /* eos_token_id: a number or a list */
    int end_count;
};

/* Makes config.json for GPT2LMHeadModel, LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM or MistralForCausalLM,
 * with weights of the run's precision. `document_token` becomes bos_token_id and eos_token_id; -1: null. *json is
 * malloc'ed, NUL-terminated; the caller frees. Errors: LS_MEMORY. */
enum ls_code ls_hf_config_write(const struct ls_config *config, int64_t document_token, char **json,
                                struct ls_error *error);

/* Parses config.json into config->model (all other parts stay) and *tokens. GPT-2 may use its own spellings (n_embd,
 * n_layer, n_head, n_positions, n_inner) or the common ones; the others rope_scaling with rope_theta or
 * rope_parameters. Dropout rates are read as 0: they play no part outside training. Refused by name: other model types,
 * and every feature that would change the arithmetic (other activations, attention_bias, windows of attention but
 * Mistral's, other
 * rope types, quantised weights...). Errors are LS_CHECKPOINT. */
enum ls_code ls_hf_config_parse(const char *json, size_t count, struct ls_config *config, struct ls_hf_tokens *tokens,
                                struct ls_error *error);

#endif
