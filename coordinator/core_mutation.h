/* Planted faults: tests/sim compiles the core with them to show that its invariants find each one. In a normal build
 * LS_MUTATED(...) is the constant 0 and leaves nothing behind. */
#ifndef LS_COORDINATOR_CORE_MUTATION_H
#define LS_COORDINATOR_CORE_MUTATION_H

#define LS_CORE_MUTATIONS(X)                                                                                           \
    X(ACK_BEFORE_FSYNC)                                                                                                \
    X(OLD_ATTEMPT_ACCEPTED)                                                                                            \
    X(SPAN_GRANTED_TWICE)                                                                                              \
    X(GAP_IN_GRANTS)                                                                                                   \
    X(GRANT_BEYOND_THE_END)                                                                                            \
    X(GRANT_BEFORE_ALL_JOINED)                                                                                         \
    X(GRANT_WAITS_FOR_FSYNC)                                                                                           \
    X(WINDOW_NOT_KEPT)                                                                                                 \
    X(POSITION_REUSED_AFTER_RESUME)                                                                                    \
    X(DUPLICATE_STEP_COUNTED)                                                                                          \
    X(VALIDATION_COUNTED_TWICE)                                                                                        \
    X(CONFLICT_OVERLOOKED)                                                                                             \
    X(CHAIN_NOT_ADVANCED)                                                                                              \
    X(CHAIN_OF_THE_LATEST_STEP)                                                                                        \
    X(PART_MISSING)                                                                                                    \
    X(PART_COUNTED_TWICE)                                                                                              \
    X(PART_OF_ANOTHER_STEP)                                                                                            \
    X(PARTS_OF_AN_EARLIER_SAVE)                                                                                        \
    X(COMMIT_BEFORE_JOURNAL)                                                                                           \
    X(COMMITTED_BEFORE_COMMIT)                                                                                         \
    X(COMMITTED_NOT_REPEATED)                                                                                          \
    X(PRUNE_THE_NEWEST)                                                                                                \
    X(FINAL_CHECKPOINT_LOST)                                                                                           \
    X(STOP_WITHOUT_SAVE)                                                                                               \
    X(STOP_FORGOTTEN_ON_RESTART)                                                                                       \
    X(ORDER_FORGOTTEN_ON_REJOIN)                                                                                       \
    X(REPLY_BEFORE_JOURNAL)                                                                                            \
    X(STALE_HELLO_BELIEVED)                                                                                            \
    X(WRONG_CAUSE)                                                                                                     \
    X(LOSS_IGNORED)                                                                                                    \
    X(END_TWICE)                                                                                                       \
    X(LAUNCH_BEFORE_CLEARED)                                                                                           \
    X(LAUNCH_BEFORE_JOURNAL)                                                                                           \
    X(RESTARTS_WITHOUT_END)                                                                                            \
    X(RESTARTS_FORGOTTEN)                                                                                              \
    X(RESTART_WHAT_IT_CANNOT_MEND)                                                                                     \
    X(BACKOFF_SKIPPED)                                                                                                 \
    X(BAD_CHECKPOINT_USED_AGAIN)                                                                                       \
    X(FEWER_RANKS_THAN_ALLOWED)                                                                                        \
    X(FEWER_RANKS_TOO_SOON)                                                                                            \
    X(LOST_HOST_USED_AGAIN)                                                                                            \
    X(QUARANTINE_FORGOTTEN)                                                                                            \
    X(QUARANTINE_FORGOTTEN_ON_RESTART)                                                                                 \
    X(QUARANTINE_OF_ANOTHER_GENERATION)                                                                                \
    X(POSITION_OF_ANOTHER_GENERATION)                                                                                  \
    X(SAMPLES_OF_ONE_GENERATION)                                                                                       \
    X(QUARANTINE_OF_THE_STEP_BEFORE)                                                                                   \
    X(FAULT_FORGOTTEN_ON_RESTART)                                                                                      \
    X(FAULT_NOT_AWAITED)                                                                                               \
    X(SKIPS_WITHOUT_END)                                                                                               \
    X(STOP_IGNORED_IN_RECOVERY)                                                                                        \
    X(ROLLBACK_TO_A_BAD_REPLICA)

#ifdef LS_CORE_MUTATED
#define LS_CORE_MUTATION_ENUM(name) LS_MUTATION_##name,
enum ls_core_mutation { LS_MUTATION_NONE, LS_CORE_MUTATIONS(LS_CORE_MUTATION_ENUM) LS_MUTATION_COUNT };
extern enum ls_core_mutation ls_core_mutation;
#define LS_MUTATED(name) (ls_core_mutation == LS_MUTATION_##name)
#else
#define LS_MUTATED(name) 0
#endif

#endif
