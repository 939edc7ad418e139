/* An operator's end of the wire: asks the coordinator of a run one thing and waits for the answer. */
#ifndef LS_COORDINATOR_OPERATOR_H
#define LS_COORDINATOR_OPERATOR_H

#include "common/keys.h"
#include "common/status.h"
#include "common/wire.h"

#include <stdbool.h>

/* Sends `request` to `endpoint` with `key` and waits for a REPLY, STATUS, REFUSED or ENDED, for up to `answer_seconds`
 * after the coordinator was heard last (it answers pulses while it works). A coordinator that does not know the
 * request, since it has taken the place of the one that was asked, is asked again. LS_COMMUNICATION when it does not
 * answer; LS_ERROR when is_over(run), which is asked each second without a word from it, says that nobody will:
 * NULL: is not asked. The caller releases *answer. */
enum ls_code ls_operator_ask(const char *endpoint, const struct ls_key *key, enum ls_wire_request request,
                             double answer_seconds, bool (*is_over)(const void *run), const void *run,
                             struct ls_message *answer, struct ls_error *error);

#endif
