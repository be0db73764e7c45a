// The CPU side of cross_entropy.h: row by row, in chunks that stay in the first-level cache and
// that vector instructions work on.
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/kernels/common/cpu_math.h"
#include "src/kernels/cross_entropy.h"

namespace blocksparse {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kLanes = 32;    // sums side by side: the order that vector units need
constexpr int64_t kChunk = 1024;  // also bounds how many terms a sum adds one by one
constexpr int64_t kCostOfClass = 3;

bool IsValid(int64_t label, int64_t classes) { return 0 <= label && label < classes; }

// The maximum of a row and the logarithm of the sum of exponentials relative to it.
template <typename T>
BLOCKSPARSE_INLINE void SumRow(const T* x, int64_t classes, float* row_max, float* log_sum) {
  float max = -kInfinity;
  float sum = 0.f;
  for (int64_t begin = 0; begin < classes; begin += kChunk) {
    const int64_t size = std::min(kChunk, classes - begin);
    const int64_t full_size = (size + kLanes - 1) / kLanes * kLanes;
    float values[kChunk];
    for (int64_t j = 0; j < size; ++j) values[j] = ToFloat(x[begin + j]);
    std::fill(values + size, values + full_size, -kInfinity);
    float maxima[kLanes];
    std::fill(maxima, maxima + kLanes, max);
    for (int64_t j = 0; j < full_size; j += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        maxima[lane] = Select(values[j + lane] > maxima[lane], values[j + lane], maxima[lane]);
    const float new_max = *std::max_element(maxima, maxima + kLanes);
    // Where there is only -infinity, any number makes the exponentials zero.
    const float base = new_max == -kInfinity ? 0.f : new_max;
    float sums[kLanes] = {};
    for (int64_t j = 0; j < full_size; j += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        sums[lane] += ExpOfNegative(values[j + lane] - base);
    sum *= std::exp(max - base);
    for (const float chunk_sum : sums) sum += chunk_sum;
    max = new_max;
  }
  *row_max = max;
  *log_sum = std::log(sum);
}

template <typename T>
BLOCKSPARSE_INLINE void LossOfRow(const CrossEntropyArgs& args, int64_t row) {
  const CrossEntropyInputs& in = args.in;
  const T* x = static_cast<const T*>(in.x) + row * in.classes;
  SumRow(x, in.classes, &args.row_max[row], &args.log_sum[row]);
  const int64_t label = LabelOf(in, row);
  args.loss[row] = IsValid(label, in.classes)
                       ? args.row_max[row] - ToFloat(x[label]) + args.log_sum[row]
                       : std::numeric_limits<float>::quiet_NaN();
}

template <typename T>
BLOCKSPARSE_INLINE void GradientOfRow(const CrossEntropyGradArgs& args, int64_t row) {
  const CrossEntropyInputs& in = args.in;
  const T* __restrict__ x = static_cast<const T*>(in.x) + row * in.classes;
  T* __restrict__ dx = static_cast<T*>(args.dx) + row * in.classes;
  const int64_t label = LabelOf(in, row);
  if (!IsValid(label, in.classes)) return std::fill(dx, dx + in.classes, FromFloat<T>(0.f));
  const float max = args.row_max[row];
  const float log_sum = args.log_sum[row];
  const float dloss = args.dloss[row];
  for (int64_t j = 0; j < in.classes; ++j)
    dx[j] = FromFloat<T>(dloss * ExpOfNegative((ToFloat(x[j]) - max) - log_sum));
  const float p = ExpOfNegative((ToFloat(x[label]) - max) - log_sum);
  dx[label] = FromFloat<T>(dloss * (p - 1.f));
}

BLOCKSPARSE_FOR_EACH_CPU
void Loss(const CrossEntropyArgs& args, int64_t row) {
  switch (args.in.dtype) {
    case DType::kFloat32:
      return LossOfRow<float>(args, row);
    case DType::kFloat16:
      return LossOfRow<Half>(args, row);
    case DType::kBFloat16:
      return LossOfRow<BFloat16>(args, row);
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void Gradient(const CrossEntropyGradArgs& args, int64_t row) {
  switch (args.in.dtype) {
    case DType::kFloat32:
      return GradientOfRow<float>(args, row);
    case DType::kFloat16:
      return GradientOfRow<Half>(args, row);
    case DType::kBFloat16:
      return GradientOfRow<BFloat16>(args, row);
  }
}

}  // namespace

int64_t FindBadLabel(const CrossEntropyInputs& in) {
  for (int64_t row = 0; row < in.rows; ++row) {
    if (!IsValid(LabelOf(in, row), in.classes)) return row;
  }
  return -1;
}

Status CrossEntropyCpu(const CrossEntropyArgs& args, const ParallelFor& parallel_for) {
  parallel_for(args.in.rows, args.in.classes * kCostOfClass, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) Loss(args, row);
  });
  return Status();
}

Status CrossEntropyGradCpu(const CrossEntropyGradArgs& args, const ParallelFor& parallel_for) {
  parallel_for(args.in.rows, args.in.classes * kCostOfClass, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) Gradient(args, row);
  });
  return Status();
}

}  // namespace blocksparse
