/* What the user sees: a line a step, a bar with the time left on a terminal, plain lines elsewhere, and a table at the
 * end. Plain lines also go to RUN/console.log. NO_COLOR and TERM=dumb are respected. A standard output that nobody
 * reads (a pager, a stopped terminal) holds nothing up: lines it does not take are left out there, and counted. */
#ifndef LS_COORDINATOR_CONSOLE_H
#define LS_COORDINATOR_CONSOLE_H

#include "coordinator/journal.h"
#include "coordinator/metrics.h"

struct ls_console;

/* Writes to standard output and RUN/console.log. LS_CHECKPOINT when the latter cannot be opened. */
enum ls_code ls_console_open(const struct ls_run_facts *facts, struct ls_console **console, struct ls_error *error);
/* Shows a journal entry; on the journal's thread. */
void ls_console_show(struct ls_console *console, const struct ls_journal_entry *entry);
/* A line of its own, before the journal's thread starts or after it has ended. */
void ls_console_print(struct ls_console *console, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The table at the end; after the journal's thread has ended. */
void ls_console_show_summary(struct ls_console *console, const struct ls_metrics_summary *summary);
void ls_console_close(struct ls_console *console);

/* Formats a step's line, without its end; and a duration as "1:02:03", "12:34" or "0:07". For tests. */
void ls_console_format_step(const struct ls_journal_entry *entry, int64_t total_steps, char *text, size_t size);
void ls_console_format_duration(double seconds, char text[32]);

#endif
