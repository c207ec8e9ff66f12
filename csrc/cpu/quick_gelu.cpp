// Computes: y = x·σ(1.702 x), and d_x = d_y·σ·(1 + 1.702 x (1 − σ)), element by element.
// Owns: a task owns a stretch of elements.
// FLOPs: about 25 an element. Bytes: 8 an element forward, 12 backward, in float; the limit.
// Deterministic: yes.
// Source: Hendrycks and Gimpel 2016, arXiv 1606.08415, §2.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <type_traits>

#define SIMD_FILE "quick_gelu_tile.h"
#include "simd_levels.h"

namespace clipfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 32768;  // elements per task

template <typename T>
QuickGeluPass<T> choose_pass(bool backward) {
    if constexpr (std::is_same_v<T, double>) {
        return backward ? baseline_double::quick_gelu_backward
                        : baseline_double::quick_gelu_forward;
    } else {
#if CLIPFAST_X86
        if (simd_level() == SimdLevel::kAvx512) {
            return backward ? avx512_float::quick_gelu_backward : avx512_float::quick_gelu_forward;
        }
        if (simd_level() == SimdLevel::kAvx2) {
            return backward ? avx2_float::quick_gelu_backward : avx2_float::quick_gelu_forward;
        }
#endif
        return backward ? baseline_float::quick_gelu_backward : baseline_float::quick_gelu_forward;
    }
}

template <typename T>
void run(const Tensor* d_y, const Tensor& x, const Tensor& to) {
    const auto pass = choose_pass<T>(d_y != nullptr);
    const T* slope = d_y == nullptr ? nullptr : static_cast<const T*>(d_y->data_ptr());
    const T* from = static_cast<const T*>(x.data_ptr());
    T* result = static_cast<T*>(to.data_ptr());
    torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
        pass(slope == nullptr ? nullptr : slope + begin, from + begin, result + begin, end - begin);
    });
}

void check(const char* name, const Tensor& x, const Tensor& like) {
    STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && x.numel() == like.numel() &&
                        x.scalar_type() == like.scalar_type(),
                    "quick_gelu: ", name, " must be contiguous on the CPU, of x's size and dtype.");
}

void quick_gelu(const Tensor* d_y, const Tensor& x, const Tensor& to) {
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "quick_gelu: x must be float32 or float64.");
    check("x", x, x);
    check("the result", to, x);
    if (d_y != nullptr) check("d_y", *d_y, x);
    (type == ScalarType::Float ? run<float> : run<double>)(d_y, x, to);
}

void quick_gelu_fwd(const Tensor& x, const Tensor& y) { quick_gelu(nullptr, x, y); }

void quick_gelu_bwd(const Tensor& d_y, const Tensor& x, const Tensor& d_x) {
    quick_gelu(&d_y, x, d_x);
}

}  // namespace
}  // namespace clipfast

// The schemas are defined in clipfast_kernels/ops/quick_gelu/cpu.py, so that they exist without
// this extension.
STABLE_TORCH_LIBRARY_IMPL(clipfast_kernels, CPU, m) {
    m.impl("quick_gelu_fwd_cpu", TORCH_BOX(&clipfast::quick_gelu_fwd));
    m.impl("quick_gelu_bwd_cpu", TORCH_BOX(&clipfast::quick_gelu_bwd));
}
