/* The configuration: one table of keys drives parsing, range checks, --set, the listing of keys, docs and hints. */
#ifndef LS_COMMON_CONFIG_H
#define LS_COMMON_CONFIG_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum ls_model_type { LS_GPT2, LS_LLAMA, LS_QWEN2, LS_QWEN3, LS_MISTRAL, LS_MODEL_TYPES };
/* "gpt2", "llama", "qwen2", "qwen3", "mistral": as Hugging Face calls them. Static storage. */
const char *ls_model_type_name(enum ls_model_type type);
enum ls_schedule_type { LS_COSINE, LS_LINEAR, LS_CONSTANT, LS_WSD };
enum ls_launcher_type { LS_LAUNCH_AUTO, LS_LAUNCH_MPIRUN, LS_LAUNCH_SRUN, LS_LAUNCH_NONE };
enum ls_device_choice { LS_DEVICE_AUTO, LS_DEVICE_CPU, LS_DEVICE_CUDA };
enum ls_precision { LS_PRECISION_FP32, LS_PRECISION_BF16, LS_PRECISION_FP16 };
enum ls_reduction { LS_REDUCTION_FAST, LS_REDUCTION_FIXED };
enum ls_optimizer_type { LS_ADAMW, LS_LION, LS_SGD, LS_MUON };
enum ls_checkpointing_mode { LS_CHECKPOINTING_NONE, LS_CHECKPOINTING_FULL, LS_CHECKPOINTING_SELECTIVE };

enum ls_replica_mismatch { LS_REPLICA_STOP, LS_REPLICA_ROLLBACK };

enum ls_accumulate { LS_ACCUMULATE_AUTO, LS_ACCUMULATE_LOCAL, LS_ACCUMULATE_SHARDED };
/* What to do about a loss or gradient that is not finite, or a loss that spikes. */
enum ls_nonfinite_policy { LS_POLICY_STOP, LS_POLICY_SKIP, LS_POLICY_ROLLBACK };
enum ls_gradient_dtype { LS_GRADIENT_FP32, LS_GRADIENT_BF16 };

/* Of model.vocab_size and what a dataset may say of it, of model.head_dim, given or derived, and of
 * model.num_hidden_layers. */
enum { LS_CONFIG_VOCABULARY_MAX = 1 << 22, LS_CONFIG_HEAD_DIM_MAX = 1 << 14, LS_CONFIG_LAYERS_MAX = 4096 };
/* A name of 64 bytes and its NUL. */
enum { LS_CONFIG_NAME_SIZE = 65 };

enum { LS_CONFIG_SOURCES_MAX = 64, LS_CONFIG_PATH_MAX = 1024 };
/* Entries of a list of texts, and the bytes of one with its NUL. */
enum { LS_CONFIG_TEXTS_MAX = 64, LS_CONFIG_TEXT_SIZE = 256 };

/* One dataset of a mixture. */
struct ls_config_source {
    char path[LS_CONFIG_PATH_MAX]; /* absolute once resolved, or "synthetic:TOKENS" */
    int64_t weight;            /* 0: not given; then in proportion to size. Given for all of data.train or for none */
    char dtype[16];            /* "uint16" for headerless files, else "" */
    int64_t document_token_id; /* -1: by the dataset's kind */
    bool document_token_at_end;
};

/* Llama 3.1's stretch of RoPE, with the keys of Hugging Face's config.json. */
struct ls_config_rope_scaling {
    bool llama3; /* false: no scaling */
    double factor, low_freq_factor, high_freq_factor;
    int64_t original_max_position_embeddings;
};

/* A resolved configuration. Plain data: copied by assignment, compared by digest. */
struct ls_config {
    char name[LS_CONFIG_NAME_SIZE];
    struct {
        char init_from[LS_CONFIG_PATH_MAX]; /* a Hugging Face folder: shape and first weights; "": none */
        enum ls_model_type model_type;
        int64_t hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, intermediate_size;
        int64_t sliding_window;          /* keys that a query sees, its own among them; 0: all before it */
        int64_t max_position_embeddings; /* 0 until resolved: data.sequence_length */
        int64_t vocab_size;              /* 0: the dataset's, filled when the dataset is open */
        bool tie_word_embeddings;
        double layer_norm_epsilon, rms_norm_eps, rope_theta, initializer_range;
        struct ls_config_rope_scaling rope_scaling;
        double dropout; /* refused unless 0 */
    } model;
    struct {
        struct ls_config_source train[LS_CONFIG_SOURCES_MAX], validation[LS_CONFIG_SOURCES_MAX];
        int train_count, validation_count;
        int64_t sequence_length;
        bool document_mask;
        bool audit; /* files are hashed beside training */
        uint64_t seed;
    } data;
    struct {
        int64_t steps;  /* 0: not given */
        int64_t epochs; /* 0: not given */
        int64_t global_batch_size, micro_batch_size;
        double gradient_clipping; /* 0: off */
        enum ls_reduction reduction;
        uint64_t seed;
    } train;
    enum ls_precision precision;
    struct {
        enum ls_optimizer_type type;
        double lr, beta1, beta2, eps, weight_decay, momentum;
        bool stochastic_rounding; /* bf16: no master weights, updates are rounded stochastically */
    } optimizer;
    struct {
        enum ls_schedule_type type;
        int64_t warmup_steps;
        double min_lr_ratio;
        double decay_ratio; /* wsd: the last part of the run that decays, default 0.2 */
    } lr_schedule;
    struct {
        int64_t stage;    /* 0 to 3 */
        int64_t replicas; /* copies of what is sharded; divides the ranks */
        enum ls_accumulate accumulate;
        enum ls_gradient_dtype gradient_dtype; /* on the wire */
    } zero;
    struct {
        enum ls_checkpointing_mode mode;
        int64_t every; /* full: layers of a segment */
    } activation_checkpointing;
    struct {
        int64_t limit; /* bytes of a rank; 0: the device's */
    } memory;
    struct {
        int64_t every_steps; /* 0: never */
        int64_t batches;     /* global batches of an evaluation; 0: the whole split */
    } evaluation;
    struct {
        int64_t every_steps;        /* 0: only after the last step */
        int64_t every_seconds;      /* 0: never */
        int64_t keep;               /* newest ones; 0: all */
        int64_t keep_every;         /* and multiples of so many steps; 0: none */
        int64_t keep_best;          /* and so many by validation loss */
        int64_t before_end_seconds; /* of the Slurm job; 0: auto */
        bool async;                 /* written beside training */
    } checkpoint;
    struct {
        int64_t coordinator_timeout_seconds;
        int64_t start_timeout_seconds; /* how long the coordinator waits for every rank to join */
        int64_t stall_timeout_seconds; /* 0: auto */
        int64_t replica_check_every;   /* steps; 0: never */
        enum ls_replica_mismatch replica_mismatch;
        int64_t max_restarts; /* in a row, without progress */
        int64_t min_ranks;    /* that may go on when not as many as wanted can be placed; 0: all */
        enum ls_nonfinite_policy nonfinite;
        double loss_spike_factor;        /* 0: off */
        int64_t connect_timeout_seconds; /* how long a host tries the coordinator's addresses at first */
    } fault;
    struct {
        char bind[64];      /* "auto" or a numeric address */
        char interface[16]; /* network interface to listen on, "": any */
        int64_t port;       /* 0: any free one */
    } coordinator;
    struct {
        enum ls_launcher_type type;
        int64_t ranks, ranks_per_node, threads_per_rank;            /* 0: auto */
        char arguments[LS_CONFIG_TEXTS_MAX][LS_CONFIG_TEXT_SIZE];   /* of mpirun or srun */
        char wrapper[LS_CONFIG_TEXTS_MAX][LS_CONFIG_TEXT_SIZE];     /* before the worker's command */
        char environment[LS_CONFIG_TEXTS_MAX][LS_CONFIG_TEXT_SIZE]; /* NAME or NAME=value, for all ranks */
        int arguments_count, wrapper_count, environment_count;
    } launcher;
    struct {
        bool tensorboard;                    /* event files beside metrics.jsonl */
        char prometheus[LS_CONFIG_PATH_MAX]; /* the folder of node_exporter's textfile collector, absolute; "": none */
    } metrics;
    enum ls_device_choice device;
    struct {
        bool share; /* ranks may be on one GPU, for tests */
        bool tf32;  /* products of fp32 */
    } gpu;
};

/* Reads `path`, applies `settings` ("key=value", value in YAML; later ones win), checks every value and the rules
 * between keys, and makes relative paths absolute. Errors are LS_USAGE and name the file, line, key, the value found
 * and the values allowed; an unknown key names the nearest known one. *config is set only on success, unused bytes
 * zero. */
enum ls_code ls_config_load(const char *path, const char *const *settings, int settings_count, struct ls_config *config,
                            struct ls_error *error);

/* The same from bytes in memory; `name` stands for the file in messages and gives the default of `name`. */
enum ls_code ls_config_parse(const char *yaml, size_t bytes, const char *name, const char *const *settings,
                             int settings_count, struct ls_config *config, struct ls_error *error);

/* Writes the resolved configuration as YAML that parses back to the same configuration (every key, in table order).
 * *yaml is malloc'ed, NUL-terminated; the caller frees it. */
enum ls_code ls_config_write(const struct ls_config *config, char **yaml, struct ls_error *error);

/* XXH3-128 of the keys that make up the run's identity, as 32 hex digits: what changes the result of training (model,
 * data, train, precision, optimizer, lr_schedule), not where or how it runs. The paths of datasets and data.validation
 * are left out: the digests of the datasets stand for what they hold, so data may move. */
void ls_config_digest(const struct ls_config *config, char digest[33]);

/* A full step feeds every rank at least one sequence, and zero.replicas divides the ranks: LS_USAGE unless 1 <= ranks
 * <= train.global_batch_size and so. */
enum ls_code ls_config_check_ranks(const struct ls_config *config, int64_t ranks, struct ls_error *error);

/* Micro-batches that every one of `ranks` ranks runs in a step of `sequences` sequences over all ranks. */
int64_t ls_config_micro_batches(const struct ls_config *config, int64_t sequences, int64_t ranks);

/* Slots of a step of `sequences` sequences, train.reduction: fixed. */
int64_t ls_config_slots(const struct ls_config *config, int64_t sequences);

/* Prints every key with its type, default and meaning: as a table for a terminal, or as Markdown for
 * docs/configuration.md. */
void ls_config_print_keys(FILE *out, bool markdown);

#endif
