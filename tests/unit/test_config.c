/* The configuration: values, ranges, rules between keys, hints, writing and the digest. Runs in the repository's root.
 */
#include "common/config.h"
#include "common/key_table.h"
#include "coordinator/command_config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define MODEL "model: {model_type: gpt2, hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 4}\n"
#define LLAMA                                                                                                          \
    "model: {model_type: llama, hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: "    \
    "100}\n"
#define DATA  "data: {train: [{path: /d/train}], sequence_length: 32}\n"
#define TRAIN "train: {steps: 10, global_batch_size: 8, micro_batch_size: 4}\n"

static struct ls_config config;
static struct ls_error error;

static enum ls_code parse(const char *yaml) {
    memset(&error, 0, sizeof error);
    return ls_config_parse(yaml, strlen(yaml), "run.yaml", NULL, 0, &config, &error);
}

static enum ls_code parse_set(const char *yaml, const char *setting) {
    memset(&error, 0, sizeof error);
    return ls_config_parse(yaml, strlen(yaml), "run.yaml", &setting, 1, &config, &error);
}

static void expect_text(const char *part) {
    if (!strstr(error.text, part)) fail_msg("expected '%s' in: %s", part, error.text);
}

/* The text is refused as a usage error whose message has all the parts. */
#define refuses(yaml, ...) expect_refusal(yaml, NULL, (const char *[]){__VA_ARGS__, NULL})
/* The same for a good file and one setting. */
#define refuses_set(setting, ...)   expect_refusal(MODEL DATA TRAIN, setting, (const char *[]){__VA_ARGS__, NULL})
#define refuses_llama(setting, ...) expect_refusal(LLAMA DATA TRAIN, setting, (const char *[]){__VA_ARGS__, NULL})

static void expect_refusal(const char *yaml, const char *setting, const char **parts) {
    enum ls_code code = setting ? parse_set(yaml, setting) : parse(yaml);
    if (code != LS_USAGE) fail_msg("%s %s: code %d instead of 2 (%s)", yaml, setting ? setting : "", code, error.text);
    assert_int_equal(error.code, LS_USAGE);
    for (; *parts; parts++) expect_text(*parts);
}

static void accepts(const char *yaml, const char *setting) {
    if ((setting ? parse_set(yaml, setting) : parse(yaml)) != LS_OK) fail_msg("refused: %s", error.text);
}

/* Numbers from docs/design.md, "Configuration". */
static void defaults_are_those_of_the_design_page(void **state) {
    (void)state;
    accepts(MODEL DATA TRAIN, NULL);
    assert_string_equal(config.name, "run");
    assert_int_equal(config.model.intermediate_size, 192);
    assert_int_equal(config.model.max_position_embeddings, 32);
    assert_int_equal(config.model.vocab_size, 0);
    assert_int_equal(config.model.num_key_value_heads, 4);
    assert_int_equal(config.model.head_dim, 12);
    assert_true(config.model.tie_word_embeddings);
    assert_true(config.model.layer_norm_epsilon == 1e-5);
    assert_true(config.model.initializer_range == 0.02);
    assert_true(config.model.dropout == 0);
    assert_int_equal(config.data.validation_count, 0);
    assert_true(config.data.document_mask);
    assert_int_equal(config.data.seed, 0);
    assert_int_equal(config.data.train[0].weight, 0);
    assert_int_equal(config.data.train[0].document_token_id, -1);
    assert_true(config.train.gradient_clipping == 1.0);
    assert_int_equal(config.train.reduction, LS_REDUCTION_FAST);
    assert_int_equal(config.train.seed, 0);
    assert_int_equal(config.train.epochs, 0);
    assert_int_equal(config.precision, LS_PRECISION_FP32);
    assert_true(config.optimizer.lr == 6.0e-4);
    assert_true(config.optimizer.beta1 == 0.9);
    assert_true(config.optimizer.beta2 == 0.95);
    assert_true(config.optimizer.eps == 1.0e-8);
    assert_true(config.optimizer.weight_decay == 0.1);
    assert_int_equal(config.lr_schedule.type, LS_COSINE);
    assert_int_equal(config.lr_schedule.warmup_steps, 0);
    assert_true(config.lr_schedule.min_lr_ratio == 0.1);
    assert_true(config.lr_schedule.decay_ratio == 0.2);
    assert_int_equal(config.evaluation.every_steps, 0);
    assert_int_equal(config.evaluation.batches, 0);
    assert_int_equal(config.checkpoint.every_steps, 0);
    assert_int_equal(config.fault.coordinator_timeout_seconds, 120);
    assert_int_equal(config.fault.start_timeout_seconds, 300);
    assert_int_equal(config.fault.max_restarts, 3);
    assert_int_equal(config.fault.min_ranks, 0);
    assert_int_equal(config.fault.nonfinite, LS_POLICY_STOP);
    assert_true(config.fault.loss_spike_factor == 0);
    assert_string_equal(config.coordinator.bind, "auto");
    assert_int_equal(config.coordinator.port, 0);
    assert_int_equal(config.launcher.type, LS_LAUNCH_AUTO);
    assert_int_equal(config.launcher.ranks, 0);
    assert_int_equal(config.launcher.threads_per_rank, 0);
    assert_int_equal(config.launcher.arguments_count, 0);
    assert_int_equal(config.device, LS_DEVICE_AUTO);
}

static void llama_defaults_follow_from_its_other_keys(void **state) {
    (void)state;
    accepts(LLAMA DATA TRAIN, NULL);
    assert_int_equal(config.model.num_key_value_heads, 4);
    assert_int_equal(config.model.head_dim, 12);
    assert_false(config.model.tie_word_embeddings);
    assert_true(config.model.rms_norm_eps == 1e-5);
    assert_true(config.model.rope_theta == 10000);
    assert_false(config.model.rope_scaling.llama3);
    accepts(LLAMA DATA TRAIN, "model.tie_word_embeddings=true");
    assert_true(config.model.tie_word_embeddings);
}

static void every_key_is_read_into_its_field(void **state) {
    (void)state;
    accepts("name: full-1.x\n"
            "model:\n  model_type: llama\n  hidden_size: 60\n  num_hidden_layers: 3\n  num_attention_heads: 6\n"
            "  num_key_value_heads: 2\n  head_dim: 16\n  intermediate_size: 161\n  max_position_embeddings: 77\n"
            "  vocab_size: 300\n  tie_word_embeddings: true\n  rms_norm_eps: 1e-6\n  rope_theta: 5.0e+5\n"
            "  rope_scaling: {rope_type: llama3, factor: 8, low_freq_factor: 1, high_freq_factor: 4.,\n"
            "                 original_max_position_embeddings: 64}\n"
            "  initializer_range: .01\n  dropout: 0\n"
            "data:\n  train:\n  - {path: synthetic:900, weight: 3}\n"
            "  - path: /a b/ü.bin\n    weight: 1\n    dtype: uint16\n    document_token: {id: 50256, at: end}\n"
            "  validation: [{path: '/v'}]\n  sequence_length: 33\n  document_mask: false\n  seed: 9223372036854775807\n"
            "train: {steps: 7, global_batch_size: 30, micro_batch_size: 5, gradient_clipping: 0, reduction: fast, "
            "seed: 5}\n"
            "precision: fp32\n"
            "optimizer: {type: adamw, lr: 1e-3, betas: [0, 0.999], eps: 1e-6, weight_decay: 0}\n"
            "lr_schedule: {type: wsd, warmup_steps: 7, min_lr_ratio: 1, decay_ratio: 0.5}\n"
            "zero: {stage: 1, replicas: 3, accumulate: sharded, gradient_dtype: bf16}\n"
            "evaluation: {every_steps: 2, batches: 4}\ncheckpoint: {every_steps: 3, before_end_seconds: 14}\n"
            "fault: {max_restarts: 13, min_ranks: 2, nonfinite: rollback, loss_spike_factor: 2.5, "
            "coordinator_timeout_seconds: 11, start_timeout_seconds: 12,\n"
            "        connect_timeout_seconds: 13}\n"
            "coordinator: {bind: '::1', port: 65535, interface: ''}\n"
            "launcher: {type: srun, ranks: 3, ranks_per_node: 4, threads_per_rank: 2, arguments: [--mca, 'a b', "
            "\"\\u00e9\"],\n"
            "           wrapper: [apptainer, exec], environment: [HOME, A=b c]}\n"
            "device: cuda\n"
            "gpu: {share: true, tf32: true}\n",
            NULL);
    assert_string_equal(config.name, "full-1.x");
    assert_int_equal(config.model.model_type, LS_LLAMA);
    assert_int_equal(config.model.hidden_size, 60);
    assert_int_equal(config.model.num_hidden_layers, 3);
    assert_int_equal(config.model.num_attention_heads, 6);
    assert_int_equal(config.model.num_key_value_heads, 2);
    assert_int_equal(config.model.head_dim, 16);
    assert_int_equal(config.model.intermediate_size, 161);
    assert_int_equal(config.model.max_position_embeddings, 77);
    assert_int_equal(config.model.vocab_size, 300);
    assert_true(config.model.tie_word_embeddings);
    assert_true(config.model.rms_norm_eps == 1e-6);
    assert_true(config.model.rope_theta == 500000);
    assert_true(config.model.rope_scaling.llama3);
    assert_true(config.model.rope_scaling.factor == 8);
    assert_true(config.model.rope_scaling.low_freq_factor == 1);
    assert_true(config.model.rope_scaling.high_freq_factor == 4);
    assert_int_equal(config.model.rope_scaling.original_max_position_embeddings, 64);
    assert_true(config.model.initializer_range == 0.01);
    assert_int_equal(config.zero.stage, 1);
    assert_int_equal(config.zero.replicas, 3);
    assert_int_equal(config.zero.accumulate, LS_ACCUMULATE_SHARDED);
    assert_int_equal(config.zero.gradient_dtype, LS_GRADIENT_BF16);
    assert_int_equal(config.data.train_count, 2);
    assert_string_equal(config.data.train[0].path, "synthetic:900");
    assert_int_equal(config.data.train[0].weight, 3);
    assert_string_equal(config.data.train[0].dtype, "");
    assert_string_equal(config.data.train[1].path, "/a b/ü.bin");
    assert_string_equal(config.data.train[1].dtype, "uint16");
    assert_int_equal(config.data.train[1].document_token_id, 50256);
    assert_true(config.data.train[1].document_token_at_end);
    assert_int_equal(config.data.validation_count, 1);
    assert_int_equal(config.data.sequence_length, 33);
    assert_false(config.data.document_mask);
    assert_true(config.data.seed == INT64_MAX);
    assert_int_equal(config.train.steps, 7);
    assert_int_equal(config.train.global_batch_size, 30);
    assert_int_equal(config.train.micro_batch_size, 5);
    assert_true(config.train.gradient_clipping == 0);
    assert_int_equal(config.train.seed, 5);
    assert_true(config.optimizer.lr == 1e-3);
    assert_true(config.optimizer.beta1 == 0);
    assert_true(config.optimizer.beta2 == 0.999);
    assert_true(config.optimizer.eps == 1e-6);
    assert_true(config.optimizer.weight_decay == 0);
    assert_int_equal(config.lr_schedule.type, LS_WSD);
    assert_int_equal(config.lr_schedule.warmup_steps, 7);
    assert_true(config.lr_schedule.min_lr_ratio == 1);
    assert_true(config.lr_schedule.decay_ratio == 0.5);
    assert_int_equal(config.evaluation.every_steps, 2);
    assert_int_equal(config.evaluation.batches, 4);
    assert_int_equal(config.checkpoint.every_steps, 3);
    assert_int_equal(config.fault.coordinator_timeout_seconds, 11);
    assert_int_equal(config.fault.start_timeout_seconds, 12);
    assert_int_equal(config.fault.max_restarts, 13);
    assert_int_equal(config.fault.min_ranks, 2);
    assert_int_equal(config.fault.nonfinite, LS_POLICY_ROLLBACK);
    assert_true(config.fault.loss_spike_factor == 2.5);
    assert_string_equal(config.coordinator.bind, "::1");
    assert_int_equal(config.coordinator.port, 65535);
    assert_int_equal(config.fault.connect_timeout_seconds, 13);
    assert_int_equal(config.checkpoint.before_end_seconds, 14);
    assert_string_equal(config.coordinator.interface, "");
    assert_int_equal(config.launcher.type, LS_LAUNCH_SRUN);
    assert_int_equal(config.launcher.ranks_per_node, 4);
    assert_int_equal(config.launcher.wrapper_count, 2);
    assert_string_equal(config.launcher.wrapper[1], "exec");
    assert_int_equal(config.launcher.environment_count, 2);
    assert_string_equal(config.launcher.environment[1], "A=b c");
    assert_int_equal(config.launcher.ranks, 3);
    assert_int_equal(config.launcher.threads_per_rank, 2);
    assert_int_equal(config.launcher.arguments_count, 3);
    assert_string_equal(config.launcher.arguments[1], "a b");
    assert_string_equal(config.launcher.arguments[2], "é");
    assert_int_equal(config.device, LS_DEVICE_CUDA);
    assert_true(config.gpu.share);
    assert_true(config.gpu.tf32);
}

static void unknown_keys_are_refused_with_the_nearest_name(void **state) {
    (void)state;
    refuses(MODEL DATA "train: {steps: 1,\n  stepz: 3}\n", "run.yaml:4:3: unknown key train.stepz",
            "Did you mean train.steps?");
    refuses_set("train.step=3", "Did you mean train.steps?");
    refuses_set("trian={steps: 3}", "unknown key trian", "Did you mean train?");
    refuses_set("steps=3", "Did you mean train.steps?");
    refuses_set("train.lr=3", "Did you mean optimizer.lr?");
    refuses_set("chekpoint.every_steps=3", "Did you mean checkpoint.every_steps?");
    refuses_set("learning_rate=3", "Did you mean optimizer.lr?");
    refuses_set("model.n_embd=3", "Did you mean model.hidden_size?");
    refuses_set("optimizer.beta2=0.9", "Did you mean optimizer.betas?");
    refuses_set("model.hiden_szie=3", "Did you mean model.hidden_size?");
    refuses_set("data.train=[{paht: x}]", "--set data.train:1:3: unknown key data.train[0].paht",
                "Did you mean data.train[0].path?");
    refuses("train.steps: 3\n" MODEL, "run.yaml:1:1: unknown key train.steps");
    parse_set(MODEL DATA TRAIN, "qqqqqqqqqqqqqqqq=1");
    assert_null(strstr(error.text, "Did you mean"));
}

static void keys_of_later_versions_are_unknown(void **state) {
    (void)state;
    refuses_set("zero.offload=cpu", "unknown key zero.offload");
    refuses(MODEL DATA TRAIN "fsdp: {stage: 1}\n", "run.yaml:4:1: unknown key fsdp");
    refuses_set("precision=fp8", "--set precision:1:1: precision: found fp8", "fp32, bf16, fp16");
    refuses_set("gpu.graphs=true", "unknown key gpu.graphs");
}

static void wrong_values_name_the_place_and_the_values_allowed(void **state) {
    (void)state;
    refuses(MODEL DATA "train:\n  steps: many\n",
            "run.yaml:4:10: train.steps: found many, allowed: an integer from 1 to 1000000000");
    refuses_set("train.steps=0", "found 0");
    refuses_set("checkpoint.keep=64", "found 64, allowed: an integer from 0 to 63");
    refuses_set("train.steps=-1", "found -1");
    refuses_set("train.steps=1000000001", "found 1000000001");
    refuses_set("train.steps=99999999999999999999", "found 99999999999999999999");
    refuses_set("train.steps=\"5\"", "found '5'");
    refuses_set("train.steps=1.0", "found 1.0");
    refuses_set("train.steps=010", "found 010");
    refuses_set("train.steps=0x10", "found 0x10");
    refuses_set("train.steps=1e3", "found 1e3");
    refuses_set("train.steps=[1]", "found a list");
    refuses_set("train.steps={a: 1}", "found a map");
    refuses_set("data.seed=-1", "an integer from 0 to 9223372036854775807");
    refuses_set("data.seed=9223372036854775808", "found 9223372036854775808");
    refuses_set("coordinator.port=65536", "from 0 to 65535");
    refuses_set("optimizer.lr=.nan", "found .nan", "a number from 0 to 1000");
    refuses_set("optimizer.lr=nan", "found nan");
    refuses_set("optimizer.lr=.inf", "found .inf");
    refuses_set("optimizer.lr=1e999", "found 1e999");
    refuses_set("optimizer.lr=-1e-9", "found -1e-9");
    refuses_set("optimizer.lr=0x1p3", "found 0x1p3");
    refuses_set("optimizer.lr=1e", "found 1e");
    refuses_set("optimizer.lr=.", "found .");
    refuses_set("optimizer.lr='1'", "found '1'");
    refuses_set("optimizer.lr=true", "found true");
    refuses_set("optimizer.eps=0", "optimizer.eps");
    refuses_set("optimizer.betas=[0.9, 1]", "--set optimizer.betas:1:7", "found 1,", "less than 1");
    refuses_set("optimizer.betas=[0.9, 0.99999999]", "optimizer.betas", "found 0.99999999", "1 in fp32");
    refuses_set("optimizer.betas=[0.99999999, 0.9]", "0.99999999");
    refuses_set("optimizer.betas=[0.9]", "a list of two numbers");
    refuses_set("optimizer.betas=[0.9, 0.9, 0.9]", "a list of two numbers");
    refuses_set("optimizer.betas=0.9", "a list of two numbers");
    refuses_set("optimizer.type=adafactor", "found adafactor", "one of adamw, lion, muon, sgd");
    refuses_set("lr_schedule.type=exponential", "one of cosine, linear, constant, wsd");
    refuses_set("lr_schedule.type=[cosine]", "found a list");
    refuses_set("lr_schedule.min_lr_ratio=1.01", "a number from 0 to 1");
    refuses_set("data.document_mask=yes", "found yes", "true or false");
    refuses_set("data.document_mask='true'", "found 'true'");
    refuses_set("model.dropout=0.1", "found 0.1", "only 0", "dropout, which is not supported");
    refuses_set("model.model_type=bert", "one of gpt2, llama");
    refuses_set("train=5", "train: found 5, allowed: a map of keys");
    refuses_set("data.train=/d", "data.train: found /d, allowed: a list of at most 64 maps");
    refuses_set("data.train=[/d]", "found /d");
    refuses_set("data.train=[{weight: 1}]", "data.train[0].path is not given");
    refuses_set("data.train=[{path: ''}]", "data.train[0].path", "a text of 1 to 1023 bytes");
    refuses_set("data.train=[{path: /a}, {path: /b, dtype: float}]", "data.train[1].dtype", "found float",
                "only uint16");
    refuses_set("data.train=[{path: /a, weight: 0}]", "data.train[0].weight", "found 0");
    refuses_set("data.train=[{path: /a, document_token: {at: end}}]", "without document_token.id");
    refuses_set("data.train=[{path: /a, document_token: 5}]", "data.train[0].document_token: found 5, allowed: a map");
    refuses_set("launcher.arguments=-x", "a list of at most 64 texts");
    refuses_set("launcher.arguments=[[x]]", "launcher.arguments[0]", "found a list");
    refuses_set("launcher.environment=[A, 1B]", "entry 1 is '1B', allowed: NAME or NAME=value");
    refuses_set("launcher.environment=[A-B=c]", "entry 0 is 'A-B=c'");
    refuses_set("launcher.environment=['=c']", "entry 0 is '=c'");
    refuses_set("coordinator={bind: 127.0.0.1, interface: eth0}", "found eth0 beside coordinator.bind 127.0.0.1");
    refuses_set("name=-x", "name: found '-x'");
    refuses_set("name=a/b", "name: found 'a/b'");
    refuses_set("name=''", "a text of 1 to 64 bytes");
    refuses_set("coordinator.bind=localhost", "coordinator.bind: found 'localhost'", "numeric address");
    refuses_set("coordinator.bind=1.2.3.4.5", "coordinator.bind");
    refuses_set("name=éééééééééééééééééééééééééééééééééééé", "éééééé...");
    refuses_set("train.steps=a\x01z", "not a UTF-8 text: control characters");
}

static void limits_are_inclusive(void **state) {
    (void)state;
    accepts(MODEL DATA TRAIN, "train.steps=1000000000");
    accepts(MODEL DATA TRAIN, "train.steps=1");
    accepts(MODEL DATA TRAIN, "coordinator.port=65535");
    accepts(MODEL DATA TRAIN, "optimizer.lr=-0.0");
    assert_true(config.optimizer.lr == 0 && !__builtin_signbit(config.optimizer.lr));
    accepts(MODEL DATA TRAIN, "optimizer.betas=[0.0, 0.9999999]");
    accepts(MODEL DATA TRAIN, "name=a234567890123456789012345678901234567890123456789012345678901234");
    assert_int_equal(strlen(config.name), 64);
    refuses_set("name=a2345678901234567890123456789012345678901234567890123456789012345", "a text of 1 to 64 bytes");
    char yaml[8192] = "data.train=[";
    for (int i = 0; i < LS_CONFIG_SOURCES_MAX; i++) strcat(yaml, "{path: /d},");
    strcat(yaml, "]");
    accepts(MODEL DATA TRAIN, yaml);
    assert_int_equal(config.data.train_count, 64);
    strcpy(strrchr(yaml, ']'), "{path: /d}]");
    refuses_set(yaml, "at most 64 maps");
    strcpy(yaml, "launcher.arguments=[");
    for (int i = 0; i < LS_CONFIG_TEXTS_MAX; i++) strcat(yaml, "x,");
    strcat(yaml, "]");
    accepts(MODEL DATA TRAIN, yaml);
    assert_int_equal(config.launcher.arguments_count, 64);
    strcpy(strrchr(yaml, ']'), "x]");
    refuses_set(yaml, "at most 64 texts");
    char path[1200] = "data.train=[{path: /";
    memset(path + 20, 'p', 1022);
    strcpy(path + 20 + 1022, "}]");
    accepts(MODEL DATA TRAIN, path);
    assert_int_equal(strlen(config.data.train[0].path), 1023);
    strcpy(path + 20 + 1022, "p}]");
    refuses_set(path, "data.train[0].path");
}

static void required_keys_are_named_when_missing(void **state) {
    (void)state;
    refuses("", "run.yaml: model.model_type is not given", "one of gpt2, llama");
    refuses("# nothing\n---\n", "model.model_type is not given");
    refuses("model: {model_type: gpt2}\n", "model.hidden_size is not given");
    refuses(MODEL "data: {sequence_length: 3}\n" TRAIN, "data.train is not given");
    refuses(MODEL "data: {train: [{path: x}]}\n" TRAIN, "data.sequence_length is not given");
    refuses(MODEL DATA "train: {steps: 1, micro_batch_size: 1}", "train.global_batch_size is not given");
    refuses(MODEL DATA "train: {steps: 1, global_batch_size: 1}", "train.micro_batch_size is not given");
    refuses_set("train.global_batch_size=null", "train.global_batch_size is not given");
}

static void rules_between_keys_hold(void **state) {
    (void)state;
    refuses_set("model.num_attention_heads=5", "found 5", "does not divide model.hidden_size 48");
    refuses_llama("model.num_key_value_heads=3", "found 3", "does not divide model.num_attention_heads 4");
    refuses_llama("model.head_dim=3", "found 3", "even number");
    refuses_llama("model.num_attention_heads=16", "model.head_dim: found 3", "even number");
    refuses_llama("model.hidden_size=131072", "model.head_dim: found 32768", "up to 16384");
    accepts(MODEL DATA TRAIN, "model.num_attention_heads=16");
    refuses_llama("model.intermediate_size=null", "llama has no default");
    accepts("model: {model_type: llama, hidden_size: 50, num_hidden_layers: 2, num_attention_heads: 4, head_dim: 8, "
            "intermediate_size: 7}\n" DATA TRAIN,
            NULL);
    refuses_set("model.max_position_embeddings=31", "data.sequence_length: found 32",
                "model.max_position_embeddings 31");
    accepts(MODEL DATA TRAIN, "model.max_position_embeddings=33");
    refuses_set("train.epochs=2", "train.epochs: given beside train.steps");
    refuses_set("train.steps=null", "train.steps: neither train.steps nor train.epochs");
    refuses_set("train.micro_batch_size=9", "found 9", "train.global_batch_size 8");
    accepts(MODEL DATA TRAIN, "train.micro_batch_size=8");
    refuses_set("lr_schedule.warmup_steps=11", "found 11", "train.steps 10");
    accepts(MODEL DATA TRAIN, "lr_schedule.warmup_steps=10");
    refuses_set("data.train=[]", "data.train: found an empty list");
    refuses_set("data.train=[{path: /a, weight: 1}, {path: /b}]", "1 of 2 datasets have a weight");
    refuses_set("data.validation=[{path: /a, weight: 1}]", "dataset 0 has a weight");
    refuses_set("evaluation.every_steps=5", "data.validation names no dataset");
    refuses_set("zero.stage=4", "zero.stage: found 4", "0 to 3");
    refuses_set("zero.replicas=0", "zero.replicas: found 0");
    refuses_set("zero.accumulate=sharded", "zero.accumulate: found sharded", "zero.stage 0");
    refuses_set("zero={stage: 2, accumulate: local}", "zero.accumulate", "found local", "zero.stage 2");
    refuses_set("zero={stage: 3, accumulate: local}", "zero.accumulate", "found local", "zero.stage 3");
    refuses_set("zero.gradient_dtype=fp16", "zero.gradient_dtype", "fp32, bf16");
    accepts(MODEL DATA TRAIN, "zero={stage: 1, accumulate: local}");
    accepts(MODEL DATA TRAIN, "zero={stage: 1, accumulate: sharded}");
    accepts(MODEL DATA TRAIN, "zero={stage: 3, accumulate: sharded}");
    accepts(MODEL DATA "train: {epochs: 2, global_batch_size: 8, micro_batch_size: 4}\n", NULL);
    assert_int_equal(config.train.epochs, 2);
    assert_int_equal(config.train.steps, 0);
    expect_refusal(MODEL DATA "train: {epochs: 2, global_batch_size: 8, micro_batch_size: 4}\n",
                   "data.train=[{path: /a, weight: 1}]", (const char *[]){"train.epochs", "weights", NULL});
}

static void what_is_kept_by_its_loss_has_one(void **state) {
    (void)state;
    refuses_set("checkpoint.keep_best=1", "checkpoint.keep_best: found 1, but nothing is evaluated");
    refuses_set("checkpoint={keep_best: 2, every_steps: 6}", "nothing is evaluated");
#define EVALUATED                                                                                                      \
    MODEL "data: {train: [{path: a}], validation: [{path: b}], sequence_length: 8}\n" TRAIN                            \
          "evaluation: {every_steps: 4}\n"
    refuses(EVALUATED "checkpoint: {keep_best: 2}\n", "checkpoint.every_steps 0 is no multiple");
    refuses(EVALUATED "checkpoint: {keep_best: 2, every_steps: 6}\n", "every_steps 6 is no multiple");
    assert_int_equal(parse(EVALUATED "checkpoint: {keep_best: 2, every_steps: 8, keep_every: 16}\n"), LS_OK);
    assert_int_equal(config.checkpoint.keep_best, 2);
    assert_int_equal(config.checkpoint.keep_every, 16);
    assert_true(config.checkpoint.async);
}

static void keys_without_meaning_for_the_model_are_refused(void **state) {
    (void)state;
    refuses_set("model.rope_theta=10000", "model.rope_theta: has no meaning for model.model_type: gpt2");
    refuses_set("model.num_key_value_heads=4", "has no meaning");
    refuses_set("model.rope_scaling={rope_type: default}", "model.rope_scaling.rope_type: has no meaning");
    refuses_llama("model.layer_norm_epsilon=1e-5", "has no meaning for model.model_type: llama");
    refuses_llama("model.rope_scaling.factor=8", "without model.rope_scaling.rope_type: llama3");
    refuses_llama("model.rope_scaling={rope_type: llama3}", "model.rope_scaling.factor is not given");
    refuses_llama("model.rope_scaling={rope_type: llama3, factor: 8, low_freq_factor: 4, high_freq_factor: 4, "
                  "original_max_position_embeddings: 8}",
                  "less than high_freq_factor 4");
    refuses_set("optimizer.momentum=0.9", "optimizer.momentum: has no meaning for optimizer.type: adamw");
    refuses(MODEL DATA TRAIN "optimizer: {type: lion, eps: 1.0e-8}\n", "has no meaning for optimizer.type: lion");
    refuses(MODEL DATA TRAIN "optimizer: {type: sgd, betas: [0.9, 0.9]}\n", "has no meaning for optimizer.type: sgd");
    refuses(MODEL DATA TRAIN "optimizer: {type: sgd, momentum: 1}\n", "less than 1");
    refuses(MODEL DATA TRAIN "optimizer: {type: sgd, momentum: 0.99999999}\n", "which is 1 in fp32");
    assert_int_equal(parse(MODEL DATA TRAIN "optimizer: {type: sgd}\n"), LS_OK);
    assert_true(config.optimizer.momentum == 0.9);
    refuses(MODEL DATA TRAIN "optimizer: {type: muon, momentum: 0.99999999}\n", "optimizer.momentum: found 0.99999999");
    refuses(MODEL DATA TRAIN "optimizer: {type: muon, betas: [0.99999999, 0.9]}\n",
            "optimizer.betas: found 0.99999999");
    assert_int_equal(parse(MODEL DATA TRAIN "optimizer: {type: muon, eps: 1.0e-7}\n"), LS_OK);
    assert_true(config.optimizer.momentum == 0.95 && config.optimizer.beta2 == 0.95 && config.optimizer.eps == 1e-7);
    assert_int_equal(parse(MODEL DATA TRAIN "optimizer: {type: lion}\n"), LS_OK);
    assert_true(config.optimizer.beta1 == 0.9 && config.optimizer.beta2 == 0.99);
    assert_int_equal(parse(MODEL DATA TRAIN "optimizer: {type: lion, betas: [0.5, 0]}\n"), LS_OK);
    assert_true(config.optimizer.beta1 == 0.5 && config.optimizer.beta2 == 0.0);
    refuses_set("optimizer.stochastic_rounding=true",
                "has no meaning without precision: bf16. Take it out or set that.");
    refuses(MODEL DATA TRAIN "precision: fp16\noptimizer: {stochastic_rounding: false}\n", "has no meaning");
    assert_int_equal(parse(MODEL DATA TRAIN "optimizer: {stochastic_rounding: true}\nprecision: bf16\n"), LS_OK);
    assert_true(config.optimizer.stochastic_rounding);
    accepts(LLAMA DATA TRAIN, "model.rope_scaling={rope_type: default}");
    accepts(LLAMA DATA TRAIN, "model.rope_scaling=null");
}

static void yaml_beyond_the_limits_is_refused(void **state) {
    (void)state;
    refuses(MODEL DATA "train: {steps: 1, steps: 2}\n",
            "run.yaml:3:19: the key 'steps' is given twice, first in line 3");
    refuses(MODEL MODEL, "run.yaml:2:1: the key 'model' is given twice, first in line 1");
    refuses("a: &x 1\nb: *x\n", "run.yaml:1:4: anchors");
    refuses("a: *x\n", "aliases");
    refuses("a: &x [1]\n", "anchors");
    refuses("a: &x {b: 1}\n", "anchors");
    refuses("name: !!str x\n", "run.yaml:1:7: tags");
    refuses("a: !x [1]\n", "tags");
    refuses("a: !x {b: 1}\n", "tags");
    refuses("%TAG !a! b\n---\na: 1\n", "run.yaml:1:1: tags");
    refuses("a: 1\n...\n%TAG !a! b\n", "run.yaml:3:1: tags");
    accepts("%YAML 1.1\n---\n" MODEL DATA TRAIN, NULL);
    refuses("a: 1\n---\nb: 2\n", "run.yaml:2:1: a second document");
    refuses("a: [1\n", "not valid YAML", "run.yaml:2:1");
    refuses("a: \"x\\0y\"\n", "NUL");
    refuses("[a]: 1\n", "a key is a list or a map");
    refuses("just words\n", "found just words, allowed: a map of keys");
    refuses("- a\n", "found a list, allowed: a map of keys");
    refuses("a: \xff\n", "run.yaml:1:4: not a UTF-8 text");
    refuses("x: 1\nb: \xc3(\n", "run.yaml:2:5: not a UTF-8 text");
    refuses("[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "nested too deeply");
    refuses("a: [[[[[[[[[[[[[[[]]]]]]]]]]]]]]]", "unknown key a");
    refuses("a: [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]", "run.yaml:1:19: lists and maps are nested too deeply");
    assert_int_equal(ls_config_parse("a\0b", 3, "run.yaml", NULL, 0, &config, &error), LS_USAGE);
    expect_text("not a UTF-8 text");

    size_t size = (1 << 20) + 1;
    char *text = malloc(size);
    memset(text, '#', size);
    assert_int_equal(ls_config_parse(text, size, "run.yaml", NULL, 0, &config, &error), LS_USAGE);
    expect_text("at most 1 MiB");
    assert_int_equal(ls_config_parse(text, size - 1, "run.yaml", NULL, 0, &config, &error), LS_USAGE);
    expect_text("model.model_type is not given");
    strcpy(text, "a: [");
    for (int i = 0; i < 5000; i++) strcat(text + 4 + 2 * i, "1,");
    refuses(text, "more than 4096 values");
    free(text);
}

static void settings_override_the_file_and_later_ones_win(void **state) {
    (void)state;
    const char *settings[] = {"train.steps=20", "train={micro_batch_size: 2, seed: 4}", "train.steps=30",
                              "data.train=[{path: /x, weight: 2}, {path: synthetic:5, weight: 1}]"};
    const char *yaml = MODEL DATA TRAIN;
    assert_int_equal(ls_config_parse(yaml, strlen(yaml), "run.yaml", settings, 4, &config, &error), LS_OK);
    assert_int_equal(config.train.steps, 30);
    assert_int_equal(config.train.micro_batch_size, 2);
    assert_int_equal(config.train.global_batch_size, 8);
    assert_int_equal(config.train.seed, 4);
    assert_int_equal(config.data.train_count, 2);
    assert_string_equal(config.data.train[0].path, "/x");
    assert_int_equal(config.data.train[1].weight, 1);
    const char *epochs[] = {"train.steps=null", "train.epochs=3"};
    assert_int_equal(ls_config_parse(yaml, strlen(yaml), "run.yaml", epochs, 2, &config, &error), LS_OK);
    assert_int_equal(config.train.steps, 0);
    assert_int_equal(config.train.epochs, 3);
    accepts(MODEL DATA TRAIN "optimizer: {lr: 1}\n", "optimizer=null");
    assert_true(config.optimizer.lr == 6.0e-4);
    refuses_set("train.steps", "--set: found 'train.steps', allowed: key=value");
    refuses_set("=3", "allowed: key=value");
    refuses_set("", "allowed: key=value");
    refuses_set("train.steps=[1", "--set train.steps:", "not valid YAML");
}

static void a_refused_configuration_leaves_the_result_alone(void **state) {
    (void)state;
    static struct ls_config before;
    accepts(MODEL DATA TRAIN, NULL);
    before = config;
    refuses_set("train.epochs=1", "train.epochs");
    assert_memory_equal(&before, &config, sizeof config);
}

/* Writes, reads back and compares all bytes. */
static void expect_round_trip(void) {
    static struct ls_config before;
    before = config;
    char *yaml, digest[33], digest_before[33];
    assert_int_equal(ls_config_write(&before, &yaml, &error), LS_OK);
    if (parse(yaml) != LS_OK) fail_msg("%s\n%s", error.text, yaml);
    assert_memory_equal(&before, &config, sizeof config);
    ls_config_digest(&before, digest_before);
    ls_config_digest(&config, digest);
    assert_string_equal(digest, digest_before);
    assert_int_equal(strlen(digest), 32);
    free(yaml);
}

static void what_is_written_reads_back_equal(void **state) {
    (void)state;
    accepts(MODEL DATA TRAIN, NULL);
    expect_round_trip();
    accepts(LLAMA DATA TRAIN,
            "model.rope_scaling={rope_type: llama3, factor: 8.1, low_freq_factor: 1e-3, high_freq_factor: 4, "
            "original_max_position_embeddings: 8}");
    expect_round_trip();
    accepts(MODEL DATA TRAIN,
            "optimizer={lr: 0.1234567890123456789, eps: 1e-30, betas: [0.1, 1e-17], weight_decay: 1e-7}");
    expect_round_trip();
    accepts(MODEL DATA TRAIN,
            "data.train=[{path: \"/a b\\n\\t\\\"\\\\#: '\\x7f\\x85\\u2028\\uFEFF\\U0001F600é\", dtype: uint16, "
            "document_token: {id: 0, at: end}}, {path: synthetic:7}]");
    expect_round_trip();
    accepts(MODEL DATA TRAIN,
            "launcher.arguments=[\"null\", \"true\", \"12\", \"a: b\", \"- x\", \"-x\", \"~\", \"NO\", \"{\"]");
    expect_round_trip();
    accepts(MODEL DATA TRAIN, "name=null");
    expect_round_trip();
    accepts(MODEL DATA TRAIN, "name=true");
    assert_string_equal(config.name, "true");
    expect_round_trip();
}

static void expect_written(const char *setting, const char *part) {
    accepts(MODEL DATA TRAIN, setting);
    char *yaml;
    assert_int_equal(ls_config_write(&config, &yaml, &error), LS_OK);
    if (!strstr(yaml, part)) fail_msg("no '%s' in:\n%s", part, yaml);
    free(yaml);
}

/* YAML 1.1 takes 1e-08 for a text, and other readers take line separators and byte order marks for layout. */
static void what_is_written_is_plain_for_every_yaml_reader(void **state) {
    (void)state;
    expect_written(NULL, "\n    eps: 1.0e-08\n");
    expect_written("optimizer.lr=1", "\n    lr: 1.0\n");
    expect_written("optimizer.lr=1.5e-7", "\n    lr: 1.5e-07\n");
    expect_written("name=off", "name: \"off\"\n");
    expect_written("name=NULL2", "name: NULL2\n");
    expect_written("name='12'", "name: \"12\"\n");
    expect_written("data.train=[{path: \"/\\u2028\\uFEFFé\"}]", "{path: \"/\\u2028\\uFEFFé\"}");
    expect_written("train={steps: null, epochs: 2}", "    steps: null\n    epochs: 2\n");
}

static void a_path_that_yaml_cannot_hold_is_not_written(void **state) {
    (void)state;
    static const char *const BAD[] = {"/\xff",    "/\xc3(", "/\xed\xa0\x80", "/\xc0\xaf", "/\xf4\x90\x80\x80",
                                      "/\xe2\x82"};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        accepts(MODEL DATA TRAIN, NULL);
        strcpy(config.data.train[0].path, BAD[i]);
        char *yaml = NULL;
        assert_int_equal(ls_config_write(&config, &yaml, &error), LS_USAGE);
        assert_null(yaml);
        expect_text("not UTF-8");
    }
}

static void digest_of(const char *setting, char digest[33]) {
    accepts(MODEL DATA TRAIN, setting);
    ls_config_digest(&config, digest);
}

static void the_digest_covers_what_changes_the_result_and_nothing_else(void **state) {
    (void)state;
    static const char *const IDENTITY[] = {"model.hidden_size=64",
                                           "model.vocab_size=300",
                                           "data.sequence_length=16",
                                           "data.seed=1",
                                           "data.document_mask=false",
                                           "data.train=[{path: /d/train}, {path: /d/train}]",
                                           "data.train=[{path: /d/train, weight: 1}]",
                                           "train.steps=11",
                                           "train.seed=1",
                                           "train.global_batch_size=9",
                                           "train.gradient_clipping=2",
                                           "optimizer.lr=1e-3",
                                           "optimizer.betas=[0.9, 0.96]",
                                           "lr_schedule.type=linear",
                                           "gpu.tf32=true",
                                           "data.train=[{path: /d/train, document_token: {id: 1}}]"};
    static const char *const OTHERS[] = {"name=other",
                                         "launcher.ranks=3",
                                         "coordinator.port=999",
                                         "device=cpu",
                                         "evaluation.batches=1",
                                         "checkpoint.every_steps=1",
                                         "fault.start_timeout_seconds=1",
                                         "data.train=[{path: /moved/train}]",
                                         "data.validation=[{path: /v}]"};
    char plain[33], changed[33];
    accepts(MODEL DATA TRAIN "precision: bf16\n", NULL);
    ls_config_digest(&config, plain);
    /* Runs in bf16 from before the key go on: the digest that they have. */
    assert_string_equal(plain, "2393b6192fc99b6e8a20a033d5f19c3d");
    accepts(MODEL DATA TRAIN "precision: bf16\n", "optimizer.stochastic_rounding=true");
    ls_config_digest(&config, changed);
    assert_string_not_equal(plain, changed);
    digest_of(NULL, plain);
    for (size_t i = 0; i < sizeof IDENTITY / sizeof *IDENTITY; i++) {
        digest_of(IDENTITY[i], changed);
        if (!strcmp(plain, changed)) fail_msg("%s leaves the digest as it was", IDENTITY[i]);
    }
    for (size_t i = 0; i < sizeof OTHERS / sizeof *OTHERS; i++) {
        digest_of(OTHERS[i], changed);
        if (strcmp(plain, changed)) fail_msg("%s changes the digest", OTHERS[i]);
    }
}

static void relative_paths_become_absolute(void **state) {
    (void)state;
    char folder[4096], expected[4200];
    assert_non_null(getcwd(folder, sizeof folder));
    accepts(MODEL DATA TRAIN, "data.train=[{path: ./././a/b}, {path: ../c}, {path: \"synthetic:9\"}, {path: .}]");
    snprintf(expected, sizeof expected, "%s/a/b", folder);
    assert_string_equal(config.data.train[0].path, expected);
    snprintf(expected, sizeof expected, "%s/../c", folder);
    assert_string_equal(config.data.train[1].path, expected);
    assert_string_equal(config.data.train[2].path, "synthetic:9");
    char setting[1200] = "data.train=[{path: ";
    size_t room = 1023 - strlen(folder) - 1;
    memset(setting + 19, 'x', room + 1);
    strcpy(setting + 19 + room, "}]");
    accepts(MODEL DATA TRAIN, setting);
    assert_int_equal(strlen(config.data.train[0].path), 1023);
    strcpy(setting + 19 + room, "x}]");
    refuses_set(setting, "the absolute path of dataset 0 is longer than 1023 bytes");
}

static void the_name_comes_from_the_file(void **state) {
    (void)state;
    const char *yaml = MODEL DATA TRAIN;
    static const char *const CASES[][2] = {{"configs/my.run.yaml", "my.run"},
                                           {"plain", "plain"},
                                           {"/a.b/c.yml", "c"},
                                           {"x/9", "9"},
                                           {"x/a234567890123456789012345678901234567890123456789012345678901234.yaml",
                                            "a234567890123456789012345678901234567890123456789012345678901234"}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        assert_int_equal(ls_config_parse(yaml, strlen(yaml), CASES[i][0], NULL, 0, &config, &error), LS_OK);
        assert_string_equal(config.name, CASES[i][1]);
    }
    static const char *const BAD[] = {"my run.yaml", ".yaml", "configs/", "-x.yaml",
                                      "a2345678901234567890123456789012345678901234567890123456789012345.yaml"};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        assert_int_equal(ls_config_parse(yaml, strlen(yaml), BAD[i], NULL, 0, &config, &error), LS_USAGE);
        expect_text("the file's stem");
    }
}

static void a_full_step_needs_a_sequence_for_each_rank(void **state) {
    (void)state;
    accepts(MODEL DATA TRAIN, NULL);
    assert_int_equal(ls_config_check_ranks(&config, 1, &error), LS_OK);
    assert_int_equal(ls_config_check_ranks(&config, 8, &error), LS_OK);
    assert_int_equal(ls_config_check_ranks(&config, 9, &error), LS_USAGE);
    expect_text("8 sequences cannot feed 9 ranks");
    assert_int_equal(ls_config_check_ranks(&config, 0, &error), LS_USAGE);
    assert_int_equal(ls_config_check_ranks(&config, INT64_MIN, &error), LS_USAGE);
}

static void replicas_divide_the_ranks(void **state) {
    (void)state;
    accepts(MODEL DATA TRAIN, "zero={stage: 2, replicas: 2}");
    assert_int_equal(ls_config_check_ranks(&config, 4, &error), LS_OK);
    assert_int_equal(ls_config_check_ranks(&config, 2, &error), LS_OK);
    assert_int_equal(ls_config_check_ranks(&config, 3, &error), LS_USAGE);
    expect_text("zero.replicas: 2 does not divide 3 ranks");
    assert_int_equal(ls_config_check_ranks(&config, 1, &error), LS_USAGE);
    refuses_set("zero.replicas=2", "zero.replicas: found 2, but at zero.stage 0 every rank is a whole replica");
}

static void fixed_needs_a_slot_for_each_rank(void **state) {
    (void)state;
    accepts(MODEL DATA TRAIN, "train.reduction=fixed"); /* 8 sequences in slots of 4 */
    assert_int_equal(config.train.reduction, LS_REDUCTION_FIXED);
    assert_int_equal(ls_config_slots(&config, 8), 2);
    assert_int_equal(ls_config_slots(&config, 9), 3);
    assert_int_equal(ls_config_check_ranks(&config, 2, &error), LS_OK);
    assert_int_equal(ls_config_check_ranks(&config, 3, &error), LS_USAGE);
    expect_text("a batch of 8 has 2: not enough for 3 ranks");
    refuses(MODEL DATA "train: {steps: 10, global_batch_size: 8, micro_batch_size: 4, reduction: fixed}\n"
                       "zero: {gradient_dtype: bf16}\n",
            "zero.gradient_dtype: found bf16", "Use fp32, or train.reduction: fast");
}

static void files_are_read_and_missing_ones_named(void **state) {
    (void)state;
    static const char *const FILES[] = {"configs/quickstart.yaml", "configs/tiny-gpt2.yaml", "configs/tiny-llama.yaml"};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        if (ls_config_load(FILES[i], NULL, 0, &config, &error) != LS_OK) fail_msg("%s", error.text);
        expect_round_trip();
    }
    assert_int_equal(ls_config_load("configs/none.yaml", NULL, 0, &config, &error), LS_USAGE);
    expect_text("configs/none.yaml");
    assert_int_equal(ls_config_load("configs", NULL, 0, &config, &error), LS_USAGE);
}

/* The goal of the first run: at most 2 M tokens. */
static void the_quickstart_trains_on_at_most_two_million_tokens(void **state) {
    (void)state;
    assert_int_equal(ls_config_load("configs/quickstart.yaml", NULL, 0, &config, &error), LS_OK);
    assert_true(config.train.steps > 0);
    assert_true(config.train.steps * config.train.global_batch_size * config.data.sequence_length <= 2000000);
}

static char *read_stream(FILE *stream) {
    size_t size = 1 << 20;
    char *text = calloc(1, size);
    assert_non_null(text);
    size_t count = fread(text, 1, size - 1, stream);
    assert_in_range(count, 1, size - 2);
    return text;
}

static void the_committed_page_of_keys_is_the_table(void **state) {
    (void)state;
    FILE *page = fopen("docs/configuration.md", "r"), *fresh = tmpfile();
    assert_non_null(page);
    assert_non_null(fresh);
    ls_config_print_keys(fresh, true);
    rewind(fresh);
    char *committed = read_stream(page), *expected = read_stream(fresh);
    if (strcmp(committed, expected))
        fail_msg("docs/configuration.md differs: run 'lockstep config --keys --markdown > docs/configuration.md'");
    free(committed);
    free(expected);
    fclose(page);
    fclose(fresh);
}

static void the_listing_names_every_key_once(void **state) {
    (void)state;
    FILE *fresh = tmpfile();
    ls_config_print_keys(fresh, false);
    rewind(fresh);
    char *text = read_stream(fresh);
    for (int i = 0; i < ls_config_keys.count; i++) {
        const struct ls_key *key = &ls_config_keys.keys[i];
        char line[LS_KEY_NAME_MAX + 2];
        snprintf(line, sizeof line, "%s\n    ", key->name);
        const char *first = strstr(text, line);
        if (!first) fail_msg("%s is not listed", key->name);
        assert_true(key->meaning && key->meaning[0] && strlen(key->name) < LS_KEY_NAME_MAX);
        for (int j = 0; j < i; j++) assert_string_not_equal(key->name, ls_config_keys.keys[j].name);
    }
    free(text);
    fclose(fresh);
}

/* Runs the command with standard output and standard error in files; returns the exit code and both texts. */
static int run_command(char **output, char **complaint, int argc, char **argv) {
    FILE *out = tmpfile(), *err = tmpfile();
    fflush(stdout);
    fflush(stderr);
    int saved_out = dup(1), saved_err = dup(2);
    dup2(fileno(out), 1);
    dup2(fileno(err), 2);
    int code = ls_command_config(argc, argv);
    fflush(stdout);
    fflush(stderr);
    dup2(saved_out, 1);
    dup2(saved_err, 2);
    close(saved_out);
    close(saved_err);
    *output = calloc(1, 1 << 16);
    *complaint = calloc(1, 1 << 16);
    rewind(out);
    rewind(err);
    (*output)[fread(*output, 1, (1 << 16) - 1, out)] = 0;
    (*complaint)[fread(*complaint, 1, (1 << 16) - 1, err)] = 0;
    fclose(out);
    fclose(err);
    return code;
}

static void expect_command(int expected, const char *output_part, const char *complaint_part,
                           const char *const *words) {
    char *argv[8] = {0}, *output, *complaint;
    int argc = 0;
    for (; words[argc]; argc++) argv[argc] = strdup(words[argc]);
    char *owned[8];
    memcpy(owned, argv, sizeof argv);
    int code = run_command(&output, &complaint, argc, argv);
    if (code != expected) fail_msg("exit %d instead of %d: %s", code, expected, complaint);
    if (!strstr(output, output_part)) fail_msg("no '%s' in: %s", output_part, output);
    if (!strstr(complaint, complaint_part)) fail_msg("no '%s' in: %s", complaint_part, complaint);
    if (!expected) assert_string_equal(complaint, "");
    for (int i = 0; i < argc; i++) free(owned[i]);
    free(output);
    free(complaint);
}
#define command(code, output, complaint, ...)                                                                          \
    expect_command(code, output, complaint, (const char *const[]){"config", __VA_ARGS__, NULL})

static void the_command_shows_and_refuses(void **state) {
    (void)state;
    command(0, "    steps: 7\n", "", "configs/tiny-gpt2.yaml", "--set", "train.steps=7");
    command(0, "    steps: 8\n", "", "--set", "train.steps=7", "--set=train.steps=8", "configs/tiny-gpt2.yaml");
    command(0, "train.steps\n", "", "--keys");
    command(0, "| `train.steps` |", "", "--keys", "--markdown");
    command(0, "Usage: lockstep config", "", "--help");
    command(2, "", "lockstep: exit 2 (usage): --set train.stepz:1:1: unknown key train.stepz\n",
            "configs/tiny-gpt2.yaml", "--set", "train.stepz=7");
    command(2, "", "lockstep: --set train.stepz:1:1: unknown key train.stepz. Did you mean train.steps?",
            "configs/tiny-gpt2.yaml", "--set", "train.stepz=7");
    command(2, "", "'--foo' is not understood", "--foo");
    command(2, "", "second file", "a", "b");
    command(2, "", "no file is named", "--set", "a=b");
    command(2, "", "--markdown goes with --keys", "configs/tiny-gpt2.yaml", "--markdown");
    command(2, "", "--keys lists what every file may say", "--keys", "configs/tiny-gpt2.yaml");
    command(2, "", "none.yaml", "none.yaml");
}

static void the_last_line_repeats_code_and_reason(void **state) {
    (void)state;
    FILE *err = tmpfile();
    fflush(stderr);
    int saved = dup(2);
    dup2(fileno(err), 2);
    int codes[] = {ls_report_exit(LS_OK, "nothing"), ls_report_exit(LS_DATA, "data: it is short. Copy it again."),
                   ls_report_exit(LS_STALL, "rank 3. in v1.5 stalled."),
                   ls_report_exit(LS_REQUEUE, "saved\nat step 5")};
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
    rewind(err);
    char *text = read_stream(err);
    assert_string_equal(text, "lockstep: data: it is short. Copy it again.\n"
                              "lockstep: exit 3 (data): data: it is short\n"
                              "lockstep: exit 8 (stall): rank 3. in v1.5 stalled\n"
                              "lockstep: saved\nat step 5\n"
                              "lockstep: exit 75 (saved, please requeue): saved\n");
    assert_int_equal(codes[0], 0);
    assert_int_equal(codes[1], 3);
    assert_int_equal(codes[3], 75);
    free(text);
    fclose(err);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_design_page),
        cmocka_unit_test(llama_defaults_follow_from_its_other_keys),
        cmocka_unit_test(every_key_is_read_into_its_field),
        cmocka_unit_test(unknown_keys_are_refused_with_the_nearest_name),
        cmocka_unit_test(keys_of_later_versions_are_unknown),
        cmocka_unit_test(wrong_values_name_the_place_and_the_values_allowed),
        cmocka_unit_test(limits_are_inclusive),
        cmocka_unit_test(required_keys_are_named_when_missing),
        cmocka_unit_test(rules_between_keys_hold),
        cmocka_unit_test(what_is_kept_by_its_loss_has_one),
        cmocka_unit_test(keys_without_meaning_for_the_model_are_refused),
        cmocka_unit_test(yaml_beyond_the_limits_is_refused),
        cmocka_unit_test(settings_override_the_file_and_later_ones_win),
        cmocka_unit_test(a_refused_configuration_leaves_the_result_alone),
        cmocka_unit_test(what_is_written_reads_back_equal),
        cmocka_unit_test(what_is_written_is_plain_for_every_yaml_reader),
        cmocka_unit_test(a_path_that_yaml_cannot_hold_is_not_written),
        cmocka_unit_test(the_digest_covers_what_changes_the_result_and_nothing_else),
        cmocka_unit_test(relative_paths_become_absolute),
        cmocka_unit_test(the_name_comes_from_the_file),
        cmocka_unit_test(a_full_step_needs_a_sequence_for_each_rank),
        cmocka_unit_test(replicas_divide_the_ranks),
        cmocka_unit_test(fixed_needs_a_slot_for_each_rank),
        cmocka_unit_test(files_are_read_and_missing_ones_named),
        cmocka_unit_test(the_quickstart_trains_on_at_most_two_million_tokens),
        cmocka_unit_test(the_committed_page_of_keys_is_the_table),
        cmocka_unit_test(the_listing_names_every_key_once),
        cmocka_unit_test(the_command_shows_and_refuses),
        cmocka_unit_test(the_last_line_repeats_code_and_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
