/* Event files: a few fields of protobuf and a framing. */
#define _GNU_SOURCE
#include "coordinator/tensorboard.h"

#include "common/files.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { EVENT_BYTES_MAX = 4096, HEADER_BYTES = 12, FOOTER_BYTES = 4 };

/* Fields of TensorFlow's event.proto and summary.proto, and their types on the wire. */
enum {
    FIXED64 = 1,
    LENGTH = 2,
    FIXED32 = 5,
    EVENT_WALL_TIME = 1 << 3 | FIXED64,
    EVENT_STEP = 2 << 3,
    EVENT_VERSION = 3 << 3 | LENGTH,
    EVENT_SUMMARY = 5 << 3 | LENGTH,
    EVENT_SESSION_LOG = 7 << 3 | LENGTH,
    SUMMARY_VALUE = 1 << 3 | LENGTH,
    VALUE_TAG = 1 << 3 | LENGTH,
    VALUE_SIMPLE = 2 << 3 | FIXED32,
    SESSION_STATUS = 1 << 3,
    SESSION_START = 1
};

struct ls_tensorboard {
    struct ls_run_facts facts;
    char folder[sizeof((struct ls_run_facts *)0)->path + sizeof "/tensorboard"];
    int file; /* -1: a failure was told */
    int begun;
    uint32_t crc[256];
};

/* A record on its way: its event between the room of its header and footer. */
struct record {
    unsigned char bytes[HEADER_BYTES + EVENT_BYTES_MAX + FOOTER_BYTES];
    size_t count; /* of the event */
};

/* ---- protobuf ---- */

static void put(struct record *record, const void *bytes, size_t count) {
    if (record->count + count > EVENT_BYTES_MAX) return; /* scalars of one step take a few hundred */
    memcpy(record->bytes + HEADER_BYTES + record->count, bytes, count);
    record->count += count;
}

static void put_varint(struct record *record, uint64_t value) {
    do {
        const unsigned char byte = (unsigned char)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        put(record, &byte, 1);
        value >>= 7;
    } while (value > 0);
}

/* Fixed sizes are little-endian, as this machine is. */
static void put_double(struct record *record, unsigned key, double value) {
    put_varint(record, key);
    put(record, &value, sizeof value);
}

static void put_float(struct record *record, unsigned key, float value) {
    put_varint(record, key);
    put(record, &value, sizeof value);
}

static void put_integer(struct record *record, unsigned key, int64_t value) {
    put_varint(record, key);
    put_varint(record, (uint64_t)value);
}

static void put_bytes(struct record *record, unsigned key, const void *bytes, size_t count) {
    put_varint(record, key);
    put_varint(record, count);
    put(record, bytes, count);
}

/* ---- records ---- */

static void make_crc_table(uint32_t table[256]) {
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82f63b78u : 0);
    }
}

static uint32_t masked_crc(const struct ls_tensorboard *tensorboard, const unsigned char *bytes, size_t count) {
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < count; i++) crc = crc >> 8 ^ tensorboard->crc[(crc ^ bytes[i]) & 0xff];
    crc = ~crc;
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void write_record(struct ls_tensorboard *tensorboard, struct record *record) {
    const uint64_t length = record->count;
    if (tensorboard->file < 0) return;
    memcpy(record->bytes, &length, sizeof length);
    const uint32_t first = masked_crc(tensorboard, record->bytes, sizeof length),
                   second = masked_crc(tensorboard, record->bytes + HEADER_BYTES, record->count);
    memcpy(record->bytes + sizeof length, &first, sizeof first);
    memcpy(record->bytes + HEADER_BYTES + record->count, &second, sizeof second);
    if (ls_write_all(tensorboard->file, record->bytes, HEADER_BYTES + record->count + FOOTER_BYTES) == 0) return;
    ls_log(LS_LOG_WARNING, "metrics: cannot write into %s: %s. TensorBoard will see no more of this attempt.",
           tensorboard->folder, strerror(errno));
    close(tensorboard->file);
    tensorboard->file = -1;
}

static void begin_event(struct record *record, int64_t step) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    record->count = 0;
    put_double(record, EVENT_WALL_TIME, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec);
    put_integer(record, EVENT_STEP, step);
}

/* Adds a scalar to `summary`; one that is not finite is left out, as it is null in metrics.jsonl. */
static void put_scalar(struct record *summary, const char *tag, double value) {
    struct record scalar = {.count = 0};
    if (!isfinite(value)) return;
    put_bytes(&scalar, VALUE_TAG, tag, strlen(tag));
    put_float(&scalar, VALUE_SIMPLE, (float)value);
    put_bytes(summary, SUMMARY_VALUE, scalar.bytes + HEADER_BYTES, scalar.count);
}

static void write_summary(struct ls_tensorboard *tensorboard, int64_t step, const struct record *summary) {
    struct record record;
    begin_event(&record, step);
    put_bytes(&record, EVENT_SUMMARY, summary->bytes + HEADER_BYTES, summary->count);
    write_record(tensorboard, &record);
}

/* ---- files ---- */

/* TensorBoard reads the files of a folder in the order of their names. */
static enum ls_code begin_file(struct ls_tensorboard *tensorboard, bool attempt_begins, struct ls_error *error) {
    static const char version[] = "brain.Event:2";
    static const unsigned char start[] = {SESSION_STATUS, SESSION_START};
    char path[PATH_MAX];
    struct record record;
    if (tensorboard->file >= 0) close(tensorboard->file);
    do {
        snprintf(path, sizeof path, "%s/events.out.tfevents.%010lld.%s.%d.%06d", tensorboard->folder,
                 (long long)time(NULL), tensorboard->facts.host, (int)getpid(), tensorboard->begun++);
        tensorboard->file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
    } while (tensorboard->file < 0 && errno == EEXIST);
    if (tensorboard->file < 0)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "cannot make %s: %s. Check the disk, or set "
                       "metrics.tensorboard=false.",
                       path, strerror(errno));
    begin_event(&record, 0);
    put_bytes(&record, EVENT_VERSION, version, strlen(version));
    write_record(tensorboard, &record);
    if (!attempt_begins) return LS_OK;
    begin_event(&record, tensorboard->facts.start_step + 1);
    put_bytes(&record, EVENT_SESSION_LOG, start, sizeof start);
    write_record(tensorboard, &record);
    return LS_OK;
}

enum ls_code ls_tensorboard_open(const struct ls_run_facts *facts, bool attempt_begins, struct ls_tensorboard **result,
                                 struct ls_error *error) {
    struct ls_tensorboard *tensorboard = calloc(1, sizeof *tensorboard);
    if (!tensorboard) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for TensorBoard's events");
    snprintf(tensorboard->folder, sizeof tensorboard->folder, "%s/tensorboard", facts->path);
    tensorboard->file = -1;
    make_crc_table(tensorboard->crc);
    tensorboard->facts = *facts;
    enum ls_code code = LS_OK;
    if (mkdir(tensorboard->folder, 0777) && errno != EEXIST)
        code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "cannot make %s: %s. Check the disk, or set "
                       "metrics.tensorboard=false.",
                       tensorboard->folder, strerror(errno));
    if (!code) code = begin_file(tensorboard, attempt_begins, error);
    if (code)
        ls_tensorboard_close(tensorboard);
    else
        *result = tensorboard;
    return code;
}

void ls_tensorboard_close(struct ls_tensorboard *tensorboard) {
    if (!tensorboard) return;
    if (tensorboard->file >= 0) close(tensorboard->file);
    free(tensorboard);
}

/* ---- entries ---- */

static void write_step(struct ls_tensorboard *tensorboard, const struct ls_journal_entry *entry) {
    const struct ls_step_report *report = &entry->report;
    const struct ls_run_facts *facts = &tensorboard->facts;
    const int64_t own = entry->record.step.samples - facts->start_samples;
    /* torchtitan's rate is that of one device. */
    const struct {
        const char *tag;
        double value;
    } scalars[] = {
        {"loss_metrics/global_avg_loss", report->loss},
        {"grad_norm", report->grad_norm},
        {"lr", report->lr},
        {"n_tokens_seen", (double)facts->start_tokens + (double)own * (double)facts->sequence_length},
        {"throughput(tps)", report->tokens_per_second / (double)facts->ranks},
        {"mfu(%)", report->mfu > 0 ? 100 * report->mfu : NAN},
        {"time_metrics/end_to_end(s)", report->step_seconds},
        {"time_metrics/data_loading(s)", report->data_wait_seconds},
        {"time_metrics/data_loading(%)", 100 * report->data_wait_seconds / report->step_seconds},
        {"time_metrics/communication_exposed(s)", report->comm_exposed_seconds},
        {"time_metrics/checkpoint(s)", report->checkpoint_seconds},
        {"memory/max_active(GiB)", (double)report->memory_peak_bytes / (double)(1 << 30)},
    };
    struct record summary = {.count = 0};
    for (size_t i = 0; i < sizeof scalars / sizeof *scalars; i++)
        put_scalar(&summary, scalars[i].tag, scalars[i].value);
    write_summary(tensorboard, entry->record.step.step, &summary);
}

static void write_validation(struct ls_tensorboard *tensorboard, const struct ls_journal_entry *entry) {
    struct record summary = {.count = 0};
    put_scalar(&summary, "validation_metrics/loss", entry->loss);
    put_scalar(&summary, "validation_metrics/bits_per_byte", entry->bits_per_byte > 0 ? entry->bits_per_byte : NAN);
    write_summary(tensorboard, entry->record.validation.step, &summary);
}

void ls_tensorboard_write(struct ls_tensorboard *tensorboard, const struct ls_journal_entry *entry) {
    struct ls_error error;
    if (entry->note) return;
    if (entry->record.kind == LS_RECORD_STEP) {
        write_step(tensorboard, entry);
    } else if (entry->record.kind == LS_RECORD_VALIDATION) {
        write_validation(tensorboard, entry);
    } else if (entry->record.kind == LS_RECORD_ATTEMPT) {
        ls_run_facts_begin_attempt(&tensorboard->facts, entry);
        if (begin_file(tensorboard, true, &error)) ls_log(LS_LOG_WARNING, "%s", error.text);
    }
}
