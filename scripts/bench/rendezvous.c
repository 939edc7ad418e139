/* A coordinator and as many nodes as one wants, played by a few processes: how long until all have come, what the
 * coordinator needs while every node reports once a second, and how long until every node knows that the attempt is
 * over.
 *
 *   build/scripts/bench/rendezvous NODES [RANKS-PER-NODE] [SECONDS]
 *
 * The coordinator is the real one (`build/lockstep coordinator`), connections are encrypted, reports are those that
 * workers send. Up to 1,000 nodes report to it themselves, more through the tree of worker/relay.h: the nodes that
 * relay run that code, each in a thread. Rank 0 joins for all ranks, over a session as workers have it. Nothing is
 * trained. */
#define _GNU_SOURCE
#include "common/corpus.h"
#include "common/files.h"
#include "common/wire.h"
#include "worker/relay.h"
#include "worker/session.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { RELAY_ABOVE = 1000, PROCESSES = 4, START_SECONDS = 300, SLICES = 100, REPORT_BYTES = 8192 };

/* What the processes share. */
struct board {
    _Atomic int64_t listening, answered, ended;
    _Atomic int64_t slowest_end_ms; /* when the last node heard of the end */
    _Atomic bool go, leave;
    struct ls_relay_node nodes[];
};

struct bench {
    int64_t nodes, ranks_per_node, seconds, relays;
    char folder[64], endpoint[128];
    struct ls_key key;
    struct board *board;
    pid_t coordinator;
};

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

static void sleep_ms(int64_t milliseconds) {
    if (milliseconds > 0) nanosleep(&(struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000}, NULL);
}

static void die(const char *what, const char *why) {
    fprintf(stderr, "rendezvous: %s: %s\n", what, why);
    exit(1);
}

/* ---- the nodes ---- */

static size_t make_report(const struct bench *bench, int64_t node, uint64_t beat, uint8_t bytes[REPORT_BYTES]) {
    struct ls_rank_report ranks[LS_WIRE_REPORT_RANKS_MAX];
    struct ls_message message = {.kind = LS_MESSAGE_REPORT, .attempt = 1};
    struct ls_error error;
    size_t count;
    snprintf(message.report.host, sizeof message.report.host, "node-%05lld", (long long)node);
    message.report.ranks = ranks;
    message.report.ranks_count = bench->ranks_per_node;
    for (int64_t i = 0; i < bench->ranks_per_node; i++) {
        ranks[i].rank = node * bench->ranks_per_node + i;
        ranks[i].local_rank = i;
        ranks[i].alive = true;
        ranks[i].look = (struct ls_process_look){0};
        ranks[i].view.count = 0;
        ranks[i].view.beat = beat;
        ranks[i].view.pid = (uint64_t)(1000 + i);
        ranks[i].view.pid_start = 1;
        ranks[i].view.world_rank = (uint64_t)ranks[i].rank;
        ranks[i].view.step = beat;
        ranks[i].view.micro_batch = 0;
        ranks[i].view.block = 3;
        ranks[i].view.collective = 40 * beat;
        ranks[i].view.collective_done = 40 * beat - 1;
        ranks[i].view.host_collective = ranks[i].view.host_collective_done = beat;
        ranks[i].view.phase = LS_PHASE_BACKWARD;
        ranks[i].view.exit_code = ranks[i].view.gpu = UINT64_MAX;
        ranks[i].view.age_ns = 1000000;
    }
    if (ls_wire_encode(&message, bytes, REPORT_BYTES, &count, &error) != LS_OK) die("a report", error.text);
    return count;
}

static void note_end(struct bench *bench) {
    const int64_t now = now_ms();
    int64_t before = atomic_load(&bench->board->slowest_end_ms);
    while (before < now && !atomic_compare_exchange_weak(&bench->board->slowest_end_ms, &before, now))
        ;
    atomic_fetch_add(&bench->board->ended, 1);
}

/* A node that others report through. */
struct relay_task {
    struct bench *bench;
    struct ls_relay *relay;
    int64_t node;
    pthread_t thread;
};

static void *run_relay(void *argument) {
    struct relay_task *task = argument;
    struct bench *bench = task->bench;
    struct ls_relay_news news = {0};
    bool answered = false, ended = false;
    uint8_t report[REPORT_BYTES];
    while (!atomic_load(&bench->board->go)) sleep_ms(10);
    if (ls_relay_join(task->relay, bench->board->nodes, bench->nodes, task->node, NULL) != LS_OK)
        die("a relay", "cannot join");
    for (uint64_t beat = 1; !atomic_load(&bench->board->leave); beat++) {
        const int64_t end = now_ms() + 1000;
        ls_relay_add(task->relay, report, make_report(bench, task->node, beat, report));
        ls_relay_flush(task->relay);
        while (now_ms() < end && !atomic_load(&bench->board->leave)) {
            ls_relay_serve(task->relay, 50);
            ls_relay_read_news(task->relay, &news);
            if (news.answered && !answered) atomic_fetch_add(&bench->board->answered, 1);
            if (news.ended && !ended) note_end(bench);
            answered = news.answered;
            ended = news.ended;
        }
    }
    return NULL;
}

/* A node without others below it: a socket, looked after by its process. */
struct leaf {
    void *socket;
    int64_t node;
    bool answered, ended;
};

static void open_leaf(const struct bench *bench, void *context, struct leaf *leaf) {
    const bool above = bench->relays > 0 && leaf->node >= LS_RELAY_FAN_IN;
    const struct ls_relay_node *parent = above ? &bench->board->nodes[leaf->node / LS_RELAY_FAN_IN - 1] : NULL;
    const int linger = 0, backlog = 4;
    leaf->socket = zmq_socket(context, ZMQ_DEALER);
    if (!leaf->socket) die("a socket", zmq_strerror(errno));
    zmq_setsockopt(leaf->socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(leaf->socket, ZMQ_SNDHWM, &backlog, sizeof backlog);
    zmq_setsockopt(leaf->socket, ZMQ_CURVE_SERVERKEY, parent ? parent->public_key : bench->key.server,
                   LS_KEY_CHARACTERS);
    zmq_setsockopt(leaf->socket, ZMQ_CURVE_PUBLICKEY, bench->key.public_key, LS_KEY_CHARACTERS);
    zmq_setsockopt(leaf->socket, ZMQ_CURVE_SECRETKEY, bench->key.secret_key, LS_KEY_CHARACTERS);
    if (zmq_connect(leaf->socket, parent ? parent->endpoint : bench->endpoint)) die("connect", zmq_strerror(errno));
}

static void hear_leaf(struct bench *bench, struct leaf *leaf) {
    uint8_t bytes[2048];
    for (int count; (count = zmq_recv(leaf->socket, bytes, sizeof bytes, ZMQ_DONTWAIT)) > 0;) {
        struct ls_message message;
        if (count > (int)sizeof bytes || ls_wire_decode(bytes, (size_t)count, &message, NULL) != LS_OK) continue;
        if (!leaf->answered) atomic_fetch_add(&bench->board->answered, 1);
        leaf->answered = true;
        if (message.kind == LS_MESSAGE_ENDED && !leaf->ended) {
            leaf->ended = true;
            note_end(bench);
        }
        ls_message_release(&message);
    }
}

/* Every leaf reports once a second, a hundredth of them at a time; all are heard ten times a second. */
static void run_leaves(struct bench *bench, struct leaf *leaves, int64_t count) {
    uint8_t report[REPORT_BYTES];
    int64_t next = now_ms();
    for (uint64_t turn = 0; !atomic_load(&bench->board->leave); turn++) {
        for (int64_t i = (int64_t)(turn % SLICES); i < count; i += SLICES)
            zmq_send(leaves[i].socket, report, make_report(bench, leaves[i].node, turn / SLICES + 2, report),
                     ZMQ_DONTWAIT);
        if (turn % 10 == 0)
            for (int64_t i = 0; i < count; i++) hear_leaf(bench, &leaves[i]);
        next += 1000 / SLICES;
        sleep_ms(next - now_ms());
    }
}

/* The nodes whose number is `part` modulo the number of processes. */
static void play_nodes(struct bench *bench, int64_t part) {
    struct relay_task *tasks = calloc((size_t)bench->relays + 1, sizeof *tasks);
    struct leaf *leaves = calloc((size_t)bench->nodes, sizeof *leaves);
    void *context = zmq_ctx_new();
    int64_t relays = 0, count = 0;
    uint8_t report[REPORT_BYTES];
    if (!tasks || !leaves || !context) die("memory", "none left");
    zmq_ctx_set(context, ZMQ_MAX_SOCKETS, 32768);
    for (int64_t node = part; node < bench->relays; node += PROCESSES, relays++) {
        const struct ls_relay_options options = {.key = &bench->key, .endpoints = bench->endpoint, .attempt = 1};
        struct ls_error error;
        tasks[relays] = (struct relay_task){.bench = bench, .node = node};
        if (ls_relay_create(&options, &tasks[relays].relay, &error) != LS_OK ||
            ls_relay_listen(tasks[relays].relay, "127.0.0.1", &bench->board->nodes[node], &error) != LS_OK)
            die("a relay", error.text);
        if (pthread_create(&tasks[relays].thread, NULL, run_relay, &tasks[relays])) die("a thread", strerror(errno));
    }
    atomic_fetch_add(&bench->board->listening, 1);
    while (!atomic_load(&bench->board->go)) sleep_ms(10);
    for (int64_t node = part; node < bench->nodes; node += PROCESSES) {
        if (node < bench->relays) continue;
        leaves[count].node = node;
        open_leaf(bench, context, &leaves[count]);
        zmq_send(leaves[count++].socket, report, make_report(bench, node, 1, report), ZMQ_DONTWAIT);
    }
    run_leaves(bench, leaves, count);
    _exit(0);
}

/* ---- the coordinator ---- */

static void start_coordinator(struct bench *bench) {
    char path[128], ranks[24], batch[64], log[128];
    snprintf(path, sizeof path, "%s/config.yaml", bench->folder);
    FILE *config = fopen(path, "we");
    if (!config) die(path, strerror(errno));
    fprintf(config, "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}\n"
                    "data: {train: [{path: 'synthetic:9000000'}], sequence_length: 8}\n"
                    "train: {steps: 1000, global_batch_size: 1, micro_batch_size: 1}\ndevice: cpu\n"
                    "fault: {max_restarts: 0, start_timeout_seconds: 600}\n");
    fclose(config);
    snprintf(ranks, sizeof ranks, "%lld", (long long)(bench->nodes * bench->ranks_per_node));
    snprintf(batch, sizeof batch, "train.global_batch_size=%s", ranks);
    snprintf(log, sizeof log, "%s/coordinator.log", bench->folder);
    char run[128];
    snprintf(run, sizeof run, "%s/run", bench->folder);
    bench->coordinator = fork();
    if (bench->coordinator == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        const int out = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        dup2(out, 1);
        dup2(out, 2);
        execl("build/lockstep", "lockstep", "coordinator", path, "-n", ranks, "--run-dir", run, "--set", batch,
              (char *)NULL);
        _exit(127);
    }
    snprintf(path, sizeof path, "%s/run/lock", bench->folder);
    for (int64_t end = now_ms() + 20000; now_ms() < end && !bench->endpoint[0]; sleep_ms(20)) {
        char *text;
        size_t count;
        if (ls_file_read(path, 4096, &text, &count, LS_ERROR, NULL) != LS_OK) continue;
        const char *line = strstr(text, "endpoint tcp://");
        if (line) sscanf(line, "endpoint %127s", bench->endpoint);
        free(text);
    }
    if (!bench->endpoint[0]) die("the coordinator did not start", log);
    struct ls_error error;
    snprintf(path, sizeof path, "%s/run/keys/worker.key", bench->folder);
    if (ls_key_read(path, &bench->key, &error) != LS_OK) die("the key", error.text);
}

/* A file of /proc, whose size nobody knows; "" when it is gone. */
static void read_proc(pid_t pid, const char *name, char text[8192]) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    FILE *file = fopen(path, "re");
    text[file ? fread(text, 1, 8191, file) : 0] = 0;
    if (file) fclose(file);
}

/* Seconds of processor time, and resident memory in bytes. */
static double processor_seconds(pid_t pid) {
    char text[8192];
    unsigned long user = 0, system = 0;
    read_proc(pid, "stat", text);
    const char *rest = strrchr(text, ')');
    if (rest) sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static double resident_bytes(pid_t pid) {
    char text[8192];
    double kilobytes = 0;
    read_proc(pid, "status", text);
    const char *line = strstr(text, "VmRSS:");
    if (line) sscanf(line, "VmRSS: %lf", &kilobytes);
    return kilobytes * 1024;
}

/* Rank 0 joins for all. */
static struct ls_session *join(const struct bench *bench) {
    const int64_t count = bench->nodes * bench->ranks_per_node;
    struct ls_rank_info *ranks = calloc((size_t)count, sizeof *ranks);
    struct ls_session *session;
    struct ls_welcome welcome;
    struct ls_error error;
    char path[128], *yaml;
    struct ls_config *config = calloc(1, sizeof *config);
    snprintf(path, sizeof path, "%s/run/keys/worker.key", bench->folder);
    if (!ranks || !config ||
        ls_session_open(bench->endpoint, &bench->key, 1, 60, &session, &welcome, &yaml, &error) != LS_OK)
        die("the session", error.text);
    if (ls_config_parse(yaml, strlen(yaml), "run", NULL, 0, config, &error) != LS_OK)
        die("the configuration", error.text);
    char digest[33], dataset[33] = "";
    ls_config_digest(config, digest);
    snprintf(path, sizeof path, "%s/run/config.yaml", bench->folder);
    struct ls_corpus *corpus;
    if (ls_corpus_open(config, &corpus, &error) != LS_OK) die("the data", error.text);
    memcpy(dataset, corpus->digest, sizeof dataset);
    ls_corpus_close(corpus);
    for (int64_t i = 0; i < count; i++) {
        ranks[i].rank = i;
        ranks[i].local_rank = i % bench->ranks_per_node;
        ranks[i].pid = 1000 + i % bench->ranks_per_node;
        snprintf(ranks[i].host, sizeof ranks[i].host, "node-%05lld", (long long)(i / bench->ranks_per_node));
        memcpy(ranks[i].config_digest, digest, sizeof digest);
        memcpy(ranks[i].dataset_digest, dataset, sizeof dataset);
    }
    if (ls_session_join(session, ranks, count, &error) != LS_OK) die("joining", error.text);
    free(ranks);
    free(yaml);
    free(config);
    return session;
}

static void wait_for(const _Atomic int64_t *count, int64_t wanted, const char *what) {
    for (int64_t end = now_ms() + START_SECONDS * 1000; atomic_load(count) < wanted; sleep_ms(5))
        if (now_ms() > end) {
            fprintf(stderr, "rendezvous: %s: only %lld of %lld\n", what, (long long)atomic_load(count),
                    (long long)wanted);
            exit(1);
        }
}

/* A step is granted once every rank has joined. */
static void wait_for_grant(struct ls_session *session) {
    struct ls_session_orders orders = {0};
    for (int64_t end = now_ms() + START_SECONDS * 1000; orders.grant.end_step == 0 && now_ms() < end;) {
        ls_session_orders(session, &orders);
        if (orders.ended) die("the run ended", orders.ended_text);
        ls_session_wait(session, 0.05);
    }
    if (orders.grant.end_step == 0) die("joining", "no step was granted");
}

int main(int argc, char **argv) {
    static struct bench bench;
    if (argc < 2 || argc > 4 || (bench.nodes = atoll(argv[1])) < 1) {
        fprintf(stderr, "usage: rendezvous NODES [RANKS-PER-NODE] [SECONDS]\n");
        return 2;
    }
    bench.ranks_per_node = argc > 2 ? atoll(argv[2]) : 8;
    bench.seconds = argc > 3 ? atoll(argv[3]) : 20;
    while (bench.nodes > RELAY_ABOVE && ls_relay_has_children(bench.relays, bench.nodes)) bench.relays++;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    const size_t bytes = sizeof *bench.board + (size_t)bench.nodes * sizeof bench.board->nodes[0];
    bench.board = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    strcpy(bench.folder, "/tmp/rendezvous.XXXXXX");
    if (bench.board == MAP_FAILED || !mkdtemp(bench.folder)) die("starting", strerror(errno));
    start_coordinator(&bench);
    pid_t players[PROCESSES];
    for (int64_t part = 0; part < PROCESSES; part++) {
        players[part] = fork();
        if (players[part] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            play_nodes(&bench, part);
        }
    }
    wait_for(&bench.board->listening, PROCESSES, "starting");

    const int64_t begin = now_ms();
    atomic_store(&bench.board->go, true);
    struct ls_session *session = join(&bench);
    wait_for_grant(session);
    const double joined = 1e-3 * (double)(now_ms() - begin);
    wait_for(&bench.board->answered, bench.nodes, "nodes that were answered");
    const double all = 1e-3 * (double)(now_ms() - begin);
    sleep_ms(2000);
    const double before = processor_seconds(bench.coordinator);
    const int64_t from = now_ms();
    sleep_ms(bench.seconds * 1000);
    const double share = (processor_seconds(bench.coordinator) - before) / (1e-3 * (double)(now_ms() - from));
    const double memory = resident_bytes(bench.coordinator);
    struct ls_error lost;
    ls_fail(&lost, LS_COMMUNICATION, LS_SCOPE_RANK, "rank 3 is lost");
    const int64_t loss = now_ms();
    ls_session_fault(session, 3, "", 0, &lost);
    wait_for(&bench.board->ended, bench.nodes, "nodes that heard of the end");
    const double told = 1e-3 * (double)(atomic_load(&bench.board->slowest_end_ms) - loss);
    atomic_store(&bench.board->leave, true);
    ls_session_close(session, 0);
    printf("| nodes | ranks | relays | all ranks joined, s | every node answered, s | coordinator, %% of a core | its "
           "memory, MiB | "
           "bytes a rank | the loss known everywhere, s |\n|---|---|---|---|---|---|---|---|---|\n"
           "| %lld | %lld | %lld | %.2f | %.2f | %.1f | %.1f | %.0f | %.2f |\n",
           (long long)bench.nodes, (long long)(bench.nodes * bench.ranks_per_node), (long long)bench.relays, joined,
           all, 100 * share, memory / 1048576, memory / (double)(bench.nodes * bench.ranks_per_node), told);
    for (int part = 0; part < PROCESSES; part++) waitpid(players[part], NULL, 0);
    kill(bench.coordinator, SIGKILL);
    waitpid(bench.coordinator, NULL, 0);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", bench.folder);
    return system(command) != 0;
}
