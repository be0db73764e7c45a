// Rows of a table chosen by indices, and the gradient of the table.
//
//   y[n, k]    = emb[idx[n], k]
//   demb[c, k] = sum of dy[n, k] over all n with idx[n] = c
//
// Buffers, row-major, of any alignment: emb T[rows, width], y and dy T[num_indices, width], idx of
// one of IndexType[num_indices], demb of its own type[rows, width], all of which is written. The
// lookup copies bits. Sums are in float32 and in a fixed order, without atomics: results repeat bit
// for bit. An index outside [0, rows) gives a row of zeros and adds to no gradient; FindBadIndex
// finds it beforehand.
#ifndef BLOCKSPARSE_KERNELS_EMBEDDING_H_
#define BLOCKSPARSE_KERNELS_EMBEDDING_H_

#include "src/kernels/common/dtype.h"
#include "src/kernels/common/indices.h"
#include "src/kernels/common/parallel_for.h"
#include "src/kernels/common/status.h"
#include "src/kernels/matmul.h"

namespace blocksparse {

struct EmbeddingInputs {
  DType dtype;
  IndexType index_type;
  int64_t rows;
  int64_t width;
  int64_t num_indices;
  const void* idx;
};

struct EmbeddingArgs {
  EmbeddingInputs in;
  const void* emb;
  void* y;
};

struct EmbeddingGradArgs {
  EmbeddingInputs in;
  DType demb_dtype;
  const void* dy;
  void* demb;
  void* workspace;  // GPU: EmbeddingGradWorkspaceBytes, 256-byte aligned; may be null if that is 0
};

BLOCKSPARSE_HOST_DEVICE inline int64_t IndexOf(const EmbeddingInputs& in, int64_t n) {
  return IndexAt(in.idx, in.index_type, n);
}
BLOCKSPARSE_HOST_DEVICE inline bool IsRow(const EmbeddingInputs& in, int64_t index) {
  return 0 <= index && index < in.rows;
}

// The first position whose index is outside [0, rows), or -1. Indices in host memory.
int64_t FindBadIndex(const EmbeddingInputs& in);

Status EmbeddingCpu(const EmbeddingArgs& args, const ParallelFor& parallel_for);
Status EmbeddingGradCpu(const EmbeddingGradArgs& args, const ParallelFor& parallel_for);
Status EmbeddingGpu(const EmbeddingArgs& args, Stream stream);
// At most 2^31 - 1 rows and indices. The workspace is the sorted indices and one sum for every 32
// rows of dy; everything but the workspace must be set when its size is asked for.
Status EmbeddingGradWorkspaceBytes(const EmbeddingGradArgs& args, int64_t* bytes);
Status EmbeddingGradGpu(const EmbeddingGradArgs& args, Stream stream);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_EMBEDDING_H_
