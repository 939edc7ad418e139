/* Activation functions of one value, vectorisable inside a `#pragma omp simd` loop. Errors are a few units in the last
 * place. */
#ifndef LS_WORKER_DEVICE_CPU_ACTIVATION_H
#define LS_WORKER_DEVICE_CPU_ACTIVATION_H

#include "worker/device/cpu/exponential.h"

/* 1 / (1 + exp(-x)). */
static inline float ls_sigmoid(float x) {
    return 1.0f / (1.0f + ls_exp(-x));
}

/* Since 0.5 (1 + tanh u) = sigmoid(2 u), the tanh form of GELU is x sigmoid(2 u) with u = sqrt(2/pi) (x + 0.044715
 * x^3): one exponential and no cancellation for negative x. The constants are 2 sqrt(2/pi) and that times 0.044715. */
static inline float ls_gelu(float x) {
    return x * ls_sigmoid(x * (1.59576912f + 0.0713548163f * x * x));
}

/* d/dx x sigmoid(w) = s + x s (1 - s) w', w' = 2 sqrt(2/pi) (1 + 3 * 0.044715 x^2); 1 - s is exp(-w) s. Beyond |x| = 20
 * the derivative is 1 or 0 to the last bit; holding x^2 there keeps w' from outgrowing the ends of ls_exp's range. */
static inline float ls_gelu_derivative(float x) {
    float square = x * x;
    square = square > 400.0f ? 400.0f : square;
    const float e = ls_exp(-x * (1.59576912f + 0.0713548163f * square));
    const float s = 1.0f / (1.0f + e);
    return s + x * s * (e * s) * (1.59576912f + 0.214064449f * square);
}

#endif
