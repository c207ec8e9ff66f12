// Computes: the softmax contrastive (CLIP) loss over N pairs and its gradient, with no N×N array.
//     x̂ = x/‖x‖ (or x), z = s · x̂ ŷᵀ; A_i = {j : j == i or ids_j != ids_i}; w_i = ε/|A_i|
//     Lr_i = log Σ_{j∈A_i} e^{z_ij}, Lc_j = log Σ_{i∈A_j} e^{z_ij}
//     loss = [Σ_i (Lr_i + Lc_i - 2(1-ε) z_ii) - Σ_{allowed} z_ij (w_i + w_j)] / 2N
//     G_ij = [e^{z_ij-Lr_i} + e^{z_ij-Lc_j} - 2(1-ε)δ_ij - w_i - w_j] / 2N where allowed, else 0
//     d_x̂ = s G ŷ, d_ŷ = s Gᵀ x̂, d_x = (d_x̂ - (x̂·d_x̂) x̂)/‖x‖, d_s = Σ_i x̂_i · (G ŷ)_i
// Owns: one process's whole batch; a task owns a chunk of rows of one tile (sweep.h).
// FLOPs: 2 N² D forward, 6 N² D backward (the logits again, then two products); one exponential
//     per pair in each, or two where one reference does not serve all (contrastive_tile.h).
// Bytes: the features once per row or column of tiles. Beyond inputs and outputs one tile (16 MiB
//     in float) and O(N) vectors: the inverse norms enter in the epilogues, so that neither
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

#include "contrastive_prepare.h"

#define SIMD_LEVEL 0
#include "contrastive_tile.h"
#undef SIMD_LEVEL
#if CLIPFAST_X86
#define SIMD_LEVEL 1
#include "contrastive_tile.h"
#undef SIMD_LEVEL
#define SIMD_LEVEL 2
#include "contrastive_tile.h"
#undef SIMD_LEVEL
#endif
#define SIMD_LEVEL 3
#include "contrastive_tile.h"
#undef SIMD_LEVEL

namespace clipfast {
namespace {

using torch::headeronly::ScalarType;

// The four epilogues of one instruction set.
template <typename T>
struct Epilogues {
    void (*forward_shared)(const Tile<T>&, const ForwardChunk<T>&, int64_t, int64_t);
    void (*forward_running)(const Tile<T>&, const ForwardChunk<T>&, int64_t, int64_t);
    void (*backward_shared)(const Tile<T>&, const BackwardChunk<T>&, int64_t, int64_t);
    void (*backward_running)(const Tile<T>&, const BackwardChunk<T>&, int64_t, int64_t);
};

template <typename T>
Epilogues<T> epilogues() {
    if constexpr (std::is_same_v<T, double>) {
        using namespace baseline_double;
        return {forward_shared, forward_running, backward_rows<true>, backward_rows<false>};
    } else {
#if CLIPFAST_X86
        if (simd_level() == SimdLevel::kAvx512) {
            using namespace avx512_float;
            return {forward_shared, forward_running, backward_rows<true>, backward_rows<false>};
        }
        if (simd_level() == SimdLevel::kAvx2) {
            using namespace avx2_float;
            return {forward_shared, forward_running, backward_rows<true>, backward_rows<false>};
        }
#endif
        using namespace baseline_float;
        return {forward_shared, forward_running, backward_rows<true>, backward_rows<false>};
    }
}

// Running sums of both directions, of e^{z - reference}: against one reference for all, or against
// each row's and column's maximum so far.
template <typename T>
struct Sums {
    std::optional<int> halvings;
    std::vector<double> row, col, smoothed;  // (n,), (N,), (n,)
    std::vector<T> row_max, col_max;         // (n,), (N,)
    std::vector<T> chunk_sum, chunk_max;     // (chunks, cols) of one tile

    Sums(int64_t n, std::optional<int> shared, const Sweep<T>& sweep)
        : halvings(shared), row(n, 0), col(n, 0), smoothed(n, 0) {
        const int64_t chunks = (sweep.max_tile_rows() + kChunkRows - 1) / kChunkRows;
        chunk_sum.resize(chunks * sweep.max_tile_cols());
        if (halvings) return;
        chunk_max.resize(chunk_sum.size());
        row_max.resize(n, std::numeric_limits<T>::lowest());
        col_max.resize(n, std::numeric_limits<T>::lowest());
    }

    double row_reference(int64_t i) const { return halvings ? *halvings * kLn2 : row_max[i]; }
    double col_reference(int64_t j) const { return halvings ? *halvings * kLn2 : col_max[j]; }

    ForwardChunk<T> chunk(const Pairs<T>& pairs, const Tile<T>& tile, int64_t index) {
        return {pairs,
                halvings.value_or(0),
                row.data(),
                row_max.data(),
                smoothed.data(),
                chunk_sum.data() + index * tile.cols,
                halvings ? nullptr : chunk_max.data() + index * tile.cols};
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
};

double to_double(const Tensor& scalar) {
    return *torch::stable::to(scalar, ScalarType::Double).const_data_ptr<double>();
}

void fill_nan(const std::vector<Tensor>& tensors) {
    for (const Tensor& t : tensors) {
        torch::stable::fill_(t, std::numeric_limits<double>::quiet_NaN());
    }
}

// Calls body(i, place) for every diagonal element i of the whole matrix that lies in the tile.
template <typename T, typename Body>
void each_positive(const Tile<T>& tile, const Body& body) {
    const int64_t last = std::min(tile.row + tile.rows, tile.col + tile.cols);
    for (int64_t i = std::max(tile.row, tile.col); i < last; ++i) {
        body(i, tile.line(i - tile.row)[i - tile.col]);
    }
}

// Everything that forward and backward both derive from the inputs.
template <typename T>
struct Problem {
    Targets<T> target;
    SplitFactors<T> row, col;

    Problem(const std::optional<Tensor>& ids, double label_smoothing, double scale,
            const double* image_inv_norm, const double* text_inv_norm, int64_t n)
        : target(targets<T>(ids, n, label_smoothing)),
          row(split<T>(image_inv_norm, scale, n)),
          col(split<T>(text_inv_norm, 1.0, n)) {}

    Pairs<T> pairs() const {
        return {{row.value.data(), row.error.data()},
                {col.value.data(), col.error.data()},
                target.group.data(),
                target.smoothing.data()};
    }
};

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
ForwardResult forward(const Tensor& image, const Tensor& text, double scale,
                      const std::optional<Tensor>& ids, bool normalize, double label_smoothing) {
    const int64_t n = image.size(0);
    const auto vector = [&] { return torch::stable::new_empty(image, {n}, ScalarType::Double); };
    Tensor loss = torch::stable::new_empty(image, {});
    Tensor image_lse = vector(), text_lse = vector(), positive = vector();
    Tensor image_inv_norm = vector(), text_inv_norm = vector();
    double* a = image_inv_norm.mutable_data_ptr<double>();
    double* b = text_inv_norm.mutable_data_ptr<double>();
    double* z = positive.mutable_data_ptr<double>();
    const ForwardResult result{loss, image_lse, text_lse, positive, image_inv_norm, text_inv_norm};
    const LogitRange range = measure<T>(image, text, scale, normalize, a, b);
    if (!range.finite) {  // said once, here, so that no clamp or comparison below can hide it
        fill_nan({loss, image_lse, text_lse, positive});
        return result;
    }
    const Problem<T> problem(ids, label_smoothing, scale, a, b, n);
    const std::optional<int> halvings = shared_reference(range.largest, range.smallest_positive);
    const auto epilogue = halvings ? epilogues<T>().forward_shared : epilogues<T>().forward_running;
    Sweep<T> sweep(image, text);
    Sums<T> sums(n, halvings, sweep);
    sweep.forward([&](const Tile<T>& tile) {
        each_positive(tile, [&](int64_t i, T& d) { z[i] = scale * d * a[i] * b[i]; });
        parallel_rows(tile, [&](int64_t chunk, int64_t begin, int64_t end) {
            epilogue(tile, sums.chunk(problem.pairs(), tile, chunk), begin, end);
        });
        sums.merge_columns(tile);
    });
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double row = negative_log_likelihood(sums.row[i], sums.row_reference(i), z[i]);
        const double col = negative_log_likelihood(sums.col[i], sums.col_reference(i), z[i]);
        image_lse.mutable_data_ptr<double>()[i] = z[i] + row;
        text_lse.mutable_data_ptr<double>()[i] = z[i] + col;
        // z_ii itself has the smoothed weight 2ε - 2w_i, which `smoothed` leaves out.
        const double weight = 2 * (label_smoothing - problem.target.weight[i]);
        total += row + col + weight * z[i] - sums.smoothed[i];
    }
    *loss.mutable_data_ptr<T>() = T(total / (2.0 * n));
    return result;
}

// The vectors that backward_shared or backward_running want.
template <typename T>
struct Terms {
    std::optional<int> halvings;
    std::vector<T> row, col, row_low, col_low;

    Terms(const double* row_lse, const double* col_lse, int64_t n) {
        const auto [row_min, row_max] = std::minmax_element(row_lse, row_lse + n);
        const auto [col_min, col_max] = std::minmax_element(col_lse, col_lse + n);
        // No allowed logit exceeds its row's log-sum-exp, so the largest of them bounds them all.
        halvings = shared_reference(std::max(*row_max, *col_max), std::min(*row_min, *col_min));
        fill(row_lse, n, row, row_low);
        fill(col_lse, n, col, col_low);
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

template <typename T>
BackwardResult backward(double d_loss, const Tensor& image, const Tensor& text,
                        const Tensor& logit_scale, const std::optional<Tensor>& ids, bool normalize,
                        double label_smoothing, const Tensor& image_lse, const Tensor& text_lse,
                        const Tensor& positive, const Tensor& image_inv_norm,
                        const Tensor& text_inv_norm) {
    const int64_t n = image.size(0);
    const double scale = to_double(logit_scale);
    Tensor d_image = torch::stable::empty_like(image), d_text = torch::stable::empty_like(text);
    Tensor d_scale = torch::stable::empty_like(logit_scale);
    const double* row_lse = image_lse.const_data_ptr<double>();
    const double* col_lse = text_lse.const_data_ptr<double>();
    const double* z = positive.const_data_ptr<double>();
    const double* a = image_inv_norm.const_data_ptr<double>();
    const double* b = text_inv_norm.const_data_ptr<double>();
    if (std::isnan(row_lse[0])) {  // the forward makes all of them NaN or none
        fill_nan({d_image, d_text, d_scale});
        return {d_image, d_text, d_scale};
    }
    const Problem<T> problem(ids, label_smoothing, scale, a, b, n);
    const SplitFactors<T> inv_norm = split<T>(a, 1.0, n);
    const Terms<T> terms(row_lse, col_lse, n);
    const BackwardChunk<T> chunk{
        problem.pairs(),  inv_norm.value.data(), terms.halvings.value_or(0), terms.row.data(),
        terms.col.data(), terms.row_low.data(),  terms.col_low.data()};
    const auto epilogue =
        terms.halvings ? epilogues<T>().backward_shared : epilogues<T>().backward_running;
    Sweep<T>(image, text).backward(d_image, d_text, [&](const Tile<T>& tile) {
        parallel_rows(
            tile, [&](int64_t, int64_t begin, int64_t end) { epilogue(tile, chunk, begin, end); });
        each_positive(tile, [&](int64_t i, T& h) {
            // p - 1 as expm1: a well-learned pair's gradient does not drown in rounding.
            const double g = std::expm1(z[i] - row_lse[i]) + std::expm1(z[i] - col_lse[i]) +
                             2 * (label_smoothing - problem.target.weight[i]);
            h = T(g * a[i] * b[i]);
        });
    });
    const double share = d_loss / (2.0 * n);
    const double along = finish_gradient<T>(image, a, normalize, scale * share, d_image);
    finish_gradient<T>(text, b, normalize, scale * share, d_text);
    torch::stable::fill_(d_scale, share * along);
    return {d_image, d_text, d_scale};
}

void check_inputs(const Tensor& image, const Tensor& text, const Tensor& logit_scale,
                  const std::optional<Tensor>& ids) {
    STD_TORCH_CHECK(image.dim() == 2 && text.dim() == 2,
                    "contrastive_loss: image and text must be (N, D), got ", image.dim(), " and ",
                    text.dim(), " dimensions.");
    STD_TORCH_CHECK(image.size(0) == text.size(0) && image.size(1) == text.size(1),
                    "contrastive_loss: image and text must have one shape, got (", image.size(0),
                    ", ", image.size(1), ") and (", text.size(0), ", ", text.size(1), ").");
    STD_TORCH_CHECK(
        image.size(0) >= 1 && image.size(0) < (int64_t(1) << 31) && image.size(1) >= 1,
        "contrastive_loss: image must have 1 to 2^31 - 1 rows and at least 1 column, got (",
        image.size(0), ", ", image.size(1), ").");
    const ScalarType dtype = image.scalar_type();
    STD_TORCH_CHECK(
        (dtype == ScalarType::Float || dtype == ScalarType::Double) && text.scalar_type() == dtype,
        "contrastive_loss: image and text must both be float32 or both float64.");
    STD_TORCH_CHECK(image.is_cpu() && text.is_cpu() && logit_scale.is_cpu(),
                    "contrastive_loss: image, text and logit_scale must be on the CPU.");
    STD_TORCH_CHECK(image.is_contiguous() && text.is_contiguous(),
                    "contrastive_loss: image and text must be contiguous.");
    STD_TORCH_CHECK(logit_scale.numel() == 1,
                    "contrastive_loss: logit_scale must have 1 element, got ", logit_scale.numel(),
                    ".");
    if (ids.has_value()) {
        STD_TORCH_CHECK(
            ids->scalar_type() == ScalarType::Long && ids->is_cpu() && ids->is_contiguous() &&
                ids->dim() == 1 && ids->size(0) == image.size(0),
            "contrastive_loss: ids must be contiguous int64 (N,) on the CPU, N = ", image.size(0),
            ".");
    }
}

ForwardResult contrastive_fwd(const Tensor& image, const Tensor& text, const Tensor& logit_scale,
                              const std::optional<Tensor>& ids, bool normalize,
                              double label_smoothing) {
    check_inputs(image, text, logit_scale, ids);
    const auto run = image.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
    return run(image, text, to_double(logit_scale), ids, normalize, label_smoothing);
}

BackwardResult contrastive_bwd(const Tensor& d_loss, const Tensor& image, const Tensor& text,
                               const Tensor& logit_scale, const std::optional<Tensor>& ids,
                               bool normalize, double label_smoothing, const Tensor& image_lse,
                               const Tensor& text_lse, const Tensor& positive,
                               const Tensor& image_inv_norm, const Tensor& text_inv_norm) {
    check_inputs(image, text, logit_scale, ids);
    for (const Tensor& saved : {image_lse, text_lse, positive, image_inv_norm, text_inv_norm}) {
        STD_TORCH_CHECK(
            saved.dim() == 1 && saved.size(0) == image.size(0) && saved.is_contiguous() &&
                saved.scalar_type() == ScalarType::Double && saved.is_cpu(),
            "contrastive_loss: the saved vectors must be those of the forward, (N,) with N = ",
            image.size(0), " and float64.");
    }
    const auto run = image.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
    return run(to_double(d_loss), image, text, logit_scale, ids, normalize, label_smoothing,
               image_lse, text_lse, positive, image_inv_norm, text_inv_norm);
}

}  // namespace
}  // namespace clipfast

// The schemas are defined in clipfast_kernels/ops/contrastive/cpu.py, so that they exist without
// this extension.
STABLE_TORCH_LIBRARY_IMPL(clipfast_kernels, CPU, m) {
    m.impl("contrastive_fwd_cpu", TORCH_BOX(&clipfast::contrastive_fwd));
    m.impl("contrastive_bwd_cpu", TORCH_BOX(&clipfast::contrastive_bwd));
}
