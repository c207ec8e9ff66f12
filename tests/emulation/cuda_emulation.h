// CUDA as csrc/cuda uses it, on a CPU: what device.cuh declares, with bodies that check more than a
// GPU does. What finds mistakes:
//   - the threads of a block are fibers, which run one after another, in an order that a seed sets,
//     from one barrier to the next: the answer must not depend on it;
//   - shared memory is a heap block of the very size that was asked for, full of NaNs;
//   - cp.async copies when it is waited for, and not before;
//   - a warp's threads must meet in the same operation, and a block's in the same barrier;
//   - AddressSanitizer and ThreadSanitizer know the fibers; to the latter only barriers order them.
// User memory is touched in this header, which the sanitizers see; the rest is in
// cuda_emulation.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define DEVICE inline
#define __global__
#define __launch_bounds__(...)
#define threadIdx (::clipfast::emulation::this_thread())
#define blockIdx (::clipfast::emulation::block_index)
#define blockDim (::clipfast::emulation::block_size)

using std::max;
using std::min;

struct dim3 {
    unsigned x = 1, y = 1;
    dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};

struct float2 {
    float x, y;
};

namespace clipfast {

struct Half {};
struct BFloat16 {};

namespace emulation {

struct ThreadIndex {
    unsigned x;
};

extern dim3 block_index, block_size;
extern unsigned order;  // seed of the order of blocks, warps and lanes; 0: as numbered

// Since the start: warps' products of 16×16 and 16×8 numbers, and conflicts of ldmatrix.
struct Counts {
    long long products, bank_conflicts;
};

Counts counts();
void count_product();
void count_bank_conflict();

ThreadIndex this_thread();
unsigned char* shared_memory();
[[noreturn]] void fail(const char* message);

// Waits for the block's other threads.
void sync_threads();

// Waits for the warp's other threads in the same operation; returns what each of the 32 brought.
constexpr int kWords = 12;
using Words = uint32_t[kWords];
const Words* exchange(const char* operation, const uint32_t* words, int count);

struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool read;
};

void add_copy(const Copy& copy);
void commit_copies();
// The thread's next copy of those that must be there when `later` commits may be under way, or
// null.
const Copy* next_copy(int later);

// One call of `body` for every thread of every block.
void run(dim3 grid, int threads, int shared_bytes, void (*body)(const void*), const void* context);

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

template <typename T>
float widen(uint16_t bits);
template <typename T>
uint16_t narrow(float x);  // to nearest, ties to even

template <>
inline float widen<BFloat16>(uint16_t bits) {
    return from_bits(uint32_t(bits) << 16);
}

template <>
inline uint16_t narrow<BFloat16>(float x) {
    if (std::isnan(x)) return 0x7fff;
    const uint32_t bits = bits_of(x);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <>
inline float widen<Half>(uint16_t bits) {
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(float(fraction), -24);
    return from_bits(uint32_t(bits & 0x8000) << 16 | uint32_t(exponent + 112) << 23 |
                     uint32_t(fraction) << 13);
}

template <>
inline uint16_t narrow<Half>(float x) {
    const uint16_t sign = uint16_t(bits_of(x) >> 16 & 0x8000);
    const float size = std::fabs(x);
    if (std::isnan(x)) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 6.103515625e-5f) return sign | uint16_t(std::nearbyint(std::ldexp(size, 24)));
    const uint32_t bits = bits_of(size);
    return sign | uint16_t((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13);
}

}  // namespace emulation

template <typename T>
uint32_t pack(float first, float second) {
    return emulation::narrow<T>(first) | uint32_t(emulation::narrow<T>(second)) << 16;
}

template <typename T>
float2 unpack(uint32_t both) {
    return {emulation::widen<T>(uint16_t(both)), emulation::widen<T>(uint16_t(both >> 16))};
}

// PTX manual, mma.m16n8k16: lane l has of a the rows l/4 and l/4 + 8 and the columns 2·(l%4), the
// next, and both plus 8; of b the same as rows, and the column l/4; of c the rows of a and the
// columns 2·(l%4) and the next.
template <typename T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t mine[12];
    for (int i = 0; i < 6; ++i) {
        const float2 pair = unpack<T>(i < 4 ? a[i] : i == 4 ? b0 : b1);
        mine[2 * i] = emulation::bits_of(pair.x);
        mine[2 * i + 1] = emulation::bits_of(pair.y);
    }
    const emulation::Words* all = emulation::exchange("mma", mine, 12);
    if (threadIdx.x % 32 == 0) emulation::count_product();
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        const int column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const uint32_t* left = all[lane / 4 * 4 + k % 8 / 2];
            const uint32_t* right = all[column * 4 + k % 8 / 2];
            c[i] += emulation::from_bits(left[2 * (i / 2 + k / 8 * 2) + k % 2]) *
                    emulation::from_bits(right[8 + 2 * (k / 8) + k % 2]);
        }
    }
}

namespace emulation {

// Each lane's row, and in the last word where it lies.
inline const Words* exchange_rows(const char* operation, const uint16_t* row) {
    const auto offset = reinterpret_cast<const unsigned char*>(row) - shared_memory();
    if (offset % 16 != 0) fail("ldmatrix: a row does not lie on 16 bytes");
    uint32_t mine[5];
    for (int i = 0; i < 4; ++i) mine[i] = row[2 * i] | uint32_t(row[2 * i + 1]) << 16;
    mine[4] = uint32_t(offset);
    const Words* all = exchange(operation, mine, 5);
    if (this_thread().x % 32 == 0) {
        for (int matrix = 0; matrix < 4; ++matrix) {
            unsigned used = 0;
            for (int r = 0; r < 8; ++r) {
                const unsigned banks = 1u << all[8 * matrix + r][4] / 16 % 8;
                if (used & banks) count_bank_conflict();
                used |= banks;
            }
        }
    }
    return all;
}

}  // namespace emulation

inline void ldmatrix(uint32_t (&to)[4], const uint16_t* row) {
    const emulation::Words* all = emulation::exchange_rows("ldmatrix", row);
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) to[i] = all[8 * i + lane / 4][lane % 4];
}

inline void ldmatrix_transposed(uint32_t (&to)[4], const uint16_t* row) {
    const emulation::Words* all = emulation::exchange_rows("ldmatrix.trans", row);
    const int lane = threadIdx.x % 32, column = lane / 4;
    for (int i = 0; i < 4; ++i) {
        uint32_t pair[2];
        for (int j = 0; j < 2; ++j) {
            pair[j] = all[8 * i + lane % 4 * 2 + j][column / 2] >> (column % 2 * 16) & 0xffff;
        }
        to[i] = pair[0] | pair[1] << 16;
    }
}

inline void copy_bytes(void* shared, const void* from, bool read, int bytes) {
    if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(from) % bytes) {
        emulation::fail("cp.async: an address is not a multiple of the size");
    }
    emulation::add_copy({shared, from, bytes, read});
}

inline void copy_16_bytes(void* shared, const void* from, bool read) {
    copy_bytes(shared, from, read, 16);
}

inline void copy_4_bytes(void* shared, const void* from, bool read) {
    copy_bytes(shared, from, read, 4);
}

inline void copy_commit() { emulation::commit_copies(); }

inline void copy_wait(int later) {
    if (later < 0 || later > 3) return;  // as on a device
    while (const emulation::Copy* copy = emulation::next_copy(later)) {
        for (int i = 0; i < copy->bytes / 4; ++i) {
            static_cast<uint32_t*>(copy->to)[i] =
                copy->read ? static_cast<const uint32_t*>(copy->from)[i] : 0;
        }
    }
}

inline float shuffle_xor(float value, int lanes) {
    const uint32_t mine = emulation::bits_of(value);
    const emulation::Words* all = emulation::exchange("shuffle", &mine, 1);
    return emulation::from_bits(all[threadIdx.x % 32 ^ lanes][0]);
}

inline bool any_lane(bool value) {
    const uint32_t mine = value;
    const emulation::Words* all = emulation::exchange("any", &mine, 1);
    for (int lane = 0; lane < 32; ++lane) {
        if (all[lane][0]) return true;
    }
    return false;
}

inline float exp2_fast(float x) { return std::exp2(x); }

inline unsigned char* dynamic_shared() { return emulation::shared_memory(); }

template <typename Arguments>
const char* launch(void (*kernel)(Arguments), dim3 grid, int threads, int shared_bytes, int, void*,
                   const Arguments& arguments) {
    struct Call {
        void (*kernel)(Arguments);
        const Arguments& arguments;
    } call{kernel, arguments};
    emulation::run(
        grid, threads, shared_bytes,
        [](const void* context) {
            const Call& call = *static_cast<const Call*>(context);
            call.kernel(call.arguments);
        },
        &call);
    return nullptr;
}

}  // namespace clipfast

inline void __syncthreads() { ::clipfast::emulation::sync_threads(); }
