// attention_runner CASES ANSWERS: runs the kernels of csrc/cuda/attention.cu, and the operations
// that they are made of, on the cases of one file, and writes the answers to another. The tests
// that write and read these files are in tests/kernels.
//
// A matrix (T, H, D) lies in memory of its exact size, with 16 bytes of canary between its tokens.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "attention.h"
#include "device.cuh"

namespace clipfast {
namespace {

constexpr int kGap = 8;
constexpr uint16_t kCanary = 0x5a5a, kNan = 0xffff;

std::FILE* cases;
std::FILE* answers;

[[noreturn]] void stop(const char* why) {
    std::fprintf(stderr, "attention_runner: %s\n", why);
    std::_Exit(2);
}

void read(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, cases) != bytes) stop("the file of cases ends early");
}

void write(const void* from, size_t bytes) {
    if (std::fwrite(from, 1, bytes, answers) != bytes) stop("the answers cannot be written");
}

struct Matrix {
    int64_t tokens, width;
    std::unique_ptr<uint16_t[]> data;

    Matrix(int64_t tokens, int64_t width, bool filled)
        : tokens(tokens), width(width), data(new uint16_t[tokens * (width + kGap)]) {
        for (int64_t t = 0; t < tokens; ++t) {
            uint16_t* const line = data.get() + t * (width + kGap);
            for (int64_t i = 0; i < width + kGap; ++i) line[i] = i < width ? kNan : kCanary;
            if (filled) read(line, 2 * width);
        }
    }

    Tokens view() const { return {data.get(), width + kGap}; }

    void answer() const {
        for (int64_t t = 0; t < tokens; ++t) {
            const uint16_t* const line = data.get() + t * (width + kGap);
            write(line, 2 * width);
            for (int i = 0; i < kGap; ++i) {
                if (line[width + i] != kCanary) stop("a kernel wrote between two tokens");
            }
        }
    }
};

struct Floats {
    size_t count;
    std::unique_ptr<float[]> data;

    explicit Floats(size_t count) : count(count), data(new float[count]) {
        for (size_t i = 0; i < count; ++i) data[i] = NAN;
    }
};

// As the file has it, before cu_q, cu_k, q, k, v and d_out.
struct Header {
    int32_t seed, bfloat16, batch, max_q, max_k, causal, heads, width, total_q, total_k;
    int32_t has_cu_q, has_cu_k;
    float scale;
    AttentionPlan forward, query, key;
};

void check(const char* error) {
    if (error != nullptr) stop(error);
}

void run_attention() {
    Header h;
    read(&h, sizeof(h));
    std::vector<int32_t> cu_q(h.has_cu_q ? h.batch + 1 : 0), cu_k(h.has_cu_k ? h.batch + 1 : 0);
    read(cu_q.data(), 4 * cu_q.size());
    read(cu_k.data(), 4 * cu_k.size());
    const int64_t width = int64_t(h.heads) * h.width;
    const Matrix q(h.total_q, width, true), k(h.total_k, width, true), v(h.total_k, width, true);
    const Matrix d_out(h.total_q, width, true), out(h.total_q, width, false);
    const Matrix d_q(h.total_q, width, false), d_k(h.total_k, width, false);
    const Matrix d_v(h.total_k, width, false);
    const Floats lse(size_t(h.heads) * h.total_q), delta(size_t(h.heads) * h.total_q);

    const AttentionShape shape{h.has_cu_q ? cu_q.data() : nullptr,
                               h.has_cu_k ? cu_k.data() : nullptr,
                               h.batch,
                               h.max_q,
                               h.max_k,
                               h.causal != 0,
                               h.scale,
                               h.heads,
                               h.width,
                               h.total_q,
                               h.bfloat16 != 0,
                               0,
                               nullptr};
    emulation::order = h.seed;
    check(attention_fwd({shape, q.view(), k.view(), v.view(), out.view(), lse.data.get()},
                        h.forward));
    const AttentionBackward backward{shape,      d_out.view(), q.view(),        k.view(),
                                     v.view(),   out.view(),   lse.data.get(),  d_q.view(),
                                     d_k.view(), d_v.view(),   delta.data.get()};
    check(attention_bwd_q(backward, h.query));
    check(attention_bwd_kv(backward, h.key));

    out.answer();
    write(lse.data.get(), 4 * lse.count);
    d_q.answer();
    d_k.answer();
    d_v.answer();
    const emulation::Counts counts = emulation::counts();
    write(&counts, sizeof(counts));
}

struct Fragments {
    uint32_t a[32][4], b[32][2];
    float c[32][4];
    int32_t bfloat16;
};

void multiply(Fragments* f) {
    const int lane = threadIdx.x;
    if (f->bfloat16) {
        mma<BFloat16>(f->c[lane], f->a[lane], f->b[lane][0], f->b[lane][1]);
    } else {
        mma<Half>(f->c[lane], f->a[lane], f->b[lane][0], f->b[lane][1]);
    }
}

struct Matrices {
    uint16_t rows[32][8];
    uint32_t to[32][4], transposed[32][4];
};

void load(Matrices* m) {
    const int lane = threadIdx.x;
    uint16_t* const row = reinterpret_cast<uint16_t*>(dynamic_shared()) + 8 * lane;
    for (int i = 0; i < 8; ++i) row[i] = m->rows[lane][i];
    ldmatrix(m->to[lane], row);
    ldmatrix_transposed(m->transposed[lane], row);
}

void run_multiply() {
    Fragments f;
    read(&f, sizeof(f));
    launch(multiply, dim3(1), 32, 16, 0, nullptr, &f);
    write(f.c, sizeof(f.c));
}

void run_load() {
    Matrices m;
    read(m.rows, sizeof(m.rows));
    launch(load, dim3(1), 32, 512, 0, nullptr, &m);
    write(m.to, sizeof(m.to));
    write(m.transposed, sizeof(m.transposed));
}

void run_all() {
    int32_t what;
    while (std::fread(&what, 4, 1, cases) == 1) {
        if (what == 0) run_attention();
        if (what == 1) run_multiply();
        if (what == 2) run_load();
    }
}

}  // namespace
}  // namespace clipfast

int main(int, char** names) {
    clipfast::cases = std::fopen(names[1], "rb");
    clipfast::answers = std::fopen(names[2], "wb");
    if (clipfast::cases == nullptr || clipfast::answers == nullptr) clipfast::stop("no such file");
    clipfast::run_all();
    std::fclose(clipfast::answers);
    return 0;
}
