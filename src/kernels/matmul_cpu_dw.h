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
      : job_(job), row_(row), strips_of_block_(job.block_size / kWords) {
    tile_.num_steps = 1;
    tile_.w_depth_stride = kWords;
    tile_.to_stride = job.sums == nullptr ? kRowWords : job.block_size;
    tile_.rounded_stride = job.block_size;
  }

  void Add(LutEntry entry) {
    if (job_.gate != nullptr && job_.gate[entry.block] == 0.f) return Clear(entry.block);
    const float* strip =
        job_.dy + int64_t{entry.index} * job_.block_size / kRowWords * job_.dy_strip_words;
    int64_t corner = CornerOf(entry.block);
    for (int column = 0; column < job_.block_size; column += kRowWords) {
      tile_.strips[num_parts_] = strip;
      // Where the sums are in float32 anyway they are added in place.
      tile_.to[num_parts_] = job_.sums == nullptr ? buffer_[num_parts_] : job_.sums + corner;
      tile_.rounded[num_parts_] = RoundedAt(corner);
      if (++num_parts_ == kMostParts) Flush();
      strip += job_.dy_strip_words;
      corner += kRowWords;
    }
  }

  void Flush() {
    if (num_parts_ == 0) return;
    for (int i = 1; i < kMostParts; ++i) {
      if (i < num_parts_) continue;
      tile_.strips[i] = tile_.strips[0];
      tile_.to[i] = buffer_[i];
      tile_.rounded[i] = buffer_[i];
    }
    if (job_.has_pairs) {
      Sum<PairMath>();
    } else {
      Sum<FloatMath>();
    }
    num_parts_ = 0;
  }

 private:
  // Words of a strip's column that are summed at a time: with them the lanes' strips stay in the
  // first-level cache while all strips of x pass.
  static constexpr int64_t kDepth = 128;
  static constexpr int kMostParts = kOuterLanes / kRowWords;

  int64_t CornerOf(int64_t block) const { return block * job_.block_size * job_.block_size; }

  void* RoundedAt(int64_t corner) const {
    return static_cast<char*>(job_.dw) + corner * SizeOf(job_.dw_dtype);
  }

  template <class Math>
  void Sum() {
    tile_.is_added = !job_.is_first;
    int64_t done = 0;
    do {
      const bool is_last = job_.is_last && done + kDepth >= job_.depth;
      tile_.is_streamed = kCanStream && job_.is_streamed && is_last && num_parts_ == kMostParts &&
                          (job_.dw_dtype != DType::kFloat32 || !tile_.is_added) &&
                          reinterpret_cast<uintptr_t>(job_.dw) % kLineBytes == 0;
      if (!is_last || job_.dw_dtype == DType::kFloat32) {
        SumRun<Math, float>(done);
      } else if (job_.dw_dtype == DType::kFloat16) {
        SumRun<Math, Half>(done);
      } else {
        SumRun<Math, BFloat16>(done);
      }
      tile_.is_added = true;
      done += kDepth;
    } while (done < job_.depth);
  }

  // Words [done, done + kDepth) of all strips of x.
  template <class Math, typename To>
  void SumRun(int64_t done) {
    const float* x = job_.x + row_ * strips_of_block_ * job_.x_strip_words + done * kWords;
    ProductStep step = {x, done * kRowWords};
    tile_.steps = &step;
    tile_.depth = Min(kDepth, job_.depth - done);
    for (int strip = 0; strip < strips_of_block_; ++strip) {
      tile_.first_row = strip * kWords;
      RunOuterRows<Math, To, kRowWords, 1, false>(tile_, num_parts_ * kRowWords);
      step.w += job_.x_strip_words;
    }
  }

  // What is closed gets zeros.
  void Clear(int64_t block) {
    if (!job_.is_last) return;
    const int64_t words = int64_t{job_.block_size} * job_.block_size;
    std::memset(RoundedAt(CornerOf(block)), 0, words * SizeOf(job_.dw_dtype));
  }

  const DwJob& job_;
  const int64_t row_;
  const int strips_of_block_;  // of x
  OuterTile tile_ = {};
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
  if (kCanStream && job.is_streamed) FenceStreams();
}

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_CPU_DW_H_
