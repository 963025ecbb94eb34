// Sixteen floats side by side: what the programs of this package compute with.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Anywhere __attribute__((vector_size(4 * LANES), aligned(4)));

inline Floats load(const float *from) { return *(const Anywhere *)from; }
inline Floats all(float value) { return Floats{} + value; }
// Of a pair with a NaN the second, as the processor's instructions have it: what may be one, and must stay so, comes second.
inline Floats largest(Floats a, Floats b) { return a > b ? a : b; }
inline Floats least(Floats a, Floats b) { return a < b ? a : b; }

inline Floats roots(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_sqrt_ps((__m512)x);
#else
    for (int lane = 0; lane < LANES; lane++) x[lane] = std::sqrt(x[lane]);
    return x;
#endif
}

inline Floats exponential(Floats x) {
    x = largest(all(-80.0f), least(all(80.0f), x)); // a NaN stays one
    Floats turns = (x * 1.44269504f + 12582912.0f) - 12582912.0f; // the nearest integer
    Floats r = x - turns * 0.693359375f + turns * 2.12194440e-4f;
    Floats y = all(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    Ints power = (__builtin_convertvector(turns, Ints) + 127) << 23;
    return y * (Floats)power;
}

inline float sum(Floats x) {
    typedef float Half __attribute__((vector_size(32)));
    typedef float Quarter __attribute__((vector_size(16)));
    Half h = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    Quarter q = __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
    return (q[0] + q[1]) + (q[2] + q[3]);
}

} // namespace
