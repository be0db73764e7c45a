// The host's side of hopper.cuh: whether its kernels can run, and tensor maps, which tell the copy
// engine of a matrix in global memory.
#ifndef BLOCKSPARSE_KERNELS_COMMON_TENSOR_MAP_H_
#define BLOCKSPARSE_KERNELS_COMMON_TENSOR_MAP_H_

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dtype.h"
#include "src/kernels/common/status.h"

namespace blocksparse {

// Whether the current device is Hopper itself: sm_90a code runs on nothing newer.
inline bool IsHopper() {
  int device = 0;
  int major = 0;
  int minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
}

// Whether the library holds sm_90a code of a kernel. In a build without, PTX of its empty body
// would run; that needs next to no registers.
template <class Params>
bool HasHopperCode(void (*kernel)(Params)) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.numRegs >= 64;
}

// A row-major matrix of 16- or 32-bit elements and the box that one copy moves.
struct TensorBox {
  DType dtype;
  const void* data;   // aligned to 16 bytes
  int64_t inner;      // elements of a row, which must be a multiple of 16 bytes
  int64_t outer;      // rows
  int box_inner;      // at most as many bytes as the swizzle is wide
  int box_outer;      // at most 256
  int swizzle_bytes;  // 0, 32, 64 or 128
};

// The driver's encoder, found at run time: the library does not link against the driver. Null where
// there is none.
inline auto TensorMapEncoder() {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    const bool is_found = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return is_found ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  return encode;
}

// Encodes `rank` dimensions, the innermost first; `strides` are the bytes of all but that one.
inline Status EncodeTensorMap(const TensorBox& box, int rank, const cuuint64_t* sizes,
                              const cuuint64_t* strides, const cuuint32_t* box_sizes,
                              CUtensorMap* map) {
  const auto encode = TensorMapEncoder();
  if (encode == nullptr)
    return Status(Code::kDevice, "EncodeTensorMap: the driver has no cuTensorMapEncodeTiled");
  const CUtensorMapDataType type = box.dtype == DType::kFloat32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                   : box.dtype == DType::kFloat16
                                       ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUtensorMapSwizzle swizzle = box.swizzle_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : box.swizzle_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : box.swizzle_bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                               : CU_TENSOR_MAP_SWIZZLE_NONE;
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result =
      encode(map, type, rank, const_cast<void*>(box.data), sizes, strides, box_sizes, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return Status();
  return Status(Code::kDevice, "EncodeTensorMap: the driver refused a matrix of " +
                                   std::to_string(box.outer) + " x " + std::to_string(box.inner) +
                                   " (error " + std::to_string(result) + ")");
}

inline int64_t RowBytes(const TensorBox& box) { return box.inner * SizeOf(box.dtype); }

inline Status EncodeTensorMap(const TensorBox& box, CUtensorMap* map) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(box.inner),
                               static_cast<cuuint64_t>(box.outer)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(RowBytes(box))};
  const cuuint32_t box_sizes[2] = {static_cast<cuuint32_t>(box.box_inner),
                                   static_cast<cuuint32_t>(box.box_outer)};
  return EncodeTensorMap(box, 2, sizes, strides, box_sizes, map);
}

// The matrix as [inner / box_inner][outer][box_inner], of which a box holds `num_slabs` times
// box_outer rows: several boxes side by side in one copy. An incomplete last slab is left out.
inline Status EncodeSlabTensorMap(const TensorBox& box, int num_slabs, CUtensorMap* map) {
  const int64_t slab_bytes = int64_t{box.box_inner} * SizeOf(box.dtype);
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(box.box_inner),
                               static_cast<cuuint64_t>(box.outer),
                               static_cast<cuuint64_t>(box.inner / box.box_inner)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(RowBytes(box)),
                                 static_cast<cuuint64_t>(slab_bytes)};
  const cuuint32_t box_sizes[3] = {static_cast<cuuint32_t>(box.box_inner),
                                   static_cast<cuuint32_t>(box.box_outer),
                                   static_cast<cuuint32_t>(num_slabs)};
  return EncodeTensorMap(box, 3, sizes, strides, box_sizes, map);
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_TENSOR_MAP_H_
