/* The worker against a coordinator that keeps to a script: ranks as threads, the real session, CURVE on loopback. */
#define _GNU_SOURCE
#include "common/checkpoint_folder.h"
#include "common/config.h"
#include "common/keys.h"
#include "common/wire.h"
#include "worker/comm/comm.h"
#include "worker/worker.h"

#include <ftw.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>
#include <cmocka.h>

enum { RANKS_MAX = 3, EVENTS_MAX = 256 };

/* What the coordinator heard, in order. */
struct heard {
    enum ls_message_kind kind;
    int64_t step, rank;
    uint64_t order;
    bool stop;
    int32_t code;
    bool unloadable;
    char host[64];
    char text[256];
};

struct scene {
    /* the script */
    const char *yaml;
    int ranks;
    int64_t total_steps, span; /* grants of so many steps, each when the one before is done */
    int64_t order_after;       /* when this step is reported: an order ... */
    bool order_stops;          /* ... to save, or to save and stop with 75 */
    int64_t end_after;         /* when this step is reported: the run ends with code 1 */
    int64_t silent_after;      /* when this step is reported: never speaks again */
    bool refuse_save;          /* no commit; the run ends with LS_CHECKPOINT */
    bool wish;                 /* the last rank wishes for a save */
    int64_t start_step;        /* the run goes on from there ... */
    const char *checkpoint;    /* ... with this one, NULL: none */
    const char *token;         /* that every host has to see in the run directory, NULL: none */
    /* the stage */
    char folder[64], endpoint[128], key_path[128];
    struct ls_keys keys;
    void *context, *socket;
    struct ls_comm *comms[RANKS_MAX];
    atomic_bool closing, wished;
    /* what happened */
    struct heard events[EVENTS_MAX];
    int event_count;
    struct ls_step_report steps[64];
    struct ls_file_record files[64];
    size_t file_count;
    int parts;
    int64_t granted, committed;
    bool silent;
    enum ls_code codes[RANKS_MAX];
    struct ls_error errors[RANKS_MAX];
};

static void send_to_worker(struct scene *scene, zmq_msg_t *peer, struct ls_message *message) {
    static uint8_t buffer[LS_WIRE_BYTES_MAX];
    size_t count;
    struct ls_error error;
    if (scene->silent) return;
    message->attempt = message->generation = 1;
    if (ls_wire_encode(message, buffer, sizeof buffer, &count, &error)) fail_msg("%s", error.text);
    zmq_msg_t copy;
    zmq_msg_init(&copy);
    zmq_msg_copy(&copy, peer);
    zmq_msg_send(&copy, scene->socket, ZMQ_SNDMORE);
    zmq_send(scene->socket, buffer, count, 0);
}

static void grant_more(struct scene *scene, zmq_msg_t *peer) {
    struct ls_message grant = {.kind = LS_MESSAGE_GRANT};
    grant.grant.from_step = scene->granted;
    scene->granted += scene->span;
    if (scene->granted > scene->total_steps) scene->granted = scene->total_steps;
    grant.grant.to_step = scene->granted;
    send_to_worker(scene, peer, &grant);
}

static void end_run(struct scene *scene, zmq_msg_t *peer, enum ls_code code, const char *text) {
    struct ls_message ended = {.kind = LS_MESSAGE_ENDED};
    ended.answer.code = code;
    snprintf(ended.answer.text, sizeof ended.answer.text, "%s", text);
    send_to_worker(scene, peer, &ended);
}

static void on_step(struct scene *scene, zmq_msg_t *peer, const struct ls_step_report *report) {
    scene->steps[report->step] = *report;
    struct ls_message ack = {.kind = LS_MESSAGE_ACK};
    ack.ack.step = report->step;
    send_to_worker(scene, peer, &ack);
    if (report->step == scene->order_after) {
        struct ls_message order = {.kind = LS_MESSAGE_ORDER};
        order.order.id = 7;
        order.order.stop = scene->order_stops;
        order.order.code = LS_REQUEUE;
        send_to_worker(scene, peer, &order);
    }
    if (report->step == scene->end_after) end_run(scene, peer, LS_ERROR, "the script says so");
    if (report->step == scene->silent_after) scene->silent = true;
    if (report->step == scene->granted && report->step != scene->silent_after) grant_more(scene, peer);
}

static void on_part(struct scene *scene, zmq_msg_t *peer, const struct ls_message *message) {
    for (int64_t i = 0; i < message->part.files_count; i++) {
        struct ls_file_record *file = &scene->files[scene->file_count++];
        snprintf(file->name, sizeof file->name, "%s", message->part.files[i].name);
        snprintf(file->hash, sizeof file->hash, "%s", message->part.files[i].hash);
        file->bytes = message->part.files[i].bytes;
    }
    if (++scene->parts < scene->ranks) return;
    const uint64_t step = (uint64_t)message->part.step;
    if (scene->refuse_save) {
        end_run(scene, peer, LS_CHECKPOINT, "the disk is gone");
        return;
    }
    struct ls_trainer_state state = {.step = step, .attempt = 1, .world_size = (uint64_t)scene->ranks};
    memset(state.ledger_chain, '0', 32);
    memset(state.config_digest, '0', 32);
    memset(state.dataset_digest, '0', 32);
    struct ls_error error;
    if (ls_checkpoint_commit(scene->folder, step, 1, scene->files, scene->file_count, &state, NULL, &error))
        fail_msg("%s", error.text);
    scene->parts = 0;
    scene->file_count = 0;
    scene->committed = (int64_t)step;
    struct ls_message committed = {.kind = LS_MESSAGE_COMMITTED};
    committed.committed.step = (int64_t)step;
    send_to_worker(scene, peer, &committed);
}

static void answer(struct scene *scene, zmq_msg_t *peer, const struct ls_message *message) {
    struct ls_message reply;
    switch (message->kind) {
    case LS_MESSAGE_OPEN:
        reply = (struct ls_message){.kind = LS_MESSAGE_SETUP};
        reply.setup.shape.world_size = scene->ranks;
        reply.setup.shape.attempt = 1;
        reply.setup.shape.total_steps = reply.setup.shape.end_step = scene->total_steps;
        reply.setup.shape.end_position = UINT64_MAX;
        reply.setup.shape.start_step = scene->start_step;
        if (scene->checkpoint)
            snprintf(reply.setup.shape.checkpoint, sizeof reply.setup.shape.checkpoint, "%s", scene->checkpoint);
        if (scene->token) snprintf(reply.setup.shape.token, sizeof reply.setup.shape.token, "%s", scene->token);
        snprintf(reply.setup.shape.run_directory, sizeof reply.setup.shape.run_directory, "%s", scene->folder);
        snprintf(reply.setup.shape.run_id, sizeof reply.setup.shape.run_id, "%016lx", (unsigned long)getpid());
        reply.setup.yaml = (char *)(uintptr_t)scene->yaml;
        send_to_worker(scene, peer, &reply);
        break;
    case LS_MESSAGE_HELLO:
        reply = (struct ls_message){.kind = LS_MESSAGE_WELCOME};
        send_to_worker(scene, peer, &reply);
        if (scene->granted == 0) grant_more(scene, peer);
        if (scene->wish) atomic_store(&scene->wished, true);
        break;
    case LS_MESSAGE_STEP: on_step(scene, peer, &message->step); break;
    case LS_MESSAGE_VALIDATION:
        reply = (struct ls_message){.kind = LS_MESSAGE_ACK};
        reply.ack.validation = message->validation.step;
        send_to_worker(scene, peer, &reply);
        break;
    case LS_MESSAGE_PART: on_part(scene, peer, message); break;
    case LS_MESSAGE_PULSE:
        reply = (struct ls_message){.kind = LS_MESSAGE_PULSE};
        send_to_worker(scene, peer, &reply);
        break;
    default: break;
    }
}

/* False for a report that is repeated because no acknowledgement came in time. */
static bool remember(struct scene *scene, const struct ls_message *message) {
    struct heard event;
    memset(&event, 0, sizeof event);
    event.kind = message->kind;
    switch (message->kind) {
    case LS_MESSAGE_STEP: event.step = message->step.step; break;
    case LS_MESSAGE_VALIDATION: event.step = message->validation.step; break;
    case LS_MESSAGE_SAVING:
        event.step = message->saving.step;
        event.order = message->saving.order;
        event.stop = message->saving.stop;
        break;
    case LS_MESSAGE_PART:
        event.step = message->part.step;
        event.rank = message->part.rank;
        break;
    case LS_MESSAGE_FAULT:
        event.step = message->fault.step;
        event.rank = message->fault.rank;
        event.code = message->fault.code;
        event.unloadable = message->fault.unloadable;
        snprintf(event.host, sizeof event.host, "%s", message->fault.host);
        snprintf(event.text, sizeof event.text, "%s", message->fault.text);
        break;
    case LS_MESSAGE_HELLO:
    case LS_MESSAGE_PULSE: return true;
    default: break;
    }
    for (int i = 0; i < scene->event_count; i++)
        if (memcmp(&scene->events[i], &event, sizeof event) == 0 && event.step > 0) return false;
    if (scene->event_count < EVENTS_MAX) scene->events[scene->event_count++] = event;
    return true;
}

static void *play_coordinator(void *argument) {
    struct scene *scene = argument;
    while (!atomic_load(&scene->closing)) {
        zmq_pollitem_t item = {scene->socket, 0, ZMQ_POLLIN, 0};
        if (zmq_poll(&item, 1, 20) <= 0) continue;
        zmq_msg_t peer, body;
        zmq_msg_init(&peer);
        zmq_msg_init(&body);
        zmq_msg_recv(&peer, scene->socket, 0);
        zmq_msg_recv(&body, scene->socket, 0);
        struct ls_message message;
        struct ls_error error;
        if (ls_wire_decode(zmq_msg_data(&body), zmq_msg_size(&body), &message, &error)) fail_msg("%s", error.text);
        if (remember(scene, &message)) answer(scene, &peer, &message);
        ls_message_release(&message);
        zmq_msg_close(&peer);
        zmq_msg_close(&body);
    }
    return NULL;
}

struct actor {
    struct scene *scene;
    int rank;
};

static void *play_rank(void *argument) {
    struct actor *actor = argument;
    struct scene *scene = actor->scene;
    const bool wishes = scene->wish && actor->rank == scene->ranks - 1;
    struct ls_worker_options options = {.endpoints = scene->endpoint,
                                        .key_path = scene->key_path,
                                        .comm = scene->comms[actor->rank],
                                        .save_wished = wishes ? &scene->wished : NULL};
    struct ls_worker *worker;
    struct ls_error *error = &scene->errors[actor->rank];
    if (ls_worker_create(&options, &worker, error)) return NULL;
    scene->codes[actor->rank] = ls_worker_run(worker, error);
    ls_worker_destroy(worker);
    return NULL;
}

static void open_stage(struct scene *scene) {
    strcpy(scene->folder, "/tmp/lockstep-worker-XXXXXX");
    assert_non_null(mkdtemp(scene->folder));
    assert_int_equal(ls_keys_open(scene->folder, &scene->keys, NULL), LS_OK);
    snprintf(scene->key_path, sizeof scene->key_path, "%s/keys/worker.key", scene->folder);
    scene->context = zmq_ctx_new();
    scene->socket = zmq_socket(scene->context, ZMQ_ROUTER);
    int on = 1, linger = 0;
    size_t size = sizeof scene->endpoint;
    zmq_setsockopt(scene->socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(scene->socket, ZMQ_CURVE_SERVER, &on, sizeof on);
    zmq_setsockopt(scene->socket, ZMQ_CURVE_SECRETKEY, scene->keys.server.secret_key, LS_KEY_CHARACTERS);
    assert_int_equal(zmq_bind(scene->socket, "tcp://127.0.0.1:*"), 0);
    assert_int_equal(zmq_getsockopt(scene->socket, ZMQ_LAST_ENDPOINT, scene->endpoint, &size), 0);
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where) {
    (void)status, (void)kind, (void)where;
    return remove(path);
}

static void play(struct scene *scene) {
    pthread_t coordinator, threads[RANKS_MAX];
    struct actor actors[RANKS_MAX];
    scene->committed = -1;
    open_stage(scene);
    assert_int_equal(ls_comm_create_threads(scene->ranks, scene->comms, NULL), LS_OK);
    pthread_create(&coordinator, NULL, play_coordinator, scene);
    for (int rank = 0; rank < scene->ranks; rank++) {
        actors[rank] = (struct actor){scene, rank};
        pthread_create(&threads[rank], NULL, play_rank, &actors[rank]);
    }
    for (int rank = 0; rank < scene->ranks; rank++) pthread_join(threads[rank], NULL);
    atomic_store(&scene->closing, true);
    pthread_join(coordinator, NULL);
    for (int rank = 0; rank < scene->ranks; rank++) ls_comm_destroy(scene->comms[rank]);
    zmq_close(scene->socket);
    zmq_ctx_term(scene->context);
    char run_id[17];
    snprintf(run_id, sizeof run_id, "%016lx", (unsigned long)getpid());
    ls_progress_remove(run_id, 1);
}

static void close_stage(struct scene *scene) {
    nftw(scene->folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(scene);
}

static struct scene *scene_of(const char *yaml, int ranks, int64_t total_steps) {
    struct scene *scene = calloc(1, sizeof *scene);
    scene->yaml = yaml;
    scene->ranks = ranks;
    scene->total_steps = total_steps;
    scene->span = 3;
    scene->order_after = scene->end_after = scene->silent_after = -1;
    return scene;
}

/* The order of what the coordinator heard: "step 1", "saving 2 (7 stop)", ... The parts of a save may come in any
 * order. */
static char *story_of(const struct scene *scene) {
    static char story[4096];
    size_t length = 0;
    story[0] = 0;
    for (int i = 0; i < scene->event_count; i++) {
        const struct heard *event = &scene->events[i];
        char line[320] = "";
        switch (event->kind) {
        case LS_MESSAGE_STEP: snprintf(line, sizeof line, "step %lld\n", (long long)event->step); break;
        case LS_MESSAGE_VALIDATION: snprintf(line, sizeof line, "validation %lld\n", (long long)event->step); break;
        case LS_MESSAGE_SAVING:
            snprintf(line, sizeof line, "saving %lld order %llu%s\n", (long long)event->step,
                     (unsigned long long)event->order, event->stop ? " stop" : "");
            break;
        case LS_MESSAGE_PART: snprintf(line, sizeof line, "part %lld\n", (long long)event->step); break;
        case LS_MESSAGE_SAVE_REQUEST: snprintf(line, sizeof line, "wish\n"); break;
        case LS_MESSAGE_FAULT:
            snprintf(line, sizeof line, "fault of %lld code %d\n", (long long)event->rank, event->code);
            break;
        default: break;
        }
        length += (size_t)snprintf(story + length, sizeof story - length, "%s", line);
    }
    return story;
}

#define MODEL                                                                                                          \
    "name: test\nmodel: {model_type: gpt2, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}\n"            \
    "launcher: {threads_per_rank: 1}\n"                                                                                \
    "data: {train: [{path: 'synthetic:2000'}], validation: [{path: 'synthetic:200'}], sequence_length: 8}\n"

static void a_run_reports_every_step_saves_when_due_and_leaves_with_0(void **unused) {
    (void)unused;
    struct scene *scene = scene_of(MODEL "train: {steps: 7, global_batch_size: 5, micro_batch_size: 2}\n"
                                         "checkpoint: {every_steps: 3, async: false}\nevaluation: {every_steps: 4}\n",
                                   3, 7);
    play(scene);
    for (int rank = 0; rank < 3; rank++) assert_int_equal(scene->codes[rank], LS_OK);
    assert_string_equal(story_of(scene),
                        "step 1\nstep 2\nstep 3\nsaving 3 order 0\npart 3\npart 3\npart 3\nstep 4\n"
                        "validation 4\nstep 5\nstep 6\nsaving 6 order 0\npart 6\npart 6\npart 6\nstep 7\n"
                        "validation 7\nsaving 7 order 0\npart 7\npart 7\npart 7\n");
    for (int64_t step = 1; step <= 7; step++) {
        assert_int_equal(scene->steps[step].attempt, 1);
        assert_int_equal(scene->steps[step].position, 5 * step);
        assert_int_equal(scene->steps[step].sequences, 5);
    }
    struct ls_checkpoint_found found;
    bool is_found;
    assert_int_equal(ls_checkpoint_newest(scene->folder, &is_found, &found, NULL, NULL, NULL), LS_OK);
    assert_true(is_found);
    assert_int_equal(found.state.step, 7);
    close_stage(scene);
}

/* Where an event stands in the story; -1: nowhere. */
static int place_of(const struct scene *scene, enum ls_message_kind kind, int64_t step) {
    for (int i = 0; i < scene->event_count; i++)
        if (scene->events[i].kind == kind && scene->events[i].step == step) return i;
    return -1;
}

static void saves_run_beside_the_steps_and_none_begins_before_the_one_before_is_committed(void **unused) {
    (void)unused;
    struct scene *scene = scene_of(MODEL "train: {steps: 24, global_batch_size: 5, micro_batch_size: 2}\n"
                                         "checkpoint: {every_steps: 2, keep: 0}\nevaluation: {every_steps: 4}\n",
                                   3, 24);
    play(scene);
    for (int rank = 0; rank < 3; rank++) assert_int_equal(scene->codes[rank], LS_OK);
    int beside = 0;
    for (int64_t step = 2; step <= 24; step += 2) {
        const int saving = place_of(scene, LS_MESSAGE_SAVING, step), part = place_of(scene, LS_MESSAGE_PART, step);
        assert_true(place_of(scene, LS_MESSAGE_STEP, step) < saving && saving < part);
        if (step % 4 == 0) assert_true(place_of(scene, LS_MESSAGE_VALIDATION, step) < saving);
        if (step == 24) continue;
        /* SAVING comes before anything of the next step, and the parts before the next save. */
        assert_true(saving < place_of(scene, LS_MESSAGE_STEP, step + 1));
        assert_true(part < place_of(scene, LS_MESSAGE_SAVING, step + 2));
        beside += place_of(scene, LS_MESSAGE_STEP, step + 1) < part;
    }
    /* The parts of a save are gathered at a later boundary, if a step is granted. */
    assert_true(beside >= 8);
    for (int64_t step = 2; step <= 24; step += 2) {
        char path[LS_CHECKPOINT_PATH_MAX];
        struct ls_checkpoint_found found;
        assert_int_equal(ls_checkpoint_path(scene->folder, (uint64_t)step, path, NULL), LS_OK);
        assert_int_equal(ls_checkpoint_open(path, &found, NULL), LS_OK);
        assert_int_equal(found.state.step, step);
    }
    close_stage(scene);
}

static void a_stop_finishes_the_step_saves_and_leaves_with_its_code(void **unused) {
    (void)unused;
    struct scene *scene = scene_of(MODEL "train: {steps: 50, global_batch_size: 5, micro_batch_size: 5}\n", 2, 50);
    scene->order_after = 3;
    scene->order_stops = true;
    scene->span = 3; /* no step beyond the third is granted before the order */
    play(scene);
    for (int rank = 0; rank < 2; rank++) assert_int_equal(scene->codes[rank], LS_REQUEUE);
    const char *story = story_of(scene);
    const char *saving = strstr(story, "saving");
    assert_non_null(saving);
    assert_non_null(strstr(saving, "order 7 stop\n"));
    assert_null(strstr(saving, "step")); /* none after it */
    assert_true(scene->committed >= 3);
    close_stage(scene);
}

static void an_order_to_save_is_honoured_once_and_the_run_goes_on(void **unused) {
    (void)unused;
    struct scene *scene = scene_of(MODEL "train: {steps: 9, global_batch_size: 5, micro_batch_size: 5}\n", 2, 9);
    scene->order_after = 3;
    play(scene);
    assert_int_equal(scene->codes[0], LS_OK);
    int saves = 0;
    for (int i = 0; i < scene->event_count; i++)
        if (scene->events[i].kind == LS_MESSAGE_SAVING) {
            assert_int_equal(scene->events[i].order, 7);
            assert_false(scene->events[i].stop);
            saves++;
        }
    assert_int_equal(saves, 2); /* the order's and the last step's */
    assert_int_equal(scene->committed, 9);
    close_stage(scene);
}

static void a_rank_that_is_asked_to_end_wishes_for_a_save_once(void **unused) {
    (void)unused;
    struct scene *scene = scene_of(MODEL "train: {steps: 30, global_batch_size: 5, micro_batch_size: 5}\n", 2, 30);
    scene->wish = true;
    play(scene);
    assert_int_equal(scene->codes[0], LS_OK);
    const char *wish = strstr(story_of(scene), "wish\n");
    assert_non_null(wish);
    assert_null(strstr(wish + 1, "wish"));
    close_stage(scene);
}

static void an_end_without_a_commit_leaves_with_the_coordinators_code(void **unused) {
    (void)unused;
    struct scene *scene = scene_of(MODEL "train: {steps: 50, global_batch_size: 5, micro_batch_size: 5}\n", 2, 50);
    scene->end_after = 6;
    play(scene);
    for (int rank = 0; rank < 2; rank++) assert_int_equal(scene->codes[rank], LS_ERROR);
    assert_non_null(strstr(scene->errors[0].text, "the script says so"));
    close_stage(scene);

    scene = scene_of(MODEL "train: {steps: 2, global_batch_size: 5, micro_batch_size: 5}\n", 2, 2);
    scene->refuse_save = true;
    play(scene);
    for (int rank = 0; rank < 2; rank++) {
        assert_int_equal(scene->codes[rank], LS_CHECKPOINT);
        assert_non_null(strstr(scene->errors[rank].text, "the disk is gone"));
    }
    close_stage(scene);
}

static void a_silent_coordinator_is_left_with_6_when_the_span_is_done(void **unused) {
    (void)unused;
    struct scene *scene = scene_of(MODEL "train: {steps: 50, global_batch_size: 5, micro_batch_size: 5}\n"
                                         "fault: {coordinator_timeout_seconds: 1}\n",
                                   2, 50);
    scene->silent_after = 3;
    play(scene);
    for (int rank = 0; rank < 2; rank++) assert_int_equal(scene->codes[rank], LS_COMMUNICATION);
    assert_non_null(strstr(scene->errors[0].text, "was not heard for 1 s"));
    assert_int_equal(scene->steps[3].step, 3);
    close_stage(scene);
}

static void a_step_that_is_not_finite_is_told_as_a_fault(void **unused) {
    (void)unused;
    struct scene *scene = scene_of(MODEL "train: {steps: 50, global_batch_size: 5, micro_batch_size: 5}\n"
                                         "optimizer: {lr: 1000, weight_decay: 1000}\nlr_schedule: {type: constant}\n",
                                   2, 50);
    play(scene);
    for (int rank = 0; rank < 2; rank++) assert_int_equal(scene->codes[rank], LS_NONFINITE);
    assert_non_null(strstr(story_of(scene), "code 7\n"));
    close_stage(scene);
}

static const struct heard *fault_of(const struct scene *scene) {
    for (int i = 0; i < scene->event_count; i++)
        if (scene->events[i].kind == LS_MESSAGE_FAULT) return &scene->events[i];
    fail_msg("no fault was told: %s", story_of(scene));
    return NULL;
}

static void a_configuration_that_cannot_be_run_is_told_by_every_rank(void **unused) {
    (void)unused;
    struct scene *scene =
        scene_of("name: test\nmodel: {model_type: gpt2, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}\n"
                 "data: {train: [{path: /nowhere/at/all}], sequence_length: 8}\n"
                 "train: {steps: 7, global_batch_size: 5, micro_batch_size: 2}\n",
                 2, 7);
    play(scene);
    for (int rank = 0; rank < 2; rank++) {
        assert_int_equal(scene->codes[rank], LS_DATA);
        assert_int_equal(strncmp(scene->errors[rank].text, "rank 0: ", 8), 0);
    }
    assert_non_null(strstr(story_of(scene), "fault of 0 code 3\n"));
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    assert_string_equal(fault_of(scene)->host, host); /* no rank has joined: nobody else says it */
    close_stage(scene);
}

/* A checkpoint is given up for another one only where it is known to be no good. */
static void a_damaged_checkpoint_is_told_from_one_that_cannot_be_seen(void **unused) {
    (void)unused;
    static const char yaml[] = MODEL "train: {steps: 4, global_batch_size: 5, micro_batch_size: 5}\n";
    char state[LS_CHECKPOINT_PATH_MAX + 32], path[LS_CHECKPOINT_PATH_MAX], token[33];
    struct scene *first = scene_of(yaml, 2, 4);
    play(first);
    assert_int_equal(first->committed, 4);
    assert_int_equal(ls_checkpoint_path(first->folder, 4, path, NULL), LS_OK);

    struct scene *scene = scene_of(yaml, 2, 8); /* another folder is there instead of the run's */
    memset(token, '5', 32);
    token[32] = 0;
    scene->start_step = scene->granted = 4;
    scene->checkpoint = path;
    scene->token = token;
    play(scene);
    assert_int_equal(scene->codes[0], LS_CHECKPOINT);
    assert_non_null(strstr(scene->errors[0].text, "does not see the run directory"));
    assert_int_equal(fault_of(scene)->code, LS_CHECKPOINT);
    assert_false(fault_of(scene)->unloadable);
    close_stage(scene);

    scene = scene_of(yaml, 2, 8); /* it is there, and half of it is gone */
    scene->start_step = scene->granted = 4;
    scene->checkpoint = path;
    snprintf(state, sizeof state, "%s/state/rank-00001.safetensors", path);
    assert_int_equal(truncate(state, 100), 0);
    play(scene);
    assert_int_equal(scene->codes[0], LS_CHECKPOINT);
    assert_int_equal(fault_of(scene)->code, LS_CHECKPOINT);
    assert_true(fault_of(scene)->unloadable);
    close_stage(scene);
    close_stage(first);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_reports_every_step_saves_when_due_and_leaves_with_0),
        cmocka_unit_test(saves_run_beside_the_steps_and_none_begins_before_the_one_before_is_committed),
        cmocka_unit_test(a_stop_finishes_the_step_saves_and_leaves_with_its_code),
        cmocka_unit_test(an_order_to_save_is_honoured_once_and_the_run_goes_on),
        cmocka_unit_test(a_rank_that_is_asked_to_end_wishes_for_a_save_once),
        cmocka_unit_test(an_end_without_a_commit_leaves_with_the_coordinators_code),
        cmocka_unit_test(a_silent_coordinator_is_left_with_6_when_the_span_is_done),
        cmocka_unit_test(a_step_that_is_not_finite_is_told_as_a_fault),
        cmocka_unit_test(a_configuration_that_cannot_be_run_is_told_by_every_rank),
        cmocka_unit_test(a_damaged_checkpoint_is_told_from_one_that_cannot_be_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
