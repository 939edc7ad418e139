/* This host's memory: what there is of it, and what this process has of it. */
#ifndef LS_WORKER_MEMORY_HOST_MEMORY_H
#define LS_WORKER_MEMORY_HOST_MEMORY_H

#include <stdint.h>

/* Bytes that the processes of this job may have: the machine's, or less where a control group (a container, a batch
 * job) limits them. 0: unknown. */
int64_t ls_host_memory_bytes(void);

/* Bytes that could be had now without pushing anything out, file caches counted as free. 0: unknown. */
int64_t ls_host_memory_available(void);

/* Bytes of this process in memory that belong to no file: RssAnon + RssShmem of /proc/self/status. 0: unknown. */
int64_t ls_host_memory_resident(void);

#endif
