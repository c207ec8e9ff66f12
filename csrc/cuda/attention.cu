// Compiled for sm_80 and sm_90 and emulated on a CPU; no GPU has run it.
//
// Computes, for each sequence and head, with S = scale · q kᵀ over the keys that a query sees:
//     forward    P = softmax(S), out = P v, lse = log Σ e^S
//     backward   delta = Σ_d d_out · out, and d_q, d_k, d_v from P = e^(S - lse)
//   A query that sees no key has out 0 and lse -∞; what nothing flows to has gradient 0.
// Grid: (sequences × groups of heads, parts of a sequence); tiles.py chooses.
// A block owns strips of one sequence and of one or several heads, and a warp a strip at a time: 32
//     queries (16 where D > 64), or in the keys' pass 16 keys. Of the other side it holds two
//     matrices in shared memory, in tiles of 16 rows, of the whole sequence where they fit: 577
//     tokens of width 64 do. Several heads of a short sequence share a block.
// FLOPs: 4 D a query-key pair forward, 14 D backward (at D = 128, where registers do not hold the
//     gradients of keys and values together, 16 D). One pass for d_q and one for d_k and d_v, which
//     recomputes S and dP: 7 products instead of 5, and neither atomics nor exchange between warps.
// HBM bytes: q, k, v, out once forward; q, k, v, d_out twice, out and the gradients once backward;
//     more where one sequence does not fit in shared memory or is cut into parts.
// Accumulates in: float, in registers. P and dS are rounded to 16 bits as operands.
// Deterministic: yes.
//
// On paper (tiles.table(), width 64) beside 128 × 128 tiles with 32 rows to a warp, as in
// FlashAttention-2: products computed over products needed; KiB read of shared memory for a
// sequence and head; and what these two leave of an A100's tensor cores at most.
//     length       pass  waste  FA-2   KiB read   FA-2  utilisation  FA-2
//     50           fwd    1.64  6.55         32    128          61%   15%
//     50           bwd    2.29  6.55        176    320          44%   15%
//     77           fwd    1.08  2.76         60    128          93%   36%
//     77           bwd    1.51  2.76        290    320          66%   36%
//     197          fwd    1.11  1.69        364    512          90%   59%
//     197          bwd    1.56  1.69       1898   1280          64%   59%
//     257          fwd    1.12  2.23        612   1152          89%   45%
//     257          bwd    1.57  2.23       3230   2880          64%   45%
//     577          fwd    1.05  1.23       2812   3200          95%   81%
//     577          bwd    1.47  1.23      15170   8000          68%   81%
//     77 causal    fwd    1.45  5.46         44    128          69%   18%
//     77 causal    bwd    1.89  5.46        186    320          53%   18%
//     5-30 causal  fwd    3.52 86.23          6    128          28%    1%
//     5-30 causal  bwd    4.35 86.23         26    320          23%    1%
// It does not win on paper where sequences are long: backward at 577 computes 1.47 where one pass
// of five products computes 1.23, and reads twice the bytes, for the keys' strips are of 16 rows.
//
// Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2.
#include "attention_bwd.cuh"
#include "attention_fwd.cuh"

namespace clipfast {

template <typename Strip>
struct Launch {
    typename Strip::Arguments arguments;
    AttentionPlan plan;
};

template <typename Strip>
__global__ void __launch_bounds__(32 * Strip::kWarps, 1)
    attention_kernel(const Launch<Strip> launch) {
    sweep<Strip>(launch.arguments, launch.plan);
}

namespace {

template <typename Strip>
const char* launch_strips(const typename Strip::Arguments& arguments, const AttentionPlan& plan,
                          int longest) {
    const AttentionShape& shape = arguments.shape;
    const int strips = (longest + Strip::kRows - 1) / Strip::kRows;
    const int blocks = shape.batch * ((shape.heads + plan.heads - 1) / plan.heads);
    if (strips == 0 || blocks == 0) return nullptr;
    if (plan.warps > Strip::kWarps) return "the plan has more warps than the kernel was built for";
    const int tile_bytes = static_cast<int>(sizeof(typename Strip::Tile));
    return launch(attention_kernel<Strip>, dim3(blocks, (strips + plan.strips - 1) / plan.strips),
                  32 * plan.warps, plan.heads * plan.tiles * tile_bytes, shape.device, shape.stream,
                  Launch<Strip>{arguments, plan});
}

template <typename T, int D>
struct ForwardPass {
    static const char* run(const AttentionForward& arguments, const AttentionPlan& plan) {
        return launch_strips<ForwardStrip<T, D>>(arguments, plan, arguments.shape.max_q);
    }
};

template <typename T, int D>
struct QueryPass {
    static const char* run(const AttentionBackward& arguments, const AttentionPlan& plan) {
        return launch_strips<QueryStrip<T, D>>(arguments, plan, arguments.shape.max_q);
    }
};

template <typename T, int D>
struct KeyPass {
    static const char* run(const AttentionBackward& arguments, const AttentionPlan& plan) {
        const int longest = arguments.shape.max_k;
        if constexpr (D < 128) {
            return launch_strips<KeyStrip<T, D, Gradient::kBoth>>(arguments, plan, longest);
        } else {
            // Both do not fit in registers; the scores are computed twice.
            const char* error =
                launch_strips<KeyStrip<T, D, Gradient::kKeys>>(arguments, plan, longest);
            if (error != nullptr) return error;
            return launch_strips<KeyStrip<T, D, Gradient::kValues>>(arguments, plan, longest);
        }
    }
};

template <template <typename, int> class Pass, typename T, typename Arguments>
const char* choose_width(const Arguments& arguments, const AttentionPlan& plan) {
    switch (arguments.shape.width) {
        case 32:
            return Pass<T, 32>::run(arguments, plan);
        case 64:
            return Pass<T, 64>::run(arguments, plan);
        case 80:
            return Pass<T, 80>::run(arguments, plan);
        case 96:
            return Pass<T, 96>::run(arguments, plan);
        case 128:
            return Pass<T, 128>::run(arguments, plan);
    }
    return "there is no kernel for this head width";
}

template <template <typename, int> class Pass, typename Arguments>
const char* choose(const Arguments& arguments, const AttentionPlan& plan) {
    return arguments.shape.bfloat16 ? choose_width<Pass, BFloat16>(arguments, plan)
                                    : choose_width<Pass, Half>(arguments, plan);
}

}  // namespace

const char* attention_fwd(const AttentionForward& arguments, const AttentionPlan& plan) {
    return choose<ForwardPass>(arguments, plan);
}

const char* attention_bwd_q(const AttentionBackward& arguments, const AttentionPlan& plan) {
    return choose<QueryPass>(arguments, plan);
}

const char* attention_bwd_kv(const AttentionBackward& arguments, const AttentionPlan& plan) {
    return choose<KeyPass>(arguments, plan);
}

}  // namespace clipfast
