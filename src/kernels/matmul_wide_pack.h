// What is made of W for the wide kernel before each product: a copy in the order of its table for
// B = 32, and with gates their product with W and a table without the blocks whose gate is 0.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_PACK_H_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_PACK_H_

#include "src/kernels/matmul_wide.h"

namespace blocksparse {

// Offsets in the workspace.
struct WideWorkspace {
  int64_t entries = 0;  // after W
  int64_t ids = 0;
  int64_t bytes = 0;

  WideWorkspace(const MatmulArgs& args, const WideParams& params) {
    const int64_t block_size = args.layout.block_size;
    if (!params.is_packed) return;
    // An entry's blocks are copied at once: the end of the last must exist, damaged or not.
    const int64_t num_blocks = args.layout.num_blocks + (block_size == 32 ? 24 : 0);
    bytes = num_blocks * block_size * block_size * 2;
    if (args.gate == nullptr) return;
    entries = bytes;
    ids = entries + params.num_entries * static_cast<int64_t>(sizeof(WideEntry));
    bytes = ids + static_cast<int64_t>(params.num_ids * sizeof(uint64_t));
  }
};

// Fills args.workspace and makes `params` read it; *w is then W in storage order.
Status PackWide(const MatmulArgs& args, Stream stream, WideParams* params, const void** w);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_PACK_H_
