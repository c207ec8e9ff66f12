// What the three kernels share: which rows a block and a warp own, and how the other side's rows
// come to shared memory and past every warp. A Strip (attention_fwd.cuh, attention_bwd.cuh) is what
// one warp computes; "own" rows are its strip's side, "other" rows those that it sweeps over.
#pragma once

#include <type_traits>

#include "attention_fragments.cuh"

namespace clipfast {

struct Span {
    int first, length;
};

// One sequence's queries and keys, and which see which.
struct Sequence {
    Span q, k;
    bool causal;

    DEVICE Sequence(const AttentionShape& shape, int index)
        : q(span(shape.cu_q, shape.max_q, index)),
          k(span(shape.cu_k, shape.max_k, index)),
          causal(shape.causal) {}

    DEVICE static Span span(const int32_t* cu, int length, int index) {
        if (cu == nullptr) return {index * length, length};
        return {cu[index], cu[index + 1] - cu[index]};
    }

    // A query sees the keys [0, keys_seen).
    DEVICE int keys_seen(int query) const {
        if (!causal) return k.length;
        return max(0, min(k.length, query + k.length - q.length + 1));
    }

    // A key is seen by the queries [first_seeing, q.length).
    DEVICE int first_seeing(int key) const {
        return causal ? max(0, key + q.length - k.length) : 0;
    }
};

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// Starts the copy of some tiles of one head; zeros from the sequence's end on.
template <typename Strip>
DEVICE void copy_tiles(typename Strip::Tile* to, const typename Strip::Arguments& arguments,
                       const Span& span, int head, int first_tile, int n_tiles) {
    constexpr unsigned kEights = Strip::kWidth / 8;
    const unsigned lines = 16 * n_tiles;
    const Tokens x = Strip::x(arguments), y = Strip::y(arguments);
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < lines * kEights; i += blockDim.x) {
        const unsigned line = i / kEights, eight = i % kEights;
        const int row = 16 * first_tile + line;
        const bool real = row < span.length;
        const int64_t token = span.first + (real ? row : 0);
        const int column = head * Strip::kWidth + 8 * eight;
        typename Strip::Tile& tile = to[line / 16];
        copy_16_bytes(eight_of<Strip::kWidth>(tile.x, line % 16, eight / 2, eight % 2),
                      x.data + token * x.stride + column, real);
        copy_16_bytes(eight_of<Strip::kWidth>(tile.y, line % 16, eight / 2, eight % 2),
                      y.data + token * y.stride + column, real);
    }
    if constexpr (std::is_same_v<typename Strip::Tile, QueryTile<Strip::kWidth>>) {
        const int64_t start = head * arguments.shape.total_q + span.first;
#pragma unroll 1
        for (unsigned line = threadIdx.x; line < lines; line += blockDim.x) {
            const int row = 16 * first_tile + line;
            const bool real = row < span.length;
            typename Strip::Tile& tile = to[line / 16];
            copy_4_bytes(&tile.lse[line % 16], arguments.lse + start + (real ? row : 0), real);
            copy_4_bytes(&tile.delta[line % 16], arguments.delta + start + (real ? row : 0), real);
        }
    }
}

// The whole kernel. The other side's tiles go through shared memory in chunks of plan.tiles; where
// one chunk holds all that the block needs it stays for all of the warps' strips. A chunk is copied
// in up to four pieces, and the first is in use before the last is there.
template <typename Strip>
DEVICE void sweep(const typename Strip::Arguments& arguments, const AttentionPlan& plan) {
    const AttentionShape& shape = arguments.shape;
    const int groups = (shape.heads + plan.heads - 1) / plan.heads;
    const int first_head = blockIdx.x % groups * plan.heads;
    const int heads = min(plan.heads, shape.heads - first_head);
    const Sequence sequence(shape, blockIdx.x / groups);
    const int own_rows = Strip::own(sequence).length;
    const int first_strip = blockIdx.y * plan.strips;
    const int strips = min(plan.strips, (own_rows + Strip::kRows - 1) / Strip::kRows - first_strip);
    if (strips <= 0) return;

    const int last_row = min(own_rows, (first_strip + strips) * Strip::kRows) - 1;
    const int begin = Strip::begin(sequence, first_strip * Strip::kRows) / 16;
    const int end = (Strip::end(sequence, last_row) + 15) / 16;
    const bool resident = end - begin <= plan.tiles;
    const int piece_tiles = max(4, (plan.tiles + 7) / 8 * 2);
    typename Strip::Tile* const shared = reinterpret_cast<typename Strip::Tile*>(dynamic_shared());

    for (int first_task = 0; first_task < heads * strips; first_task += blockDim.x / 32) {
        const int task = first_task + threadIdx.x / 32;
        const bool active = task < heads * strips;
        const int head = task / strips;
        Strip strip;
        if (active) {
            strip.start(arguments, sequence, first_head + head,
                        (first_strip + task % strips) * Strip::kRows);
        }
        for (int chunk = begin; chunk < end; chunk += plan.tiles) {
            const int chunk_end = min(end, chunk + plan.tiles);
            const bool copies = first_task == 0 || !resident;
            if (copies) {
                if (first_task > 0 || chunk > begin) __syncthreads();  // all have read the last one
                for (int piece = chunk; piece < chunk_end; piece += piece_tiles) {
                    for (int h = 0; h < heads; ++h) {
                        copy_tiles<Strip>(shared + h * plan.tiles + piece - chunk, arguments,
                                          Strip::other(sequence), first_head + h, piece,
                                          min(chunk_end - piece, piece_tiles));
                    }
                    copy_commit();
                }
            }
            for (int piece = chunk; piece < chunk_end; piece += piece_tiles) {
                if (copies) {
                    copy_wait((chunk_end - 1 - piece) / piece_tiles);
                    __syncthreads();
                }
                if (!active) continue;
                strip.visit(arguments, sequence, shared + head * plan.tiles + piece - chunk,
                            16 * piece, 16 * min(chunk_end, piece + piece_tiles));
            }
        }
        if (active) strip.finish(arguments, sequence);
    }
}

}  // namespace clipfast
