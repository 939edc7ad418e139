/* Streams, events, errors and memory of the CPU device, and of the CUDA device over the stand-ins (LS_TEST_DEVICE). */
#include "tests/unit/support.h"

#include <cblas.h>
#include <pthread.h>
#include <unistd.h>

enum { COUNT = 64, BUFFERS = 6, STEPS = 200 };

/* One step of a random program: an operation on one of two streams, after the waits that its buffers need. */
struct step {
    int stream, kind, to, from;
};

/* Runs a program on two streams with an event after every step; a step waits for the last step of the other stream that
 * touched one of its buffers. With `forget` >= 0 that wait (counted from 0) is left out. Returns the number of waits;
 * `result` is buffer 0..5. */
static int run_program(const struct step *steps, enum ls_stream_order order, int forget, float *result) {
    struct support s = support_open(1, order);
    struct ls_stream *streams[2] = {s.stream, ls_stream_create(s.device, true)};
    struct ls_event *events[STEPS];
    int last[2][BUFFERS], waits = 0;
    float *buffer[BUFFERS], host[COUNT];
    for (int i = 0; i < BUFFERS; i++) {
        buffer[i] = ls_device_allocate(s.device, sizeof host);
        last[0][i] = last[1][i] = -1;
        for (int j = 0; j < COUNT; j++) host[j] = (float)((i * 7 + j * 3) % 11);
        ls_copy_to_device(streams[0], buffer[i], host, sizeof host);
        assert_int_equal(ls_stream_synchronize(streams[0], NULL), LS_OK); /* host is used again */
    }
    for (int i = 0; i < STEPS; i++) {
        const struct step step = steps[i];
        struct ls_stream *stream = streams[step.stream];
        const int *other = last[!step.stream];
        const int latest = other[step.to] > other[step.from] ? other[step.to] : other[step.from];
        if (latest >= 0 && waits++ != forget) ls_stream_wait(stream, events[latest]);
        if (step.kind == 0)
            ls_op(stream, add, .sum = buffer[step.to], .a = buffer[step.to], .b = buffer[step.from], .count = COUNT);
        if (step.kind == 1)
            ls_op(stream, gelu_forward, .output = buffer[step.to], .input = buffer[step.from], .count = COUNT);
        if (step.kind == 2 && step.to != step.from) ls_copy(stream, buffer[step.to], buffer[step.from], sizeof host);
        if (step.kind == 3)
            ls_op(stream, gelu_backward, .input_gradient = buffer[step.to], .output_gradient = buffer[step.from],
                  .input = buffer[step.to], .count = COUNT);
        events[i] = ls_event_create(s.device);
        ls_event_record(events[i], stream);
        last[step.stream][step.to] = last[step.stream][step.from] = i;
    }
    ls_event_record(events[0], streams[1]); /* an event may be recorded again */
    ls_stream_wait(streams[0], events[0]);
    for (int i = 0; i < BUFFERS; i++) ls_copy_to_host(streams[0], result + i * COUNT, buffer[i], sizeof host);
    assert_int_equal(ls_stream_synchronize(streams[0], NULL), LS_OK);
    for (int i = 0; i < STEPS; i++) ls_event_destroy(events[i]);
    ls_stream_destroy(streams[1]);
    for (int i = 0; i < BUFFERS; i++) ls_device_free(s.device, buffer[i]);
    support_close(s);
    return waits;
}

static void random_program(struct step *steps) {
    for (int i = 0; i < STEPS; i++)
        steps[i] = (struct step){(int)random_below(2), (int)random_below(4), (int)random_below(BUFFERS),
                                 (int)random_below(BUFFERS)};
}

static void eager_lazy_and_hasty_streams_give_the_same_bits(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        struct step steps[STEPS];
        float eager[BUFFERS * COUNT], lazy[BUFFERS * COUNT];
        random_program(steps);
        const int waits = run_program(steps, LS_STREAMS_EAGER, -1, eager);
        assert_true(waits > STEPS / 4);
        assert_int_equal(run_program(steps, LS_STREAMS_LAZY, -1, lazy), waits);
        assert_memory_equal(eager, lazy, sizeof eager); /* bytes: overflow to infinity or NaN is welcome */
        assert_int_equal(run_program(steps, LS_STREAMS_HASTY, -1, lazy), waits);
        assert_memory_equal(eager, lazy, sizeof eager);
    }
}

/* One stream writes x, the other copies it to y and to the host. */
static float copy_across_streams(enum ls_stream_order order, bool from_background, bool wait) {
    struct support s = support_open(1, order);
    struct ls_stream *background = ls_stream_create(s.device, true);
    struct ls_stream *writer = from_background ? background : s.stream,
                     *reader = from_background ? s.stream : background;
    struct ls_event *event = ls_event_create(s.device);
    float *x = ls_device_allocate(s.device, 4), *y = ls_device_allocate(s.device, 4), result;
    float *two = ls_device_allocate_host(s.device, 4); /* from other host memory CUDA copies at once */
    *two = 2.0f;
    ls_copy_to_device(writer, x, two, 4);
    ls_event_record(event, writer);
    if (wait) ls_stream_wait(reader, event);
    ls_copy(reader, y, x, 4);
    ls_copy_to_host(reader, &result, y, 4);
    assert_int_equal(ls_stream_synchronize(reader, NULL), LS_OK);
    ls_event_destroy(event);
    ls_stream_destroy(background);
    assert_int_equal(ls_stream_synchronize(s.stream, NULL), LS_OK);
    ls_device_free(s.device, x), ls_device_free(s.device, y);
    ls_device_free_host(s.device, two);
    support_close(s);
    return result;
}

/* Lazy streams run only what the synchronised one needs, hasty ones run the background first: without the wait, the
 * copy is of the old x, every time. (Eager ones may get it right by chance.) */
static void a_missing_wait_shows_every_time(void **state) {
    (void)state;
    for (int order = LS_STREAMS_EAGER; order <= LS_STREAMS_HASTY; order++)
        for (int from_background = 0; from_background < 2; from_background++)
            assert_true(copy_across_streams((enum ls_stream_order)order, from_background, true) == 2.0f);
    assert_true(copy_across_streams(LS_STREAMS_LAZY, false, false) == 0.0f);
    assert_true(copy_across_streams(LS_STREAMS_LAZY, true, false) == 0.0f);
    assert_true(copy_across_streams(LS_STREAMS_HASTY, false, false) == 0.0f);
}

/* In random programs a forgotten wait may be covered by another one, or be between values that happen to be equal; some
 * must show. */
static void forgotten_waits_show_in_random_programs(void **state) {
    (void)state;
    int shown = 0;
    for (int round = 0; round < 10; round++) {
        struct step steps[STEPS];
        float right[BUFFERS * COUNT], wrong[BUFFERS * COUNT];
        random_program(steps);
        const int waits = run_program(steps, LS_STREAMS_LAZY, -1, right);
        for (int forget = waits - 4; forget < waits; forget++) {
            run_program(steps, LS_STREAMS_LAZY, forget, wrong);
            shown += memcmp(right, wrong, sizeof right) != 0;
        }
    }
    assert_true(shown > 0);
}

static enum ls_code append(const void *argument, struct ls_error *error) {
    (void)error;
    int *log;
    memcpy(&log, argument, sizeof log);
    log[++log[0]] = *((const int *)((const char *)argument + sizeof log));
    return LS_OK;
}

static enum ls_code sleep_a_little(const void *argument, struct ls_error *error) {
    (void)argument, (void)error;
    usleep(2000);
    return LS_OK;
}

static enum ls_code refuse(const void *argument, struct ls_error *error) {
    return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB, "refused number %d", *(const int *)argument);
}

static void put_append(struct ls_stream *stream, int *log, int value) {
    char argument[sizeof log + sizeof value];
    memcpy(argument, &log, sizeof log);
    memcpy(argument + sizeof log, &value, sizeof value);
    ls_stream_call(stream, append, argument, sizeof argument); /* the array ends here: the stream must have copied it */
}

static void errors_latch_skip_what_follows_and_are_reported_once(void **state) {
    (void)state;
    for (int kind = 0; kind < 6; kind++) {
        struct support s = support_open(1, (enum ls_stream_order)(kind % 3));
        struct ls_stream *stream = kind >= 3 ? ls_stream_create(s.device, true) : s.stream;
        struct ls_event *event = ls_event_create(s.device);
        struct ls_error error;
        int log[8] = {0}, first = 1, second = 2;
        put_append(stream, log, 10);
        ls_stream_call(stream, refuse, &first, sizeof first);
        put_append(stream, log, 11);
        ls_stream_call(stream, refuse, &second, sizeof second);
        ls_event_record(event, stream);
        assert_int_equal(ls_event_synchronize(event, &error), LS_COMMUNICATION);
        assert_int_equal(ls_stream_synchronize(stream, &error), LS_COMMUNICATION);
        assert_string_equal(error.text, "refused number 1");
        assert_int_equal(error.scope, LS_SCOPE_JOB);
        put_append(stream, log, 12);
        assert_int_equal(ls_stream_synchronize(stream, &error), LS_OK);
        assert_int_equal(log[0], 2);
        assert_int_equal(log[1], 10);
        assert_int_equal(log[2], 12);
        ls_event_destroy(event);
        if (stream != s.stream) ls_stream_destroy(stream);
        support_close(s);
    }
}

static void a_failed_stream_does_not_hold_up_those_that_wait_for_it(void **state) {
    (void)state;
    for (int lazy = 0; lazy < 2; lazy++) {
        struct support s = support_open(1, lazy ? LS_STREAMS_LAZY : LS_STREAMS_EAGER);
        struct ls_stream *background = ls_stream_create(s.device, true);
        struct ls_event *event = ls_event_create(s.device);
        int log[4] = {0}, one = 1;
        ls_stream_call(background, refuse, &one, sizeof one);
        ls_event_record(event, background);
        ls_stream_wait(s.stream, event);
        put_append(s.stream, log, 5);
        assert_int_equal(ls_stream_synchronize(s.stream, NULL), LS_OK);
        assert_int_equal(log[1], 5);
        assert_int_equal(ls_stream_synchronize(background, NULL), LS_COMMUNICATION);
        ls_event_destroy(event);
        ls_stream_destroy(background);
        support_close(s);
    }
}

static void unknown_types_are_refused_by_name(void **state) {
    (void)state;
    struct support s = support_open(1, LS_STREAMS_EAGER);
    struct ls_error error;
    float x[4] = {1, 1, 1, 1};
    ls_op(s.stream, add, .sum = x, .a = x, .b = x, .count = 4, .dtype = (enum ls_dtype)7);
    assert_int_equal(ls_stream_synchronize(s.stream, &error), LS_ERROR);
    assert_non_null(strstr(error.text, "add"));
    assert_non_null(strstr(error.text, "type 7"));
    assert_true(x[0] == 1.0f);
    support_close(s);
}

static void a_wait_takes_the_latest_record_at_the_time_of_the_call(void **state) {
    (void)state;
    struct support s = support_open(1, LS_STREAMS_LAZY);
    struct ls_stream *a = ls_stream_create(s.device, true);
    struct ls_event *event = ls_event_create(s.device), *never = ls_event_create(s.device);
    int log[8] = {0};
    ls_stream_wait(s.stream, never);
    assert_int_equal(ls_event_synchronize(never, NULL), LS_OK);
    put_append(a, log, 1);
    ls_event_record(event, a);
    ls_stream_wait(s.stream, event);
    put_append(s.stream, log, 2);
    put_append(a, log, 3);
    ls_event_record(event, a); /* later than the wait: not waited for */
    assert_int_equal(ls_stream_synchronize(s.stream, NULL), LS_OK);
    assert_int_equal(log[0], 2);
    assert_int_equal(ls_event_synchronize(event, NULL), LS_OK);
    assert_int_equal(log[0], 3);
    assert_int_equal(log[1], 1), assert_int_equal(log[2], 2), assert_int_equal(log[3], 3);
    put_append(a, log, 4);
    ls_stream_destroy(a); /* runs what is queued; the event of a destroyed stream has happened */
    assert_int_equal(log[0], 4);
    ls_stream_wait(s.stream, event);
    assert_int_equal(ls_event_synchronize(event, NULL), LS_OK);
    ls_event_destroy(event), ls_event_destroy(never);
    support_close(s);
}

static void a_stream_takes_any_number_of_entries_in_order(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        struct support s = support_open(1, kind & 1 ? LS_STREAMS_LAZY : LS_STREAMS_EAGER);
        struct ls_stream *stream = kind & 2 ? ls_stream_create(s.device, true) : s.stream;
        int *log = calloc(1002, sizeof *log);
        for (int round = 0; round < 2; round++) {
            log[0] = 0;
            for (int i = 0; i < 1000; i++) put_append(stream, log, i);
            assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
            assert_int_equal(log[0], 1000);
            for (int i = 0; i < 1000; i++) assert_int_equal(log[i + 1], i);
        }
        free(log);
        if (stream != s.stream) ls_stream_destroy(stream);
        support_close(s);
    }
}

static enum ls_code caller_of(const void *argument, struct ls_error *error) {
    (void)error;
    pthread_t *self;
    memcpy(&self, argument, sizeof self);
    *self = pthread_self();
    return LS_OK;
}

static void only_eager_background_streams_have_a_thread_of_their_own(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        struct support s = support_open(1, kind & 1 ? LS_STREAMS_LAZY : LS_STREAMS_EAGER);
        struct ls_stream *stream = kind & 2 ? ls_stream_create(s.device, true) : s.stream;
        pthread_t ran, *place = &ran;
        ls_stream_call(stream, caller_of, &place, sizeof place);
        assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
        assert_int_equal(!pthread_equal(ran, pthread_self()), kind == 2);
        if (stream != s.stream) ls_stream_destroy(stream);
        support_close(s);
    }
}

/* A rank of its own: devices share nothing, so ranks may be threads of one process. */
static void *rank(void *argument) {
    const uint64_t *seed = argument;
    float *results = malloc(2 * BUFFERS * COUNT * sizeof *results);
    struct step steps[STEPS];
    for (int i = 0; i < STEPS; i++) {
        const uint64_t bits = (*seed + (uint64_t)i) * 0x9E3779B97F4A7C15u;
        steps[i] = (struct step){(int)(bits >> 60) % 2, (int)(bits >> 50) % 4, (int)(bits >> 40) % BUFFERS,
                                 (int)(bits >> 33) % BUFFERS};
    }
    run_program(steps, LS_STREAMS_EAGER, -1, results);
    run_program(steps, LS_STREAMS_LAZY, -1, results + BUFFERS * COUNT);
    const bool same = memcmp(results, results + BUFFERS * COUNT, BUFFERS * COUNT * sizeof *results) == 0;
    free(results);
    return same ? argument : NULL;
}

static void devices_of_several_threads_do_not_disturb_each_other(void **state) {
    (void)state;
    pthread_t threads[4];
    uint64_t seeds[4];
    void *result;
    for (int i = 0; i < 4; i++) {
        seeds[i] = random_bits();
        assert_int_equal(pthread_create(&threads[i], NULL, rank, &seeds[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &result);
        assert_ptr_equal(result, &seeds[i]);
    }
}

static void memory_is_aligned_and_zeroed_and_its_lack_is_null(void **state) {
    (void)state;
    struct support s = support_open(1, LS_STREAMS_EAGER);
    static const size_t sizes[] = {0, 1, 63, 4097, (2u << 20) - 1, (2u << 20) + 1, 5000001};
    for (int i = 0; i < 7; i++)
        for (int round = 0; round < 2; round++) { /* the second gets what the first one soiled */
            unsigned char *memory = ls_device_allocate(s.device, sizes[i]);
            assert_non_null(memory);
            assert_int_equal((uintptr_t)memory % 64, 0);
            for (size_t j = 0; j < sizes[i]; j++) assert_int_equal(memory[j], 0);
            memset(memory, 0xff, sizes[i]);
            ls_device_free(s.device, memory);
        }
    assert_null(ls_device_allocate(s.device, SIZE_MAX));
    assert_null(ls_device_allocate_host(s.device, SIZE_MAX / 2));
    ls_device_free(s.device, NULL);
    support_close(s);
}

static void the_numerics_id_names_processor_and_libraries(void **state) {
    (void)state;
    struct support s = support_open(1, LS_STREAMS_EAGER);
    const char *id = ls_device_numerics_id(s.device);
    char products[64]; /* the kernels that OpenBLAS has taken are what tells hosts apart */
    snprintf(products, sizeof products, " %s; oneDNN ", openblas_get_corename());
    assert_non_null(strstr(id, "; OpenBLAS "));
    assert_non_null(strstr(id, products));
    for (const char *c = id; *c; c++) assert_in_range(*c, ' ', '~');
    struct ls_device *device;
    struct ls_error error;
    assert_int_equal(ls_device_create_cpu(-1, LS_STREAMS_EAGER, &device, &error), LS_USAGE);
    support_close(s);
}

/* A wait that is measured waits, and takes as long as what it waits for. */
static void measured_waits_add_up(void **state) {
    (void)state;
    struct support s = support_open(1, LS_STREAMS_LAZY);
    struct ls_stream *background = ls_stream_create(s.device, true);
    struct ls_event *event = ls_event_create(s.device);
    int log[4] = {0};
    for (int round = 0; round < 2; round++) {
        ls_stream_call(background, sleep_a_little, NULL, 0);
        put_append(background, log, round);
        ls_event_record(event, background);
        ls_stream_wait_measured(s.stream, event);
        assert_int_equal(ls_stream_synchronize(s.stream, NULL), LS_OK);
        assert_int_equal(log[0], round + 1);
    }
    const double waited = ls_stream_waited_seconds(s.stream);
    assert_true(waited >= 2 * 0.002);
    assert_true(ls_stream_waited_seconds(background) == 0.0);
    ls_event_destroy(event);
    ls_stream_destroy(background);
    support_close(s);
}

int main(void) {
    const struct CMUnitTest on_cuda[] = {
        cmocka_unit_test(eager_lazy_and_hasty_streams_give_the_same_bits),
        cmocka_unit_test(a_missing_wait_shows_every_time),
        cmocka_unit_test(forgotten_waits_show_in_random_programs),
        cmocka_unit_test(errors_latch_skip_what_follows_and_are_reported_once),
        cmocka_unit_test(a_failed_stream_does_not_hold_up_those_that_wait_for_it),
        cmocka_unit_test(unknown_types_are_refused_by_name),
        cmocka_unit_test(a_wait_takes_the_latest_record_at_the_time_of_the_call),
        cmocka_unit_test(a_stream_takes_any_number_of_entries_in_order),
        cmocka_unit_test(memory_is_aligned_and_zeroed_and_its_lack_is_null),
        cmocka_unit_test(measured_waits_add_up),
    };
    if (support_is_cuda()) return cmocka_run_group_tests(on_cuda, NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measured_waits_add_up),
        cmocka_unit_test(eager_lazy_and_hasty_streams_give_the_same_bits),
        cmocka_unit_test(a_missing_wait_shows_every_time),
        cmocka_unit_test(forgotten_waits_show_in_random_programs),
        cmocka_unit_test(errors_latch_skip_what_follows_and_are_reported_once),
        cmocka_unit_test(a_failed_stream_does_not_hold_up_those_that_wait_for_it),
        cmocka_unit_test(unknown_types_are_refused_by_name),
        cmocka_unit_test(a_wait_takes_the_latest_record_at_the_time_of_the_call),
        cmocka_unit_test(a_stream_takes_any_number_of_entries_in_order),
        cmocka_unit_test(only_eager_background_streams_have_a_thread_of_their_own),
        cmocka_unit_test(devices_of_several_threads_do_not_disturb_each_other),
        cmocka_unit_test(memory_is_aligned_and_zeroed_and_its_lack_is_null),
        cmocka_unit_test(the_numerics_id_names_processor_and_libraries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
