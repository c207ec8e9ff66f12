// BatchNorm's passes over rows of C channels each, compiled once per SIMD_LEVEL (simd.h).
#include "simd.h"

#ifndef CLIPFAST_BATCH_NORM_COMMON
#define CLIPFAST_BATCH_NORM_COMMON

#include <algorithm>

namespace clipfast {

// y = relu?((x − mean)·gain + bias), channel by channel.
template <typename T>
struct ChannelMap {
    const T *mean, *gain, *bias;  // (C,)
    int64_t channels;
    bool relu;
};

// Rows are (rows, C), one after the other; scratch has 3·C values.
template <typename T>
struct BatchNormPasses {
    // mean and m2 (C,), m2 = Σ(x − mean)².
    void (*moments)(const T* x, int64_t rows, int64_t channels, T* scratch, double* mean,
                    double* m2);
    void (*apply)(const T* x, int64_t rows, const ChannelMap<T>& map, T* y);
    // plain (C,) = Σg and centred (C,) = Σg·(x − mean), g = d_y where y > 0, or everywhere.
    void (*sums)(const T* d_y, const T* x, int64_t rows, const ChannelMap<T>& map, T* scratch,
                 double* plain, double* centred);
    // d_x = gain·(g − offset − (x − mean)·slope).
    void (*gradient)(const T* d_y, const T* x, int64_t rows, const ChannelMap<T>& map,
                     const T* offset, const T* slope, T* d_x);
};

}  // namespace clipfast

#endif  // CLIPFAST_BATCH_NORM_COMMON

namespace clipfast::SIMD_NAMESPACE {

constexpr int64_t kShiftRows = 8;

SIMD_INLINE int count_at(int64_t channel, int64_t channels) {
    return static_cast<int>(std::min<int64_t>(kLanes, channels - channel));
}

// Sums of x − shift and of its square, the shift near the mean: no digits cancel, one pass.
SIMD_FUNCTION void batch_norm_moments(const Real* x, int64_t rows, int64_t channels, Real* scratch,
                                      double* mean, double* m2) {
    Real *shift = scratch, *sum = scratch + channels, *square = scratch + 2 * channels;
    std::fill(scratch, scratch + 3 * channels, Real(0));
    const int64_t first = std::min(rows, kShiftRows);
    for (int64_t r = 0; r < first; ++r) {
        for (int64_t c = 0; c < channels; ++c) shift[c] += x[r * channels + c] / first;
    }
    for (int64_t r = 0; r < rows; r += 4) {
        const int64_t here = std::min<int64_t>(4, rows - r);
        const Real* row = x + r * channels;
        for (int64_t c = 0; c < channels; c += kLanes) {
            const int n = count_at(c, channels);
            const Vec k = load(shift + c, n);
            Vec s{}, q{};
            for (int64_t i = 0; i < here; ++i) {
                const Vec d = load(row + i * channels + c, n) - k;
                s += d;
                q = fused(d, d, q);
            }
            store(sum + c, load(sum + c, n) + s, n);
            store(square + c, load(square + c, n) + q, n);
        }
    }
    for (int64_t c = 0; c < channels; ++c) {
        mean[c] = shift[c] + double(sum[c]) / rows;
        m2[c] = square[c] - double(sum[c]) * sum[c] / rows;
        if (m2[c] < 0) m2[c] = 0;
    }
}

SIMD_INLINE Vec mapped(Vec centred, const ChannelMap<Real>& map, int64_t c, int n) {
    return fused(centred, load(map.gain + c, n), load(map.bias + c, n));
}

SIMD_FUNCTION void batch_norm_apply(const Real* x, int64_t rows, const ChannelMap<Real>& map,
                                    Real* y) {
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = r * map.channels;
        for (int64_t c = 0; c < map.channels; c += kLanes) {
            const int n = count_at(c, map.channels);
            const Vec v = mapped(load(x + row + c, n) - load(map.mean + c, n), map, c, n);
            store(y + row + c, map.relu ? maximum(Vec{}, v) : v, n);
        }
    }
}

// What comes through the ReLU.
SIMD_INLINE Vec passed(Vec d_y, Vec centred, const ChannelMap<Real>& map, int64_t c, int n) {
    return map.relu ? select(mapped(centred, map, c, n) <= 0, Vec{}, d_y) : d_y;
}

SIMD_FUNCTION void batch_norm_sums(const Real* d_y, const Real* x, int64_t rows,
                                   const ChannelMap<Real>& map, Real* scratch, double* plain,
                                   double* centred) {
    const int64_t channels = map.channels;
    Real *sum = scratch, *product = scratch + channels;
    std::fill(scratch, scratch + 2 * channels, Real(0));
    for (int64_t r = 0; r < rows; r += 4) {
        const int64_t here = std::min<int64_t>(4, rows - r);
        for (int64_t c = 0; c < channels; c += kLanes) {
            const int n = count_at(c, channels);
            const Vec mean = load(map.mean + c, n);
            Vec s{}, p{};
            for (int64_t i = 0; i < here; ++i) {
                const int64_t at = (r + i) * channels + c;
                const Vec d = load(x + at, n) - mean;
                const Vec g = passed(load(d_y + at, n), d, map, c, n);
                s += g;
                p = fused(g, d, p);
            }
            store(sum + c, load(sum + c, n) + s, n);
            store(product + c, load(product + c, n) + p, n);
        }
    }
    for (int64_t c = 0; c < channels; ++c) {
        plain[c] = sum[c];
        centred[c] = product[c];
    }
}

SIMD_FUNCTION void batch_norm_gradient(const Real* d_y, const Real* x, int64_t rows,
                                       const ChannelMap<Real>& map, const Real* offset,
                                       const Real* slope, Real* d_x) {
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = r * map.channels;
        for (int64_t c = 0; c < map.channels; c += kLanes) {
            const int n = count_at(c, map.channels);
            const Vec d = load(x + row + c, n) - load(map.mean + c, n);
            const Vec g = passed(load(d_y + row + c, n), d, map, c, n);
            const Vec rest = g - load(offset + c, n) - d * load(slope + c, n);
            store(d_x + row + c, load(map.gain + c, n) * rest, n);
        }
    }
}

constexpr BatchNormPasses<Real> kBatchNorm = {batch_norm_moments, batch_norm_apply, batch_norm_sums,
                                              batch_norm_gradient};

}  // namespace clipfast::SIMD_NAMESPACE
