// One walk over the n×N matrix x · yᵀ in tiles, with torch's own matrix product and an epilogue per
// tile.
//
// A tile is the only part of the matrix that exists at any time. The forward walk computes each
// tile once (1 product). The gradient walk computes it as well, lets the epilogue turn it into the
// tile's gradient and multiplies that with one side or both while it is still in the cache (2 or 3
// products).
//
// Shapes: n rows (x), N columns (y), D features; tile (rows, cols), contiguous.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

namespace clipfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tile's side where both sides of the matrix are longer; where one is shorter, the tile is longer
// along the other. Large enough for the products to run at full speed, and accumulated into the
// gradients few times; small enough (16 MiB in float) for most of a tile to stay in the last cache
// between product and epilogue.
constexpr int64_t kTileSide = 2048;

// Columns that an epilogue takes at a time: their vectors stay in the first two caches from row to
// row, and no sum in float is longer.
constexpr int64_t kSegment = 2048;

constexpr int64_t kMaxChunkRows = 16;
constexpr int64_t kGrainElements = 32768;  // of an O(N·D) loop, per task

template <typename T>
struct Tile {
    T* data;           // (rows, cols)
    int64_t row, col;  // position in the whole matrix
    int64_t rows, cols;
    // Rows that one task of parallel_rows takes. Sums over a column are made per chunk and then
    // added in order, so results do not depend on how many threads there are.
    int64_t chunk_rows;

    T* line(int64_t r) const { return data + r * cols; }
    int64_t chunks() const { return (rows + chunk_rows - 1) / chunk_rows; }
};

// body(chunk, begin, end) for every chunk of rows [begin, end) of a tile, in parallel.
template <typename T, typename Body>
void parallel_rows(const Tile<T>& tile, const Body& body) {
    torch::stable::parallel_for(0, tile.chunks(), 1, [&](int64_t first, int64_t last) {
        for (int64_t chunk = first; chunk < last; ++chunk) {
            const int64_t begin = chunk * tile.chunk_rows;
            body(chunk, begin, std::min(tile.rows, begin + tile.chunk_rows));
        }
    });
}

// body(i) for i < n, in parallel; each costs `width` elements' work.
template <typename Body>
void parallel_each(int64_t n, int64_t width, const Body& body) {
    torch::stable::parallel_for(0, n,
                                std::max<int64_t>(1, kGrainElements / std::max<int64_t>(width, 1)),
                                [&](int64_t begin, int64_t end) {
                                    for (int64_t i = begin; i < end; ++i) body(i);
                                });
}

template <typename T>
class Sweep {
public:
    // x (n, D) and y (N, D), contiguous, of type T.
    Sweep(const Tensor& x, const Tensor& y)
        : x_(x),
          y_(y),
          rows_(x.size(0)),
          cols_(y.size(0)),
          width_(x.size(1)),
          tile_rows_(side(rows_, cols_)),
          tile_cols_(side(cols_, rows_)),
          chunk_rows_(tile_rows_ < 1024 ? 4 : kMaxChunkRows),
          buffer_(torch::stable::new_empty(x, {tile_rows_ * tile_cols_})) {}

    int64_t tile_rows() const { return tile_rows_; }
    int64_t tile_cols() const { return tile_cols_; }
    int64_t max_chunks() const { return (tile_rows_ + chunk_rows_ - 1) / chunk_rows_; }

    // The tile whose first element is (row, col), computed. It overwrites the one before.
    Tile<T> compute(int64_t row, int64_t col) {
        const int64_t rows = std::min(tile_rows_, rows_ - row);
        const int64_t cols = std::min(tile_cols_, cols_ - col);
        const Tensor product = view(buffer_, 0, rows, cols, cols, 1);
        const Tensor y_transposed = view(y_, col * width_, width_, cols, 1, width_);
        STABLE_TORCH_ERROR_CODE_CHECK(
            aoti_torch_cpu_mm_out(product.get(), rows_of(x_, row, rows).get(), y_transposed.get()));
        return {buffer_.mutable_data_ptr<T>(), row, col, rows, cols, chunk_rows_};
    }

    // epilogue(tile) on every tile.
    template <typename Epilogue>
    void forward(const Epilogue& epilogue) {
        for (int64_t row = 0; row < rows_; row += tile_rows_) {
            for (int64_t col = 0; col < cols_; col += tile_cols_) epilogue(compute(row, col));
        }
    }

    // to_gradient(tile) turns a tile into a tile of H, in place; then d_x = H · y and, unless d_y is
    // null, d_y = Hᵀ · x, overwritten.
    template <typename ToGradient>
    void gradient(const Tensor& d_x, const Tensor* d_y, const ToGradient& to_gradient) {
        forward([&](const Tile<T>& tile) {
            to_gradient(tile);
            const Tensor h = view(buffer_, 0, tile.rows, tile.cols, tile.cols, 1);
            accumulate(rows_of(d_x, tile.row, tile.rows), h, rows_of(y_, tile.col, tile.cols),
                       tile.col > 0);
            if (d_y == nullptr) return;
            const Tensor h_transposed = view(buffer_, 0, tile.cols, tile.rows, 1, tile.cols);
            accumulate(rows_of(*d_y, tile.col, tile.cols), h_transposed,
                       rows_of(x_, tile.row, tile.rows), tile.row > 0);
        });
    }

private:
    // The tile's side along `length`: about equal parts, in whole vectors.
    static int64_t side(int64_t length, int64_t other) {
        const int64_t limit = kTileSide * kTileSide / std::min(kTileSide, other);
        const int64_t parts = (length + limit - 1) / limit;
        const int64_t part = (length + parts - 1) / parts;
        return std::min(length, (part + 15) / 16 * 16);
    }

    // out = a · b, or out += a · b. Through the C shim: the dispatcher's stable interface has no
    // way to pass the two Scalars of addmm.
    static void accumulate(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
        STABLE_TORCH_ERROR_CODE_CHECK(
            aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), add ? 1.0 : 0.0, 1.0));
    }

    Tensor rows_of(const Tensor& matrix, int64_t first, int64_t count) const {
        return view(matrix, first * width_, count, width_, width_, 1);
    }

    // A (rows, cols) view of a contiguous tensor's memory.
    static Tensor view(const Tensor& base, int64_t offset, int64_t rows, int64_t cols,
                       int64_t row_stride, int64_t col_stride) {
        const int64_t sizes[2] = {rows, cols};
        const int64_t strides[2] = {row_stride, col_stride};
        AtenTensorHandle handle = nullptr;
        STABLE_TORCH_ERROR_CODE_CHECK(
            aoti_torch__reinterpret_tensor(base.get(), 2, sizes, strides, offset, &handle));
        return Tensor(handle);
    }

    Tensor x_, y_;
    int64_t rows_, cols_, width_;
    int64_t tile_rows_, tile_cols_, chunk_rows_;
    Tensor buffer_;  // one tile
};

}  // namespace clipfast
