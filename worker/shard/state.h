/* What the files of this room share: the shards' records and how blocks are cut. */
#ifndef LS_WORKER_SHARD_STATE_H
#define LS_WORKER_SHARD_STATE_H

#include "worker/shard/shard.h"
#include "worker/shard/tree.h"

/* Elements behind each of squared_norm's partial sums. */
enum { LS_NORM_STRETCH = 1024 };

/* How the configuration cuts blocks. */
struct ls_shard_cut {
    int64_t ranks;            /* of a shard group: slices of a block; 1 at stage 0 */
    int64_t unit;             /* slices hold multiples of so many elements */
    bool parameters_sliced;   /* stage 3 */
    bool gradients_sliced;    /* a slice accumulates, whole gradients are passing: stages 2 and 3, sharded */
    bool state_sliced;        /* stages 1 to 3 */
    int64_t parameter_bytes;  /* of an element: what blocks compute with, also on the wire */
    int64_t gradient_bytes;   /* what is accumulated: fp32 */
    int64_t wire_bytes;       /* of a gradient on the wire */
    int64_t state_bytes;      /* m and v, each, and the master parameters where they are apart */
    bool master_apart;        /* else updates go to the parameters themselves: fp32, or bf16 rounded stochastically */
    enum ls_dtype dtype;      /* of parameters */
    enum ls_dtype wire_dtype; /* of gradients on the wire */
    bool whole_matrices;      /* the update needs a layer's matrices whole: Muon */
    enum ls_dtype whole_dtype;
    /* train.reduction: fixed */
    bool fixed;
    int64_t owners;         /* all ranks: each finishes the tree of one stretch of every block */
    int64_t tree_buffers;   /* whole gradients beside the one that accumulates: nodes of own slots */
    int64_t received_nodes; /* of all ranks, at most */
};
struct ls_shard_cut ls_shard_cut(const struct ls_config *config, int64_t ranks);

/* Elements of a slice of `count`. */
static inline int64_t ls_shard_slice_count(const struct ls_shard_cut *cut, int64_t count) {
    const int64_t step = cut->ranks * cut->unit;
    return (count + step - 1) / step * cut->unit;
}

/* Whole blocks pass through a few buffers: one for the embedding or an untied head, which may be far larger than a
 * layer, and two for everything else, so that one is in work while the other comes or goes. */
enum { POOL_LARGE, POOL_FIRST, POOL_SECOND, POOL_SLOTS };
static inline bool ls_shard_block_is_large(const struct ls_model *model, int block) {
    enum ls_block_kind kind = ls_model_block(model, block)->kind;
    return kind == LS_BLOCK_EMBEDDING || (kind == LS_BLOCK_HEAD && !ls_model_head_is_tied(model));
}

/* Which blocks are in the buffers of gathered parameters: a cache, in which the buffer that was used longest ago gives
 * way. The same code runs the training and counts its bytes. */
struct ls_gather_pool {
    struct {
        int block, users; /* block -1: none */
        uint64_t turn;    /* when it was last asked for */
    } slots[POOL_SLOTS];
    uint64_t turns;
};
void ls_gather_pool_clear(struct ls_gather_pool *pool);
/* The block's slot; *missing when it has to be gathered into it. -1: all slots for such a block are in use. */
int ls_gather_pool_place(struct ls_gather_pool *pool, const struct ls_model *model, int block, bool *missing);

struct shard_block {
    int64_t count, decay_count;
    int64_t slice, padded;        /* elements: of a slice, and of all slices */
    int64_t own_first, own_count; /* of the block, what this rank updates, without padding */
    int64_t second_first;         /* of the block: from here to the end of what this rank updates there is v */
    int64_t second_room;          /* elements of v, on every rank */
    void *parameters;             /* [padded], or the own slice */
    float *master;                /* fp32, of the own slice; NULL where it is not apart from the parameters */
    float *gradients;             /* [padded], or what the own slice accumulates */
    float *m, *v;                 /* of the own slice; v from second_first on, NULL where the block has none */
    float *passing;               /* the whole gradient, while it is in a buffer of the pool; else NULL */
    int passing_slot;
    bool accumulated;          /* the slice holds gradients of an earlier micro-batch of the step */
    bool gathering;            /* parameters are under way, the compute stream has not waited yet */
    bool passing_by;           /* the reader has not had its parameters */
    float *nodes;              /* [tree_buffers, padded]: values of the tree's stack, but maybe the top */
    const void **sent;         /* [tree_buffers + 1]: where the values of the stack are at the end of a step */
    struct ls_tree tree;       /* fixed: sums of this rank's slots */
    struct ls_event *complete; /* on the compute stream: gradients, or the updated slice */
    struct ls_event *reduced, *gathered; /* on the communication stream */
};

/* What train.reduction: fixed needs beside the blocks' own. */
struct fixed_reduction {
    int64_t slots;                /* of the step */
    int64_t first_slot, end_slot; /* of them, this rank's */
    int *parts;                   /* [owners]: nodes that each rank sends in this step */
    struct ls_tree *cover;        /* scratch: the nodes of a rank */
    float *received;              /* device, [received_nodes, stretch] */
    int64_t stretch;              /* elements of an exchange, at most */
    double *partials;             /* device, [ranks, partial_count] where state is sliced */
    int64_t partial_count;        /* of a rank: sums of LS_NORM_STRETCH elements, blocks one after another */
};
/* Elements of every owner's stretch of a block. */
static inline int64_t ls_shard_stretch_count(const struct ls_shard_cut *cut, int64_t count) {
    return ls_shard_slice_count(cut, count) * cut->ranks / cut->owners;
}
/* Elements of an exchange, at most, for blocks whose longest owner's stretch is `longest`. */
int64_t ls_shard_exchange_count(const struct ls_shard_cut *cut, int64_t longest);

/* What an update of whole matrices needs: see whole.c. */
struct whole_update {
    void *outgoing, *whole; /* device, [padded] of a layer each; one rank: [decay_count] */
    void *gram, *powers;    /* device, [side, side] each, of the largest matrix */
    const void *sent[1];    /* outgoing */
    int *parts;             /* [ranks] 1 each: what everybody sends */
    struct ls_event *complete, *exchanged;
};

/* A buffer of whole gradients on their way to a reduction. */
struct passing_slot {
    float *memory;
    struct ls_event *idle; /* on the communication stream: reduced, may be used again */
};

/* A buffer of gathered parameters; its block is in the pool. */
struct gather_slot {
    void *memory;
    bool awaited;           /* by the compute stream */
    struct ls_event *ready; /* on the communication stream */
    struct ls_event *idle;  /* on the compute stream: released */
};

/* The scalars in device memory. */
struct scalars {
    double squared, parameters;
    double matrix; /* sum of squares of one that is made orthogonal */
    float norm, factor, learning_rate;
    int32_t found_inf;
    int64_t step;
};

/* What is copied to the device before an update. */
struct update_inputs {
    float learning_rate;
    int64_t step;
    double squared; /* in place of the sum of squares, when the update is refused */
};

struct ls_shard {
    const struct ls_config *config;
    const struct ls_model *model;
    struct ls_shard_comms comms;
    struct ls_shard_cut cut;
    int64_t index; /* of the own slice */
    struct ls_stream *compute, *communication;
    struct scalars *scalars;      /* device */
    double *partial;              /* device, squared_norm's scratch */
    double *norms;                /* device, squared norms of each slice's gradients */
    struct update_inputs *inputs; /* host, for asynchronous copies */
    bool refused;                 /* the next update is to change nothing */
    struct ls_event *value_complete, *value_reduced, *norm_complete, *norm_gathered, *updated;
    struct ls_event *awaited; /* the last one the compute stream waited for */
    void *wire;               /* device, a block's gradients in the wire's type; NULL where that is fp32 */
    struct passing_slot passing[POOL_SLOTS];
    int next_passing; /* of the two, which is older */
    struct fixed_reduction fixed;
    struct whole_update whole;
    struct ls_progress_record *watch; /* NULL: none */
    struct ls_gather_pool pool;
    struct gather_slot gathered[POOL_SLOTS];
    int check; /* block whose parameters' norm is due when they are acquired; -1: none */
    struct ls_shard_reader reader;
    bool reading;
    int block_count;
    struct shard_block blocks[];
};

/* The part of the block's parameters that this rank updates. */
static inline void *ls_shard_own_parameters(const struct ls_shard_cut *cut, const struct shard_block *block) {
    return (char *)block->parameters + (cut->parameters_sliced ? 0 : block->own_first * cut->parameter_bytes);
}

/* Reserves buffers in a plan, or takes them from the arena in the same order: one description serves both. */
struct ls_shard_placer {
    struct ls_arena_plan *plan; /* without an arena */
    struct ls_arena *arena;
    int next;
};
/* A block as it is cut, without what is one rank's own. */
struct shard_block ls_shard_describe_block(const struct ls_config *config, const struct ls_shard_cut *cut,
                                           const struct ls_block *shape);
void ls_shard_place_block(struct ls_shard_placer *placer, const struct ls_shard_cut *cut, struct shard_block *block);
/* What is not of one block. */
void ls_shard_place_rest(struct ls_shard_placer *placer, const struct ls_model *model, const struct ls_shard_cut *cut,
                         struct ls_shard *shard);

/* Host memory for updates of whole matrices; false when there is none. */
bool ls_shard_create_whole(struct ls_shard *shard);
void ls_shard_destroy_whole(struct ls_shard *shard);
/* Updates and spreads all layers from block `first` on; returns the block behind them. */
int ls_shard_update_layers(struct ls_shard *shard, int first);
/* Before the first change of a block's state: whoever reads it has to be done. */
void ls_shard_release_state(struct ls_shard *shard, int block);
/* One rule for elements [first, first + count) of a block, all this rank's. GIVEN has `direction` and `scale`. */
struct ls_shard_range {
    int block;
    int64_t first, count;
    enum ls_update_rule rule;
    const void *direction;
    float scale;
};
void ls_shard_update_range(struct ls_shard *shard, const struct ls_shard_range *range);
/* Behind a block's update: its parameters start to be gathered, its gradients are zero. */
void ls_shard_spread(struct ls_shard *shard, int block);

/* The blocks' host memory for train.reduction: fixed; false when there is none. */
bool ls_shard_create_fixed(struct ls_shard *shard);
void ls_shard_destroy_fixed(struct ls_shard *shard);
/* ls_shard_reduce(), and the sum of squares of all gradients where state is sliced, for train.reduction: fixed. */
void ls_shard_reduce_fixed(struct ls_shard *shard, int block, bool last);
void ls_shard_sum_squares_fixed(struct ls_shard *shard);
/* The summed gradients of what this rank updates. */
float *ls_shard_own_gradients(const struct ls_shard *shard, const struct shard_block *block);

/* Lets the communication stream go on with what `complete` marks on the compute stream. */
void ls_shard_hand_over(struct ls_shard *shard, struct ls_event *complete);
/* Makes the compute stream wait for the communication stream, and measures on that stream how long it did. */
void ls_shard_wait_for(struct ls_shard *shard, struct ls_event *event);

#endif
