/* The fields that a message's plain struct (wire.h) and its protobuf form name alike, listed once for the encoder
 * (wire.c) and the decoder (wire_decode.c). */
#ifndef LS_COMMON_WIRE_FIELDS_H
#define LS_COMMON_WIRE_FIELDS_H

#define OPEN_STRINGS(X) X(version)
#define RANK_FIELDS(X)  X(rank) X(local_rank) X(pid)
#define RANK_STRINGS(X) X(host) X(config_digest) X(dataset_digest) X(numerics_id)
#define HELLO_FIELDS(X) X(world_size) X(started) X(steps_done) X(granted_step)
#define STEP_FIELDS(X)                                                                                                 \
    X(step)                                                                                                            \
    X(position)                                                                                                        \
    X(sequences)                                                                                                       \
    X(targets)                                                                                                         \
    X(epoch)                                                                                                           \
    X(loss)                                                                                                            \
    X(grad_norm)                                                                                                       \
    X(lr)                                                                                                              \
    X(step_seconds)                                                                                                    \
    X(compute_seconds)                                                                                                 \
    X(comm_exposed_seconds)                                                                                            \
    X(data_wait_seconds)                                                                                               \
    X(wait_seconds)                                                                                                    \
    X(wait_for_rank)                                                                                                   \
    X(checkpoint_seconds)                                                                                              \
    X(tokens_per_second) X(memory_peak_bytes) X(skipped) X(mfu) X(gpu_power_watts) X(gpu_clock_mhz) X(wall_seconds)
#define VALIDATION_FIELDS(X)  X(step) X(loss) X(bits_per_byte)
#define SAVING_FIELDS(X)      X(step) X(order) X(stop)
#define PART_FIELDS(X)        X(step) X(rank) X(optimizer_steps) X(seconds)
#define SAVE_FAILED_FIELDS(X) X(step) X(rank)
#define FAULT_FIELDS(X)       X(rank) X(step) X(code) X(replicas_differ) X(good_step) X(unloadable)
#define REPORT_FIELDS(X)                                                                                               \
    X(beat)                                                                                                            \
    X(pid)                                                                                                             \
    X(step)                                                                                                            \
    X(micro_batch)                                                                                                     \
    X(block)                                                                                                           \
    X(collective)                                                                                                      \
    X(collective_done) X(host_collective) X(host_collective_done) X(phase) X(exit_code) X(gpu) X(age_ns)
#define SETUP_FIELDS(X)                                                                                                \
    X(world_size) X(start_step) X(start_position) X(total_steps) X(end_position) X(optimizer_steps) X(end_step)
#define SETUP_STRINGS(X)    X(run_directory) X(run_id) X(checkpoint) X(token)
#define WELCOME_FIELDS(X)   X(acknowledged_step) X(acknowledged_validation)
#define ANSWER_FIELDS(X)    X(code)
#define GRANT_FIELDS(X)     X(from_step) X(to_step) X(from_position) X(to_position)
#define ORDER_FIELDS(X)     X(id) X(stop) X(code)
#define ACK_FIELDS(X)       X(step) X(validation)
#define COMMITTED_FIELDS(X) X(step)
#define STATUS_FIELDS(X)                                                                                               \
    X(world_size)                                                                                                      \
    X(ranks_joined)                                                                                                    \
    X(start_step)                                                                                                      \
    X(step)                                                                                                            \
    X(total_steps)                                                                                                     \
    X(granted_step)                                                                                                    \
    X(journaled_step)                                                                                                  \
    X(committed_step)                                                                                                  \
    X(saving_step)                                                                                                     \
    X(attempt)                                                                                                         \
    X(restarts)                                                                                                        \
    X(max_restarts)                                                                                                    \
    X(position) X(loss) X(tokens_per_second) X(eta_seconds) X(handshakes_failed) X(messages_dropped) X(pid)
#define STATUS_STRINGS(X) X(name) X(phase) X(host)

/* Copies from `source` to `target`, whichever is the protobuf form. */
#define COPY(field) target->field = source->field;

/* Numbers of an operation on the wire. */
enum { OPERATION_NUMBERS = 7 };

#endif
