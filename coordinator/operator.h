/* An operator's end of the wire: asks the coordinator of a run one thing and waits for the answer. */
#ifndef LS_COORDINATOR_OPERATOR_H
#define LS_COORDINATOR_OPERATOR_H

#include "common/keys.h"
#include "common/status.h"
#include "common/wire.h"

/* Sends `request` to `endpoint` with `key` and waits for a REPLY, STATUS, REFUSED or ENDED, for up to `answer_seconds`
 * after the coordinator was heard last (it answers pulses while it works). A coordinator that does not know the
 * request, since it has taken the place of the one that was asked, is asked again. LS_COMMUNICATION when it does not
 * answer. The caller releases *answer. */
enum ls_code ls_operator_ask(const char *endpoint, const struct ls_key *key, enum ls_wire_request request,
                             double answer_seconds, struct ls_message *answer, struct ls_error *error);

#endif
