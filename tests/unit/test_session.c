/* The coordinator's server on real sockets with CURVE: who is let in, what they may say, and a whole run with a
 * scripted worker. */
#define _GNU_SOURCE
#include "common/checkpoint_folder.h"
#include "common/files.h"
#include "common/manifest.h"
#include "coordinator/channel.h"
#include "coordinator/operator.h"
#include "coordinator/run_setup.h"
#include "coordinator/server.h"
#include "worker/session.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include <cmocka.h>

#include "tests/unit/sanitized.h"

#ifndef SANITIZED
/* Memory runs out once, for a block that is to become as large. */
static _Atomic size_t refused_bytes;
void *__libc_realloc(void *memory, size_t bytes);
void *realloc(void *memory, size_t bytes) {
    size_t refused = bytes;
    if (bytes > 0 && atomic_compare_exchange_strong(&refused_bytes, &refused, 0)) return NULL;
    return __libc_realloc(memory, bytes);
}
#endif

/* A coordinator in a thread; the test is its supervisor. */
struct stage {
    char folder[64], config[96], run_dir[96];
    int channel[2];
    pthread_t thread;
    bool left; /* the thread has been joined */
    struct ls_run run;
    struct ls_keys keys;
    struct ls_error reason;
    enum ls_code code;
    char endpoint[128];
};

static const char yaml[] = "name: staged\n"
                           "model: {model_type: gpt2, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}\n"
                           "data: {train: [{path: 'synthetic:2000'}], sequence_length: 8}\n"
                           "train: {steps: 6, global_batch_size: 4, micro_batch_size: 2}\n"
                           "optimizer: {lr: 1.0e-3}\n";

static void *coordinator(void *argument) {
    struct stage *stage = argument;
    stage->code = ls_server_run(&stage->run, stage->channel[1], -1, &stage->reason);
    close(stage->channel[1]);
    return NULL;
}

static struct ls_channel_message next_message(struct stage *stage) {
    struct ls_channel_message message;
    struct pollfd item = {stage->channel[0], POLLIN, 0};
    int got;
    while ((got = ls_channel_receive(stage->channel[0], &message)) == 0) poll(&item, 1, -1);
    assert_int_equal(got, 1);
    return message;
}

/* Waits until the coordinator has left by itself. */
static void wait_until_left(struct stage *stage) {
    pthread_join(stage->thread, NULL);
    stage->left = true;
}

static int set_stage(void **state) {
    struct stage *stage = calloc(1, sizeof *stage);
    *state = stage;
    strcpy(stage->folder, "/tmp/lockstep-server-XXXXXX");
    if (!mkdtemp(stage->folder) || ls_channel_pair(stage->channel)) return -1;
    snprintf(stage->config, sizeof stage->config, "%s/staged.yaml", stage->folder);
    snprintf(stage->run_dir, sizeof stage->run_dir, "%s/run", stage->folder);
    if (ls_file_replace(stage->config, yaml, strlen(yaml), LS_ERROR, NULL) != LS_OK) return -1;
    struct ls_run_options options = {
        .config_path = stage->config, .run_dir = stage->run_dir, .ranks = 2, .launched = true};
    if (ls_run_prepare(&options, &stage->run, &stage->reason) != LS_OK) {
        print_error("%s\n", stage->reason.text);
        return -1;
    }
    stage->keys = stage->run.keys;
    if (pthread_create(&stage->thread, NULL, coordinator, stage)) return -1;
    struct ls_channel_message ready = next_message(stage);
    snprintf(stage->endpoint, sizeof stage->endpoint, "%s", ready.ready.endpoints);
    return ready.kind == LS_CHANNEL_READY ? 0 : -1;
}

static int clear_stage(void **state) {
    struct stage *stage = *state;
    struct ls_channel_message now = {.kind = LS_CHANNEL_SIGNAL, .signal = LS_SIGNAL_NOW};
    char command[128];
    ls_channel_send(stage->channel[0], &now);
    if (!stage->left) pthread_join(stage->thread, NULL);
    close(stage->channel[0]);
    ls_run_release(&stage->run);
    snprintf(command, sizeof command, "rm -rf %s", stage->folder);
    free(stage);
    return system(command);
}

/* ---- clients ---- */

static enum ls_code open_session(struct stage *stage, const struct ls_key *key, double seconds,
                                 struct ls_session **session, struct ls_welcome *welcome, char **text,
                                 struct ls_error *error) {
    return ls_session_open(stage->endpoint, key, 0, seconds, session, welcome, text, error);
}

static struct ls_wire_status ask_status(struct stage *stage) {
    struct ls_message answer;
    struct ls_error error;
    if (ls_operator_ask(stage->endpoint, &stage->keys.operator_, LS_WIRE_STATUS, 20, NULL, NULL, &answer, &error) !=
        LS_OK)
        fail_msg("%s", error.text);
    assert_int_equal(answer.kind, LS_MESSAGE_STATUS);
    ls_message_release(&answer);
    return answer.status;
}

/* A bare DEALER; `key` NULL: without encryption. */
struct client {
    void *context, *socket;
};

static struct client connect_client(struct stage *stage, const struct ls_key *key) {
    struct client client = {.context = zmq_ctx_new()};
    int linger = 0;
    client.socket = zmq_socket(client.context, ZMQ_DEALER);
    zmq_setsockopt(client.socket, ZMQ_LINGER, &linger, sizeof linger);
    if (key) {
        zmq_setsockopt(client.socket, ZMQ_CURVE_SERVERKEY, key->server, 40);
        zmq_setsockopt(client.socket, ZMQ_CURVE_PUBLICKEY, key->public_key, 40);
        zmq_setsockopt(client.socket, ZMQ_CURVE_SECRETKEY, key->secret_key, 40);
    }
    assert_int_equal(zmq_connect(client.socket, stage->endpoint), 0);
    return client;
}

static void close_client(struct client *client) {
    zmq_close(client->socket);
    zmq_ctx_term(client->context);
}

static void say(struct client *client, const struct ls_message *message) {
    uint8_t bytes[4096];
    size_t count;
    assert_int_equal(ls_wire_encode(message, bytes, sizeof bytes, &count, NULL), LS_OK);
    assert_true(zmq_send(client->socket, bytes, count, 0) >= 0);
}

/* The next message of `kind`; others are passed over. */
static struct ls_message hear(struct client *client, enum ls_message_kind kind) {
    for (;;) {
        zmq_msg_t frame;
        struct ls_message message;
        zmq_msg_init(&frame);
        assert_true(zmq_msg_recv(&frame, client->socket, 0) >= 0);
        assert_int_equal(ls_wire_decode(zmq_msg_data(&frame), zmq_msg_size(&frame), &message, NULL), LS_OK);
        zmq_msg_close(&frame);
        if (message.kind == kind) return message;
        ls_message_release(&message);
    }
}

/* ---- who is let in ---- */

static void test_a_key_of_another_run_is_refused_and_counted(void **state) {
    struct stage *stage = *state;
    struct ls_keys other;
    struct ls_session *session;
    struct ls_welcome welcome;
    struct ls_error error = {0};
    char *text;
    assert_int_equal(ls_keys_generate(&other, NULL), LS_OK);
    memcpy(other.worker.server, stage->keys.server.public_key, sizeof other.worker.server);
    assert_int_equal(open_session(stage, &other.worker, 30, &session, &welcome, &text, &error), LS_COMMUNICATION);
    assert_non_null(strstr(error.text, "refused the key"));
    assert_true(ask_status(stage).handshakes_failed >= 1);
}

static void test_a_server_of_another_run_is_recognised(void **state) {
    struct stage *stage = *state;
    struct ls_keys other;
    struct ls_session *session;
    struct ls_welcome welcome;
    struct ls_error error = {0};
    char *text;
    assert_int_equal(ls_keys_generate(&other, NULL), LS_OK);
    assert_int_equal(open_session(stage, &other.worker, 60, &session, &welcome, &text, &error), LS_COMMUNICATION);
    assert_non_null(strstr(error.text, "of another run"));
}

static void test_a_client_without_encryption_is_not_heard(void **state) {
    struct stage *stage = *state;
    struct client client = connect_client(stage, NULL);
    struct ls_message open = {.kind = LS_MESSAGE_OPEN};
    strcpy(open.open.version, LS_VERSION);
    say(&client, &open);
    while (ask_status(stage).handshakes_failed == 0) usleep(20000);
    zmq_pollitem_t item = {client.socket, 0, ZMQ_POLLIN, 0};
    assert_int_equal(zmq_poll(&item, 1, 0), 0);
    close_client(&client);
}

static void test_keys_open_their_own_doors_only(void **state) {
    struct stage *stage = *state;
    struct client worker = connect_client(stage, &stage->keys.worker),
                  operator_ = connect_client(stage, &stage->keys.operator_);
    struct ls_message stop = {.kind = LS_MESSAGE_REQUEST, .request = LS_WIRE_STOP},
                      step = {.kind = LS_MESSAGE_STEP, .attempt = 1};
    say(&worker, &stop);
    struct ls_message refused = hear(&worker, LS_MESSAGE_REFUSED);
    assert_int_equal(refused.answer.code, LS_USAGE);
    assert_non_null(strstr(refused.answer.text, "operator key"));
    say(&operator_, &step);
    refused = hear(&operator_, LS_MESSAGE_REFUSED);
    assert_non_null(strstr(refused.answer.text, "worker key"));
    /* The run was not stopped. */
    assert_string_equal(ask_status(stage).phase, "waiting for ranks");
    close_client(&worker);
    close_client(&operator_);
}

static void test_another_version_is_refused_with_both(void **state) {
    struct stage *stage = *state;
    struct client client = connect_client(stage, &stage->keys.worker);
    struct ls_message open = {.kind = LS_MESSAGE_OPEN};
    strcpy(open.open.version, "99.9");
    say(&client, &open);
    struct ls_message refused = hear(&client, LS_MESSAGE_REFUSED);
    assert_int_equal(refused.answer.code, LS_USAGE);
    assert_non_null(strstr(refused.answer.text, "99.9"));
    assert_non_null(strstr(refused.answer.text, LS_VERSION));
    close_client(&client);
}

static void test_garbage_and_oversized_frames_hurt_their_sender_only(void **state) {
    struct stage *stage = *state;
    struct client garbage = connect_client(stage, &stage->keys.worker),
                  large = connect_client(stage, &stage->keys.worker);
    char *frame = calloc(1, 2 * LS_WIRE_BYTES_MAX);
    zmq_send(garbage.socket, "\xff\xff\xff", 3, 0);
    zmq_send(garbage.socket, "two", 3, ZMQ_SNDMORE);
    zmq_send(garbage.socket, "frames", 6, 0);
    while (ask_status(stage).messages_dropped < 2) usleep(20000);
    zmq_send(large.socket, frame, 2 * LS_WIRE_BYTES_MAX, 0);
    free(frame);
    /* The sender of garbage is still served; so is everybody else. */
    struct ls_message open = {.kind = LS_MESSAGE_OPEN};
    strcpy(open.open.version, LS_VERSION);
    say(&garbage, &open);
    struct ls_message setup = hear(&garbage, LS_MESSAGE_SETUP);
    ls_message_release(&setup);
    assert_int_equal(ask_status(stage).world_size, 2);
    close_client(&garbage);
    close_client(&large);
}

/* ---- a whole run ---- */

/* What a rank does at a save, with a file of its own. Returns the newest step that is committed then. */
static int64_t try_save(struct ls_session *session, const struct ls_welcome *welcome, int64_t step, uint64_t order,
                        bool stop) {
    char path[LS_CHECKPOINT_PATH_MAX];
    struct ls_error error;
    ls_session_saving(session, step, order, stop);
    if (ls_checkpoint_begin(welcome->run_directory, (uint64_t)step, (uint64_t)welcome->attempt, 0, path, &error) !=
        LS_OK)
        fail_msg("%s", error.text);
    for (int rank = 0; rank < 2; rank++) {
        char full[LS_CHECKPOINT_PATH_MAX + 64], content[64];
        struct ls_part_file file = {.bytes = 0};
        snprintf(file.name, sizeof file.name, "state/rank-%05d.safetensors", rank);
        snprintf(full, sizeof full, "%s/%s", path, file.name);
        file.bytes = snprintf(content, sizeof content, "step %lld of rank %d", (long long)step, rank);
        ls_hash_bytes(content, (size_t)file.bytes, file.hash);
        assert_int_equal(ls_file_replace(full, content, (size_t)file.bytes, LS_ERROR, NULL), LS_OK);
        ls_session_part(session, step, rank, step, 0.5, &file, 1);
    }
    struct ls_session_orders orders;
    for (ls_session_orders(session, &orders); orders.committed_step < step && !orders.ended;
         ls_session_orders(session, &orders))
        ls_session_wait(session, 10);
    return orders.committed_step;
}

static void save(struct ls_session *session, const struct ls_welcome *welcome, int64_t step, uint64_t order,
                 bool stop) {
    assert_true(try_save(session, welcome, step, order, stop) >= step);
}

static struct ls_session *join(struct stage *stage, struct ls_welcome *welcome) {
    struct ls_session *session;
    struct ls_error error = {0};
    char *text;
    if (open_session(stage, &stage->keys.worker, 30, &session, welcome, &text, &error) != LS_OK)
        fail_msg("%s", error.text);
    static struct ls_config config;
    struct ls_rank_info ranks[2] = {{.rank = 0, .pid = 11}, {.rank = 1, .local_rank = 1, .pid = 12}};
    assert_int_equal(ls_config_parse(text, strlen(text), "setup", NULL, 0, &config, NULL), LS_OK);
    free(text);
    for (int i = 0; i < 2; i++) {
        strcpy(ranks[i].host, "here");
        ls_config_digest(&config, ranks[i].config_digest);
        memcpy(ranks[i].dataset_digest, stage->run.core.dataset_digest, sizeof ranks[i].dataset_digest);
    }
    if (ls_session_join(session, ranks, 2, &error) != LS_OK) fail_msg("%s", error.text);
    return session;
}

/* Runs steps until `last`, as granted; each has 4 sequences. */
static void train(struct ls_session *session, int64_t from, int64_t last) {
    struct ls_session_orders orders;
    for (int64_t step = from + 1; step <= last; step++) {
        for (ls_session_orders(session, &orders); orders.grant.end_step <= step && !orders.ended;
             ls_session_orders(session, &orders))
            ls_session_wait(session, 10);
        assert_false(orders.ended);
        struct ls_step_report report = {.step = step,
                                        .attempt = 1,
                                        .position = (uint64_t)step * 4,
                                        .sequences = 4,
                                        .targets = 32,
                                        .loss = 5.0 / (double)step,
                                        .step_seconds = 0.01,
                                        .tokens_per_second = 3200,
                                        .digest = {(uint64_t)step, 1}};
        ls_session_step_done(session, &report);
        ls_session_at(session, step + 1);
    }
}

static bool file_says(const char *folder, const char *name, const char *text) {
    char path[256], *content;
    size_t count;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(ls_file_read(path, 1 << 24, &content, &count, LS_ERROR, NULL), LS_OK);
    bool found = strstr(content, text) != NULL;
    free(content);
    return found;
}

static void test_a_scripted_worker_trains_to_the_end(void **state) {
    struct stage *stage = *state;
    struct ls_welcome welcome;
    struct ls_session *session = join(stage, &welcome);
    assert_int_equal(welcome.world_size, 2);
    assert_int_equal(welcome.total_steps, 6);
    assert_int_equal(welcome.start_step, 0);
    assert_string_equal(welcome.checkpoint, "");
    train(session, 0, 6);
    ls_session_validation(session, 6, 1.5, 2.25);
    save(session, &welcome, 6, 0, true);
    ls_session_close(session, 5);
    wait_until_left(stage);
    assert_int_equal(stage->code, LS_OK);
    char newest[LS_CHECKPOINT_PATH_MAX];
    struct ls_checkpoint_found found;
    assert_int_equal(ls_checkpoint_path(stage->run.directory.path, 6, newest, NULL), LS_OK);
    assert_int_equal(ls_checkpoint_open(newest, &found, NULL), LS_OK);
    assert_int_equal(found.state.position, 24);
    assert_int_equal(found.state.tokens, 24 * 8);
    assert_int_equal(found.state.optimizer_steps, 6);
    /* The chain of six digests, computed here by hand. */
    struct ls_digest chain = {0, 0};
    char hex[33];
    for (uint64_t step = 1; step <= 6; step++) chain = ls_digest_chain(chain, step, (struct ls_digest){step, 1});
    ls_digest_format(chain, hex);
    assert_string_equal(found.state.ledger_chain, hex);
    assert_true(file_says(stage->run_dir, "metrics.jsonl", "\"step\":6,\"attempt\":1"));
    assert_true(file_says(stage->run_dir, "metrics.jsonl",
                          "{\"kind\":\"validation\",\"step\":6,\"loss\":1.5,\"bits_per_byte\":2.25}"));
    assert_true(file_says(stage->run_dir, "metrics.jsonl", "\"kind\":\"summary\""));
    assert_true(file_says(stage->run_dir, "console.log", "step 6/6"));
}

static void test_a_stop_reaches_the_worker_and_is_saved(void **state) {
    struct stage *stage = *state;
    struct ls_welcome welcome;
    struct ls_message answer;
    struct ls_session_orders orders;
    struct ls_session *session = join(stage, &welcome);
    train(session, 0, 2);
    assert_int_equal(
        ls_operator_ask(stage->endpoint, &stage->keys.operator_, LS_WIRE_STOP, 20, NULL, NULL, &answer, NULL), LS_OK);
    assert_int_equal(answer.kind, LS_MESSAGE_REPLY);
    assert_int_equal(answer.answer.code, LS_OK);
    for (ls_session_orders(session, &orders); !orders.stop_id; ls_session_orders(session, &orders))
        ls_session_wait(session, 10);
    assert_int_equal(orders.stop_code, LS_STOPPED);
    save(session, &welcome, 2, orders.stop_id, true);
    ls_session_close(session, 5);
    wait_until_left(stage);
    assert_int_equal(stage->code, LS_STOPPED);
    assert_non_null(strstr(stage->reason.text, "step 2 of 6"));
}

static void test_a_fault_ends_the_run_with_its_code(void **state) {
    struct stage *stage = *state;
    struct ls_welcome welcome;
    struct ls_error fault = {.code = LS_NONFINITE};
    struct ls_session *session = join(stage, &welcome);
    train(session, 0, 1);
    strcpy(fault.text, "the loss of step 2 is nan");
    ls_session_fault(session, 1, "", 2, &fault);
    struct ls_session_orders orders;
    for (ls_session_orders(session, &orders); !orders.ended; ls_session_orders(session, &orders))
        ls_session_wait(session, 10);
    ls_session_close(session, 0);
    while (next_message(stage).kind != LS_CHANNEL_KILL)
        ;
    wait_until_left(stage);
    assert_int_equal(stage->code, LS_NONFINITE);
    assert_non_null(strstr(stage->reason.text, "rank 1 on here"));
    assert_non_null(strstr(stage->reason.text, "the loss of step 2 is nan"));
}

/* Files that are not on the coordinator's list are removed from the checkpoint: with a hole in the list it would hold
 * half of the state, and the ones before it would go. */
static void test_a_part_that_found_no_memory_is_not_left_out_of_a_commit(void **state) {
#ifdef SANITIZED
    (void)state;
    skip();
#else
    struct stage *stage = *state;
    struct ls_welcome welcome;
    struct ls_session *session = join(stage, &welcome);
    train(session, 0, 6);
    refused_bytes = (2 * 1 + 16) * sizeof(struct ls_file_record); /* the list's first room, for a part of one file */
    assert_int_equal(try_save(session, &welcome, 6, 0, true), -1);
    assert_int_equal(refused_bytes, 0);
    ls_session_close(session, 0);
    while (next_message(stage).kind != LS_CHANNEL_KILL)
        ;
    wait_until_left(stage);
    assert_int_equal(stage->code, LS_CHECKPOINT);
    assert_non_null(strstr(stage->reason.text, "memory"));
#endif
}

#define STAGED(test) cmocka_unit_test_setup_teardown(test, set_stage, clear_stage)

int main(void) {
    const struct CMUnitTest tests[] = {
        STAGED(test_a_key_of_another_run_is_refused_and_counted),
        STAGED(test_a_server_of_another_run_is_recognised),
        STAGED(test_a_client_without_encryption_is_not_heard),
        STAGED(test_keys_open_their_own_doors_only),
        STAGED(test_another_version_is_refused_with_both),
        STAGED(test_garbage_and_oversized_frames_hurt_their_sender_only),
        STAGED(test_a_scripted_worker_trains_to_the_end),
        STAGED(test_a_stop_reaches_the_worker_and_is_saved),
        STAGED(test_a_fault_ends_the_run_with_its_code),
        STAGED(test_a_part_that_found_no_memory_is_not_left_out_of_a_commit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
