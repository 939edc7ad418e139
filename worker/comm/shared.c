/* Collectives over shared memory: the rounds of each kind, and sleeping on a counter of another process. */
#define _GNU_SOURCE
#include "worker/comm/shared.h"

#include "worker/comm/sum.h"

#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SLOTS = 2, LINE_BYTES = 64, PAGE_BYTES = 4096 };
/* A slot stays in a second-level cache of today's servers beside what is copied; of many ranks each still has a few
 * pages. */
enum { SLOT_BYTES_MIN = 1024 << 10, PIECE_BYTES_MIN = 16 << 10 };
/* Up to here every rank sums everything by itself: one meeting less. */
enum { WHOLE_BYTES_MAX = 8 << 10 };
/* From here on what a rank receives is written past its caches. */
enum { PAST_CACHES_BYTES_MIN = 16 << 20 };
/* How long to look before sleeping. */
enum { LOOKS = 200, YIELDS = 4 };

/* How far a rank is, in rounds since the segment was made, mod 2^32. */
struct place {
    _Alignas(LINE_BYTES) _Atomic uint32_t posted; /* staged for the others */
    _Atomic uint32_t summed;                      /* done with what others staged; its own result is there */
    _Atomic uint32_t taken;                       /* done with others' results */
    _Atomic uint32_t sleepers;                    /* ranks that sleep on one of these */
};

struct ls_shared {
    int rank, size;
    size_t slot_bytes, result_bytes;
    struct place *places; /* [size], in the segment */
    char *slots;          /* in the segment, behind the places */
    uint32_t round;       /* rounds of all collectives so far */
    const void **sources; /* [size], for sums */
};

static size_t round_up(size_t bytes, size_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

static size_t slot_bytes_of(int size) {
    const size_t pieces = (size_t)size * PIECE_BYTES_MIN;
    return pieces > SLOT_BYTES_MIN ? pieces : SLOT_BYTES_MIN;
}

/* A rank's part of a slot's elements is rounded up to a line. */
static size_t result_bytes_of(int size) {
    return round_up(slot_bytes_of(size) / (size_t)size + LINE_BYTES, PAGE_BYTES);
}

static size_t place_bytes_of(int size) {
    return round_up((size_t)size * sizeof(struct place), PAGE_BYTES);
}

size_t ls_shared_bytes(int size) {
    return place_bytes_of(size) + (size_t)size * SLOTS * (slot_bytes_of(size) + result_bytes_of(size));
}

static char *staging(const struct ls_shared *shared, int rank, uint32_t round) {
    return shared->slots + (size_t)rank * SLOTS * (shared->slot_bytes + shared->result_bytes) +
           round % SLOTS * shared->slot_bytes;
}

static char *result(const struct ls_shared *shared, int rank, uint32_t round) {
    return staging(shared, rank, 0) + SLOTS * shared->slot_bytes + round % SLOTS * shared->result_bytes;
}

/* ---- waiting ---- */

static bool reached(_Atomic uint32_t *counter, uint32_t goal) {
    return (int32_t)(atomic_load(counter) - goal) >= 0;
}

static void await(struct place *place, _Atomic uint32_t *counter, uint32_t goal) {
    for (int look = 0; look < LOOKS; look++) {
        if (reached(counter, goal)) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }
    for (int yield = 0; yield < YIELDS; yield++) {
        if (reached(counter, goal)) return;
        sched_yield();
    }
    atomic_fetch_add(&place->sleepers, 1);
    for (;;) {
        const uint32_t value = atomic_load(counter);
        if ((int32_t)(value - goal) >= 0) break;
        syscall(SYS_futex, counter, FUTEX_WAIT, value, NULL, NULL, 0);
    }
    atomic_fetch_sub(&place->sleepers, 1);
}

/* Waits until the counter at `offset` of every other rank's place has reached `goal`. */
static void await_others(const struct ls_shared *shared, size_t offset, uint32_t goal) {
    for (int rank = 0; rank < shared->size; rank++) {
        struct place *place = &shared->places[rank];
        if (rank != shared->rank) await(place, (_Atomic uint32_t *)((char *)place + offset), goal);
    }
}

static void tell(struct place *place, _Atomic uint32_t *counter, uint32_t value) {
    atomic_store(counter, value);
    if (atomic_load(&place->sleepers) > 0) syscall(SYS_futex, counter, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* ---- the rounds of a collective ---- */

/* How a collective is cut. All-reduce: a round is `piece` elements of each rank's part, one after another;
 * reduce-scatter: `piece` elements of every slice; all-gather: `piece` bytes of a slice; exchange: `piece` bytes of the
 * stretches of one part, `per_part` rounds each. */
struct job {
    struct ls_shared *shared;
    const struct ls_collective *collective;
    int64_t element, piece, rounds, per_part;
    bool whole;       /* an all-reduce that every rank sums by itself */
    bool past_caches; /* results do not stay in the caches anyway */
};

static void deliver(const struct job *job, void *to, const void *from, int64_t bytes) {
    if (job->past_caches)
        ls_comm_copy_past_caches(to, from, (size_t)bytes);
    else
        memcpy(to, from, (size_t)bytes);
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t rounds_of(int64_t count, int64_t piece) {
    return (count + piece - 1) / piece;
}

static struct job cut(struct ls_shared *shared, const struct ls_collective *collective) {
    const int64_t size = shared->size, slot = (int64_t)shared->slot_bytes, count = collective->count;
    struct job job = {.shared = shared, .collective = collective, .element = 1, .per_part = 1};
    switch (collective->kind) {
    case LS_ALL_REDUCE: {
        job.element = (int64_t)ls_comm_type_bytes(collective->type);
        job.whole = count * job.element <= WHOLE_BYTES_MAX;
        /* Parts begin at lines of the staging. */
        const int64_t line = LINE_BYTES / job.element, most = slot / job.element / size / line * line;
        job.piece = smaller(most, (rounds_of(count, size) + line - 1) / line * line);
        job.rounds = job.whole ? 1 : rounds_of(count, job.piece * size);
        break;
    }
    case LS_REDUCE_SCATTER:
        job.element = (int64_t)ls_comm_type_bytes(collective->type);
        job.piece = slot / job.element / size;
        job.rounds = rounds_of(count, job.piece);
        break;
    case LS_ALL_GATHER:
        job.piece = slot;
        job.rounds = rounds_of(count, job.piece);
        break;
    case LS_EXCHANGE: {
        int parts = 0;
        for (int rank = 0; rank < shared->size; rank++)
            if (collective->exchange.parts[rank] > parts) parts = collective->exchange.parts[rank];
        job.piece = slot / size;
        job.per_part = rounds_of(count, job.piece);
        job.rounds = job.per_part * parts;
        break;
    }
    }
    const int64_t slices = collective->kind == LS_ALL_REDUCE || collective->kind == LS_REDUCE_SCATTER ? 1 : size;
    job.past_caches = count * job.element * slices >= PAST_CACHES_BYTES_MIN;
    return job;
}

/* An all-reduce's round: elements [*begin, *end) of it are `rank`'s part. */
static void part_of(const struct job *job, int64_t round, int rank, int64_t *begin, int64_t *end) {
    const int64_t left = job->collective->count - round * job->piece * job->shared->size;
    *begin = job->whole ? 0 : smaller(rank * job->piece, left);
    *end = job->whole ? left : smaller((rank + 1) * job->piece, left);
}

/* Where a round begins in its buffer, in elements; sets how many it has of each slice. */
static int64_t stretch_of(const struct job *job, int64_t round, int64_t *length) {
    const int64_t first = round % (job->collective->kind == LS_EXCHANGE ? job->per_part : job->rounds) * job->piece;
    *length = smaller(job->piece, job->collective->count - first);
    return first;
}

static void post(const struct job *job, int64_t round) {
    struct ls_shared *shared = job->shared;
    const struct ls_collective *collective = job->collective;
    const int64_t element = job->element, rank = shared->rank;
    const char *buffer = collective->buffer;
    char *own = staging(shared, shared->rank, shared->round + (uint32_t)round);
    int64_t begin, end, length;
    if (collective->kind == LS_ALL_REDUCE) {
        buffer += round * job->piece * shared->size * element;
        if (job->whole) {
            memcpy(own, buffer, (size_t)(collective->count * element));
            return;
        }
        part_of(job, round, shared->rank, &begin, &end);
        const int64_t left = collective->count - round * job->piece * shared->size;
        const int64_t all = smaller(left, job->piece * shared->size);
        memcpy(own, buffer, (size_t)(begin * element));
        memcpy(own + end * element, buffer + end * element, (size_t)((all - end) * element));
        return;
    }
    const int64_t first = stretch_of(job, round, &length);
    if (collective->kind == LS_ALL_GATHER) {
        memcpy(own, buffer + rank * collective->count + first, (size_t)length);
        return;
    }
    const struct ls_comm_exchange *exchange = &collective->exchange;
    const int64_t part = round / job->per_part;
    if (collective->kind == LS_EXCHANGE && part >= exchange->parts[rank]) return;
    for (int to = 0; to < shared->size; to++) {
        const char *from = collective->kind == LS_EXCHANGE
                               ? (const char *)exchange->buffers[part] + ls_exchange_offset(exchange, shared->size, to)
                               : buffer + to * collective->count * element;
        if (to != rank) memcpy(own + to * job->piece * element, from + first * element, (size_t)(length * element));
    }
}

/* Sums this rank's slice of a reduction in rank order; `own` and `staged` (the place in everybody's staging) are where
 * it is. */
static void sum_slice(const struct job *job, int64_t round, char *own, int64_t staged, int64_t length, void *copy) {
    struct ls_shared *shared = job->shared;
    for (int from = 0; from < shared->size; from++)
        shared->sources[from] =
            from == shared->rank ? own : staging(shared, from, shared->round + (uint32_t)round) + staged * job->element;
    ls_comm_sum(job->collective->type, shared->sources, shared->size, 0, length, (void *const[]){own, copy},
                copy ? 2 : 1, job->past_caches);
}

static void take_stretches(const struct job *job, int64_t round) {
    struct ls_shared *shared = job->shared;
    const struct ls_collective *collective = job->collective;
    const struct ls_comm_exchange *exchange = &collective->exchange;
    const int64_t part = round / job->per_part;
    int64_t length, before = 0;
    const int64_t first = stretch_of(job, round, &length);
    for (int from = 0; from < shared->size; from++) {
        const int64_t place = before + part;
        before += exchange->parts[from];
        if (part >= exchange->parts[from]) continue;
        const char *stretch =
            from == shared->rank
                ? (const char *)exchange->buffers[part] + ls_exchange_offset(exchange, shared->size, from) + first
                : staging(shared, from, shared->round + (uint32_t)round) + shared->rank * job->piece;
        deliver(job, (char *)exchange->received + place * collective->count + first, stretch, length);
    }
}

static void sum(const struct job *job, int64_t round) {
    struct ls_shared *shared = job->shared;
    const struct ls_collective *collective = job->collective;
    const int64_t rank = shared->rank;
    char *buffer = collective->buffer;
    int64_t begin, end, length;
    switch (collective->kind) {
    case LS_ALL_REDUCE:
        part_of(job, round, shared->rank, &begin, &end);
        sum_slice(job, round, buffer + (round * job->piece * shared->size + begin) * job->element, begin, end - begin,
                  job->whole ? NULL : result(shared, shared->rank, shared->round + (uint32_t)round));
        return;
    case LS_REDUCE_SCATTER: {
        const int64_t first = stretch_of(job, round, &length);
        sum_slice(job, round, buffer + (rank * collective->count + first) * job->element, rank * job->piece, length,
                  NULL);
        return;
    }
    case LS_ALL_GATHER: {
        const int64_t first = stretch_of(job, round, &length);
        for (int from = 0; from < shared->size; from++)
            if (from != rank)
                deliver(job, buffer + from * collective->count + first,
                        staging(shared, from, shared->round + (uint32_t)round), length);
        return;
    }
    case LS_EXCHANGE: take_stretches(job, round); return;
    }
}

/* The results of an all-reduce; of the others nothing is left to take. */
static void take(const struct job *job, int64_t round) {
    struct ls_shared *shared = job->shared;
    if (job->collective->kind != LS_ALL_REDUCE || job->whole) return;
    char *buffer = (char *)job->collective->buffer + round * job->piece * shared->size * job->element;
    for (int i = 1; i < shared->size; i++) {
        const int from = (shared->rank + i) % shared->size;
        int64_t begin, end;
        part_of(job, round, from, &begin, &end);
        deliver(job, buffer + begin * job->element, result(shared, from, shared->round + (uint32_t)round),
                (end - begin) * job->element);
    }
}

void ls_shared_run(struct ls_shared *shared, const struct ls_collective *collective) {
    const struct job job = cut(shared, collective);
    struct place *own = &shared->places[shared->rank];
    /* Round i of this collective is number shared->round + i; counters say how many rounds are complete. */
    for (int64_t i = 0; i < job.rounds + 2; i++) {
        const uint32_t number = shared->round + (uint32_t)i;
        if (i < job.rounds) {
            await_others(shared, offsetof(struct place, summed), number + 1 - SLOTS);
            post(&job, i);
            tell(own, &own->posted, number + 1);
        }
        if (i >= 1 && i - 1 < job.rounds) {
            await_others(shared, offsetof(struct place, posted), number);
            await_others(shared, offsetof(struct place, taken), number - SLOTS);
            sum(&job, i - 1);
            tell(own, &own->summed, number);
        }
        if (i >= 2) {
            await_others(shared, offsetof(struct place, summed), number - 1);
            take(&job, i - 2);
            tell(own, &own->taken, number - 1);
        }
    }
    shared->round += (uint32_t)job.rounds;
}

/* ---- the segment ---- */

enum ls_code ls_shared_create(void *memory, int rank, int size, struct ls_shared **shared, struct ls_error *error) {
    struct ls_shared *made = malloc(sizeof *made);
    const void **sources = calloc((size_t)size, sizeof *sources);
    if (!made || !sources) {
        free(made);
        free(sources);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for the records of %d ranks", size);
    }
    *made = (struct ls_shared){.rank = rank,
                               .size = size,
                               .slot_bytes = slot_bytes_of(size),
                               .result_bytes = result_bytes_of(size),
                               .places = memory,
                               .slots = (char *)memory + place_bytes_of(size),
                               .sources = sources};
    made->round = atomic_load(&made->places[rank].posted);
    /* Touched first by the rank that fills it, so it lies beside its cores. */
    memset(staging(made, rank, 0), 0, SLOTS * (made->slot_bytes + made->result_bytes));
    *shared = made;
    return LS_OK;
}

void ls_shared_destroy(struct ls_shared *shared) {
    if (!shared) return;
    free(shared->sources);
    free(shared);
}

int ls_shared_open(size_t bytes) {
    const int descriptor = memfd_create("lockstep-communication", MFD_CLOEXEC);
    if (descriptor >= 0 && ftruncate(descriptor, (off_t)bytes) != 0) {
        close(descriptor);
        return -1;
    }
    return descriptor;
}

void *ls_shared_map(int descriptor, size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void ls_shared_unmap(void *memory, size_t bytes) {
    if (memory) munmap(memory, bytes);
}
