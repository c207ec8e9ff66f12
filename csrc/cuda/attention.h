// What the operators in attention_operators.cpp ask of the kernels in attention.cu. Neither torch's
// headers nor CUDA's are needed to read it.
//
// T packed tokens, L tokens of one sequence, H heads, D head width. All matrices of 16-bit numbers
// are (T, H, D), with the heads of a token adjacent.
#pragma once

#include <cstdint>

namespace clipfast {

struct Tokens {
    uint16_t* data;
    int64_t
        stride;  // from a token to the next, in elements, a multiple of 8; data lies on 16 bytes
};

// sequences.py says what the first seven are.
struct AttentionShape {
    const int32_t* cu_q;
    const int32_t* cu_k;
    int batch, max_q, max_k;
    bool causal;
    float scale;
    int heads, width;
    int64_t total_q;
    bool bfloat16;  // else float16
    int device;
    void* stream;
};

// How a launch is cut up; tiles.py chooses it. A block owns some strips (rows that one warp owns)
// of some heads of one sequence, and holds up to `tiles` times 16 rows of the other side in shared
// memory.
struct AttentionPlan {
    int heads, warps, tiles, strips;
};

struct AttentionForward {
    AttentionShape shape;
    Tokens q, k, v, out;
    float* lse;  // (H, T_q)
};

struct AttentionBackward {
    AttentionShape shape;
    Tokens d_out, q, k, v, out;
    const float* lse;  // (H, T_q)
    Tokens d_q, d_k, d_v;
    float* delta;  // (H, T_q), written: Σ_d d_out · out
};

// All return null, or what the CUDA runtime said.
const char* attention_fwd(const AttentionForward& arguments, const AttentionPlan& plan);
const char* attention_bwd_q(const AttentionBackward& arguments, const AttentionPlan& plan);
// After attention_bwd_q, whose delta it reads.
const char* attention_bwd_kv(const AttentionBackward& arguments, const AttentionPlan& plan);

}  // namespace clipfast
