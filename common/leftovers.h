/* What an attempt leaves behind on a host when it is killed: processes, and memory in /dev/shm. An attempt is known by
 * its run id and number: its processes carry LOCKSTEP_RUN_ID and LOCKSTEP_ATTEMPT in their environment, its files and
 * folders in /dev/shm are named lockstep-RUNID-aATTEMPT with whatever follows a character that is no digit. */
#ifndef LS_COMMON_LEFTOVERS_H
#define LS_COMMON_LEFTOVERS_H

#include <stdint.h>

/* What was there. */
struct ls_leftovers {
    int processes;     /* killed */
    int files;         /* removed from /dev/shm, a folder counts as one */
    int64_t stuck_pid; /* of a process that did not end in time; 0: all did */
};

/* The folder of an attempt in /dev/shm, for what its launcher and its libraries put there: made by the launcher, gone
 * with ls_leftovers_remove(). */
void ls_leftovers_folder(const char *run_id, int64_t attempt, char path[64]);

/* Kills (SIGKILL) this user's processes of the attempts of `run_id` before `attempt`, waits up to `seconds` until they
 * are gone, and removes what those attempts have in /dev/shm. The calling process is never killed. A run id that is not
 * 16 hex digits has no leftovers. */
struct ls_leftovers ls_leftovers_remove(const char *run_id, int64_t attempt, double seconds);

/* Removes what the attempts of `run_id` before `attempt` have in /dev/shm, and touches no process. Returns how many
 * files and folders there were. */
int ls_leftovers_remove_memory(const char *run_id, int64_t attempt);

#endif
