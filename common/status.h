/* Status codes and errors: what failed, how much it takes with it, and the text a person reads. */
#ifndef LS_COMMON_STATUS_H
#define LS_COMMON_STATUS_H

/* Process exit codes (docs/operations.md); functions return the same values, LS_OK on success. */
enum ls_code {
    LS_OK = 0,
    LS_ERROR = 1,         /* anything else */
    LS_USAGE = 2,         /* bad command line or configuration */
    LS_DATA = 3,          /* dataset, token shard, ledger */
    LS_CHECKPOINT = 4,    /* checkpoint or run directory */
    LS_MEMORY = 5,        /* out of memory, planned or met */
    LS_COMMUNICATION = 6, /* collective, coordinator or worker lost */
    LS_NONFINITE = 7,     /* loss or gradient not finite */
    LS_STALL = 8,         /* no progress within the stall timeout */
    LS_REQUEUE = 75,      /* saved, please requeue */
    LS_STOPPED = 130      /* stopped by the user, saved */
};

/* What an error takes with it; recovery follows from it. */
enum ls_scope { LS_SCOPE_CALL, LS_SCOPE_RANK, LS_SCOPE_NODE, LS_SCOPE_JOB };

/* An error for a person: what happened, the evidence, what to do. Made where it is understood, passed on unchanged. */
struct ls_error {
    enum ls_code code;
    enum ls_scope scope;
    char text[1024];
};

/* Fills `error` (NULL: nothing is stored) and returns `code`, so that a function can end with `return ls_fail(...)`.
 * The text is printf's; control characters that came in with arguments are replaced by '?'. */
enum ls_code ls_fail(struct ls_error *error, enum ls_code code, enum ls_scope scope, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#ifdef __clang_analyzer__
/* clang's analyzer looks at one file at a time; this tells it that the result is the code. */
#define ls_fail(error, code, ...) ((void)(ls_fail)(error, code, __VA_ARGS__), (code))
#endif

/* Puts "context: " in front of the text of an error on its way up. Returns the error's code. */
enum ls_code ls_fail_within(struct ls_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* One word for a code: "done", "usage", "data", ... Static storage. */
const char *ls_code_name(enum ls_code code);
/* Prints why a command ends, on standard error: "lockstep: TEXT" if the reason is longer than one sentence, and as the
 * last line "lockstep: exit 2 (usage): FIRST SENTENCE". Prints nothing for LS_OK. Returns the code, so that a command
 * can end with `return ls_report_exit(error.code, error.text)`. */
int ls_report_exit(enum ls_code code, const char *reason);

#endif
