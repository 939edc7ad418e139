/* Understanding Open MPI's mpirun, Slurm's srun and the ssh below them. */
#include "coordinator/launcher_output.h"

#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* "mpirun noticed that process rank 2 with PID 282 on node storm2 exited on signal 9 (Killed)." */
static bool read_mpirun(const char *line, struct ls_launcher_loss *loss) {
    int rank, pid, number;
    if (sscanf(line, "%*s noticed that process rank %d with PID %d on node %63s exited on signal %d", &rank, &pid,
               loss->host, &number) != 4)
        return false;
    loss->ranks[0] = rank;
    loss->count = 1;
    snprintf(loss->text, sizeof loss->text, "pid %d on %s was killed by signal %d, says mpirun", pid, loss->host,
             number);
    return rank >= 0;
}

/* "  Remote daemon: [[47094,0],2] on node storm2", which is lost */
static bool read_mpirun_host(const char *line, struct ls_launcher_loss *loss) {
    if (sscanf(line, " Remote daemon: %*s on node %63s", loss->host) != 1) return false;
    loss->count = 0;
    snprintf(loss->text, sizeof loss->text,
             "mpirun has lost the daemon that it started there. See that %s runs, and its network.", loss->host);
    return true;
}

/* A line as `format` has it, to its end; it names a host. */
static bool names_host(const char *line, const char *format, char host[64]) {
    int length = 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    return sscanf(line, format, host, &length) == 1 && length > 0;
#pragma GCC diagnostic pop
}

/* Where mpirun learns of the end of a daemon from what started it there (ssh), it does not say on which host that was;
 * but MPI names the host whose ranks hung up first, and ssh the one whose connection ended. */
struct hints {
    bool daemon_gone, ssh;
    char peer[64]; /* "": none */
};

static void read_hints(const char *line, struct hints *hints) {
    static const char gone[] = "ORTE was unable to reliably start one or more daemons.";
    char host[64];
    hints->daemon_gone |= strncmp(line, gone, sizeof gone - 1) == 0;
    if (hints->peer[0]) return;
    hints->ssh = names_host(line, "Connection to %63s closed by remote host%n", host) ||
                 names_host(line, "Timeout, server %63s not responding%n", host);
    if (hints->ssh || sscanf(line, " Peer host: %63s", host) == 1)
        snprintf(hints->peer, sizeof hints->peer, "%s", host);
}

static bool take_hints(const struct hints *hints, struct ls_launcher_loss *loss) {
    if (!hints->daemon_gone || !hints->peer[0]) return false;
    loss->count = 0;
    memcpy(loss->host, hints->peer, sizeof loss->host);
    snprintf(loss->text, sizeof loss->text, "mpirun has lost a daemon, and %s. See that %s runs, and its network.",
             hints->ssh ? "ssh its connection" : "MPI the ranks there", loss->host);
    return true;
}

/* "5" or "2-3,5" into ranks; false when it is something else. */
static bool read_ranks(const char *list, struct ls_launcher_loss *loss) {
    loss->count = 0;
    for (const char *at = list; *at;) {
        char *end;
        long first = strtol(at, &end, 10), last = first;
        if (end == at || first < 0) return false;
        if (*end == '-') last = strtol(at = end + 1, &end, 10);
        if (end == at || last < first || last > INT32_MAX || (*end && *end != ',')) return false;
        for (long rank = first; rank <= last && loss->count < LS_LAUNCHER_LOSSES_MAX; rank++)
            loss->ranks[loss->count++] = (int32_t)rank;
        at = end + (*end == ',');
    }
    return loss->count > 0;
}

/* "srun: error: node-2: task 5: Exited with exit code 3" */
static bool read_srun_exit(const char *line, struct ls_launcher_exit *exited) {
    struct ls_launcher_loss ranks;
    char list[128];
    if (sscanf(line, "srun: error: %63[^:]: task%*[s ]%127[0-9,-]: Exited with exit code %d", exited->host, list,
               &exited->code) != 3 ||
        !read_ranks(list, &ranks))
        return false;
    exited->rank = ranks.ranks[0];
    return exited->code != 0 && exited->code != LS_COMMUNICATION;
}

/* "  Process name: [[23928,1],1]", and in the line behind it "  Exit code:    3"; newer ones say [prterun-h2-7@1,1] */
static bool read_mpirun_exit(const char *line, struct ls_launcher_exit *exited) {
    const char *last = strrchr(line, ',');
    if (strstr(line, "Process name: [") && last) {
        exited->rank = (int32_t)strtol(last + 1, NULL, 10);
        exited->host[0] = 0;
        return false;
    }
    if (exited->rank < 0 || sscanf(line, " Exit code: %d", &exited->code) != 1) return false;
    return exited->code != 0 && exited->code != LS_COMMUNICATION;
}

/* "srun: error: node-2: task 5: Killed", "srun: error: node-2: tasks 4-5: Killed" */
static bool read_srun(const char *line, struct ls_launcher_loss *loss) {
    char how[32], list[128];
    if (sscanf(line, "srun: error: %63[^:]: task%*[s ]%127[0-9,-]: %31[A-Za-z ]", loss->host, list, how) != 3)
        return false;
    if (strncmp(how, "Exited", 6) == 0) return false; /* its own words say more */
    snprintf(loss->text, sizeof loss->text, "on %s: %s, says srun", loss->host, how);
    return read_ranks(list, loss);
}

/* "srun: error: Node failure on node-2"; a range of nodes names none of them */
static bool read_srun_host(const char *line, struct ls_launcher_loss *loss) {
    int length = 0;
    if (sscanf(line, "srun: error: Node failure on %63[^[, ]%n", loss->host, &length) != 1) return false;
    if (line[length] == '[') return false;
    loss->count = 0;
    snprintf(loss->text, sizeof loss->text, "Slurm says that the node failed. See that %s runs, and its network.",
             loss->host);
    return true;
}

static bool read_words(const char *line, struct ls_launcher_loss *loss, struct hints *hints) {
    read_hints(line, hints);
    return read_mpirun(line, loss) || read_mpirun_host(line, loss) || read_srun(line, loss) ||
           read_srun_host(line, loss);
}

/* Where in `text` begins what was written since `attempt` was started, which ends with the text or at the start of the
 * next one; NULL: nowhere. `cut`: the text is the end of a longer one; without the first line of an attempt it is of
 * the newest. */
static char *find_since(char *text, bool cut, int64_t attempt) {
    char *begin = cut ? text : NULL;
    bool wanted = false;
    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) next++;
        if (strncmp(line, LS_LAUNCHER_HEADER, sizeof LS_LAUNCHER_HEADER - 1) != 0) continue;
        if (wanted) {
            *line = 0;
            break;
        }
        wanted = strtoll(line + sizeof LS_LAUNCHER_HEADER - 1, NULL, 10) == attempt;
        begin = wanted ? line + strcspn(line, "\n") : NULL;
    }
    return begin;
}

enum { TAIL_BYTES = 1 << 16 };

int64_t ls_launcher_find_output(const char *log_path, int64_t attempt) {
    int file = open(log_path, O_RDONLY | O_CLOEXEC);
    char *text = malloc(TAIL_BYTES + 1);
    off_t end = file < 0 ? 0 : lseek(file, 0, SEEK_END), from = end > TAIL_BYTES ? end - TAIL_BYTES : 0;
    int64_t found = -1;
    if (text && end > 0 && ls_pread_all(file, text, (size_t)(end - from), from) == 0) {
        text[end - from] = 0;
        const size_t mark = sizeof LS_LAUNCHER_HEADER - 1;
        for (char *line = text, *next; (next = memchr(line, '\n', (size_t)(text + (end - from) - line)));
             line = next + 1)
            if (strncmp(line, LS_LAUNCHER_HEADER, mark) == 0 && strtoll(line + mark, NULL, 10) == attempt)
                found = from + (next + 1 - text);
    }
    free(text);
    if (file >= 0) close(file);
    return found;
}

/* The end of what was written since `attempt` was started; the caller frees. NULL: nothing. */
static char *read_since(const char *log_path, int64_t attempt) {
    int file = open(log_path, O_RDONLY | O_CLOEXEC);
    char *text = malloc(TAIL_BYTES + 1), *since = NULL;
    off_t end = file < 0 ? 0 : lseek(file, 0, SEEK_END), from = end > TAIL_BYTES ? end - TAIL_BYTES : 0;
    if (text && end > 0 && ls_pread_all(file, text, (size_t)(end - from), from) == 0) {
        const size_t count = (size_t)(end - from);
        for (size_t i = 0; i < count; i++)
            if (!text[i]) text[i] = '?'; /* ranks may print anything */
        text[count] = 0;
        const char *begin = find_since(text, from > 0, attempt);
        since = begin ? strdup(begin) : NULL;
    }
    free(text);
    if (file >= 0) close(file);
    return since;
}

bool ls_launcher_read_loss(const char *log_path, int64_t attempt, struct ls_launcher_loss *loss) {
    struct hints hints = {.daemon_gone = false};
    struct ls_launcher_exit first;
    char *text = read_since(log_path, attempt);
    bool found = false, ended = false; /* srun ends the other tasks behind one with a code: they are not lost */
    for (char *line = text, *next; line && !found && !ended; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        found = read_words(line, loss, &hints);
        ended = read_srun_exit(line, &first);
    }
    free(text);
    return found || take_hints(&hints, loss);
}

/* What comes before the reason, or beside it, and is none. */
static bool says_nothing(const char *line) {
    return strncmp(line, "---", 3) == 0 || !line[strspn(line, " \t\r")] || strstr(line, "plm:rsh: Warning: ") ||
           strncmp(line, "Warning: Permanently added ", 27) == 0;
}

static bool tells_error(const char *line) {
    static const char *const signs[] = {"rror", "not ", "nable", "ailed", "annot", "atal", "FATAL", "o such"};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (strstr(line, signs[i])) return true;
    return false;
}

/* Where ssh let nobody in on a host, or found no Open MPI there. */
static void advise(const char *line, struct ls_launcher_reason *reason) {
    static const char *const with_host[] = {"ssh: connect to host %63s port%n",
                                            "ssh: Could not resolve hostname %63[^:]:%n",
                                            "%*[^@ ]@%63[^: ]: Permission denied (%n",
                                            "Connection closed by %63s port%n", "Connection reset by %63s port%n"};
    static const char *const without[] = {"Host key verification failed", "kex_exchange_identification: "};
    char host[64] = "HOST";
    bool refused = false;
    for (size_t i = 0; i < sizeof with_host / sizeof *with_host && !refused; i++)
        refused = names_host(line, with_host[i], host);
    for (size_t i = 0; i < sizeof without / sizeof *without && !refused; i++) refused = strstr(line, without[i]);
    if (refused)
        snprintf(reason->advice, sizeof reason->advice,
                 "See that 'ssh %s true' works from here without a password or a question.", host);
    else if (strstr(line, "orted: ") && !strstr(line, "[["))
        snprintf(reason->advice, sizeof reason->advice,
                 "Have the same Open MPI on every host where a shell that ssh starts finds it ('ssh HOST which "
                 "orted').");
}

bool ls_launcher_find_reason(const char *text, struct ls_launcher_reason *reason) {
    enum { NOTHING, WORDS, AN_ERROR, A_START, A_RANK } rank, best = NOTHING;
    *reason = (struct ls_launcher_reason){.text = ""};
    for (const char *line = text, *next; line; line = next) {
        char words[sizeof reason->text];
        struct ls_launcher_reason found = {.text = ""};
        next = strchr(line, '\n');
        snprintf(words, sizeof words, "%.*s", (int)strcspn(line, "\n"), line);
        if (next) next++;
        if (says_nothing(words)) continue;
        /* mpirun's only words where a rank ended with a code: the status says as much. */
        if (strncmp(words, "Primary job ", strlen("Primary job ")) == 0) break;
        advise(words, &found);
        rank = strncmp(words, "lockstep: ", 10) == 0 ? A_RANK
               : found.advice[0]                     ? A_START
               : tells_error(words)                  ? AN_ERROR
                                                     : WORDS;
        if (rank <= best) continue;
        best = rank;
        size_t length = strlen(strcpy(found.text, words));
        while (length > 0 && strchr(". \t\r", found.text[length - 1])) found.text[--length] = 0;
        *reason = found;
    }
    return best > NOTHING;
}

static int signal_of(int code) {
    static const int numbers[] = {SIGKILL, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTERM, SIGTRAP, SIGSYS};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (code == 128 + numbers[i]) return numbers[i];
    return 0;
}

bool ls_launcher_read_exit(const char *log_path, int64_t attempt, int status, struct ls_launcher_exit *exited) {
    static const char unnamed[] = "Primary job  terminated normally, but ";
    struct ls_launcher_exit read = {.rank = -1};
    char *text = status > 0 ? read_since(log_path, attempt) : NULL;
    const bool some = text && strstr(text, unnamed) && status != LS_COMMUNICATION;
    bool named = false;
    for (char *line = text, *next; line && !named; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        named = read_srun_exit(line, &read) || read_mpirun_exit(line, &read);
    }
    free(text);
    if (!named) read = (struct ls_launcher_exit){.rank = -1, .code = status};
    read.killed_by = signal_of(read.code);
    if (named || some) *exited = read;
    return named || some;
}
