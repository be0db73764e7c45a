// The streaming products in Bf16Math.
#include "src/kernels/matmul_stream.cuh"

namespace blocksparse {

template Status MatmulStreamFor<Bf16Math>(const MatmulArgs& args, Stream stream);

}  // namespace blocksparse
