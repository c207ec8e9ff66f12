// The threads of one block at a time, as fibers. ThreadSanitizer must not see this file: what
// passes here between fibers is the emulation's own.
#include "cuda_emulation.h"

#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATION_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

// Saves what a call must preserve, and goes on where `to` was saved.
extern "C" void clipfast_switch_stack(void** from, void* to);
asm(R"(
.text
.globl clipfast_switch_stack
clipfast_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace clipfast::emulation {

dim3 block_index, block_size;
unsigned order = 0;

namespace {

Counts counted{0, 0};

constexpr size_t kStack = 256 * 1024;
constexpr int kSharedLimit = 163 * 1024;  // of a block on sm_80
const char* const kBarrier = "the barrier";
const char* const kEnd = "its end";

struct Fiber {
    void* top = nullptr;  // of the stack, while another runs
    char* stack = nullptr;
    void* fake_stack = nullptr;  // AddressSanitizer's
    void* tsan = nullptr;
    unsigned thread = 0;
    const char* waits_in = nullptr;  // null: it can run
    unsigned barriers = 0, exchanges = 0;
    // Copies; committed[i] is the number of those before commit i.
    std::vector<Copy> copies;
    std::vector<size_t> committed;
    size_t copied = 0;
};

Fiber scheduler;
constexpr int kMostThreads = 1024;
Fiber fibers[kMostThreads];
int made = 0;
Fiber* running = &scheduler;
unsigned char* shared = nullptr;
void (*block_body)(const void*);
const void* block_context;
// By warp, by whether its count of exchanges is odd, by lane: one set is read while the next fills.
Words words[2 * kMostThreads];
std::mt19937 generator;

void acquire(void* address) {
    (void)address;
#ifdef EMULATION_TSAN
    __tsan_acquire(address);
#endif
}

void release(void* address) {
    (void)address;
#ifdef EMULATION_TSAN
    __tsan_release(address);
#endif
}

char barrier_mark[2], start_mark, end_mark;

#if defined(__SANITIZE_ADDRESS__)
const void* main_bottom = nullptr;
size_t main_size = 0;
#endif

void switch_to(Fiber* to) {
    Fiber* const from = running;
    running = to;
#if defined(__SANITIZE_ADDRESS__)
    const bool to_main = to == &scheduler;
    __sanitizer_start_switch_fiber(&from->fake_stack, to_main ? main_bottom : to->stack,
                                   to_main ? main_size : kStack);
#endif
#ifdef EMULATION_TSAN
    __tsan_switch_to_fiber(to->tsan, 1);  // 1: does not order the two
#endif
    clipfast_switch_stack(&from->top, to->top);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

void wait_in(const char* place) {
    running->waits_in = place;
    switch_to(&scheduler);
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_bottom, &main_size);
#endif
    for (;;) {
        acquire(&start_mark);
        block_body(block_context);
        if (running->copied != running->copies.size()) fail("a thread left copies under way");
        release(&end_mark);
        wait_in(kEnd);
    }
}

void make_fibers(int threads) {
#ifdef EMULATION_TSAN
    scheduler.tsan = __tsan_get_current_fiber();
#endif
    for (; made < threads; ++made) {
        Fiber& fiber = fibers[made];
        fiber.stack = static_cast<char*>(std::malloc(kStack));
        fiber.thread = unsigned(made);
#ifdef EMULATION_TSAN
        fiber.tsan = __tsan_create_fiber(0);
#endif
        // As if fiber_main had been called, and had then called clipfast_switch_stack.
        const uintptr_t top = reinterpret_cast<uintptr_t>(fiber.stack + kStack) & ~uintptr_t(15);
        void** const frame = reinterpret_cast<void**>(top - 64);
        for (int i = 0; i < 8; ++i) frame[i] = nullptr;
        frame[6] = reinterpret_cast<void*>(&fiber_main);
        fiber.top = frame;
    }
}

std::vector<int> permutation(int count) {
    std::vector<int> index(count);
    std::iota(index.begin(), index.end(), 0);
    if (order != 0) std::shuffle(index.begin(), index.end(), generator);
    return index;
}

[[noreturn]] void fail_diverged(const Fiber& a, const Fiber& b) {
    std::fprintf(stderr, "emulation: thread %u waits in %s, thread %u in %s\n", a.thread,
                 a.waits_in, b.thread, b.waits_in);
    std::_Exit(3);
}

// Until all of its threads are at a barrier or at the end.
void run_warp(int warp) {
    Fiber* const lanes = &fibers[32 * warp];
    for (;;) {
        for (const int lane : permutation(32)) {
            if (lanes[lane].waits_in == nullptr) switch_to(&lanes[lane]);
        }
        for (int lane = 1; lane < 32; ++lane) {
            if (lanes[lane].waits_in != lanes[0].waits_in) fail_diverged(lanes[0], lanes[lane]);
        }
        if (lanes[0].waits_in == kBarrier || lanes[0].waits_in == kEnd) return;
        for (int lane = 0; lane < 32; ++lane) lanes[lane].waits_in = nullptr;
    }
}

void run_block(int threads, int shared_bytes) {
    shared = static_cast<unsigned char*>(std::malloc(shared_bytes));
    std::fill(shared, shared + shared_bytes, 0xff);
    for (int t = 0; t < threads; ++t) {
        Fiber& fiber = fibers[t];
        fiber.waits_in = nullptr;
        fiber.barriers = fiber.exchanges = 0;
        fiber.copies.clear();
        fiber.committed.clear();
        fiber.copied = 0;
    }
    release(&start_mark);
    for (bool ended = false; !ended;) {
        for (const int warp : permutation(threads / 32)) run_warp(warp);
        for (int t = 32; t < threads; t += 32) {
            if (fibers[t].waits_in != fibers[0].waits_in) fail_diverged(fibers[0], fibers[t]);
        }
        ended = fibers[0].waits_in == kEnd;
        for (int t = 0; t < threads && !ended; ++t) fibers[t].waits_in = nullptr;
    }
    acquire(&end_mark);
    std::free(shared);
}

}  // namespace

void fail(const char* message) {
    std::fprintf(stderr, "emulation: %s\n", message);
    std::_Exit(3);
}

Counts counts() { return counted; }

void count_product() { ++counted.products; }

void count_bank_conflict() { ++counted.bank_conflicts; }

ThreadIndex this_thread() { return {running->thread}; }

unsigned char* shared_memory() { return shared; }

void sync_threads() {
    char* const mark = &barrier_mark[running->barriers++ % 2];
    release(mark);
    wait_in(kBarrier);
    acquire(mark);
}

const Words* exchange(const char* operation, const uint32_t* mine, int count) {
    Fiber& fiber = *running;
    Words* const set = &words[(fiber.thread / 32 * 2 + fiber.exchanges++ % 2) * 32];
    for (int i = 0; i < count; ++i) {
        const_cast<volatile uint32_t*>(set[fiber.thread % 32])[i] = mine[i];  // no memcpy
    }
    wait_in(operation);
    return set;
}

void add_copy(const Copy& copy) { running->copies.push_back(copy); }

void commit_copies() { running->committed.push_back(running->copies.size()); }

const Copy* next_copy(int later) {
    Fiber& fiber = *running;
    const size_t commits = fiber.committed.size();
    const size_t due = commits > size_t(later) ? fiber.committed[commits - 1 - later] : 0;
    return fiber.copied < due ? &fiber.copies[fiber.copied++] : nullptr;
}

void run(dim3 grid, int threads, int shared_bytes, void (*body)(const void*), const void* context) {
    if (threads % 32 != 0 || threads > kMostThreads) fail("a block is not of 1 to 32 whole warps");
    if (shared_bytes > kSharedLimit) fail("a block wants more shared memory than there is");
    make_fibers(threads);
    block_body = body;
    block_context = context;
    block_size = dim3(threads);
    generator.seed(order);
    for (const int block : permutation(int(grid.x * grid.y))) {
        block_index = dim3(block % grid.x, block / grid.x);
        run_block(threads, shared_bytes);
    }
}

}  // namespace clipfast::emulation
