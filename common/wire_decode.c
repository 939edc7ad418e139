/* Messages from protobuf: everything in them is checked. */
#define _GNU_SOURCE
#include "common/wire.h"

#include "common/files.h"
#include "common/utf8.h"
#include "common/wire.pb-c.h"
#include "common/wire_fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Memory of one decoding, so that a small message cannot ask for much. */
struct budget {
    size_t left;
};

static void *budget_alloc(void *context, size_t size) {
    struct budget *budget = context;
    if (size + 16 > budget->left) return NULL;
    budget->left -= size + 16;
    return malloc(size ? size : 1);
}

static void budget_free(void *context, void *memory) {
    (void)context;
    free(memory);
}

size_t ls_wire_character(const char *text, bool lines) {
    if (lines && (*text == '\n' || *text == '\r' || *text == '\t')) return 1;
    return ls_utf8_shown(text, strnlen(text, LS_UTF8_BYTES_MAX));
}

/* Length of a text of such characters, or -1. */
static int64_t check_text(const char *text, bool lines) {
    const char *p = text;
    for (size_t length; *p; p += length)
        if ((length = ls_wire_character(p, lines)) == 0) return -1;
    return p - text;
}

/* What the decoder is at; the first complaint stays. */
struct check {
    const char *message, *field, *wrong;
};

static void complain(struct check *check, const char *field, const char *wrong) {
    if (check->wrong) return;
    check->field = field;
    check->wrong = wrong;
}

static void take_string(struct check *check, const char *field, char *target, size_t capacity, const char *source) {
    int64_t length = check_text(source, false);
    if (length < 0) return complain(check, field, "is not plain UTF-8");
    if ((size_t)length >= capacity) return complain(check, field, "is too long");
    memcpy(target, source, (size_t)length + 1);
}

static void require_digest(struct check *check, const char *field, const char *digest) {
    size_t length = strlen(digest);
    if (length != 0 && (length != 32 || strspn(digest, "0123456789abcdef") != 32))
        complain(check, field, "is not 32 hex digits");
}

static void require_range(struct check *check, const char *field, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most) complain(check, field, "is out of range");
}

static void require_step(struct check *check, const char *field, int64_t value) {
    require_range(check, field, value, 0, INT64_C(1) << 60);
}

static void require_code(struct check *check, int32_t code) {
    static const int32_t codes[] = {LS_OK,         LS_ERROR,   LS_USAGE,         LS_DATA,
                                    LS_CHECKPOINT, LS_MEMORY,  LS_COMMUNICATION, LS_NONFINITE,
                                    LS_STALL,      LS_REQUEUE, LS_STOPPED};
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
        if (code == codes[i]) return;
    complain(check, "code", "is no exit code");
}

#define TAKE(field) take_string(check, #field, target->field, sizeof target->field, source->field);

static void read_hello(struct check *check, struct ls_message *message, const Ls__Hello *source) {
    __typeof__(message->hello) *target = &message->hello;
    HELLO_FIELDS(COPY)
    TAKE(version)
    require_range(check, "world_size", target->world_size, 0, LS_WIRE_WORLD_MAX);
    require_step(check, "steps_done", target->steps_done);
    require_step(check, "granted_step", target->granted_step);
    target->ranks = NULL;
    target->ranks_count = 0;
    if (source->n_ranks > LS_WIRE_RANKS_MAX) return complain(check, "ranks", "has too many entries");
    struct ls_rank_info *ranks = calloc(source->n_ranks + 1, sizeof *ranks);
    if (!ranks) return complain(check, "ranks", "needs more memory than there is");
    message->storage = ranks;
    target->ranks = ranks;
    target->ranks_count = (int64_t)source->n_ranks;
    for (size_t i = 0; i < source->n_ranks && !check->wrong; i++) {
        struct ls_rank_info *rank = &ranks[i];
        if (i > 0) *rank = ranks[i - 1];
        const Ls__Rank *from = source->ranks[i];
        rank->rank = from->rank;
        rank->local_rank = from->local_rank;
        rank->pid = from->pid;
#define TAKE_UNLESS_SAME(field)                                                                                        \
    if (i == 0 || from->field[0]) take_string(check, #field, rank->field, sizeof rank->field, from->field);
        RANK_STRINGS(TAKE_UNLESS_SAME)
#undef TAKE_UNLESS_SAME
        require_range(check, "rank", rank->rank, 0, LS_WIRE_WORLD_MAX - 1);
        require_range(check, "local_rank", rank->local_rank, 0, LS_WIRE_WORLD_MAX - 1);
        require_range(check, "pid", rank->pid, 0, INT32_MAX);
        require_digest(check, "config_digest", rank->config_digest);
        require_digest(check, "dataset_digest", rank->dataset_digest);
    }
}

static bool file_name_is_valid(const char *name) {
    return ls_file_name_is_safe(strncmp(name, "state/", 6) == 0 ? name + 6 : name);
}

static void read_part(struct check *check, struct ls_message *message, const Ls__Part *source) {
    __typeof__(message->part) *target = &message->part;
    PART_FIELDS(COPY)
    require_step(check, "step", target->step);
    require_step(check, "optimizer_steps", target->optimizer_steps);
    require_range(check, "rank", target->rank, 0, LS_WIRE_WORLD_MAX - 1);
    if (!(target->seconds >= 0 && target->seconds < 1e9)) return complain(check, "seconds", "is out of range");
    target->files = NULL;
    target->files_count = 0;
    if (source->n_files > LS_WIRE_FILES_MAX) return complain(check, "files", "has too many entries");
    struct ls_part_file *files = calloc(source->n_files + 1, sizeof *files);
    if (!files) return complain(check, "files", "needs more memory than there is");
    message->storage = files;
    target->files = files;
    target->files_count = (int64_t)source->n_files;
    for (size_t i = 0; i < source->n_files && !check->wrong; i++) {
        take_string(check, "name", files[i].name, sizeof files[i].name, source->files[i]->name);
        take_string(check, "hash", files[i].hash, sizeof files[i].hash, source->files[i]->hash);
        files[i].bytes = source->files[i]->bytes;
        if (!check->wrong && !file_name_is_valid(files[i].name))
            complain(check, "name", "is no file name of a checkpoint");
        if (strlen(files[i].hash) != 32) complain(check, "hash", "is not 32 hex digits");
        require_digest(check, "hash", files[i].hash);
        require_range(check, "bytes", files[i].bytes, 0, INT64_MAX);
    }
}

static void read_operations(struct check *check, struct ls_progress_view *view, const Ls__RankReport *source) {
    if (source->n_operations % OPERATION_NUMBERS ||
        source->n_operations > (size_t)LS_PROGRESS_OPERATIONS * OPERATION_NUMBERS)
        return complain(check, "operations", "are too many, or not whole");
    const uint64_t *number = source->operations;
    for (; (size_t)view->count < source->n_operations / OPERATION_NUMBERS; number += OPERATION_NUMBERS)
        view->operations[view->count++] = (struct ls_progress_step){.age_ns = number[0],
                                                                    .took_ns = number[1],
                                                                    .step = number[2],
                                                                    .collective = number[3],
                                                                    .phase = number[4] & 0xff,
                                                                    .kind = number[4] >> 8 & 0xff,
                                                                    .micro_batch = number[5] & 0xffffff,
                                                                    .block = (int32_t)(number[6] & 0xffffff) - 1};
}

static void read_report(struct check *check, struct ls_message *message, const Ls__Report *source) {
    struct ls_node_report *report = &message->report;
    take_string(check, "host", report->host, sizeof report->host, source->host);
    report->ranks = NULL;
    report->ranks_count = 0;
    if (source->n_ranks > LS_WIRE_REPORT_RANKS_MAX) return complain(check, "ranks", "has too many entries");
    struct ls_rank_report *ranks = calloc(source->n_ranks + 1, sizeof *ranks);
    if (!ranks) return complain(check, "ranks", "needs more memory than there is");
    message->storage = ranks;
    report->ranks = ranks;
    report->ranks_count = (int64_t)source->n_ranks;
    for (size_t i = 0; i < source->n_ranks && !check->wrong; i++) {
        const Ls__RankReport *from = source->ranks[i];
        ranks[i].rank = from->rank;
        ranks[i].local_rank = from->local_rank;
        ranks[i].alive = from->alive;
        ranks[i].look.state = from->state < 0x7f ? (char)from->state : 0;
        take_string(check, "doing", ranks[i].look.text, sizeof ranks[i].look.text, from->doing);
        struct ls_progress_view *target = &ranks[i].view;
        const Ls__RankReport *source_view = from;
#define COPY_VIEW(field) target->field = source_view->field;
        REPORT_FIELDS(COPY_VIEW)
#undef COPY_VIEW
        read_operations(check, target, from);
        target->world_rank = from->rank < 0 ? UINT64_MAX : (uint64_t)from->rank;
        require_range(check, "rank", from->rank, -1, LS_WIRE_WORLD_MAX - 1);
        require_range(check, "local_rank", from->local_rank, 0, LS_WIRE_WORLD_MAX - 1);
        require_range(check, "pid", (int64_t)from->pid, 0, INT32_MAX);
        require_step(check, "step", (int64_t)from->step);
    }
}

/* The list and, behind it, what it points to, in one piece of memory. */
static void read_bundle(struct check *check, struct ls_message *message, const Ls__Bundle *source) {
    size_t bytes = 0;
    message->bundle.reports = NULL;
    message->bundle.reports_count = 0;
    if (source->n_reports > LS_WIRE_BUNDLE_MAX) return complain(check, "reports", "has too many entries");
    for (size_t i = 0; i < source->n_reports; i++) bytes += source->reports[i].len;
    struct ls_wire_piece *pieces = malloc((source->n_reports + 1) * sizeof *pieces + bytes);
    if (!pieces) return complain(check, "reports", "needs more memory than there is");
    uint8_t *at = (uint8_t *)(pieces + source->n_reports);
    for (size_t i = 0; i < source->n_reports; i++) {
        const size_t count = source->reports[i].len;
        if (count) memcpy(at, source->reports[i].data, count);
        pieces[i] = (struct ls_wire_piece){at, count};
        at += count;
    }
    message->storage = pieces;
    message->bundle.reports = pieces;
    message->bundle.reports_count = (int64_t)source->n_reports;
}

static void read_step(struct check *check, struct ls_message *message, const Ls__Step *source) {
    struct ls_step_report *target = &message->step;
    STEP_FIELDS(COPY)
    target->attempt = message->attempt;
    target->digest.low = source->digest_low;
    target->digest.high = source->digest_high;
    require_step(check, "step", target->step);
    require_step(check, "sequences", target->sequences);
    require_step(check, "targets", target->targets);
    require_range(check, "wait_for_rank", target->wait_for_rank, -1, LS_WIRE_WORLD_MAX - 1);
    if (target->position > INT64_MAX) complain(check, "position", "is out of range");
}

static void read_setup(struct check *check, struct ls_message *message, const Ls__Setup *source) {
    struct ls_welcome *target = &message->setup.shape;
    SETUP_FIELDS(COPY)
    SETUP_STRINGS(TAKE)
    target->attempt = message->attempt;
    message->setup.yaml = NULL;
    if (source->n_quarantined > 2 * LS_QUARANTINE_RANGES_MAX)
        return complain(check, "quarantined", "has too many entries");
    target->quarantine.count = (int32_t)(source->n_quarantined / 2);
    for (size_t i = 0; i + 1 < source->n_quarantined; i += 2)
        target->quarantine.ranges[i / 2] =
            (struct ls_quarantine_range){source->quarantined[i], source->quarantined[i + 1]};
    if (source->n_quarantined % 2 || !ls_quarantine_is_valid(&target->quarantine))
        return complain(check, "quarantined", "is not a list of ascending ranges");
    require_step(check, "end_step", target->end_step);
    require_range(check, "world_size", target->world_size, 0, LS_WIRE_WORLD_MAX);
    require_step(check, "start_step", target->start_step);
    require_step(check, "total_steps", target->total_steps);
    require_step(check, "optimizer_steps", target->optimizer_steps);
    int64_t length = check_text(source->yaml, true);
    if (length < 0) return complain(check, "yaml", "is not plain UTF-8");
    if (length > LS_WIRE_YAML_BYTES_MAX) return complain(check, "yaml", "is too long");
    message->storage = message->setup.yaml = strdup(source->yaml);
    if (!message->storage) complain(check, "yaml", "needs more memory than there is");
}

static void read_status(struct check *check, struct ls_message *message, const Ls__Status *source) {
    struct ls_wire_status *target = &message->status;
    STATUS_FIELDS(COPY)
    STATUS_STRINGS(TAKE)
}

static void read_answer(struct check *check, struct ls_message *message, int32_t code, const char *text) {
    message->answer.code = code;
    require_code(check, code);
    take_string(check, "text", message->answer.text, sizeof message->answer.text, text);
}

#define READ_PLAIN(name, FIELDS)                                                                                       \
    {                                                                                                                  \
        __typeof__(message->name) *target = &message->name;                                                            \
        const __typeof__(*envelope->name) *source = envelope->name;                                                    \
        FIELDS(COPY)                                                                                                   \
    }

static void read_body(struct check *check, struct ls_message *message, const Ls__Envelope *envelope) {
    switch (message->kind) {
    case LS_MESSAGE_OPEN:
        take_string(check, "version", message->open.version, sizeof message->open.version, envelope->open->version);
        break;
    case LS_MESSAGE_HELLO: read_hello(check, message, envelope->hello); break;
    case LS_MESSAGE_STEP: read_step(check, message, envelope->step); break;
    case LS_MESSAGE_VALIDATION:
        READ_PLAIN(validation, VALIDATION_FIELDS)
        require_step(check, "step", message->validation.step);
        break;
    case LS_MESSAGE_SAVING:
        READ_PLAIN(saving, SAVING_FIELDS)
        require_step(check, "step", message->saving.step);
        break;
    case LS_MESSAGE_PART: read_part(check, message, envelope->part); break;
    case LS_MESSAGE_SAVE_FAILED:
        READ_PLAIN(save_failed, SAVE_FAILED_FIELDS)
        require_step(check, "step", message->save_failed.step);
        require_range(check, "rank", message->save_failed.rank, 0, LS_WIRE_WORLD_MAX - 1);
        take_string(check, "text", message->save_failed.text, sizeof message->save_failed.text,
                    envelope->save_failed->text);
        break;
    case LS_MESSAGE_FAULT:
        READ_PLAIN(fault, FAULT_FIELDS)
        require_step(check, "step", message->fault.step);
        require_range(check, "good_step", message->fault.good_step, -1, INT64_C(1) << 60);
        require_range(check, "rank", message->fault.rank, message->fault.replicas_differ ? -1 : 0,
                      LS_WIRE_WORLD_MAX - 1);
        require_code(check, message->fault.code);
        take_string(check, "host", message->fault.host, sizeof message->fault.host, envelope->fault->host);
        take_string(check, "text", message->fault.text, sizeof message->fault.text, envelope->fault->text);
        break;
    case LS_MESSAGE_REPORT: read_report(check, message, envelope->report); break;
    case LS_MESSAGE_BUNDLE: read_bundle(check, message, envelope->bundle); break;
    case LS_MESSAGE_SETUP: read_setup(check, message, envelope->setup); break;
    case LS_MESSAGE_WELCOME: READ_PLAIN(welcome, WELCOME_FIELDS) break;
    case LS_MESSAGE_REFUSED: read_answer(check, message, envelope->refused->code, envelope->refused->text); break;
    case LS_MESSAGE_GRANT:
        READ_PLAIN(grant, GRANT_FIELDS)
        require_step(check, "from_step", message->grant.from_step);
        require_range(check, "to_step", message->grant.to_step, message->grant.from_step, INT64_C(1) << 60);
        break;
    case LS_MESSAGE_ORDER:
        READ_PLAIN(order, ORDER_FIELDS)
        require_code(check, message->order.code);
        break;
    case LS_MESSAGE_ACK: READ_PLAIN(ack, ACK_FIELDS) break;
    case LS_MESSAGE_COMMITTED: READ_PLAIN(committed, COMMITTED_FIELDS) break;
    case LS_MESSAGE_ENDED: read_answer(check, message, envelope->ended->code, envelope->ended->text); break;
    case LS_MESSAGE_REQUEST:
        message->request = (enum ls_wire_request)envelope->request->kind;
        require_range(check, "kind", envelope->request->kind, LS_WIRE_STATUS, LS_WIRE_CHECKPOINT);
        break;
    case LS_MESSAGE_REPLY: read_answer(check, message, envelope->reply->code, envelope->reply->text); break;
    case LS_MESSAGE_STATUS: read_status(check, message, envelope->status); break;
    case LS_MESSAGE_SAVE_REQUEST:
    case LS_MESSAGE_GOODBYE:
    case LS_MESSAGE_PULSE:
    case LS_MESSAGE_REJOIN:
    case LS_MESSAGE_KINDS: break;
    }
}

static enum ls_message_kind kind_of(const Ls__Envelope *envelope) {
    static const Ls__Envelope__BodyCase cases[LS_MESSAGE_KINDS] = {
        LS__ENVELOPE__BODY_OPEN,        LS__ENVELOPE__BODY_HELLO,   LS__ENVELOPE__BODY_STEP,
        LS__ENVELOPE__BODY_VALIDATION,  LS__ENVELOPE__BODY_SAVING,  LS__ENVELOPE__BODY_PART,
        LS__ENVELOPE__BODY_SAVE_FAILED, LS__ENVELOPE__BODY_FAULT,   LS__ENVELOPE__BODY_SAVE_REQUEST,
        LS__ENVELOPE__BODY_REPORT,      LS__ENVELOPE__BODY_BUNDLE,  LS__ENVELOPE__BODY_GOODBYE,
        LS__ENVELOPE__BODY_PULSE,       LS__ENVELOPE__BODY_SETUP,   LS__ENVELOPE__BODY_WELCOME,
        LS__ENVELOPE__BODY_REFUSED,     LS__ENVELOPE__BODY_REJOIN,  LS__ENVELOPE__BODY_GRANT,
        LS__ENVELOPE__BODY_ORDER,       LS__ENVELOPE__BODY_ACK,     LS__ENVELOPE__BODY_COMMITTED,
        LS__ENVELOPE__BODY_ENDED,       LS__ENVELOPE__BODY_REQUEST, LS__ENVELOPE__BODY_REPLY,
        LS__ENVELOPE__BODY_STATUS};
    for (int kind = 0; kind < LS_MESSAGE_KINDS; kind++)
        if (cases[kind] == envelope->body_case) return (enum ls_message_kind)kind;
    return LS_MESSAGE_KINDS;
}

enum ls_code ls_wire_decode(const void *bytes, size_t count, struct ls_message *message, struct ls_error *error) {
    if (count > LS_WIRE_BYTES_MAX)
        return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "wire: a message of %zu bytes, more than the %d allowed", count,
                       LS_WIRE_BYTES_MAX);
    struct budget budget = {LS_WIRE_MEMORY_MAX};
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &budget};
    Ls__Envelope *envelope = ls__envelope__unpack(&allocator, count, bytes);
    if (!envelope) return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "wire: %zu bytes that are no message", count);
    memset(message, 0, sizeof *message);
    message->protocol = envelope->protocol;
    message->attempt = envelope->attempt;
    message->generation = envelope->generation;
    message->kind = kind_of(envelope);
    struct check check = {.message = ls_message_name(message->kind)};
    if (message->kind == LS_MESSAGE_KINDS)
        complain(&check, "body", "is of no known kind");
    else if (message->protocol == LS_PROTOCOL)
        read_body(&check, message, envelope);
    ls__envelope__free_unpacked(envelope, &allocator);
    if (!check.wrong) return LS_OK;
    ls_message_release(message);
    return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "wire: a message of kind %s whose %s %s", check.message, check.field,
                   check.wrong);
}

void ls_message_release(struct ls_message *message) {
    free(message->storage);
    message->storage = NULL;
}
