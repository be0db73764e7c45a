// A C interface to the kernels, for tests, benchmarks and other frameworks: plain structs and
// pointers, no TensorFlow.
//
// Python's mirror is blocksparse/testing/kernels.py. Every function returns 0, or a Code of
// common/status.h after which blocksparse_last_error() gives the sentence. Pointers belong to the
// device that `device` names; `plan` is always in host memory. Calls on a GPU are asynchronous on
// `stream` of the current device.
#ifndef BLOCKSPARSE_KERNELS_C_API_H_
#define BLOCKSPARSE_KERNELS_C_API_H_

#include <stdint.h>

#define BLOCKSPARSE_EXPORT __attribute__((visibility("default")))

extern "C" {

enum { kBlocksparseCpu = 0, kBlocksparseGpu = 1 };

// A layout's tables, as SparsityLayout makes them (common/lut.h).
struct BlocksparseTables {
  const int32_t* plan;
  int64_t plan_size;
  const int64_t* lut;
  int64_t lut_size;
};

// fprop or dx (matmul.h). dtype: 0 float32, 1 float16, 2 bfloat16.
struct BlocksparseMatmul {
  int32_t device;
  int32_t dtype;
  int32_t feature_axis;
  int32_t is_dx;
  int32_t allow_tf32;
  int64_t batch;
  BlocksparseTables tables;
  const void* x;
  const void* w;
  const float* gate;
  void* y;
  void* workspace;
  void* stream;
};

// dw over num_pairs products; x, dy and batch are host arrays of that length.
struct BlocksparseMatmulDw {
  int32_t device;
  int32_t dtype;
  int32_t dw_dtype;
  int32_t feature_axis;
  int32_t allow_tf32;
  int32_t num_pairs;
  BlocksparseTables tables;
  const void* const* x;
  const void* const* dy;
  const int64_t* batch;
  const float* gate;
  void* dw;
  void* workspace;
  void* stream;
};

// Bytes of workspace that blocksparse_matmul needs for this call, or -1 after an error.
BLOCKSPARSE_EXPORT int64_t blocksparse_matmul_workspace(const BlocksparseMatmul* call);
BLOCKSPARSE_EXPORT int blocksparse_matmul(const BlocksparseMatmul* call);
// Bytes of workspace that blocksparse_matmul_dw needs for this call, or -1 after an error.
BLOCKSPARSE_EXPORT int64_t blocksparse_matmul_dw_workspace(const BlocksparseMatmulDw* call);
BLOCKSPARSE_EXPORT int blocksparse_matmul_dw(const BlocksparseMatmulDw* call);
// 1 if kernels for this combination exist, else 0.
BLOCKSPARSE_EXPORT int blocksparse_matmul_is_supported(int32_t dtype, int32_t block_size,
                                                       int32_t feature_axis);
// 1 if the library holds GPU kernels, else 0.
BLOCKSPARSE_EXPORT int blocksparse_has_gpu(void);
// The level of the CPU kernels' instruction set (common/cpu_level.h), or null after an error.
BLOCKSPARSE_EXPORT const char* blocksparse_cpu_level(void);
// Changes it. Not while another thread calls.
BLOCKSPARSE_EXPORT int blocksparse_set_cpu_level(const char* name);
// CPU calls run on the calling thread, in this many parts, the last one first. 1 by default; any
// number gives the same results, like any number of threads.
BLOCKSPARSE_EXPORT void blocksparse_set_cpu_parts(int32_t num_parts);
// The sentence that belongs to this thread's last error; valid until the thread's next call.
BLOCKSPARSE_EXPORT const char* blocksparse_last_error(void);
}

#endif  // BLOCKSPARSE_KERNELS_C_API_H_
