/* The timeline of a step. */
#include "worker/memory/cost.h"

const char *ls_cost_limit_name(enum ls_cost_limit limit) {
    static const char *const names[] = {"arithmetic", "memory bandwidth", "link"};
    return names[limit];
}

/* Seconds of one pass over a block: its products or its memory traffic, whichever takes longer. The time goes to the
 * account of what it was. */
static double pass_seconds(const struct ls_cost_machine *machine, double flops, double bytes, double *arithmetic,
                           double *memory) {
    const double computing = flops / (machine->flops_per_second * machine->efficiency);
    const double moving = bytes / machine->memory_bytes_per_second;
    *(computing >= moving ? arithmetic : memory) += computing >= moving ? computing : moving;
    return computing >= moving ? computing : moving;
}

struct ls_cost ls_cost_predict(const struct ls_cost_machine *machine, int64_t ranks, const struct ls_cost_work *work) {
    struct ls_cost cost = {0};
    double link = machine->local_link_bytes_per_second;
    if (ranks > machine->ranks_per_node && machine->node_link_bytes_per_second < link)
        link = machine->node_link_bytes_per_second;
    double arithmetic = 0, memory = 0, now = 0, wire_free = 0;
    for (int64_t micro_batch = 0; micro_batch < work->micro_batches; micro_batch++) {
        for (int b = 0; b < work->block_count; b++)
            now += pass_seconds(machine, work->blocks[b].forward_flops, work->blocks[b].forward_bytes, &arithmetic,
                                &memory);
        for (int b = work->block_count - 1; b >= 0; b--) {
            const struct ls_cost_block *block = &work->blocks[b];
            now += pass_seconds(machine, block->backward_flops, block->backward_bytes, &arithmetic, &memory);
            if (micro_batch < work->micro_batches - 1) continue;
            const double seconds = block->reduce_bytes / link;
            wire_free = (wire_free > now ? wire_free : now) + seconds;
            cost.wire_seconds += seconds;
        }
    }
    cost.compute_seconds = now;
    cost.exposed_seconds = wire_free > now ? wire_free - now : 0;
    cost.update_seconds = work->update_bytes / machine->memory_bytes_per_second;
    cost.step_seconds = cost.compute_seconds + cost.exposed_seconds + cost.update_seconds;
    memory += cost.update_seconds;
    cost.limit = cost.exposed_seconds > arithmetic && cost.exposed_seconds > memory ? LS_COST_LINK
                 : memory > arithmetic                                              ? LS_COST_MEMORY
                                                                                    : LS_COST_ARITHMETIC;
    return cost;
}
