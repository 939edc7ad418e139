/* The session with the coordinator, held by world rank 0: a thread owns the socket, the training thread exchanges plain structs with it and
 * never waits for the network. Reconnects with back-off and re-joins a restarted coordinator; reports are kept until acknowledged. */
#ifndef LS_WORKER_SESSION_H
#define LS_WORKER_SESSION_H

#include "common/digest.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_session;

/* What the coordinator tells first; rank 0 broadcasts it. Plain data, the configuration's YAML beside it. */
struct ls_welcome {
    int64_t attempt;
    int64_t world_size;
    char run_directory[1024];
    char run_id[17];
    char checkpoint[1024]; /* folder to load, "" for none */
    int64_t start_step;    /* steps done so far */
    uint64_t start_position;
    int64_t total_steps; /* as planned: the last step's number */
    uint64_t end_position; /* sequences; the last step is truncated there. UINT64_MAX: none */
    int64_t optimizer_steps;
};

/* What every rank says of itself when it joins. */
struct ls_rank_info {
    int64_t rank, local_rank, pid;
    char host[64];
    char config_digest[33], dataset_digest[33];
    char numerics_id[256];
};

/* Steps that may be run: [first_step, end_step), sequences from first_position on. Step numbers count from 1. */
struct ls_grant {
    int64_t first_step, end_step;
    uint64_t first_position;
};

enum ls_order_kind { LS_ORDER_NONE, LS_ORDER_CHECKPOINT, LS_ORDER_STOP, LS_ORDER_STOP_SAVED };
/* What the coordinator wants at the next step boundary. */
struct ls_session_orders {
    struct ls_grant grant;  /* the newest, end_step 0: none so far */
    uint64_t checkpoint_id; /* counts up with each request to save */
    uint64_t stop_id;       /* not 0: finish the step, save when `stop_saves`, leave with `stop_code` */
    bool stop_saves;
    int stop_code;
    int64_t committed_step; /* newest checkpoint that is on disk and committed */
    enum ls_code failed;    /* the coordinator refused or ended the run: leave with this code */
    char failed_text[512];
};

struct ls_step_report {
    int64_t step, attempt;
    uint64_t position; /* after the step */
    int64_t sequences, targets;
    double epoch, loss, grad_norm, lr;
    double step_seconds, compute_seconds, comm_exposed_seconds, data_wait_seconds, checkpoint_seconds;
    double tokens_per_second;
    uint64_t memory_peak_bytes;
    struct ls_digest digest;
};

struct ls_part_file {
    char name[80]; /* "model.safetensors", "state/rank-00000.safetensors" */
    int64_t bytes;
    char hash[33];
};

/* Connects with the key file's worker keys (read from `key_path`, or from `key_text` when that is not NULL) and waits up to
 * `timeout_seconds` for the welcome. *yaml is malloc'ed. LS_COMMUNICATION names the endpoint and what was tried; a refusal has the refusal's code and text. */
enum ls_code ls_session_open(const char *endpoint, const char *key_path, const char *key_text, double timeout_seconds,
                             struct ls_session **session, struct ls_welcome *welcome, char **yaml, struct ls_error *error);
/* Reports all ranks; waits until the coordinator has accepted or refused them. */
enum ls_code ls_session_join(struct ls_session *session, const struct ls_rank_info *ranks, int64_t count, struct ls_error *error);
/* Where the run stands; called at every step so that a re-join can tell it. Cheap, no system call. */
void ls_session_at(struct ls_session *session, int64_t next_step);
/* The newest orders; never waits. */
void ls_session_orders(struct ls_session *session, struct ls_session_orders *orders);
/* Waits until the orders changed since the last call, at most `seconds`. */
void ls_session_wait(struct ls_session *session, double seconds);
/* Reports; copied, sent in order, kept until acknowledged. No allocation: rings of fixed size; step_done waits if 4096 steps are unacknowledged. */
void ls_session_step_done(struct ls_session *session, const struct ls_step_report *report);
void ls_session_validation(struct ls_session *session, int64_t step, double loss, double bits_per_byte);
void ls_session_part(struct ls_session *session, int64_t step, int64_t rank, uint64_t checkpoint_id, const struct ls_part_file *files,
                     int64_t count);
/* Says that this run ends because of an error of `rank`; waits up to a second for it to be sent. */
void ls_session_fault(struct ls_session *session, int64_t rank, int64_t step, const struct ls_error *error);
/* Waits up to `seconds` until everything is acknowledged, says goodbye, ends the thread. */
void ls_session_close(struct ls_session *session, double seconds);
/* Seconds since the coordinator was last heard. */
double ls_session_silence(struct ls_session *session);

#endif
