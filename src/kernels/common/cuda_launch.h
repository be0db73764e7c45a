// Launching a kernel and saying what went wrong.
#ifndef BLOCKSPARSE_KERNELS_COMMON_CUDA_LAUNCH_H_
#define BLOCKSPARSE_KERNELS_COMMON_CUDA_LAUNCH_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <string>

#include "src/kernels/common/arch.h"
#include "src/kernels/common/status.h"

namespace blocksparse {

inline std::string CudaVersionName(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// An error of the CUDA runtime as a sentence. The two that a user can do something about get their
// remedy.
inline Status CudaStatus(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return Status();
  std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    int runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    message +=
        ". This library needs an NVIDIA driver for CUDA " + CudaVersionName(runtime) +
        " or newer. Received: " +
        (driver == 0 ? std::string("no driver") : "a driver for CUDA " + CudaVersionName(driver)) +
        ". Update the driver, or build the library with an older CUDA toolkit";
  } else if (error == cudaErrorNoKernelImageForDevice) {
    message +=
        ". The library holds no code for this GPU; build it with CUDA_ARCHS set to the GPU's "
        "architecture";
  }
  return Status(Code::kDevice, message);
}

// Launches `kernel` on a one-dimensional grid, raising its shared memory limit where needed.
template <class Params>
Status Launch(const char* name, void (*kernel)(Params), int64_t num_blocks, int num_threads,
              int smem_bytes, cudaStream_t stream, const Params& params) {
  if (num_blocks == 0) return Status();
  if (num_blocks > std::numeric_limits<int32_t>::max())
    return Unsupported(std::string(name) +
                       ": at most 2^31 - 1 thread blocks. Received: " + std::to_string(num_blocks));
  if (smem_bytes > kDefaultSmemBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes);
    if (error != cudaSuccess) return CudaStatus(name, error);
  }
  kernel<<<static_cast<unsigned>(num_blocks), num_threads, smem_bytes, stream>>>(params);
  return CudaStatus(name, cudaGetLastError());
}

// Multiprocessors of the current device.
inline Status CountSms(int* num_sms) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(num_sms, cudaDevAttrMultiProcessorCount, device);
  return CudaStatus("CountSms", error);
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_CUDA_LAUNCH_H_
