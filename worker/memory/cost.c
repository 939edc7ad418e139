/* The timeline of a step. */
#include "worker/memory/cost.h"

#include <math.h>

/* Of so many micro-batches each is followed; of more the first, the last, and what those between do together. */
enum { FOLLOWED_MAX = 256 };

const char *ls_cost_limit_name(enum ls_cost_limit limit) {
    static const char *const names[] = {"arithmetic", "memory bandwidth", "link"};
    return names[limit];
}

/* A step under way: the clock of the computing, and when the wire has done what it was given. */
struct timeline {
    const struct ls_cost_machine *machine;
    double link, now, wire_free;
    double gathered;           /* when the blocks so far are there, of those that are gathered once a step */
    double arithmetic, memory; /* seconds computed, by what took them */
    double wire, waited;       /* seconds of the wire, and of waiting for it */
};

/* Gives the wire what one rank sends; returns when it is done. */
static double put_on_wire(struct timeline *timeline, double bytes) {
    const double seconds = bytes / timeline->link;
    if (bytes == 0) return timeline->now;
    timeline->wire_free = (timeline->wire_free > timeline->now ? timeline->wire_free : timeline->now) + seconds;
    timeline->wire += seconds;
    return timeline->wire_free;
}

static void wait_until(struct timeline *timeline, double ready) {
    if (ready <= timeline->now) return;
    timeline->waited += ready - timeline->now;
    timeline->now = ready;
}

/* One pass over a block: its products or its memory traffic, whichever takes longer. */
static void compute(struct timeline *timeline, double flops, double bytes) {
    const struct ls_cost_machine *machine = timeline->machine;
    const double computing = flops / (machine->flops_per_second * machine->efficiency);
    const double moving = bytes / machine->memory_bytes_per_second;
    if (computing >= moving) {
        timeline->arithmetic += computing;
        timeline->now += computing;
    } else {
        timeline->memory += moving;
        timeline->now += moving;
    }
}

/* The passes of a micro-batch are forward of all blocks, then backward of all. Returns the block of one. */
static int block_of(const struct ls_cost_work *work, int pass) {
    return pass < work->block_count ? pass : 2 * work->block_count - 1 - pass;
}

/* What has to be gathered before a pass; none behind the last one. */
static double gather_bytes(const struct ls_cost_work *work, int pass) {
    if (pass == 2 * work->block_count) return 0;
    const struct ls_cost_block *block = &work->blocks[block_of(work, pass)];
    return pass < work->block_count ? block->forward_gather_bytes : block->backward_gather_bytes;
}

/* All blocks are on the wire since the update: the first forward of a block waits for it and those before. */
static void await_gathered(struct timeline *timeline, const struct ls_cost_work *work, int64_t micro_batch, int pass) {
    if (micro_batch > 0 || pass >= work->block_count) return;
    timeline->gathered += gather_bytes(work, pass) / timeline->link;
    wait_until(timeline, timeline->gathered);
}

static void run_micro_batch(struct timeline *timeline, const struct ls_cost_work *work, int64_t micro_batch) {
    const bool last = micro_batch == work->micro_batches - 1;
    double ready = work->gathers_always ? put_on_wire(timeline, gather_bytes(work, 0)) : timeline->now;
    for (int pass = 0; pass < 2 * work->block_count; pass++) {
        const struct ls_cost_block *block = &work->blocks[block_of(work, pass)];
        const bool forward = pass < work->block_count;
        if (work->gathers_always) {
            wait_until(timeline, ready);
            ready = put_on_wire(timeline, gather_bytes(work, pass + 1));
        } else {
            await_gathered(timeline, work, micro_batch, pass);
        }
        compute(timeline, forward ? block->forward_flops : block->backward_flops,
                forward ? block->forward_bytes : block->backward_bytes);
        if (!forward) put_on_wire(timeline, last ? block->last_reduce_bytes : block->reduce_bytes);
    }
}

/* What micro-batches do to the two clocks, as every time in them is the later of some earlier ones plus a constant:
 *
 *     now'       = max(now + to_now[0],  wire_free + to_now[1])
 *     wire_free' = max(now + to_wire[0], wire_free + to_wire[1])      -INFINITY: does not depend on it
 *
 * Two of these, one behind the other, are one again. */
struct advance {
    double to_now[2], to_wire[2];
};

static double later(double a, double b) {
    return a > b ? a : b;
}

static struct advance advance_twice(const struct advance *first, const struct advance *second) {
    struct advance both;
    for (int from = 0; from < 2; from++) {
        both.to_now[from] = later(first->to_now[from] + second->to_now[0], first->to_wire[from] + second->to_now[1]);
        both.to_wire[from] = later(first->to_now[from] + second->to_wire[0], first->to_wire[from] + second->to_wire[1]);
    }
    return both;
}

/* A micro-batch between the first and the last, from each clock alone. */
static struct advance advance_of(const struct timeline *timeline, const struct ls_cost_work *work) {
    struct advance advance;
    for (int from = 0; from < 2; from++) {
        struct timeline alone = {.machine = timeline->machine,
                                 .link = timeline->link,
                                 .now = from == 0 ? 0 : -INFINITY,
                                 .wire_free = from == 0 ? -INFINITY : 0};
        run_micro_batch(&alone, work, 1);
        advance.to_now[from] = alone.now;
        advance.to_wire[from] = alone.wire_free;
    }
    return advance;
}

/* `count` micro-batches between the first and the last. */
static void run_between(struct timeline *timeline, const struct ls_cost_work *work, int64_t count) {
    struct timeline one = {.machine = timeline->machine, .link = timeline->link};
    run_micro_batch(&one, work, 1);
    struct advance power = advance_of(timeline, work), all = {{0, -INFINITY}, {-INFINITY, 0}};
    for (int64_t left = count; left > 0; left /= 2) {
        if (left % 2) all = advance_twice(&all, &power);
        power = advance_twice(&power, &power);
    }
    const double now = timeline->now, wire_free = timeline->wire_free;
    timeline->now = later(now + all.to_now[0], wire_free + all.to_now[1]);
    timeline->wire_free = later(now + all.to_wire[0], wire_free + all.to_wire[1]);
    timeline->arithmetic += (double)count * one.arithmetic;
    timeline->memory += (double)count * one.memory;
    timeline->wire += (double)count * one.wire;
    /* What is left of a difference of large numbers that are equal is no waiting. */
    const double waited = timeline->now - now - (double)count * (one.arithmetic + one.memory);
    if (waited > 1e-12 * timeline->now) timeline->waited += waited;
}

struct ls_cost ls_cost_predict(const struct ls_cost_machine *machine, int64_t ranks, const struct ls_cost_work *work) {
    struct timeline timeline = {.machine = machine, .link = machine->local_link_bytes_per_second};
    if (ranks > machine->ranks_per_node && machine->node_link_bytes_per_second < timeline.link)
        timeline.link = machine->node_link_bytes_per_second;
    for (int block = 0; block < work->block_count && !work->gathers_always; block++)
        put_on_wire(&timeline, work->blocks[block].forward_gather_bytes);
    const int64_t between = work->micro_batches > FOLLOWED_MAX ? work->micro_batches - 2 : 0;
    for (int64_t micro_batch = 0; micro_batch < work->micro_batches; micro_batch++) {
        if (micro_batch == 1 && between > 0) {
            run_between(&timeline, work, between);
            micro_batch += between;
        }
        run_micro_batch(&timeline, work, micro_batch);
    }
    wait_until(&timeline, timeline.wire_free);
    wait_until(&timeline, put_on_wire(&timeline, work->update_wire_bytes));
    const double products = work->update_flops / (machine->flops_per_second * machine->efficiency),
                 moving = work->update_bytes / machine->memory_bytes_per_second;
    struct ls_cost cost = {.compute_seconds = timeline.arithmetic + timeline.memory,
                           .update_seconds = products + moving,
                           .wire_seconds = timeline.wire,
                           .exposed_seconds = timeline.waited};
    cost.step_seconds = timeline.now + cost.update_seconds;
    const double arithmetic = timeline.arithmetic + products, memory = timeline.memory + moving;
    cost.limit = timeline.waited > arithmetic && timeline.waited > memory ? LS_COST_LINK
                 : memory > arithmetic                                    ? LS_COST_MEMORY
                                                                          : LS_COST_ARITHMETIC;
    return cost;
}
