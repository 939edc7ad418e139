/* The line between supervisor and coordinator: what was sent arrives, also from one who left without listening. */
#include "coordinator/channel.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void test_messages_arrive_whole_and_in_order(void **state) {
    (void)state;
    int pair[2];
    struct ls_channel_message message = {.kind = LS_CHANNEL_READY}, received;
    assert_int_equal(ls_channel_pair(pair), 0);
    assert_int_equal(ls_channel_receive(pair[1], &received), 0);
    strcpy(message.ready.run_dir, "/runs/a");
    assert_true(ls_channel_send(pair[0], &message));
    message.kind = LS_CHANNEL_KILL;
    assert_true(ls_channel_send(pair[0], &message));
    assert_int_equal(ls_channel_receive(pair[1], &received), 1);
    assert_int_equal(received.kind, LS_CHANNEL_READY);
    assert_string_equal(received.ready.run_dir, "/runs/a");
    assert_int_equal(ls_channel_receive(pair[1], &received), 1);
    assert_int_equal(received.kind, LS_CHANNEL_KILL);
    assert_int_equal(ls_channel_receive(pair[1], &received), 0);
    close(pair[0]);
    assert_int_equal(ls_channel_receive(pair[1], &received), -1);
    assert_false(ls_channel_send(pair[1], &message));
    close(pair[1]);
}

static void test_the_last_words_of_one_who_left_without_reading_arrive(void **state) {
    (void)state;
    int pair[2];
    struct ls_channel_message end = {.kind = LS_CHANNEL_END, .code = 6}, exited = {.kind = LS_CHANNEL_LAUNCHER_EXITED};
    struct ls_channel_message received;
    assert_int_equal(ls_channel_pair(pair), 0);
    strcpy(end.text, "rank 1 was lost");
    /* Both speak at once, and the coordinator leaves. */
    assert_true(ls_channel_send(pair[0], &end));
    assert_true(ls_channel_send(pair[1], &exited));
    close(pair[0]);
    assert_int_equal(ls_channel_receive(pair[1], &received), 1);
    assert_int_equal(received.kind, LS_CHANNEL_END);
    assert_string_equal(received.text, "rank 1 was lost");
    assert_int_equal(ls_channel_receive(pair[1], &received), -1);
    close(pair[1]);
}

static void test_who_sends_knows_whether_the_other_side_listens(void **state) {
    (void)state;
    int pair[2];
    struct ls_channel_message message = {.kind = LS_CHANNEL_SIGNAL}, received;
    assert_int_equal(ls_channel_pair(pair), 0);
    assert_true(ls_channel_is_read(pair[0]));
    assert_true(ls_channel_send(pair[0], &message));
    assert_true(ls_channel_send(pair[0], &message));
    assert_false(ls_channel_is_read(pair[0]));
    assert_true(ls_channel_is_read(pair[1]));
    assert_int_equal(ls_channel_receive(pair[1], &received), 1);
    assert_false(ls_channel_is_read(pair[0]));
    assert_int_equal(ls_channel_receive(pair[1], &received), 1);
    assert_true(ls_channel_is_read(pair[0]));
    close(pair[0]);
    close(pair[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_arrive_whole_and_in_order),
        cmocka_unit_test(test_the_last_words_of_one_who_left_without_reading_arrive),
        cmocka_unit_test(test_who_sends_knows_whether_the_other_side_listens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
