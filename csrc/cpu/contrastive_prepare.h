// What the contrastive loss needs before and after its sweeps, all of it O(N·D) work in double:
// which pairs count, the inverse norms, a reference for the exponentials, and the way back through
// the normalisation.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "sweep.h"

namespace clipfast {

constexpr int64_t kGrainElements = 32768;  // of an O(N·D) loop, per task

// Which pairs count, and how much label smoothing gives each.
template <typename T>
struct Targets {
    std::vector<int32_t> group;  // (N,) the ids, numbered densely
    std::vector<double> weight;  // (N,) label_smoothing / |A_i|
    std::vector<T> smoothing;    // (N,) the same, rounded
};

template <typename T>
Targets<T> targets(const std::optional<Tensor>& ids, int64_t n, double label_smoothing) {
    Targets<T> result{std::vector<int32_t>(n), std::vector<double>(n, label_smoothing / n), {}};
    if (ids.has_value()) {
        const int64_t* id = ids->const_data_ptr<int64_t>();
        std::vector<int64_t> distinct(id, id + n);
        std::sort(distinct.begin(), distinct.end());
        distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
        std::vector<int64_t> members(distinct.size(), 0);
        for (int64_t i = 0; i < n; ++i) {
            const auto place = std::lower_bound(distinct.begin(), distinct.end(), id[i]);
            result.group[i] = static_cast<int32_t>(place - distinct.begin());
            ++members[result.group[i]];
        }
        for (int64_t i = 0; i < n; ++i) {
            result.weight[i] = label_smoothing / (n - members[result.group[i]] + 1);
        }
    } else {
        std::iota(result.group.begin(), result.group.end(), 0);
    }
    result.smoothing.assign(result.weight.begin(), result.weight.end());
    return result;
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

template <typename Body>
void parallel_each(int64_t n, int64_t width, const Body& body) {
    torch::stable::parallel_for(0, n,
                                std::max<int64_t>(1, kGrainElements / std::max<int64_t>(width, 1)),
                                [&](int64_t begin, int64_t end) {
                                    for (int64_t i = begin; i < end; ++i) body(i);
                                });
}

// Numbers to twice T's precision: value · (1 + error).
template <typename T>
struct SplitFactors {
    std::vector<T> value, error;  // (N,)
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
    double smallest_positive;  // min z_ii: no row's or column's maximum is below
    bool finite;               // false: a feature is NaN or infinite, or a dot product may overflow
};

// Also fills the inverse norms, (N,) each: 1 where not normalising; 0 for a zero row, which then
// has neither logits nor gradient.
template <typename T>
LogitRange measure(const Tensor& image, const Tensor& text, double scale, bool normalize,
                   double* image_inv_norm, double* text_inv_norm) {
    const int64_t n = image.size(0), width = image.size(1);
    const T* x = image.const_data_ptr<T>();
    const T* y = text.const_data_ptr<T>();
    std::vector<double> x_norm(n), y_norm(n), positive(n);
    // Below this a norm counts as zero: its inverse times a logit scale would overflow.
    const double zero = 1e8 * std::numeric_limits<T>::min();
    const auto inverse = [&](double norm) {
        return !normalize ? 1.0 : norm < zero ? 0.0 : 1.0 / norm;
    };
    parallel_each(n, 3 * width, [&](int64_t i) {
        const T *xi = x + i * width, *yi = y + i * width;
        x_norm[i] = std::sqrt(dot(xi, xi, width));
        y_norm[i] = std::sqrt(dot(yi, yi, width));
        image_inv_norm[i] = inverse(x_norm[i]);
        text_inv_norm[i] = inverse(y_norm[i]);
        positive[i] = scale * dot(xi, yi, width) * image_inv_norm[i] * text_inv_norm[i];
    });
    double x_max = 0, y_max = 0, lowest = std::numeric_limits<double>::infinity();
    bool finite = std::isfinite(scale);
    for (int64_t i = 0; i < n; ++i) {
        finite = finite && std::isfinite(x_norm[i]) && std::isfinite(y_norm[i]);
        x_max = std::max(x_max, x_norm[i]);
        y_max = std::max(y_max, y_norm[i]);
        lowest = std::min(lowest, positive[i]);
    }
    const double largest = std::abs(scale) * (normalize ? 1.0 : x_max * y_max);
    const double overflow = 0.5 * std::numeric_limits<T>::max();
    finite = finite && x_max * y_max < overflow && largest < overflow;
    return {largest, lowest, finite};
}

constexpr double kLn2 = 0.6931471805599453;

// A common reference c = halvings · ln2 for all exponentials: no z exceeds c + 80, so no sum
// overflows, and no row's or column's maximum is below c - 60, so that what underflows (c - 87) is
// below 1e-11 of every sum. Zero where that is possible, nothing where no c will do.
inline std::optional<int> shared_reference(double largest, double smallest_maximum) {
    const double least = std::ceil((largest - 80) / kLn2);
    const double most = std::floor((smallest_maximum + 60) / kLn2);
    if (!(least <= most)) return std::nullopt;
    const double halvings = std::clamp(0.0, least, most);
    // The exponential's reduction is exact for so many multiples of ln2.
    return std::abs(halvings) < 4096 ? std::optional<int>(halvings) : std::nullopt;
}

// -log p of the positive, log(1 + Σ_{others} e^{z - z_ii}), from others = Σ e^{z - reference}:
// exact 0 without others.
inline double negative_log_likelihood(double others, double reference, double positive) {
    if (others == 0) return 0;
    const double shift = reference - positive;
    return shift < 600 ? std::log1p(others * std::exp(shift)) : shift + std::log(others);
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

}  // namespace clipfast
