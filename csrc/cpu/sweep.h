// One walk over the n×N matrix image · textᵀ in tiles, with torch's own matrix product and an
// epilogue per tile.
//
// A tile is the only part of the matrix that exists at any time. The forward walk computes each
// tile once (1 product). The backward walk computes it again, lets the epilogue turn it into the
// tile's gradient and multiplies that with both sides while it is still in the cache (3 products).
//
// Shapes: n image rows, N text rows, D features; tile (rows, cols), contiguous.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

namespace clipfast {

using torch::stable::Tensor;

// Tile sides. Large enough for the products to run at full speed, and accumulated into d_text few
// times; small enough (16 MiB in float) for most of a tile to stay in the last cache between
// product and epilogue.
constexpr int64_t kTileRows = 2048;
constexpr int64_t kTileCols = 2048;

// Rows of a tile that one task of parallel_rows takes. Sums over a column are made per chunk and
// then added in order, so results do not depend on how many threads there are.
constexpr int64_t kChunkRows = 16;

template <typename T>
struct Tile {
    T* data;           // (rows, cols)
    int64_t row, col;  // position in the whole matrix
    int64_t rows, cols;

    T* line(int64_t r) const { return data + r * cols; }
    int64_t chunks() const { return (rows + kChunkRows - 1) / kChunkRows; }
};

// body(chunk, begin, end) for every chunk of rows [begin, end) of a tile, in parallel.
template <typename T, typename Body>
void parallel_rows(const Tile<T>& tile, const Body& body) {
    torch::stable::parallel_for(0, tile.chunks(), 1, [&](int64_t first, int64_t last) {
        for (int64_t chunk = first; chunk < last; ++chunk) {
            body(chunk, chunk * kChunkRows, std::min(tile.rows, (chunk + 1) * kChunkRows));
        }
    });
}

template <typename T>
class Sweep {
public:
    // image (n, D) and text (N, D), contiguous, of type T.
    Sweep(const Tensor& image, const Tensor& text)
        : image_(image),
          text_(text),
          n_image_(image.size(0)),
          n_text_(text.size(0)),
          width_(image.size(1)),
          buffer_(torch::stable::new_empty(
              image, {std::min(kTileRows, n_image_) * std::min(kTileCols, n_text_)})) {}

    int64_t max_tile_rows() const { return std::min(kTileRows, n_image_); }
    int64_t max_tile_cols() const { return std::min(kTileCols, n_text_); }

    // epilogue(tile) on every tile of image · textᵀ.
    template <typename Epilogue>
    void forward(const Epilogue& epilogue) {
        each_tile([&](const Tile<T>& tile) { epilogue(tile); });
    }

    // to_gradient(tile) turns a tile of image · textᵀ into a tile of H, in place; then
    // d_image = H · text and d_text = Hᵀ · image, both overwritten.
    template <typename ToGradient>
    void backward(const Tensor& d_image, const Tensor& d_text, const ToGradient& to_gradient) {
        each_tile([&](const Tile<T>& tile) {
            to_gradient(tile);
            const Tensor h = view(buffer_, 0, tile.rows, tile.cols, tile.cols, 1);
            const Tensor h_transposed = view(buffer_, 0, tile.cols, tile.rows, 1, tile.cols);
            accumulate(rows_of(d_image, tile.row, tile.rows), h,
                       rows_of(text_, tile.col, tile.cols), tile.col > 0);
            accumulate(rows_of(d_text, tile.col, tile.cols), h_transposed,
                       rows_of(image_, tile.row, tile.rows), tile.row > 0);
        });
    }

private:
    template <typename Body>
    void each_tile(const Body& body) {
        for (int64_t row = 0; row < n_image_; row += kTileRows) {
            const int64_t rows = std::min(kTileRows, n_image_ - row);
            for (int64_t col = 0; col < n_text_; col += kTileCols) {
                const int64_t cols = std::min(kTileCols, n_text_ - col);
                const Tensor product = view(buffer_, 0, rows, cols, cols, 1);
                const Tensor text_transposed = view(text_, col * width_, width_, cols, 1, width_);
                STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(
                    product.get(), rows_of(image_, row, rows).get(), text_transposed.get()));
                body(Tile<T>{buffer_.mutable_data_ptr<T>(), row, col, rows, cols});
            }
        }
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

    Tensor image_, text_;
    int64_t n_image_, n_text_, width_;
    Tensor buffer_;  // one tile
};

}  // namespace clipfast
