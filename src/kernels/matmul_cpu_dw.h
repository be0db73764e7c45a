// The jobs of dw, included like common/simd_words.h after the vectors of a level.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_CPU_DW_H_
#define BLOCKSPARSE_KERNELS_MATMUL_CPU_DW_H_

#include "src/kernels/matmul_cpu_kernels.h"

namespace blocksparse {
namespace {

// Entries of one row of blocks, together as many as fill the lanes.
// kRowWords: of the strips of dy.
template <int kRowWords>
class DwRow {
 public:
  DwRow(const DwJob& job, int64_t row)
      : job_(job), row_(row), strips_of_block_(job.block_size / kWords) {}

  void Add(LutEntry entry) {
    if (job_.gate != nullptr && job_.gate[entry.block] == 0.f) return Clear(entry.block);
    for (int column = 0; column < job_.block_size; column += kRowWords) {
      parts_[num_parts_++] = {entry, column};
      if (num_parts_ == kMostParts) Flush();
    }
  }

  void Flush() {
    if (num_parts_ == 0) return;
    // Where the sums are in float32 anyway they are added in place.
    const bool is_buffered = job_.sums == nullptr;
    OuterTile tile = {};
    tile.is_added = !job_.is_first;
    tile.to_stride = is_buffered ? kRowWords : job_.block_size;
    for (int i = 0; i < kMostParts; ++i) {
      const Part& part = parts_[i < num_parts_ ? i : 0];
      const int64_t column = int64_t{part.entry.index} * job_.block_size + part.column;
      tile.strips[i] = job_.dy + column / kRowWords * job_.dy_strip_words;
      tile.to[i] = is_buffered || i >= num_parts_ ? buffer_[i] : job_.sums + CornerOf(part);
    }
    if (job_.has_pairs) {
      Sum<PairMath>(tile);
    } else {
      Sum<FloatMath>(tile);
    }
    for (int i = 0; i < num_parts_; ++i) {
      const float* sums = is_buffered ? buffer_[i] : job_.sums + CornerOf(parts_[i]);
      if (job_.is_last && job_.sums != job_.dw) Round(sums, tile.to_stride, CornerOf(parts_[i]));
    }
    num_parts_ = 0;
  }

 private:
  // Words of a strip's column that are summed at a time: with them the lanes' strips stay in the
  // first-level cache while all strips of x pass.
  static constexpr int64_t kDepth = 128;
  static constexpr int kMostParts = kOuterLanes / kRowWords;

  struct Part {  // columns [column, column + kRowWords) of a block
    LutEntry entry;
    int column;
  };

  int64_t CornerOf(const Part& part) const { return Offset(part.entry.block) + part.column; }
  int64_t Offset(int64_t block) const { return block * job_.block_size * job_.block_size; }

  template <class Math>
  void Sum(const OuterTile& parts) {
    ProductStep step;
    int64_t done = 0;
    do {
      step.x = done * kRowWords;
      for (int strip = 0; strip < strips_of_block_; ++strip) {
        step.w = job_.x + (row_ * strips_of_block_ + strip) * job_.x_strip_words + done * kWords;
        OuterTile tile = parts;
        tile.steps = &step;
        tile.num_steps = 1;
        tile.depth = Min(kDepth, job_.depth - done);
        tile.w_depth_stride = kWords;
        tile.is_added = parts.is_added || done > 0;
        for (float*& to : tile.to) to += strip * kWords * tile.to_stride;
        RunOuterRows<Math, kRowWords, 1, false>(tile, num_parts_ * kRowWords);
      }
      done += kDepth;
    } while (done < job_.depth);
  }

  // A part's sums to dw.
  void Round(const float* sums, int64_t stride, int64_t corner) {
    switch (job_.dw_dtype) {
      case DType::kFloat32:
        return RoundTo(static_cast<float*>(job_.dw) + corner, sums, stride);
      case DType::kFloat16:
        return RoundTo(static_cast<Half*>(job_.dw) + corner, sums, stride);
      case DType::kBFloat16:
        return RoundTo(static_cast<BFloat16*>(job_.dw) + corner, sums, stride);
    }
  }
  template <typename T>
  void RoundTo(T* to, const float* sums, int64_t stride) {
    for (int i = 0; i < job_.block_size; ++i, to += job_.block_size, sums += stride)
      BLOCKSPARSE_UNROLL for (int j = 0; j < kRowWords; j += kWords)
          Store8(to + j, LoadWords(sums + j));
  }

  // What is closed gets zeros.
  void Clear(int64_t block) {
    if (!job_.is_last) return;
    for (float& value : buffer_[0]) value = 0.f;
    for (int column = 0; column < job_.block_size; column += kRowWords)
      Round(buffer_[0], kRowWords, Offset(block) + column);
  }

  const DwJob& job_;
  const int64_t row_;
  const int strips_of_block_;  // of x
  Part parts_[kMostParts];
  int num_parts_ = 0;
  float buffer_[kMostParts][kMaxBlockSize * kRowWords];
};

template <int kRowWords>
void SumRows(const DwJob& job, int64_t begin, int64_t end) {
  // The last row that starts at or before `begin`.
  int64_t low = 0;
  int64_t high = job.dx.num_outputs;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (job.starts[middle] <= begin ? low : high) = middle;
  }
  for (int64_t row = low; row < job.dx.num_outputs && job.starts[row] < end; ++row) {
    const EntryRange range = ColumnEntries(job.dx, job.num_blocks, row);
    const int64_t first = begin > job.starts[row] ? begin - job.starts[row] : 0;
    DwRow<kRowWords> tasks(job, row);
    for (int64_t i = first; job.starts[row] + i < end && range.begin + i < range.end; ++i) {
      const LutEntry entry = job.dx.entries[range.begin + i];
      if (IsValid(entry, job.dx.num_inputs, job.num_blocks)) tasks.Add(entry);
    }
    tasks.Flush();
  }
}

void RunDw(const DwJob& job, int64_t begin, int64_t end) {
  return job.block_size < kLanes ? SumRows<kWords>(job, begin, end)
                                 : SumRows<kLanes>(job, begin, end);
}

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_CPU_DW_H_
