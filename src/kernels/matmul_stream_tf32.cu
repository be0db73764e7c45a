// The streaming products in Tf32Math.
#include "src/kernels/matmul_stream.cuh"

namespace blocksparse {

template Status MatmulStreamFor<Tf32Math>(const MatmulArgs& args, Stream stream);

}  // namespace blocksparse
