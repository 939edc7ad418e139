/* The arena and its plan. */
#include "worker/memory/arena.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void a_plan_counts_every_byte_under_its_category(void **unused) {
    (void)unused;
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    assert_int_equal(ls_arena_reserve(plan, LS_MEMORY_PARAMETERS, 1000), 0); /* 1024 with alignment */
    assert_int_equal(ls_arena_reserve(plan, LS_MEMORY_SCALARS, 1), 1);       /* 256 */
    assert_int_equal(ls_arena_reserve(plan, LS_MEMORY_WORKSPACE, 0), 2);
    assert_int_equal(ls_arena_reserve(plan, LS_MEMORY_PARAMETERS, 512), 3);
    assert_int_equal(plan->bytes, 1024 + 256 + 512);
    assert_int_equal(plan->category_bytes[LS_MEMORY_PARAMETERS], 1024 + 512);
    assert_int_equal(plan->category_bytes[LS_MEMORY_SCALARS], 256);
    assert_int_equal(plan->buffers[3].offset, 1280);
    free(plan);
}

static void buffers_do_not_overlap_and_are_aligned(void **unused) {
    (void)unused;
    struct ls_device *device;
    struct ls_arena *arena;
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    static const int64_t sizes[] = {1, 255, 256, 257, 0, 4096, 3};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    for (int i = 0; i < COUNT; i++) ls_arena_reserve(plan, LS_MEMORY_ACTIVATIONS, sizes[i]);
    assert_int_equal(ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, NULL), LS_OK);
    assert_int_equal(ls_arena_create(device, plan, &arena, NULL), LS_OK);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal((uintptr_t)ls_arena_buffer(arena, i) % 64, 0);
        memset(ls_arena_buffer(arena, i), i + 1, (size_t)sizes[i]);
    }
    for (int i = 0; i < COUNT; i++)
        for (int64_t byte = 0; byte < sizes[i]; byte++)
            assert_int_equal(((unsigned char *)ls_arena_buffer(arena, i))[byte], i + 1);
    ls_arena_destroy(arena);
    ls_device_destroy(device);
    free(plan);
}

static void what_the_device_does_not_have_is_refused_with_the_table(void **unused) {
    (void)unused;
    struct ls_device *device;
    struct ls_arena *arena = NULL;
    struct ls_error error;
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    ls_arena_reserve(plan, LS_MEMORY_ACTIVATIONS, INT64_C(1) << 55);
    ls_arena_reserve(plan, LS_MEMORY_OPTIMIZER, INT64_C(3) << 20);
    assert_int_equal(ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, NULL), LS_OK);
    assert_int_equal(ls_arena_create(device, plan, &arena, &error), LS_MEMORY);
    assert_null(arena);
    assert_non_null(strstr(error.text, "activations 34359738368.0 MiB"));
    assert_non_null(strstr(error.text, "optimizer 3.0 MiB"));
    ls_device_destroy(device);
    free(plan);
}

/* A byte behind the end of any buffer is found, whether it falls into slack or, where there is none, into the guard. */
static void a_write_behind_a_buffer_is_found_and_named(void **unused) {
    (void)unused;
    struct ls_device *device;
    struct ls_arena *arena;
    struct ls_error error;
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    static const int64_t sizes[] = {256, 100, 512, 0, 1};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    for (int i = 0; i < COUNT; i++) ls_arena_reserve(plan, LS_MEMORY_GRADIENTS, sizes[i]);
    const int64_t planned = plan->bytes;
    plan->guarded = true;
    assert_int_equal(ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, NULL), LS_OK);
    assert_int_equal(ls_arena_create(device, plan, &arena, NULL), LS_OK);
    assert_int_equal(planned, 256 + 256 + 512 + 256); /* guards are not planned */
    for (int i = 0; i < COUNT; i++) memset(ls_arena_buffer(arena, i), 0xff, (size_t)sizes[i]);
    assert_int_equal(ls_arena_check(arena, &error), LS_OK);
    for (int i = 0; i < COUNT; i++) {
        char *end = (char *)ls_arena_buffer(arena, i) + sizes[i], before = *end, text[64];
        *end = 0;
        assert_int_equal(ls_arena_check(arena, &error), LS_ERROR);
        snprintf(text, sizeof text, "0 bytes behind the end of buffer %d (gradients, %lld bytes)", i,
                 (long long)sizes[i]);
        assert_non_null(strstr(error.text, text));
        *end = before;
        assert_int_equal(ls_arena_check(arena, &error), LS_OK);
    }
    ls_arena_destroy(arena);
    ls_device_destroy(device);
    free(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plan_counts_every_byte_under_its_category),
        cmocka_unit_test(buffers_do_not_overlap_and_are_aligned),
        cmocka_unit_test(a_write_behind_a_buffer_is_found_and_named),
        cmocka_unit_test(what_the_device_does_not_have_is_refused_with_the_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
