// The CPU side of cross_entropy.h: row by row, in chunks that stay in the first-level cache.
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/kernels/cross_entropy.h"

namespace blocksparse {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kChunk = 256;  // also bounds how many terms a sum adds one by one
constexpr int64_t kCostOfClass = 10;

bool IsValid(int64_t label, int64_t classes) { return 0 <= label && label < classes; }

// The maximum of a row and the logarithm of the sum of exponentials relative to it.
template <typename T>
void SumRow(const T* x, int64_t classes, float* row_max, float* log_sum) {
  float max = -kInfinity;
  float sum = 0.f;
  for (int64_t begin = 0; begin < classes; begin += kChunk) {
    const int64_t size = std::min(kChunk, classes - begin);
    float values[kChunk];
    float new_max = max;
    for (int64_t j = 0; j < size; ++j) {
      values[j] = ToFloat(x[begin + j]);
      new_max = std::max(new_max, values[j]);
    }
    // Where there is only -infinity, any number makes the exponentials zero.
    const float base = new_max == -kInfinity ? 0.f : new_max;
    float chunk_sum = 0.f;
    for (int64_t j = 0; j < size; ++j) chunk_sum += std::exp(values[j] - base);
    sum = sum * std::exp(max - base) + chunk_sum;
    max = new_max;
  }
  *row_max = max;
  *log_sum = std::log(sum);
}

}  // namespace

int64_t FindBadLabel(const CrossEntropyInputs& in) {
  for (int64_t row = 0; row < in.rows; ++row) {
    if (!IsValid(LabelOf(in, row), in.classes)) return row;
  }
  return -1;
}

Status CrossEntropyCpu(const CrossEntropyArgs& args, const ParallelFor& parallel_for) {
  const CrossEntropyInputs& in = args.in;
  WithCpuType(in.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(in.rows, in.classes * kCostOfClass, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(in.x) + row * in.classes;
        SumRow(x, in.classes, &args.row_max[row], &args.log_sum[row]);
        const int64_t label = LabelOf(in, row);
        args.loss[row] = IsValid(label, in.classes)
                             ? args.row_max[row] - ToFloat(x[label]) + args.log_sum[row]
                             : std::numeric_limits<float>::quiet_NaN();
      }
    });
  });
  return Status();
}

Status CrossEntropyGradCpu(const CrossEntropyGradArgs& args, const ParallelFor& parallel_for) {
  const CrossEntropyInputs& in = args.in;
  WithCpuType(in.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(in.rows, in.classes * kCostOfClass, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(in.x) + row * in.classes;
        T* dx = static_cast<T*>(args.dx) + row * in.classes;
        const int64_t label = LabelOf(in, row);
        if (!IsValid(label, in.classes)) {
          std::fill(dx, dx + in.classes, FromFloat<T>(0.f));
          continue;
        }
        for (int64_t j = 0; j < in.classes; ++j) {
          const float p = std::exp(ToFloat(x[j]) - args.row_max[row] - args.log_sum[row]);
          dx[j] = FromFloat<T>(args.dloss[row] * (p - (j == label ? 1.f : 0.f)));
        }
      }
    });
  });
  return Status();
}

}  // namespace blocksparse
