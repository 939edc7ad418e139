/* The table of keys and what can be asked of it. The listing (config --keys, docs/configuration.md) is in
 * key_table_print.c.
 */
#include "common/key_table.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

static const struct ls_choice MODEL_TYPES[] = {{"gpt2", LS_GPT2, NULL},       {"llama", LS_LLAMA, NULL},
                                               {"qwen2", LS_QWEN2, NULL},     {"qwen3", LS_QWEN3, NULL},
                                               {"mistral", LS_MISTRAL, NULL}, {0}};
static const struct ls_choice ROPE_TYPES[] = {{"default", false, NULL}, {"llama3", true, NULL}, {0}};
static const struct ls_choice REDUCTIONS[] = {
    {"fast", LS_REDUCTION_FAST, NULL}, {"fixed", LS_REDUCTION_FIXED, NULL}, {0}};
static const struct ls_choice PRECISIONS[] = {
    {"fp32", LS_PRECISION_FP32, NULL}, {"bf16", LS_PRECISION_BF16, NULL}, {"fp16", LS_PRECISION_FP16, NULL}, {0}};
static const struct ls_choice OPTIMIZERS[] = {
    {"adamw", LS_ADAMW, NULL}, {"lion", LS_LION, NULL}, {"muon", LS_MUON, NULL}, {"sgd", LS_SGD, NULL}, {0}};
static const struct ls_choice ACCUMULATIONS[] = {{"auto", LS_ACCUMULATE_AUTO, NULL},
                                                 {"local", LS_ACCUMULATE_LOCAL, NULL},
                                                 {"sharded", LS_ACCUMULATE_SHARDED, NULL},
                                                 {0}};
static const struct ls_choice GRADIENT_DTYPES[] = {
    {"fp32", LS_GRADIENT_FP32, NULL}, {"bf16", LS_GRADIENT_BF16, NULL}, {0}};
static const struct ls_choice POLICIES[] = {
    {"stop", LS_POLICY_STOP, NULL}, {"skip", LS_POLICY_SKIP, NULL}, {"rollback", LS_POLICY_ROLLBACK, NULL}, {0}};
static const struct ls_choice SCHEDULES[] = {{"cosine", LS_COSINE, NULL},
                                             {"linear", LS_LINEAR, NULL},
                                             {"constant", LS_CONSTANT, NULL},
                                             {"wsd", LS_WSD, NULL},
                                             {0}};
static const struct ls_choice CHECKPOINTING[] = {{"none", LS_CHECKPOINTING_NONE, NULL},
                                                 {"full", LS_CHECKPOINTING_FULL, NULL},
                                                 {"selective", LS_CHECKPOINTING_SELECTIVE, NULL},
                                                 {0}};
static const struct ls_choice MISMATCHES[] = {
    {"stop", LS_REPLICA_STOP, NULL}, {"rollback", LS_REPLICA_ROLLBACK, NULL}, {0}};
static const struct ls_choice LAUNCHERS[] = {{"auto", LS_LAUNCH_AUTO, NULL},
                                             {"mpirun", LS_LAUNCH_MPIRUN, NULL},
                                             {"srun", LS_LAUNCH_SRUN, NULL},
                                             {"none", LS_LAUNCH_NONE, NULL},
                                             {0}};
static const struct ls_choice DEVICES[] = {
    {"auto", LS_DEVICE_AUTO, NULL}, {"cpu", LS_DEVICE_CPU, NULL}, {"cuda", LS_DEVICE_CUDA, NULL}, {0}};
static const struct ls_choice DTYPES[] = {{"uint16", 0, NULL}, {0}};
static const struct ls_choice DOCUMENT_ENDS[] = {{"start", false, NULL}, {"end", true, NULL}, {0}};

#define FIELD(member)     .offset = offsetof(struct ls_config, member)
#define SOURCE(member)    .offset = offsetof(struct ls_config_source, member)
#define COUNTED(member)   FIELD(member), .count_offset = offsetof(struct ls_config, member##_count)
#define INTEGER(from, to) .type = LS_KEY_INTEGER, .least = (from), .most = (to)
#define NUMBER(from, to)  .type = LS_KEY_NUMBER, .lower = (from), .upper = (to)
#define CHOICE(words)     .type = LS_KEY_CHOICE, .choices = (words)
#define TEXT(bytes)       .type = LS_KEY_TEXT, .size = (bytes)

/* The upper ends of the shapes are chosen so that products of sizes as they occur (micro-batch x sequence x hidden, in
 * bytes) stay inside 63 bits. */
static const struct ls_key CONFIG_KEYS[] = {
    {"name", TEXT(LS_CONFIG_NAME_SIZE), FIELD(name), .derived = "the file's stem",
     .meaning = "name of the run, and of its folder under runs/; letters, digits, '.', '_', '-'"},

    {"model.init_from", TEXT(LS_CONFIG_PATH_MAX), FIELD(model.init_from), .derived = "none", .identity = true,
     .meaning = "a Hugging Face folder (GPT-2, Llama, Qwen2, Qwen3, Mistral) whose weights the run starts from; model "
                "keys not "
                "given are its",
     .elsewhere = "pretrained_model_name_or_path load_from init_checkpoint"},
    {"model.model_type", CHOICE(MODEL_TYPES), FIELD(model.model_type), .identity = true,
     .meaning = "family of the model"},
    {"model.hidden_size", INTEGER(1, 1 << 18), FIELD(model.hidden_size), .identity = true,
     .meaning = "width of the residual stream", .elsewhere = "n_embd d_model dim n_embed embed_dim"},
    {"model.num_hidden_layers", INTEGER(1, LS_CONFIG_LAYERS_MAX), FIELD(model.num_hidden_layers), .identity = true,
     .meaning = "transformer layers", .elsewhere = "n_layer n_layers num_layers layers depth"},
    {"model.num_attention_heads", INTEGER(1, 16384), FIELD(model.num_attention_heads), .identity = true,
     .meaning = "query heads", .elsewhere = "n_head n_heads num_heads heads"},
    {"model.num_key_value_heads", INTEGER(1, 16384), FIELD(model.num_key_value_heads), .scope = LS_KEY_LLAMA,
     .derived = "num_attention_heads", .identity = true,
     .meaning = "key and value heads, each shared by a group of query heads; divides num_attention_heads",
     .elsewhere = "n_kv_heads num_kv_heads n_kv_head num_query_groups"},
    {"model.head_dim", INTEGER(2, LS_CONFIG_HEAD_DIM_MAX), FIELD(model.head_dim), .scope = LS_KEY_LLAMA,
     .derived = "hidden_size / num_attention_heads", .identity = true,
     .meaning = "width of a head; even, at most 256 on GPUs", .elsewhere = "kv_channels head_size"},
    {"model.intermediate_size", INTEGER(1, 1 << 21), FIELD(model.intermediate_size), .identity = true,
     .derived = "4 x hidden_size for gpt2, else required", .meaning = "inner width of the feed-forward layers",
     .elsewhere = "n_inner ffn_hidden_size ffn_dim"},
    {"model.max_position_embeddings", INTEGER(1, 1 << 22), FIELD(model.max_position_embeddings), .identity = true,
     .derived = "data.sequence_length", .meaning = "positions the model knows; at least data.sequence_length",
     .elsewhere = "n_positions n_ctx max_seq_len"},
    {"model.vocab_size", INTEGER(1, LS_CONFIG_VOCABULARY_MAX), FIELD(model.vocab_size), .otherwise = "null",
     .identity = true, .derived = "the dataset's", .meaning = "token ids the model knows",
     .elsewhere = "n_vocab padded_vocab_size"},
    {"model.tie_word_embeddings", LS_KEY_BOOLEAN, FIELD(model.tie_word_embeddings), .identity = true,
     .derived = "true for gpt2, else false", .meaning = "the head uses the embedding's weights",
     .elsewhere = "tie_embeddings weight_tying"},
    {"model.layer_norm_epsilon", NUMBER(1e-20, 1), FIELD(model.layer_norm_epsilon), .scope = LS_KEY_GPT2,
     .standard = "1.0e-5", .identity = true, .meaning = "added to the variance in LayerNorm",
     .elsewhere = "layer_norm_eps norm_eps"},
    {"model.rms_norm_eps", NUMBER(1e-20, 1), FIELD(model.rms_norm_eps), .scope = LS_KEY_LLAMA, .standard = "1.0e-5",
     .identity = true, .meaning = "added to the mean square in RMSNorm", .elsewhere = "norm_eps rms_norm_epsilon"},
    {"model.rope_theta", NUMBER(1, 1e12), FIELD(model.rope_theta), .scope = LS_KEY_LLAMA, .standard = "10000.0",
     .identity = true, .meaning = "base of the rotary position angles", .elsewhere = "rotary_base rope_base"},
    {"model.rope_scaling.rope_type", CHOICE(ROPE_TYPES), FIELD(model.rope_scaling.llama3), .size = sizeof(bool),
     .scope = LS_KEY_LLAMA, .standard = "default", .identity = true,
     .meaning = "stretch of the rotary angles: default (none) or Llama 3.1's", .elsewhere = "type"},
    {"model.rope_scaling.factor", NUMBER(1, 1e6), FIELD(model.rope_scaling.factor), .scope = LS_KEY_LLAMA3_ROPE,
     .identity = true, .meaning = "stretch of the low frequencies"},
    {"model.rope_scaling.low_freq_factor", NUMBER(1e-6, 1e6), FIELD(model.rope_scaling.low_freq_factor),
     .scope = LS_KEY_LLAMA3_ROPE, .identity = true,
     .meaning = "wavelengths above original_max_position_embeddings / this are stretched in full"},
    {"model.rope_scaling.high_freq_factor", NUMBER(1e-6, 1e6), FIELD(model.rope_scaling.high_freq_factor),
     .scope = LS_KEY_LLAMA3_ROPE, .identity = true,
     .meaning = "wavelengths below original_max_position_embeddings / this stay; above low_freq_factor"},
    {"model.rope_scaling.original_max_position_embeddings", INTEGER(1, 1 << 22),
     FIELD(model.rope_scaling.original_max_position_embeddings), .scope = LS_KEY_LLAMA3_ROPE, .identity = true,
     .meaning = "positions before the stretch"},
    {"model.sliding_window", INTEGER(1, 1 << 22), FIELD(model.sliding_window), .scope = LS_KEY_MISTRAL,
     .otherwise = "null", .derived = "null", .identity = true,
     .meaning = "tokens that attention sees, the query's own among them; null: all before it",
     .elsewhere = "window_size attention_window"},
    {"model.initializer_range", NUMBER(0, 10), FIELD(model.initializer_range), .standard = "0.02", .identity = true,
     .meaning = "standard deviation of the initial weights", .elsewhere = "init_std init_method_std"},
    {"model.dropout", NUMBER(0, 0), FIELD(model.dropout), .standard = "0.0", .identity = true,
     .meaning = "dropout, which is not supported: only 0 is taken",
     .elsewhere = "resid_pdrop embd_pdrop attn_pdrop attention_dropout hidden_dropout"},

    {"data.train", LS_KEY_SOURCES, COUNTED(data.train), .identity = true,
     .meaning = "datasets to train on: a list of maps with the keys data.train[] below",
     .elsewhere = "dataset datasets"},
    {"data.validation", LS_KEY_SOURCES, COUNTED(data.validation), .standard = "[]",
     .meaning = "datasets to evaluate on: the same maps, without weight", .elsewhere = "val eval valid"},
    {"data.sequence_length", INTEGER(1, 1 << 22), FIELD(data.sequence_length), .identity = true,
     .meaning = "tokens of a sequence", .elsewhere = "seq_len seq_length block_size context_length"},
    {"data.document_mask", LS_KEY_BOOLEAN, FIELD(data.document_mask), .standard = "true", .identity = true,
     .meaning = "attention does not cross documents", .elsewhere = "reset_attention_mask"},
    {"data.seed", INTEGER(0, INT64_MAX), FIELD(data.seed), .standard = "0", .identity = true,
     .meaning = "keys the order of the samples", .elsewhere = "shuffle_seed"},
    {"data.audit", LS_KEY_BOOLEAN, FIELD(data.audit), .standard = "true",
     .meaning = "hash each data file once, beside training, and tell of one that is not as dataset.json says",
     .elsewhere = "validate_hash verify_data"},

    {"train.steps", INTEGER(1, 1000000000), FIELD(train.steps), .otherwise = "null", .identity = true,
     .derived = "exactly one of steps and epochs", .meaning = "optimizer updates",
     .elsewhere = "max_steps max_iters train_iters num_steps training_steps"},
    {"train.epochs", INTEGER(1, 1000000), FIELD(train.epochs), .otherwise = "null", .identity = true,
     .derived = "exactly one of steps and epochs", .meaning = "passes over the data; not with weights",
     .elsewhere = "num_epochs num_train_epochs"},
    {"train.global_batch_size", INTEGER(1, 1 << 26), FIELD(train.global_batch_size), .identity = true,
     .meaning = "sequences per step, all ranks", .elsewhere = "train_batch_size total_batch_size batch_size"},
    {"train.micro_batch_size", INTEGER(1, 1 << 16), FIELD(train.micro_batch_size), .identity = true,
     .meaning = "sequences per rank and forward; at most global_batch_size",
     .elsewhere = "train_micro_batch_size_per_gpu per_device_train_batch_size"},
    {"train.gradient_clipping", NUMBER(0, 1e9), FIELD(train.gradient_clipping), .standard = "1.0", .identity = true,
     .meaning = "largest global norm of the gradients; 0: off",
     .elsewhere = "grad_clip clip_grad max_norm max_grad_norm"},
    {"train.reduction", CHOICE(REDUCTIONS), FIELD(train.reduction), .standard = "fast", .identity = true,
     .meaning = "how gradients are summed over the ranks: fast, or fixed: in an order that gives the same bits at any "
                "rank count up to global_batch_size / micro_batch_size, ZeRO stage and number of threads"},
    {"train.seed", INTEGER(0, INT64_MAX), FIELD(train.seed), .standard = "0", .identity = true,
     .meaning = "keys the initial weights and stochastic rounding", .elsewhere = "seed random_seed"},

    {"precision", CHOICE(PRECISIONS), FIELD(precision), .standard = "fp32", .identity = true,
     .meaning = "type of weights and activations; sums, statistics, loss and master weights are fp32",
     .elsewhere = "dtype torch_dtype mixed_precision"},

    {"optimizer.type", CHOICE(OPTIMIZERS), FIELD(optimizer.type), .standard = "adamw", .identity = true,
     .meaning =
         "update rule: AdamW, Lion (the sign of a momentum), Muon (orthogonal steps for the matrices of layers, AdamW "
         "for the rest), or SGD with momentum; what is not AdamW's keeps one number a parameter where that keeps two"},
    {"optimizer.lr", NUMBER(0, 1000), FIELD(optimizer.lr), .standard = "6.0e-4", .identity = true,
     .meaning = "largest learning rate", .elsewhere = "learning_rate max_lr"},
    {"optimizer.betas", .type = LS_KEY_PAIR, .lower = 0, .upper = 1, .below_upper = true, FIELD(optimizer.beta1),
     .scope = LS_KEY_NOT_SGD, .derived = "[0.9, 0.95], lion: [0.9, 0.99]", .identity = true,
     .meaning =
         "decay of the first and the second moment; lion: of the momentum whose sign is taken, and of the one kept; "
         "muon: of what is AdamW's",
     .elsewhere = "beta1 beta2 adam_beta1 adam_beta2"},
    {"optimizer.momentum", .type = LS_KEY_NUMBER, .lower = 0, .upper = 1, .below_upper = true,
     FIELD(optimizer.momentum), .scope = LS_KEY_MOMENTUM, .derived = "0.9, muon: 0.95", .identity = true,
     .meaning = "decay of the sum of gradients that is the update; muon: of the mean that is made orthogonal",
     .elsewhere = "sgd_momentum muon_momentum"},
    {"optimizer.eps", NUMBER(1e-30, 1), FIELD(optimizer.eps), .scope = LS_KEY_ADAM, .standard = "1.0e-8",
     .identity = true, .meaning = "added to the root of the second moment",
     .elsewhere = "epsilon adam_eps adam_epsilon"},
    {"optimizer.weight_decay", NUMBER(0, 1000), FIELD(optimizer.weight_decay), .standard = "0.1", .identity = true,
     .meaning = "decoupled weight decay of the matrices", .elsewhere = "wd decay"},
    {"optimizer.stochastic_rounding", LS_KEY_BOOLEAN, FIELD(optimizer.stochastic_rounding), .scope = LS_KEY_BF16,
     .standard = "false", .identity = true, .only_if_true = true,
     .meaning = "no fp32 master weights: updates are added to the bf16 weights and rounded up or down by chance, keyed "
                "by train.seed, so that they are right on average; 4 bytes a parameter less",
     .elsewhere = "bf16_stochastic_round use_master_weights master_weights"},

    {"lr_schedule.type", CHOICE(SCHEDULES), FIELD(lr_schedule.type), .standard = "cosine", .identity = true,
     .meaning = "course of the learning rate after the warm-up", .elsewhere = "lr_decay_style decay_type scheduler"},
    {"lr_schedule.warmup_steps", INTEGER(0, 1000000000), FIELD(lr_schedule.warmup_steps), .standard = "0",
     .identity = true, .meaning = "steps of linear rise from 0; at most train.steps",
     .elsewhere = "warmup_iters warmup lr_warmup_iters num_warmup_steps"},
    {"lr_schedule.min_lr_ratio", NUMBER(0, 1), FIELD(lr_schedule.min_lr_ratio), .standard = "0.1", .identity = true,
     .meaning = "last learning rate as a part of the largest (cosine, linear, wsd)",
     .elsewhere = "min_lr min_lr_factor"},
    {"lr_schedule.decay_ratio", NUMBER(0, 1), FIELD(lr_schedule.decay_ratio), .standard = "0.2", .identity = true,
     .meaning = "wsd: the last part of the steps, in which the learning rate falls", .elsewhere = "cooldown"},

    {"zero.stage", INTEGER(0, 3), FIELD(zero.stage), .standard = "0",
     .meaning = "what is sharded over the ranks: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters",
     .elsewhere = "zero_stage zero_optimization_stage"},
    {"zero.replicas", INTEGER(1, 1 << 20), FIELD(zero.replicas), .standard = "1",
     .meaning = "groups of ranks, each with a whole sharded state; divides the ranks",
     .elsewhere = "num_replicas replica_groups"},
    {"zero.accumulate", CHOICE(ACCUMULATIONS), FIELD(zero.accumulate), .standard = "auto",
     .meaning = "where the gradients of micro-batches add up: local (whole, one reduction a step; stages 0 and 1), "
                "sharded (slices, one a micro-batch; stages 1 to 3), auto: local where it is possible"},
    {"zero.gradient_dtype", CHOICE(GRADIENT_DTYPES), FIELD(zero.gradient_dtype), .standard = "fp32", .identity = true,
     .meaning = "type of gradients on the wire; they add up in fp32 before and after",
     .elsewhere = "reduce_dtype grad_reduce_dtype"},

    {"activation_checkpointing.mode", CHOICE(CHECKPOINTING), FIELD(activation_checkpointing.mode), .standard = "none",
     .meaning =
         "what backward computes again instead of keeping it: nothing, whole layers (full), or norms, activation "
         "functions and attention (selective)",
     .elsewhere = "gradient_checkpointing recompute recompute_granularity"},
    {"activation_checkpointing.every", INTEGER(1, 4096), FIELD(activation_checkpointing.every), .standard = "1",
     .meaning = "full: keep the input of every n-th layer and compute n layers again at a time",
     .elsewhere = "recompute_num_layers checkpoint_every_n_layers"},
    {"memory.limit", INTEGER(0, INT64_C(1) << 60), FIELD(memory.limit), .standard = "0",
     .meaning = "bytes that a rank may take by plan; 0: what its device has. A run that needs more is not started",
     .elsewhere = "max_memory memory_limit gpu_memory"},

    {"evaluation.every_steps", INTEGER(0, 1000000000), FIELD(evaluation.every_steps), .standard = "0",
     .meaning = "steps between evaluations; 0: none", .elsewhere = "eval_interval eval_steps val_loss_every"},
    {"evaluation.batches", INTEGER(0, 1000000000), FIELD(evaluation.batches), .standard = "0",
     .meaning = "global batches of an evaluation; 0: the whole split", .elsewhere = "eval_iters val_max_steps"},

    {"metrics.tensorboard", LS_KEY_BOOLEAN, FIELD(metrics.tensorboard), .standard = "false",
     .meaning = "also write losses, rates and times as TensorBoard's event files, into RUN/tensorboard/",
     .elsewhere = "enable_tensorboard report_to tensorboard_dir tensorboard_log_dir"},
    {"metrics.prometheus", TEXT(LS_CONFIG_PATH_MAX), FIELD(metrics.prometheus), .otherwise = "", .derived = "none",
     .meaning = "the folder of node_exporter's textfile collector: lockstep-RUN.prom there holds the run's metrics",
     .elsewhere = "textfile_directory prometheus_port metrics_port"},

    {"checkpoint.every_steps", INTEGER(0, 1000000000), FIELD(checkpoint.every_steps), .standard = "0",
     .meaning = "steps between checkpoints; 0: only the last step, which is always saved",
     .elsewhere = "save_interval save_steps interval checkpoint_every"},
    {"checkpoint.every_seconds", INTEGER(0, 31536000), FIELD(checkpoint.every_seconds), .standard = "0",
     .meaning = "seconds from one checkpoint to the next, saved behind the step in which they end; 0: never",
     .elsewhere = "save_interval_seconds"},
    {"checkpoint.async", LS_KEY_BOOLEAN, FIELD(checkpoint.async), .standard = "true",
     .meaning = "write checkpoints beside the steps that follow; false: no step runs until one is committed",
     .elsewhere = "async_mode async_save"},
    {"checkpoint.keep", INTEGER(0, 63), FIELD(checkpoint.keep), .standard = "2",
     .meaning = "newest checkpoints that are kept, older ones are removed; 0: all",
     .elsewhere = "save_total_limit keep_last_n max_keep"},
    {"checkpoint.keep_every", INTEGER(0, 1000000000), FIELD(checkpoint.keep_every), .standard = "0",
     .meaning = "checkpoints of steps that are multiples of this stay for ever; 0: none do",
     .elsewhere = "keep_period"},
    {"checkpoint.keep_best", INTEGER(0, 63), FIELD(checkpoint.keep_best), .standard = "0",
     .meaning = "so many checkpoints with the lowest validation loss stay, RUN/best links to the best; needs "
                "checkpoint.every_steps to be a multiple of evaluation.every_steps",
     .elsewhere = "save_best save_top_k"},
    {"checkpoint.before_end_seconds", INTEGER(1, 86400), FIELD(checkpoint.before_end_seconds), .otherwise = "auto",
     .standard = "auto",
     .meaning =
         "in a Slurm job: how long before its time is up the run is saved and ends with 75; auto: a tenth of the "
         "job's time, from 20 s to 300 s"},

    {"fault.coordinator_timeout_seconds", INTEGER(1, 604800), FIELD(fault.coordinator_timeout_seconds),
     .standard = "120", .meaning = "how long workers go on looking for a lost coordinator"},
    {"fault.start_timeout_seconds", INTEGER(1, 604800), FIELD(fault.start_timeout_seconds), .standard = "300",
     .meaning = "how long the coordinator waits until every rank has joined",
     .elsewhere = "init_timeout_seconds join_timeout_seconds"},
    {"fault.stall_timeout_seconds", INTEGER(1, 604800), FIELD(fault.stall_timeout_seconds), .otherwise = "auto",
     .standard = "auto",
     .meaning = "how long a step may stand still before the rank that holds it up is named and the attempt ends; auto: "
                "20 times a step's median time, at least 10, and start_timeout_seconds before the first step",
     .elsewhere = "train_timeout_seconds stall_timeout watchdog_timeout timeout"},
    {"fault.replica_check_every", INTEGER(0, 1000000000), FIELD(fault.replica_check_every), .standard = "0",
     .meaning =
         "steps between comparisons of a hash of all parameters over the ranks that hold copies of them; 0: none. "
         "Not at zero.stage 3 with one replica, where there are no copies"},
    {"fault.replica_mismatch", CHOICE(MISMATCHES), FIELD(fault.replica_mismatch), .standard = "stop",
     .meaning =
         "when copies of the parameters differ: stop (exit 1), or rollback to a checkpoint at which they agreed"},
    {"fault.connect_timeout_seconds", INTEGER(1, 3600), FIELD(fault.connect_timeout_seconds), .standard = "30",
     .meaning = "how long every host tries the coordinator's addresses before it is named as one that cannot reach it",
     .elsewhere = "rdzv_timeout connection_timeout"},

    {"fault.max_restarts", INTEGER(0, 1000000), FIELD(fault.max_restarts), .standard = "3",
     .meaning = "restarts from the newest checkpoint after a loss or a stall, counted since the last new checkpoint; "
                "used up, the run ends with the code of the last cause",
     .elsewhere = "max_retries retries torchrun.max_restarts"},
    {"fault.min_ranks", INTEGER(0, 1 << 20), FIELD(fault.min_ranks), .standard = "0",
     .meaning =
         "a restart may go on with fewer ranks, down to this many, when hosts are lost or left out after repeated "
         "losses, or a rank is lost three times in a row where no host can be left out; 0: only with as many as the "
         "run began with",
     .elsewhere = "min_nodes min_nnodes"},
    {"fault.nonfinite", CHOICE(POLICIES), FIELD(fault.nonfinite), .standard = "stop",
     .meaning =
         "what to do about a loss or gradient that is not finite, or a loss that spikes: stop (exit 7), skip the "
         "update, or rollback: restart from the last checkpoint and pass over the step's sequences",
     .elsewhere = "skip_nan terminate_on_nan"},
    {"fault.loss_spike_factor", NUMBER(0, 1e6), FIELD(fault.loss_spike_factor), .standard = "0.0",
     .meaning = "a loss above this factor times the median of the last 64 steps counts as not finite; 0: off",
     .elsewhere = "spike_threshold"},

    {"coordinator.bind", TEXT(64), FIELD(coordinator.bind), .standard = "auto",
     .meaning = "address to listen on: auto (loopback if all ranks are here, else every address of this host, the one "
                "towards the other hosts first) or a numeric address",
     .elsewhere = "address host master_addr"},
    {"coordinator.interface", TEXT(16), FIELD(coordinator.interface), .otherwise = "", .derived = "none",
     .meaning = "network interface whose addresses are listened on, with bind: auto; none: all but loopback",
     .elsewhere = "ifname nic NCCL_SOCKET_IFNAME"},
    {"coordinator.port", INTEGER(0, 65535), FIELD(coordinator.port), .standard = "0",
     .meaning = "TCP port to listen on; 0: any free one", .elsewhere = "master_port"},

    {"launcher.type", CHOICE(LAUNCHERS), FIELD(launcher.type), .standard = "auto",
     .meaning = "what starts the workers; auto: mpirun, in a Slurm allocation what works there of srun and mpirun; "
                "none: somebody else does"},
    {"launcher.ranks", INTEGER(1, 1 << 20), FIELD(launcher.ranks), .otherwise = "auto", .standard = "auto",
     .meaning =
         "workers to start; auto: Slurm's tasks, else the slots of the hostfile, else the GPUs of this host, else 1",
     .elsewhere = "world_size num_workers nproc"},
    {"launcher.ranks_per_node", INTEGER(1, 4096), FIELD(launcher.ranks_per_node), .otherwise = "auto",
     .standard = "auto", .meaning = "largest number of workers on one host; auto: Slurm's or the hostfile's",
     .elsewhere = "nproc_per_node ntasks_per_node gpus_per_node tasks_per_node"},
    {"launcher.threads_per_rank", INTEGER(1, 4096), FIELD(launcher.threads_per_rank), .otherwise = "auto",
     .standard = "auto", .meaning = "threads of a worker on CPUs; auto: its part of the cores",
     .elsewhere = "omp_num_threads num_threads threads"},
    {"launcher.arguments", LS_KEY_TEXTS, COUNTED(launcher.arguments), .standard = "[]",
     .meaning = "further arguments of mpirun or srun", .elsewhere = "args mpirun_arguments"},
    {"launcher.wrapper", LS_KEY_TEXTS, COUNTED(launcher.wrapper), .standard = "[]",
     .meaning = "words before the worker's command on every host: a container's, a profiler's",
     .elsewhere = "prefix container launcher_prefix"},
    {"launcher.environment", LS_KEY_TEXTS, COUNTED(launcher.environment), .standard = "[]",
     .meaning = "environment variables for all ranks: NAME as it is here, or NAME=value", .elsewhere = "env export"},

    {"device", CHOICE(DEVICES), FIELD(device), .standard = "auto",
     .meaning = "where to compute; auto: GPUs where there are some, else CPUs", .elsewhere = "accelerator"},
    {"gpu.share", LS_KEY_BOOLEAN, FIELD(gpu.share), .standard = "false",
     .meaning = "ranks may be on one GPU: slow, for tests"},
    {"gpu.tf32", LS_KEY_BOOLEAN, FIELD(gpu.tf32), .standard = "false", .identity = true, .only_if_true = true,
     .meaning = "precision fp32 on GPUs: products round their factors to TF32", .elsewhere = "allow_tf32 tf32"},
};

static const struct ls_key SOURCE_KEYS[] = {
    {"path", TEXT(LS_CONFIG_PATH_MAX), SOURCE(path), .meaning = "folder or file of token shards, or synthetic:TOKENS"},
    {"weight", INTEGER(1, 1 << 30), SOURCE(weight), .otherwise = "null", .derived = "in proportion to size",
     .identity = true, .meaning = "share of the samples; for all datasets or for none", .elsewhere = "proportion"},
    {"dtype", .type = LS_KEY_TEXT, .choices = DTYPES, .size = 16, SOURCE(dtype), .derived = "from the file's header",
     .identity = true, .meaning = "type of the tokens of files without a header"},
    {"document_token.id", INTEGER(0, INT_MAX), SOURCE(document_token_id), .derived = "by the dataset's kind",
     .identity = true, .meaning = "token that separates documents", .elsewhere = "eod eot eos"},
    {"document_token.at", .type = LS_KEY_CHOICE, .choices = DOCUMENT_ENDS, SOURCE(document_token_at_end),
     .size = sizeof(bool), .standard = "start", .identity = true,
     .meaning = "end of the document at which that token stands"},
};

#define TABLE(rows, before)                                                                                            \
    { .keys = (rows), .count = (int)(sizeof(rows) / sizeof *(rows)), .prefix = (before) }
const struct ls_key_table ls_config_keys = TABLE(CONFIG_KEYS, "");
const struct ls_key_table ls_source_keys = TABLE(SOURCE_KEYS, "data.train[].");
_Static_assert(sizeof CONFIG_KEYS / sizeof *CONFIG_KEYS <= LS_KEYS_MAX, "the table fits what readers reserve");
_Static_assert(offsetof(struct ls_config, optimizer.beta2) - offsetof(struct ls_config, optimizer.beta1) ==
                   sizeof(double),
               "betas are read as a pair");

int ls_key_find(const struct ls_key_table *table, const char *name) {
    for (int i = 0; i < table->count; i++)
        if (!strcmp(table->keys[i].name, name)) return i;
    return -1;
}

bool ls_key_is_section(const struct ls_key_table *table, const char *name) {
    size_t length = strlen(name);
    for (int i = 0; i < table->count; i++)
        if (!strncmp(table->keys[i].name, name, length) && table->keys[i].name[length] == '.') return true;
    return false;
}

static const char *last_word(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

static bool has_word(const char *words, const char *word) {
    size_t length = strlen(word);
    for (const char *at = words; at && length && (at = strstr(at, word)); at += length)
        if ((at == words || at[-1] == ' ') && (at[length] == ' ' || !at[length])) return true;
    return false;
}

/* Edits (insert, delete, replace, swap neighbours) that turn a into b: the distance of Damerau in its restricted form.
 * Both have at most LS_KEY_NAME_MAX characters. */
static int edit_distance(const char *a, const char *b) {
    int rows[3][LS_KEY_NAME_MAX + 1];
    int n = (int)strlen(b);
    for (int j = 0; j <= n; j++) rows[0][j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int *row = rows[i % 3], *above = rows[(i + 2) % 3], *two_above = rows[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && two_above[j - 2] + 1 < best)
                best = two_above[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[strlen(a) % 3][n];
}

/* Keeps the first `length` characters of `candidate` if they are the nearest so far, and near. */
static void consider(const char *name, const char *candidate, size_t length, char nearest[LS_KEY_NAME_MAX],
                     int *distance) {
    char text[LS_KEY_NAME_MAX];
    snprintf(text, sizeof text, "%.*s", (int)length, candidate);
    int d = edit_distance(name, text);
    if (d >= *distance || d > 1 + (int)length / 4) return;
    *distance = d;
    memcpy(nearest, text, sizeof text);
}

bool ls_key_nearest(const struct ls_key_table *table, const char *name, char nearest[LS_KEY_NAME_MAX]) {
    if (strlen(name) >= LS_KEY_NAME_MAX) return false;
    int distance = INT_MAX;
    for (int i = 0; i < table->count; i++) {
        const char *key = table->keys[i].name;
        consider(name, key, strlen(key), nearest, &distance);
        for (const char *dot = strchr(key, '.'); dot; dot = strchr(dot + 1, '.'))
            consider(name, key, (size_t)(dot - key), nearest, &distance);
    }
    const char *word = last_word(name);
    for (int i = 0; i < table->count && distance > 2; i++)
        if (!strcmp(last_word(table->keys[i].name), word) || has_word(table->keys[i].elsewhere, word)) {
            snprintf(nearest, LS_KEY_NAME_MAX, "%s", table->keys[i].name);
            return true;
        }
    return distance < INT_MAX;
}

bool ls_key_is_equal(const struct ls_key *key, const struct ls_config *a, const struct ls_config *b) {
    static const size_t sizes[] = {[LS_KEY_INTEGER] = sizeof(int64_t),
                                   [LS_KEY_NUMBER] = sizeof(double),
                                   [LS_KEY_PAIR] = 2 * sizeof(double),
                                   [LS_KEY_BOOLEAN] = sizeof(bool),
                                   [LS_KEY_CHOICE] = sizeof(int)};
    const char *left = (const char *)a + key->offset, *right = (const char *)b + key->offset;
    if (key->type == LS_KEY_TEXT) return strcmp(left, right) == 0;
    return memcmp(left, right, key->type == LS_KEY_CHOICE && key->size ? key->size : sizes[key->type]) == 0;
}

bool ls_key_is_of_data(const struct ls_key *key) {
    return key->identity && strncmp(key->name, "data.", strlen("data.")) == 0;
}

bool ls_key_applies(const struct ls_key *key, const struct ls_config *config) {
    switch (key->scope) {
    case LS_KEY_ALWAYS: return true;
    case LS_KEY_GPT2: return config->model.model_type == LS_GPT2;
    case LS_KEY_LLAMA: return config->model.model_type != LS_GPT2;
    case LS_KEY_MISTRAL: return config->model.model_type == LS_MISTRAL;
    case LS_KEY_LLAMA3_ROPE: return config->model.model_type != LS_GPT2 && config->model.rope_scaling.llama3;
    case LS_KEY_BF16: return config->precision == LS_PRECISION_BF16;
    case LS_KEY_ADAM: return config->optimizer.type == LS_ADAMW || config->optimizer.type == LS_MUON;
    case LS_KEY_MOMENTUM: return config->optimizer.type == LS_SGD || config->optimizer.type == LS_MUON;
    case LS_KEY_NOT_SGD: return config->optimizer.type != LS_SGD;
    }
    return false;
}

static void describe_choices(const struct ls_choice *choices, char *text, size_t size) {
    int usable = 0;
    for (const struct ls_choice *choice = choices; choice->word; choice++) usable += !choice->refusal;
    size_t used = (size_t)snprintf(text, size, usable == 1 ? "only " : "one of ");
    const char *between = "";
    for (const struct ls_choice *choice = choices; choice->word && used < size; choice++)
        if (!choice->refusal) {
            used += (size_t)snprintf(text + used, size - used, "%s%s", between, choice->word);
            between = ", ";
        }
}

void ls_key_describe(const struct ls_key *key, char *text, size_t size) {
    if (key->choices) {
        describe_choices(key->choices, text, size);
        return;
    }
    const char *less = key->below_upper ? "less than " : "";
    switch (key->type) {
    case LS_KEY_INTEGER:
        snprintf(text, size, "an integer from %lld to %lld%s%s", (long long)key->least, (long long)key->most,
                 key->otherwise ? " or " : "", key->otherwise ? key->otherwise : "");
        break;
    case LS_KEY_NUMBER:
        if (key->lower < key->upper)
            snprintf(text, size, "a number from %g to %s%g", key->lower, less, key->upper);
        else
            snprintf(text, size, "only %g", key->lower);
        break;
    case LS_KEY_PAIR:
        snprintf(text, size, "a list of two numbers from %g to %s%g", key->lower, less, key->upper);
        break;
    case LS_KEY_BOOLEAN: snprintf(text, size, "true or false"); break;
    case LS_KEY_TEXT: snprintf(text, size, "a text of 1 to %zu bytes", key->size - 1); break;
    case LS_KEY_TEXTS: snprintf(text, size, "a list of at most %d texts", LS_CONFIG_TEXTS_MAX); break;
    case LS_KEY_SOURCES: snprintf(text, size, "a list of at most %d maps {path: ...}", LS_CONFIG_SOURCES_MAX); break;
    case LS_KEY_CHOICE: break;
    }
}
