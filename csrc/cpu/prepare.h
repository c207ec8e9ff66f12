// What a loss over a block of the pair matrix needs before and after its sweeps, all of it O(N·D)
// work in double: which pairs count, the inverse norms, and the way back through the normalisation.
//
// Shapes: n rows (x), N columns (y), D features. Row i's positive is column offset + i.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "sweep.h"

namespace clipfast {

// kernels/clipfast_kernels/ops/block.py says what each field is.
struct Block {
    const Tensor& x;
    const Tensor& y;
    double scale;
    const std::optional<Tensor>& ids;
    int64_t offset;
    bool normalize;
    bool symmetric;

    int64_t rows() const { return x.size(0); }
    int64_t cols() const { return y.size(0); }
};

inline double to_double(const Tensor& scalar) {
    return *torch::stable::to(scalar, ScalarType::Double).const_data_ptr<double>();
}

inline void fill_nan(const std::vector<Tensor>& tensors) {
    for (const Tensor& t : tensors) {
        torch::stable::fill_(t, std::numeric_limits<double>::quiet_NaN());
    }
}

// (N,) the ids, numbered densely: fits the vectors' 32-bit lanes.
inline std::vector<int32_t> groups(const std::optional<Tensor>& ids, int64_t n) {
    std::vector<int32_t> group(n);
    if (!ids.has_value()) {
        std::iota(group.begin(), group.end(), 0);
        return group;
    }
    const int64_t* id = ids->const_data_ptr<int64_t>();
    std::vector<int64_t> distinct(id, id + n);
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    for (int64_t i = 0; i < n; ++i) {
        const auto place = std::lower_bound(distinct.begin(), distinct.end(), id[i]);
        group[i] = static_cast<int32_t>(place - distinct.begin());
    }
    return group;
}

// In double: no overflow of a float's square, and eight partial sums so that the compiler can use
// vectors.
template <typename T>
double dot(const T* a, const T* b, int64_t count) {
    double partial[8] = {};
    int64_t d = 0;
    for (; d + 8 <= count; d += 8) {
        for (int64_t l = 0; l < 8; ++l) partial[l] += double(a[d + l]) * double(b[d + l]);
    }
    for (; d < count; ++d) partial[0] += double(a[d]) * double(b[d]);
    return ((partial[0] + partial[1]) + (partial[2] + partial[3])) +
           ((partial[4] + partial[5]) + (partial[6] + partial[7]));
}

// Numbers to twice T's precision: value · (1 + error).
template <typename T>
struct SplitFactors {
    std::vector<T> value, error;
};

template <typename T>
SplitFactors<T> split(const double* from, double scale, int64_t n) {
    SplitFactors<T> to{std::vector<T>(n), std::vector<T>(n, 0)};
    for (int64_t i = 0; i < n; ++i) {
        const double exact = scale * from[i];
        to.value[i] = T(exact);
        if (exact != 0) to.error[i] = T((exact - to.value[i]) / exact);
    }
    return to;
}

// What can be known about the logits before computing them.
struct LogitRange {
    double largest;            // |z_ij| <= largest for all pairs (Cauchy-Schwarz)
    double smallest_positive;  // min z_i,offset+i: no row's maximum is below
    bool finite;               // false: a feature is NaN or infinite, or a dot product may overflow
};

// Fills the inverse norms: 1 where not normalising; 0 for a zero row, which then has neither logits
// nor gradient. Returns the largest norm, NaN if one is not finite.
template <typename T>
double measure_norms(const Tensor& features, bool normalize, double* inv_norm) {
    const int64_t n = features.size(0), width = features.size(1);
    const T* x = features.const_data_ptr<T>();
    // Below this a norm counts as zero: its inverse times a logit scale would overflow.
    const double zero = 1e8 * std::numeric_limits<T>::min();
    std::vector<double> norm(n);
    parallel_each(n, width, [&](int64_t i) {
        norm[i] = std::sqrt(dot(x + i * width, x + i * width, width));
        inv_norm[i] = !normalize ? 1.0 : norm[i] < zero ? 0.0 : 1.0 / norm[i];
    });
    double most = 0;
    for (const double value : norm) {
        if (!std::isfinite(value)) return std::numeric_limits<double>::quiet_NaN();
        most = std::max(most, value);
    }
    return most;
}

// Also fills the inverse norms, (n,) and (N,).
template <typename T>
LogitRange measure(const Block& block, double* x_inv_norm, double* y_inv_norm) {
    const double x_max = measure_norms<T>(block.x, block.normalize, x_inv_norm);
    const double y_max = measure_norms<T>(block.y, block.normalize, y_inv_norm);
    const double largest = std::abs(block.scale) * (block.normalize ? 1.0 : x_max * y_max);
    const double overflow = 0.5 * std::numeric_limits<T>::max();
    const bool finite = std::isfinite(block.scale) && x_max * y_max < overflow &&
                        largest < overflow;  // false for NaN
    const int64_t width = block.x.size(1);
    const T* x = block.x.const_data_ptr<T>();
    const T* y = block.y.const_data_ptr<T>() + block.offset * width;
    std::vector<double> positive(block.rows());
    parallel_each(block.rows(), 2 * width, [&](int64_t i) {
        positive[i] = block.scale * dot(x + i * width, y + i * width, width) * x_inv_norm[i] *
                      y_inv_norm[block.offset + i];
    });
    return {largest, *std::min_element(positive.begin(), positive.end()), finite};
}

// Numbers as value · (1 + error), of twice T's precision.
template <typename T>
struct Factors {
    const T* value;
    const T* error;
};

// Per-row and per-column vectors, indexed by row and column of the whole matrix.
template <typename T>
struct Pairs {
    Factors<T> row;            // (n,)  logit scale / ‖x_i‖
    Factors<T> col;            // (N,)  1 / ‖y_j‖
    const int32_t* row_group;  // (n,)  equal groups are not negatives of each other
    const int32_t* col_group;  // (N,)
};

// Owns what Pairs points to.
template <typename T>
struct Problem {
    std::vector<int32_t> group;  // (N,)
    int64_t offset;
    SplitFactors<T> row, col;

    Problem(const Block& block, const double* x_inv_norm, const double* y_inv_norm)
        : group(groups(block.ids, block.cols())),
          offset(block.offset),
          row(split<T>(x_inv_norm, block.scale, block.rows())),
          col(split<T>(y_inv_norm, 1.0, block.cols())) {}

    Pairs<T> pairs() const {
        return {{row.value.data(), row.error.data()},
                {col.value.data(), col.error.data()},
                group.data() + offset,
                group.data()};
    }
};

// Calls body(i, place) for every row i whose positive lies in the tile.
template <typename T, typename Body>
void each_positive(const Tile<T>& tile, int64_t offset, const Body& body) {
    const int64_t last = std::min(tile.row + tile.rows, tile.col + tile.cols - offset);
    for (int64_t i = std::max(tile.row, tile.col - offset); i < last; ++i) {
        body(i, tile.line(i - tile.row)[offset + i - tile.col]);
    }
}

// Turns d, the rows of H·(other features), into the gradient of the features, in place:
// d_x = factor · (d - (x̂·d) x̂), or factor · d without normalisation. Returns Σ x·d.
template <typename T>
double finish_gradient(const Tensor& features, const double* inv_norm, bool normalize,
                       double factor, Tensor& gradient) {
    const int64_t n = features.size(0), width = features.size(1);
    const T* x = features.const_data_ptr<T>();
    T* d = gradient.mutable_data_ptr<T>();
    std::vector<double> product(n);
    parallel_each(n, 2 * width, [&](int64_t i) {
        const T* xi = x + i * width;
        T* di = d + i * width;
        product[i] = dot(xi, di, width);
        const double along = normalize ? product[i] * inv_norm[i] * inv_norm[i] : 0;
        for (int64_t k = 0; k < width; ++k) di[k] = T(factor * (di[k] - along * xi[k]));
    });
    return std::accumulate(product.begin(), product.end(), 0.0);
}

inline void check_features(const char* op, const Tensor& x, const Tensor& y, const Tensor& scale) {
    STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1), op,
                    ": rows and columns must be (n, D) and (N, D).");
    STD_TORCH_CHECK(x.size(0) >= 1 && y.size(0) >= 1 && x.size(1) >= 1 &&
                        std::max(x.size(0), y.size(0)) < (int64_t(1) << 31),
                    op, ": n and N must be 1 to 2^31 - 1 and D at least 1, got n = ", x.size(0),
                    ", N = ", y.size(0), ", D = ", x.size(1), ".");
    const ScalarType dtype = x.scalar_type();
    STD_TORCH_CHECK(
        (dtype == ScalarType::Float || dtype == ScalarType::Double) && y.scalar_type() == dtype, op,
        ": rows and columns must both be float32 or both float64.");
    STD_TORCH_CHECK(x.is_cpu() && y.is_cpu() && x.is_contiguous() && y.is_contiguous(), op,
                    ": rows and columns must be contiguous and on the CPU.");
    STD_TORCH_CHECK(scale.numel() == 1 && scale.is_cpu(), op,
                    ": the scale must have 1 element, on the CPU, got ", scale.numel(), ".");
}

inline void check_block(const char* op, const Tensor& x, const Tensor& y, const Tensor& scale,
                        const std::optional<Tensor>& ids, int64_t offset, bool symmetric) {
    check_features(op, x, y, scale);
    STD_TORCH_CHECK(offset >= 0 && offset + x.size(0) <= y.size(0), op,
                    ": columns offset to offset + n must be among the N, got offset = ", offset,
                    ", n = ", x.size(0), ", N = ", y.size(0), ".");
    STD_TORCH_CHECK(!symmetric || x.size(0) == y.size(0), op,
                    ": a symmetric block must be square, got n = ", x.size(0), ", N = ", y.size(0),
                    ".");
    if (ids.has_value()) {
        STD_TORCH_CHECK(ids->scalar_type() == ScalarType::Long && ids->is_cpu() &&
                            ids->is_contiguous() && ids->dim() == 1 && ids->size(0) == y.size(0),
                        op, ": ids must be contiguous int64 (N,) on the CPU, N = ", y.size(0), ".");
    }
}

}  // namespace clipfast
