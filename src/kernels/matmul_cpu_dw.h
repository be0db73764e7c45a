// The jobs of dw, included like common/simd_words.h after the vectors of a level.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_CPU_DW_H_
#define BLOCKSPARSE_KERNELS_MATMUL_CPU_DW_H_

#include <cstring>

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
    tile.rounded_stride = job_.block_size;
    for (int i = 0; i < kMostParts; ++i) {
      const Part& part = parts_[i < num_parts_ ? i : 0];
      const int64_t column = int64_t{part.entry.index} * job_.block_size + part.column;
      tile.strips[i] = job_.dy + column / kRowWords * job_.dy_strip_words;
      tile.to[i] = is_buffered || i >= num_parts_ ? buffer_[i] : job_.sums + CornerOf(part);
      tile.rounded[i] = i < num_parts_ ? RoundedCorner(CornerOf(part)) : buffer_[i];
    }
    if (job_.has_pairs) {
      Sum<PairMath>(tile);
    } else {
      Sum<FloatMath>(tile);
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

  void* RoundedCorner(int64_t corner) const {
    return static_cast<char*>(job_.dw) + corner * SizeOf(job_.dw_dtype);
  }

  template <class Math>
  void Sum(OuterTile tile) {
    int64_t done = 0;
    do {
      const bool is_last = job_.is_last && done + kDepth >= job_.depth;
      tile.is_streamed = job_.is_streamed && is_last && num_parts_ == kMostParts &&
                         (job_.dw_dtype != DType::kFloat32 || !tile.is_added) &&
                         reinterpret_cast<uintptr_t>(job_.dw) % kLineBytes == 0;
      if (!is_last || job_.dw_dtype == DType::kFloat32) {
        SumRun<Math, float>(tile, done);
      } else if (job_.dw_dtype == DType::kFloat16) {
        SumRun<Math, Half>(tile, done);
      } else {
        SumRun<Math, BFloat16>(tile, done);
      }
      tile.is_added = true;
      done += kDepth;
    } while (done < job_.depth);
  }

  // Words [done, done + kDepth) of all strips of x.
  template <class Math, typename To>
  void SumRun(OuterTile tile, int64_t done) {
    const float* x = job_.x + row_ * strips_of_block_ * job_.x_strip_words + done * kWords;
    ProductStep step = {x, done * kRowWords};
    tile.steps = &step;
    tile.num_steps = 1;
    tile.depth = Min(kDepth, job_.depth - done);
    tile.w_depth_stride = kWords;
    for (int strip = 0; strip < strips_of_block_; ++strip) {
      RunOuterRows<Math, To, kRowWords, 1, false>(tile, num_parts_ * kRowWords);
      step.w += job_.x_strip_words;
      for (float*& to : tile.to) to += kWords * tile.to_stride;
      for (void*& to : tile.rounded) to = static_cast<To*>(to) + kWords * tile.rounded_stride;
    }
  }

  // What is closed gets zeros.
  void Clear(int64_t block) {
    if (!job_.is_last) return;
    const int64_t words = int64_t{job_.block_size} * job_.block_size;
    std::memset(RoundedCorner(Offset(block)), 0, words * SizeOf(job_.dw_dtype));
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
  if (job.block_size < kLanes) {
    SumRows<kWords>(job, begin, end);
  } else {
    SumRows<kLanes>(job, begin, end);
  }
  if (job.is_streamed) FenceStreams();
}

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_CPU_DW_H_
