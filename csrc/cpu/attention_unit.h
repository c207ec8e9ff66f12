// Attention of one head of one sequence by one thread, compiled once per SIMD_LEVEL (simd.h).
//
// A unit first packs its keys and values, and then walks over strips of queries: the scores of a
// strip against all keys are the only part of the score matrix that exists, and stay in the second
// cache. L_q, L_k tokens of the sequence, D head width, a multiple of 16.
#include "block_product.h"

#ifndef CLIPFAST_ATTENTION_UNIT_COMMON
#define CLIPFAST_ATTENTION_UNIT_COMMON

namespace clipfast {

// Rows of D numbers, `row` elements from one token to the next.
template <typename T>
struct HeadRows {
    T* data;
    int64_t row;

    T* at(int64_t i) const { return data + i * row; }
};

template <typename T>
struct AttentionUnit {
    int64_t n_q, n_k, width;
    bool causal;
    T scale;
    HeadRows<const T> q, k, v;
    HeadRows<T> out;  // of the forward alone
    T* lse;           // natural; the backward reads it
    HeadRows<const T> d_out;
    HeadRows<T> d_q, d_k, d_v;
    int64_t ahead;  // elements from this unit's rows to those of this thread's next unit, or 0

    // How many keys query i sees: the last query sees all of them.
    int64_t seen(int64_t i) const {
        return causal ? std::max<int64_t>(0, std::min(n_k, i + 1 + n_k - n_q)) : n_k;
    }
    // The first query that sees key j.
    int64_t first_to_see(int64_t j) const { return causal ? j - (n_k - n_q) : 0; }
};

// A strip's scores at 577 keys, and in the backward their gradient too, fit into the second cache
// beside the keys and values.
constexpr int64_t kStripRows = 64;
constexpr int64_t kWidestVector = 16;  // elements

// Elements of working memory that a unit may take, forward or backward.
inline int64_t attention_scratch(int64_t n_k, int64_t width) {
    const int64_t columns = (n_k + kWidestVector - 1) / kWidestVector * kWidestVector;
    return 5 * columns * width + 2 * kStripRows * (columns + width + 1);
}

template <typename T>
using AttentionPass = void (*)(const AttentionUnit<T>&, T* scratch);

}  // namespace clipfast

#endif  // CLIPFAST_ATTENTION_UNIT_COMMON

namespace clipfast::SIMD_NAMESPACE {

constexpr Real kLog2e = Real(1.4426950408889634);
constexpr Real kLn2 = Real(0.6931471805599453);
constexpr Real kLn2Low = Real(0.6931471805599453 - kLn2);
constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

constexpr int64_t vectors_of(int64_t n) { return (n + kLanes - 1) / kLanes; }

SIMD_INLINE IntVec lane_numbers() {
    IntVec v{};
    for (int l = 0; l < kLanes; ++l) v[l] = l;
    return v;
}

// v, with `fill` in the lanes from n on.
SIMD_INLINE Vec first_lanes(Vec v, int64_t n, Real fill) {
    return n >= kLanes ? v : select(lane_numbers() < static_cast<Int>(n), v, splat(fill));
}

SIMD_INLINE void fill_rows(HeadRows<Real> rows, int64_t n, int64_t width) {
    for (int64_t i = 0; i < n; ++i) std::fill(rows.at(i), rows.at(i) + width, Real(0));
}

// Asks for the next unit's rows while this one's are at work: each is a few lines of a page of its
// own, of which the hardware foresees nothing. At 50 tokens a tenth of the time, later none.
SIMD_INLINE void prefetch(HeadRows<const Real> rows, int64_t n, int64_t width, int64_t ahead) {
    if (ahead == 0) return;
    constexpr int64_t kLine = 64 / sizeof(Real);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t d = 0; d < width; d += kLine) __builtin_prefetch(rows.at(i) + ahead + d, 0, 2);
    }
}

SIMD_INLINE bool streams(HeadRows<Real> rows) {
    return reinterpret_cast<uintptr_t>(rows.data) % SIMD_BYTES == 0 &&
           rows.row * sizeof(Real) % SIMD_BYTES == 0;
}

// A number in units of ln2, in two parts, so that its rounding does not reach an exponential.
struct InLn2 {
    Real high, low;
    explicit InLn2(double natural)
        : high(static_cast<Real>(natural * 1.4426950408889634)),
          low(static_cast<Real>(natural * 1.4426950408889634 - high)) {}
};

// Of a row of scores.
struct Softmax {
    Real sum;    // of the exponentials against the row's maximum
    Real shift;  // the maximum in units of ln2
};

// The first n >= 1 numbers of s, scores, become their exponentials against the maximum, then come
// zeros up to `end`, a multiple of kLanes.
SIMD_INLINE Softmax exponentiate(Real* s, int64_t n, int64_t end) {
    const int64_t last = (vectors_of(n) - 1) * kLanes;  // the vector that may be partial
    Vec highest = first_lanes(load(s + last), n - last, -kInfinity);
    for (int64_t j = 0; j < last; j += kLanes) highest = maximum(highest, load(s + j));
    const Real shift = largest(highest) * kLog2e;
    const auto exponential = [&](int64_t j) SIMD_TARGET {
        return exp2_nonpositive(multiply_add(load(s + j), splat(kLog2e), splat(-shift)));
    };
    Vec total = first_lanes(exponential(last), n - last, 0);
    store(s + last, total);
    for (int64_t j = 0; j < last; j += kLanes) {
        const Vec e = exponential(j);
        store(s + j, e);
        total += e;
    }
    std::fill(s + last + kLanes, s + std::max(last + kLanes, end), Real(0));
    return {sum(total), shift};
}

// From n rows' sums and shifts, whole vectors of which can be read and written: 1/sum in place of
// the sum, 0 for a row of no keys, and the log-sum-exp.
SIMD_INLINE void finish_rows(Real* sums, const Real* shifts, int64_t n, Real* lse) {
    for (int64_t r = 0; r < n; r += kLanes) {
        const Vec total = load(sums + r), shift = load(shifts + r);
        const IntVec seen = total != Vec{};
        Vec natural = fused(shift, splat(kLn2Low), logarithm(total));
        natural = select(seen, fused(shift, splat(kLn2), natural), splat(-kInfinity));
        store(sums + r, select(seen, 1 / total, Vec{}));
        store(lse + r, natural, static_cast<int>(std::min<int64_t>(kLanes, n - r)));
    }
}

// to[j] = a · (row j), for n rows; writes whole vectors.
SIMD_INLINE void dots(const Real* a, HeadRows<const Real> rows, int64_t n, int64_t width,
                      Real* to) {
    for (int64_t j = 0; j < n; j += kLanes) {
        Vec part[kLanes] = {};
        const int64_t count = std::min<int64_t>(kLanes, n - j);
        for (int64_t d = 0; d < width; d += kLanes) {
            const Vec x = load(a + d);
            if (count == kLanes) {
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; ++i) {
                    part[i] = multiply_add(x, load(rows.at(j + i) + d), part[i]);
                }
            } else {
                for (int i = 0; i < count; ++i) part[i] += x * load(rows.at(j + i) + d);
            }
        }
        transpose(part);
        Vec total = part[0];
        for (int i = 1; i < kLanes; ++i) total += part[i];
        store(to + j, total);
    }
}

// e^(s − lse).
SIMD_INLINE Vec probabilities(Vec s, InLn2 lse) {
    return exp2_nonpositive(multiply_add(s, splat(kLog2e), splat(-lse.high)) - lse.low);
}

SIMD_INLINE void scale_row(Real* s, int64_t n, Real factor) {
    for (int64_t j = 0; j < n; j += kLanes) store(s + j, load(s + j) * factor);
}

// One query reads every key and value once: no packing, no tiles.
SIMD_FUNCTION void attend_from_one(const AttentionUnit<Real>& u, Real* scratch) {
    const int64_t n = u.n_k, whole = vectors_of(n) * kLanes;
    Real* s = scratch;
    dots(u.q.data, u.k, n, u.width, s);
    scale_row(s, whole, u.scale);
    const Softmax softmax = exponentiate(s, n, whole);
    Real *inverse = s + whole, *shift = inverse + kLanes;
    store(inverse, splat(softmax.sum));
    store(shift, splat(softmax.shift));
    finish_rows(inverse, shift, 1, u.lse);
    for (int64_t d = 0; d < u.width; d += kLanes) {
        Vec total{};
        for (int64_t j = 0; j < n; ++j)
            total = multiply_add(splat(s[j]), load(u.v.at(j) + d), total);
        store(u.out.data + d, total * *inverse);
    }
}

SIMD_FUNCTION void attention_forward(const AttentionUnit<Real>& u, Real* scratch) {
    if (u.n_q == 0) return;
    if (u.n_k == 0) {
        fill_rows(u.out, u.n_q, u.width);
        std::fill(u.lse, u.lse + u.n_q, -kInfinity);
        return;
    }
    if (u.n_q == 1) return attend_from_one(u, scratch);
    const int64_t vectors = vectors_of(u.n_k), columns = vectors * kLanes;
    Real* keys = scratch;  // (D, L_k), in panels
    Real* values = keys + columns * u.width;
    Real* s = values + columns * u.width;
    Real* inverse = s + kStripRows * columns;  // by row of the strip
    Real* shift = inverse + kStripRows;
    pack_transposed(u.k.data, u.k.row, u.n_k, u.width, u.scale, keys);
    pack_rows(u.v.data, u.v.row, u.n_k, u.width, values);
    prefetch(u.k, u.n_k, u.width, u.ahead);

    const int64_t strips = (u.n_q + kStripRows - 1) / kStripRows;
    for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t first = u.n_q * strip / strips, last = u.n_q * (strip + 1) / strips;
        BlockProduct<Real> scores{u.q.at(first), u.q.row, 1, keys, 0, u.width, s, columns};
        multiply(scores, last - first, vectors, [&](int64_t, int64_t end) {
            return Extent{0, u.width, vectors_of(u.seen(first + end - 1))};
        });
        if (strip == 0) prefetch(u.v, u.n_k, u.width, u.ahead);
        const int64_t strip_end = vectors_of(u.seen(last - 1)) * kLanes;
        for (int64_t i = first; i < last; ++i) {
            Real* row = s + (i - first) * columns;
            Softmax softmax{0, 0};
            if (u.seen(i) > 0) {
                softmax = exponentiate(row, u.seen(i), strip_end);
            } else {
                std::fill(row, row + strip_end, Real(0));
            }
            inverse[i - first] = softmax.sum;
            shift[i - first] = softmax.shift;
        }
        finish_rows(inverse, shift, last - first, u.lse + first);
        if (strip == 0) prefetch(u.q, u.n_q, u.width, u.ahead);
        BlockProduct<Real> output{s, columns, 1, values, u.width, 0, u.out.at(first), u.out.row};
        output.row_alpha = inverse;
        output.stream = streams(u.out);
        multiply(output, last - first, vectors_of(u.width), [&](int64_t, int64_t end) {
            return Extent{0, u.seen(first + end - 1), vectors_of(u.width)};
        });
    }
}

// A row of n >= 1 scores becomes the probabilities p, d_p the scores' gradient p·(d_p − delta), both
// with zeros up to `end`. delta = Σ p·d_p / Σ p, which is rowsum(dO∘O) without reading O, and free
// of the log-sum-exp's rounding: where one key has it all, that would be all of the gradient.
SIMD_INLINE void scores_gradient(Real* s, Real* d_p, int64_t n, int64_t end, Real lse_of_row) {
    const InLn2 lse(lse_of_row);
    const int64_t last = (vectors_of(n) - 1) * kLanes;  // the vector that may be partial
    Vec weighted{}, total{};
    for (int64_t j = 0; j <= last; j += kLanes) {
        Vec p = probabilities(load(s + j), lse);
        if (j == last) p = first_lanes(p, n - j, 0);
        store(s + j, p);
        total += p;
        weighted = multiply_add(p, load(d_p + j), weighted);
    }
    // Over a single key the softmax is constant.
    const Real delta = n == 1 ? d_p[0] : sum(weighted) / sum(total);
    for (int64_t j = 0; j <= last; j += kLanes) {
        store(d_p + j, load(s + j) * (load(d_p + j) - delta));
    }
    std::fill(s + last + kLanes, s + std::max(last + kLanes, end), Real(0));
    std::fill(d_p + last + kLanes, d_p + std::max(last + kLanes, end), Real(0));
}

SIMD_FUNCTION void attend_from_one_backward(const AttentionUnit<Real>& u, Real* scratch) {
    const int64_t n = u.n_k, whole = vectors_of(n) * kLanes;
    Real* p = scratch;
    Real* d_s = p + whole;
    dots(u.q.data, u.k, n, u.width, p);
    dots(u.d_out.data, u.v, n, u.width, d_s);
    scale_row(p, whole, u.scale);
    scores_gradient(p, d_s, n, whole, *u.lse);
    scale_row(d_s, whole, u.scale);
    for (int64_t d = 0; d < u.width; d += kLanes) {
        const Vec q = load(u.q.data + d), d_out = load(u.d_out.data + d);
        Vec d_q{};
        for (int64_t j = 0; j < n; ++j) {
            const Vec x = splat(d_s[j]);
            d_q = multiply_add(x, load(u.k.at(j) + d), d_q);
            store(u.d_k.at(j) + d, x * q);
            store(u.d_v.at(j) + d, splat(p[j]) * d_out);
        }
        store(u.d_q.data + d, d_q);
    }
}

SIMD_FUNCTION void attention_backward(const AttentionUnit<Real>& u, Real* scratch) {
    if (u.n_q == 0 || u.n_k == 0) {
        fill_rows(u.d_q, u.n_q, u.width);
        fill_rows(u.d_k, u.n_k, u.width);
        fill_rows(u.d_v, u.n_k, u.width);
        return;
    }
    if (u.n_q == 1) return attend_from_one_backward(u, scratch);
    const int64_t width = u.width, wide = vectors_of(width);
    const int64_t vectors = vectors_of(u.n_k), columns = vectors * kLanes;
    Real* keys_transposed = scratch;
    Real* values_transposed = keys_transposed + columns * width;
    Real* keys = values_transposed + columns * width;
    Real* d_keys = keys + columns * width;  // sums over the strips so far
    Real* d_values = d_keys + columns * width;
    Real* p = d_values + columns * width;
    Real* d_s = p + kStripRows * columns;
    Real* q = d_s + kStripRows * columns;
    Real* d_out = q + kStripRows * width;
    pack_transposed(u.k.data, u.k.row, u.n_k, width, u.scale, keys_transposed);
    pack_transposed(u.v.data, u.v.row, u.n_k, width, 1, values_transposed);
    pack_rows(u.k.data, u.k.row, u.n_k, width, keys);
    prefetch(u.k, u.n_k, width, u.ahead);

    const int64_t strips = (u.n_q + kStripRows - 1) / kStripRows;
    for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t first = u.n_q * strip / strips, last = u.n_q * (strip + 1) / strips;
        const int64_t rows = last - first;
        pack_rows(u.q.at(first), u.q.row, rows, width, q);
        pack_rows(u.d_out.at(first), u.d_out.row, rows, width, d_out);
        const auto seen_columns = [&](int64_t, int64_t end) {
            return Extent{0, width, vectors_of(u.seen(first + end - 1))};
        };
        BlockProduct<Real> scores{q, width, 1, keys_transposed, 0, width, p, columns};
        multiply(scores, rows, vectors, seen_columns);
        if (strip == 0) prefetch(u.v, u.n_k, width, u.ahead);
        BlockProduct<Real> d_p{d_out, width, 1, values_transposed, 0, width, d_s, columns};
        multiply(d_p, rows, vectors, seen_columns);
        // A tile of keys may reach beyond the last one that the strip sees.
        const int64_t strip_end =
            std::min(columns, vectors_of(u.seen(last - 1)) * kLanes + kWidestVector);
        for (int64_t r = 0; r < rows; ++r) {
            Real *p_row = p + r * columns, *d_s_row = d_s + r * columns;
            if (const int64_t n = u.seen(first + r); n > 0) {
                scores_gradient(p_row, d_s_row, n, strip_end, u.lse[first + r]);
            } else {
                std::fill(p_row, p_row + strip_end, Real(0));
                std::fill(d_s_row, d_s_row + strip_end, Real(0));
            }
        }
        if (strip == 0) prefetch(u.q, u.n_q, width, u.ahead);
        BlockProduct<Real> d_q{d_s, columns, 1, keys, width, 0, u.d_q.at(first), u.d_q.row};
        d_q.alpha = u.scale;
        d_q.stream = streams(u.d_q);
        multiply(d_q, rows, wide,
                 [&](int64_t, int64_t end) { return Extent{0, u.seen(first + end - 1), wide}; });
        const auto seeing_rows = [&](int64_t begin, int64_t) {
            const int64_t from = std::max<int64_t>(0, u.first_to_see(begin) - first);
            return Extent{std::min(from, rows), rows, wide};
        };
        const auto over_queries = [&](const Real* a, const Real* b, Real* sum, HeadRows<Real> to,
                                      Real alpha) SIMD_TARGET {
            const bool done = strip + 1 == strips;
            BlockProduct<Real> product{
                a, 1, columns, b, width, 0, done ? to.data : sum, done ? to.row : width};
            product.add = strip == 0 ? nullptr : sum;
            product.add_row = width;
            product.alpha = done ? alpha : 1;
            product.stream = done && streams(to);
            multiply(product, u.n_k, wide, seeing_rows);
        };
        over_queries(p, d_out, d_values, u.d_v, 1);
        if (strip == 0) prefetch(u.d_out, u.n_q, width, u.ahead);
        over_queries(d_s, q, d_keys, u.d_k, u.scale);
    }
}

}  // namespace clipfast::SIMD_NAMESPACE
