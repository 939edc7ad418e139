/* Messages to protobuf. */
#define _GNU_SOURCE
#include "common/wire.h"

#include "common/utf8.h"
#include "common/wire.pb-c.h"
#include "common/wire_fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *ls_message_name(enum ls_message_kind kind) {
    static const char *const names[LS_MESSAGE_KINDS] = {
        "open",   "hello",  "step",      "validation", "saving",  "part",    "save_failed", "fault",  "save_request",
        "report", "bundle", "goodbye",   "pulse",      "setup",   "welcome", "refused",     "rejoin", "grant",
        "order",  "ack",    "committed", "ended",      "request", "reply",   "status"};
    return kind < LS_MESSAGE_KINDS ? names[kind] : "unknown";
}

/* Every body a message can have; on the stack of the encoder. */
union bodies {
    Ls__Open open;
    Ls__Hello hello;
    Ls__Step step;
    Ls__Validation validation;
    Ls__Saving saving;
    Ls__Part part;
    Ls__SaveFailed save_failed;
    Ls__Fault fault;
    Ls__SaveRequest save_request;
    Ls__Report report;
    Ls__Bundle bundle;
    Ls__Goodbye goodbye;
    Ls__Pulse pulse;
    Ls__Setup setup;
    Ls__Welcome welcome;
    Ls__Refused refused;
    Ls__Rejoin rejoin;
    Ls__Grant grant;
    Ls__Order order;
    Ls__Ack ack;
    Ls__Committed committed;
    Ls__Ended ended;
    Ls__Request request;
    Ls__Reply reply;
    Ls__Status status;
};

/* protobuf-c's strings are not const; packing only reads them. */
#define SHARE(field) target->field = (char *)(uintptr_t)source->field;

/* True for the first bytes of a character whose others are cut off. */
static bool is_torn(const char *text) {
    bool short_of;
    ls_utf8_character(text, strnlen(text, LS_UTF8_BYTES_MAX), &short_of);
    return short_of;
}

char *ls_wire_make_plain(char *out, size_t size, const char *text) {
    size_t used = 0;
    while (*text) {
        const size_t length = ls_wire_character(text, false), taken = length ? length : 1;
        if (used + taken >= size || (!length && is_torn(text))) break;
        if (length)
            memcpy(out + used, text, length);
        else
            out[used] = '?';
        used += taken;
        text += taken;
    }
    out[used] = 0;
    return out;
}

static void fill_rank(Ls__Rank *target, const struct ls_rank_info *source, const struct ls_rank_info *before) {
    RANK_FIELDS(COPY)
    RANK_STRINGS(SHARE)
    if (!before) return;
#define LEAVE_OUT(field)                                                                                               \
    if (strcmp(source->field, before->field) == 0) target->field = (char *)(uintptr_t) "";
    RANK_STRINGS(LEAVE_OUT)
#undef LEAVE_OUT
}

/* Fills a HELLO's or PART's list: an array of pointers followed by the messages, one allocation. */
static void *fill_ranks(Ls__Hello *target, const struct ls_message *message) {
    size_t count = (size_t)message->hello.ranks_count;
    Ls__Rank **list = malloc(count * (sizeof *list + sizeof **list) + 1);
    if (!list) return NULL;
    Ls__Rank *ranks = (Ls__Rank *)(void *)(list + count);
    for (size_t i = 0; i < count; i++) {
        list[i] = &ranks[i];
        ls__rank__init(&ranks[i]);
        fill_rank(&ranks[i], &message->hello.ranks[i], i ? &message->hello.ranks[i - 1] : NULL);
    }
    target->n_ranks = count;
    target->ranks = list;
    return list;
}

static void *fill_files(Ls__Part *target, const struct ls_message *message) {
    size_t count = (size_t)message->part.files_count;
    Ls__File **list = malloc(count * (sizeof *list + sizeof **list) + 1);
    if (!list) return NULL;
    Ls__File *files = (Ls__File *)(void *)(list + count);
    for (size_t i = 0; i < count; i++) {
        list[i] = &files[i];
        ls__file__init(&files[i]);
        files[i].name = message->part.files[i].name;
        files[i].bytes = message->part.files[i].bytes;
        files[i].hash = message->part.files[i].hash;
    }
    target->n_files = count;
    target->files = list;
    return list;
}

static void fill_rank_report(Ls__RankReport *to, const struct ls_rank_report *from, uint64_t *numbers) {
    ls__rank_report__init(to);
    to->rank = from->rank;
    to->local_rank = from->local_rank;
    to->alive = from->alive;
    to->state = (unsigned char)from->look.state;
    to->doing = (char *)(uintptr_t)from->look.text;
    Ls__RankReport *target = to;
    const struct ls_progress_view *source = &from->view;
    REPORT_FIELDS(COPY)
    to->operations = numbers;
    to->n_operations = (size_t)source->count * OPERATION_NUMBERS;
    for (int i = 0; i < source->count; i++) {
        const struct ls_progress_step *operation = &source->operations[i];
        *numbers++ = operation->age_ns;
        *numbers++ = operation->took_ns;
        *numbers++ = operation->step;
        *numbers++ = operation->collective;
        *numbers++ = operation->phase | operation->kind << 8;
        *numbers++ = operation->micro_batch;
        *numbers++ = (uint64_t)(operation->block + 1);
    }
}

/* The list of a REPORT: pointers, messages and operations, one allocation. */
static void *fill_report(Ls__Report *target, const struct ls_message *message) {
    const size_t count = (size_t)message->report.ranks_count;
    const size_t numbers = (size_t)LS_PROGRESS_OPERATIONS * OPERATION_NUMBERS;
    Ls__RankReport **list = malloc(count * (sizeof *list + sizeof **list + numbers * sizeof(uint64_t)) + 1);
    if (!list) return NULL;
    uint64_t *operations = (uint64_t *)(void *)(list + count);
    Ls__RankReport *ranks = (Ls__RankReport *)(void *)(operations + count * numbers);
    for (size_t i = 0; i < count; i++) {
        list[i] = &ranks[i];
        fill_rank_report(&ranks[i], &message->report.ranks[i], operations + i * numbers);
    }
    target->n_ranks = count;
    target->ranks = list;
    return list;
}

/* Points `target` at the pieces; the list is malloc'ed and returned. */
static void *fill_bundle(Ls__Bundle *target, const struct ls_message *message) {
    const size_t count = (size_t)message->bundle.reports_count;
    ProtobufCBinaryData *list = malloc((count + 1) * sizeof *list);
    if (!list) return NULL;
    for (size_t i = 0; i < count; i++)
        list[i] = (ProtobufCBinaryData){.len = message->bundle.reports[i].count,
                                        .data = (uint8_t *)(uintptr_t)message->bundle.reports[i].bytes};
    target->n_reports = count;
    target->reports = list;
    return list;
}

/* Starts the body `name` of the envelope and points `target` at it. */
#define BODY(TYPE, name, CASE)                                                                                         \
    Ls__##TYPE *target = &bodies->name;                                                                                \
    ls__##name##__init(target);                                                                                        \
    envelope->body_case = LS__ENVELOPE__BODY_##CASE;                                                                   \
    envelope->name = target;

/* A body whose fields are all in one list. */
#define PLAIN(TYPE, name, CASE, FIELDS, from)                                                                          \
    {                                                                                                                  \
        BODY(TYPE, name, CASE)                                                                                         \
        const __typeof__(message->from) *source = &message->from;                                                      \
        FIELDS(COPY)                                                                                                   \
        return NULL;                                                                                                   \
    }
#define ANSWER(TYPE, name, CASE)                                                                                       \
    {                                                                                                                  \
        BODY(TYPE, name, CASE)                                                                                         \
        target->code = message->answer.code;                                                                           \
        target->text = ls_wire_make_plain(text, LS_WIRE_TEXT_BYTES, message->answer.text);                             \
        return NULL;                                                                                                   \
    }
#define EMPTY(TYPE, name, CASE)                                                                                        \
    {                                                                                                                  \
        BODY(TYPE, name, CASE)                                                                                         \
        return NULL;                                                                                                   \
    }

/* Points the envelope at a filled body. Returns what the caller has to free after packing, NULL for nothing; a list
 * that could not be allocated leaves body_case unset. */
static void *fill_body(Ls__Envelope *envelope, union bodies *bodies, const struct ls_message *message, char *text) {
    switch (message->kind) {
    case LS_MESSAGE_OPEN: {
        BODY(Open, open, OPEN)
        target->version = (char *)(uintptr_t)message->open.version;
        return NULL;
    }
    case LS_MESSAGE_HELLO: {
        BODY(Hello, hello, HELLO)
        const __typeof__(message->hello) *source = &message->hello;
        HELLO_FIELDS(COPY)
        target->version = (char *)(uintptr_t)source->version;
        void *list = fill_ranks(target, message);
        if (!list) envelope->body_case = LS__ENVELOPE__BODY__NOT_SET;
        return list;
    }
    case LS_MESSAGE_STEP: {
        BODY(Step, step, STEP)
        const struct ls_step_report *source = &message->step;
        STEP_FIELDS(COPY)
        target->digest_low = source->digest.low;
        target->digest_high = source->digest.high;
        return NULL;
    }
    case LS_MESSAGE_VALIDATION: PLAIN(Validation, validation, VALIDATION, VALIDATION_FIELDS, validation)
    case LS_MESSAGE_SAVING: PLAIN(Saving, saving, SAVING, SAVING_FIELDS, saving)
    case LS_MESSAGE_PART: {
        BODY(Part, part, PART)
        const __typeof__(message->part) *source = &message->part;
        PART_FIELDS(COPY)
        void *list = fill_files(target, message);
        if (!list) envelope->body_case = LS__ENVELOPE__BODY__NOT_SET;
        return list;
    }
    case LS_MESSAGE_SAVE_FAILED: {
        BODY(SaveFailed, save_failed, SAVE_FAILED)
        const __typeof__(message->save_failed) *source = &message->save_failed;
        SAVE_FAILED_FIELDS(COPY)
        target->text = ls_wire_make_plain(text, LS_WIRE_TEXT_BYTES, source->text);
        return NULL;
    }
    case LS_MESSAGE_FAULT: {
        BODY(Fault, fault, FAULT)
        const __typeof__(message->fault) *source = &message->fault;
        FAULT_FIELDS(COPY)
        target->host = (char *)(uintptr_t)source->host;
        target->text = ls_wire_make_plain(text, LS_WIRE_TEXT_BYTES, source->text);
        return NULL;
    }
    case LS_MESSAGE_SAVE_REQUEST: EMPTY(SaveRequest, save_request, SAVE_REQUEST)
    case LS_MESSAGE_REPORT: {
        BODY(Report, report, REPORT)
        target->host = (char *)(uintptr_t)message->report.host;
        void *list = fill_report(target, message);
        if (!list) envelope->body_case = LS__ENVELOPE__BODY__NOT_SET;
        return list;
    }
    case LS_MESSAGE_BUNDLE: {
        BODY(Bundle, bundle, BUNDLE)
        void *list = fill_bundle(target, message);
        if (!list) envelope->body_case = LS__ENVELOPE__BODY__NOT_SET;
        return list;
    }
    case LS_MESSAGE_GOODBYE: EMPTY(Goodbye, goodbye, GOODBYE)
    case LS_MESSAGE_PULSE: EMPTY(Pulse, pulse, PULSE)
    case LS_MESSAGE_SETUP: {
        BODY(Setup, setup, SETUP)
        const struct ls_welcome *source = &message->setup.shape;
        SETUP_FIELDS(COPY)
        SETUP_STRINGS(SHARE)
        target->yaml = message->setup.yaml;
        target->n_quarantined = 2 * (size_t)source->quarantine.count;
        target->quarantined = (int64_t *)(uintptr_t)source->quarantine.ranges;
        return NULL;
    }
    case LS_MESSAGE_WELCOME: PLAIN(Welcome, welcome, WELCOME, WELCOME_FIELDS, welcome)
    case LS_MESSAGE_REFUSED: ANSWER(Refused, refused, REFUSED)
    case LS_MESSAGE_REJOIN: EMPTY(Rejoin, rejoin, REJOIN)
    case LS_MESSAGE_GRANT: PLAIN(Grant, grant, GRANT, GRANT_FIELDS, grant)
    case LS_MESSAGE_ORDER: PLAIN(Order, order, ORDER, ORDER_FIELDS, order)
    case LS_MESSAGE_ACK: PLAIN(Ack, ack, ACK, ACK_FIELDS, ack)
    case LS_MESSAGE_COMMITTED: PLAIN(Committed, committed, COMMITTED, COMMITTED_FIELDS, committed)
    case LS_MESSAGE_ENDED: ANSWER(Ended, ended, ENDED)
    case LS_MESSAGE_REQUEST: {
        BODY(Request, request, REQUEST)
        target->kind = (int32_t)message->request;
        return NULL;
    }
    case LS_MESSAGE_REPLY: ANSWER(Reply, reply, REPLY)
    case LS_MESSAGE_STATUS: {
        BODY(Status, status, STATUS)
        const struct ls_wire_status *source = &message->status;
        STATUS_FIELDS(COPY)
        STATUS_STRINGS(SHARE)
        return NULL;
    }
    case LS_MESSAGE_KINDS: break;
    }
    return NULL;
}

enum ls_code ls_wire_encode(const struct ls_message *message, void *buffer, size_t capacity, size_t *count,
                            struct ls_error *error) {
    const char *name = ls_message_name(message->kind);
    if ((message->kind == LS_MESSAGE_HELLO &&
         (message->hello.ranks_count < 0 || message->hello.ranks_count > LS_WIRE_RANKS_MAX)) ||
        (message->kind == LS_MESSAGE_PART &&
         (message->part.files_count < 0 || message->part.files_count > LS_WIRE_FILES_MAX)) ||
        (message->kind == LS_MESSAGE_REPORT &&
         (message->report.ranks_count < 0 || message->report.ranks_count > LS_WIRE_REPORT_RANKS_MAX)) ||
        (message->kind == LS_MESSAGE_BUNDLE &&
         (message->bundle.reports_count < 0 || message->bundle.reports_count > LS_WIRE_BUNDLE_MAX)))
        return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "wire: a %s message with more entries than the wire allows",
                       name);
    Ls__Envelope envelope = LS__ENVELOPE__INIT;
    union bodies bodies;
    char text[LS_WIRE_TEXT_BYTES];
    envelope.protocol = LS_PROTOCOL;
    envelope.attempt = message->attempt;
    envelope.generation = message->generation;
    void *list = fill_body(&envelope, &bodies, message, text);
    enum ls_code code = LS_OK;
    size_t size = envelope.body_case ? ls__envelope__get_packed_size(&envelope) : 0;
    if (size == 0)
        code = ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "wire: no memory to encode a %s message", name);
    else if (size > capacity || size > LS_WIRE_BYTES_MAX)
        code = ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "wire: a %s message of %zu bytes, more than the %zu allowed",
                       name, size, capacity < LS_WIRE_BYTES_MAX ? capacity : (size_t)LS_WIRE_BYTES_MAX);
    else
        *count = ls__envelope__pack(&envelope, buffer);
    free(list);
    return code;
}
