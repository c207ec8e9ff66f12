// A warp's part of the forward pass. T element type, D head width.
#pragma once

#include "attention_sweep.cuh"

namespace clipfast {

template <typename T, int D>
struct ForwardStrip {
    using Arguments = AttentionForward;
    static constexpr int kWidth = D;
    // Two tiles of 16 rows halve what a product reads of shared memory, where registers allow.
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
    uint32_t q[kTiles][D / 16][4];
    float out[kTiles][D / 8][4];
    // Of a row's scores times log2(e): the greatest so far, and this lane's part of Σ 2^(score −
    // top).
    float top[kTiles][2], sum[kTiles][2];

    DEVICE void start(const Arguments& a, const Sequence& s, int its_head, int first_row) {
        row = first_row;
        head = its_head;
        n_tiles = row + 16 < s.q.length ? kTiles : 1;
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
            load_strip<D>(q[m], a.q, s.q.first, head, row + 16 * m, s.q.length);
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                for (int i = 0; i < 4; ++i) out[m][n][i] = 0;
            }
            top[m][0] = top[m][1] = -INFINITY;
            sum[m][0] = sum[m][1] = 0;
        }
    }

    DEVICE void visit(const Arguments& a, const Sequence& s, const Tile* tile, int begin, int end) {
        const float scale = a.shape.scale * kLog2E;
        const int all_see = min(end, s.keys_seen(row));
        const int stop = min(end, s.keys_seen(min(row + kRows, s.q.length) - 1));
        for (int key = begin; key < stop; key += 32, tile += 2) {
            const bool wide = key + 16 < stop;
            float p[kTiles][4][4] = {};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (half == 1 && !wide) continue;
#pragma unroll
                for (int k = 0; k < D / 16; ++k) {
                    uint32_t b[4];
                    load_rows<D>(b, tile[half].x, k);
#pragma unroll
                    for (int m = 0; m < kTiles; ++m) {
                        if (m >= n_tiles) continue;
                        mma<T>(p[m][2 * half], q[m][k], b[0], b[1]);
                        mma<T>(p[m][2 * half + 1], q[m][k], b[2], b[3]);
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
                if (m < n_tiles) soften(m, p[m], scale, s, key, stop, key + 32 > all_see);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (half == 1 && !wide) continue;
                uint32_t weights[kTiles][4];
#pragma unroll
                for (int m = 0; m < kTiles; ++m) {
                    as_operand<T>(weights[m], p[m][2 * half], p[m][2 * half + 1]);
                }
#pragma unroll
                for (int n = 0; n < D / 16; ++n) {
                    uint32_t b[4];
                    load_columns<D>(b, tile[half].y, n);
#pragma unroll
                    for (int m = 0; m < kTiles; ++m) {
                        if (m >= n_tiles) continue;
                        mma<T>(out[m][2 * n], weights[m], b[0], b[1]);
                        mma<T>(out[m][2 * n + 1], weights[m], b[2], b[3]);
                    }
                }
            }
        }
    }

    // Turns the products of tile m with the keys [key, key + 32) into 2^(score − top).
    DEVICE void soften(int m, float (&p)[4][4], float scale, const Sequence& s, int key, int stop,
                       bool masked) {
        const int lane = warp_lane();
        float greatest[2] = {top[m][0], top[m][1]};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[n][i] *= scale;
                if (masked) {
                    const int query = row + 16 * m + lane / 4 + i / 2 * 8;
                    const int at = key + 8 * n + lane % 4 * 2 + i % 2;
                    if (at >= min(stop, s.keys_seen(query))) p[n][i] = -INFINITY;
                }
                greatest[i / 2] = fmaxf(greatest[i / 2], p[n][i]);
            }
        }
        greatest[0] = row_max(greatest[0]);
        greatest[1] = row_max(greatest[1]);
        // Rarely after a row's first keys.
        if (any_lane(greatest[0] != top[m][0] || greatest[1] != top[m][1])) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                // Before the first key that a row sees both are −inf, and all of it is zero.
                const float less =
                    greatest[i] == top[m][i] ? 1 : exp2_fast(top[m][i] - greatest[i]);
                sum[m][i] *= less;
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    out[m][n][2 * i] *= less;
                    out[m][n][2 * i + 1] *= less;
                }
                top[m][i] = greatest[i];
            }
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[n][i] = exp2_fast(p[n][i] - (top[m][i / 2] == -INFINITY ? 0 : top[m][i / 2]));
                sum[m][i / 2] += p[n][i];
            }
        }
    }

    DEVICE void finish(const Arguments& a, const Sequence& s) {
        const int lane = warp_lane();
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
            float inverse[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float total = row_sum(sum[m][i]);
                inverse[i] = total == 0 ? 0 : 1 / total;
                const int query = row + 16 * m + 8 * i + lane / 4;
                if (lane % 4 == 0 && query < s.q.length) {
                    a.lse[head * a.shape.total_q + s.q.first + query] =
                        kLn2 * (top[m][i] + log2f(total));
                }
            }
            store_strip<T, D>(out[m], inverse, a.out, s.q.first, head, row + 16 * m, s.q.length);
        }
    }
};

}  // namespace clipfast
