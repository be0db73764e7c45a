// What is made of W for the wide float32 kernel before each product: a copy in the order of its
// table, the inner feature contiguous, scaled by the gates, and rounded or split; and the table
// without the blocks whose gate is 0.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_PACK_H_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_PACK_H_

#include "src/kernels/matmul_wide_float.h"

namespace blocksparse {

// Offsets in the workspace.
struct WideFloatWorkspace {
  int64_t entries;  // after W
  int64_t exponents;
  int64_t bytes;

  explicit WideFloatWorkspace(const WideParams& params) {
    // An entry's blocks are copied at once: the end of the last must exist, damaged or not.
    const auto num_blocks = static_cast<int64_t>(params.num_ids) + kWideFloatGroup;
    entries = num_blocks * kWideFloatBlockBytes;
    exponents = entries + params.num_entries * static_cast<int64_t>(sizeof(WideEntry));
    bytes = exponents + params.num_entries * kWideFloatExponents;
  }
};

// Fills args.workspace and makes `params` read it.
Status PackWideFloat(const MatmulArgs& args, Stream stream, WideFloatParams* params);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_PACK_H_
