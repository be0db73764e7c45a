// fprop and dx of small minibatches, where reading W is what takes the time: a recurrent step.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_STREAM_H_
#define BLOCKSPARSE_KERNELS_MATMUL_STREAM_H_

#include "src/kernels/matmul.h"

namespace blocksparse {

// Above this minibatch other kernels, which read W less often, are faster; of 16-bit types on an
// H200 only the wide and the packed kernels are, which are asked first and compare times.
constexpr int64_t kMaxStreamBatch = 128;
constexpr int64_t kMaxStreamBatchHopper16Bit = 1024;

// Microseconds on an H200 with 16-bit types, fitted to minibatches of 256 and 512.
double StreamUs(const MatmulArgs& args);

// Whether MatmulStreamFor can do it: a small minibatch whose rows start on 16 bytes.
bool StreamServes(const MatmulArgs& args);

// A copy of x in which samples are contiguous, where many small blocks would otherwise read 16 or
// 32 bytes of each sample; else 0.
int64_t StreamWorkspaceBytes(const MatmulArgs& args);
// Makes it: x[N, features] -> args.workspace[features, StreamPitch(N)], zeros behind N.
Status TransposeForStream(const MatmulArgs& args, Stream stream);
constexpr int64_t StreamPitch(int64_t batch) { return (batch + 63) / 64 * 64; }

// One arithmetic, instantiated in matmul_stream_<arithmetic>.cu.
template <class Math>
Status MatmulStreamFor(const MatmulArgs& args, Stream stream);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_STREAM_H_
