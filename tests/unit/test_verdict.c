/* Verdicts: scenes as a stalled run leaves them, and who has to be named. */
#include "coordinator/verdict.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

enum { RANKS = 4 };

/* Four ranks, two on each of two hosts, that have run and stand in stream collective 118 of step 41 since 15 s; the
 * limit of a step is 10 s. Tests change what makes their scene. */
struct stage {
    struct ls_verdict_rank ranks[RANKS];
    struct ls_verdict_host hosts[3];
    struct ls_verdict_scene scene;
};

static void set(struct stage *stage) {
    memset(stage, 0, sizeof *stage);
    for (int i = 0; i < RANKS; i++)
        stage->ranks[i] = (struct ls_verdict_rank){.known = true,
                                                   .host = i / 2,
                                                   .pid = 100 + i,
                                                   .gpu = -1,
                                                   .phase = LS_PHASE_BACKWARD,
                                                   .step = 41,
                                                   .block = 3,
                                                   .collective = 118,
                                                   .collective_done = 117,
                                                   .host_collective = 90,
                                                   .host_collective_done = 90,
                                                   .quiet_seconds = 15,
                                                   .look = {.state = 'S'}};
    stage->hosts[0] = (struct ls_verdict_host){.name = "alpha"};
    stage->hosts[1] = (struct ls_verdict_host){.name = "beta", .reports = true, .silent_seconds = 0.7};
    stage->scene = (struct ls_verdict_scene){
        .ranks = stage->ranks,
        .ranks_count = RANKS,
        .hosts = stage->hosts,
        .hosts_count = 2,
        .limits = {.start = 300, .first_step = 300, .step = 10, .checkpoint = 60, .grant = 120},
        .joined = true,
        .stepped = true,
        .waiting_seconds = 1000};
}

/* A rank that has not come to collective 118. */
static void hold(struct stage *stage, int rank, enum ls_phase phase) {
    stage->ranks[rank].collective = 117;
    stage->ranks[rank].phase = phase;
}

static struct ls_verdict judge(const struct stage *stage) {
    struct ls_verdict verdict;
    memset(&verdict, 0, sizeof verdict);
    assert_true(ls_verdict_find(&stage->scene, &verdict));
    assert_true(strlen(verdict.text) > 20);
    return verdict;
}

static void assert_says(const struct ls_verdict *verdict, const char *words) {
    if (!strstr(verdict->text, words)) fail_msg("'%s' is not in: %s", words, verdict->text);
}

static void a_run_that_moves_is_left_alone(void **unused) {
    (void)unused;
    struct stage stage;
    struct ls_verdict verdict;
    set(&stage);
    for (int i = 0; i < RANKS; i++) stage.ranks[i].quiet_seconds = 9.9;
    assert_false(ls_verdict_find(&stage.scene, &verdict));
    set(&stage);
    hold(&stage, 2, LS_PHASE_FORWARD);
    stage.ranks[2].quiet_seconds = 0.1; /* the others have waited for 15 s, but it gets on */
    assert_false(ls_verdict_find(&stage.scene, &verdict));
    set(&stage);
    hold(&stage, 2, LS_PHASE_FORWARD); /* by an old report: the others get on without it */
    for (int i = 0; i < RANKS; i++)
        if (i != 2) stage.ranks[i].quiet_seconds = 0.2;
    assert_false(ls_verdict_find(&stage.scene, &verdict));
}

static void the_rank_that_the_others_wait_for_is_named(void **unused) {
    (void)unused;
    for (int culprit = 0; culprit < RANKS; culprit++) {
        struct stage stage;
        set(&stage);
        hold(&stage, culprit, LS_PHASE_FORWARD);
        struct ls_verdict verdict = judge(&stage);
        assert_int_equal(verdict.kind, LS_VERDICT_STUCK);
        assert_int_equal(verdict.rank, culprit);
        assert_int_equal(verdict.host, culprit / 2);
        assert_int_equal(verdict.collective, 118);
        assert_false(verdict.collective_on_host);
        static const char *const waiting[] = {"1-3", "0, 2, 3", "0, 1, 3", "0-2"};
        assert_string_equal(verdict.waiting, waiting[culprit]);
        assert_says(&verdict, "in phase forward of step 41, micro-batch 0, block 3");
        assert_says(&verdict, "wait for it in collective 118");
        assert_null(strstr(verdict.text, "if it is only slow"));
        assert_string_equal(verdict.phase, "forward");
        stage.ranks[culprit].look.state = 'R'; /* it computes: maybe the attention of a long sequence */
        verdict = judge(&stage);
        assert_says(&verdict, "if it is only slow, set fault.stall_timeout_seconds higher.");
    }
}

static void a_chain_of_waiting_ends_at_its_origin(void **unused) {
    (void)unused;
    struct stage stage;
    set(&stage);
    /* 0 and 1 wait on a stream for 3; 3 waits on the host for 2, which reads. */
    stage.ranks[3].collective = stage.ranks[3].collective_done = 117;
    stage.ranks[3].host_collective = 91;
    stage.ranks[3].phase = LS_PHASE_STEP_OPEN;
    stage.ranks[2].collective = stage.ranks[2].collective_done = 117;
    stage.ranks[2].phase = LS_PHASE_DATA;
    snprintf(stage.ranks[2].look.text, LS_PROCESS_TEXT_BYTES,
             "thread ls-prefetch waits in pipe_read, read of /data/x.bin");
    struct ls_verdict verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_STUCK);
    assert_int_equal(verdict.rank, 2);
    assert_string_equal(verdict.phase, "data");
    assert_says(&verdict, "/data/x.bin");
    assert_says(&verdict, "file system of the data");
}

static void a_stopped_process_is_told_wherever_it_is(void **unused) {
    (void)unused;
    for (int culprit = 0; culprit < RANKS; culprit++) {
        struct stage stage;
        set(&stage); /* in the same collective as the others */
        stage.ranks[culprit].look.state = 'T';
        snprintf(stage.ranks[culprit].look.text, LS_PROCESS_TEXT_BYTES, "it is stopped by a signal");
        struct ls_verdict verdict = judge(&stage);
        assert_int_equal(verdict.kind, LS_VERDICT_STOPPED);
        assert_int_equal(verdict.rank, culprit);
        assert_int_equal(verdict.collective, 118);
        assert_says(&verdict, "it is stopped by a signal");
        assert_says(&verdict, "kill -CONT 10");
        hold(&stage, culprit, LS_PHASE_DATA); /* before it */
        verdict = judge(&stage);
        assert_int_equal(verdict.kind, LS_VERDICT_STOPPED);
        assert_int_equal(verdict.rank, culprit);
    }
}

static void what_a_stopped_process_has_not_sent_is_laid_to_it(void **unused) {
    (void)unused;
    struct stage stage;
    set(&stage);
    /* Rank 2 has left collective 117 and is stopped in the next; rank 0 still waits for its last bytes. */
    stage.ranks[2].look.state = 'T';
    stage.ranks[0].collective = 117;
    stage.ranks[0].collective_done = 116;
    struct ls_verdict verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_STOPPED);
    assert_int_equal(verdict.rank, 2);
    assert_string_equal(verdict.waiting, "0, 1, 3");
    assert_int_equal(verdict.collective, 117);
    /* The same of a host that is not heard. */
    stage.ranks[2].look.state = 'S';
    stage.hosts[1].silent_seconds = 12;
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_SILENT);
    assert_int_equal(verdict.host, 1);
    assert_string_equal(verdict.waiting, "0, 1");
    /* A rank that computes waits for nobody: it is the one, whoever else is stopped behind it. */
    set(&stage);
    stage.ranks[2].look.state = 'T';
    hold(&stage, 0, LS_PHASE_FORWARD);
    verdict = judge(&stage);
    assert_int_equal(verdict.rank, 0);
}

static void a_silent_host_is_a_cut_link(void **unused) {
    (void)unused;
    struct stage stage;
    set(&stage);
    stage.hosts[1].silent_seconds = 12; /* last heard a moment before the stall, some collectives behind */
    stage.ranks[2].collective = stage.ranks[3].collective = 101;
    stage.ranks[2].collective_done = stage.ranks[3].collective_done = 100;
    struct ls_verdict verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_SILENT);
    assert_int_equal(verdict.host, 1);
    assert_true(verdict.rank == 2 || verdict.rank == 3);
    assert_string_equal(verdict.waiting, "0, 1");
    assert_says(&verdict, "not heard for 12 s, ranks 2, 3 last seen in phase");
    assert_says(&verdict, "Check the network to beta");
    set(&stage);
    stage.hosts[1].silent_seconds = 12; /* in the same collective as far as is known */
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_SILENT);
    assert_int_equal(verdict.host, 1);
    set(&stage);
    hold(&stage, 2, LS_PHASE_FORWARD);
    stage.hosts[1].silent_seconds = 5; /* the next rank there may just be taking over */
    assert_false(ls_verdict_find(&stage.scene, &verdict));
    set(&stage);
    stage.hosts[1].silent_seconds = 12; /* reports are lost, the run goes on */
    for (int i = 0; i < 2; i++) stage.ranks[i].quiet_seconds = 0.3;
    assert_false(ls_verdict_find(&stage.scene, &verdict));
}

static void where_no_other_host_is_heard_it_is_the_network_of_this_one(void **unused) {
    (void)unused;
    struct stage stage;
    set(&stage);
    stage.scene.hosts_count = 3;
    stage.hosts[2] = (struct ls_verdict_host){.name = "gamma", .reports = true, .silent_seconds = 11};
    stage.hosts[1].silent_seconds = 12;
    stage.ranks[3].host = 2;
    struct ls_verdict verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_NETWORK);
    assert_says(&verdict, "none of the 2 other hosts has been heard for 1");
    assert_says(&verdict, "network of the coordinator's host");
    /* One of them is heard: the other is lost. */
    stage.hosts[2].silent_seconds = 1;
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_SILENT);
    assert_int_equal(verdict.host, 1);
    /* Two of three are silent: one is told, the other counted. */
    stage.ranks[1].host = 2;
    stage.ranks[3].host = 0;
    stage.hosts[0] = (struct ls_verdict_host){.name = "alpha", .reports = true, .silent_seconds = 1};
    stage.hosts[2].silent_seconds = 13;
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_SILENT);
    assert_says(&verdict, "1 more host is silent too");
}

static void one_collective_that_does_not_end_is_the_network(void **unused) {
    (void)unused;
    struct stage stage;
    set(&stage);
    struct ls_verdict verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_NETWORK);
    assert_int_equal(verdict.collective, 118);
    assert_says(&verdict, "network between the hosts");
    for (int i = 0; i < RANKS; i++) stage.ranks[i].host = 0;
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_NETWORK);
    assert_says(&verdict, "MPI hangs");
}

static void ranks_that_wait_for_each_other_are_a_deadlock(void **unused) {
    (void)unused;
    struct stage stage;
    set(&stage);
    for (int i = 0; i < RANKS; i++) {
        stage.ranks[i].collective = i < 2 ? 118 : 117;
        stage.ranks[i].collective_done = 117;
        stage.ranks[i].host_collective = i < 2 ? 90 : 91;
    }
    assert_int_equal(judge(&stage).kind, LS_VERDICT_DEADLOCK);
}

static void each_phase_has_its_limit(void **unused) {
    (void)unused;
    struct stage stage;
    struct ls_verdict verdict;
    set(&stage);
    hold(&stage, 0, LS_PHASE_CHECKPOINT);
    assert_false(ls_verdict_find(&stage.scene, &verdict));
    for (int i = 0; i < RANKS; i++) stage.ranks[i].quiet_seconds = 61;
    assert_int_equal(judge(&stage).rank, 0);
    hold(&stage, 0, LS_PHASE_WAIT_GRANT);
    assert_false(ls_verdict_find(&stage.scene, &verdict));
    for (int i = 0; i < RANKS; i++) stage.ranks[i].quiet_seconds = 121;
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_GRANT);
    assert_says(&verdict, "waits for the coordinator");
    hold(&stage, 0, LS_PHASE_LOAD);
    assert_false(ls_verdict_find(&stage.scene, &verdict));
    for (int i = 0; i < RANKS; i++) stage.ranks[i].quiet_seconds = 301;
    verdict = judge(&stage);
    assert_int_equal(verdict.rank, 0);
    assert_says(&verdict, "raise fault.start_timeout_seconds");
    set(&stage);
    stage.scene.stepped = false;
    assert_false(ls_verdict_find(&stage.scene, &verdict));
}

static void a_hang_in_the_start_is_named_with_its_phase(void **unused) {
    (void)unused;
    struct stage stage;
    struct ls_verdict verdict;
    set(&stage);
    stage.scene.joined = stage.scene.stepped = false;
    stage.scene.limits.start = 20;
    stage.scene.waiting_seconds = 19;
    for (int i = 0; i < RANKS; i++) {
        stage.ranks[i].phase = LS_PHASE_MPI_INIT;
        stage.ranks[i].collective = stage.ranks[i].collective_done = 0;
        stage.ranks[i].host_collective = stage.ranks[i].host_collective_done = 0;
    }
    assert_false(ls_verdict_find(&stage.scene, &verdict));
    stage.scene.waiting_seconds = 20;
    stage.ranks[2].look.state = 'T'; /* stopped in MPI_Init: the others are there too */
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_STOPPED);
    assert_int_equal(verdict.rank, 2);
    assert_says(&verdict, "in phase MPI_Init");
    assert_null(strstr(verdict.text, "if it is only slow"));
    stage.ranks[2].look.state = 'S';
    for (int i = 0; i < RANKS; i++)
        snprintf(stage.ranks[i].look.text, LS_PROCESS_TEXT_BYTES, "it waits in %s", i == 3 ? "nfs_wait" : "poll");
    assert_int_equal(judge(&stage).rank, 3); /* the one that does something else */
    stage.ranks[1].phase = LS_PHASE_START;   /* not there yet */
    verdict = judge(&stage);
    assert_int_equal(verdict.rank, 1);
    assert_string_equal(verdict.waiting, "0, 2, 3");
    assert_says(&verdict, "if it is only slow, raise fault.start_timeout_seconds."); /* many ranks on few cores are */
    stage.ranks[3].known = false;                                                    /* never started */
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_MISSING);
    assert_int_equal(verdict.rank, 3);
    assert_says(&verdict, "rank 3 has not started");
    for (int i = 0; i < RANKS; i++) stage.ranks[i].known = false; /* nobody: whoever starts them has not */
    assert_false(ls_verdict_find(&stage.scene, &verdict));
    /* All have joined MPI; rank 0 does not get an answer, the others wait for what it broadcasts. */
    set(&stage);
    stage.scene.joined = stage.scene.stepped = false;
    for (int i = 0; i < RANKS; i++) {
        stage.ranks[i].phase = LS_PHASE_JOIN;
        stage.ranks[i].collective = stage.ranks[i].collective_done = 0;
        stage.ranks[i].host_collective = i ? 2 : 1;
        stage.ranks[i].host_collective_done = 1;
    }
    verdict = judge(&stage);
    assert_int_equal(verdict.rank, 0);
    assert_string_equal(verdict.phase, "join");
    assert_true(verdict.collective_on_host);
    assert_int_equal(verdict.collective, 2);
}

static void ranks_that_have_left_are_not_blamed(void **unused) {
    (void)unused;
    struct stage stage;
    struct ls_verdict verdict;
    set(&stage);
    hold(&stage, 1, LS_PHASE_FORWARD);
    stage.ranks[1].gone = true;
    assert_int_not_equal(judge(&stage).rank, 1);
    set(&stage);
    for (int i = 0; i < RANKS; i++) stage.ranks[i].phase = LS_PHASE_FINISH;
    assert_false(ls_verdict_find(&stage.scene, &verdict));
    for (int i = 0; i < RANKS; i++) stage.ranks[i].phase = UINT64_MAX; /* as a damaged record would have it */
    assert_false(ls_verdict_find(&stage.scene, &verdict));
}

static void one_rank_alone_can_stall(void **unused) {
    (void)unused;
    struct stage stage;
    set(&stage);
    stage.scene.ranks_count = 1;
    stage.ranks[0].collective = stage.ranks[0].collective_done = 0;
    stage.ranks[0].look.state = 'D';
    stage.ranks[0].gpu = 0x3b0000;
    snprintf(stage.ranks[0].look.text, LS_PROCESS_TEXT_BYTES, "it waits without interrupt in nfs_wait");
    struct ls_verdict verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_STUCK);
    assert_int_equal(verdict.rank, 0);
    assert_string_equal(verdict.waiting, "");
    assert_says(&verdict, "pid 100, GPU 0000:3b:00.0");
    assert_says(&verdict, "nfs_wait");
}

static void limits_follow_the_formulas(void **unused) {
    (void)unused;
    struct ls_verdict_limits limits = ls_verdict_limits(0, 300, 120, 0, 0);
    assert_float_equal(limits.step, 10, 0);
    assert_float_equal(limits.first_step, 300, 0);
    assert_float_equal(limits.start, 300, 0);
    assert_float_equal(limits.checkpoint, 600, 0);
    assert_float_equal(limits.grant, 120, 0);
    limits = ls_verdict_limits(0, 300, 120, 4, 9);
    assert_float_equal(limits.step, 80, 0);
    assert_float_equal(limits.checkpoint, 90, 0);
    limits = ls_verdict_limits(5, 300, 120, 4, 2);
    assert_float_equal(limits.step, 5, 0);
    assert_float_equal(limits.first_step, 5, 0);
    assert_float_equal(limits.start, 300, 0);
    assert_float_equal(limits.checkpoint, 60, 0);
}

static void lists_of_ranks_are_short(void **unused) {
    (void)unused;
    enum { MANY = 4096 };
    static bool listed[MANY];
    char text[64];
    ls_verdict_list(listed, MANY, text, sizeof text);
    assert_string_equal(text, "");
    listed[5] = true;
    ls_verdict_list(listed, MANY, text, sizeof text);
    assert_string_equal(text, "5");
    listed[6] = listed[9] = listed[10] = listed[11] = true;
    ls_verdict_list(listed, MANY, text, sizeof text);
    assert_string_equal(text, "5, 6, 9-11");
    for (int i = 0; i < MANY; i++) listed[i] = i % 2;
    ls_verdict_list(listed, MANY, text, sizeof text);
    int first, more = 0;
    const char *rest = strstr(text, " and ");
    assert_non_null(rest);
    assert_int_equal(sscanf(rest, " and %d more", &more), 1);
    first = 1;
    for (const char *p = text; p < rest; p++) first += *p == ',';
    assert_int_equal(first + more, MANY / 2);
}

/* A scene of 98,304 ranks, eight to a host. Judged pair by pair it took minutes of the processor's time, in which the
 * coordinator would have heard nobody, and its workers would have left. */
static void a_hundred_thousand_ranks_are_judged_within_seconds(void **unused) {
    (void)unused;
    enum { MANY = 98304, HOSTS = MANY / 8, SECONDS_MAX = 20 };
    struct ls_verdict_rank *ranks = calloc(MANY, sizeof *ranks);
    struct ls_verdict_host *hosts = calloc(HOSTS, sizeof *hosts);
    struct stage stage;
    struct ls_verdict verdict;
    assert_true(ranks && hosts);
    set(&stage);
    for (int i = 0; i < MANY; i++) {
        ranks[i] = stage.ranks[0];
        ranks[i].host = i / 8;
        snprintf(ranks[i].look.text, sizeof ranks[i].look.text, "it waits in %s", i % 2 ? "futex_wait" : "do_poll");
    }
    for (int i = 0; i < HOSTS; i++) {
        snprintf(hosts[i].name, sizeof hosts[i].name, "node-%d", i);
        hosts[i].reports = i > 0;
    }
    stage.scene.ranks = ranks;
    stage.scene.ranks_count = MANY;
    stage.scene.hosts = hosts;
    stage.scene.hosts_count = HOSTS;
    const clock_t begin = clock();
    verdict = judge(&stage); /* all in one collective */
    assert_int_equal(verdict.kind, LS_VERDICT_NETWORK);
    ranks[MANY - 1].collective = 117;
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_STUCK);
    assert_int_equal(verdict.rank, MANY - 1);
    for (int i = 1; i < HOSTS; i++) hosts[i].silent_seconds = 20;
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_NETWORK);
    for (int i = 1; i < HOSTS; i++) hosts[i].silent_seconds = 0;
    for (int i = 0; i < MANY; i++) {
        ranks[i].phase = LS_PHASE_MPI_INIT;
        ranks[i].quiet_seconds = 400;
    }
    strcpy(ranks[777].look.text, "it waits in connect");
    stage.scene.joined = stage.scene.stepped = false;
    verdict = judge(&stage);
    assert_int_equal(verdict.kind, LS_VERDICT_STUCK);
    assert_int_equal(verdict.rank, 777); /* does what no other does */
    assert_true((double)(clock() - begin) / CLOCKS_PER_SEC < SECONDS_MAX);
    free(hosts);
    free(ranks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hundred_thousand_ranks_are_judged_within_seconds),
        cmocka_unit_test(a_run_that_moves_is_left_alone),
        cmocka_unit_test(the_rank_that_the_others_wait_for_is_named),
        cmocka_unit_test(a_chain_of_waiting_ends_at_its_origin),
        cmocka_unit_test(a_stopped_process_is_told_wherever_it_is),
        cmocka_unit_test(what_a_stopped_process_has_not_sent_is_laid_to_it),
        cmocka_unit_test(a_silent_host_is_a_cut_link),
        cmocka_unit_test(where_no_other_host_is_heard_it_is_the_network_of_this_one),
        cmocka_unit_test(one_collective_that_does_not_end_is_the_network),
        cmocka_unit_test(ranks_that_wait_for_each_other_are_a_deadlock),
        cmocka_unit_test(each_phase_has_its_limit),
        cmocka_unit_test(a_hang_in_the_start_is_named_with_its_phase),
        cmocka_unit_test(ranks_that_have_left_are_not_blamed),
        cmocka_unit_test(one_rank_alone_can_stall),
        cmocka_unit_test(limits_follow_the_formulas),
        cmocka_unit_test(lists_of_ranks_are_short),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
