/* Element by element: sums, conversions, GELU, SwiGLU, rotary embedding, epilogues of products. A thread has one pack
 * of elements; the last one of a row or array may be broken. */
#include "worker/device/cuda/element.h"

namespace {

constexpr int THREADS = 256;

__device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

/* As on CPUs: x sigmoid(w), w = 2 sqrt(2/pi) (x + 0.044715 x^3). */
__device__ __forceinline__ float gelu(float x) {
    return x * sigmoid(x * (1.59576912f + 0.0713548163f * x * x));
}

/* d/dx x sigmoid(w) = s + x s (1 - s) w'. Beyond |x| = 20 the derivative is 1 or 0 to the last bit; holding x^2 there
 * keeps 0 times infinity out. */
__device__ __forceinline__ float gelu_derivative(float x) {
    const float square = fminf(x * x, 400.0f);
    const float e = expf(-x * (1.59576912f + 0.0713548163f * square)), s = 1.0f / (1.0f + e);
    const float one_minus_s = x > 0.0f ? e * s : 1.0f - s;
    return s + x * s * one_minus_s * (1.59576912f + 0.214064449f * square);
}

/* f(first, valid) for each pack of N elements of [0, count); `valid` of them are there. */
template <int N, typename F> __global__ void __launch_bounds__(THREADS, 4) each_pack(int64_t count, F f) {
    for (int64_t first = ls_grid_thread() * N; first < count; first += ls_grid_threads() * N) {
        if (first + N <= count) {
            f.template operator()<N>(first);
        } else {
            for (int64_t i = first; i < count; i++) f.template operator()<1>(i);
        }
    }
}

/* Whole packs of `pack` elements when `aligned`, else single elements. */
template <int PACK, typename F> cudaError_t put_each(int64_t count, bool aligned, F f, cudaStream_t stream) {
    if (count <= 0) return cudaSuccess;
    if (aligned) return LS_LAUNCH((each_pack<PACK, F>), ls_blocks(count, THREADS * PACK), THREADS, 0, stream, count, f);
    return LS_LAUNCH((each_pack<1, F>), ls_blocks(count, THREADS), THREADS, 0, stream, count, f);
}

template <typename T> struct add {
    T *sum;
    const T *a, *b;
    template <int N> __device__ void operator()(int64_t i) const {
        float x[N], y[N];
        ls_load(x, a + i);
        ls_load(y, b + i);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] += y[k];
        ls_store(sum + i, x);
    }
};

template <typename T> struct narrow {
    T *output;
    const float *input;
    template <int N> __device__ void operator()(int64_t i) const {
        float x[N];
        ls_load(x, input + i);
        ls_store(output + i, x);
    }
};

template <typename T> struct widen {
    float *output;
    const T *input;
    bool accumulate;
    template <int N> __device__ void operator()(int64_t i) const {
        float x[N], y[N];
        ls_load(x, input + i);
        if (accumulate) {
            ls_load(y, output + i);
#pragma unroll
            for (int k = 0; k < N; k++) x[k] += y[k];
        }
        ls_store(output + i, x);
    }
};

template <typename T> struct sum_parts {
    T *sum;
    const T *parts;
    int64_t stride;
    int part_count;
    template <int N> __device__ void operator()(int64_t i) const {
        float x[N], y[N];
        ls_load(x, parts + i);
        for (int part = 1; part < part_count; part++) {
            ls_load(y, parts + part * stride + i);
#pragma unroll
            for (int k = 0; k < N; k++) x[k] += y[k];
        }
        ls_store(sum + i, x);
    }
};

template <typename T> struct gelu_forward {
    T *output;
    const T *input;
    template <int N> __device__ void operator()(int64_t i) const {
        float x[N];
        ls_load(x, input + i);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = gelu(x[k]);
        ls_store(output + i, x);
    }
};

template <typename T> struct gelu_backward {
    T *input_gradient;
    const T *output_gradient, *input;
    template <int N> __device__ void operator()(int64_t i) const {
        float x[N], d[N];
        ls_load(x, input + i);
        ls_load(d, output_gradient + i);
#pragma unroll
        for (int k = 0; k < N; k++) d[k] *= gelu_derivative(x[k]);
        ls_store(input_gradient + i, d);
    }
};

/* Packs of [rows, columns]; a pack does not cross rows, since columns are a multiple of N or N is 1. */
template <typename T> struct swiglu_forward {
    T *output;
    const T *gate_up;
    int64_t columns;
    template <int N> __device__ void operator()(int64_t i) const {
        const T *gate = gate_up + i / columns * columns + i;
        float x[N], up[N];
        ls_load(x, gate);
        ls_load(up, gate + columns);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = x[k] * sigmoid(x[k]) * up[k];
        ls_store(output + i, x);
    }
};

template <typename T> struct swiglu_backward {
    T *gate_up_gradient;
    const T *output_gradient, *gate_up;
    int64_t columns;
    template <int N> __device__ void operator()(int64_t i) const {
        const int64_t at = i / columns * columns + i;
        float gate[N], up[N], d[N];
        ls_load(gate, gate_up + at);
        ls_load(up, gate_up + at + columns);
        ls_load(d, output_gradient + i);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float s = sigmoid(gate[k]), gradient = d[k] * up[k] * s * (1.0f + gate[k] * (1.0f - s));
            up[k] = d[k] * gate[k] * s;
            gate[k] = gradient;
        }
        ls_store(gate_up_gradient + at, gate);
        ls_store(gate_up_gradient + at + columns, up);
    }
};

/* Item i is channel i % pairs of the first half of a head; its partner in the second lies `pairs` further. */
template <typename T> struct rope {
    T *x;
    const float *table;
    int64_t length, heads, pairs, stride, first_position;
    float sign;
    template <int N> __device__ void operator()(int64_t i) const {
        const int64_t channel = i % pairs, head = i / pairs % heads, row = i / pairs / heads;
        const float *angles = table + ((first_position + row % length) * pairs + channel) * 2;
        T *at = x + row * stride + head * 2 * pairs + channel;
        float first[N], second[N], angle[2 * N];
        ls_load(first, at);
        ls_load(second, at + pairs);
        if constexpr (N == 1) {
            angle[0] = angles[0];
            angle[1] = angles[1];
        } else {
            ls_load(angle, angles);
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float cosine = angle[2 * k], sine = sign * angle[2 * k + 1], a = first[k], b = second[k];
            first[k] = a * cosine - b * sine;
            second[k] = b * cosine + a * sine;
        }
        ls_store(at, first);
        ls_store(at + pairs, second);
    }
};

/* Item i is element i % n of row i / n. */
template <typename T> struct epilogue {
    T *c, *aux;
    const T *bias;
    int64_t n, ldc;
    enum ls_epilogue kind;
    template <int N> __device__ void operator()(int64_t i) const {
        const int64_t column = i % n, at = i / n * ldc + column;
        float x[N], other[N];
        ls_load(x, c + at);
        if (kind == LS_EPILOGUE_GELU_GRAD) {
            ls_load(other, aux + at);
#pragma unroll
            for (int k = 0; k < N; k++) x[k] *= gelu_derivative(other[k]);
        } else {
            ls_load(other, bias + column);
#pragma unroll
            for (int k = 0; k < N; k++) x[k] += other[k];
        }
        if (kind == LS_EPILOGUE_BIAS_GELU) {
            ls_store(aux + at, x);
#pragma unroll
            for (int k = 0; k < N; k++) x[k] = gelu(ls_rounded<T>(x[k]));
        }
        ls_store(c + at, x);
    }
};

/* Elements a thread has where one side is fp32 and the other T: a whole access of the narrower one. */
template <typename T> constexpr int mixed_pack = ls_pack<T>;

} // namespace

cudaError_t ls_cuda_add(const struct ls_op_add *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const add<T> f = {static_cast<T *>(op->sum), static_cast<const T *>(op->a), static_cast<const T *>(op->b)};
        return put_each<ls_pack<T>>(op->count, ls_aligned(f.sum, f.a, f.b), f, stream);
    });
}

cudaError_t ls_cuda_convert(const struct ls_op_convert *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const narrow<T> f = {static_cast<T *>(op->output), op->input};
        return put_each<mixed_pack<T>>(op->count, ls_aligned(f.output, f.input), f, stream);
    });
}

cudaError_t ls_cuda_widen(const struct ls_op_widen *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const widen<T> f = {op->output, static_cast<const T *>(op->input), op->accumulate};
        return put_each<mixed_pack<T>>(op->count, ls_aligned(f.output, f.input), f, stream);
    });
}

cudaError_t ls_cuda_sum_parts(const struct ls_cuda_parts *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const sum_parts<T> f = {static_cast<T *>(op->sum), static_cast<const T *>(op->parts), op->stride,
                                op->part_count};
        const bool aligned = ls_aligned(f.sum, f.parts) && op->stride % ls_pack<T> == 0;
        return put_each<ls_pack<T>>(op->count, aligned, f, stream);
    });
}

cudaError_t ls_cuda_gelu_forward(const struct ls_op_gelu_forward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const gelu_forward<T> f = {static_cast<T *>(op->output), static_cast<const T *>(op->input)};
        return put_each<ls_pack<T>>(op->count, ls_aligned(f.output, f.input), f, stream);
    });
}

cudaError_t ls_cuda_gelu_backward(const struct ls_op_gelu_backward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const gelu_backward<T> f = {static_cast<T *>(op->input_gradient), static_cast<const T *>(op->output_gradient),
                                    static_cast<const T *>(op->input)};
        return put_each<ls_pack<T>>(op->count, ls_aligned(f.input_gradient, f.output_gradient, f.input), f, stream);
    });
}

cudaError_t ls_cuda_swiglu_forward(const struct ls_op_swiglu_forward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const swiglu_forward<T> f = {static_cast<T *>(op->output), static_cast<const T *>(op->gate_up), op->columns};
        const bool aligned = ls_aligned(f.output, f.gate_up) && op->columns % ls_pack<T> == 0;
        return put_each<ls_pack<T>>(op->rows * op->columns, aligned, f, stream);
    });
}

cudaError_t ls_cuda_swiglu_backward(const struct ls_op_swiglu_backward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const swiglu_backward<T> f = {static_cast<T *>(op->gate_up_gradient),
                                      static_cast<const T *>(op->output_gradient), static_cast<const T *>(op->gate_up),
                                      op->columns};
        const bool aligned =
            ls_aligned(f.gate_up_gradient, f.output_gradient, f.gate_up) && op->columns % ls_pack<T> == 0;
        return put_each<ls_pack<T>>(op->rows * op->columns, aligned, f, stream);
    });
}

cudaError_t ls_cuda_rope(const struct ls_op_rope *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const int64_t pairs = op->head_size / 2;
        const rope<T> f = {
            static_cast<T *>(op->x),   op->table, op->length, op->heads, pairs, op->stride, op->first_position,
            op->inverse ? -1.0f : 1.0f};
        const bool aligned = ls_aligned(f.x, f.table) && pairs % ls_pack<T> == 0 && op->stride % ls_pack<T> == 0;
        return put_each<ls_pack<T>>(op->rows * op->heads * pairs, aligned, f, stream);
    });
}

cudaError_t ls_cuda_epilogue(const struct ls_op_gemm *op, cudaStream_t stream) {
    if (op->epilogue == LS_EPILOGUE_NONE) return cudaSuccess;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const epilogue<T> f = {static_cast<T *>(op->c),
                               static_cast<T *>(op->aux),
                               static_cast<const T *>(op->bias),
                               op->n,
                               op->ldc,
                               op->epilogue};
        const bool aligned = ls_aligned(f.c, f.aux, f.bias) && op->n % ls_pack<T> == 0 && op->ldc % ls_pack<T> == 0;
        return put_each<ls_pack<T>>(op->m * op->n, aligned, f, stream);
    });
}
