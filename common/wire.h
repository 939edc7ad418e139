/* The wire: messages as plain structs, to and from bytes (protobuf, common/wire.proto), with a limit on everything.
 * docs/protocol.md says who sends what when. */
#ifndef LS_COMMON_WIRE_H
#define LS_COMMON_WIRE_H

#include "common/config.h"
#include "common/digest.h"
#include "common/process.h"
#include "common/progress.h"
#include "common/quarantine.h"
#include "common/run_token.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LS_PROTOCOL = 1,                  /* both sides must have the same */
    LS_WIRE_BYTES_MAX = 1 << 20,      /* one message; larger frames end their connection */
    LS_WIRE_MEMORY_MAX = 8 << 20,     /* memory that decoding one message may take */
    LS_WIRE_WORLD_MAX = 1 << 17,      /* ranks of a run */
    LS_WIRE_RANKS_MAX = 4096,         /* in a HELLO; more ranks are told in several */
    LS_WIRE_FILES_MAX = 256,          /* in a PART */
    LS_WIRE_REPORT_RANKS_MAX = 64,    /* in a REPORT; a node with more sends several */
    LS_WIRE_BUNDLE_MAX = 16384,       /* reports in a BUNDLE */
    LS_WIRE_YAML_BYTES_MAX = 1 << 18, /* a configuration */
    LS_WIRE_TEXT_BYTES = 512,         /* a text for a person, with its NUL */
    LS_WIRE_VERSION_BYTES = 32
};

/* What every rank says of itself when it joins. */
struct ls_rank_info {
    int64_t rank, local_rank, pid;
    char host[64];
    char config_digest[33], dataset_digest[33];
    char numerics_id[256];
};

/* What the coordinator tells first; rank 0 broadcasts it. Plain data, the configuration's YAML beside it. */
struct ls_welcome {
    int64_t attempt;
    int64_t world_size;
    char run_directory[1024];
    char run_id[17];
    char checkpoint[1024];         /* folder to load, "" for none */
    char token[LS_RUN_TOKEN_SIZE]; /* what RUN/token holds, "": nothing to compare */
    int64_t start_step;            /* steps done so far */
    uint64_t start_position;
    int64_t total_steps;   /* as planned: the last step's number */
    uint64_t end_position; /* sequences; the last step is truncated there. UINT64_MAX: none */
    int64_t optimizer_steps;
    int64_t end_step; /* behind which this attempt ends: before total_steps where sequences are passed over */
    struct ls_quarantine quarantine;
};

/* One executed step, by rank 0. */
struct ls_step_report {
    int64_t step, attempt;
    uint64_t position; /* after the step */
    int64_t sequences, targets;
    double epoch, loss, grad_norm, lr;
    /* The five after the first add up to it (worker/step_times.h). */
    double step_seconds, compute_seconds, comm_exposed_seconds, data_wait_seconds, wait_seconds, checkpoint_seconds;
    int64_t wait_for_rank; /* -1: nobody */
    /* On rank 0, from the end of the attempt's step before, or from where its first step could begin, to the end of
     * this one: step_seconds and whatever lies between two steps. */
    double wall_seconds;
    double tokens_per_second;
    uint64_t memory_peak_bytes;
    double mfu;             /* model operations over the dense peak of all GPUs; 0: not known */
    double gpu_power_watts; /* of a GPU, on average; 0: not known */
    int64_t gpu_clock_mhz;  /* of the slowest GPU; 0: not known */
    struct ls_digest digest;
    bool skipped; /* fp16: the gradient was not finite, no update was made */
};

/* One file of a rank's part of a checkpoint. */
struct ls_part_file {
    char name[80]; /* "model.safetensors", "state/rank-00000.safetensors" */
    int64_t bytes;
    char hash[33];
};

/* Where a rank is, as its node reports it. */
struct ls_rank_report {
    int64_t rank, local_rank; /* rank -1: not known yet */
    bool alive;
    struct ls_process_look look;  /* filled for ranks that have not moved lately */
    struct ls_progress_view view; /* likewise its operations */
};

/* Of a node, or of some of its ranks. */
struct ls_node_report {
    char host[64];
    struct ls_rank_report *ranks;
    int64_t ranks_count;
};

/* An encoded message inside another one. */
struct ls_wire_piece {
    const void *bytes;
    size_t count;
};

/* What an operator's command asks for. */
enum ls_wire_request { LS_WIRE_STATUS = 1, LS_WIRE_STOP, LS_WIRE_CHECKPOINT };

/* What `lockstep status` shows. */
struct ls_wire_status {
    char name[LS_CONFIG_NAME_SIZE], phase[32];
    int64_t world_size, ranks_joined;
    int64_t start_step, step, total_steps, granted_step, journaled_step, committed_step, saving_step;
    uint64_t position;
    double loss, tokens_per_second, eta_seconds; /* NAN: not known yet */
    uint64_t handshakes_failed, messages_dropped;
    int64_t attempt, restarts, max_restarts; /* restarts: since the last new checkpoint */
    int64_t pid;
    char host[64];
};

enum ls_message_kind {
    LS_MESSAGE_OPEN,
    LS_MESSAGE_HELLO,
    LS_MESSAGE_STEP,
    LS_MESSAGE_VALIDATION,
    LS_MESSAGE_SAVING,
    LS_MESSAGE_PART,
    LS_MESSAGE_SAVE_FAILED,
    LS_MESSAGE_FAULT,
    LS_MESSAGE_SAVE_REQUEST,
    LS_MESSAGE_REPORT,
    LS_MESSAGE_BUNDLE,
    LS_MESSAGE_GOODBYE,
    LS_MESSAGE_PULSE,
    LS_MESSAGE_SETUP,
    LS_MESSAGE_WELCOME,
    LS_MESSAGE_REFUSED,
    LS_MESSAGE_REJOIN,
    LS_MESSAGE_GRANT,
    LS_MESSAGE_ORDER,
    LS_MESSAGE_ACK,
    LS_MESSAGE_COMMITTED,
    LS_MESSAGE_ENDED,
    LS_MESSAGE_REQUEST,
    LS_MESSAGE_REPLY,
    LS_MESSAGE_STATUS,
    LS_MESSAGE_KINDS
};

/* A message. Pointers in one that was decoded belong to it; in one to be encoded they are the caller's. */
struct ls_message {
    enum ls_message_kind kind;
    uint32_t protocol;   /* set by ls_wire_encode */
    uint32_t attempt;    /* 0: not told yet */
    uint32_t generation; /* of the coordinator */
    union {
        struct {
            char version[LS_WIRE_VERSION_BYTES];
        } open;
        struct {
            char version[LS_WIRE_VERSION_BYTES];
            int64_t world_size;
            struct ls_rank_info *ranks;
            int64_t ranks_count;
            bool started;
            int64_t steps_done, granted_step;
        } hello;
        struct ls_step_report step;
        struct {
            int64_t step;
            double loss, bits_per_byte;
        } validation;
        struct {
            int64_t step;
            uint64_t order;
            bool stop;
        } saving;
        struct {
            int64_t step, rank, optimizer_steps;
            double seconds; /* that writing took */
            struct ls_part_file *files;
            int64_t files_count;
        } part;
        struct {
            int64_t step, rank;
            char text[LS_WIRE_TEXT_BYTES];
        } save_failed;
        struct {
            int64_t rank, step;
            int32_t code;
            char text[LS_WIRE_TEXT_BYTES];
            bool replicas_differ; /* behind `step`; rank -1: whose copy is wrong is not known */
            int64_t good_step;
            bool unloadable; /* the checkpoint that the attempt starts from is no good */
            char host[64];   /* the rank's, where it may not have joined yet; else "" */
        } fault;
        struct ls_node_report report;
        struct {
            const struct ls_wire_piece *reports; /* encoded REPORTs, not looked into */
            int64_t reports_count;
        } bundle;
        struct {
            struct ls_welcome shape;
            char *yaml;
        } setup;
        struct {
            int64_t acknowledged_step, acknowledged_validation;
        } welcome;
        struct {
            int32_t code; /* enum ls_code, checked */
            char text[LS_WIRE_TEXT_BYTES];
        } answer; /* REFUSED, ENDED, REPLY */
        struct {
            int64_t from_step, to_step;
            uint64_t from_position, to_position;
        } grant;
        struct {
            uint64_t id;
            bool stop;
            int32_t code;
        } order;
        struct {
            int64_t step, validation;
        } ack;
        struct {
            int64_t step;
        } committed;
        enum ls_wire_request request;
        struct ls_wire_status status;
    };
    void *storage;
};

/* One word for a kind: "hello", "grant"; static storage. */
const char *ls_message_name(enum ls_message_kind kind);

/* Length in bytes of the character at `text` (not at its end) if texts on the wire may hold it: valid UTF-8 and no
 * control character, though line ends and tabs if `lines`. Overlong forms, surrogates and the C1 controls are invalid
 * too: 0. */
size_t ls_wire_character(const char *text, bool lines);

/* Sets out[size] to the characters of `text` that fit, without one that is torn at its end. '?' stands for a byte that
 * no text on the wire may hold, for then the other side would drop all of the message, and JSON the text. Returns
 * `out`.
 */
char *ls_wire_make_plain(char *out, size_t size, const char *text);

/* Encodes into buffer[capacity]; *count becomes the bytes used. Texts that are too long are cut. LS_ERROR when the
 * message exceeds LS_WIRE_BYTES_MAX, `capacity` or a limit; allocates only for HELLO, PART, REPORT and
 * BUNDLE. */
enum ls_code ls_wire_encode(const struct ls_message *message, void *buffer, size_t capacity, size_t *count,
                            struct ls_error *error);

/* Decodes and checks: size, counts, strings (length, valid UTF-8, no control characters; YAML may have line ends),
 * digests and hashes of 32 hex digits or empty, ranks and steps not negative, codes known, file names as
 * ls_file_name_is_safe() behind an optional "state/". On LS_OK the caller calls ls_message_release(). On LS_ERROR
 * nothing is held, and the text names the fault. A message of another protocol version decodes as far as its kind:
 * `protocol` says so, and the body is empty. */
enum ls_code ls_wire_decode(const void *bytes, size_t count, struct ls_message *message, struct ls_error *error);
void ls_message_release(struct ls_message *message);

#endif
