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
    OuterTile tile = {};
    for (int i = 0; i < kMostParts; ++i) {
      const Part& part = parts_[i < num_parts_ ? i : 0];
      const int64_t column = int64_t{part.entry.index} * job_.block_size + part.column;
      tile.strips[i] = job_.dy + column / kRowWords * job_.dy_strip_words;
    }
    // Float32 results that fill the lanes go where they belong.
    const bool is_direct = job_.is_first && num_parts_ == kMostParts && IsOneBlock() &&
                           (!job_.is_last || job_.dw_dtype == DType::kFloat32);
    float* to = is_direct ? job_.sums + Offset(parts_[0].entry.block) + parts_[0].column : buffer_;
    tile.to_stride = is_direct ? job_.block_size : kOuterLanes;
    if (job_.has_pairs) {
      Sum<PairMath>(tile, to);
    } else {
      Sum<FloatMath>(tile, to);
    }
    for (int i = 0; !is_direct && i < num_parts_; ++i) Store(buffer_ + i * kRowWords, parts_[i]);
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

  // Whether the parts are neighbouring columns of one block.
  bool IsOneBlock() const { return job_.block_size % kOuterLanes == 0; }

  template <class Math>
  void Sum(OuterTile tile, float* to) {
    ProductStep step;
    tile.steps = &step;
    tile.num_steps = 1;
    tile.w_depth_stride = kWords;
    int64_t done = 0;
    do {
      step.x = done * kRowWords;
      tile.depth = Min(kDepth, job_.depth - done);
      tile.is_added = done > 0;
      for (int strip = 0; strip < strips_of_block_; ++strip) {
        step.w = job_.x + (row_ * strips_of_block_ + strip) * job_.x_strip_words + done * kWords;
        tile.to = to + strip * kWords * tile.to_stride;
        RunOuterRows<Math, kRowWords, 1>(tile, num_parts_ * kRowWords);
      }
      done += kDepth;
    } while (done < job_.depth);
  }

  int64_t Offset(int64_t block) const { return block * job_.block_size * job_.block_size; }

  // Adds the sums to what earlier chunks left, and rounds after the last.
  void Store(const float* from, const Part& part) {
    const int64_t corner = Offset(part.entry.block) + part.column;
    for (int64_t i = 0; i < job_.block_size; ++i, from += kOuterLanes) {
      for (int j = 0; j < kRowWords; j += kWords) {
        const int64_t at = corner + i * job_.block_size + j;
        Words sum = LoadWords(from + j);
        if (!job_.is_first) sum = AddWords(sum, LoadWords(job_.sums + at));
        if (job_.is_last) {
          StoreDw(sum, at);
        } else {
          StoreWords(job_.sums + at, sum);
        }
      }
    }
  }

  void StoreDw(Words sum, int64_t at) {
    switch (job_.dw_dtype) {
      case DType::kFloat32:
        return Store8(static_cast<float*>(job_.dw) + at, sum);
      case DType::kFloat16:
        return Store8(static_cast<Half*>(job_.dw) + at, sum);
      case DType::kBFloat16:
        return Store8(static_cast<BFloat16*>(job_.dw) + at, sum);
    }
  }

  void Clear(int64_t block) {
    const int64_t size = int64_t{job_.block_size} * job_.block_size;
    for (int64_t i = 0; job_.is_last && i < size; i += kWords)
      StoreDw(ZeroWords(), Offset(block) + i);
  }

  const DwJob& job_;
  const int64_t row_;
  const int strips_of_block_;  // of x
  Part parts_[kMostParts];
  int num_parts_ = 0;
  float buffer_[kMaxBlockSize * kOuterLanes];
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
