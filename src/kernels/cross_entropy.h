// Softmax cross entropy of rows of logits with one label each, and its gradient.
//
//   row_max[n]    = max_j x[n, j]
//   log_sum[n]    = log sum_j exp(x[n, j] - row_max[n])       log-sum-exp = row_max + log_sum
//   loss[n]       = (row_max[n] - x[n, label]) + log_sum[n]
//   dx[n, j]      = dloss[n] (exp((x[n, j] - row_max[n]) - log_sum[n]) - [j = label])
//
// One read of x in each direction, and no probabilities are stored. The two parts of the
// log-sum-exp stay apart: their sum would round to the spacing of the largest logit, and the
// gradient, which subtracts it from the logits, would be as coarse.
//
// Buffers, row-major, of any alignment: x, dx T[rows, classes]; labels of one of IndexType[rows];
// loss, dloss, row_max, log_sum float[rows]. Arithmetic in float32, sums in a fixed order: results
// repeat bit for bit. A label outside [0, classes) gives its row a loss of NaN and a gradient of
// zero; FindBadLabel finds it beforehand. A row of which all are -infinity, or one is infinity or
// NaN, has a loss of NaN.
#ifndef BLOCKSPARSE_KERNELS_CROSS_ENTROPY_H_
#define BLOCKSPARSE_KERNELS_CROSS_ENTROPY_H_

#include "src/kernels/common/dtype.h"
#include "src/kernels/common/indices.h"
#include "src/kernels/common/parallel_for.h"
#include "src/kernels/common/status.h"
#include "src/kernels/matmul.h"

namespace blocksparse {

struct CrossEntropyInputs {
  DType dtype;
  IndexType label_type;
  int64_t rows;
  int64_t classes;
  const void* x;
  const void* labels;
};

struct CrossEntropyArgs {
  CrossEntropyInputs in;
  float* loss;
  float* row_max;
  float* log_sum;
};

struct CrossEntropyGradArgs {
  CrossEntropyInputs in;
  const float* dloss;
  const float* row_max;
  const float* log_sum;
  void* dx;
};

BLOCKSPARSE_HOST_DEVICE inline int64_t LabelOf(const CrossEntropyInputs& in, int64_t row) {
  return IndexAt(in.labels, in.label_type, row);
}

// The first row whose label is outside [0, classes), or -1. Labels in host memory.
int64_t FindBadLabel(const CrossEntropyInputs& in);

Status CrossEntropyCpu(const CrossEntropyArgs& args, const ParallelFor& parallel_for);
Status CrossEntropyGradCpu(const CrossEntropyGradArgs& args, const ParallelFor& parallel_for);
Status CrossEntropyGpu(const CrossEntropyArgs& args, Stream stream);
Status CrossEntropyGradGpu(const CrossEntropyGradArgs& args, Stream stream);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_CROSS_ENTROPY_H_
