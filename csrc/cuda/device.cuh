// The instructions that the kernels need and C++ has no name for, one function each. Compiled with
// CLIPFAST_EMULATED their bodies come from tests/emulation, and run on a CPU.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef CLIPFAST_EMULATED
#include "cuda_emulation.h"
#else

#define DEVICE __device__ __forceinline__

namespace clipfast {

struct Half {};
struct BFloat16 {};

// Two numbers of 16 bits in a register, the first in the low half.
template <typename T>
DEVICE uint32_t pack(float first, float second);

template <>
DEVICE uint32_t pack<Half>(float first, float second) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

template <>
DEVICE uint32_t pack<BFloat16>(float first, float second) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

template <typename T>
DEVICE float2 unpack(uint32_t both);

template <>
DEVICE float2 unpack<Half>(uint32_t both) {
    float2 f;
    asm("{.reg .f16 lo, hi;\n mov.b32 {lo, hi}, %2;\n cvt.f32.f16 %0, lo;\n cvt.f32.f16 %1, hi;}"
        : "=f"(f.x), "=f"(f.y)
        : "r"(both));
    return f;
}

template <>
DEVICE float2 unpack<BFloat16>(uint32_t both) {
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}

// c += a · b, of 16×16 and 16×8 numbers spread over the warp as the PTX manual draws them for
// mma.m16n8k16.
template <typename T>
DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
DEVICE void mma<Half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
DEVICE void mma<BFloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8×8 matrices; lane l names row l % 8 of matrix l / 8, and lies on 16 bytes.
DEVICE void ldmatrix(uint32_t (&to)[4], const uint16_t* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

DEVICE void ldmatrix_transposed(uint32_t (&to)[4], const uint16_t* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Copies that are there after copy_commit and a copy_wait, or zeros where `from` is not to be read.
DEVICE void copy_16_bytes(void* shared, const void* from, bool read) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(from), "r"(read ? 16 : 0)
                 : "memory");
}

DEVICE void copy_4_bytes(void* shared, const void* from, bool read) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
                 "l"(from), "r"(read ? 4 : 0)
                 : "memory");
}

DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `later` of this thread's commits, the latest ones, are still under way; 0 to 3.
DEVICE void copy_wait(int later) {
    if (later == 3) asm volatile("cp.async.wait_group 3;" ::: "memory");
    if (later == 2) asm volatile("cp.async.wait_group 2;" ::: "memory");
    if (later == 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
    if (later == 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
}

DEVICE float shuffle_xor(float value, int lanes) {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
}

DEVICE bool any_lane(bool value) { return __any_sync(0xffffffffu, value); }

// 2^x, relative error below 2^-22.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE unsigned char* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char shared[];
    return shared;
}

// Null, or what went wrong. The calling thread's device stays `device`.
template <typename Arguments>
const char* launch(void (*kernel)(Arguments), dim3 grid, int threads, int shared_bytes, int device,
                   void* stream, const Arguments& arguments) {
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess) {
        error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    }
    if (error == cudaSuccess) {
        Arguments copy = arguments;
        void* pointers[] = {&copy};
        error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads),
                                 pointers, shared_bytes, static_cast<cudaStream_t>(stream));
    }
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace clipfast

#endif
