// Computes: the softmax contrastive (CLIP) loss's sweeps over a block of n rows and N columns of
// the pair matrix, with no n×N array. Row i's positive is column p(i) = offset + i.
//     x̂ = x/‖x‖ (or x), z = s · x̂ ŷᵀ; a pair is kept if it is a positive or its ids differ
//     row_nll_i = log(1 + Σ_{kept j ≠ p(i)} e^{z_ij - z_i,p(i)}), col_nll likewise over columns
//     H_ij = e^{z_ij-Lr_i} + e^{z_ij-Lc_j} - w_i - w_j where kept, less 2(1-ε) at a positive
//     d_x̂ = f s H ŷ, d_ŷ = f s Hᵀ x̂, d_x = (d_x̂ - (x̂·d_x̂) x̂)/‖x‖, d_s = f Σ_i x̂_i · (H ŷ)_i
//   where Lr and Lc are the log-sum-exps of the whole problem, w = ε/|kept| of label smoothing and
//   f a factor of the caller's. The loss itself is put together in ops/contrastive/operator.py.
// Owns: a task owns a chunk of rows of one tile (sweep.h).
// FLOPs: 2 n N D forward, 6 n N D backward, 4 where the columns' gradient is not wanted; one
//     exponential per pair in each, or two where one reference does not serve all
//     (contrastive_tile.h).
// Bytes: the features once per row or column of tiles. Beyond inputs and outputs one tile (16 MiB
//     in float) and O(n + N) vectors: the inverse norms enter in the epilogues, so that neither
//     normalised nor scaled features are stored.
// Accumulates in: float products (torch's mm), float within a tile's row, double across tiles.
// Deterministic: yes; every sum has one owner and a fixed order. Only torch's mm may depend on the
//     number of threads.
// Source: Radford et al. 2021 (arXiv 2103.00020), figure 3; tiles as in Inf-CL (arXiv 2410.17243).
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "prepare.h"

#define SIMD_FILE "contrastive_tile.h"
#include "simd_levels.h"

namespace clipfast {
namespace {

template <typename T>
ContrastiveEpilogues<T> epilogues() {
    if constexpr (std::is_same_v<T, double>) {
        return baseline_double::contrastive_epilogues();
    } else {
#if CLIPFAST_X86
        if (simd_level() == SimdLevel::kAvx512) return avx512_float::contrastive_epilogues();
        if (simd_level() == SimdLevel::kAvx2) return avx2_float::contrastive_epilogues();
#endif
        return baseline_float::contrastive_epilogues();
    }
}

constexpr double kLn2 = 0.6931471805599453;

// A common reference c = halvings · ln2 for all exponentials: no z exceeds c + 80, so no sum
// overflows, and no row's or column's maximum is below c - 60, so that what underflows (c - 87) is
// below 1e-11 of every sum. Zero where that is possible, nothing where no c will do.
std::optional<int> shared_reference(double largest, double smallest_maximum) {
    const double least = std::ceil((largest - 80) / kLn2);
    const double most = std::floor((smallest_maximum + 60) / kLn2);
    if (!(least <= most)) return std::nullopt;
    const double halvings = std::clamp(0.0, least, most);
    // The exponential's reduction is exact for so many multiples of ln2.
    return std::abs(halvings) < 4096 ? std::optional<int>(halvings) : std::nullopt;
}

// -log p of the positive, log(1 + Σ_{others} e^{z - z⁺}), from others = Σ e^{z - reference}:
// exact 0 without others.
double negative_log_likelihood(double others, double reference, double positive) {
    if (others == 0) return 0;
    const double shift = reference - positive;
    return shift < 600 ? std::log1p(others * std::exp(shift)) : shift + std::log(others);
}

// Running sums over negatives, of e^{z - reference}: against one reference for all, or against each
// row's and column's maximum so far.
template <typename T>
struct Sums {
    std::optional<int> halvings;
    std::vector<double> row, col;         // (n,), (N,); col and all of columns only if wanted
    std::vector<T> row_max, col_max;      // (n,), (N,)
    std::vector<T> chunk_sum, chunk_max;  // (chunks, cols) of one tile

    Sums(const Block& block, std::optional<int> shared, const Sweep<T>& sweep)
        : halvings(shared), row(block.rows(), 0) {
        const T lowest = std::numeric_limits<T>::lowest();
        if (!halvings) row_max.resize(block.rows(), lowest);
        if (!block.symmetric) return;
        col.resize(block.cols(), 0);
        chunk_sum.resize(sweep.max_chunks() * sweep.tile_cols());
        if (halvings) return;
        chunk_max.resize(chunk_sum.size());
        col_max.resize(block.cols(), lowest);
    }

    ForwardChunk<T> chunk(const Pairs<T>& pairs, const Tile<T>& tile, int64_t index) {
        const int64_t at = index * tile.cols;
        return {pairs,
                halvings.value_or(0),
                row.data(),
                row_max.data(),
                chunk_sum.empty() ? nullptr : chunk_sum.data() + at,
                chunk_max.empty() ? nullptr : chunk_max.data() + at};
    }

    // Adds the tile's column sums, chunk after chunk.
    void merge_columns(const Tile<T>& tile) {
        parallel_each(tile.cols, tile.chunks(), [&](int64_t j) {
            double& total = col[tile.col + j];
            for (int64_t at = j; at < tile.chunks() * tile.cols; at += tile.cols) {
                if (halvings) {
                    total += chunk_sum[at];
                    continue;
                }
                T& best = col_max[tile.col + j];
                const double before = best;
                best = std::max(best, chunk_max[at]);
                total = total * std::exp(before - best) +
                        chunk_sum[at] * std::exp(double(chunk_max[at]) - best);
            }
        });
    }

    void likelihoods(const std::vector<double>& sums, const std::vector<T>& maxima, const double* z,
                     Tensor& nll) const {
        double* to = nll.mutable_data_ptr<double>();
        for (size_t i = 0; i < sums.size(); ++i) {
            to[i] = negative_log_likelihood(sums[i], halvings ? *halvings * kLn2 : maxima[i], z[i]);
        }
    }
};

// Whether no negative exceeds the positive; both logits as the tile's arithmetic rounds them.
template <typename T>
void hits(const std::vector<T>& positive, const std::vector<T>& maxima, Tensor& hit) {
    bool* to = hit.mutable_data_ptr<bool>();
    for (size_t i = 0; i < maxima.size(); ++i) to[i] = positive[i] >= maxima[i];
}

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
ForwardResult forward(const Block& block, bool top1) {
    const int64_t n = block.rows();
    const auto vector = [&](int64_t size, ScalarType type = ScalarType::Double) {
        return torch::stable::new_empty(block.x, {size}, type);
    };
    const int64_t wanted_cols = block.symmetric ? block.cols() : 0;
    Tensor row_nll = vector(n), col_nll = vector(wanted_cols), positive = vector(n);
    Tensor x_inv_norm = vector(n), y_inv_norm = vector(block.cols());
    Tensor row_hit = vector(top1 ? n : 0, ScalarType::Bool);
    Tensor col_hit = vector(top1 ? wanted_cols : 0, ScalarType::Bool);
    const ForwardResult result{row_nll,    col_nll, positive, x_inv_norm,
                               y_inv_norm, row_hit, col_hit};
    double* a = x_inv_norm.mutable_data_ptr<double>();
    double* b = y_inv_norm.mutable_data_ptr<double>();
    double* z = positive.mutable_data_ptr<double>();
    const LogitRange range = measure<T>(block, a, b);
    if (!range.finite) {  // said once, here, so that no clamp or comparison below can hide it
        fill_nan({row_nll, col_nll, positive, x_inv_norm, y_inv_norm});
        torch::stable::zero_(row_hit);
        torch::stable::zero_(col_hit);
        return result;
    }
    const Problem<T> problem(block, a, b);
    const Pairs<T> pairs = problem.pairs();
    // Only the running way knows the largest negatives.
    const std::optional<int> halvings =
        top1 ? std::nullopt : shared_reference(range.largest, range.smallest_positive);
    const auto epilogue = halvings ? epilogues<T>().forward_shared[block.symmetric]
                                   : epilogues<T>().forward_running[block.symmetric];
    std::vector<T> rounded_positive(n);
    Sweep<T> sweep(block.x, block.y);
    Sums<T> sums(block, halvings, sweep);
    sweep.forward([&](const Tile<T>& tile) {
        each_positive(tile, block.offset, [&](int64_t i, T& d) {
            z[i] = block.scale * d * a[i] * b[block.offset + i];
            const T left = d * pairs.row.value[i];
            rounded_positive[i] = left * pairs.col.value[block.offset + i];
        });
        parallel_rows(tile, [&](int64_t chunk, int64_t begin, int64_t end) {
            epilogue(tile, sums.chunk(pairs, tile, chunk), begin, end);
        });
        if (block.symmetric) sums.merge_columns(tile);
    });
    sums.likelihoods(sums.row, sums.row_max, z, row_nll);
    sums.likelihoods(sums.col, sums.col_max, z, col_nll);
    if (top1) {
        hits(rounded_positive, sums.row_max, row_hit);
        hits(rounded_positive, sums.col_max, col_hit);
    }
    return result;
}

// The backward's vectors, float64: SoftmaxSaved in ops/block.py.
struct Saved {
    const Tensor &x_inv_norm, &y_inv_norm, &row_lse, &col_lse, &positive;
    const std::optional<Tensor>&row_smoothing, &col_smoothing;
    double label_smoothing;
};

// The vectors that backward_shared or backward_running want.
template <typename T>
struct Terms {
    std::optional<int> halvings;
    std::vector<T> row, col, row_low, col_low;

    Terms(const double* row_lse, int64_t rows, const double* col_lse, int64_t cols) {
        const auto [row_min, row_max] = std::minmax_element(row_lse, row_lse + rows);
        const auto [col_min, col_max] = std::minmax_element(col_lse, col_lse + cols);
        // No kept logit exceeds its row's log-sum-exp, so the largest of them bounds them all.
        halvings = shared_reference(std::max(*row_max, *col_max), std::min(*row_min, *col_min));
        fill(row_lse, rows, row, row_low);
        fill(col_lse, cols, col, col_low);
    }

    void fill(const double* lse, int64_t n, std::vector<T>& term, std::vector<T>& low) const {
        term.resize(n);
        low.resize(n);
        for (int64_t i = 0; i < n; ++i) {
            term[i] = T(halvings ? std::exp(*halvings * kLn2 - lse[i]) : lse[i]);
            low[i] = T(halvings ? 0.0 : lse[i] - term[i]);
        }
    }
};

// Label smoothing's weights of rows or columns; zeros without it.
std::vector<double> weights(const std::optional<Tensor>& smoothing, int64_t n) {
    if (!smoothing.has_value()) return std::vector<double>(n, 0);
    const double* w = smoothing->const_data_ptr<double>();
    return std::vector<double>(w, w + n);
}

bool all_finite(const Tensor& vector) {
    const double* v = vector.const_data_ptr<double>();
    return std::all_of(v, v + vector.size(0), [](double value) { return std::isfinite(value); });
}

template <typename T>
BackwardResult backward(const Block& block, const Saved& saved, double factor) {
    const int64_t n = block.rows();
    Tensor d_x = torch::stable::empty_like(block.x);
    Tensor d_y = block.symmetric ? torch::stable::empty_like(block.y)
                                 : torch::stable::new_empty(block.y, {0});
    Tensor d_scale = torch::stable::new_empty(block.x, {}, ScalarType::Double);
    bool finite = true;  // the forward of any rank may have met a NaN
    for (const Tensor* v : {&saved.x_inv_norm, &saved.y_inv_norm, &saved.row_lse, &saved.col_lse}) {
        finite = finite && all_finite(*v);
    }
    if (!finite || !all_finite(saved.positive)) {
        fill_nan({d_x, d_y, d_scale});
        return {d_x, d_y, d_scale};
    }
    const double* row_lse = saved.row_lse.const_data_ptr<double>();
    const double* col_lse = saved.col_lse.const_data_ptr<double>();
    const double* z = saved.positive.const_data_ptr<double>();
    const double* a = saved.x_inv_norm.const_data_ptr<double>();
    const double* b = saved.y_inv_norm.const_data_ptr<double>();
    const Problem<T> problem(block, a, b);
    const SplitFactors<T> inv_norm = split<T>(a, 1.0, n);
    const Terms<T> terms(row_lse, n, col_lse, block.cols());
    const std::vector<double> row_weight = weights(saved.row_smoothing, n);
    const std::vector<double> col_weight = weights(saved.col_smoothing, block.cols());
    const std::vector<T> row_smoothing(row_weight.begin(), row_weight.end());
    const std::vector<T> col_smoothing(col_weight.begin(), col_weight.end());
    const BackwardChunk<T> chunk{
        problem.pairs(),      inv_norm.value.data(),      row_smoothing.data(),
        col_smoothing.data(), terms.halvings.value_or(0), terms.row.data(),
        terms.col.data(),     terms.row_low.data(),       terms.col_low.data()};
    const auto epilogue =
        terms.halvings ? epilogues<T>().backward_shared : epilogues<T>().backward_running;
    Sweep<T> sweep(block.x, block.y);
    sweep.gradient(d_x, block.symmetric ? &d_y : nullptr, [&](const Tile<T>& tile) {
        parallel_rows(
            tile, [&](int64_t, int64_t begin, int64_t end) { epilogue(tile, chunk, begin, end); });
        each_positive(tile, block.offset, [&](int64_t i, T& h) {
            const int64_t j = block.offset + i;
            // p - 1 as expm1: a well-learned pair's gradient does not drown in rounding.
            const double g = std::expm1(z[i] - row_lse[i]) + std::expm1(z[i] - col_lse[j]) +
                             2 * saved.label_smoothing - row_weight[i] - col_weight[j];
            h = T(g * a[i] * b[j]);
        });
    });
    const double scaled = block.scale * factor;
    const double along = finish_gradient<T>(block.x, a, block.normalize, scaled, d_x);
    if (block.symmetric) finish_gradient<T>(block.y, b, block.normalize, scaled, d_y);
    torch::stable::fill_(d_scale, factor * along);
    return {d_x, d_y, d_scale};
}

constexpr const char* kOp = "contrastive_loss";

void check_saved(const Tensor& vector, int64_t size) {
    STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == size && vector.is_contiguous() &&
                        vector.scalar_type() == ScalarType::Double && vector.is_cpu(),
                    kOp, ": a saved vector must be contiguous float64 (", size, ",) on the CPU.");
}

ForwardResult contrastive_fwd(const Tensor& x, const Tensor& y, const Tensor& logit_scale,
                              const std::optional<Tensor>& ids, int64_t offset, bool normalize,
                              bool symmetric, bool top1) {
    check_block(kOp, x, y, logit_scale, ids, offset, symmetric);
    const Block block{x, y, to_double(logit_scale), ids, offset, normalize, symmetric};
    return (x.scalar_type() == ScalarType::Double ? forward<double> : forward<float>)(block, top1);
}

BackwardResult contrastive_bwd(const Tensor& factor, const Tensor& x, const Tensor& y,
                               const Tensor& logit_scale, const std::optional<Tensor>& ids,
                               int64_t offset, bool normalize, bool symmetric,
                               const Tensor& x_inv_norm, const Tensor& y_inv_norm,
                               const Tensor& row_lse, const Tensor& col_lse, const Tensor& positive,
                               const std::optional<Tensor>& row_smoothing,
                               const std::optional<Tensor>& col_smoothing, double label_smoothing) {
    check_block(kOp, x, y, logit_scale, ids, offset, symmetric);
    for (const Tensor* v : {&x_inv_norm, &row_lse, &positive}) check_saved(*v, x.size(0));
    for (const Tensor* v : {&y_inv_norm, &col_lse}) check_saved(*v, y.size(0));
    if (row_smoothing.has_value()) check_saved(*row_smoothing, x.size(0));
    if (col_smoothing.has_value()) check_saved(*col_smoothing, y.size(0));
    STD_TORCH_CHECK(factor.numel() == 1, kOp, ": factor must have 1 element, got ", factor.numel(),
                    ".");
    const Block block{x, y, to_double(logit_scale), ids, offset, normalize, symmetric};
    const Saved saved{x_inv_norm, y_inv_norm,    row_lse,       col_lse,
                      positive,   row_smoothing, col_smoothing, label_smoothing};
    return (x.scalar_type() == ScalarType::Double
                ? backward<double>
                : backward<float>)(block, saved, to_double(factor));
}

}  // namespace
}  // namespace clipfast

// The schemas are defined in clipfast_kernels/ops/contrastive/cpu.py, so that they exist without
// this extension.
STABLE_TORCH_LIBRARY_IMPL(clipfast_kernels, CPU, m) {
    m.impl("contrastive_fwd_cpu", TORCH_BOX(&clipfast::contrastive_fwd));
    m.impl("contrastive_bwd_cpu", TORCH_BOX(&clipfast::contrastive_bwd));
}
