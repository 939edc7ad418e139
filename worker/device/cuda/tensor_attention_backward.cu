/* Causal attention on tensor cores, backward (Dao 2022, algorithm 4) in two passes, each of which writes what is its
 * own: the gradient of the queries, a block per tile of queries; those of keys and values, a block per tile of keys,
 * which meets the query heads and tiles in order. Scores are made twice; there are no atomics. In the second pass they
 * are made transposed, a row for each key, so that they are factors of the next products in the registers where they
 * are. Probabilities and the gradients of scores are rounded to 16 bits for those. */
#include "worker/device/cuda/attention.h"
#include "worker/device/cuda/tensor.h"

namespace {

constexpr int THREADS = 128, WARPS = THREADS / LS_WARP;

/* One head's tiles in shared memory, two of what the passes walk over: one is used, the next arrives. */
template <int SIZE> struct query_pass {
    static constexpr int M = 2, ROWS = WARPS * 16 * M, KEYS = SIZE == 64 ? 64 : 32, AT_ONCE = 32;
    static constexpr int TILES = (2 * ROWS + 4 * KEYS) * SIZE * 2, BYTES = TILES + 3 * ROWS * 4;
};
template <int SIZE> struct key_pass {
    static constexpr int M = SIZE == 64 ? 2 : 1, ROWS = WARPS * 16 * M, QUERIES = SIZE == 64 ? 64 : 32, AT_ONCE = 32;
    static constexpr int TILES = (2 * ROWS + 4 * QUERIES) * SIZE * 2, BYTES = TILES + 2 * 3 * QUERIES * 4;
};

template <typename T, int SIZE>
__global__ void __launch_bounds__(THREADS, 2) query_gradient(ls_attention<T> p, ls_attention_order order) {
    using pass = query_pass<SIZE>;
    constexpr int M = pass::M, ROWS = pass::ROWS, KEYS = pass::KEYS, N = pass::AT_ONCE / 8;
    LS_DYNAMIC_SHARED(T, shared);
    T *const queries = shared, *const d_outputs = queries + ROWS * SIZE, *const pairs = d_outputs + ROWS * SIZE;
    float *const lse = reinterpret_cast<float *>(reinterpret_cast<char *>(shared) + pass::TILES), *const product =
                                                                                                      lse + ROWS;
    int32_t *const starts = reinterpret_cast<int32_t *>(product + ROWS);
    const ls_attention_place at_grid = ls_attention_at(order, blockIdx.x);
    const int64_t head = at_grid.pair % p.heads, b = at_grid.pair / p.heads;
    const int q0 = (order.tiles - 1 - at_grid.tile) * ROWS, /* the last ones, which see the most keys, first */
        queries_left = static_cast<int>(p.query_length) - q0, rows = queries_left < ROWS ? queries_left : ROWS,
              last = q0 + rows;
    const int32_t *start = p.document_start ? p.document_start + b * p.query_length + q0 : nullptr;
    const int64_t kv = b * p.kv_batch_stride + head / (p.heads / p.kv_heads) * p.size;
    const int64_t at_q = b * p.q_batch_stride + q0 * p.q_stride + head * p.size;
    const int first = static_cast<int>(ls_first_key(start));
    using reader = ls_tile_reader<THREADS, SIZE, T>;
    reader(p.q + at_q, p.q_stride, rows, p.size).template read<ROWS>(queries, p.q_stride);
    reader(p.d_output + b * p.output_batch_stride + q0 * p.output_stride + head * p.size, p.output_stride, rows, p.size)
        .template read<ROWS>(d_outputs, p.output_stride);
    reader next(p.k + kv + first * p.kv_stride, p.kv_stride, last - first, p.size);
    next.template read<KEYS, 2>(pairs, p.kv_stride, ls_distance(p.k, p.v));

    const float scale = p.scale * LS_LOG2_E;
    const int own = static_cast<int>(threadIdx.x) / LS_WARP * 16 * M, own_rows = rows - own;
    /* Behind the last row everything is zero, and adds nothing. */
    static_assert(ROWS == THREADS, "a thread has a row");
    const int row_of_thread = static_cast<int>(threadIdx.x);
    const bool there = row_of_thread < rows;
    const int64_t item = (b * p.heads + head) * p.query_length + q0 + row_of_thread;
    lse[row_of_thread] = there ? p.lse[item] * LS_LOG2_E : 0.0f;
    product[row_of_thread] = there ? p.product[item] : 0.0f;
    starts[row_of_thread] = start ? start[there ? row_of_thread : rows - 1] : 0;
    float dq[M][SIZE / 8][4] = {};
    for (int k0 = first, place = 0; k0 < last; k0 += KEYS, place ^= 1) {
        ls_copies_wait();
        __syncthreads(); /* these keys and values are there; those before them have been read */
        const T *const keys = pairs + place * 2 * KEYS * SIZE, *const values = keys + KEYS * SIZE;
        if (k0 + KEYS < last)
            next.template read<KEYS, 2>(pairs + (place ^ 1) * 2 * KEYS * SIZE, p.kv_stride, ls_distance(p.k, p.v));
#pragma unroll 1
        for (int at = 0; at < KEYS; at += pass::AT_ONCE) {
            const int k = k0 + at;
            if (own_rows <= 0 || k >= q0 + own + 16 * M || k + pass::AT_ONCE <= starts[own]) continue;
            float s[M][N][4] = {}, ds[M][N][4] = {};
            ls_multiply_rows<SIZE>(s, queries, own, keys, at);
            ls_multiply_rows<SIZE>(ds, d_outputs, own, values, at);
            const int lane = ls_made_anew(ls_lane());
            if (k + pass::AT_ONCE - 1 > q0 + own || k < starts[own + 16 * M - 1]) {
#pragma unroll
                for (int i = 0; i < 2 * M; i++) {
                    const int row = own + ls_row_of(i, lane), low = starts[row], high = q0 + row;
#pragma unroll
                    for (int n = 0; n < N; n++)
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            const int key = k + n * 8 + lane % 4 * 2 + e;
                            if (key < low || key > high) s[i / 2][n][i % 2 * 2 + e] = -INFINITY;
                        }
                }
            }
#pragma unroll
            for (int i = 0; i < 2 * M; i++) {
                const int row = own + ls_row_of(i, lane);
                const float base = lse[row], sum = product[row];
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float &d = ds[i / 2][n][i % 2 * 2 + e];
                        d = ls_power_of_two(s[i / 2][n][i % 2 * 2 + e] * scale - base) * (d - sum);
                    }
            }
            unsigned rounded[N / 2][M][4];
            ls_round<T>(rounded, ds);
            ls_multiply_add<SIZE>(dq, rounded, keys, at);
        }
    }
    if (own_rows <= 0) return;
    const float factor[2 * M] = {p.scale, p.scale, p.scale, p.scale};
    ls_store_rows<SIZE>(p.dq + at_q + own * p.q_stride, p.q_stride, own_rows, p.size, queries, own, dq, factor);
}

template <typename T, int SIZE>
__global__ void __launch_bounds__(THREADS, 2) key_gradients(ls_attention<T> p, ls_attention_order order) {
    using pass = key_pass<SIZE>;
    constexpr int M = pass::M, ROWS = pass::ROWS, QUERIES = pass::QUERIES, N = pass::AT_ONCE / 8;
    LS_DYNAMIC_SHARED(T, shared);
    T *const keys = shared, *const values = keys + ROWS * SIZE, *const pairs = values + ROWS * SIZE;
    float *const scalars = reinterpret_cast<float *>(reinterpret_cast<char *>(shared) + pass::TILES);
    const ls_attention_place at_grid = ls_attention_at(order, blockIdx.x);
    const int64_t kv_head = at_grid.pair % p.kv_heads, b = at_grid.pair / p.kv_heads;
    const int k0 = at_grid.tile * ROWS; /* the first ones are seen by the most queries */
    const int length = static_cast<int>(p.query_length), rows = length - k0 < ROWS ? length - k0 : ROWS;
    const int group = static_cast<int>(p.heads / p.kv_heads);
    const int32_t *start = p.document_start ? p.document_start + b * p.query_length : nullptr;
    const int64_t at_kv = b * p.kv_batch_stride + k0 * p.kv_stride + kv_head * p.size;
    using reader = ls_tile_reader<THREADS, SIZE, T>;
    reader(p.k + at_kv, p.kv_stride, rows, p.size).template read<ROWS, 2>(keys, p.kv_stride, ls_distance(p.k, p.v));

    /* Tiles of queries, from the first on, whose first query may see one of the keys: documents only ever begin later.
     */
    static_assert(ROWS % QUERIES == 0, "tiles of queries begin where those of keys do");
    int steps = (length - k0 + QUERIES - 1) / QUERIES;
    if (start) {
        int seen = 0;
        for (int i = static_cast<int>(threadIdx.x); i < steps; i += THREADS)
            seen += start[k0 + i * QUERIES] < k0 + rows;
        steps = ls_block_sum<THREADS>(seen);
    }

    /* A step's queries, gradients of outputs, and of each query its lse, product and document's start, to one of two
     * places. */
    const auto copy_step = [&](int h, int q0, int place) {
        T *const to = pairs + place * 2 * QUERIES * SIZE;
        const int64_t head = kv_head * group + h, item = (b * p.heads + head) * p.query_length + q0;
        const int left = length - q0, count = left < QUERIES ? left : QUERIES;
        reader(p.q + b * p.q_batch_stride + q0 * p.q_stride + head * p.size, p.q_stride, count, p.size)
            .template read<QUERIES>(to, p.q_stride);
        reader(p.d_output + b * p.output_batch_stride + q0 * p.output_stride + head * p.size, p.output_stride, count,
               p.size)
            .template read<QUERIES>(to + QUERIES * SIZE, p.output_stride);
        const int own = static_cast<int>(threadIdx.x);
        if (own >= QUERIES) return;
        const int row = own < count ? own : count - 1;
        float *const scalar = scalars + place * 3 * QUERIES + own;
        ls_copy_aside<4>(scalar, p.lse + item + row, own < count);
        ls_copy_aside<4>(scalar + QUERIES, p.product + item + row, own < count);
        ls_copy_aside<4>(scalar + 2 * QUERIES, start ? start + q0 + row : nullptr, start != nullptr);
    };
    const int end = k0 + steps * QUERIES;
    copy_step(0, k0, 0);

    const float scale = p.scale * LS_LOG2_E;
    const int own = static_cast<int>(threadIdx.x) / LS_WARP * 16 * M, own_rows = rows - own;
    const int warp_low = k0 + own, warp_high = warp_low + 16 * M - 1;
    float dk[M][SIZE / 8][4] = {}, dv[M][SIZE / 8][4] = {};
    for (int h = 0, q0 = k0, place = 0; h < group; place ^= 1) {
        const int tile = q0;
        q0 += QUERIES;
        if (q0 == end) q0 = k0, h++;
        ls_copies_wait();
        __syncthreads(); /* these queries are there; those before them have been read */
        if (h < group) copy_step(h, q0, place ^ 1);
        const T *const queries = pairs + place * 2 * QUERIES * SIZE, *const d_outputs = queries + QUERIES * SIZE;
        const float *const lse = scalars + place * 3 * QUERIES, *const product = lse + QUERIES;
        const int32_t *const starts = reinterpret_cast<const int32_t *>(product + QUERIES);
#pragma unroll 1
        for (int at = 0; at < QUERIES; at += pass::AT_ONCE) {
            const int q = tile + at;
            if (own_rows <= 0 || q + pass::AT_ONCE <= warp_low) continue;
            if (starts[at] > warp_high) continue; /* all of these are in later documents */
            float s[M][N][4] = {}, ds[M][N][4] = {};
            ls_multiply_rows<SIZE>(s, keys, own, queries, at);
            ls_multiply_rows<SIZE>(ds, values, own, d_outputs, at);
            const int lane = ls_made_anew(ls_lane());
            if (q < warp_high || starts[at + pass::AT_ONCE - 1] > warp_low) {
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const int column = n * 8 + lane % 4 * 2 + e, document = starts[at + column];
#pragma unroll
                        for (int r = 0; r < 2 * M; r++) {
                            const int key = warp_low + ls_row_of(r, lane);
                            if (key > q + column || key < document) s[r / 2][n][r % 2 * 2 + e] = -INFINITY;
                        }
                    }
            }
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    /* Behind the last query everything is zero, and adds nothing. */
                    const int column = at + n * 8 + lane % 4 * 2 + e;
                    const float base = lse[column] * LS_LOG2_E, sum = product[column];
#pragma unroll
                    for (int r = 0; r < 2 * M; r++) {
                        float &x = s[r / 2][n][r % 2 * 2 + e], &d = ds[r / 2][n][r % 2 * 2 + e];
                        x = ls_power_of_two(x * scale - base);
                        d = x * (d - sum);
                    }
                }
            unsigned probabilities[N / 2][M][4], rounded[N / 2][M][4];
            ls_round<T>(probabilities, s);
            ls_round<T>(rounded, ds);
            ls_multiply_add<SIZE>(dv, probabilities, d_outputs, at);
            ls_multiply_add<SIZE>(dk, rounded, queries, at);
        }
    }
    if (own_rows <= 0) return;
    float one[2 * M], factor[2 * M];
#pragma unroll
    for (int i = 0; i < 2 * M; i++) one[i] = 1.0f, factor[i] = p.scale;
    ls_store_rows<SIZE>(p.dk + at_kv + own * p.kv_stride, p.kv_stride, own_rows, p.size, keys, own, dk, factor);
    ls_store_rows<SIZE>(p.dv + at_kv + own * p.kv_stride, p.kv_stride, own_rows, p.size, values, own, dv, one);
}

template <typename T, int SIZE> cudaError_t put(const ls_attention<T> &p, cudaStream_t stream) {
    constexpr int QUERY_BYTES = query_pass<SIZE>::BYTES, KEY_BYTES = key_pass<SIZE>::BYTES;
    const ls_attention_order queries = ls_attention_order_of(p, p.heads, query_pass<SIZE>::ROWS),
                             keys = ls_attention_order_of(p, p.kv_heads, key_pass<SIZE>::ROWS);
    cudaError_t error = LS_ALLOW_SHARED((query_gradient<T, SIZE>), QUERY_BYTES);
    if (error == cudaSuccess)
        error = LS_LAUNCH((query_gradient<T, SIZE>), ls_attention_blocks(queries), THREADS, QUERY_BYTES, stream, p,
                          queries);
    if (error == cudaSuccess) error = LS_ALLOW_SHARED((key_gradients<T, SIZE>), KEY_BYTES);
    if (error == cudaSuccess)
        error = LS_LAUNCH((key_gradients<T, SIZE>), ls_attention_blocks(keys), THREADS, KEY_BYTES, stream, p, keys);
    return error;
}

} // namespace

template <typename T> cudaError_t ls_tensor_attention_backward(const ls_attention<T> &p, cudaStream_t stream) {
    return p.size <= 64 ? put<T, 64>(p, stream) : put<T, 128>(p, stream);
}
template cudaError_t ls_tensor_attention_backward(const ls_attention<__nv_bfloat16> &p, cudaStream_t stream);
template cudaError_t ls_tensor_attention_backward(const ls_attention<__half> &p, cudaStream_t stream);
