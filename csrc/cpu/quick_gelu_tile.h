// x·σ(1.702 x) and its gradient over a stretch of elements, compiled once per SIMD_LEVEL (simd.h).
#include "simd.h"

#ifndef CLIPFAST_QUICK_GELU_COMMON
#define CLIPFAST_QUICK_GELU_COMMON

#include <algorithm>

namespace clipfast {

// to[i] from x[i] and, in the backward, d_y[i]; the forward gets null.
template <typename T>
using QuickGeluPass = void (*)(const T* d_y, const T* x, T* to, int64_t n);

}  // namespace clipfast

#endif  // CLIPFAST_QUICK_GELU_COMMON

namespace clipfast::SIMD_NAMESPACE {

constexpr Real kSlope = Real(1.702);

SIMD_INLINE Vec sigmoid(Vec z) {
    // Below this the result is less than 1e-36, and e^-z would overflow before long.
    const Vec bounded = select(z < splat(Real(-84)), splat(Real(-84)), z);
    return 1 / (1 + exponential({-bounded, splat(1), Vec{}}, 0));
}

SIMD_FUNCTION void quick_gelu_forward(const Real*, const Real* x, Real* y, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes, n - i));
        const Vec at = load(x + i, count);
        store(y + i, at * sigmoid(at * kSlope), count);
    }
}

SIMD_FUNCTION void quick_gelu_backward(const Real* d_y, const Real* x, Real* d_x, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes, n - i));
        const Vec z = load(x + i, count) * kSlope, s = sigmoid(z);
        store(d_x + i, load(d_y + i, count) * s * (1 + z * (1 - s)), count);
    }
}

}  // namespace clipfast::SIMD_NAMESPACE
