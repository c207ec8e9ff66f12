// The epilogues of the contrastive loss on a chunk of rows of a tile, once per SIMD_LEVEL (simd.h).
//
// They sum and differentiate over negatives only (logits.h); contrastive.cpp adds the positives by
// itself: kept apart, they give a loss without cancellation.
//   shared   one exponential e^{z-c} serves rows and columns; c = halvings · ln2
//   running  rows and columns each against their own maximum: two exponentials, for any logits
// kColumns: the columns' results are wanted as well as the rows'.
#ifndef CLIPFAST_CONTRASTIVE_TILE_COMMON
#define CLIPFAST_CONTRASTIVE_TILE_COMMON

#include "prepare.h"

namespace clipfast {

template <typename T>
struct ForwardChunk {
    Pairs<T> pairs;
    int halvings;     // shared way only
    double* row_sum;  // (n,)    Σ_j e^{z_ij - c}, or against row_max; added to
    T* row_max;       // (n,)    running way only
    T* col_sum;       // (cols,) this chunk's Σ_i e^{z_ij - c}, or against col_max; overwritten
    T* col_max;       // (cols,) this chunk's; running way only; overwritten
};

template <typename T>
struct BackwardChunk {
    Pairs<T> pairs;
    const T* row_inv_norm;   // (n,)
    const T* row_smoothing;  // (n,)  w = label_smoothing / kept pairs of the row or column
    const T* col_smoothing;  // (N,)
    int halvings;            // shared way only
    const T* row_term;       // (n,)  shared: e^{c - Lr_i}; running: Lr_i
    const T* col_term;       // (N,)  shared: e^{c - Lc_j}; running: Lc_j
    const T* row_term_low;   // (n,)  running: what Lr_i lost in rounding
    const T* col_term_low;   // (N,)
};

// One instruction set's; [kColumns] where there are two.
template <typename T>
struct ContrastiveEpilogues {
    using Forward = void (*)(const Tile<T>&, const ForwardChunk<T>&, int64_t, int64_t);
    using Backward = void (*)(const Tile<T>&, const BackwardChunk<T>&, int64_t, int64_t);
    Forward forward_shared[2], forward_running[2];
    Backward backward_shared, backward_running;
};

}  // namespace clipfast

#endif  // CLIPFAST_CONTRASTIVE_TILE_COMMON

#include "logits.h"

namespace clipfast::SIMD_NAMESPACE {

// Rows [r, r + kRows): loads and stores of column vectors are shared by kRows rows.
template <bool kColumns, int kRows>
SIMD_INLINE void forward_shared_step(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                     int64_t r, const Columns& at, Vec* row_sum) {
    Vec col_sum = kColumns ? load(chunk.col_sum + at.j, at.count) : Vec{};
    for (int k = 0; k < kRows; ++k) {
        const IntVec out = excluded(tile, chunk.pairs, r + k, at);
        const Product z = logit(tile, chunk.pairs, r + k, at);
        const Vec e = select(out, Vec{}, exponential(z, chunk.halvings));
        row_sum[k] += e;
        col_sum += e;
    }
    if (kColumns) store(chunk.col_sum + at.j, col_sum, at.count);
}

template <bool kColumns, int kRows>
SIMD_INLINE void forward_shared_rows(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                     int64_t r, int64_t first, int64_t last) {
    Vec row_sum[kRows] = {};
    const int64_t whole = last - (last - first) % kLanes;
    for (int64_t j = first; j < whole; j += kLanes) {
        forward_shared_step<kColumns, kRows>(tile, chunk, r, columns(tile, chunk.pairs, j, kLanes),
                                             row_sum);
    }
    if (whole < last) {
        const Columns rest = columns(tile, chunk.pairs, whole, static_cast<int>(last - whole));
        forward_shared_step<kColumns, kRows>(tile, chunk, r, rest, row_sum);
    }
    for (int k = 0; k < kRows; ++k) chunk.row_sum[tile.row + r + k] += sum(row_sum[k]);
}

template <bool kColumns>
SIMD_FUNCTION void forward_shared(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                  int64_t begin, int64_t end) {
    if (kColumns) std::fill(chunk.col_sum, chunk.col_sum + tile.cols, Real(0));
    for (int64_t first = 0; first < tile.cols; first += kSegment) {
        const int64_t last = std::min(tile.cols, first + kSegment);
        int64_t r = begin;
        for (; r + 4 <= end; r += 4) {
            forward_shared_rows<kColumns, 4>(tile, chunk, r, first, last);
        }
        for (; r < end; ++r) forward_shared_rows<kColumns, 1>(tile, chunk, r, first, last);
    }
}

SIMD_INLINE int columns_left(int64_t j, int64_t last) {
    return static_cast<int>(std::min<int64_t>(kLanes, last - j));
}

// The running way's first half: maxima over negatives. Returns the row's, merges the columns' into
// col_max.
template <bool kColumns>
SIMD_INLINE Real row_maximum(const Tile<Real>& tile, const ForwardChunk<Real>& chunk, int64_t r,
                             int64_t first, int64_t last) {
    Vec row_max = splat(kLowest);
    for (int64_t j = first; j < last; j += kLanes) {
        const Columns at = columns(tile, chunk.pairs, j, columns_left(j, last));
        const IntVec out = excluded(tile, chunk.pairs, r, at);
        const Product product = logit(tile, chunk.pairs, r, at);
        const Vec z = select(out, splat(kLowest), product.a * product.b);
        row_max = maximum(row_max, z);
        if (kColumns) {
            store(chunk.col_max + j, maximum(load(chunk.col_max + j, at.count), z), at.count);
        }
    }
    return largest(row_max);
}

// Its second half: adds to col_sum and returns the row's sum.
template <bool kColumns>
SIMD_INLINE Real row_exponentials(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                  int64_t r, int64_t first, int64_t last, Real row_max) {
    Vec row_sum = {};
    for (int64_t j = first; j < last; j += kLanes) {
        const Columns at = columns(tile, chunk.pairs, j, columns_left(j, last));
        const IntVec out = excluded(tile, chunk.pairs, r, at);
        const Product z = logit(tile, chunk.pairs, r, at);
        row_sum += select(out, Vec{}, exponential_against(z, splat(row_max), Vec{}));
        if (!kColumns) continue;
        const Vec e = exponential_against(z, load(chunk.col_max + j, at.count), Vec{});
        store(chunk.col_sum + j, load(chunk.col_sum + j, at.count) + select(out, Vec{}, e),
              at.count);
    }
    return sum(row_sum);
}

template <bool kColumns>
SIMD_FUNCTION void forward_running(const Tile<Real>& tile, const ForwardChunk<Real>& chunk,
                                   int64_t begin, int64_t end) {
    if (kColumns) {
        std::fill(chunk.col_sum, chunk.col_sum + tile.cols, Real(0));
        std::fill(chunk.col_max, chunk.col_max + tile.cols, kLowest);
    }
    for (int64_t first = 0; first < tile.cols; first += kSegment) {
        const int64_t last = std::min(tile.cols, first + kSegment);
        Real segment_max[kMaxChunkRows];
        for (int64_t r = begin; r < end; ++r) {
            segment_max[r - begin] = row_maximum<kColumns>(tile, chunk, r, first, last);
        }
        for (int64_t r = begin; r < end; ++r) {
            const Real row_max = segment_max[r - begin];
            const double row_sum = row_exponentials<kColumns>(tile, chunk, r, first, last, row_max);
            Real& best = chunk.row_max[tile.row + r];
            double& total = chunk.row_sum[tile.row + r];
            const double before = best;
            best = std::max(best, row_max);
            total = total * std::exp(before - best) + row_sum * std::exp(double(row_max) - best);
        }
    }
}

// H_ij / (‖x_i‖ ‖y_j‖) of negatives, in place of the dot products; 0 elsewhere.
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
    g -= load(chunk.col_smoothing + col, at.count) + chunk.row_smoothing[row];
    const Vec h = (g * chunk.row_inv_norm[row]) * at.factor;
    store(tile.line(r) + at.j, select(out, Vec{}, h), at.count);
}

template <bool kShared>
SIMD_FUNCTION void backward_rows(const Tile<Real>& tile, const BackwardChunk<Real>& chunk,
                                 int64_t begin, int64_t end) {
    for (int64_t first = 0; first < tile.cols; first += kSegment) {
        const int64_t last = std::min(tile.cols, first + kSegment);
        const int64_t whole = last - (last - first) % kLanes;
        for (int64_t r = begin; r < end; ++r) {
            for (int64_t j = first; j < whole; j += kLanes) {
                backward_step<kShared>(tile, chunk, r, columns(tile, chunk.pairs, j, kLanes));
            }
            if (whole == last) continue;
            const Columns rest = columns(tile, chunk.pairs, whole, static_cast<int>(last - whole));
            backward_step<kShared>(tile, chunk, r, rest);
        }
    }
}

inline ContrastiveEpilogues<Real> contrastive_epilogues() {
    return {{forward_shared<false>, forward_shared<true>},
            {forward_running<false>, forward_running<true>},
            backward_rows<true>,
            backward_rows<false>};
}

}  // namespace clipfast::SIMD_NAMESPACE
