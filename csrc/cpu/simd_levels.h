// Includes SIMD_FILE, a file of vector code, once per level of simd.h.
#define SIMD_LEVEL 0
#include SIMD_FILE
#undef SIMD_LEVEL
#if CLIPFAST_X86
#define SIMD_LEVEL 1
#include SIMD_FILE
#undef SIMD_LEVEL
#define SIMD_LEVEL 2
#include SIMD_FILE
#undef SIMD_LEVEL
#endif
#define SIMD_LEVEL 3
#include SIMD_FILE
#undef SIMD_LEVEL
#undef SIMD_FILE
