/* Hashes of copies, and the vote about them. */
#include "worker/replica_check.h"

#include "worker/shard/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

enum { PIECE_BYTES = 4 << 20 };

struct ls_replica_check {
    struct ls_device *device;
    struct ls_comm *comm;
    struct ls_replica *replica;
    XXH3_state_t *state;
    void *piece;      /* [PIECE_BYTES], host memory */
    uint64_t *hashes; /* [ranks] */
    int ranks, parts;
    int64_t good_step;
};

/* ---- the vote ---- */

int ls_replica_parts(const struct ls_config *config, int ranks) {
    return config->zero.stage == 3 ? ranks / (int)config->zero.replicas : 1;
}

/* The hash that more than half of the copies of rank `first`'s part say; false: none does. What is left over when
 * copies that differ cancel each other out is the only one that can be (Boyer & Moore 1991). */
static bool find_majority(const uint64_t *hashes, int ranks, int parts, int first, uint64_t *majority) {
    int surplus = 0, count = 0;
    for (int rank = first; rank < ranks; rank += parts) {
        if (surplus == 0) *majority = hashes[rank];
        surplus += hashes[rank] == *majority ? 1 : -1;
    }
    for (int rank = first; rank < ranks; rank += parts) count += hashes[rank] == *majority;
    return 2 * count > ranks / parts;
}

bool ls_replica_vote(const uint64_t *hashes, int ranks, int parts, struct ls_replica_difference *difference) {
    int rank = parts;
    while (rank < ranks && hashes[rank] == hashes[rank % parts]) rank++;
    if (rank >= ranks) return false;
    uint64_t right = 0;
    difference->one = rank % parts;
    difference->other = rank;
    difference->rank = -1;
    /* What more than half of the copies say is right, and the first that says otherwise is wrong. */
    if (find_majority(hashes, ranks, parts, rank % parts, &right))
        difference->rank = hashes[rank % parts] == right ? rank : rank % parts;
    return true;
}

enum ls_code ls_replica_refuse(const struct ls_replica_difference *difference, struct ls_error *error) {
    if (difference->rank >= 0)
        return ls_fail(error, LS_ERROR, LS_SCOPE_RANK,
                       "replicas: behind step %lld rank %d holds other parameters than the others. It computed or "
                       "received something wrong: test the memory and the processor of its host.",
                       (long long)difference->step, difference->rank);
    return ls_fail(error, LS_ERROR, LS_SCOPE_JOB,
                   "replicas: behind step %lld ranks %d and %d hold different parameters; which of them is wrong could "
                   "be told with three copies. Test the memory and the processor of both hosts.",
                   (long long)difference->step, difference->one, difference->other);
}

/* ---- the check ---- */

enum ls_code ls_replica_check_create(const struct ls_config *config, struct ls_device *device, struct ls_comm *comm,
                                     struct ls_replica *replica, struct ls_replica_check **result,
                                     struct ls_error *error) {
    struct ls_replica_check *check = calloc(1, sizeof *check);
    if (!check) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the replica check");
    check->device = device;
    check->comm = comm;
    check->replica = replica;
    check->ranks = ls_comm_size(comm);
    check->parts = ls_replica_parts(config, check->ranks);
    check->good_step = -1;
    check->hashes = calloc((size_t)check->ranks, sizeof *check->hashes);
    check->state = XXH3_createState();
    check->piece = config->fault.replica_check_every > 0 ? ls_device_allocate_host(device, PIECE_BYTES) : NULL;
    if (!check->hashes || !check->state || (config->fault.replica_check_every > 0 && !check->piece)) {
        ls_replica_check_destroy(check);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the replica check");
    }
    *result = check;
    return LS_OK;
}

void ls_replica_check_destroy(struct ls_replica_check *check) {
    if (!check) return;
    if (check->piece) ls_device_free_host(check->device, check->piece);
    XXH3_freeState(check->state);
    free(check->hashes);
    free(check);
}

/* Hashes what this rank holds a copy of; device memory passes through the piece. */
static enum ls_code hash_copies(struct ls_replica_check *check, uint64_t *hash, struct ls_error *error) {
    const struct ls_model *model = ls_replica_model(check->replica);
    struct ls_stream *stream = ls_replica_stream(check->replica);
    XXH3_64bits_reset(check->state);
    for (int block = 0; block < ls_model_block_count(model); block++) {
        const struct ls_shard_copy copy = ls_shard_copy(ls_replica_shard(check->replica), block);
        const size_t bytes = (size_t)copy.count * (size_t)ls_dtype_bytes(ls_model_dtype(model));
        for (size_t done = 0; done < bytes; done += PIECE_BYTES) {
            const size_t count = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;
            ls_copy_to_host(stream, check->piece, (const char *)copy.parameters + done, count);
            enum ls_code code = ls_stream_synchronize(stream, error);
            if (code) return code;
            XXH3_64bits_update(check->state, check->piece, count);
        }
    }
    *hash = XXH3_64bits_digest(check->state);
    return ls_shard_check(ls_replica_shard(check->replica), error);
}

static enum ls_code compare(struct ls_replica_check *check, int64_t step, uint64_t own, int parts, bool *differs,
                            struct ls_replica_difference *difference, struct ls_error *error) {
    enum ls_code code = ls_comm_gather_bytes(check->comm, &own, sizeof own, check->hashes, error);
    if (code) return code;
    *differs = ls_replica_vote(check->hashes, check->ranks, parts, difference);
    difference->step = step;
    difference->good_step = check->good_step;
    return LS_OK;
}

enum ls_code ls_replica_check_run(struct ls_replica_check *check, int64_t step, bool *differs,
                                  struct ls_replica_difference *difference, struct ls_error *error) {
    uint64_t own = 0;
    enum ls_code code = hash_copies(check, &own, error);
    if (!code) code = compare(check, step, own, check->parts, differs, difference, error);
    if (!code && !*differs) check->good_step = step;
    return code;
}

enum ls_code ls_replica_check_compare(struct ls_replica_check *check, int64_t step, uint64_t own, bool *differs,
                                      struct ls_replica_difference *difference, struct ls_error *error) {
    return compare(check, step, own, 1, differs, difference, error);
}
