// Pieces of matrices in a warp's registers, as mma.m16n8k16 takes them, and how they come from
// memory and go there. Lane l of a warp has in each group of 8×8 numbers the columns 2·(l % 4) and
// the one after, of row l / 4.
//
// D head width, L tokens of one sequence.
#pragma once

#include "attention.h"
#include "device.cuh"

namespace clipfast {

DEVICE unsigned warp_lane() { return threadIdx.x % 32; }

// 16 rows of a sequence in shared memory: its keys and values, or its queries and d_out with two
// more numbers each.
template <int D>
struct alignas(16) KeyTile {
    uint16_t x[16 * D], y[16 * D];
};

template <int D>
struct alignas(16) QueryTile {
    uint16_t x[16 * D], y[16 * D];
    float lse[16], delta[16];
};

// A row's eight numbers number 2·pair + odd in a tile. They are swizzled so that ldmatrix reads the
// same eight of eight rows from all 32 banks, whatever the width, without padding. Most of what
// `pair` adds is apart, for there it is a constant.
template <int D, typename Number>
DEVICE Number* eight_of(Number* tile, unsigned row, unsigned pair, unsigned odd) {
    constexpr unsigned kEights = D / 8;
    constexpr unsigned kPeriod = kEights % 8 == 0 ? 8 : kEights % 4 == 0 ? 4 : 2;
    const unsigned low = odd ^ (row / (8 / kPeriod) % kPeriod) ^ (2 * pair % kPeriod);
    return tile + 8 * (row * kEights + low) + 8 * (2 * pair / kPeriod * kPeriod);
}

// The 16 columns from 16·k on of a tile's rows, as the right operands of a product with the tile
// transposed: b[0], b[1] of the first eight rows, b[2], b[3] of the others. ldmatrix puts them
// where the product wants them, in neighbouring registers.
template <int D>
DEVICE void load_rows(uint32_t (&b)[4], const uint16_t* tile, int k) {
    const unsigned lane = warp_lane();
    ldmatrix(b, eight_of<D>(tile, lane / 16 * 8 + lane % 8, k, lane / 8 % 2));
}

// The same numbers for a product with the tile: b[0], b[1] of the first eight columns, b[2], b[3]
// of the others.
template <int D>
DEVICE void load_columns(uint32_t (&b)[4], const uint16_t* tile, int k) {
    const unsigned lane = warp_lane();
    ldmatrix_transposed(b, eight_of<D>(tile, lane % 16, k, lane / 16));
}

// 16 rows of one head as left operands: a[k] has the columns 16·k and on. Zeros from row `length`
// on.
template <int D>
DEVICE void load_strip(uint32_t (&a)[D / 16][4], const Tokens& from, int first, int head, int row,
                       int length) {
    const int lane = warp_lane();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int r = row + 8 * half + lane / 4;
        const uint16_t* line =
            from.data + int64_t(first + r) * from.stride + head * D + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            a[k][half] = r < length ? *reinterpret_cast<const uint32_t*>(line + 16 * k) : 0;
            a[k][half + 2] = r < length ? *reinterpret_cast<const uint32_t*>(line + 16 * k + 8) : 0;
        }
    }
}

// A product's 16 rows, row l / 4 times factor[0] and row l / 4 + 8 times factor[1], to memory.
template <typename T, int D>
DEVICE void store_strip(const float (&c)[D / 8][4], const float (&factor)[2], const Tokens& to,
                        int first, int head, int row, int length) {
    const int lane = warp_lane();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int r = row + 8 * half + lane / 4;
        if (r >= length) continue;
        uint16_t* line = to.data + int64_t(first + r) * to.stride + head * D + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            *reinterpret_cast<uint32_t*>(line + 8 * n) =
                pack<T>(factor[half] * c[n][2 * half], factor[half] * c[n][2 * half + 1]);
        }
    }
}

// Two neighbouring 16×8 products as one left operand of 16×16.
template <typename T>
DEVICE void as_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack<T>(left[0], left[1]);
    a[1] = pack<T>(left[2], left[3]);
    a[2] = pack<T>(right[0], right[1]);
    a[3] = pack<T>(right[2], right[3]);
}

// Over the four lanes that share a row.
DEVICE float row_max(float x) {
    x = fmaxf(x, shuffle_xor(x, 1));
    return fmaxf(x, shuffle_xor(x, 2));
}

DEVICE float row_sum(float x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}

}  // namespace clipfast
