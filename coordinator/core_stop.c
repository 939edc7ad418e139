/* The core's endings: wishes to stop or save, and the last act. */
#include "coordinator/core_state.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- the last act ---- */

static void reply(struct ls_core *core, struct core_request *request, enum ls_code code, struct ls_core_actions *out,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));
static void reply(struct ls_core *core, struct core_request *request, enum ls_code code, struct ls_core_actions *out,
                  const char *format, ...) {
    struct ls_core_action *action = core_act(core, out, LS_ACTION_REPLY, request->connection);
    action->message.code = code;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(action->message.text, sizeof action->message.text, format, arguments);
    va_end(arguments);
    request->connection = 0;
}

void core_end(struct ls_core *core, enum ls_code code, bool kill, const char *text, struct ls_core_actions *out) {
    assert(!core->ended);
    for (int i = 0; i < LS_CORE_REQUESTS_MAX; i++)
        if (core->requests[i].connection) reply(core, &core->requests[i], code, out, "%s", text);
    struct ls_core_record *record = core_journal(core, out, LS_RECORD_END);
    record->end.code = code;
    bool blamed = core->cause && code == core->cause_code;
    record->end.rank = blamed ? core->cause_rank : -1;
    record->end.scope = blamed ? core->cause_scope : LS_SCOPE_JOB;
    record->end.step = core->done_step;
    if (blamed) memcpy(record->end.host, core->cause_host, sizeof record->end.host);
    snprintf(record->end.text, sizeof record->end.text, "%s", text);
    if (kill && (!core->launcher_exited || core->recovery)) core_act(core, out, LS_ACTION_KILL, 0);
    struct ls_core_action *action = core_act(core, out, LS_ACTION_END, 0);
    action->message.code = code;
    snprintf(action->message.text, sizeof action->message.text, "%s", text);
    if (LS_MUTATED(END_TWICE)) core_act(core, out, LS_ACTION_END, 0)->message = action->message;
    core->ended = true;
}

void core_end_stopped(struct ls_core *core, struct ls_core_actions *out) {
    char text[LS_CORE_TEXT_BYTES];
    enum ls_code code = core->stop_code ? core->stop_code : LS_STOPPED;
    bool lossy = core->recovery && core->done_step > core->committed_step;
    if (lossy)
        snprintf(text, sizeof text,
                 "stopped while recovering: saved is step %lld of %lld, steps up to %lld were done; 'lockstep run "
                 "--resume' goes on from step %lld",
                 (long long)core->committed_step, (long long)core->end_step, (long long)core->done_step,
                 (long long)core->committed_step);
    else if (core->committed_step == 0)
        snprintf(text, sizeof text, "stopped before the first step, nothing to save");
    else
        snprintf(text, sizeof text, "stopped, saved at step %lld of %lld; 'lockstep run --resume' goes on from there",
                 (long long)core->committed_step, (long long)core->end_step);
    core_end(core, code, core->recovery != RECOVERY_NONE, text, out);
}

void core_check_finished(struct ls_core *core, struct ls_core_actions *out) {
    if (core->ended || core->cause == CAUSE_EXACT) return;
    if (core->recovery == RECOVERY_CLEARING || core->recovery == RECOVERY_PREPARING) return;
    if (core->committed_step >= core->end_step) {
        char text[LS_CORE_TEXT_BYTES];
        snprintf(text, sizeof text, "done: %lld steps, %lld sequences", (long long)core->end_step,
                 (long long)core_samples(core, core->end_step));
        core_end(core, LS_OK, false, text, out);
    } else if (core->stopped_step >= 0 && core->committed_step >= core->stopped_step) {
        core_end_stopped(core, out);
    }
}

bool core_end_if_saved(struct ls_core *core, struct ls_core_actions *out) {
    if (!core->stop_order || core->done_step > core->committed_step) return false;
    core_end_stopped(core, out);
    return true;
}

/* ---- wishes ---- */

static uint64_t new_order(struct ls_core *core) {
    return (uint64_t)core->options.generation << 32 | ++core->order_count;
}

void core_send_orders(struct ls_core *core, struct ls_core_actions *out) {
    if (!core_voice(core) || !core->assembled || core->stopped_step >= 0 || core->done_step >= core->end_step) return;
    if (core->checkpoint_order)
        core_act(core, out, LS_ACTION_ORDER, core_voice(core))->order.id = core->checkpoint_order;
    if (core->stop_order) {
        struct ls_core_action *action = core_act(core, out, LS_ACTION_ORDER, core_voice(core));
        action->order.id = core->stop_order;
        action->order.stop = true;
    }
}

static void reply_stopping(struct ls_core *core, struct ls_core_actions *out) {
    for (int i = 0; i < LS_CORE_REQUESTS_MAX; i++)
        if (core->requests[i].connection && core->requests[i].kind == LS_REQUEST_STOP)
            reply(core, &core->requests[i], LS_OK, out,
                  "stopping: the step in progress ends, step %lld or a later one is saved", (long long)core->done_step);
}

void core_stop_journaled(struct ls_core *core, struct ls_core_actions *out) {
    if (core->stop_sequence && core->stop_sequence <= core->journaled_sequence) {
        core->stop_sequence = 0;
        reply_stopping(core, out);
    }
    if (!core->stop_code || core->stop_order || core->stop_first_sequence > core->journaled_sequence) return;
    core->stop_order = new_order(core);
    if (LS_MUTATED(STOP_IGNORED_IN_RECOVERY) && core->recovery) return;
    if (core->recovery || (!core->assembled && !core->options.restarted))
        core_end_stopped(core, out);
    else
        core_send_orders(core, out);
}

/* A stop by the user outweighs one by the scheduler: what somebody stopped is not to be requeued. */
static void wish_stop(struct ls_core *core, enum ls_code code, struct ls_core_actions *out) {
    if (core->stop_code == code || core->stop_code == LS_STOPPED) return;
    struct ls_core_record *record = core_journal(core, out, LS_RECORD_STOP);
    record->stop.code = code;
    if (!core->stop_code) core->stop_first_sequence = record->sequence;
    core->stop_code = code;
    core->stop_sequence = record->sequence;
}

/* Orders a save unless one is on order already. Returns its id, 0 if there is nothing to save yet. */
static uint64_t wish_checkpoint(struct ls_core *core, struct ls_core_actions *out) {
    if (core->recovery || (!core->assembled && !core->options.restarted)) return 0;
    if (!core->checkpoint_order) {
        core->checkpoint_order = new_order(core);
        core_send_orders(core, out);
    }
    return core->checkpoint_order;
}

void core_on_request(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    struct core_request *request = NULL;
    for (int i = 0; i < LS_CORE_REQUESTS_MAX && !request; i++)
        if (!core->requests[i].connection) request = &core->requests[i];
    if (!request) {
        struct core_request refused = {.connection = event->connection};
        reply(core, &refused, LS_ERROR, out, "coordinator: %d requests are waiting already. Try again in a moment.",
              LS_CORE_REQUESTS_MAX);
        return;
    }
    *request = (struct core_request){.connection = event->connection, .kind = event->request};
    if (event->request == LS_REQUEST_STOP) {
        wish_stop(core, LS_STOPPED, out);
        if (!core->stop_sequence || LS_MUTATED(REPLY_BEFORE_JOURNAL)) reply_stopping(core, out);
        return;
    }
    request->order = wish_checkpoint(core, out);
    if (!request->order)
        reply(core, request, LS_ERROR, out,
              "coordinator: no step has been run yet, there is nothing to save. Try again when the run goes on.");
}

void core_on_signal(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    switch (event->signal) {
    case LS_SIGNAL_SAVE: wish_checkpoint(core, out); return;
    case LS_SIGNAL_REQUEUE: wish_stop(core, LS_REQUEUE, out); return;
    case LS_SIGNAL_STOP:
        if (!core->stop_signalled) {
            core->stop_signalled = true;
            wish_stop(core, LS_STOPPED, out);
            return;
        }
        break;
    case LS_SIGNAL_NOW: break;
    }
    char text[LS_CORE_TEXT_BYTES];
    snprintf(text, sizeof text,
             "stopped at once at step %lld, not saved since step %lld; 'lockstep run --resume' goes on from there",
             (long long)core->done_step, (long long)core->committed_step);
    core_end(core, LS_STOPPED, true, text, out);
}

void core_refuse_saves(struct ls_core *core, struct ls_core_actions *out) {
    for (int i = 0; i < LS_CORE_REQUESTS_MAX; i++)
        if (core->requests[i].connection && core->requests[i].kind == LS_REQUEST_CHECKPOINT)
            reply(core, &core->requests[i], core->cause_code, out,
                  "not saved: the attempt failed at step %lld, the run goes on from an earlier one. Try again when it "
                  "does.",
                  (long long)core->done_step);
}

void core_reply_saved(struct ls_core *core, uint64_t order, int64_t step, struct ls_core_actions *out) {
    for (int i = 0; i < LS_CORE_REQUESTS_MAX; i++) {
        struct core_request *request = &core->requests[i];
        if (!request->connection || request->kind != LS_REQUEST_CHECKPOINT || request->order > order) continue;
        if (step == 0)
            reply(core, request, LS_OK, out, "nothing to save before the first step");
        else
            reply(core, request, LS_OK, out, "saved: step %lld", (long long)step);
    }
}
