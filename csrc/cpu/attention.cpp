// Computes, for every sequence and head, P = softmax(scale · Q·Kᵀ + mask), O = P·V and the row-wise
//     log-sum-exp; and from dO: dV = Pᵀ·dO, dS = P∘(dO·Vᵀ − rowsum(dO∘O)), dQ = scale·dS·K,
//     dK = scale·dSᵀ·Q.
// Owns: a unit is one head of one sequence; threads take units from a counter (attention_unit.h).
// FLOPs: 4 L_q L_k D forward; 10 L_q L_k D backward, which computes P again from the log-sum-exp.
//     Half of them under a causal mask, in steps of a tile.
// Bytes: every input and output once. Working memory per thread: about 5 L_k D + 128 L_k elements.
// Accumulates in: the tensors' type, float or double; every sum in one fixed order.
// Deterministic: yes, whatever the number of threads.
// Source: Dao et al. 2022, arXiv 2205.14135, for the backward from the log-sum-exp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <type_traits>
#include <vector>

#define SIMD_FILE "attention_unit.h"
#include "simd_levels.h"

namespace clipfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxRun = 16;
// Multiply-adds of one product below which waking the other threads takes longer than the call.
constexpr int64_t kParallelWork = 1 << 20;

template <typename T>
AttentionPass<T> choose_pass(bool backward) {
    if constexpr (std::is_same_v<T, double>) {
        return backward ? baseline_double::attention_backward : baseline_double::attention_forward;
    } else {
#if CLIPFAST_X86
        if (simd_level() == SimdLevel::kAvx512) {
            return backward ? avx512_float::attention_backward : avx512_float::attention_forward;
        }
        if (simd_level() == SimdLevel::kAvx2) {
            return backward ? avx2_float::attention_backward : avx2_float::attention_forward;
        }
#endif
        return backward ? baseline_float::attention_backward : baseline_float::attention_forward;
    }
}

// Working memory of a thread, kept from call to call: fresh pages would cost more than short
// sequences do.
class Scratch {
public:
    template <typename T>
    T* reserve(int64_t elements) {
        const size_t bytes = elements * sizeof(T);
        if (bytes > bytes_) {
            memory_.reset();
            memory_.reset(::operator new(bytes, kAlignment));
            bytes_ = bytes;
        }
        return static_cast<T*>(memory_.get());
    }

    // Long sequences' memory is given back.
    void trim() {
        if (bytes_ > kKeptBytes) {
            memory_.reset();
            bytes_ = 0;
        }
    }

private:
    static constexpr std::align_val_t kAlignment{64};
    static constexpr size_t kKeptBytes = size_t{4} << 20;
    struct Free {
        void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
    };
    std::unique_ptr<void, Free> memory_;
    size_t bytes_ = 0;
};

thread_local Scratch scratch_of_thread;

// The sequences' first tokens, checked; with none given, `batch` sequences of equal length.
std::vector<int64_t> starts(const char* name, const std::optional<Tensor>& cu, int64_t batch,
                            int64_t tokens) {
    std::vector<int64_t> first(batch + 1);
    if (!cu.has_value()) {
        STD_TORCH_CHECK(batch == 0 ? tokens == 0 : tokens % batch == 0, "attention: ", tokens,
                        " tokens are not ", batch, " sequences of equal length.");
        for (int64_t b = 0; b <= batch; ++b) first[b] = batch == 0 ? 0 : tokens / batch * b;
        return first;
    }
    STD_TORCH_CHECK(cu->scalar_type() == ScalarType::Int && cu->is_cpu() && cu->is_contiguous() &&
                        cu->dim() == 1 && cu->size(0) == batch + 1,
                    "attention: ", name, " must be contiguous int32 (", batch + 1,
                    ",) on the CPU.");
    const int32_t* given = cu->const_data_ptr<int32_t>();
    STD_TORCH_CHECK(given[0] == 0 && given[batch] == tokens, name,
                    ": expected numbers from 0 to the number of tokens, ", tokens, "; got ",
                    given[0], " to ", given[batch], ".");
    for (int64_t b = 0; b <= batch; ++b) {
        first[b] = given[b];
        STD_TORCH_CHECK(b == 0 || given[b] >= given[b - 1], name,
                        ": expected numbers that never fall; got ", given[b], " after ",
                        given[b - 1], ".");
    }
    return first;
}

template <typename T>
struct Heads {
    T* data = nullptr;
    int64_t token = 0, head = 0;

    HeadRows<T> at(int64_t first_token, int64_t h) const {
        return {data + first_token * token + h * head, token};
    }
};

template <typename T>
Heads<T> heads(const Tensor& x) {
    return {static_cast<T*>(x.data_ptr()), x.stride(0), x.stride(1)};
}

void check(const char* name, const Tensor& x, int64_t tokens, const Tensor& like) {
    STD_TORCH_CHECK(x.dim() == 3 && x.is_cpu() && x.scalar_type() == like.scalar_type() &&
                        x.size(0) == tokens && x.size(1) == like.size(1) &&
                        x.size(2) == like.size(2) && (x.stride(2) == 1 || x.numel() == 0),
                    "attention: ", name, " must be (", tokens, ", ", like.size(1), ", ",
                    like.size(2), ") on the CPU, of q's dtype, with its last stride 1.");
}

struct Arguments {
    const Tensor &q, &k, &v;
    const std::optional<Tensor>&cu_q, &cu_k;
    int64_t batch;
    bool causal;
    double scale;
    const Tensor &out, &lse;
};

struct Gradients {
    const Tensor &d_out, &d_q, &d_k, &d_v;
};

template <typename T>
void run(const Arguments& a, const Gradients* gradients) {
    const int64_t n_heads = a.q.size(1), tokens = a.q.size(0);
    const auto first_q = starts("cu_seqlens_q", a.cu_q, a.batch, tokens);
    const auto first_k = starts("cu_seqlens_k", a.cu_k, a.batch, a.k.size(0));
    int64_t longest = 0;
    for (int64_t b = 0; b < a.batch; ++b) longest = std::max(longest, first_k[b + 1] - first_k[b]);

    const auto q = heads<const T>(a.q), k = heads<const T>(a.k), v = heads<const T>(a.v);
    const auto out = heads<T>(a.out);
    T* lse = static_cast<T*>(a.lse.data_ptr());
    Heads<const T> d_out;
    Heads<T> d_q, d_k, d_v;
    if (gradients != nullptr) {
        d_out = heads<const T>(gradients->d_out);
        d_q = heads<T>(gradients->d_q);
        d_k = heads<T>(gradients->d_k);
        d_v = heads<T>(gradients->d_v);
    }
    const AttentionPass<T> pass = choose_pass<T>(gradients != nullptr);
    const int64_t width = a.q.size(2), units = a.batch * n_heads;
    const int64_t work_size = longest * tokens * width * n_heads;
    const int64_t threads = work_size < kParallelWork ? 1 : torch::stable::get_num_threads();
    // Heads of one sequence lie side by side, so a thread takes some that follow one another; few
    // enough for the threads to end together.
    const int64_t run = std::clamp<int64_t>(units / (8 * threads), 1, kMaxRun);
    const int64_t scratch = attention_scratch(longest, width);
    std::atomic<int64_t> next{0};
    const auto work = [&](int64_t, int64_t) {
        T* memory = scratch_of_thread.reserve<T>(scratch);
        for (int64_t begin; (begin = next.fetch_add(run, std::memory_order_relaxed)) < units;) {
            const int64_t end = std::min(begin + run, units);
            for (int64_t unit = begin; unit < end; ++unit) {
                const int64_t b = unit / n_heads, h = unit % n_heads;
                const int64_t i = first_q[b], j = first_k[b];
                const bool followed = unit + 1 < end && h + 1 < n_heads;
                pass({first_q[b + 1] - i, first_k[b + 1] - j, width, a.causal, T(a.scale),
                      q.at(i, h), k.at(j, h), v.at(j, h), out.at(i, h), lse + h * tokens + i,
                      d_out.at(i, h), d_q.at(i, h), d_k.at(j, h), d_v.at(j, h),
                      followed ? q.head : 0},
                     memory);
            }
        }
        scratch_of_thread.trim();
#if CLIPFAST_X86
        _mm_sfence();  // other threads read what the units stored past the caches
#endif
    };
    if (threads == 1) return work(0, 1);
    torch::stable::parallel_for(0, threads, 1, work);
}

void run_any(const Arguments& a, const Gradients* gradients) {
    const ScalarType type = a.q.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "attention: q must be float32 or float64.");
    STD_TORCH_CHECK(a.q.size(2) % kWidestVector == 0,
                    "attention: the head width must be a multiple of 16, got ", a.q.size(2), ".");
    const int64_t tokens_q = a.q.size(0), tokens_k = a.k.size(0);
    check("q", a.q, tokens_q, a.q);
    check("k", a.k, tokens_k, a.q);
    check("v", a.v, tokens_k, a.q);
    check("out", a.out, tokens_q, a.q);
    STD_TORCH_CHECK(a.lse.scalar_type() == type && a.lse.is_contiguous() && a.lse.dim() == 2 &&
                        a.lse.size(0) == a.q.size(1) && a.lse.size(1) == tokens_q,
                    "attention: lse must be contiguous (", a.q.size(1), ", ", tokens_q,
                    ") of q's dtype.");
    if (gradients != nullptr) {
        check("d_out", gradients->d_out, tokens_q, a.q);
        check("d_q", gradients->d_q, tokens_q, a.q);
        check("d_k", gradients->d_k, tokens_k, a.q);
        check("d_v", gradients->d_v, tokens_k, a.q);
    }
    (type == ScalarType::Float ? run<float> : run<double>)(a, gradients);
}

void attention_fwd(const Tensor& q, const Tensor& k, const Tensor& v,
                   const std::optional<Tensor>& cu_q, const std::optional<Tensor>& cu_k,
                   int64_t batch, bool causal, double scale, const Tensor& out, const Tensor& lse) {
    run_any({q, k, v, cu_q, cu_k, batch, causal, scale, out, lse}, nullptr);
}

void attention_bwd(const Tensor& q, const Tensor& k, const Tensor& v,
                   const std::optional<Tensor>& cu_q, const std::optional<Tensor>& cu_k,
                   int64_t batch, bool causal, double scale, const Tensor& out, const Tensor& lse,
                   const Tensor& d_out, const Tensor& d_q, const Tensor& d_k, const Tensor& d_v) {
    const Gradients gradients{d_out, d_q, d_k, d_v};
    run_any({q, k, v, cu_q, cu_k, batch, causal, scale, out, lse}, &gradients);
}

}  // namespace
}  // namespace clipfast

// The schemas are defined in clipfast_kernels/ops/attention/cpu.py, so that they exist without this
// extension.
STABLE_TORCH_LIBRARY_IMPL(clipfast_kernels, CPU, m) {
    m.impl("attention_fwd_cpu", TORCH_BOX(&clipfast::attention_fwd));
    m.impl("attention_bwd_cpu", TORCH_BOX(&clipfast::attention_bwd));
}
