/* Descriptors of the coordinator: as many as allowed, and some that no connection can take. */
#ifndef LS_COORDINATOR_DESCRIPTORS_H
#define LS_COORDINATOR_DESCRIPTORS_H

#include <stdbool.h>
#include <stdint.h>

/* Raises this process's limit of open files to the most it may have; returns the limit, 0 when it cannot be read. */
int64_t ls_descriptors_raise(void);

/* Gives this thread, and those it starts from now on, a table of descriptors of their own, in which all that is open
 * now is open. Connections that ZeroMQ's threads accept later are in the other table: however many there are, this
 * thread can open files. To be called once the sockets are bound, in the main thread of a process of its own; false
 * where the system does not allow it (a container's filter of system calls), and nothing is changed. */
bool ls_descriptors_part(void);

#endif
