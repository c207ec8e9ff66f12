// The operators of attention on CUDA: checks, and torch's tensors as attention.h has them. Needs no
// CUDA headers, and links none of torch's CUDA libraries: the stream comes from Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "attention.h"

namespace clipfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTooMany = int64_t(1) << 31;

Tokens tokens(const char* name, const Tensor& x, const Tensor& like) {
    STD_TORCH_CHECK(x.is_cuda() && x.get_device_index() == like.get_device_index() &&
                        x.scalar_type() == like.scalar_type() && x.dim() == 3 &&
                        x.size(1) == like.size(1) && x.size(2) == like.size(2),
                    "attention: ", name, " must be (T, ", like.size(1), ", ", like.size(2),
                    ") of q's dtype and on q's device.");
    STD_TORCH_CHECK(x.size(0) < kTooMany, "attention: ", name, " must have less than 2^31 tokens.");
    const auto address = reinterpret_cast<uintptr_t>(x.data_ptr());
    const bool adjacent = x.stride(2) == 1 && (x.size(1) == 1 || x.stride(1) == x.size(2));
    STD_TORCH_CHECK(x.numel() == 0 || (adjacent && x.stride(0) % 8 == 0 && address % 16 == 0),
                    "attention: the heads of ", name,
                    " must be adjacent, and its tokens lie on multiples of 16 bytes; got strides ",
                    x.stride(0), ", ", x.stride(1), " and ", x.stride(2), ".");
    return {static_cast<uint16_t*>(x.data_ptr()), x.stride(0)};
}

const int32_t* starts(const std::optional<Tensor>& cu, int64_t batch) {
    if (!cu.has_value()) return nullptr;
    STD_TORCH_CHECK(
        cu->is_cuda() && cu->scalar_type() == ScalarType::Int && cu->is_contiguous() &&
            cu->numel() == batch + 1,
        "attention: cu_seqlens must be contiguous int32 (B+1,) on q's device, B = ", batch, ".");
    return cu->const_data_ptr<int32_t>();
}

float* floats(const char* name, const Tensor& x, const Tensor& q) {
    STD_TORCH_CHECK(x.is_cuda() && x.scalar_type() == ScalarType::Float && x.is_contiguous() &&
                        x.dim() == 2 && x.size(0) == q.size(1) && x.size(1) == q.size(0),
                    "attention: ", name, " must be contiguous float32 (H, T_q).");
    return static_cast<float*>(x.data_ptr());
}

AttentionShape shape_of(const Tensor& q, const std::optional<Tensor>& cu_q,
                        const std::optional<Tensor>& cu_k, int64_t batch, int64_t max_q,
                        int64_t max_k, bool causal, double scale, int64_t stream) {
    const ScalarType type = q.scalar_type();
    STD_TORCH_CHECK(
        q.is_cuda() && q.dim() == 3 && (type == ScalarType::Half || type == ScalarType::BFloat16),
        "attention: q must be (T_q, H, D), float16 or bfloat16, on a CUDA device.");
    STD_TORCH_CHECK(batch * q.size(1) < kTooMany && max_q < kTooMany / 2 && max_k < kTooMany / 2,
                    "attention: B·H must be less than 2^31 and lengths less than 2^30, got B = ",
                    batch, ", H = ", q.size(1), ", lengths to ", max_q, " and ", max_k, ".");
    return {starts(cu_q, batch),
            starts(cu_k, batch),
            static_cast<int>(batch),
            static_cast<int>(max_q),
            static_cast<int>(max_k),
            causal,
            static_cast<float>(scale),
            static_cast<int>(q.size(1)),
            static_cast<int>(q.size(2)),
            q.size(0),
            type == ScalarType::BFloat16,
            static_cast<int>(q.get_device_index()),
            reinterpret_cast<void*>(stream)};
}

// The numbers of plans[4 * index] and on, as tiles.py lists them.
AttentionPlan plan_of(const std::vector<int64_t>& plans, size_t index) {
    STD_TORCH_CHECK(plans.size() >= 4 * index + 4, "attention: a plan has four numbers.");
    int number[4];
    for (size_t i = 0; i < 4; ++i) {
        const int64_t given = plans[4 * index + i];
        STD_TORCH_CHECK(given >= 1 && given < kTooMany,
                        "attention: a plan's numbers must be positive, got ", given, ".");
        number[i] = static_cast<int>(given);
    }
    return {number[0], number[1], number[2], number[3]};
}

void check(const char* error) {
    STD_TORCH_CHECK(error == nullptr, "attention: the CUDA kernel was not launched: ", error);
}

void forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& cu_q,
             const std::optional<Tensor>& cu_k, int64_t batch, int64_t max_q, int64_t max_k,
             bool causal, double scale, const std::vector<int64_t>& plans, int64_t stream,
             const Tensor& out, const Tensor& lse) {
    const AttentionForward arguments{
        shape_of(q, cu_q, cu_k, batch, max_q, max_k, causal, scale, stream),
        tokens("q", q, q),
        tokens("k", k, q),
        tokens("v", v, q),
        tokens("out", out, q),
        floats("lse", lse, q)};
    check(attention_fwd(arguments, plan_of(plans, 0)));
}

void backward(const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v,
              const Tensor& out, const Tensor& lse, const std::optional<Tensor>& cu_q,
              const std::optional<Tensor>& cu_k, int64_t batch, int64_t max_q, int64_t max_k,
              bool causal, double scale, const std::vector<int64_t>& plans, int64_t stream,
              const Tensor& d_q, const Tensor& d_k, const Tensor& d_v, const Tensor& delta) {
    const AttentionBackward arguments{
        shape_of(q, cu_q, cu_k, batch, max_q, max_k, causal, scale, stream),
        tokens("d_out", d_out, q),
        tokens("q", q, q),
        tokens("k", k, q),
        tokens("v", v, q),
        tokens("out", out, q),
        floats("lse", lse, q),
        tokens("d_q", d_q, q),
        tokens("d_k", d_k, q),
        tokens("d_v", d_v, q),
        floats("delta", delta, q)};
    check(attention_bwd_q(arguments, plan_of(plans, 0)));
    check(attention_bwd_kv(arguments, plan_of(plans, 1)));
}

}  // namespace
}  // namespace clipfast

// The schemas are defined in clipfast_kernels/ops/attention/cuda.py, so that they exist without
// this.
STABLE_TORCH_LIBRARY_IMPL(clipfast_kernels, CUDA, m) {
    m.impl("attention_fwd_cuda", TORCH_BOX(&clipfast::forward));
    m.impl("attention_bwd_cuda", TORCH_BOX(&clipfast::backward));
}
