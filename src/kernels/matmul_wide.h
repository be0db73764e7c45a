// The products of fp16 and bf16 with blocks of 32, 64 and 128 on sm_90: x W and dy W^T for long
// minibatches.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_H_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_H_

#include <cuda.h>

#include "src/kernels/matmul.h"
#include "src/kernels/matmul_wide_policy.h"

namespace blocksparse {

// One launch. The table's parts are those of matmul_wide_policy.h.
struct WideParams {
  CUtensorMap x;       // boxes of one slice
  CUtensorMap x_pair;  // of two
  CUtensorMap w;
  CUtensorMap y;
  const int64_t* ptr;
  const int64_t* columns;
  const WideEntry* entries;
  const uint64_t* ids;
  const void* packed;  // W in the order of ids, or null; B = 32
  int64_t num_entries;
  uint64_t num_ids;     // and of blocks of 32 or 64 in W
  int64_t num_outputs;  // block columns of the result, of 32 or 64
  int64_t batch;
  int last_half;  // 1 if W's rows are two blocks of 64 long, else 0
  int num_workers;
  int num_granules;  // of a group, the mean; 0 if it is not known
  bool is_packed;    // W, or its product with a gate
  int num_groups;
  // Thread block b computes groups b % group_lanes, then every group_lanes-th after it, for the
  // samples of strip b / group_lanes, tile_rows at a time; one copy brings panel_rows of them.
  int group_lanes;
  int strip_rows;
  int tile_rows;
  int panel_rows;
};

// Whether the wide kernel is there for these arguments, and the minibatch long enough for it: sm_90
// (Hopper) and no other; fp16 or bf16; B = 32, 64 or 128; x, w and y aligned to 16 bytes, and rows
// of x and y too (feature_axis 0: N a multiple of 8); the layout has the table; and by the size of
// its groups streaming W and x (matmul_stream.h) would take longer.
bool WideServes(const MatmulArgs& args);
// W in the order of the table for B = 32, where it is read often, and what gates make of W and the
// table.
Status WideWorkspaceBytes(const MatmulArgs& args, int64_t* bytes);
Status MatmulWide(const MatmulArgs& args, Stream stream);

constexpr int64_t kMinWideBatch = 129;
// Up to this minibatch, and where a thread block has one tile, W stays as it is.
constexpr int64_t kMaxUnpackedBatch = 512;
// Where the size of groups is not known: samples of a multiprocessor, if each computes one group.
constexpr int64_t MinWideRows(int block_size) { return block_size == 32 ? 47 : 23; }

// Divides the result over the thread blocks: waves of groups, and strips of the minibatch that all
// groups walk at the same time, so that x comes from device memory about once. Reads num_groups and
// batch. sample_bytes: of x.
void ChooseWideGrid(int feature_axis, int num_sms, int64_t sample_bytes, WideParams* params,
                    int64_t* num_thread_blocks);

// The kernel's instances, one .cu file for each type and block size.
template <typename T, int kBlockSize>
struct WideKernels {
  static bool AreCompiled();
  static Status Run(const MatmulArgs& args, int64_t num_thread_blocks, const WideParams& params,
                    Stream stream);
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_H_
