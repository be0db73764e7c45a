// The streaming products in Fp16Math.
#include "src/kernels/matmul_stream.cuh"

namespace blocksparse {

template Status MatmulStreamFor<Fp16Math>(const MatmulArgs& args, Stream stream);

}  // namespace blocksparse
