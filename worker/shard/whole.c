/* Updates that need whole matrices (Muon), where ranks have slices. Layers are alike, so their slices are: in a round
 * every rank of the group sends every rank j its slice of layer j of the round, which makes it whole there, and gets
 * back its slices of all of them, orthogonal:
 *
 *     outgoing   [ own slice of layer 0 ][ of layer 1 ]   ->   whole   [ slice 0 ][ slice 1 ] of the own layer
 *     outgoing   [ slice 0 ][ slice 1 ], orthogonal       ->   whole   [ own slice of layer 0 ][ of layer 1 ]
 *
 * Where a round has fewer layers than there are ranks, they begin anew: rank j has layer j % layers, and those with the
 * same layer share its matrices. Who computes a matrix does not change its bits. A group of one rank sends nothing. */
#include "worker/optim/muon.h"
#include "worker/shard/state.h"

#include <assert.h>
#include <stdlib.h>

/* Matrices of a layer. */
enum { MATRICES_MAX = 16 };

/* Which layers pass together, and how many ranks they pass among. */
struct round {
    int first, count, ranks;
};

bool ls_shard_create_whole(struct ls_shard *shard) {
    if (!shard->cut.whole_matrices) return true;
    shard->whole.sent[0] = shard->whole.outgoing;
    shard->whole.parts = calloc((size_t)shard->cut.ranks, sizeof *shard->whole.parts);
    for (int64_t rank = 0; shard->whole.parts && rank < shard->cut.ranks; rank++) shard->whole.parts[rank] = 1;
    return shard->whole.parts != NULL;
}

void ls_shard_destroy_whole(struct ls_shard *shard) {
    free(shard->whole.parts);
}

static bool is_layer(const struct ls_model *model, int block) {
    return block < ls_model_block_count(model) && ls_model_block(model, block)->kind == LS_BLOCK_LAYER;
}

static struct round round_from(const struct ls_model *model, int64_t ranks, int first) {
    struct round round = {.first = first, .ranks = (int)ranks};
    while (round.count < ranks && is_layer(model, first + round.count)) round.count++;
    return round;
}

/* How many ranks have the layer at `place` of the round. */
static int sharers(const struct round *round, int place) {
    return round->ranks / round->count + (place < round->ranks % round->count);
}

/* Deals a layer's matrices to so many ranks, the largest first, each to the one with the least to do: shares[] by place
 * among the block's tensors, which begin with its matrices. Returns the most that one has to do. */
static double deal(const struct ls_config *config, const struct ls_model *model, int index, int ranks,
                   int shares[MATRICES_MAX]) {
    const struct ls_block *block = ls_model_block(model, index);
    double work[MATRICES_MAX], load[MATRICES_MAX] = {0}, most = 0;
    int matrices = 0;
    for (; matrices < block->tensor_count; matrices++) {
        const struct ls_tensor *tensor = ls_model_tensor(model, block->first_tensor + matrices);
        if (!ls_muon_is_for(config, block, tensor)) break;
        assert(matrices < MATRICES_MAX);
        work[matrices] = ls_muon_flops(tensor->shape[0], tensor->shape[1]);
        shares[matrices] = -1;
    }
    for (int dealt = 0; dealt < matrices; dealt++) {
        int next = -1, idle = 0;
        for (int i = 0; i < matrices; i++)
            if (shares[i] < 0 && (next < 0 || work[i] > work[next])) next = i;
        for (int rank = 1; rank < ranks && rank < MATRICES_MAX; rank++)
            if (load[rank] < load[idle]) idle = rank;
        shares[next] = idle;
        load[idle] += work[next];
        if (load[idle] > most) most = load[idle];
    }
    return most;
}

double ls_shard_update_flops(const struct ls_config *config, const struct ls_model *model, int64_t ranks) {
    const struct ls_shard_cut cut = ls_shard_cut(config, ranks);
    double flops = 0;
    int shares[MATRICES_MAX] = {0};
    for (int first = 1; cut.whole_matrices && is_layer(model, first);) {
        const struct round round = round_from(model, cut.ranks, first);
        flops += deal(config, model, first, sharers(&round, round.count - 1), shares);
        first += round.count;
    }
    return flops;
}

static void *element(const struct ls_shard *shard, void *values, int64_t index) {
    return (char *)values + index * ls_dtype_bytes(shard->cut.whole_dtype);
}

/* The own part of a matrix: elements [*first, *first + *count) of the block. */
static bool meet(const struct shard_block *block, const struct ls_tensor *tensor, int64_t *first, int64_t *count) {
    const int64_t own_end = block->own_first + block->own_count, end = tensor->offset + tensor->count;
    *first = block->own_first > tensor->offset ? block->own_first : tensor->offset;
    *count = (own_end < end ? own_end : end) - *first;
    return *count > 0;
}

/* The momentum of the own slice's matrices, to their place among what goes out, or, without others, of the layer. */
static void gain(struct ls_shard *shard, int index, void *output) {
    const struct shard_block *block = &shard->blocks[index];
    const struct scalars *scalars = shard->scalars;
    const int64_t left = block->decay_count - block->own_first;
    if (left <= 0) return;
    ls_op(shard->compute, momentum, .m = block->m, .output = output, .gradient = ls_shard_own_gradients(shard, block),
          .factor = &scalars->factor, .found_inf = &scalars->found_inf,
          .count = left < block->own_count ? left : block->own_count, .beta = (float)shard->config->optimizer.momentum,
          .dtype = shard->cut.whole_dtype);
}

static void gain_round(struct ls_shard *shard, const struct round *round) {
    const int64_t slice = shard->blocks[round->first].slice;
    const size_t bytes = (size_t)(slice * ls_dtype_bytes(shard->cut.whole_dtype));
    void *outgoing = shard->whole.outgoing;
    assert(round->count > 0);
    for (int i = 0; i < round->count; i++) {
        ls_shard_release_state(shard, round->first + i);
        gain(shard, round->first + i, round->ranks > 1 ? element(shard, outgoing, i * slice) : shard->whole.whole);
    }
    for (int rank = round->count; rank < round->ranks; rank++)
        ls_copy(shard->compute, element(shard, outgoing, rank * slice),
                element(shard, outgoing, rank % round->count * slice), bytes);
}

/* Starts to send slice j of what goes out to rank j. */
static void exchange(struct ls_shard *shard, const struct round *round) {
    const int64_t bytes = shard->blocks[round->first].slice * ls_dtype_bytes(shard->cut.whole_dtype);
    if (round->ranks == 1) return;
    ls_shard_hand_over(shard, shard->whole.complete);
    const struct ls_comm_exchange what = {.parts = shard->whole.parts,
                                          .buffers = shard->whole.sent,
                                          .received = shard->whole.whole,
                                          .stride = bytes,
                                          .bytes = bytes,
                                          .groups = 1};
    ls_comm_exchange(shard->comms.group, shard->communication, &what, round->first);
    ls_event_record(shard->whole.exchanged, shard->communication);
}

/* Where there are several groups each has the matrix, and their copies have to stay equal, whatever their threads. */
static void orthogonalize(struct ls_shard *shard, const struct ls_tensor *tensor) {
    const struct ls_muon_matrix matrix = {.x = element(shard, shard->whole.whole, tensor->offset),
                                          .result = element(shard, shard->whole.outgoing, tensor->offset),
                                          .rows = tensor->shape[0],
                                          .columns = tensor->shape[1],
                                          .gram = shard->whole.gram,
                                          .powers = shard->whole.powers,
                                          .squared = &shard->scalars->matrix,
                                          .partial = shard->partial,
                                          .any_order = !shard->cut.fixed,
                                          .by_shape = shard->cut.owners > shard->cut.ranks,
                                          .dtype = shard->cut.whole_dtype};
    ls_muon_orthogonalize(shard->compute, &matrix);
}

static void mark(const struct ls_shard *shard, int block) {
    struct ls_progress_record *record = shard->watch;
    if (record)
        ls_progress_mark(record, LS_PHASE_UPDATE, atomic_load_explicit(&record->step, memory_order_relaxed),
                         atomic_load_explicit(&record->micro_batch, memory_order_relaxed), (uint64_t)block);
}

/* This rank's share of its layer's matrices. */
static void orthogonalize_share(struct ls_shard *shard, const struct round *round) {
    assert(round->count > 0);
    const int rank = (int)shard->index, place = rank % round->count, index = round->first + place;
    const struct ls_block *block = ls_model_block(shard->model, index);
    int shares[MATRICES_MAX] = {0};
    deal(shard->config, shard->model, index, sharers(round, place), shares);
    for (int i = 0; i < block->tensor_count; i++) {
        const struct ls_tensor *tensor = ls_model_tensor(shard->model, block->first_tensor + i);
        if (!ls_muon_is_for(shard->config, block, tensor)) break;
        if (shares[i] != rank / round->count) continue;
        mark(shard, index);
        orthogonalize(shard, tensor);
    }
}

/* The own slice of the layer at `place` of the round: its matrices by what came back, the rest by AdamW. */
static void update_layer(struct ls_shard *shard, const struct round *round, int place) {
    const int index = round->first + place;
    const struct shard_block *block = &shard->blocks[index];
    const struct ls_block *shape = ls_model_block(shard->model, index);
    int shares[MATRICES_MAX] = {0};
    deal(shard->config, shard->model, index, sharers(round, place), shares);
    for (int i = 0; i < shape->tensor_count; i++) {
        const struct ls_tensor *tensor = ls_model_tensor(shard->model, shape->first_tensor + i);
        int64_t first, count;
        if (!ls_muon_is_for(shard->config, shape, tensor)) break;
        if (!meet(block, tensor, &first, &count)) continue;
        const int64_t from = (place + shares[i] * round->count) * block->slice + first - block->own_first;
        const struct ls_shard_range range = {.block = index,
                                             .first = first,
                                             .count = count,
                                             .rule = LS_UPDATE_GIVEN,
                                             .direction = round->ranks > 1
                                                              ? element(shard, shard->whole.whole, from)
                                                              : element(shard, shard->whole.outgoing, first),
                                             .scale = ls_muon_scale(tensor->shape[0], tensor->shape[1])};
        ls_shard_update_range(shard, &range);
    }
    const int64_t rest = block->own_first + block->own_count - block->second_first;
    if (rest > 0)
        ls_shard_update_range(
            shard, &(struct ls_shard_range){
                       .block = index, .first = block->second_first, .count = rest, .rule = LS_UPDATE_ADAMW});
}

int ls_shard_update_layers(struct ls_shard *shard, int first) {
    int spread = first;
    while (is_layer(shard->model, first)) {
        const struct round round = round_from(shard->model, shard->cut.ranks, first);
        gain_round(shard, &round);
        exchange(shard, &round);
        /* The gathers of the round before go beside the products of this one. */
        for (; spread < first; spread++) ls_shard_spread(shard, spread);
        if (round.ranks > 1) ls_shard_wait_for(shard, shard->whole.exchanged);
        orthogonalize_share(shard, &round);
        exchange(shard, &round);
        if (round.ranks > 1) ls_shard_wait_for(shard, shard->whole.exchanged);
        for (int place = 0; place < round.count; place++) update_layer(shard, &round, place);
        first += round.count;
    }
    for (; spread < first; spread++) ls_shard_spread(shard, spread);
    return first;
}

void ls_shard_rehearse(struct ls_shard *shard) {
    const struct ls_block *layer = ls_model_block(shard->model, 1);
    for (int i = 0; i < layer->tensor_count; i++) {
        const struct ls_tensor *tensor = ls_model_tensor(shard->model, layer->first_tensor + i);
        if (ls_muon_is_for(shard->config, layer, tensor)) orthogonalize(shard, tensor);
    }
}
