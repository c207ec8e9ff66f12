// Computes: y = relu?((x − mean)·gain + bias) by channel, with the batch's mean and variance, and the
//   gradients, for channels-last activations: (R, C), a row per image and place.
// Owns: a task owns pieces of at most 256 rows; their sums are joined in order.
// FLOPs: about 12 an element forward, 16 backward. Bytes: 12 and 20 an element, in float; the limit.
// Accumulates in: 64 additions of four rows each in the element type, then double.
// Deterministic: yes, on any number of threads.
// Source: Ioffe and Szegedy 2015, arXiv 1502.03167; Chan, Golub and LeVeque 1979 (joining moments).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <type_traits>
#include <vector>

#define SIMD_FILE "batch_norm_tile.h"
#include "simd_levels.h"

namespace clipfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kPieceRows = 256;  // at most
constexpr int64_t kGrain = 32768;    // elements per task, at least

template <typename T>
const BatchNormPasses<T>& choose_passes() {
    if constexpr (std::is_same_v<T, double>) {
        return baseline_double::kBatchNorm;
    } else {
#if CLIPFAST_X86
        if (simd_level() == SimdLevel::kAvx512) return avx512_float::kBatchNorm;
        if (simd_level() == SimdLevel::kAvx2) return avx2_float::kBatchNorm;
#endif
        return baseline_float::kBatchNorm;
    }
}

template <typename T>
const T* values(const Tensor& x) {
    return static_cast<const T*>(x.data_ptr());
}

template <typename T>
T* writable(const Tensor& x) {
    return static_cast<T*>(x.data_ptr());
}

// All but equally long: a ResNet's last stage has so few that a short one leaves a core idle.
struct Pieces {
    int64_t rows, channels;

    explicit Pieces(const Tensor& x) : rows(x.size(0)), channels(x.size(1)) {}

    int64_t count() const { return (rows + kPieceRows - 1) / kPieceRows; }
    int64_t first(int64_t piece) const { return rows * piece / count(); }
    int64_t size(int64_t piece) const { return first(piece + 1) - first(piece); }
    int64_t offset(int64_t piece) const { return first(piece) * channels; }

    // work(piece) for all of them.
    template <typename Work>
    void run(const Work& work) const {
        const int64_t grain = std::max<int64_t>(1, kGrain / (kPieceRows * channels));
        torch::stable::parallel_for(0, count(), grain, [&](int64_t begin, int64_t end) {
            for (int64_t piece = begin; piece < end; ++piece) work(piece);
        });
    }
};

template <typename T>
ChannelMap<T> channel_map(const Tensor& mean, const Tensor& gain, const Tensor& bias, bool relu) {
    return {values<T>(mean), values<T>(gain), values<T>(bias), mean.numel(), relu};
}

// moments (2, C): mean and biased variance.
template <typename T>
void moments_of(const Tensor& x, const Tensor& moments) {
    const Pieces pieces(x);
    const int64_t channels = pieces.channels;
    std::vector<double> found(pieces.count() * 2 * channels);
    pieces.run([&](int64_t piece) {
        std::vector<T> scratch(3 * channels);
        double* mean = found.data() + piece * 2 * channels;
        choose_passes<T>().moments(values<T>(x) + pieces.offset(piece), pieces.size(piece),
                                   channels, scratch.data(), mean, mean + channels);
    });
    double *mean = writable<double>(moments), *m2 = mean + channels;
    std::fill(mean, mean + 2 * channels, 0.0);
    int64_t joined = 0;
    for (int64_t piece = 0; piece < pieces.count(); ++piece) {
        const double* next = found.data() + piece * 2 * channels;
        const int64_t rows = pieces.size(piece), all = joined + rows;
        for (int64_t c = 0; c < channels; ++c) {
            const double apart = next[c] - mean[c];
            mean[c] += apart * rows / all;
            m2[c] += next[channels + c] + apart * apart * joined * rows / all;
        }
        joined = all;
    }
    for (int64_t c = 0; c < channels; ++c) m2[c] /= pieces.rows;
}

template <typename T>
void apply_to(const Tensor& x, const ChannelMap<T>& map, const Tensor& y) {
    const Pieces pieces(x);
    pieces.run([&](int64_t piece) {
        const int64_t at = pieces.offset(piece);
        choose_passes<T>().apply(values<T>(x) + at, pieces.size(piece), map, writable<T>(y) + at);
    });
}

// sums (2, C): Σg and Σg·(x − mean).
template <typename T>
void sums_of(const Tensor& d_y, const Tensor& x, const ChannelMap<T>& map, const Tensor& sums) {
    const Pieces pieces(x);
    const int64_t channels = pieces.channels;
    std::vector<double> found(pieces.count() * 2 * channels);
    pieces.run([&](int64_t piece) {
        std::vector<T> scratch(2 * channels);
        const int64_t at = pieces.offset(piece);
        double* plain = found.data() + piece * 2 * channels;
        choose_passes<T>().sums(values<T>(d_y) + at, values<T>(x) + at, pieces.size(piece), map,
                                scratch.data(), plain, plain + channels);
    });
    double* to = writable<double>(sums);
    std::fill(to, to + 2 * channels, 0.0);
    for (int64_t piece = 0; piece < pieces.count(); ++piece) {
        const double* next = found.data() + piece * 2 * channels;
        for (int64_t i = 0; i < 2 * channels; ++i) to[i] += next[i];
    }
}

template <typename T>
void gradient_of(const Tensor& d_y, const Tensor& x, const ChannelMap<T>& map, const Tensor& offset,
                 const Tensor& slope, const Tensor& d_x) {
    const Pieces pieces(x);
    pieces.run([&](int64_t piece) {
        const int64_t at = pieces.offset(piece);
        choose_passes<T>().gradient(values<T>(d_y) + at, values<T>(x) + at, pieces.size(piece), map,
                                    values<T>(offset), values<T>(slope), writable<T>(d_x) + at);
    });
}

bool is_double(const Tensor& x) {
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(x.dim() == 2 && (type == ScalarType::Float || type == ScalarType::Double),
                    "batch_norm: x must be (R, C), float32 or float64.");
    return type == ScalarType::Double;
}

void check(const char* name, const Tensor& x, ScalarType type, int64_t numel) {
    STD_TORCH_CHECK(
        x.is_cpu() && x.is_contiguous() && x.numel() == numel && x.scalar_type() == type,
        "batch_norm: ", name, " must be contiguous on the CPU, of the right size and dtype.");
}

void check_channels(const Tensor& x, std::initializer_list<const Tensor*> of_channels) {
    check("x", x, x.scalar_type(), x.numel());
    for (const Tensor* t : of_channels) {
        check("a value per channel", *t, x.scalar_type(), x.size(1));
    }
}

void batch_norm_moments(const Tensor& x, const Tensor& moments) {
    check_channels(x, {});
    check("moments", moments, ScalarType::Double, 2 * x.size(1));
    (is_double(x) ? moments_of<double> : moments_of<float>)(x, moments);
}

void batch_norm_fwd(const Tensor& x, const Tensor& mean, const Tensor& gain, const Tensor& bias,
                    bool relu, const Tensor& y) {
    check_channels(x, {&mean, &gain, &bias});
    check("y", y, x.scalar_type(), x.numel());
    if (is_double(x)) {
        apply_to(x, channel_map<double>(mean, gain, bias, relu), y);
    } else {
        apply_to(x, channel_map<float>(mean, gain, bias, relu), y);
    }
}

void batch_norm_sums(const Tensor& d_y, const Tensor& x, const Tensor& mean, const Tensor& gain,
                     const Tensor& bias, bool relu, const Tensor& sums) {
    check_channels(x, {&mean, &gain, &bias});
    check("d_y", d_y, x.scalar_type(), x.numel());
    check("sums", sums, ScalarType::Double, 2 * x.size(1));
    if (is_double(x)) {
        sums_of(d_y, x, channel_map<double>(mean, gain, bias, relu), sums);
    } else {
        sums_of(d_y, x, channel_map<float>(mean, gain, bias, relu), sums);
    }
}

void batch_norm_bwd(const Tensor& d_y, const Tensor& x, const Tensor& mean, const Tensor& gain,
                    const Tensor& bias, bool relu, const Tensor& offset, const Tensor& slope,
                    const Tensor& d_x) {
    check_channels(x, {&mean, &gain, &bias, &offset, &slope});
    check("d_y", d_y, x.scalar_type(), x.numel());
    check("d_x", d_x, x.scalar_type(), x.numel());
    if (is_double(x)) {
        gradient_of(d_y, x, channel_map<double>(mean, gain, bias, relu), offset, slope, d_x);
    } else {
        gradient_of(d_y, x, channel_map<float>(mean, gain, bias, relu), offset, slope, d_x);
    }
}

}  // namespace
}  // namespace clipfast

// The schemas are defined in clipfast_kernels/ops/batch_norm/cpu.py, so that they exist without
// this extension.
STABLE_TORCH_LIBRARY_IMPL(clipfast_kernels, CPU, m) {
    m.impl("batch_norm_moments_cpu", TORCH_BOX(&clipfast::batch_norm_moments));
    m.impl("batch_norm_fwd_cpu", TORCH_BOX(&clipfast::batch_norm_fwd));
    m.impl("batch_norm_sums_cpu", TORCH_BOX(&clipfast::batch_norm_sums));
    m.impl("batch_norm_bwd_cpu", TORCH_BOX(&clipfast::batch_norm_bwd));
}
