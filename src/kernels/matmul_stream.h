// fprop and dx of small minibatches, where reading W is what takes the time: a recurrent step.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_STREAM_H_
#define BLOCKSPARSE_KERNELS_MATMUL_STREAM_H_

#include "src/kernels/matmul.h"

namespace blocksparse {

// Above this minibatch other kernels, which read W less often, are faster.
constexpr int64_t kMaxStreamBatch = 128;

// Whether MatmulStreamFor can do it: a small minibatch whose rows start on 16 bytes.
bool StreamServes(const MatmulArgs& args);

// One arithmetic, instantiated in matmul_stream_<arithmetic>.cu.
template <class Math>
Status MatmulStreamFor(const MatmulArgs& args, Stream stream);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_STREAM_H_
