// The logits of a tile, a vector at a time, once per SIMD_LEVEL (simd.h).
//
// A tile comes in as raw dot products d_ij = <x_i, y_j>. The logit is z_ij = row_i · col_j · d_ij,
// with both factors known beyond a float's precision, so that a logit of 100 is no less exact than
// its dot product. A pair is a negative when its groups differ; the positive, which has its row's
// group, is left to the callers, who treat it in double.
#include "prepare.h"
#include "simd.h"

namespace clipfast::SIMD_NAMESPACE {

// Up to kLanes columns of the matrix, from column j of the tile on.
struct Columns {
    int64_t j;
    int count;
    Vec factor, error;
};

SIMD_INLINE Columns columns(const Tile<Real>& tile, const Pairs<Real>& pairs, int64_t j,
                            int count) {
    const int64_t col = tile.col + j;
    return {j, count, load(pairs.col.value + col, count), load(pairs.col.error + col, count)};
}

SIMD_INLINE Product logit(const Tile<Real>& tile, const Pairs<Real>& pairs, int64_t r,
                          const Columns& at) {
    const Vec factor = splat(pairs.row.value[tile.row + r]);
    const Vec d = load(tile.line(r) + at.j, at.count);
    const Vec a = d * factor;
    const Vec lost = fused(d, factor, -a);
    return {a, at.factor,
            fused(lost, at.factor, (a * at.factor) * (at.error + pairs.row.error[tile.row + r]))};
}

// Lanes beyond the last column get the row's own group, so they are never negatives.
SIMD_INLINE IntVec excluded(const Tile<Real>& tile, const Pairs<Real>& pairs, int64_t r,
                            const Columns& at) {
    const int32_t group = pairs.row_group[tile.row + r];
    return load_int(pairs.col_group + tile.col + at.j, at.count, group) == static_cast<Int>(group);
}

}  // namespace clipfast::SIMD_NAMESPACE
