// The jobs of y = x W, included like common/simd_words.h after the vectors of a level.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_CPU_PRODUCT_H_
#define BLOCKSPARSE_KERNELS_MATMUL_CPU_PRODUCT_H_

#include <type_traits>

#include "src/kernels/matmul_cpu_kernels.h"
#include "src/kernels/matmul_cpu_pack.h"

namespace blocksparse {
namespace {

// The vectors that a slice's outputs fill, at most kMostVecs.
inline int MostRows(int width) { return width <= kLanes ? RowsFor(1) : RowsFor(kMostVecs); }

template <typename T>
inline void StoreSome(T* to, Words values, int64_t count) {
  if (count >= kWords) return Store8(to, values);
  T copy[kWords];
  Store8(copy, values);
  for (int64_t i = 0; i < count; ++i) to[i] = copy[i];
}

// A slice of the result whose weights are at hand: packed, or in place in w.
struct Slice {
  int64_t first_output;
  const ProductStep* steps;
  int64_t num_steps;
  bool is_in_place;
};

constexpr int kMostSlices = 64;  // whose weights are kept at a time

// Samples up to which weights stay in place.
constexpr int64_t kFewForLanes = 128;
constexpr int64_t kFewForPairs = 28;
constexpr int64_t kFewForRows = 64;

template <typename T>
class Product {
 public:
  Product(const ProductJob& job, const ProductScratch& scratch)
      : job_(job),
        scratch_(scratch),
        width_(job.block_size < kSliceWidth ? job.block_size : kSliceWidth),
        depth_(job.has_pairs ? job.block_size / 2 : job.block_size),
        is_streamed_(kCanStream && job.is_streamed &&
                     HasLines(static_cast<const T*>(job.y), job.y_stride)) {}

  void Run(const ProductRange& range) {
    const int64_t samples = range.last_sample - range.first_sample;
    for (int64_t index = range.begin; index < range.end;) {
      num_slices_ = 0;
      num_words_ = 0;
      num_steps_ = 0;
      do {
        AddSlice(index++, samples);
      } while (index < range.end && HasRoomFor(index));
      for (int i = 0; i < kStepsAhead; ++i)
        scratch_.steps[num_steps_ + i] = num_steps_ > 0 ? scratch_.steps[0] : ProductStep{};
      if (job_.has_pairs) {
        Multiply<PairMath>(range);
      } else {
        Multiply<FloatMath>(range);
      }
    }
    if (is_streamed_) FenceStreams();
  }

 private:
  static constexpr int64_t kLineOutputs = kLineBytes / sizeof(T);

  EntryRange EntriesOf(int64_t index) const {
    return ColumnEntries(job_.direction, job_.num_blocks, index / (job_.block_size / width_));
  }

  bool HasRoomFor(int64_t index) const {
    const EntryRange range = EntriesOf(index);
    return num_slices_ < kMostSlices &&
           num_words_ + SliceWords(job_, range.end - range.begin) <= scratch_.num_words &&
           num_steps_ + range.end - range.begin + kStepsAhead <= scratch_.num_steps;
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
    const bool is_in_place = CanUseInPlace(samples) && !is_scaled;
    slices_[num_slices_++] = {index / slices_of_block * job_.block_size + first_output, steps,
                              count, is_in_place};
    for (int64_t s = 0; s < count; ++s) {
      const LutEntry entry = job_.direction.entries[steps[s].x];
      const T* block =
          static_cast<const T*>(job_.w) + int64_t{entry.block} * job_.block_size * job_.block_size;
      const T* outputs = block + first_output * (job_.is_dx ? job_.block_size : 1);
      steps[s].x = entry.index * depth_ * (job_.has_sample_lanes ? kLanes : job_.panel);
      if (is_in_place) {
        steps[s].w = reinterpret_cast<const float*>(outputs);
      } else {
        float* w = scratch_.w + num_words_ + s * depth_ * (job_.has_sample_lanes ? kWords : width_);
        PackWeights(outputs, GateOf(entry.block), count, w);
        steps[s].w = w;
      }
    }
    if (!is_in_place) num_words_ += SliceWords(job_, count);
    num_steps_ += count;
  }

  // Whether the inner loop can read w itself, and that is better for as many samples: what lies
  // packed is read faster, but packing takes time.
  bool CanUseInPlace(int64_t samples) const {
    if (job_.dtype != DType::kFloat32 && !job_.has_pairs) return false;
    if (job_.has_sample_lanes)
      return (job_.is_dx || !job_.has_pairs) &&
             (job_.block_size == kWords || samples <= kFewForLanes);
    if (job_.is_dx) return false;
    if (job_.has_pairs) return samples <= kFewForPairs;
    return job_.block_size == width_ || samples <= kFewForRows;
  }

  // width_ outputs of a block, the first of which is at `outputs`.
  void PackWeights(const T* outputs, float gate, int64_t num_blocks, float* to) const {
    const int64_t size = job_.block_size;
    if (size == kWords && gate == 1.f && !(job_.is_dx && job_.has_pairs))
      return PackSmallestBlock(outputs, to);
    PackJob pack = {};
    pack.dtype = job_.dtype;
    pack.kind = !job_.has_pairs ? WordKind::kValue
                : job_.is_dx    ? WordKind::kColumnPair
                                : WordKind::kRowPair;
    pack.is_transposed = job_.is_dx;
    pack.from = outputs;
    pack.row_stride = size;
    pack.rows = job_.is_dx ? width_ : size;
    pack.columns = job_.is_dx ? size : width_;
    pack.to = to;
    pack.wide = job_.has_sample_lanes ? 1 : width_ / kWords;
    pack.strip_words = num_blocks * depth_ * kWords;
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

  // 8 x 8, of which there are many.
  void PackSmallestBlock(const T* from, float* to) const {
#ifdef BLOCKSPARSE_PAIRS
    if constexpr (std::is_same_v<T, BFloat16>) {
      BLOCKSPARSE_UNROLL for (int i = 0; i < kWords; i += 2)
          StoreWords(to + i / 2 * kWords, RowPairWords::Load(from + i * kWords, kWords));
      return;
    }
#endif
    Words tile[kWords];
    BLOCKSPARSE_UNROLL for (int i = 0; i < kWords; ++i) tile[i] = Load8(from + i * kWords);
    if (job_.is_dx) Transpose8(tile);
    BLOCKSPARSE_UNROLL for (int i = 0; i < kWords; ++i) StoreWords(to + i * kWords, tile[i]);
  }

  template <class Math>
  void Multiply(const ProductRange& range) {
    if (job_.has_sample_lanes) {
      for (int64_t n = range.first_sample; n < range.last_sample; n += kOuterLanes)
        MultiplyLanePanels<Math>(n, Min(range.last_sample - n, kOuterLanes));
      return;
    }
    if (width_ <= kLanes) {
      MultiplyRows<Math, 1>(range);
    } else {
      MultiplyRows<Math, kMostVecs>(range);
    }
  }

  // Features in lanes: a panel of samples takes all slices in turn.
  template <class Math, int kVecs>
  void MultiplyRows(const ProductRange& range) {
    for (int64_t n = range.first_sample; n < range.last_sample; n += job_.panel) {
      const int rows = static_cast<int>(Min(job_.panel, range.last_sample - n));
      for (int i = 0; i < num_slices_; ++i) MultiplyRowPanel<Math, kVecs>(slices_[i], n, rows);
    }
  }

  template <class Math, int kVecs>
  void MultiplyRowPanel(const Slice& slice, int64_t n, int rows) {
    T* y = OutputAt(n, slice.first_output);
    const bool is_streamed = is_streamed_ && width_ % kLineOutputs == 0;
    // What will be written arrives meanwhile.
    for (int r = 0; r < rows && !is_streamed; ++r)
      for (int64_t j = 0; j < width_; j += kLineOutputs)
        __builtin_prefetch(y + r * job_.y_stride + j, 1);
    RowsTile tile = {};
    tile.steps = slice.steps;
    tile.num_steps = slice.num_steps;
    tile.x = job_.x + n / job_.panel * job_.panel_words;
    tile.x_stride = job_.panel * kWords;
    tile.num_strips = depth_ / kWords;
    tile.w_stride = slice.is_in_place ? job_.block_size : width_;
    tile.to_stride = job_.y_stride;
    tile.is_streamed = is_streamed;
    for (; tile.w_offset < width_; tile.w_offset += kVecs * kLanes) {
      tile.to = y + tile.w_offset;
      if (Math::kIsPairs && slice.is_in_place) {
        RunRows<Math, T, Math::kIsPairs, kVecs>(rows, tile);
      } else {
        RunRows<Math, T, false, kVecs>(rows, tile);
      }
    }
  }

  // Samples in lanes. Outputs that share cache lines of y are stored together.
  template <class Math>
  void MultiplyLanePanels(int64_t n, int64_t samples) {
    float buffer[kLineOutputs * kOuterLanes];
    OuterTile tile = {};
    tile.depth = depth_;
    tile.to_stride = kOuterLanes;
    for (int v = 0; v < kOuterVecs; ++v)
      tile.strips[v] = job_.x + (n / kLanes + v) * job_.panel_words;
    int64_t first = slices_[0].first_output;
    const int64_t end = slices_[num_slices_ - 1].first_output + width_;
    for (int i = 0; i < num_slices_; ++i) {
      const Slice& slice = slices_[i];
      tile.steps = slice.steps;
      tile.num_steps = slice.num_steps;
      tile.w_row_stride = slice.is_in_place && job_.is_dx ? depth_ : 1;
      tile.w_depth_stride = !slice.is_in_place ? kWords : job_.is_dx ? 1 : job_.block_size;
      // From eight outputs to the next.
      const int64_t w_strip_words = !slice.is_in_place ? slice.num_steps * depth_ * kWords
                                    : job_.is_dx       ? depth_ * kWords
                                                       : kWords;
      tile.w_offset = 0;
      for (int64_t output = slice.first_output; output < slice.first_output + width_;
           output += kWords, tile.w_offset += w_strip_words) {
        if (job_.feature_axis == 1 && output == first && !is_streamed_)
          for (int64_t s = 0; s < samples; ++s) __builtin_prefetch(OutputAt(n + s, output), 1);
        for (int v = 0; v < kOuterVecs; ++v)
          tile.to[v] = buffer + (output - first) * kOuterLanes + v * kLanes;
        RunOuter<Math>(tile, samples);
        if ((output + kWords) % kLineOutputs != 0 && output + kWords < end) continue;
        StoreTiles(buffer, first, output + kWords, n, samples);
        first = output + kWords;
      }
    }
  }

  // Outputs [first, end) of samples [n, n + samples).
  void StoreTiles(const float* from, int64_t first, int64_t end, int64_t n, int64_t samples) {
    const bool is_streamed = is_streamed_ && job_.feature_axis == 1 && end - first == kLineOutputs;
    for (int64_t i = 0; i < samples; i += kWords) {
      const float* tile = from + i;
      if (is_streamed) {
        StreamLines(tile, first, n + i, Min(samples - i, kWords));
        continue;
      }
      for (int64_t output = first; output < end; output += kWords, tile += kWords * kOuterLanes)
        StoreTile(tile, output, n + i, Min(samples - i, kWords));
    }
  }

  // A cache line of outputs of up to eight samples.
  void StreamLines(const float* from, int64_t output, int64_t n, int64_t samples) {
    T lines[kWords * kLineOutputs];
    for (int64_t j = 0; j < kLineOutputs; j += kWords, from += kWords * kOuterLanes) {
      Words tile[kWords];
      for (int i = 0; i < kWords; ++i) tile[i] = LoadWords(from + i * kOuterLanes);
      Transpose8(tile);
      for (int i = 0; i < kWords; ++i) Store8(lines + i * kLineOutputs + j, tile[i]);
    }
    for (int64_t i = 0; i < samples; ++i)
      StreamBytes<kLineBytes>(OutputAt(n + i, output), lines + i * kLineOutputs);
  }

  // Eight outputs of up to eight samples.
  void StoreTile(const float* from, int64_t output, int64_t n, int64_t samples) {
    Words tile[kWords];
    for (int i = 0; i < kWords; ++i) tile[i] = LoadWords(from + i * kOuterLanes);
    if (job_.feature_axis == 0) {
      T* y = static_cast<T*>(job_.y) + output * job_.y_stride + n;
      for (int i = 0; i < kWords; ++i) StoreSome(y + i * job_.y_stride, tile[i], samples);
    } else {
      T* y = OutputAt(n, output);
      Transpose8(tile);
      for (int64_t i = 0; i < samples; ++i) Store8(y + i * job_.y_stride, tile[i]);
    }
  }

  // With features last.
  T* OutputAt(int64_t n, int64_t output) const {
    return static_cast<T*>(job_.y) + n * job_.y_stride + output;
  }

  const ProductJob& job_;
  const ProductScratch& scratch_;
  const int width_;
  const int depth_;  // words of a block along the sum
  const bool is_streamed_;
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

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_CPU_PRODUCT_H_
