/* The predicted time of a step: a roofline for every block, collectives one after another on a wire beside it, an
 * update bound by memory. A reduction starts when its block's backward ends; parameters are gathered one block ahead of
 * where they are needed, or all from the end of the update on. Pure arithmetic on what the plan counted; it orders
 * alternatives and names the bottleneck. Launch overheads, stragglers and the latency of collectives are left out. */
#ifndef LS_WORKER_MEMORY_COST_H
#define LS_WORKER_MEMORY_COST_H

#include "common/status.h"
#include "worker/device/operations.h"
#include "worker/memory/gpu_table.h"

#include <stdbool.h>
#include <stdint.h>

/* What one rank computes, remembers and sends with. */
struct ls_cost_machine {
    char name[128];
    bool gpu, measured;      /* not measured: by data sheet */
    double flops_per_second; /* of matrix products */
    double efficiency;       /* the part of it that whole models reach */
    double memory_bytes_per_second;
    int64_t memory_bytes; /* 0: unknown */
    int64_t ranks_per_node;
    double local_link_bytes_per_second; /* one rank to the next within a node */
    double node_link_bytes_per_second;  /* a node to the next; a ring over all ranks leaves each node once */
};

/* One block, one micro-batch. */
struct ls_cost_block {
    double forward_flops, backward_flops;
    double forward_bytes, backward_bytes;   /* read and written in device memory */
    double reduce_bytes, last_reduce_bytes; /* sent by this rank after a backward, and after the step's last */
    double forward_gather_bytes, backward_gather_bytes; /* sent by this rank before */
};

/* What one rank does in a step: of any number of micro-batches, the time to predict it is bounded. Blocks in the order
 * of forward; the last one's backward follows its forward at once. */
struct ls_cost_work {
    const struct ls_cost_block *blocks;
    int block_count;
    int64_t micro_batches;
    bool gathers_always;      /* in every micro-batch, a block ahead; else once a step, before its first forward */
    double update_bytes;      /* read and written by norm and optimizer */
    double update_flops;      /* of the optimizer's products */
    double update_wire_bytes; /* sent by this rank within the update, which waits for them */
};

enum ls_cost_limit { LS_COST_ARITHMETIC, LS_COST_MEMORY, LS_COST_LINK };

struct ls_cost {
    double compute_seconds;   /* forward and backward */
    double update_seconds;    /* norm and optimizer, but for collectives */
    double wire_seconds;      /* collectives, were nothing beside them */
    double exposed_seconds;   /* the part of it that nothing hides */
    double step_seconds;      /* compute + exposed + update */
    enum ls_cost_limit limit; /* what takes most of the step: arithmetic, memory traffic, the link */
};

/* Bytes a second of a node's link where nobody says it: 100 Gbit/s. */
#define LS_COST_NODE_LINK_STANDARD 12.5e9

struct ls_cost ls_cost_predict(const struct ls_cost_machine *machine, int64_t ranks, const struct ls_cost_work *work);

/* "arithmetic", "memory bandwidth", "link". */
const char *ls_cost_limit_name(enum ls_cost_limit limit);

/* Ranks on GPUs of a kind, by the data sheet. `half`: products of bf16 or fp16, else of fp32. */
struct ls_cost_machine ls_cost_machine_of_gpu(const struct ls_gpu *gpu, bool half, int64_t ranks_per_node,
                                              double node_link_bytes_per_second);

/* Ranks on the CPUs of this host, or of hosts like it: products of `rows` x `columns` with `columns` x `columns` and
 * sums of vectors are timed for about 0.2 s. `threads` of a rank, 0: its part of the cores. LS_MEMORY. */
enum ls_code ls_cost_machine_measure(int threads, int64_t ranks_per_node, double node_link_bytes_per_second,
                                     int64_t rows, int64_t columns, enum ls_dtype dtype,
                                     struct ls_cost_machine *machine, struct ls_error *error);

#endif
