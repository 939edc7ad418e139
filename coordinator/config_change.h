/* Resuming under another configuration: what changed, and what that does to the run.
 *
 *     none       where and how it runs, intervals, limits: goes on
 *     numbers    what later steps compute: learning rate, schedule, clipping, precision, steps, batch. The record of
 *                what was trained on stays true, so it goes on where the key is accepted by name (--accept)
 *     data       what later steps are trained on, and in which order. The run goes on with a new generation of the data
 *                (run_generation.h), where the key is accepted
 *     record     the model's shape and first weights: checkpoints would mean something else. Such a run is another
 *                run */
#ifndef LS_COORDINATOR_CONFIG_CHANGE_H
#define LS_COORDINATOR_CONFIG_CHANGE_H

#include "common/config.h"
#include "common/status.h"

enum ls_config_effect { LS_EFFECT_NONE, LS_EFFECT_NUMBERS, LS_EFFECT_DATA, LS_EFFECT_RECORD };

enum { LS_CONFIG_CHANGES_MAX = 160, LS_CONFIG_VALUE_BYTES = 96 };

/* A key whose values differ, as they are written in YAML; cut where they are long. */
struct ls_config_change {
    const char *key; /* static */
    enum ls_config_effect effect;
    char before[LS_CONFIG_VALUE_BYTES], after[LS_CONFIG_VALUE_BYTES];
};

/* Finds what differs, in the order of the table of keys; the paths of datasets aside. Returns how many, at most
 * LS_CONFIG_CHANGES_MAX; -1 when there is no memory. */
int ls_config_changes(const struct ls_config *before, const struct ls_config *after,
                      struct ls_config_change changes[LS_CONFIG_CHANGES_MAX]);

/* LS_USAGE unless every change has no effect, or one on the numbers or the data and its key, or a section it is in, is
 * among accepted[count]; the text names the first key that is in the way, both values, and what to do. Also for a name
 * that is no key. Keys accepted that have not changed are fine: one command line serves every requeue. `run` is for the
 * message. */
enum ls_code ls_config_changes_check(const struct ls_config_change *changes, int change_count,
                                     const char *const *accepted, int accepted_count, const char *run,
                                     struct ls_error *error);

/* True when the key, or a section it is in, is among accepted[count]. */
bool ls_config_is_accepted(const char *key, const char *const *accepted, int count);

#endif
