// What is made of W for the wide float32 kernel before each product: a copy in the order of its
// table, transposed, scaled by the gates, and rounded or split; the workers' visits; and the table
// without the blocks whose gate is 0.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_PACK_H_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_PACK_H_

#include "src/kernels/matmul_wide_float.h"

namespace blocksparse {

// Offsets in the workspace.
struct WideFloatWorkspace {
  int64_t entries;  // after W
  int64_t visits;
  int64_t bytes;

  explicit WideFloatWorkspace(const WideParams& params) {
    // An entry's blocks are copied at once: the end of the last must exist, damaged or not.
    const auto num_blocks = static_cast<int64_t>(params.num_ids) + kWideFloatGroup;
    entries = num_blocks * kWideFloatBlockBytes;
    visits = entries + params.num_entries * static_cast<int64_t>(sizeof(WideEntry));
    bytes = visits +
            params.num_entries * kWideFloatWorkers * static_cast<int64_t>(sizeof(uint64_t));
  }
};

// Fills args.workspace and makes `params` read it.
Status PackWideFloat(const MatmulArgs& args, Stream stream, WideFloatParams* params);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_PACK_H_
