// Computes: the sigmoid (SigLIP) loss over a block of n rows and N columns of the pair matrix, and
// its gradient in the same sweep, with no n×N array. Row i's positive is column offset + i.
//     x̂ = x/‖x‖ (or x), z = s · x̂ ŷᵀ + b; a pair is kept if it is a positive or its ids differ
//     loss = Σ_kept softplus(-t z), t = 1 at positives and -1 elsewhere; g = ∂loss/∂z
//     d_x̂ = s g ŷ, d_ŷ = s gᵀ x̂, d_x = (d_x̂ - (x̂·d_x̂) x̂)/‖x‖, d_s = Σ_i x̂_i · (g ŷ)_i, d_b = Σ g
// Owns: a task owns a chunk of rows of one tile (sweep.h).
// FLOPs: 2 n N D for the loss alone, 4 n N D with the rows' gradient, 6 n N D with both sides'; one
//     exponential per pair.
// Bytes: the features once per row or column of tiles. Beyond inputs and outputs one tile (16 MiB
//     in float) and O(n + N) vectors.
// Accumulates in: float products (torch's mm), float within a tile's row, double across tiles.
// Deterministic: yes; every sum has one owner and a fixed order. Only torch's mm may depend on the
//     number of threads.
// Source: Zhai et al. 2023 (arXiv 2303.15343), algorithm 1.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "prepare.h"

#define SIMD_FILE "sigmoid_tile.h"
#include "simd_levels.h"

namespace clipfast {
namespace {

template <typename T>
SigmoidEpilogues<T> epilogues() {
    if constexpr (std::is_same_v<T, double>) {
        return baseline_double::sigmoid_epilogues();
    } else {
#if CLIPFAST_X86
        if (simd_level() == SimdLevel::kAvx512) return avx512_float::sigmoid_epilogues();
        if (simd_level() == SimdLevel::kAvx2) return avx2_float::sigmoid_epilogues();
#endif
        return baseline_float::sigmoid_epilogues();
    }
}

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Rows of the block, one after the other: what each adds to the loss and to its bias's gradient.
struct RowSums {
    std::vector<double> loss, d_bias;
};

// A positive's logit turns into its share of the sums; returns g = -σ(-z).
double add_positive(double z, double& loss, double& d_bias) {
    const double e = std::exp(-std::abs(z));
    loss += std::max(-z, 0.0) + std::log1p(e);
    const double g = -(z > 0 ? e : 1.0) / (1.0 + e);
    d_bias += g;
    return g;
}

template <typename T>
Result forward(const Block& block, double bias, bool gradient) {
    const int64_t n = block.rows();
    const auto empty = [&] { return torch::stable::new_empty(block.x, {0}); };
    const auto scalar = [&] { return torch::stable::new_empty(block.x, {}, ScalarType::Double); };
    Tensor loss = scalar(), d_scale = scalar(), d_bias = scalar();
    Tensor d_x = gradient ? torch::stable::empty_like(block.x) : empty();
    Tensor d_y = gradient && block.symmetric ? torch::stable::empty_like(block.y) : empty();
    std::vector<double> a(n), b(block.cols()), z(n);
    if (!measure<T>(block, a.data(), b.data()).finite || !std::isfinite(bias)) {
        fill_nan({loss, d_x, d_y, d_scale, d_bias});
        return {loss, d_x, d_y, d_scale, d_bias};
    }
    const Problem<T> problem(block, a.data(), b.data());
    const SplitFactors<T> inv_norm = split<T>(a.data(), 1.0, n);
    RowSums sums{std::vector<double>(n, 0), std::vector<double>(n, 0)};
    const SigmoidChunk<T> chunk{problem.pairs(),       T(bias),          T(bias - T(bias)),
                                inv_norm.value.data(), sums.loss.data(), sums.d_bias.data()};
    const auto epilogue = gradient ? epilogues<T>().gradient : epilogues<T>().loss;
    const auto visit = [&](const Tile<T>& tile) {
        each_positive(tile, block.offset, [&](int64_t i, T& d) {
            z[i] = block.scale * d * a[i] * b[block.offset + i] + bias;
        });
        parallel_rows(
            tile, [&](int64_t, int64_t begin, int64_t end) { epilogue(tile, chunk, begin, end); });
        each_positive(tile, block.offset, [&](int64_t i, T& h) {
            const double g = add_positive(z[i], sums.loss[i], sums.d_bias[i]);
            if (gradient) h = T(g * a[i] * b[block.offset + i]);
        });
    };
    Sweep<T> sweep(block.x, block.y);
    double along = 0, total_d_bias = 0;
    if (gradient) {
        sweep.gradient(d_x, block.symmetric ? &d_y : nullptr, visit);
        along = finish_gradient<T>(block.x, a.data(), block.normalize, block.scale, d_x);
        if (block.symmetric) {
            finish_gradient<T>(block.y, b.data(), block.normalize, block.scale, d_y);
        }
        total_d_bias = std::accumulate(sums.d_bias.begin(), sums.d_bias.end(), 0.0);
    } else {
        sweep.forward(visit);
    }
    *loss.mutable_data_ptr<double>() = std::accumulate(sums.loss.begin(), sums.loss.end(), 0.0);
    *d_scale.mutable_data_ptr<double>() = along;
    *d_bias.mutable_data_ptr<double>() = total_d_bias;
    return {loss, d_x, d_y, d_scale, d_bias};
}

Result sigmoid_fwd(const Tensor& x, const Tensor& y, const Tensor& logit_scale,
                   const Tensor& logit_bias, const std::optional<Tensor>& ids, int64_t offset,
                   bool normalize, bool symmetric, bool gradient) {
    check_block("sigmoid_loss", x, y, logit_scale, ids, offset, symmetric);
    STD_TORCH_CHECK(logit_bias.numel() == 1 && logit_bias.is_cpu(),
                    "sigmoid_loss: logit_bias must have 1 element, on the CPU, got ",
                    logit_bias.numel(), ".");
    const Block block{x, y, to_double(logit_scale), ids, offset, normalize, symmetric};
    const auto run = x.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
    return run(block, to_double(logit_bias), gradient);
}

}  // namespace
}  // namespace clipfast

// The schema is defined in clipfast_kernels/ops/sigmoid/cpu.py, so that it exists without this
// extension.
STABLE_TORCH_LIBRARY_IMPL(clipfast_kernels, CPU, m) {
    m.impl("sigmoid_fwd_cpu", TORCH_BOX(&clipfast::sigmoid_fwd));
}
