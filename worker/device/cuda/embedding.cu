/* Token and position embedding. Backward sorts the places of a micro-batch by token; what stands together then, a run
 * of places of one token in their order, is added to the token's row by one warp for each few channels, without
 * atomics. */
#include "worker/device/cuda/element.h"
#include "worker/device/cuda/workspace.h"

namespace {

constexpr int THREADS = 256;
/* MERGED sorted stretches of places become one at a time. Of a run's rows, which are added one after another, a warp
 * loads RUN_ROWS before it adds the first; of short runs' rows and those of the table SHORT_ROWS. */
constexpr int MERGED = 8, RUN_ROWS = 32, SHORT_ROWS = 16;
static_assert(RUN_ROWS == LS_WARP, "a lane has the key of each row");

template <typename T> struct table {
    T *output;
    const int32_t *tokens;
    const T *token, *position;
    int64_t rows, length, channels, first_position;
};

template <typename T, int N> __global__ void __launch_bounds__(THREADS) forward(table<T> t) {
    const int64_t count = t.rows * t.channels;
    for (int64_t i = ls_grid_thread() * N; i < count; i += ls_grid_threads() * N) {
        const int64_t row = i / t.channels, channel = i % t.channels;
        float x[N], p[N];
        ls_load(x, t.token + t.tokens[row] * t.channels + channel);
        if (t.position) {
            ls_load(p, t.position + (t.first_position + row % t.length) * t.channels + channel);
#pragma unroll
            for (int k = 0; k < N; k++) x[k] += p[k];
        }
        ls_store(t.output + i, x);
    }
}

/* A place and its token, which goes first: keys differ from one another, so that any sort of them is stable. */
using key = unsigned long long;
constexpr key NO_KEY = ~0ull;

__device__ __forceinline__ key key_of(int32_t token, int64_t place) {
    return static_cast<key>(token) << 32 | static_cast<key>(place);
}
__device__ __forceinline__ int32_t token_of(key k) { /* -1 of NO_KEY */
    return static_cast<int32_t>(k >> 32);
}
__device__ __forceinline__ int64_t place_of(key k) {
    return static_cast<int64_t>(k & 0xffffffffu);
}

/* A block sorts THREADS places: each goes behind those that it counts in front of itself. */
__global__ void __launch_bounds__(THREADS) sort_places(key *order, const int32_t *tokens, int64_t rows) {
    LS_SHARED(int32_t, near, [THREADS]);
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * THREADS, place = first + thread;
    const int32_t token = place < rows ? tokens[place] : INT32_MAX;
    near[thread] = token;
    __syncthreads();
    if (place >= rows) return;
    int before = 0;
#pragma unroll 8
    for (int i = 0; i < THREADS; i++) before += near[i] < token || (near[i] == token && i < thread);
    order[first + before] = key_of(token, place);
}

/* Makes one sorted stretch of every MERGED of `length` keys, a power of two: a key goes behind the smaller ones of
 * each, which it counts by halving all of them at once. */
__global__ void __launch_bounds__(THREADS) merge_places(key *to, const key *from, int64_t rows, int64_t length) {
    const int64_t i = ls_grid_thread();
    if (i >= rows) return;
    const key own = from[i];
    const int64_t first = i / (length * MERGED) * (length * MERGED);
    int64_t before[MERGED] = {}, place = first;
    for (int64_t half = length / 2; half > 0; half /= 2)
#pragma unroll
        for (int s = 0; s < MERGED; s++) {
            const int64_t at = first + s * length + before[s] + half - 1;
            if (at < rows && from[at] < own) before[s] += half;
        }
#pragma unroll
    for (int s = 0; s < MERGED; s++) {
        const int64_t at = first + s * length + before[s];
        place += before[s] + (at < rows && from[at] < own);
    }
    to[place] = own;
}

template <int BYTES> struct bits_of;
template <> struct bits_of<2> { using type = short; };
template <> struct bits_of<4> { using type = int; };
template <> struct bits_of<8> { using type = int2; };

/* A warp has the LS_WARP keys from `first` on, for LS_WARP * N channels: it adds the runs that begin there, the last
 * one to its end. The row of the table is added to as it is, row after row. Rows are kept as they were loaded until
 * they are added, so that nothing waits for one before all are on their way. */
template <typename T, int N> struct runs {
    using bits = typename bits_of<N * sizeof(T)>::type;
    float *gradient;
    const T *output_gradient;
    const key *order;
    int64_t rows, channels;
    int64_t channel; /* the lane's first of all, or of the last ones where there are no more: those are not stored */
    bool stores;
    key own;      /* of the lane's place among those that are looked at */
    float sum[N]; /* of the run that is open */

    __device__ __forceinline__ key fetch(int64_t first) const {
        const int64_t at = first + threadIdx.x % LS_WARP;
        return at < rows ? order[at] : NO_KEY;
    }
    __device__ __forceinline__ key key_at(int i) const {
        return __shfl_sync(LS_ALL_LANES, own, i);
    }
    __device__ __forceinline__ bits row(key k) const {
        return *reinterpret_cast<const bits *>(output_gradient + place_of(k) * channels + channel);
    }
    __device__ __forceinline__ float *table(int32_t token) const {
        return gradient + token * channels + channel;
    }
    __device__ __forceinline__ void add(const bits &row) {
        T values[N];
        memcpy(reinterpret_cast<char *>(values), &row, sizeof row);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += ls_to_float(values[k]);
    }
    __device__ __forceinline__ void close(int32_t token) const {
        if (stores) ls_store(table(token), sum);
    }

    /* Keys [begin, end), where each that has its bit in `heads` begins a run, the first one too. What is behind the end
     * is the last row once more. */
    __device__ __forceinline__ void add_short(int begin, int end, unsigned heads) {
        for (int base = begin; base < end; base += SHORT_ROWS) {
            bits loaded[SHORT_ROWS];
            float before[SHORT_ROWS][N] = {};
#pragma unroll
            for (int i = 0; i < SHORT_ROWS; i++) {
                const int at = base + i < end ? base + i : end - 1;
                const key k = key_at(at);
                loaded[i] = row(k);
                if (heads >> at & 1) ls_load(before[i], table(token_of(k)));
            }
#pragma unroll
            for (int i = 0; i < SHORT_ROWS; i++) {
                const int at = base + i;
                if (at >= end) break;
                if (heads >> at & 1) {
                    if (at > begin) close(token_of(key_at(at - 1)));
#pragma unroll
                    for (int k = 0; k < N; k++) sum[k] = before[i][k];
                }
                add(loaded[i]);
            }
        }
    }
    /* Keys [0, end), all of the open run; end may be 0. */
    __device__ __forceinline__ void add_long(int end) {
        bits loaded[RUN_ROWS];
        if (end == 0) return;
#pragma unroll
        for (int i = 0; i < RUN_ROWS; i++) loaded[i] = row(key_at(i < end ? i : end - 1));
#pragma unroll
        for (int i = 0; i < RUN_ROWS; i++)
            if (i < end) add(loaded[i]);
    }
};

/* Zeros of a mask below its lowest one; 32 of 0. */
__device__ __forceinline__ int zeros_below(unsigned mask) {
    return __popc((mask - 1) & ~mask);
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    token_backward(float *gradient, const T *output_gradient, const key *order, int64_t rows, int64_t channels) {
    const int lane = static_cast<int>(threadIdx.x) % LS_WARP;
    int64_t first = ls_grid_thread() / LS_WARP * LS_WARP;
    if (first >= rows) return;
    const int64_t channel = (static_cast<int64_t>(blockIdx.y) * LS_WARP + lane) * N, last = channels - N;
    runs<T, N> r = {gradient,        output_gradient, order, rows, channels, channel < last ? channel : last,
                    channel <= last, NO_KEY,          {}};
    r.own = r.fetch(first);
    int32_t before = __shfl_up_sync(LS_ALL_LANES, token_of(r.own), 1);
    if (lane == 0) before = first > 0 ? token_of(order[first - 1]) : -1;
    const unsigned heads = __ballot_sync(LS_ALL_LANES, token_of(r.own) != before);
    const int begin = zeros_below(heads), end = __popc(__ballot_sync(LS_ALL_LANES, r.own != NO_KEY));
    if (begin >= end) return; /* all are of a run that began before */
    key next = r.fetch(first + LS_WARP);
    r.add_short(begin, end, heads);
    const int32_t token = token_of(__shfl_sync(LS_ALL_LANES, r.own, end - 1));
    for (int same = end; same == LS_WARP;) {
        first += LS_WARP;
        r.own = next;
        next = r.fetch(first + LS_WARP);
        same = zeros_below(__ballot_sync(LS_ALL_LANES, token_of(r.own) != token));
        r.add_long(same);
    }
    r.close(token);
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    position_backward(float *gradient, const T *output_gradient, int64_t batch, int64_t row_elements) {
    for (int64_t i = ls_grid_thread() * N; i < row_elements; i += ls_grid_threads() * N) {
        float sum[N], x[N];
        ls_load(sum, gradient + i);
        for (int64_t b = 0; b < batch; b++) {
            ls_load(x, output_gradient + b * row_elements + i);
#pragma unroll
            for (int k = 0; k < N; k++) sum[k] += x[k];
        }
        ls_store(gradient + i, sum);
    }
}

} // namespace

cudaError_t ls_cuda_embedding_forward(const struct ls_op_embedding_forward *op, cudaStream_t stream) {
    const int64_t count = op->batch * op->length * op->channels;
    if (count <= 0) return cudaSuccess;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        constexpr int N = ls_pack<T>;
        const table<T> t = {static_cast<T *>(op->output),
                            op->tokens,
                            static_cast<const T *>(op->token_table),
                            static_cast<const T *>(op->position_table),
                            op->batch * op->length,
                            op->length,
                            op->channels,
                            op->first_position};
        if (ls_aligned(t.output, t.token, t.position) && op->channels % N == 0)
            return LS_LAUNCH((forward<T, N>), ls_blocks(count, THREADS * N), THREADS, 0, stream, t);
        return LS_LAUNCH((forward<T, 1>), ls_blocks(count, THREADS), THREADS, 0, stream, t);
    });
}

/* Puts the places in order of their tokens into the workspace; returns where. */
static cudaError_t put_order(const struct ls_op_embedding_backward *op, int64_t rows, const key **order,
                             cudaStream_t stream) {
    if (!op->workspace) return cudaErrorInvalidValue;
    key *from = static_cast<key *>(op->workspace), *to = from + rows;
    cudaError_t error = LS_LAUNCH(sort_places, ls_blocks(rows, THREADS), THREADS, 0, stream, from, op->tokens, rows);
    for (int64_t length = THREADS; length < rows && error == cudaSuccess; length *= MERGED) {
        error = LS_LAUNCH(merge_places, ls_blocks(rows, THREADS), THREADS, 0, stream, to, from, rows, length);
        key *const sorted = to;
        to = from;
        from = sorted;
    }
    *order = from;
    return error;
}

cudaError_t ls_cuda_embedding_backward(const struct ls_op_embedding_backward *op, cudaStream_t stream) {
    const int64_t rows = op->batch * op->length, row_elements = op->length * op->channels;
    if (rows <= 0 || op->channels <= 0) return cudaSuccess;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        constexpr int N = ls_pack<T>, FEW = N / 2; /* few: of a row, so that there is room for many rows */
        const T *gradient = static_cast<const T *>(op->output_gradient);
        cudaError_t error = cudaSuccess;
        if (op->token_gradient) {
            const key *order = nullptr;
            error = put_order(op, rows, &order, stream);
            if (error != cudaSuccess) return error;
            if (ls_aligned(op->token_gradient, gradient) && op->channels % FEW == 0)
                error = LS_LAUNCH((token_backward<T, FEW>),
                                  dim3(ls_blocks(rows, THREADS), ls_blocks(op->channels, LS_WARP * FEW)), THREADS, 0,
                                  stream, op->token_gradient, gradient, order, rows, op->channels);
            else
                error =
                    LS_LAUNCH((token_backward<T, 1>), dim3(ls_blocks(rows, THREADS), ls_blocks(op->channels, LS_WARP)),
                              THREADS, 0, stream, op->token_gradient, gradient, order, rows, op->channels);
        }
        if (error != cudaSuccess || !op->position_gradient) return error;
        if (ls_aligned(op->position_gradient, gradient) && row_elements % N == 0)
            return LS_LAUNCH((position_backward<T, N>), ls_blocks(row_elements, THREADS * N), THREADS, 0, stream,
                             op->position_gradient, gradient, op->batch, row_elements);
        return LS_LAUNCH((position_backward<T, 1>), ls_blocks(row_elements, THREADS), THREADS, 0, stream,
                         op->position_gradient, gradient, op->batch, row_elements);
    });
}
