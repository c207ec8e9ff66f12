// A warp's parts of the two passes backward. Both recompute P = exp(scale · q·k − lse), and from
// dP = d_out · vᵀ have dS = P ∘ (dP − delta) for
//     d_q = scale · dS · k,   d_k = scale · dSᵀ · q,   d_v = Pᵀ · d_out.
// T element type, D head width.
#pragma once

#include "attention_sweep.cuh"

namespace clipfast {

// Owns queries, sweeps over keys and values. Its start computes delta.
template <typename T, int D>
struct QueryStrip {
    using Arguments = AttentionBackward;
    static constexpr int kWidth = D;
    static constexpr int kTiles = D <= 64 ? 2 : 1;
    static constexpr int kRows = 16 * kTiles;
    static constexpr int kWarps = 8;  // 255 registers for each lane
    using Tile = KeyTile<D>;

    DEVICE static Span own(const Sequence& s) { return s.q; }
    DEVICE static Span other(const Sequence& s) { return s.k; }
    DEVICE static int begin(const Sequence&, int) { return 0; }
    DEVICE static int end(const Sequence& s, int last_row) { return s.keys_seen(last_row); }
    DEVICE static const Tokens& x(const Arguments& a) { return a.k; }
    DEVICE static const Tokens& y(const Arguments& a) { return a.v; }

    int row, head, n_tiles;
    uint32_t q[kTiles][D / 16][4], d_out[kTiles][D / 16][4];
    float d_q[kTiles][D / 8][4];
    float lse[kTiles][2], delta[kTiles][2];  // lse times log2(e)

    DEVICE void start(const Arguments& a, const Sequence& s, int its_head, int first_row) {
        row = first_row;
        head = its_head;
        n_tiles = row + 16 < s.q.length ? kTiles : 1;
        const int lane = warp_lane();
        const int64_t line = head * a.shape.total_q + s.q.first;
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
            const int tile_row = row + 16 * m;
            load_strip<D>(q[m], a.q, s.q.first, head, tile_row, s.q.length);
            load_strip<D>(d_out[m], a.d_out, s.q.first, head, tile_row, s.q.length);
            uint32_t out[D / 16][4];
            load_strip<D>(out, a.out, s.q.first, head, tile_row, s.q.length);
            delta[m][0] = delta[m][1] = 0;
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 g = unpack<T>(d_out[m][k][i]), o = unpack<T>(out[k][i]);
                    delta[m][i % 2] += g.x * o.x + g.y * o.y;
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int query = tile_row + 8 * i + lane / 4;
                const bool real = query < s.q.length;
                delta[m][i] = row_sum(delta[m][i]);
                lse[m][i] = real ? kLog2E * a.lse[line + query] : 0;
                if (real && lane % 4 == 0) a.delta[line + query] = delta[m][i];
            }
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                for (int i = 0; i < 4; ++i) d_q[m][n][i] = 0;
            }
        }
    }

    DEVICE void visit(const Arguments& a, const Sequence& s, const Tile* tile, int begin, int end) {
        const int lane = warp_lane();
        const float scale = a.shape.scale * kLog2E;
        const int all_see = s.keys_seen(row);
        const int stop = min(end, s.keys_seen(min(row + kRows, s.q.length) - 1));
        for (int key = begin; key < stop; key += 16, ++tile) {
            float score[kTiles][2][4] = {}, d_p[kTiles][2][4] = {};
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
                uint32_t b[4], c[4];
                load_rows<D>(b, tile->x, k);
                load_rows<D>(c, tile->y, k);
#pragma unroll
                for (int m = 0; m < kTiles; ++m) {
                    if (m >= n_tiles) continue;
#pragma unroll
                    for (int n = 0; n < 2; ++n) {
                        mma<T>(score[m][n], q[m][k], b[2 * n], b[2 * n + 1]);
                        mma<T>(d_p[m][n], d_out[m][k], c[2 * n], c[2 * n + 1]);
                    }
                }
            }
            uint32_t d_s[kTiles][4];
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
#pragma unroll
                for (int n = 0; n < 2; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float p = exp2_fast(scale * score[m][n][i] - lse[m][i / 2]);
                        if (key + 16 > all_see) {
                            const int query = row + 16 * m + lane / 4 + i / 2 * 8;
                            const int at = key + 8 * n + lane % 4 * 2 + i % 2;
                            if (at >= s.keys_seen(query)) p = 0;
                        }
                        score[m][n][i] = p * (d_p[m][n][i] - delta[m][i / 2]);
                    }
                }
                as_operand<T>(d_s[m], score[m][0], score[m][1]);
            }
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                uint32_t b[4];
                load_columns<D>(b, tile->x, n);
#pragma unroll
                for (int m = 0; m < kTiles; ++m) {
                    if (m >= n_tiles) continue;
                    mma<T>(d_q[m][2 * n], d_s[m], b[0], b[1]);
                    mma<T>(d_q[m][2 * n + 1], d_s[m], b[2], b[3]);
                }
            }
        }
    }

    DEVICE void finish(const Arguments& a, const Sequence& s) {
        const float factor[2] = {a.shape.scale, a.shape.scale};
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
            store_strip<T, D>(d_q[m], factor, a.d_q, s.q.first, head, row + 16 * m, s.q.length);
        }
    }
};

enum class Gradient { kBoth, kKeys, kValues };

// Owns keys and values, sweeps over queries and d_out; all products are transposed, so that P and
// dS come out as left operands. One of the gradients alone needs fewer registers.
template <typename T, int D, Gradient kGradient>
struct KeyStrip {
    using Arguments = AttentionBackward;
    static constexpr int kWidth = D;
    static constexpr int kRows = 16;
    static constexpr int kWarps = 8;  // 255 registers for each lane
    using Tile = QueryTile<D>;
    static constexpr bool kKeys = kGradient != Gradient::kValues;
    static constexpr bool kValues = kGradient != Gradient::kKeys;

    DEVICE static Span own(const Sequence& s) { return s.k; }
    DEVICE static Span other(const Sequence& s) { return s.q; }
    DEVICE static int begin(const Sequence& s, int row) { return s.first_seeing(row); }
    DEVICE static int end(const Sequence& s, int) { return s.q.length; }
    DEVICE static const Tokens& x(const Arguments& a) { return a.q; }
    DEVICE static const Tokens& y(const Arguments& a) { return a.d_out; }

    int row, head;
    uint32_t k[D / 16][4], v[D / 16][4];
    float d_k[D / 8][4], d_v[D / 8][4];

    DEVICE void start(const Arguments& a, const Sequence& s, int its_head, int first_row) {
        row = first_row;
        head = its_head;
        load_strip<D>(k, a.k, s.k.first, head, row, s.k.length);
        if constexpr (kKeys) load_strip<D>(v, a.v, s.k.first, head, row, s.k.length);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            for (int i = 0; i < 4; ++i) d_k[n][i] = d_v[n][i] = 0;
        }
    }

    DEVICE void visit(const Arguments& a, const Sequence& s, const Tile* tile, int begin, int end) {
        const int lane = warp_lane();
        const float scale = a.shape.scale * kLog2E;
        const int skipped = max(0, s.first_seeing(row) - begin) / 16;
        tile += skipped;
        for (int query = begin + 16 * skipped; query < end; query += 16, ++tile) {
            float p[2][4] = {}, d_p[2][4] = {};
#pragma unroll
            for (int j = 0; j < D / 16; ++j) {
                uint32_t b[4];
                load_rows<D>(b, tile->x, j);
                mma<T>(p[0], k[j], b[0], b[1]);
                mma<T>(p[1], k[j], b[2], b[3]);
                if constexpr (kKeys) {
                    load_rows<D>(b, tile->y, j);
                    mma<T>(d_p[0], v[j], b[0], b[1]);
                    mma<T>(d_p[1], v[j], b[2], b[3]);
                }
            }
            const bool masked = query < s.first_seeing(row + 15);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int column = 8 * n + lane % 4 * 2 + i % 2;
                    p[n][i] = exp2_fast(scale * p[n][i] - kLog2E * tile->lse[column]);
                    const int key = row + lane / 4 + i / 2 * 8;
                    if (masked && query + column < s.first_seeing(key)) p[n][i] = 0;
                    if constexpr (kKeys) {
                        d_p[n][i] = p[n][i] * (d_p[n][i] - tile->delta[column]);
                    }
                }
            }
            uint32_t weights[4], d_s[4];
            as_operand<T>(weights, p[0], p[1]);
            as_operand<T>(d_s, d_p[0], d_p[1]);
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                uint32_t b[4];
                if constexpr (kValues) {
                    load_columns<D>(b, tile->y, n);
                    mma<T>(d_v[2 * n], weights, b[0], b[1]);
                    mma<T>(d_v[2 * n + 1], weights, b[2], b[3]);
                }
                if constexpr (kKeys) {
                    load_columns<D>(b, tile->x, n);
                    mma<T>(d_k[2 * n], d_s, b[0], b[1]);
                    mma<T>(d_k[2 * n + 1], d_s, b[2], b[3]);
                }
            }
        }
    }

    DEVICE void finish(const Arguments& a, const Sequence& s) {
        const float scale[2] = {a.shape.scale, a.shape.scale}, one[2] = {1, 1};
        if constexpr (kKeys) store_strip<T, D>(d_k, scale, a.d_k, s.k.first, head, row, s.k.length);
        if constexpr (kValues) store_strip<T, D>(d_v, one, a.d_v, s.k.first, head, row, s.k.length);
    }
};

}  // namespace clipfast
