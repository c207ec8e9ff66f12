// Matrix products of blocks that lie in the first two caches, one thread, compiled once per
// SIMD_LEVEL (simd.h).
//
// C = (C' + A·B) · α: A is read element by element, with any two strides, and broadcast; B and C in
// vectors along their rows, so transposing A costs nothing. A tile of C stays in registers for all
// steps of the sum: 6 rows of 4 vectors keep both multiply-add units busy with 10 loads per 24
// instructions. Every element of C is one sum in the order of the steps, whatever tile it falls
// into.
#include "simd.h"

#ifndef CLIPFAST_BLOCK_PRODUCT_COMMON
#define CLIPFAST_BLOCK_PRODUCT_COMMON

#include <algorithm>
#include <utility>

namespace clipfast {

// What a tile of rows needs of the whole product: the steps [first, last) of the sum, and the
// leading vectors of C. A causal mask leaves out the rest.
struct Extent {
    int64_t first, last, vectors;
};

template <typename T>
struct BlockProduct {
    const T* a;  // A(r, k) = a[r * a_row + k * a_step]
    int64_t a_row, a_step;
    const T* b;      // B's row k begins at b + k * b_step; where b_step is 0, B lies in panels
    int64_t b_step;  // (pack_transposed), of `panel_rows` rows each
    int64_t panel_rows;
    T* c;
    int64_t c_row;
    const T* add = nullptr;  // C', of row stride add_row
    int64_t add_row = 0;
    T alpha = 1;
    const T* row_alpha = nullptr;  // one more factor per row
    bool stream = false;           // C's lines are whole and will not be read soon
};

}  // namespace clipfast

#endif  // CLIPFAST_BLOCK_PRODUCT_COMMON

namespace clipfast::SIMD_NAMESPACE {

#if SIMD_LEVEL == 2
constexpr int kTileVectors = 4;
constexpr int kTileRows[] = {0, 12, 10, 8, 6};  // by the tile's vectors: 32 registers
#else
constexpr int kTileVectors = 2;
constexpr int kTileRows[] = {0, 10, 6};  // 16 registers
#endif

// How many of the vectors that are left the next tile takes: no tile of one where two can share.
SIMD_INLINE int tile_vectors(int64_t left) {
    if (kTileVectors > 2 && left == kTileVectors + 1) return kTileVectors - 1;
    return static_cast<int>(std::min<int64_t>(left, kTileVectors));
}

SIMD_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if SIMD_LEVEL == 1 || SIMD_LEVEL == 2
    return fused(a, b, c);
#else
    return a * b + c;
#endif
}

SIMD_INLINE Vec load(const Real* from) { return load(from, kLanes); }
SIMD_INLINE void store(Real* to, Vec v) { store(to, v, kLanes); }

// A store past the caches; `to` is aligned to the vector.
SIMD_INLINE void store_stream(Real* to, Vec v) {
#if SIMD_LEVEL == 2
    _mm512_stream_ps(to, (__m512)v);
#elif SIMD_LEVEL == 1
    _mm256_stream_ps(to, (__m256)v);
#else
    store(to, v);
#endif
}

template <int R, int V>
SIMD_FUNCTION void product_tile(const BlockProduct<Real>& p, int64_t row, int64_t vector,
                                const Real* b, int64_t b_step, Extent extent) {
    Vec sum[R][V] = {};
    const Real* a = p.a + row * p.a_row + extent.first * p.a_step;
    b += extent.first * b_step;
#pragma GCC unroll 4
    for (int64_t k = extent.first; k < extent.last; ++k, a += p.a_step, b += b_step) {
        Vec line[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) line[v] = load(b + v * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const Vec x = splat(a[r * p.a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(x, line[v], sum[r][v]);
        }
    }
    // Copies, because C's numbers might lie where p does, for all that the compiler knows.
    const Real *add = p.add, *row_alpha = p.row_alpha;
    const int64_t add_row = p.add_row, c_row = p.c_row;
    const Real alpha = p.alpha;
    Real* c = p.c + row * c_row + vector * kLanes;
    if (add != nullptr) {
        add += row * add_row + vector * kLanes;
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[r][v] += load(add + r * add_row + v * kLanes);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        const Vec factor = splat(row_alpha == nullptr ? alpha : alpha * row_alpha[row + r]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] *= factor;
    }
    if (p.stream) {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) store_stream(c + r * c_row + v * kLanes, sum[r][v]);
        }
    } else {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) store(c + r * c_row + v * kLanes, sum[r][v]);
        }
    }
}

using ProductTile = void (*)(const BlockProduct<Real>&, int64_t, int64_t, const Real*, int64_t,
                             Extent);

template <int V, int... R>
SIMD_INLINE ProductTile choose_rows(int rows, std::integer_sequence<int, R...>) {
    static constexpr ProductTile tiles[] = {product_tile<R + 1, V>...};
    return tiles[rows - 1];
}

SIMD_INLINE ProductTile choose_tile(int rows, int vectors) {
    switch (vectors) {
#if SIMD_LEVEL == 2
        case 4:
            return choose_rows<4>(rows, std::make_integer_sequence<int, 6>());
        case 3:
            return choose_rows<3>(rows, std::make_integer_sequence<int, 8>());
        case 2:
            return choose_rows<2>(rows, std::make_integer_sequence<int, 10>());
        default:
            return choose_rows<1>(rows, std::make_integer_sequence<int, 12>());
#else
        case 2:
            return choose_rows<2>(rows, std::make_integer_sequence<int, 6>());
        default:
            return choose_rows<1>(rows, std::make_integer_sequence<int, 10>());
#endif
    }
}

// The product of `rows` rows of A with B's leading `vectors` vectors of columns. extent(begin, end)
// says what the rows [begin, end) need.
template <typename ExtentOf>
SIMD_INLINE void multiply(const BlockProduct<Real>& p, int64_t rows, int64_t vectors,
                          const ExtentOf& extent) {
    for (int64_t vector = 0; vector < vectors;) {
        const int width = tile_vectors(vectors - vector);
        const Real* b = p.b + vector * kLanes * (p.b_step == 0 ? p.panel_rows : 1);
        const int64_t b_step = p.b_step == 0 ? width * kLanes : p.b_step;
        // Tiles of about equal height: one of 2 rows would cost as much as one of 4.
        const int64_t tiles = (rows + kTileRows[width] - 1) / kTileRows[width];
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t begin = rows * t / tiles, end = rows * (t + 1) / tiles;
            const Extent needed = extent(begin, end);
            if (vector >= needed.vectors) continue;
            choose_tile(static_cast<int>(end - begin), width)(p, begin, vector, b, b_step, needed);
        }
        vector += width;
    }
}

// Exchanges lanes between two rows of a block: one step of a transposition.
template <int Step, int... L>
SIMD_INLINE void exchange(Vec& low, Vec& high, std::integer_sequence<int, L...>) {
    const Vec a = low, b = high;
    low = __builtin_shufflevector(a, b, ((L & Step) ? kLanes + L - Step : L)...);
    high = __builtin_shufflevector(a, b, ((L & Step) ? kLanes + L : L + Step)...);
}

template <int Step>
SIMD_INLINE void exchange_rows(Vec* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
        if ((i & Step) == 0) {
            exchange<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes>());
        }
    }
}

// A block of kLanes rows becomes its transpose.
SIMD_INLINE void transpose(Vec* rows) {
    exchange_rows<1>(rows);
#if SIMD_LEVEL != 3
    exchange_rows<2>(rows);
#endif
#if SIMD_LEVEL == 1 || SIMD_LEVEL == 2
    exchange_rows<4>(rows);
#endif
#if SIMD_LEVEL == 2
    exchange_rows<8>(rows);
#endif
}

// n rows of `width` (a multiple of kLanes) as B for a product over `width` steps: transposed, times
// factor, in panels of as many columns as a tile takes, zeros after the last column.
SIMD_FUNCTION void pack_transposed(const Real* from, int64_t row, int64_t n, int64_t width,
                                   Real factor, Real* to) {
    const int64_t vectors = (n + kLanes - 1) / kLanes;
    for (int64_t vector = 0; vector < vectors;) {
        const int columns = tile_vectors(vectors - vector);
        Real* panel = to + vector * kLanes * width;
        for (int v = 0; v < columns; ++v) {
            const int64_t first = (vector + v) * kLanes;
            const int64_t count = std::min<int64_t>(kLanes, n - first);
            for (int64_t d = 0; d < width; d += kLanes) {
                Vec block[kLanes];
                const Real* source = from + first * row + d;
                if (count == kLanes) {
#pragma GCC unroll 16
                    for (int i = 0; i < kLanes; ++i) block[i] = load(source + i * row) * factor;
                } else {
                    for (int i = 0; i < kLanes; ++i) {
                        block[i] = i < count ? load(source + i * row) * factor : Vec{};
                    }
                }
                transpose(block);
#pragma GCC unroll 16
                for (int l = 0; l < kLanes; ++l) {
                    store(panel + (d + l) * columns * kLanes + v * kLanes, block[l]);
                }
            }
        }
        vector += columns;
    }
}

// n rows of `width`, one after the other.
SIMD_FUNCTION void pack_rows(const Real* from, int64_t row, int64_t n, int64_t width, Real* to) {
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t d = 0; d < width; d += kLanes) {
            store(to + i * width + d, load(from + i * row + d));
        }
    }
}

// 2^x for x <= 0, in float with a relative error below 2e-7, and 2^-125 below that; NaN stays.
// Our own minimax polynomial of degree 6 with p(0) = 1, relative error 2e-9.
SIMD_INLINE Vec exp2_nonpositive(Vec x) {
#if SIMD_LEVEL == 3
    for (int l = 0; l < kLanes; ++l) x[l] = std::exp2(x[l]);
    return x;
#else
    x = maximum(splat(-125.0f), x);
    // Adding 1.5 * 2^23 leaves round(x) in the low bits of the mantissa.
    const Vec shifter = splat(12582912.0f);
    const Vec shifted = x + shifter;
    const Vec r = x - (shifted - shifter);
    Vec p = multiply_add(r, splat(0.00015353361959569156f), splat(0.0013398875016719103f));
    p = multiply_add(p, r, splat(0.00961843691766262f));
    p = multiply_add(p, r, splat(0.055503323674201965f));
    p = multiply_add(p, r, splat(0.24022647738456726f));
    p = multiply_add(p, r, splat(0.6931471824645996f));
    p = multiply_add(p, r, splat(1.0f));
    // round(x) goes onto p's exponent; the shifter's own bits fall off.
    IntVec power, bits;
    std::memcpy(&power, &shifted, sizeof(power));
    std::memcpy(&bits, &p, sizeof(bits));
    bits += power << 23;
    std::memcpy(&p, &bits, sizeof(p));
    return p;
#endif
}

}  // namespace clipfast::SIMD_NAMESPACE
