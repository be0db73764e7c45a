// The CPU side of cross_entropy.h: row by row, in chunks that stay in the first-level cache and
// that vector instructions work on.
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/kernels/common/cpu_lanes.h"
#include "src/kernels/common/cpu_math.h"
#include "src/kernels/cross_entropy.h"

namespace blocksparse {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kChunk = 1024;  // also bounds how many terms a sum adds one by one
constexpr int64_t kCostOfClass = 2;

bool IsValid(int64_t label, int64_t classes) { return 0 <= label && label < classes; }

// The maximum of a row and the logarithm of the sum of exponentials relative to it.
template <typename T>
BLOCKSPARSE_INLINE void SumRow(const T* x, int64_t classes, float* row_max, float* log_sum) {
  float max = -kInfinity;
  float sum = 0.f;
  for (int64_t begin = 0; begin < classes; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, classes);
    float maxima[kLanes];
    std::fill(maxima, maxima + kLanes, max);
    ForEachInLanes(begin, end, [&](int64_t j, int64_t lane) __attribute__((always_inline)) {
      maxima[lane] = AtLeast(ToFloat(x[j]), maxima[lane]);
    });
    const float new_max = Reduce(
        maxima, [](float a, float b) __attribute__((always_inline)) { return AtLeast(a, b); });
    // Where there is only -infinity, any number makes the exponentials zero.
    const float base = new_max == -kInfinity ? 0.f : new_max;
    float sums[kLanes] = {};
    ForEachInLanes(begin, end, [&](int64_t j, int64_t lane) __attribute__((always_inline)) {
      sums[lane] += ExpOfNegative(ToFloat(x[j]) - base);
    });
    sum = sum * ExpOfNegative(max - base) + SumOf(sums);
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
  const T* x = static_cast<const T*>(in.x) + row * in.classes;
  T* dx = static_cast<T*>(args.dx) + row * in.classes;
  const int64_t label = LabelOf(in, row);
  if (!IsValid(label, in.classes)) return std::fill(dx, dx + in.classes, FromFloat<T>(0.f));
  const float max = args.row_max[row];
  const float log_sum = args.log_sum[row];
  const float dloss = args.dloss[row];
  BLOCKSPARSE_INDEPENDENT
  for (int64_t j = 0; j < in.classes; ++j)
    dx[j] = FromFloat<T>(dloss * ExpOfNegative((ToFloat(x[j]) - max) - log_sum));
  const float p = ExpOfNegative((ToFloat(x[label]) - max) - log_sum);
  dx[label] = FromFloat<T>(dloss * (p - 1.f));
}

template <typename T>
BLOCKSPARSE_INLINE void WorkOn(const CrossEntropyArgs& args, int64_t row) {
  LossOfRow<T>(args, row);
}
template <typename T>
BLOCKSPARSE_INLINE void WorkOn(const CrossEntropyGradArgs& args, int64_t row) {
  GradientOfRow<T>(args, row);
}

template <class Args>
BLOCKSPARSE_INLINE void WorkOnRows(const Args& args, int64_t begin, int64_t end) {
  const auto run = [&](auto type) __attribute__((always_inline)) {
    for (int64_t row = begin; row < end; ++row) WorkOn<decltype(type)>(args, row);
  };
  switch (args.in.dtype) {
    case DType::kFloat32:
      return run(float{});
    case DType::kFloat16:
      return run(Half{});
    case DType::kBFloat16:
      return run(BFloat16{});
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void Loss(const CrossEntropyArgs& args, int64_t begin, int64_t end) {
  WorkOnRows(args, begin, end);
}

BLOCKSPARSE_FOR_EACH_CPU
void Gradient(const CrossEntropyGradArgs& args, int64_t begin, int64_t end) {
  WorkOnRows(args, begin, end);
}

}  // namespace

int64_t FindBadLabel(const CrossEntropyInputs& in) {
  for (int64_t row = 0; row < in.rows; ++row) {
    if (!IsValid(LabelOf(in, row), in.classes)) return row;
  }
  return -1;
}

Status CrossEntropyCpu(const CrossEntropyArgs& args, const ParallelFor& parallel_for) {
  parallel_for(args.in.rows, args.in.classes * kCostOfClass,
               [&](int64_t begin, int64_t end) { Loss(args, begin, end); });
  return Status();
}

Status CrossEntropyGradCpu(const CrossEntropyGradArgs& args, const ParallelFor& parallel_for) {
  parallel_for(args.in.rows, args.in.classes * kCostOfClass,
               [&](int64_t begin, int64_t end) { Gradient(args, begin, end); });
  return Status();
}

}  // namespace blocksparse
