// The streaming products in Fp32Math.
#include "src/kernels/matmul_stream.cuh"

namespace blocksparse {

template Status MatmulStreamFor<Fp32Math>(const MatmulArgs& args, Stream stream);

}  // namespace blocksparse
