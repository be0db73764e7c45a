// The CPU side of matmul.h: cuts the products into jobs for the kernels of matmul_cpu.h and spreads
// them over the threads.
//
// The minibatch is taken in chunks, which are packed together and stay in the last-level cache; for
// y = x W with many samples each thread takes its own, which stay in its second-level cache.
// Each element of a result belongs to one job, which adds in a fixed order, and jobs are cut by
// sizes alone, so the number of threads does not show. Jobs are counted in units of work, not in
// columns: a thread's share of a layout with hubs is fair.
#include "src/kernels/matmul_cpu.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "src/kernels/common/cpu_level.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/scratch.h"
#include "src/kernels/matmul.h"

namespace blocksparse {
namespace {

constexpr int64_t kChunkWords = int64_t{1} << 21;  // packed activations: 8 MiB
constexpr int64_t kDwChunkWords = int64_t{1} << 19;
constexpr int64_t kLeastChunk = 256;  // samples of a chunk
// The same of a chunk that a thread has for itself.
constexpr int64_t kOwnChunkWords = int64_t{1} << 17;
constexpr int64_t kLeastOwnChunk = 128;
constexpr int64_t kWeightWords = int64_t{1}
                                 << 16;  // packed weights: 256 KiB of a second-level cache
// Inputs from this size on are asked for ahead of time when they are packed; results go past the
// caches, which costs whoever reads them next no more time than it saves here.
constexpr int64_t kFarBytes = int64_t{1} << 22;
constexpr int64_t kStepsAtOnce = 1024;
constexpr int64_t kLeastJobs = 16;      // so that a few threads share evenly
constexpr int64_t kLeastPart = 56;      // samples that are worth packing the weights again
constexpr int64_t kPackRows = 16;       // of a packing job
constexpr int64_t kStripGap = 32;       // words
constexpr int64_t kFlopsPerCycle = 32;  // rough rates for ParallelFor's costs
constexpr int64_t kPackedPerCycle = 1;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

Status FindKernels(const MatmulCpuKernels** kernels) {
  CpuLevel level;
  BLOCKSPARSE_RETURN_IF_ERROR(FindCpuLevel(&level));
  *kernels = &kMatmulPortable;
#ifdef __x86_64__
  switch (level) {
    case CpuLevel::kPortable:
      break;
    case CpuLevel::kAvx2:
      *kernels = &kMatmulAvx2;
      break;
    case CpuLevel::kAvx512:
      *kernels = &kMatmulAvx512;
      break;
    case CpuLevel::kAvx512Bf16:
      *kernels = &kMatmulAvx512Bf16;
      break;
  }
#endif
  return Status();
}

// Samples of a chunk, when each takes `words` packed: all of them, or nearly equal parts, a
// multiple of `step`, of `chunk_words` but not fewer than `least`.
int64_t SamplesOfChunk(int64_t batch, int64_t words, int64_t step, int64_t chunk_words,
                       int64_t least) {
  const int64_t most = std::max(chunk_words / words, least);
  const int64_t num_chunks = std::max(CeilDiv(batch, most), int64_t{1});
  return RoundUp(CeilDiv(batch, num_chunks), step);
}

// A ParallelFor on the calling thread.
void RunAlone(int64_t total, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  body(0, total);
}

const void* Advance(const void* from, DType dtype, int64_t elements) {
  return static_cast<const char*>(from) + elements * SizeOf(dtype);
}
void* Advance(void* from, DType dtype, int64_t elements) {
  return static_cast<char*>(from) + elements * SizeOf(dtype);
}

// Packs a matrix by several threads, `unit` rows at a time, which take `unit_words` words.
void PackInParallel(const MatmulCpuKernels& kernels, const PackJob& job, int64_t unit,
                    int64_t unit_words, const ParallelFor& parallel_for) {
  const int64_t cost = unit * job.columns / kPackedPerCycle;
  parallel_for(CeilDiv(job.rows, unit), cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      PackJob part = job;
      part.from = Advance(job.from, job.dtype, i * unit * job.row_stride);
      part.rows = std::min(unit, job.rows - i * unit);
      part.rows_ahead = job.rows - i * unit - part.rows;
      part.to = job.to + i * unit_words;
      kernels.pack(part);
    }
  });
}

// As above where the rows follow one another in strips, or strips follow one another.
void PackRowsInParallel(const MatmulCpuKernels& kernels, const PackJob& job,
                        const ParallelFor& parallel_for) {
  const int64_t rows_of_word = job.kind == WordKind::kRowPair ? 2 : 1;
  const int64_t unit_words = job.is_transposed
                                 ? kPackRows / kStripWords / job.wide * job.strip_words
                                 : kPackRows / rows_of_word * kStripWords * job.wide;
  PackInParallel(kernels, job, kPackRows, unit_words, parallel_for);
}

// ---- y = x W ------------------------------------------------------------------------------------

// The slices of all block columns in order, and how much work lies before each: one unit for every
// entry and one for the slice itself.
class SliceUnits {
 public:
  SliceUnits(const Direction& direction, int64_t num_blocks, int64_t slices_of_column)
      : slices_of_column_(slices_of_column), starts_(direction.num_outputs + 1) {
    for (int64_t column = 0; column < direction.num_outputs; ++column) {
      const EntryRange range = ColumnEntries(direction, num_blocks, column);
      longest_ = std::max(longest_, range.end - range.begin);
      starts_[column + 1] = starts_[column] + slices_of_column * (1 + range.end - range.begin);
    }
  }

  int64_t total() const { return starts_.back(); }
  int64_t num_slices() const {
    return (static_cast<int64_t>(starts_.size()) - 1) * slices_of_column_;
  }
  int64_t longest() const { return longest_; }  // entries of a column

  // The first slice that starts at `unit` or after.
  int64_t SliceFrom(int64_t unit) const {
    const int64_t column = std::upper_bound(starts_.begin(), starts_.end(), unit) - starts_.begin();
    if (column > static_cast<int64_t>(starts_.size()) - 1) return num_slices();
    const int64_t units = (starts_[column] - starts_[column - 1]) / slices_of_column_;
    return (column - 1) * slices_of_column_ + CeilDiv(unit - starts_[column - 1], units);
  }

 private:
  int64_t slices_of_column_;
  int64_t longest_ = 0;
  std::vector<int64_t> starts_;
};

// dx with features last: whether to transpose dy and dx, and keep samples in lanes, rather than to
// transpose the weights. Rough costs in cycles of a vector of float32, measured on Zen 4.
bool IsTransposingFaster(const MatmulCpuKernels& kernels, const MatmulArgs& args) {
  constexpr double kWeight = 0.3;
  constexpr double kSampleLanes = 1.07;  // the inner loop's time over that of the other one
  constexpr double kActivation = 0.35;
  const bool is_read_in_place =
      args.dtype == DType::kFloat32 || (args.dtype == DType::kBFloat16 && kernels.has_pairs);
  if (!is_read_in_place || args.gate != nullptr) return false;
  const double size = args.layout.block_size;
  const double weights = args.layout.num_blocks * size * size;
  const double features = (args.layout.in_blocks + args.layout.out_blocks) * size;
  const double batch = args.batch;
  const double lanes = kernels.lanes;
  return kSampleLanes * weights * CeilDiv(args.batch, kernels.lanes) +
             kActivation * batch * features <
         weights * (batch / lanes + kWeight);
}

// The product of one packed chunk of `samples`, which may be parted at multiples of `step`.
void MultiplyChunk(const MatmulCpuKernels& kernels, const ProductJob& job, const SliceUnits& units,
                   int64_t samples, int64_t step, const ParallelFor& parallel_for) {
  // Long columns and few columns are shared by samples.
  const int64_t longest_part = CeilDiv(kLeastJobs * (1 + units.longest()), units.total());
  const int64_t few_slices = CeilDiv(kLeastJobs, units.num_slices());
  const int64_t most_parts = CeilDiv(samples, kLeastPart);
  const int64_t part_samples =
      RoundUp(CeilDiv(samples, std::min(std::max(longest_part, few_slices), most_parts)), step);
  const int64_t num_parts = CeilDiv(samples, part_samples);

  const int64_t width = std::min(job.block_size, kSliceWidth);
  const int64_t cost = 2 * width * job.block_size * part_samples / kFlopsPerCycle;
  parallel_for(num_parts * units.total(), cost, [&](int64_t begin, int64_t end) {
    const int64_t num_words = std::max(kWeightWords, SliceWords(job, units.longest()));
    const Scratch w(num_words);
    std::vector<ProductStep> steps(std::max(kStepsAtOnce, units.longest()) + kStepsAhead);
    const ProductScratch scratch = {w.data(), num_words, steps.data(),
                                    static_cast<int64_t>(steps.size())};
    for (int64_t part = begin / units.total(); part * units.total() < end; ++part) {
      const int64_t before = part * units.total();
      ProductRange range = {};
      range.begin = units.SliceFrom(std::max(begin - before, int64_t{0}));
      range.end = units.SliceFrom(std::min(end - before, units.total()));
      range.first_sample = part * part_samples;
      range.last_sample = std::min(samples, range.first_sample + part_samples);
      if (range.begin < range.end) kernels.product(job, range, scratch);
    }
  });
}

}  // namespace

bool IsMatmulSupported(DType dtype, int block_size, int feature_axis) {
  const bool is_dtype =
      dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16;
  return is_dtype && (feature_axis == 0 || feature_axis == 1) &&
         WithBlockSize(block_size, [](auto) { return Status(); }).ok();
}

Status MatmulCpu(const MatmulArgs& args, const ParallelFor& parallel_for) {
  if (args.batch == 0) return Status();
  const MatmulCpuKernels* kernels;
  BLOCKSPARSE_RETURN_IF_ERROR(FindKernels(&kernels));
  const int64_t size = args.layout.block_size;
  const Direction& direction = args.is_dx ? args.layout.dx : args.layout.fprop;
  const int64_t in_features = direction.num_inputs * size;
  const int64_t out_features = direction.num_outputs * size;
  // With one sample the two layouts are the same.
  const int feature_axis = args.batch == 1 ? 1 : args.feature_axis;

  ProductJob job = {};
  job.dtype = args.dtype;
  job.is_dx = args.is_dx;
  job.has_pairs = kernels->has_pairs && args.dtype == DType::kBFloat16;
  job.has_sample_lanes = feature_axis == 0 || size < kernels->lanes ||
                         (args.is_dx && IsTransposingFaster(*kernels, args));
  job.feature_axis = feature_axis;
  job.block_size = args.layout.block_size;
  job.num_blocks = args.layout.num_blocks;
  job.direction = direction;
  job.w = args.w;
  job.gate = args.gate;
  job.y_stride = feature_axis == 1 ? out_features : args.batch;
  job.is_streamed = args.batch * out_features * SizeOf(args.dtype) >= kFarBytes;

  const int64_t words = job.has_pairs ? in_features / 2 : in_features;  // of a sample
  const int64_t most_rows = job.has_sample_lanes
                                ? kernels->lanes
                                : kernels->most_rows(std::min<int64_t>(size, kSliceWidth));
  // Panels of nearly equal size, so that none is left with a few samples.
  job.panel =
      job.has_sample_lanes ? most_rows : CeilDiv(args.batch, CeilDiv(args.batch, most_rows));
  job.panel_words = job.panel * words;
  // Two panels of lanes are multiplied together.
  const int64_t step = job.has_sample_lanes ? 2 * job.panel : job.panel;
  const SliceUnits units(direction, job.num_blocks, std::max<int64_t>(size / kSliceWidth, 1));

  // Samples [n, n + samples).
  const auto multiply = [&](int64_t n, int64_t samples, float* packed, const ParallelFor& threads) {
    PackJob pack = {};
    pack.dtype = args.dtype;
    pack.row_stride = feature_axis == 1 ? in_features : args.batch;
    pack.from = Advance(args.x, args.dtype, feature_axis == 1 ? n * in_features : n);
    pack.rows = feature_axis == 1 ? samples : in_features;
    pack.is_far = args.batch * in_features * SizeOf(args.dtype) >= kFarBytes;
    pack.columns = feature_axis == 1 ? in_features : samples;
    pack.is_transposed = job.has_sample_lanes && feature_axis == 1;
    pack.kind = !job.has_pairs      ? WordKind::kValue
                : feature_axis == 1 ? WordKind::kColumnPair
                                    : WordKind::kRowPair;
    pack.to = packed;
    if (job.has_sample_lanes) {
      pack.wide = kernels->lanes / kStripWords;
      pack.strip_words = job.panel_words;
      PackRowsInParallel(*kernels, pack, threads);
    } else {
      pack.wide = 1;
      pack.strip_words = job.panel * kStripWords;
      PackInParallel(*kernels, pack, job.panel, job.panel_words, threads);
    }
    ProductJob chunk = job;
    chunk.x = packed;
    chunk.y = Advance(args.y, args.dtype, feature_axis == 1 ? n * out_features : n);
    MultiplyChunk(*kernels, chunk, units, samples, step, threads);
  };

  const int64_t own_samples =
      SamplesOfChunk(args.batch, words, step, kOwnChunkWords, kLeastOwnChunk);
  const int64_t num_own = CeilDiv(args.batch, own_samples);
  if (num_own >= kLeastJobs) {
    // Each thread packs for itself what stays in its second-level cache.
    const int64_t cost = own_samples * (2 * units.total() * size * size / kFlopsPerCycle + words);
    parallel_for(num_own, cost, [&](int64_t begin, int64_t end) {
      const Scratch packed(own_samples * words);
      for (int64_t n = begin * own_samples; n < std::min(end * own_samples, args.batch);
           n += own_samples)
        multiply(n, std::min(own_samples, args.batch - n), packed.data(), RunAlone);
    });
    return Status();
  }
  const int64_t most_samples = SamplesOfChunk(args.batch, words, step, kChunkWords, kLeastChunk);
  const Scratch packed(most_samples * words);
  for (int64_t n = 0; n < args.batch; n += most_samples)
    multiply(n, std::min(most_samples, args.batch - n), packed.data(), parallel_for);
  return Status();
}

// ---- dw -----------------------------------------------------------------------------------------

namespace {

// One side of the pairs, packed.
struct DwSide {
  int64_t features;
  int wide;
  int64_t strip_words;
  float* packed;
};

// Packs samples [n, n + samples) of one side of a pair from row `row` of the strips on.
void PackPair(const MatmulCpuKernels& kernels, const MatmulDwArgs& args, bool has_pairs,
              const DwSide& side, const void* from, int64_t batch, int64_t n, int64_t samples,
              int64_t row, const ParallelFor& parallel_for) {
  const bool is_axis_1 = args.feature_axis == 1;
  PackJob pack = {};
  pack.dtype = args.dtype;
  pack.is_transposed = !is_axis_1;
  pack.kind = !has_pairs  ? WordKind::kValue
              : is_axis_1 ? WordKind::kRowPair
                          : WordKind::kColumnPair;
  pack.row_stride = is_axis_1 ? side.features : batch;
  pack.from = Advance(from, args.dtype, is_axis_1 ? n * side.features : n);
  pack.rows = is_axis_1 ? samples : side.features;
  pack.is_far = batch * side.features * SizeOf(args.dtype) >= kFarBytes;
  pack.columns = is_axis_1 ? side.features : samples;
  pack.wide = side.wide;
  pack.strip_words = side.strip_words;
  pack.to = side.packed + row * side.wide * kStripWords;
  PackRowsInParallel(kernels, pack, parallel_for);
}

// A run of samples of one pair.
struct Run {
  int pair;
  int64_t n;
  int64_t samples;
};

}  // namespace

Status MatmulDwCpu(const MatmulDwArgs& args, const ParallelFor& parallel_for) {
  const MatmulCpuKernels* kernels;
  BLOCKSPARSE_RETURN_IF_ERROR(FindKernels(&kernels));
  const Layout& layout = args.layout;
  const int64_t in_features = layout.in_blocks * layout.block_size;
  const int64_t out_features = layout.out_blocks * layout.block_size;
  const int64_t block_words = int64_t{layout.block_size} * layout.block_size;
  const bool has_pairs = kernels->has_pairs && args.dtype == DType::kBFloat16;
  const int64_t samples_of_word = has_pairs ? 2 : 1;

  // The pairs' minibatches one after the other, cut into chunks of whole words.
  const auto words_of = [&](int64_t samples) { return CeilDiv(samples, samples_of_word); };
  int64_t batch = 0;
  for (int p = 0; p < args.num_pairs; ++p) batch += words_of(args.pairs[p].batch) * samples_of_word;
  const int64_t most = words_of(SamplesOfChunk(
      batch, CeilDiv(in_features + out_features, samples_of_word), samples_of_word,
      layout.block_size < kernels->lanes ? 2 * kDwChunkWords : kDwChunkWords, kLeastChunk));
  std::vector<std::vector<Run>> chunks(1);
  int64_t free_words = most;
  for (int p = 0; p < args.num_pairs; ++p) {
    for (int64_t n = 0; n < args.pairs[p].batch;) {
      if (free_words == 0) {
        chunks.emplace_back();
        free_words = most;
      }
      const int64_t samples = std::min(args.pairs[p].batch - n, free_words * samples_of_word);
      chunks.back().push_back({p, n, samples});
      free_words -= words_of(samples);
      n += samples;
    }
  }

  std::vector<int64_t> starts(layout.in_blocks + 1);
  for (int64_t row = 0; row < layout.in_blocks; ++row) {
    const EntryRange range = ColumnEntries(layout.dx, layout.num_blocks, row);
    starts[row + 1] = starts[row] + range.end - range.begin;
  }
  DwJob job = {};
  job.dw_dtype = args.dw_dtype;
  job.has_pairs = has_pairs;
  job.block_size = layout.block_size;
  job.num_blocks = layout.num_blocks;
  job.dx = layout.dx;
  job.starts = starts.data();
  job.gate = args.gate;
  job.dw = args.dw;
  job.is_streamed = layout.num_blocks * block_words * SizeOf(args.dw_dtype) >= kFarBytes;
  const bool is_float = args.dw_dtype == DType::kFloat32;
  const bool needs_sums = chunks.size() > 1 && !is_float;
  const Scratch sums(needs_sums ? layout.num_blocks * block_words : 0);
  if (is_float) job.sums = static_cast<float*>(args.dw);
  if (needs_sums) job.sums = sums.data();
  const int wide = layout.block_size < kernels->lanes ? 1 : kernels->lanes / kStripWords;
  // Strips that start a power of two apart would compete for the same sets of a cache.
  job.x_strip_words = most * kStripWords + kStripGap;
  job.dy_strip_words = most * kStripWords * wide + kStripGap;
  const Scratch x(in_features / kStripWords * job.x_strip_words);
  const Scratch dy(out_features / kStripWords / wide * job.dy_strip_words);
  job.x = x.data();
  job.dy = dy.data();
  const DwSide x_side = {in_features, 1, job.x_strip_words, x.data()};
  const DwSide dy_side = {out_features, wide, job.dy_strip_words, dy.data()};
  for (size_t c = 0; c < chunks.size(); ++c) {
    job.is_first = c == 0;
    job.is_last = c + 1 == chunks.size();
    job.depth = 0;
    for (const Run& run : chunks[c]) {
      const MatmulPair& pair = args.pairs[run.pair];
      PackPair(*kernels, args, has_pairs, x_side, pair.x, pair.batch, run.n, run.samples, job.depth,
               parallel_for);
      PackPair(*kernels, args, has_pairs, dy_side, pair.dy, pair.batch, run.n, run.samples,
               job.depth, parallel_for);
      job.depth += words_of(run.samples);
    }
    const int64_t cost = 2 * block_words * (1 + job.depth) * samples_of_word / kFlopsPerCycle;
    parallel_for(starts.back(), cost,
                 [&](int64_t begin, int64_t end) { kernels->dw(job, begin, end); });
  }
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
