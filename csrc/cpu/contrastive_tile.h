// The epilogues of the contrastive loss on a chunk of rows of a tile, once per SIMD_LEVEL (simd.h).
//
// A tile comes in as raw dot products d_ij = <x_i, y_j>. The logit is z_ij = row_i · col_j · d_ij,
// with both factors known beyond a float's precision, so that a logit of 100 is no less exact than
// its dot product. A pair is allowed when its groups differ. That also takes out the diagonal, which
// contrastive.cpp adds by itself: kept apart, it gives a loss without cancellation.
//   shared   one exponential e^{z-c} serves rows and columns; c = halvings · ln2
//   running  rows and columns each against their own maximum: two exponentials, for any logits
#ifndef CLIPFAST_CONTRASTIVE_TILE_COMMON
#define CLIPFAST_CONTRASTIVE_TILE_COMMON

#include "sweep.h"

namespace clipfast {

// Numbers as value · (1 + error), of twice T's precision.
template <typename T>
struct Factors {
    const T* value;
    const T* error;
};

// Per-row and per-column vectors, indexed by row and column of the whole matrix.
template <typename T>
struct Pairs {
    Factors<T> row;        // (n,)  logit scale / ‖x_i‖
    Factors<T> col;        // (N,)  1 / ‖y_j‖
    const int32_t* group;  // (N,)  equal groups are not negatives of each other
    const T* smoothing;    // (N,)  w = label_smoothing / allowed pairs of the row or column
};

template <typename T>
struct ForwardChunk {
    Pairs<T> pairs;
    int halvings;      // shared way only
    double* row_sum;   // (n,)    Σ_j e^{z_ij - c}, or against row_max; added to
    T* row_max;        // (n,)    running way only
    double* smoothed;  // (n,)    Σ_j z_ij (w_i + w_j); added to
    T* col_sum;        // (cols,) this chunk's Σ_i e^{z_ij - c}, or against col_max; overwritten
    T* col_max;        // (cols,) this chunk's; running way only; overwritten
};

template <typename T>
struct BackwardChunk {
    Pairs<T> pairs;
    const T* row_inv_norm;  // (n,)
    int halvings;           // shared way only
    const T* row_term;      // (n,)  shared: e^{c - Lr_i}; running: Lr_i
    const T* col_term;      // (N,)  shared: e^{c - Lc_j}; running: Lc_j
    const T* row_term_low;  // (n,)  running: what Lr_i lost in rounding
    const T* col_term_low;  // (N,)
};

}  // namespace clipfast

#endif  // CLIPFAST_CONTRASTIVE_TILE_COMMON

#include "simd.h"

namespace clipfast::SIMD_NAMESPACE {

// Up to kLanes columns of the matrix, from column j of the tile on.
struct Columns {
    int64_t j;
    int count;
    Vec factor, error, smoothing;
};

SIMD_INLINE Columns columns(const Tile<Real>& tile, const Pairs<Real>& pairs, int64_t j,
                            int count) {
    const int64_t col = tile.col + j;
    return {j, count, load(pairs.col.value + col, count), load(pairs.col.error + col, count),
            load(pairs.smoothing + col, count)};
}

SIMD_INLINE Product logit(const Tile<Real>& tile, const Pairs<Real>& pairs, int64_t r,
                          const Columns& at) {
    const Vec factor = splat(pairs.row.value[tile.row + r]);
    const Vec d = load(tile.line(r) + at.j, at.count);
    const Vec a = d * factor;
    const Vec lost = fused(d, factor, -a);
    return {a, at.factor,
            fused(lost, at.factor, (a * at.factor) * (at.error + pairs.row.error[tile.row + r]))};
}

// Lanes beyond the last column get the row's own group, so they are never allowed.
SIMD_INLINE IntVec excluded(const Tile<Real>& tile, const Pairs<Real>& pairs, int64_t r,
                            const Columns& at) {
    const int32_t group = pairs.group[tile.row + r];
    return load_int(pairs.group + tile.col + at.j, at.count, group) == static_cast<Int>(group);
}

SIMD_INLINE Vec smoothed_logit(const Tile<Real>& tile, const Pairs<Real>& pairs, int64_t r,
                               const Columns& at, Product z) {
    return (z.a * z.b) * (at.smoothing + pairs.smoothing[tile.row + r]);
}

// Rows [r, r + kRows): loads and stores of column vectors are shared by kRows rows.
template <int kRows>
SIMD_INLINE void forward_shared_step(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                     int64_t r, const Columns& at, Vec* row_sum, Vec* smoothed) {
    Vec col_sum = load(chunk.col_sum + at.j, at.count);
    for (int k = 0; k < kRows; ++k) {
        const IntVec out = excluded(tile, chunk.pairs, r + k, at);
        const Product z = logit(tile, chunk.pairs, r + k, at);
        const Vec e = select(out, Vec{}, exponential(z, chunk.halvings));
        row_sum[k] += e;
        col_sum += e;
        smoothed[k] += select(out, Vec{}, smoothed_logit(tile, chunk.pairs, r + k, at, z));
    }
    store(chunk.col_sum + at.j, col_sum, at.count);
}

template <int kRows>
SIMD_INLINE void forward_shared_rows(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                     int64_t r) {
    Vec row_sum[kRows] = {}, smoothed[kRows] = {};
    const int64_t whole = tile.cols - tile.cols % kLanes;
    for (int64_t j = 0; j < whole; j += kLanes) {
        forward_shared_step<kRows>(tile, chunk, r, columns(tile, chunk.pairs, j, kLanes), row_sum,
                                   smoothed);
    }
    if (whole < tile.cols) {
        const Columns rest = columns(tile, chunk.pairs, whole, static_cast<int>(tile.cols - whole));
        forward_shared_step<kRows>(tile, chunk, r, rest, row_sum, smoothed);
    }
    for (int k = 0; k < kRows; ++k) {
        chunk.row_sum[tile.row + r + k] += sum(row_sum[k]);
        chunk.smoothed[tile.row + r + k] += sum(smoothed[k]);
    }
}

SIMD_FUNCTION void forward_shared(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                  int64_t begin, int64_t end) {
    std::fill(chunk.col_sum, chunk.col_sum + tile.cols, Real(0));
    int64_t r = begin;
    for (; r + 4 <= end; r += 4) forward_shared_rows<4>(tile, chunk, r);
    for (; r < end; ++r) forward_shared_rows<1>(tile, chunk, r);
}

SIMD_INLINE int columns_left(const Tile<Real>& tile, int64_t j) {
    return static_cast<int>(std::min<int64_t>(kLanes, tile.cols - j));
}

// The running way's first half: maxima over allowed pairs. Returns the row's, merges the columns'
// into col_max.
SIMD_INLINE Real row_maximum(const Tile<Real>& tile, const ForwardChunk<Real>& chunk, int64_t r) {
    Vec row_max = splat(kLowest), smoothed = {};
    for (int64_t j = 0; j < tile.cols; j += kLanes) {
        const Columns at = columns(tile, chunk.pairs, j, columns_left(tile, j));
        const IntVec out = excluded(tile, chunk.pairs, r, at);
        const Product product = logit(tile, chunk.pairs, r, at);
        smoothed += select(out, Vec{}, smoothed_logit(tile, chunk.pairs, r, at, product));
        const Vec z = select(out, splat(kLowest), product.a * product.b);
        row_max = maximum(row_max, z);
        store(chunk.col_max + j, maximum(load(chunk.col_max + j, at.count), z), at.count);
    }
    chunk.smoothed[tile.row + r] += sum(smoothed);
    return largest(row_max);
}

// Its second half: adds to col_sum and returns the row's sum.
SIMD_INLINE Real row_exponentials(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                  int64_t r, Real row_max) {
    Vec row_sum = {};
    for (int64_t j = 0; j < tile.cols; j += kLanes) {
        const Columns at = columns(tile, chunk.pairs, j, columns_left(tile, j));
        const IntVec out = excluded(tile, chunk.pairs, r, at);
        const Product z = logit(tile, chunk.pairs, r, at);
        row_sum += select(out, Vec{}, exponential_against(z, splat(row_max), Vec{}));
        const Vec e = exponential_against(z, load(chunk.col_max + j, at.count), Vec{});
        store(chunk.col_sum + j, load(chunk.col_sum + j, at.count) + select(out, Vec{}, e),
              at.count);
    }
    return sum(row_sum);
}

SIMD_FUNCTION void forward_running(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                   int64_t begin, int64_t end) {
    std::fill(chunk.col_sum, chunk.col_sum + tile.cols, Real(0));
    std::fill(chunk.col_max, chunk.col_max + tile.cols, kLowest);
    Real tile_max[kChunkRows];
    for (int64_t r = begin; r < end; ++r) tile_max[r - begin] = row_maximum(tile, chunk, r);
    for (int64_t r = begin; r < end; ++r) {
        const Real row_max = tile_max[r - begin];
        const double row_sum = row_exponentials(tile, chunk, r, row_max);
        Real& best = chunk.row_max[tile.row + r];
        double& total = chunk.row_sum[tile.row + r];
        const double before = best;
        best = std::max(best, row_max);
        total = total * std::exp(before - best) + row_sum * std::exp(double(row_max) - best);
    }
}

// H_ij = G_ij · 2N / (‖x_i‖ ‖y_j‖) off the diagonal, in place of the dot products.
template <bool kShared>
SIMD_INLINE void backward_step(const Tile<Real>& tile, const BackwardChunk<Real>& chunk, int64_t r,
                               const Columns& at) {
    const int64_t row = tile.row + r, col = tile.col + at.j;
    const IntVec out = excluded(tile, chunk.pairs, r, at);
    const Product z = logit(tile, chunk.pairs, r, at);
    const Vec col_term = load(chunk.col_term + col, at.count);
    Vec g;
    if (kShared) {
        g = exponential(z, chunk.halvings) * (col_term + chunk.row_term[row]);
    } else {
        const Vec col_low = load(chunk.col_term_low + col, at.count);
        g = exponential_against(z, splat(chunk.row_term[row]), splat(chunk.row_term_low[row])) +
            exponential_against(z, col_term, col_low);
    }
    g -= at.smoothing + chunk.pairs.smoothing[row];
    const Vec h = (g * chunk.row_inv_norm[row]) * at.factor;
    store(tile.line(r) + at.j, select(out, Vec{}, h), at.count);
}

template <bool kShared>
SIMD_FUNCTION void backward_rows(const Tile<Real>& tile, const BackwardChunk<Real>& chunk,
                                 int64_t begin, int64_t end) {
    const int64_t whole = tile.cols - tile.cols % kLanes;
    for (int64_t r = begin; r < end; ++r) {
        for (int64_t j = 0; j < whole; j += kLanes) {
            backward_step<kShared>(tile, chunk, r, columns(tile, chunk.pairs, j, kLanes));
        }
        if (whole == tile.cols) continue;
        const Columns rest = columns(tile, chunk.pairs, whole, static_cast<int>(tile.cols - whole));
        backward_step<kShared>(tile, chunk, r, rest);
    }
}

}  // namespace clipfast::SIMD_NAMESPACE
