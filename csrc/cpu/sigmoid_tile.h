// The epilogue of the sigmoid loss on a chunk of rows of a tile, once per SIMD_LEVEL (simd.h).
//
// Over negatives only (logits.h): loss softplus(z), gradient σ(z), both from e = e^{-|z|}, which
// neither overflows nor loses the small logits that most pairs have. sigmoid.cpp adds the positives.
#ifndef CLIPFAST_SIGMOID_TILE_COMMON
#define CLIPFAST_SIGMOID_TILE_COMMON

#include "prepare.h"

namespace clipfast {

template <typename T>
struct SigmoidChunk {
    Pairs<T> pairs;
    T bias, bias_low;       // what the bias lost in rounding
    const T* row_inv_norm;  // (n,)
    double* loss;           // (n,) Σ_j softplus(z_ij); added to
    double* d_bias;         // (n,) Σ_j σ(z_ij); added to, if the gradient is wanted
};

template <typename T>
struct SigmoidEpilogues {
    using Epilogue = void (*)(const Tile<T>&, const SigmoidChunk<T>&, int64_t, int64_t);
    Epilogue loss, gradient;
};

}  // namespace clipfast

#endif  // CLIPFAST_SIGMOID_TILE_COMMON

#include "logits.h"

namespace clipfast::SIMD_NAMESPACE {

// With the gradient: leaves g_ij / (‖x_i‖ ‖y_j‖) of negatives in place of the dot products, 0
// elsewhere.
template <bool kGradient>
SIMD_INLINE void sigmoid_step(const Tile<Real>& tile, const SigmoidChunk<Real>& chunk, int64_t r,
                              const Columns& at, Vec& loss, Vec& d_bias) {
    const IntVec out = excluded(tile, chunk.pairs, r, at);
    const Product product = logit(tile, chunk.pairs, r, at);
    const Vec bias = splat(chunk.bias);
    const Vec z = fused(product.a, product.b, bias);
    const Vec lost = fused(product.a, product.b, bias - z) + (product.low + chunk.bias_low);
    const IntVec above = z > Vec{};
    const Vec e = exponential({select(above, -z, z), splat(1), select(above, -lost, lost)}, 0);
    loss += select(out, Vec{}, select(above, z, Vec{}) + log1p_unit(e));
    if (!kGradient) return;
    const Vec g = select(out, Vec{}, select(above, splat(1), e) / (e + splat(1)));
    d_bias += g;
    store(tile.line(r) + at.j, (g * chunk.row_inv_norm[tile.row + r]) * at.factor, at.count);
}

template <bool kGradient>
SIMD_FUNCTION void sigmoid_rows(const Tile<Real>& tile, const SigmoidChunk<Real>& chunk,
                                int64_t begin, int64_t end) {
    for (int64_t first = 0; first < tile.cols; first += kSegment) {
        const int64_t last = std::min(tile.cols, first + kSegment);
        const int64_t whole = last - (last - first) % kLanes;
        for (int64_t r = begin; r < end; ++r) {
            Vec loss = {}, d_bias = {};
            for (int64_t j = first; j < whole; j += kLanes) {
                const Columns at = columns(tile, chunk.pairs, j, kLanes);
                sigmoid_step<kGradient>(tile, chunk, r, at, loss, d_bias);
            }
            if (whole < last) {
                const int count = static_cast<int>(last - whole);
                const Columns rest = columns(tile, chunk.pairs, whole, count);
                sigmoid_step<kGradient>(tile, chunk, r, rest, loss, d_bias);
            }
            chunk.loss[tile.row + r] += sum(loss);
            if (kGradient) chunk.d_bias[tile.row + r] += sum(d_bias);
        }
    }
}

inline SigmoidEpilogues<Real> sigmoid_epilogues() {
    return {sigmoid_rows<false>, sigmoid_rows<true>};
}

}  // namespace clipfast::SIMD_NAMESPACE
