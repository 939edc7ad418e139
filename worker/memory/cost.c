/* The timeline of a step. */
#include "worker/memory/cost.h"

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
    if (bytes == 0) return 0;
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
    double ready = work->gathers_always ? put_on_wire(timeline, gather_bytes(work, 0)) : 0;
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

struct ls_cost ls_cost_predict(const struct ls_cost_machine *machine, int64_t ranks, const struct ls_cost_work *work) {
    struct timeline timeline = {.machine = machine, .link = machine->local_link_bytes_per_second};
    if (ranks > machine->ranks_per_node && machine->node_link_bytes_per_second < timeline.link)
        timeline.link = machine->node_link_bytes_per_second;
    for (int block = 0; block < work->block_count && !work->gathers_always; block++)
        put_on_wire(&timeline, work->blocks[block].forward_gather_bytes);
    for (int64_t micro_batch = 0; micro_batch < work->micro_batches; micro_batch++)
        run_micro_batch(&timeline, work, micro_batch);
    wait_until(&timeline, timeline.wire_free);
    struct ls_cost cost = {.compute_seconds = timeline.arithmetic + timeline.memory,
                           .update_seconds = work->update_bytes / machine->memory_bytes_per_second,
                           .wire_seconds = timeline.wire,
                           .exposed_seconds = timeline.waited};
    cost.step_seconds = timeline.now + cost.update_seconds;
    const double arithmetic = timeline.arithmetic, memory = timeline.memory + cost.update_seconds;
    cost.limit = timeline.waited > arithmetic && timeline.waited > memory ? LS_COST_LINK
                 : memory > arithmetic                                    ? LS_COST_MEMORY
                                                                          : LS_COST_ARITHMETIC;
    return cost;
}
