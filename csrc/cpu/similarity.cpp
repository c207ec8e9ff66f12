// Computes: what retrieval asks of z = scale · queries · keysᵀ, for n queries and N keys, with no
// n×N array.
//     logsumexp_i = log Σ_j e^{z_ij}, positive_i = z_i,p(i), rank_i = |{j : z_ij > positive_i}|,
//     values and indices of the k largest z_ij, descending, equal ones by index
//   A NaN among a row's z makes its logsumexp NaN and is left out of its rank and top-k; a row whose
//   positive is NaN has rank N. Slots left over have the value -inf and the index -1.
// Owns: a task owns a chunk of rows of one tile (sweep.h); a row's tiles follow one another.
// FLOPs: 2 n N D. A row of tiles whose positives lie in several tiles computes all of these but one
//     twice: the ranks need the positives first, and from the same arithmetic, because the product
//     of one pair alone may be rounded differently.
// Bytes: the keys once per row of tiles. Beyond inputs and outputs one tile (16 MiB in float) and
//     O(n·k).
// Accumulates in: float products (torch's mm), float within a tile's row, double across tiles.
// Deterministic: yes. Only torch's mm may depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "prepare.h"

#define SIMD_FILE "similarity_tile.h"
#include "simd_levels.h"

namespace clipfast {
namespace {

template <typename T>
SimilarityEpilogue<T> epilogue(bool rank, bool top) {
    if constexpr (std::is_same_v<T, double>) {
        return baseline_double::similarity_epilogue(rank, top);
    } else {
#if CLIPFAST_X86
        if (simd_level() == SimdLevel::kAvx512) return avx512_float::similarity_epilogue(rank, top);
        if (simd_level() == SimdLevel::kAvx2) return avx2_float::similarity_epilogue(rank, top);
#endif
        return baseline_float::similarity_epilogue(rank, top);
    }
}

// The state of one row of tiles, from its first tile to its last.
template <typename T>
struct Rows {
    std::vector<T> row_max;
    std::vector<double> row_sum;
    std::unique_ptr<bool[]> has_nan;
    std::vector<Found<T>> found;

    Rows(int64_t rows, int64_t k)
        : row_max(rows), row_sum(rows), has_nan(new bool[rows]), found(rows * k) {}

    void reset() {
        const T infinity = std::numeric_limits<T>::infinity();
        std::fill(row_max.begin(), row_max.end(), std::numeric_limits<T>::lowest());
        std::fill(row_sum.begin(), row_sum.end(), 0.0);
        std::fill(has_nan.get(), has_nan.get() + row_max.size(), false);
        std::fill(found.begin(), found.end(), Found<T>{-infinity, kNoKey});
    }

    double logsumexp(int64_t r) const {
        if (has_nan[r]) return std::numeric_limits<double>::quiet_NaN();
        if (std::isinf(row_max[r])) return row_max[r];
        return row_max[r] + std::log(row_sum[r]);
    }

    // A row's heap, sorted, to its place in the results. The heap is one no longer.
    void write_top(int64_t r, int64_t k, T* values, int64_t* indices) {
        Found<T>* heap = found.data() + r * k;
        std::sort(heap, heap + k, better<T>);
        for (int64_t l = 0; l < k; ++l) {
            values[l] = heap[l].value;
            indices[l] = heap[l].index == kNoKey ? -1 : heap[l].index;
        }
    }
};

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
Result forward(const Tensor& queries, const Tensor& keys, double scale, const int64_t* positives,
               int64_t k) {
    const int64_t n = queries.size(0), n_keys = keys.size(0), n_ranks = positives ? n : 0;
    Tensor logsumexp = torch::stable::new_empty(queries, {n});
    Tensor positive = torch::stable::new_empty(queries, {n_ranks});
    Tensor rank = torch::stable::new_empty(queries, {n_ranks}, ScalarType::Long);
    Tensor values = torch::stable::new_empty(queries, {n, k});
    Tensor indices = torch::stable::new_empty(queries, {n, k}, ScalarType::Long);
    torch::stable::zero_(rank);
    T* z = positive.mutable_data_ptr<T>();
    int64_t* above = rank.mutable_data_ptr<int64_t>();
    const T factor = T(scale);

    Sweep<T> sweep(queries, keys);
    const int64_t n_tiles = (n_keys + sweep.tile_cols() - 1) / sweep.tile_cols();
    const auto visit_rows = epilogue<T>(positives != nullptr, k > 0);
    Rows<T> rows(sweep.tile_rows(), k);
    std::vector<std::vector<int64_t>> waiting(n_tiles);  // rows, by the tile of their positive
    for (int64_t row = 0; row < n; row += sweep.tile_rows()) {
        const int64_t count = std::min(sweep.tile_rows(), n - row);
        rows.reset();
        const SimilarityChunk<T> chunk{factor,
                                       rows.row_max.data(),
                                       rows.row_sum.data(),
                                       rows.has_nan.get(),
                                       positives ? z + row : nullptr,
                                       positives ? above + row : nullptr,
                                       rows.found.data(),
                                       k};
        const auto visit = [&](const Tile<T>& tile) {
            parallel_rows(tile, [&](int64_t, int64_t begin, int64_t end) {
                visit_rows(tile, chunk, begin, end);
            });
        };
        // The tiles of positives come first; the last of them needs no second computation.
        for (auto& list : waiting) list.clear();
        for (int64_t i = row; positives && i < row + count; ++i) {
            waiting[positives[i] / sweep.tile_cols()].push_back(i);
        }
        int64_t visited = -1, left = positives ? count : 0;
        for (int64_t t = 0; left > 0; ++t) {
            if (waiting[t].empty()) continue;
            const Tile<T> tile = sweep.compute(row, t * sweep.tile_cols());
            for (const int64_t i : waiting[t]) {
                z[i] = tile.line(i - row)[positives[i] - tile.col] * factor;
            }
            left -= static_cast<int64_t>(waiting[t].size());
            if (left > 0) continue;
            visit(tile);
            visited = t;
        }
        for (int64_t t = 0; t < n_tiles; ++t) {
            if (t != visited) visit(sweep.compute(row, t * sweep.tile_cols()));
        }
        parallel_each(count, 16 * (k + 1), [&](int64_t r) {
            const int64_t i = row + r;
            logsumexp.mutable_data_ptr<T>()[i] = T(rows.logsumexp(r));
            if (positives && std::isnan(z[i])) above[i] = n_keys;
            if (k == 0) return;
            rows.write_top(r, k, values.mutable_data_ptr<T>() + i * k,
                           indices.mutable_data_ptr<int64_t>() + i * k);
        });
    }
    return {logsumexp, positive, rank, values, indices};
}

Result similarity_fwd(const Tensor& queries, const Tensor& keys, const Tensor& scale,
                      const std::optional<Tensor>& positives, int64_t topk) {
    check_features("similarity", queries, keys, scale);
    STD_TORCH_CHECK(topk >= 0 && topk <= keys.size(0),
                    "similarity: topk must be 0 to the number of keys, ", keys.size(0), ", got ",
                    topk, ".");
    const int64_t* place = nullptr;
    if (positives.has_value()) {
        STD_TORCH_CHECK(positives->scalar_type() == ScalarType::Long && positives->is_cpu() &&
                            positives->is_contiguous() && positives->dim() == 1 &&
                            positives->size(0) == queries.size(0),
                        "similarity: positives must be contiguous int64 (n,) on the CPU, n = ",
                        queries.size(0), ".");
        place = positives->const_data_ptr<int64_t>();
        for (int64_t i = 0; i < queries.size(0); ++i) {
            STD_TORCH_CHECK(place[i] >= 0 && place[i] < keys.size(0),
                            "similarity: a positive must be one of the ", keys.size(0),
                            " keys, got ", place[i], ".");
        }
    }
    const auto run = queries.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
    return run(queries, keys, to_double(scale), place, topk);
}

}  // namespace
}  // namespace clipfast

// The schema is defined in clipfast_kernels/ops/similarity/cpu.py, so that it exists without this
// extension.
STABLE_TORCH_LIBRARY_IMPL(clipfast_kernels, CPU, m) {
    m.impl("similarity_fwd_cpu", TORCH_BOX(&clipfast::similarity_fwd));
}
