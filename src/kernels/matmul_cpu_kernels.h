// The jobs of matmul_cpu.h, included like common/simd_words.h after the vectors of a level.
//
// Two inner loops do all the work. In both a tile of the result stays in registers over the whole
// sum, one operand is read as vectors and the other one broadcast, word by word:
//
//   RowsKernel   kRows rows of a strip (samples) x vectors of W: features in lanes
//   OuterKernel  kRows columns of a strip (outputs) x vectors of eight words from other strips:
//                samples in lanes, and dw
#ifndef BLOCKSPARSE_KERNELS_MATMUL_CPU_KERNELS_H_
#define BLOCKSPARSE_KERNELS_MATMUL_CPU_KERNELS_H_

#include "src/kernels/matmul_cpu_pack.h"

namespace blocksparse {
namespace {

#ifdef BLOCKSPARSE_PAIRS
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
using PairMath = FloatMath;
#endif

constexpr int kStripsOfVec = kLanes / kWords;
constexpr int kMostVecs = 2;
constexpr int kMostRows = 14;

constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows of the tile in registers, beside its vectors of W and a broadcast word.
constexpr int RowsFor(int vecs) {
  const int rows = (kRegisters - vecs - 1) / vecs / 2 * 2;
  return rows < kMostRows ? rows : kMostRows;
}
// OuterKernel's tile.
constexpr int kOuterRows = kRegisters >= 32 ? 8 : 4;
constexpr int kOuterVecs = kRegisters >= 16 ? 2 : 1;
constexpr int kOuterLanes = kOuterVecs * kLanes;
constexpr int kOuterStrips = kOuterVecs * kStripsOfVec;

// to[r][..] = sum over steps s, strips i and words d of x[s.x + i x_stride + 8 r + d] times
// row 8 i + d of s.w.
struct RowsTile {
  const ProductStep* steps;
  int64_t num_steps;
  const float* x;
  int64_t x_stride;
  int num_strips;    // of a block
  int64_t w_offset;  // of the vectors in a row of W
  int64_t w_stride;
  float* to;
  int64_t to_stride;
};

template <class Math, int kRows, int kVecs>
void RowsKernel(const RowsTile& tile) {
  Vec sums[kRows][kVecs];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) sums[r][v] = ZeroVec();
  for (int64_t s = 0; s < tile.num_steps; ++s) {
    const float* w = tile.steps[s].w + tile.w_offset;
    const float* x = tile.x + tile.steps[s].x;
    for (int i = 0; i < tile.num_strips; ++i, x += tile.x_stride) {
#pragma GCC unroll 8
      for (int d = 0; d < kWords; ++d, w += tile.w_stride) {
        Vec w_row[kVecs];
        for (int v = 0; v < kVecs; ++v) w_row[v] = LoadVec(w + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const Vec value = Broadcast(x + r * kWords + d);
          for (int v = 0; v < kVecs; ++v) sums[r][v] = Math::MulAdd(value, w_row[v], sums[r][v]);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) StoreVec(tile.to + r * tile.to_stride + v * kLanes, sums[r][v]);
}

// Runs RowsKernel with the right number of rows.
template <class Math, int kVecs, int kRows = RowsFor(kVecs)>
void RunRows(int rows, const RowsTile& tile) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return RunRows<Math, kVecs, kRows - 1>(rows, tile);
  }
  RowsKernel<Math, kRows, kVecs>(tile);
}

// to[r][lane] = sum over steps s and words d < depth of s.w[w_offset + 8 d + r] times
//   samples in lanes  word `lane` of row s.x / kOuterLanes + d of the panel
//   dw                word s.x + 8 d + lane % 8 of strip lane / 8
// and, if is_added, what was there.
struct OuterTile {
  const ProductStep* steps;
  int64_t num_steps;
  int64_t depth;
  int64_t w_offset;
  const float* panel;
  const float* strips[kOuterStrips];
  bool is_added;
  float* to;  // rows of kOuterLanes
};

template <class Math, bool kIsPanel, int kVecs>
void OuterKernel(const OuterTile& tile) {
  constexpr int kRowWords = kIsPanel ? kOuterLanes : kWords;
  Vec sums[kOuterRows][kVecs];
  for (int r = 0; r < kOuterRows; ++r) {
    for (int v = 0; v < kVecs; ++v)
      sums[r][v] = tile.is_added ? LoadVec(tile.to + r * kOuterLanes + v * kLanes) : ZeroVec();
  }
  for (int64_t s = 0; s < tile.num_steps; ++s) {
    const float* w = tile.steps[s].w + tile.w_offset;
    int64_t x = tile.steps[s].x;
    const int64_t end = x + tile.depth * kRowWords;
#pragma GCC unroll 4
    for (; x < end; x += kRowWords, w += kWords) {
      Vec columns[kVecs];
      for (int v = 0; v < kVecs; ++v) {
        columns[v] = kIsPanel ? LoadVec(tile.panel + x + v * kLanes)
                              : GatherVec(tile.strips + v * kStripsOfVec, x);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kOuterRows; ++r) {
        const Vec value = Broadcast(w + r);
        for (int v = 0; v < kVecs; ++v) sums[r][v] = Math::MulAdd(value, columns[v], sums[r][v]);
      }
    }
  }
  for (int r = 0; r < kOuterRows; ++r)
    for (int v = 0; v < kVecs; ++v) StoreVec(tile.to + r * kOuterLanes + v * kLanes, sums[r][v]);
}

// Rows [0, 8) of `to`, of which `num_strips` times eight lanes count.
template <class Math, bool kIsPanel>
void RunOuter(OuterTile tile, int num_strips) {
  for (int r = 0; r < kWords; r += kOuterRows) {
    if (num_strips > kStripsOfVec) {
      OuterKernel<Math, kIsPanel, kOuterVecs>(tile);
    } else {
      OuterKernel<Math, kIsPanel, 1>(tile);
    }
    tile.w_offset += kOuterRows;
    tile.to += kOuterRows * kOuterLanes;
  }
}

template <typename T>
inline void StoreSome(T* to, Words values, int64_t count) {
  if (count >= kWords) return Store8(to, values);
  T copy[kWords];
  Store8(copy, values);
  for (int64_t i = 0; i < count; ++i) to[i] = copy[i];
}

// ---- y = x W ------------------------------------------------------------------------------------

// A slice of the result whose weights are at hand.
struct Slice {
  int64_t first_output;
  const ProductStep* steps;
  int64_t num_steps;
  int64_t w_stride;       // features in lanes: from one row of W to the next
  int64_t w_strip_words;  // samples in lanes: from eight outputs to the next eight
};

constexpr int kMostSlices = 64;  // whose weights are kept at a time

template <typename T>
class Product {
 public:
  Product(const ProductJob& job, const ProductScratch& scratch)
      : job_(job),
        scratch_(scratch),
        width_(job.block_size < kSliceWidth ? job.block_size : kSliceWidth),
        depth_(job.has_pairs ? job.block_size / 2 : job.block_size) {}

  void Run(const ProductRange& range) {
    const int64_t samples = range.last_sample - range.first_sample;
    for (int64_t index = range.begin; index < range.end;) {
      num_slices_ = 0;
      num_words_ = 0;
      num_steps_ = 0;
      do {
        AddSlice(index++, samples);
      } while (index < range.end && HasRoomFor(index));
      if (job_.has_pairs) {
        Multiply<PairMath>(range);
      } else {
        Multiply<FloatMath>(range);
      }
    }
  }

 private:
  EntryRange EntriesOf(int64_t index) const {
    return ColumnEntries(job_.direction, job_.num_blocks, index / (job_.block_size / width_));
  }

  bool HasRoomFor(int64_t index) const {
    const EntryRange range = EntriesOf(index);
    return num_slices_ < kMostSlices &&
           num_words_ + SliceWords(job_, range.end - range.begin) <= scratch_.num_words &&
           num_steps_ + range.end - range.begin <= scratch_.num_steps;
  }

  float GateOf(int64_t block) const { return job_.gate == nullptr ? 1.f : job_.gate[block]; }

  void AddSlice(int64_t index, int64_t samples) {
    const int64_t slices_of_block = job_.block_size / width_;
    const int64_t first_output = index % slices_of_block * width_;
    const EntryRange range = EntriesOf(index);
    ProductStep* steps = scratch_.steps + num_steps_;
    int64_t count = 0;
    bool is_scaled = false;
    for (int64_t e = range.begin; e < range.end; ++e) {
      const LutEntry entry = job_.direction.entries[e];
      if (!IsValid(entry, job_.direction.num_inputs, job_.num_blocks)) continue;
      const float gate = GateOf(entry.block);
      if (gate == 0.f) continue;
      is_scaled = is_scaled || gate != 1.f;
      // Until the weights are found, the step holds the block's number in place of x.
      steps[count++] = {nullptr, e};
    }
    Slice& slice = slices_[num_slices_++];
    slice = {index / slices_of_block * job_.block_size + first_output, steps, count, width_,
             count * depth_ * kWords};
    const bool is_in_place = CanUseInPlace(samples) && !is_scaled;
    if (is_in_place) slice.w_stride = job_.block_size;
    for (int64_t s = 0; s < count; ++s) {
      const LutEntry entry = job_.direction.entries[steps[s].x];
      const T* block =
          static_cast<const T*>(job_.w) + int64_t{entry.block} * job_.block_size * job_.block_size;
      steps[s].x = job_.has_sample_lanes ? entry.index * depth_ * kOuterLanes
                                         : entry.index * (depth_ / kWords) * job_.x_stride;
      if (is_in_place) {
        steps[s].w = reinterpret_cast<const float*>(block) + first_output;
      } else {
        steps[s].w =
            scratch_.w + num_words_ + s * depth_ * (job_.has_sample_lanes ? kWords : width_);
        PackWeights(block, first_output, GateOf(entry.block), count,
                    const_cast<float*>(steps[s].w));
      }
    }
    if (!is_in_place) num_words_ += SliceWords(job_, count);
    num_steps_ += count;
  }

  // Whether float32 blocks already lie as the inner loop reads them, and near enough together for
  // as many samples.
  bool CanUseInPlace(int64_t samples) const {
    constexpr int64_t kFewSamples = 64;
    if (job_.dtype != DType::kFloat32 || job_.is_dx) return false;
    if (job_.has_sample_lanes) return job_.block_size == kWords;
    return job_.block_size == width_ || samples <= kFewSamples;
  }

  // The outputs [first_output, first_output + width_) of a block.
  void PackWeights(const T* block, int64_t first_output, float gate, int64_t num_blocks,
                   float* to) const {
    const int64_t size = job_.block_size;
    PackJob pack = {};
    pack.dtype = job_.dtype;
    pack.kind = !job_.has_pairs ? WordKind::kValue
                : job_.is_dx    ? WordKind::kColumnPair
                                : WordKind::kRowPair;
    pack.is_transposed = job_.is_dx;
    pack.from = job_.is_dx ? block + first_output * size : block + first_output;
    pack.row_stride = size;
    pack.rows = job_.is_dx ? width_ : size;
    pack.columns = job_.is_dx ? size : width_;
    pack.to = to;
    pack.row_words = job_.has_sample_lanes ? kWords : width_;
    pack.strip_words = job_.has_sample_lanes ? num_blocks * depth_ * kWords : kWords;
    T scaled[kMaxBlockSize * kSliceWidth];
    if (gate != 1.f) {
      for (int64_t i = 0; i < pack.rows; ++i) {
        for (int64_t j = 0; j < pack.columns; ++j)
          scaled[i * pack.columns + j] =
              FromFloat<T>(gate * ToFloat(static_cast<const T*>(pack.from)[i * size + j]));
      }
      pack.from = scaled;
      pack.row_stride = pack.columns;
    }
    Pack(pack);
  }

  template <class Math>
  void Multiply(const ProductRange& range) {
    if (job_.has_sample_lanes) {
      for (int64_t n = range.first_sample; n < range.last_sample; n += kOuterLanes)
        for (int i = 0; i < num_slices_; ++i) MultiplyPanel<Math>(slices_[i], n, range.last_sample);
      return;
    }
    if (width_ <= kLanes) {
      MultiplyRows<Math, 1>(range);
    } else {
      MultiplyRows<Math, 2>(range);
    }
  }

  // Features in lanes: groups of samples of nearly equal size, which take all slices in turn.
  template <class Math, int kVecs>
  void MultiplyRows(const ProductRange& range) {
    constexpr int kGroup = RowsFor(kVecs);
    const int64_t samples = range.last_sample - range.first_sample;
    const int64_t num_groups = (samples + kGroup - 1) / kGroup;
    int64_t n = range.first_sample;
    for (int64_t group = 0; group < num_groups; ++group) {
      const int rows =
          static_cast<int>(samples / num_groups + (group < samples % num_groups ? 1 : 0));
      for (int i = 0; i < num_slices_; ++i) MultiplyGroup<Math, kVecs>(slices_[i], n, rows);
      n += rows;
    }
  }

  template <class Math, int kVecs>
  void MultiplyGroup(const Slice& slice, int64_t n, int rows) {
    T* y = static_cast<T*>(job_.y) + n * job_.y_stride + slice.first_output;
    float buffer[kMostRows * kSliceWidth];
    RowsTile tile = {slice.steps,    slice.num_steps, job_.x + n * kWords,
                     job_.x_stride,  depth_ / kWords, 0,
                     slice.w_stride, buffer,          kSliceWidth};
    if constexpr (sizeof(T) == sizeof(float)) {
      tile.to = y;
      tile.to_stride = job_.y_stride;
    }
    for (; tile.w_offset < width_; tile.w_offset += kVecs * kLanes, tile.to += kVecs * kLanes)
      RunRows<Math, kVecs>(rows, tile);
    if constexpr (sizeof(T) != sizeof(float)) {
      for (int r = 0; r < rows; ++r)
        for (int j = 0; j < width_; j += kWords)
          Store8(y + r * job_.y_stride + j, LoadWords(buffer + r * kSliceWidth + j));
    }
  }

  // Samples in lanes.
  template <class Math>
  void MultiplyPanel(const Slice& slice, int64_t n, int64_t last_sample) {
    const int64_t samples = Min(last_sample - n, kOuterLanes);
    const int num_strips = static_cast<int>((samples + kWords - 1) / kWords);
    float buffer[kWords * kOuterLanes];
    OuterTile tile = {};
    tile.steps = slice.steps;
    tile.num_steps = slice.num_steps;
    tile.depth = depth_;
    tile.panel = job_.x + n / kOuterLanes * job_.x_stride;
    tile.to = buffer;
    for (int64_t j = 0; j < width_; j += kWords, tile.w_offset += slice.w_strip_words) {
      RunOuter<Math, true>(tile, num_strips);
      for (int i = 0; i < num_strips; ++i)
        StorePanel(buffer + i * kWords, slice.first_output + j, n + i * kWords, last_sample);
    }
  }

  // Eight outputs of eight samples.
  void StorePanel(const float* from, int64_t output, int64_t n, int64_t last_sample) {
    const int64_t samples = Min(last_sample - n, kWords);
    Words tile[kWords];
    for (int i = 0; i < kWords; ++i) tile[i] = LoadWords(from + i * kOuterLanes);
    if (job_.feature_axis == 0) {
      T* y = static_cast<T*>(job_.y) + output * job_.y_stride + n;
      for (int i = 0; i < kWords; ++i) StoreSome(y + i * job_.y_stride, tile[i], samples);
    } else {
      T* y = static_cast<T*>(job_.y) + n * job_.y_stride + output;
      Transpose8(tile);
      for (int64_t i = 0; i < samples; ++i) Store8(y + i * job_.y_stride, tile[i]);
    }
  }

  const ProductJob& job_;
  const ProductScratch& scratch_;
  const int width_;
  const int depth_;  // words of a block along the sum
  Slice slices_[kMostSlices];
  int num_slices_;
  int64_t num_words_;
  int64_t num_steps_;
};

void RunProduct(const ProductJob& job, const ProductRange& range, const ProductScratch& scratch) {
  switch (job.dtype) {
    case DType::kFloat32:
      return Product<float>(job, scratch).Run(range);
    case DType::kFloat16:
      return Product<Half>(job, scratch).Run(range);
    case DType::kBFloat16:
      return Product<BFloat16>(job, scratch).Run(range);
  }
}

// ---- dw -----------------------------------------------------------------------------------------

// Entries of one row of blocks, together as many as fill the lanes.
class DwRow {
 public:
  DwRow(const DwJob& job, int64_t row) : job_(job), row_(row) {
    strips_of_block_ = job.block_size / kWords;
  }

  void Add(LutEntry entry) {
    if (job_.gate != nullptr && job_.gate[entry.block] == 0.f) return Clear(entry.block);
    for (int strip = 0; strip < strips_of_block_; ++strip) {
      lanes_[num_lanes_++] = {entry, strip};
      if (num_lanes_ == kOuterStrips) Flush();
    }
  }

  void Flush() {
    if (num_lanes_ == 0) return;
    OuterTile tile = {};
    for (int i = 0; i < kOuterStrips; ++i) {
      const Lane& lane = lanes_[i < num_lanes_ ? i : 0];
      tile.strips[i] =
          job_.dy + (int64_t{lane.entry.index} * strips_of_block_ + lane.strip) * job_.strip_words;
    }
    if (job_.has_pairs) {
      Sum<PairMath>(tile);
    } else {
      Sum<FloatMath>(tile);
    }
    for (int strip = 0; strip < strips_of_block_; ++strip) {
      for (int i = 0; i < num_lanes_; ++i)
        Store(buffer_ + strip * kWords * kOuterLanes + i * kWords, strip, lanes_[i]);
    }
    num_lanes_ = 0;
  }

 private:
  // Words of a strip's column that are summed at a time: with them the lanes' strips stay in the
  // first-level cache while all strips of x pass.
  static constexpr int64_t kDepth = 128;

  struct Lane {  // eight columns of a block
    LutEntry entry;
    int strip;
  };

  template <class Math>
  void Sum(OuterTile tile) {
    ProductStep step;
    tile.steps = &step;
    tile.num_steps = 1;
    int64_t done = 0;
    do {
      step.x = done * kWords;
      tile.depth = Min(kDepth, job_.depth - done);
      tile.is_added = done > 0;
      for (int strip = 0; strip < strips_of_block_; ++strip) {
        step.w = job_.x + (row_ * strips_of_block_ + strip) * job_.strip_words + step.x;
        tile.to = buffer_ + strip * kWords * kOuterLanes;
        RunOuter<Math, false>(tile, num_lanes_);
      }
      done += kDepth;
    } while (done < job_.depth);
  }

  int64_t Offset(int64_t block) const { return block * job_.block_size * job_.block_size; }

  // Adds eight rows of eight columns to what earlier chunks left, and rounds after the last.
  void Store(const float* from, int strip, const Lane& lane) {
    const int64_t size = job_.block_size;
    const int64_t corner = Offset(lane.entry.block) + strip * kWords * size + lane.strip * kWords;
    for (int i = 0; i < kWords; ++i) {
      Words sum = LoadWords(from + i * kOuterLanes);
      const int64_t at = corner + i * size;
      if (!job_.is_first) sum = AddWords(sum, LoadWords(job_.sums + at));
      if (job_.is_last) {
        StoreDw(sum, at);
      } else {
        StoreWords(job_.sums + at, sum);
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
  int strips_of_block_;
  Lane lanes_[kOuterStrips];
  int num_lanes_ = 0;
  float buffer_[kMaxBlockSize * kOuterLanes];
};

void RunDw(const DwJob& job, int64_t begin, int64_t end) {
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
    DwRow tasks(job, row);
    for (int64_t i = first; job.starts[row] + i < end && range.begin + i < range.end; ++i) {
      const LutEntry entry = job.dx.entries[range.begin + i];
      if (IsValid(entry, job.dx.num_inputs, job.num_blocks)) tasks.Add(entry);
    }
    tasks.Flush();
  }
}

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_CPU_KERNELS_H_
