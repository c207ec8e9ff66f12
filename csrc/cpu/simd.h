// Vectors for the epilogues, in plain arithmetic on GNU vector types, compiled once per instruction
// set.
//
// A file of vector code includes this header, writes its functions with SIMD_FUNCTION inside
// `namespace clipfast::SIMD_NAMESPACE`, and is itself included through simd_levels.h. The
// extension is built for the baseline machine; only the functions of a level carry its instruction
// set, and which level runs is decided at run time (simd_level()).
//   0  baseline, float
//   1  AVX2 and FMA, float
//   2  AVX-512, float
//   3  baseline, double (exact, not fast)
#ifndef CLIPFAST_SIMD_COMMON
#define CLIPFAST_SIMD_COMMON

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#define CLIPFAST_X86 1
#include <immintrin.h>
#else
#define CLIPFAST_X86 0
#endif

namespace clipfast {

enum class SimdLevel { kBaseline, kAvx2, kAvx512 };

// The level in use: the best one this machine has, unless a test asked for a lower one.
SimdLevel simd_level();

}  // namespace clipfast

#endif  // CLIPFAST_SIMD_COMMON

#undef SIMD_NAMESPACE
#undef SIMD_REAL
#undef SIMD_INT
#undef SIMD_BYTES
#undef SIMD_TARGET
#if SIMD_LEVEL == 0
#define SIMD_NAMESPACE baseline_float
#define SIMD_REAL float
#define SIMD_INT int32_t
#define SIMD_BYTES 16
#define SIMD_TARGET
#elif SIMD_LEVEL == 1
#define SIMD_NAMESPACE avx2_float
#define SIMD_REAL float
#define SIMD_INT int32_t
#define SIMD_BYTES 32
#define SIMD_TARGET __attribute__((target("avx2,fma")))
#elif SIMD_LEVEL == 2
#define SIMD_NAMESPACE avx512_float
#define SIMD_REAL float
#define SIMD_INT int32_t
#define SIMD_BYTES 64
#define SIMD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#elif SIMD_LEVEL == 3
#define SIMD_NAMESPACE baseline_double
#define SIMD_REAL double
#define SIMD_INT int64_t
#define SIMD_BYTES 16
#define SIMD_TARGET
#endif

#undef SIMD_FUNCTION
#undef SIMD_INLINE
#define SIMD_FUNCTION SIMD_TARGET static
#define SIMD_INLINE SIMD_TARGET static inline __attribute__((always_inline))

namespace clipfast::SIMD_NAMESPACE {

using Real = SIMD_REAL;
using Int = SIMD_INT;
typedef Real Vec __attribute__((vector_size(SIMD_BYTES)));
typedef Int IntVec
    __attribute__((vector_size(SIMD_BYTES)));  // also the result of a comparison: 0 or -1 per lane
constexpr int kLanes = SIMD_BYTES / sizeof(Real);
constexpr Real kLowest = std::numeric_limits<Real>::lowest();

// x − 0 is x, whatever its sign, and folds to one broadcast; 0 + x does not.
SIMD_INLINE Vec splat(Real value) { return value - Vec{}; }

SIMD_INLINE Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }

// b where either is NaN.
SIMD_INLINE Vec maximum(Vec a, Vec b) {
#if SIMD_LEVEL == 2
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif SIMD_LEVEL == 1
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// Loads n <= kLanes values; the lanes beyond hold `fill`. With n a constant kLanes this is one
// instruction.
SIMD_INLINE Vec load(const Real* from, int n, Real fill = 0) {
    Vec v;
    if (n == kLanes) {
        std::memcpy(&v, from, sizeof(v));
    } else {
        v = splat(fill);
        for (int l = 0; l < n; ++l) v[l] = from[l];
    }
    return v;
}

SIMD_INLINE IntVec load_int(const int32_t* from, int n, int32_t fill) {
    IntVec v = IntVec{} + static_cast<Int>(fill);
    if (n == kLanes && sizeof(Int) == sizeof(int32_t)) {
        std::memcpy(&v, from, sizeof(v));
    } else {
        for (int l = 0; l < n; ++l) v[l] = from[l];
    }
    return v;
}

SIMD_INLINE void store(Real* to, Vec v, int n) {
    if (n == kLanes) {
        std::memcpy(to, &v, sizeof(v));
    } else {
        for (int l = 0; l < n; ++l) to[l] = v[l];
    }
}

// Halves are folded onto each other: a chain of as many additions as lanes would take longer than
// the vectors before it.
SIMD_INLINE Real sum(Vec v) {
#if SIMD_LEVEL == 2
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) v[l] += v[l + half];
    }
    return v[0];
#endif
}

SIMD_INLINE Real largest(Vec v) {
#if SIMD_LEVEL == 2
    return _mm512_reduce_max_ps((__m512)v);
#else
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) v[l] = v[l + half] > v[l] ? v[l + half] : v[l];
    }
    return v[0];
#endif
}

// Bit l says whether lane l of a comparison holds.
SIMD_INLINE unsigned lanes(IntVec mask) {
#if SIMD_LEVEL == 2
    return static_cast<unsigned>(_mm512_movepi32_mask((__m512i)mask));
#elif SIMD_LEVEL == 1
    return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
#else
    unsigned bits = 0;
    for (int l = 0; l < kLanes; ++l) bits |= mask[l] ? 1u << l : 0u;
    return bits;
#endif
}

// a·b + c with one rounding. Without a fused instruction the double of a float's width is as good.
SIMD_INLINE Vec fused(Vec a, Vec b, Vec c) {
#if SIMD_LEVEL == 2
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif SIMD_LEVEL == 1
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif SIMD_LEVEL == 0 && !defined(__FP_FAST_FMAF)
    for (int l = 0; l < kLanes; ++l) c[l] = static_cast<Real>(double(a[l]) * b[l] + c[l]);
    return c;
#elif defined(__FP_FAST_FMAF)
    for (int l = 0; l < kLanes; ++l) c[l] = std::fma(a[l], b[l], c[l]);
    return c;
#else
    return a * b + c;
#endif
}

// A number as an unevaluated a·b + low, so that its rounding does not reach an exponential of it.
struct Product {
    Vec a, b, low;
};

// e^z · 2^-halvings for z < (halvings + 127) ln2. Float: within 2 ulp, 0 where the result would be
// denormal; double: the C library's. z = k ln2 + r with |r| <= ln2/2; e^r by a polynomial of
// relative error 4e-9 (our own minimax fit, degree 6). A common reference that is a multiple of ln2
// costs no rounding this way.
SIMD_INLINE Vec exponential(Product z, int halvings) {
    const Vec estimate = z.a * z.b;
#if SIMD_LEVEL == 3
    Vec result{};
    for (int l = 0; l < kLanes; ++l) {
        // ln2 in two parts: the first has 32 bits, so that its product with halvings is exact.
        const Real shifted = estimate[l] - halvings * 0.69314718036912382;
        result[l] = std::exp(shifted + (z.low[l] - halvings * 1.9082149292705877e-10));
    }
    return result;
#else
    const IntVec vanishes = estimate < splat((halvings - 125.5f) * 0.69314718f);
    // Adding 1.5 * 2^23 leaves round(z / ln2) in the low bits of the mantissa.
    const Vec shifter = splat(12582912.0f);
    const Vec shifted = fused(estimate, splat(1.44269504f), shifter);
    const Vec k = shifted - shifter;
    // ln2 in two parts: the first has 10 bits, so that k times it is exact.
    Vec r = fused(z.a, z.b, k * -0.693359375f);
    r = fused(k, splat(0.00021219444170128554f), r) + z.low;
    Vec p = fused(r, splat(0.0013814540579915047f), splat(0.00836874544620514f));
    p = fused(p, r, splat(0.04166838899254799f));
    p = fused(p, r, splat(0.1666652113199234f));
    p = fused(p, r, splat(0.4999999403953552f));
    p = fused(p, r, splat(1.0f));
    p = fused(p, r, splat(1.0f));
    IntVec bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits - (0x4b400000 - 127 + halvings)) << 23;  // 0x4b400000 are the bits of the shifter
    Vec power;
    std::memcpy(&power, &bits, sizeof(power));
    return select(vanishes, Vec{}, p * power);
#endif
}

// e^(z - reference), the reference in two parts.
SIMD_INLINE Vec exponential_against(Product z, Vec reference, Vec reference_low) {
    const Vec x = fused(z.a, z.b, -reference) + (z.low - reference_low);
    return exponential({x, splat(1), Vec{}}, 0);
}

// log(1 + e) for 0 <= e <= 1, in float with a relative error below 2e-7 however small e is: e times
// our own minimax polynomial of degree 9 (relative error 5e-9 before rounding).
SIMD_INLINE Vec log1p_unit(Vec e) {
#if SIMD_LEVEL == 3
    for (int l = 0; l < kLanes; ++l) e[l] = std::log1p(e[l]);
    return e;
#else
    Vec p = fused(e, splat(-0.0032440253999084234f), splat(0.01985146477818489f));
    p = fused(p, e, splat(-0.056959543377161026f));
    p = fused(p, e, splat(0.10603656619787216f));
    p = fused(p, e, splat(-0.15305593609809875f));
    p = fused(p, e, splat(0.1967594027519226f));
    p = fused(p, e, splat(-0.24954134225845337f));
    p = fused(p, e, splat(0.3332996368408203f));
    p = fused(p, e, splat(-0.4999990165233612f));
    p = fused(p, e, splat(1.0f));
    return p * e;
#endif
}

// log x for normal x > 0, in float within 2 ulp or 1e-7 of 1.
SIMD_INLINE Vec logarithm(Vec x) {
#if SIMD_LEVEL == 3
    for (int l = 0; l < kLanes; ++l) x[l] = std::log(x[l]);
    return x;
#else
    IntVec bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const IntVec mantissa = (bits & 0x007fffff) | 0x3f800000;
    Vec m;
    std::memcpy(&m, &mantissa, sizeof(m));
    const Vec exponent = __builtin_convertvector((bits >> 23) - 127, Vec);
    return fused(exponent, splat(0.69314718f), log1p_unit(m - 1));
#endif
}

}  // namespace clipfast::SIMD_NAMESPACE
