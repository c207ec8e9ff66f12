// The epilogue of the similarity search on a chunk of rows of a tile, once per SIMD_LEVEL (simd.h).
#ifndef CLIPFAST_SIMILARITY_TILE_COMMON
#define CLIPFAST_SIMILARITY_TILE_COMMON

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "sweep.h"

namespace clipfast {

// A key in a row's top-k.
template <typename T>
struct Found {
    T value;
    int64_t index;  // kNoKey: an empty slot, worse than every key
};

constexpr int64_t kNoKey = std::numeric_limits<int64_t>::max();

template <typename T>
bool better(const Found<T>& a, const Found<T>& b) {
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

// Rows of one row of tiles; r counts from its first.
template <typename T>
struct SimilarityChunk {
    T scale;
    T* row_max;         // (rows,)
    double* row_sum;    // (rows,)   Σ_j e^{z_ij - row_max}; nothing while row_max is infinite
    bool* has_nan;      // (rows,)
    const T* positive;  // (rows,)   or null: no ranks
    int64_t* rank;      // (rows,)   added to
    Found<T>* found;    // (rows, k) heaps with the worst first
    int64_t k;
};

// Takes a key into a row's heap if it is better than the worst there.
template <typename T>
void offer(Found<T>* heap, int64_t k, const Found<T>& key) {
    if (!better(key, heap[0])) return;
    std::pop_heap(heap, heap + k, better<T>);
    heap[k - 1] = key;
    std::push_heap(heap, heap + k, better<T>);
}

// No z below it gets into the heap, for keys from `next` on.
template <typename T>
T threshold(const Found<T>* heap, int64_t next) {
    const T infinity = std::numeric_limits<T>::infinity();
    // An equal one does only if its index is lower.
    return heap[0].index < next ? std::nextafter(heap[0].value, infinity) : heap[0].value;
}

template <typename T>
using SimilarityEpilogue = void (*)(const Tile<T>&, const SimilarityChunk<T>&, int64_t, int64_t);

}  // namespace clipfast

#endif  // CLIPFAST_SIMILARITY_TILE_COMMON

#include "simd.h"

namespace clipfast::SIMD_NAMESPACE {

// z of up to kLanes keys; -inf in the lanes beyond.
SIMD_INLINE Vec similarities(const Tile<Real>& tile, Real scale, int64_t r, int64_t j, int count) {
    Vec z = load(tile.line(r) + j, count) * scale;
    for (int l = count; l < kLanes; ++l) z[l] = -std::numeric_limits<Real>::infinity();
    return z;
}

struct Scan {
    Vec row_max;
    IntVec unordered, above;
    Real least;  // threshold of the top-k
};

template <bool kRank, bool kTop>
SIMD_INLINE void scan_step(const Tile<Real>& tile, const SimilarityChunk<Real>& chunk, int64_t r,
                           int64_t j, int count, Scan& scan) {
    const Vec z = similarities(tile, chunk.scale, r, j, count);
    scan.row_max = maximum(z, scan.row_max);  // in this order a NaN is passed over
    scan.unordered |= z != z;
    if (kRank) scan.above -= z > splat(chunk.positive[r]);
    if (!kTop) return;
    unsigned hits = lanes(z >= splat(scan.least));
    if (__builtin_expect(hits == 0, 1)) return;
    Found<Real>* heap = chunk.found + r * chunk.k;
    for (int l = 0; l < count; ++l) {
        if (hits >> l & 1u) offer(heap, chunk.k, {z[l], tile.col + j + l});
    }
    scan.least = threshold(heap, tile.col + j + count);
}

SIMD_INLINE Real exponentials(const Tile<Real>& tile, const SimilarityChunk<Real>& chunk, int64_t r,
                              int64_t first, int64_t last, Real reference) {
    Vec total = {};
    const int64_t whole = last - (last - first) % kLanes;
    for (int64_t j = first; j < whole; j += kLanes) {
        const Vec z = similarities(tile, chunk.scale, r, j, kLanes);
        total += exponential({z - reference, splat(1), Vec{}}, 0);
    }
    if (whole < last) {
        const int count = static_cast<int>(last - whole);
        const Vec z = similarities(tile, chunk.scale, r, whole, count);
        total += exponential({z - reference, splat(1), Vec{}}, 0);
    }
    return sum(total);
}

template <bool kRank, bool kTop>
SIMD_INLINE void similarity_row(const Tile<Real>& tile, const SimilarityChunk<Real>& chunk,
                                int64_t r, int64_t first, int64_t last) {
    Scan scan{splat(kLowest), IntVec{}, IntVec{}, 0};
    if (kTop) scan.least = threshold(chunk.found + r * chunk.k, tile.col + first);
    const int64_t whole = last - (last - first) % kLanes;
    for (int64_t j = first; j < whole; j += kLanes) {
        scan_step<kRank, kTop>(tile, chunk, r, j, kLanes, scan);
    }
    if (whole < last) {
        scan_step<kRank, kTop>(tile, chunk, r, whole, static_cast<int>(last - whole), scan);
    }
    if (kRank) {
        for (int l = 0; l < kLanes; ++l) chunk.rank[r] += scan.above[l];
    }
    chunk.has_nan[r] = chunk.has_nan[r] || lanes(scan.unordered) != 0;
    const Real segment_max = largest(scan.row_max);
    Real& best = chunk.row_max[r];
    const double before = best;
    best = std::max(best, segment_max);
    if (chunk.has_nan[r] || best > std::numeric_limits<Real>::max()) return;
    const double segment_sum = exponentials(tile, chunk, r, first, last, segment_max);
    double& total = chunk.row_sum[r];
    total = total * std::exp(before - best) + segment_sum * std::exp(double(segment_max) - best);
}

template <bool kRank, bool kTop>
SIMD_FUNCTION void similarity_rows(const Tile<Real>& tile, const SimilarityChunk<Real>& chunk,
                                   int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
        for (int64_t first = 0; first < tile.cols; first += kSegment) {
            const int64_t last = std::min(tile.cols, first + kSegment);
            similarity_row<kRank, kTop>(tile, chunk, r, first, last);
        }
    }
}

inline SimilarityEpilogue<Real> similarity_epilogue(bool rank, bool top) {
    if (rank) return top ? similarity_rows<true, true> : similarity_rows<true, false>;
    return top ? similarity_rows<false, true> : similarity_rows<false, false>;
}

}  // namespace clipfast::SIMD_NAMESPACE
