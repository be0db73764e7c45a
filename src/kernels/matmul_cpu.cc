// The CPU side of matmul.h, and the readable second opinion on the GPU kernels.
//
// Tiles are converted to float32 buffers, multiplied there (common/tile_product.h) and rounded once
// at the end. Each tile of a result belongs to one thread, which adds in table order, so the number
// of threads does not show.
#include <algorithm>
#include <vector>

#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/tile_product.h"
#include "src/kernels/matmul.h"

namespace blocksparse {
namespace {

constexpr int kBatchTile = 64;  // samples in a tile; with B = 128 the three buffers take 128 KiB
constexpr int kFlopsPerCycle = 16;  // a rough rate for the cost that ParallelFor asks for

// A row-major matrix of T in memory and the part of it that a tile covers.
template <typename T>
struct TileView {
  T* corner;
  int64_t row_stride;

  template <typename F>
  void ForEach(int rows, int cols, F f) const {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < cols; ++c) f(corner[r * row_stride + c], r, c);
  }
};

// The block `feature_block` of an activation for samples [n, ...): [samples, B] on axis 1, [B,
// samples] on axis 0.
template <typename T>
TileView<T> ActivationTile(T* data, int feature_axis, int64_t batch, int64_t num_blocks,
                           int block_size, int64_t feature_block, int64_t n) {
  const int64_t num_features = num_blocks * block_size;
  const int64_t feature = feature_block * block_size;
  if (feature_axis == 1) return {data + n * num_features + feature, num_features};
  return {data + feature * batch + n, batch};
}

// to[r][c] = the tile, or to[c][r] if is_transposed, in float32.
template <typename T>
void ReadTile(const TileView<const T>& tile, int rows, int cols, bool is_transposed, float* to) {
  if (is_transposed) {
    tile.ForEach(rows, cols,
                 [&](const T& value, int r, int c) { to[c * rows + r] = ToFloat(value); });
  } else {
    tile.ForEach(rows, cols,
                 [&](const T& value, int r, int c) { to[r * cols + c] = ToFloat(value); });
  }
}

template <typename T>
void MatmulTile(const MatmulArgs& args, int64_t column, int64_t n, std::vector<float>& x,
                std::vector<float>& w, std::vector<float>& y) {
  const Layout& layout = args.layout;
  const Direction& direction = args.is_dx ? layout.dx : layout.fprop;
  const int size = layout.block_size;
  const int samples = static_cast<int>(std::min<int64_t>(kBatchTile, args.batch - n));
  const bool is_axis_1 = args.feature_axis == 1;
  std::fill(y.begin(), y.end(), 0.f);

  const EntryRange range = ColumnEntries(direction, layout.num_blocks, column);
  for (int64_t e = range.begin; e < range.end; ++e) {
    const LutEntry entry = direction.entries[e];
    if (!IsValid(entry, direction.num_inputs, layout.num_blocks)) continue;
    const float gate = args.gate == nullptr ? 1.f : args.gate[entry.block];
    if (gate == 0.f) continue;
    const TileView<const T> block = {
        static_cast<const T*>(args.w) + int64_t{entry.block} * size * size, size};
    const auto input = ActivationTile(static_cast<const T*>(args.x), args.feature_axis, args.batch,
                                      direction.num_inputs, size, entry.index, n);
    if (is_axis_1) {  // y[samples, B] += x[samples, B] W
      ReadTile(input, samples, size, false, x.data());
      ReadTile(block, size, size, args.is_dx, w.data());
    } else {  // y[B, samples] += W^T x[B, samples]
      ReadTile(input, size, samples, false, x.data());
      ReadTile(block, size, size, !args.is_dx, w.data());
    }
    if (gate != 1.f) {
      for (float& value : w) value = ToFloat(FromFloat<T>(gate * value));
    }
    if (is_axis_1) {
      AddTileProduct(x.data(), w.data(), y.data(), samples, size, size);
    } else {
      AddTileProduct(w.data(), x.data(), y.data(), size, size, samples);
    }
  }

  const auto output = ActivationTile(static_cast<T*>(args.y), args.feature_axis, args.batch,
                                     direction.num_outputs, size, column, n);
  const int rows = is_axis_1 ? samples : size;
  const int cols = is_axis_1 ? size : samples;
  output.ForEach(rows, cols,
                 [&](T& value, int r, int c) { value = FromFloat<T>(y[r * cols + c]); });
}

template <typename T>
void MatmulDwBlock(const MatmulDwArgs& args, int64_t block, std::vector<float>& x,
                   std::vector<float>& dy, std::vector<float>& dw) {
  const Layout& layout = args.layout;
  const int size = layout.block_size;
  const bool is_axis_1 = args.feature_axis == 1;
  std::fill(dw.begin(), dw.end(), 0.f);

  const LutEntry at = layout.blocks[block];
  const bool is_valid =
      IsValid({at.index, 0}, layout.in_blocks, 1) && IsValid({at.block, 0}, layout.out_blocks, 1);
  const bool is_wanted = is_valid && (args.gate == nullptr || args.gate[block] != 0.f);
  for (int p = 0; is_wanted && p < args.num_pairs; ++p) {
    const MatmulPair& pair = args.pairs[p];
    for (int64_t n = 0; n < pair.batch; n += kBatchTile) {
      const int samples = static_cast<int>(std::min<int64_t>(kBatchTile, pair.batch - n));
      const auto read = [&](const void* data, int64_t num_blocks, int64_t index, bool is_transposed,
                            float* to) {
        const auto tile = ActivationTile(static_cast<const T*>(data), args.feature_axis, pair.batch,
                                         num_blocks, size, index, n);
        ReadTile(tile, is_axis_1 ? samples : size, is_axis_1 ? size : samples, is_transposed, to);
      };
      // Both axes come to x[B, samples] and dy[samples, B].
      read(pair.x, layout.in_blocks, at.index, is_axis_1, x.data());
      read(pair.dy, layout.out_blocks, at.block, !is_axis_1, dy.data());
      AddTileProduct(x.data(), dy.data(), dw.data(), size, samples, size);
    }
  }

  const int64_t offset = block * size * size;
  const auto store = [&](auto* to) {
    using Out = std::remove_pointer_t<decltype(to)>;
    std::transform(dw.begin(), dw.end(), to + offset, FromFloat<Out>);
  };
  if (args.dw_dtype == DType::kFloat32) {
    store(static_cast<float*>(args.dw));
  } else {
    store(static_cast<T*>(args.dw));
  }
}

}  // namespace

bool IsMatmulSupported(DType dtype, int block_size, int feature_axis) {
  const bool is_dtype =
      dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16;
  return is_dtype && (feature_axis == 0 || feature_axis == 1) &&
         WithBlockSize(block_size, [](auto) { return Status(); }).ok();
}

Status MatmulCpu(const MatmulArgs& args, const ParallelFor& parallel_for) {
  const Direction& direction = args.is_dx ? args.layout.dx : args.layout.fprop;
  const int64_t size = args.layout.block_size;
  const int64_t batch_tiles = (args.batch + kBatchTile - 1) / kBatchTile;
  const int64_t blocks_per_column = 1 + args.layout.num_blocks / direction.num_outputs;
  const int64_t cost =
      blocks_per_column * size * size * std::min<int64_t>(args.batch, kBatchTile) / kFlopsPerCycle;
  WithCpuType(args.dtype, [&](auto t) {
    parallel_for(batch_tiles * direction.num_outputs, cost, [&](int64_t begin, int64_t end) {
      std::vector<float> x(size * kBatchTile), w(size * size), y(size * kBatchTile);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t column = i % direction.num_outputs;
        MatmulTile<decltype(t)>(args, column, i / direction.num_outputs * kBatchTile, x, w, y);
      }
    });
  });
  return Status();
}

Status MatmulDwCpu(const MatmulDwArgs& args, const ParallelFor& parallel_for) {
  const int64_t size = args.layout.block_size;
  int64_t batch = 0;
  for (int p = 0; p < args.num_pairs; ++p) batch += args.pairs[p].batch;
  const int64_t cost = (1 + batch) * size * size / kFlopsPerCycle;
  WithCpuType(args.dtype, [&](auto t) {
    parallel_for(args.layout.num_blocks, cost, [&](int64_t begin, int64_t end) {
      std::vector<float> x(size * kBatchTile), dy(size * kBatchTile), dw(size * size);
      for (int64_t block = begin; block < end; ++block)
        MatmulDwBlock<decltype(t)>(args, block, x, dy, dw);
    });
  });
  return Status();
}

Status MatmulGateGradCpu(const MatmulGateGradArgs& args, const ParallelFor& parallel_for) {
  const int64_t size = int64_t{args.block_size} * args.block_size;
  WithCpuType(args.dw_dtype, [&](auto dw_zero) {
    WithCpuType(args.dtype, [&](auto w_zero) {
      using Dw = decltype(dw_zero);
      using W = decltype(w_zero);
      parallel_for(args.num_blocks, size, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
          const Dw* dw = static_cast<const Dw*>(args.dw) + block * size;
          const W* w = static_cast<const W*>(args.w) + block * size;
          Dw* dw_out = static_cast<Dw*>(args.dw_out) + block * size;
          float sum = 0.f;
          for (int64_t i = 0; i < size; ++i) {
            const float value = ToFloat(dw[i]);
            sum += value * ToFloat(w[i]);
            dw_out[i] = FromFloat<Dw>(args.gate[block] * value);
          }
          args.dg[block] = sum;
        }
      });
    });
  });
  return Status();
}

}  // namespace blocksparse
