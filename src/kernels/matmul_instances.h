// The matrix-product kernels of one arithmetic, for every block size. Declared here, defined in
// matmul_instances.cuh and instantiated in one matmul_<arithmetic>.cu each, so that they compile
// side by side.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_INSTANCES_H_
#define BLOCKSPARSE_KERNELS_MATMUL_INSTANCES_H_

#include "src/kernels/matmul.h"

namespace blocksparse {

// How dw's batch is divided over thread blocks: a function of the sizes and the device alone, so
// that results repeat.
struct DwSplit {
  int num_splits;
  int64_t chunks_per_split;
};

// The arithmetics, defined in common/mma.cuh.
struct Fp16Math;
struct Bf16Math;
struct Tf32Math;
struct Fp32Math;

template <class Math_>
struct MatmulKernels {
  using Math = Math_;
  static Status Fprop(const MatmulArgs& args, Stream stream);
  static Status ChooseSplit(const MatmulDwArgs& args, int num_sms, DwSplit* split);
  static Status Dw(const MatmulDwArgs& args, const DwSplit& split, Stream stream);
};

// args.dw = the sum of num_splits float32 copies of it in args.workspace, in their order.
Status SumDwSplits(const MatmulDwArgs& args, int num_splits, Stream stream);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_INSTANCES_H_
