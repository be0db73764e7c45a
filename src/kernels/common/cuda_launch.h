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

// An attribute of the current device.
inline Status FindAttribute(cudaDeviceAttr attribute, int* value) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  return CudaStatus("FindAttribute", error);
}

// Multiprocessors of the current device.
inline Status CountSms(int* num_sms) {
  return FindAttribute(cudaDevAttrMultiProcessorCount, num_sms);
}

// Dynamic shared memory that one block of the current device may ask for.
inline Status FindMaxSmem(int* num_bytes) {
  return FindAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, num_bytes);
}

// Launches `kernel` on a one-dimensional grid, raising its shared memory limit where needed.
// is_early: it may start while the kernel before it ends (LaunchEarly).
template <class Params>
Status Launch(const char* name, void (*kernel)(Params), int64_t num_blocks, int num_threads,
              int smem_bytes, cudaStream_t stream, const Params& params, bool is_early = false) {
  if (num_blocks == 0) return Status();
  if (num_blocks > std::numeric_limits<int32_t>::max())
    return Unsupported(std::string(name) +
                       ": at most 2^31 - 1 thread blocks. Received: " + std::to_string(num_blocks));
  if (smem_bytes > kDefaultSmemBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes);
    if (error != cudaSuccess) return CudaStatus(name, error);
  }
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(num_blocks));
  config.blockDim = dim3(num_threads);
  config.dynamicSmemBytes = smem_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = is_early ? 1 : 0;
  return CudaStatus(name, cudaLaunchKernelEx(&config, kernel, params));
}

// The same for a kernel that reads nothing but tables before it calls WaitForPreviousKernel(),
// which every thread must: on Hopper and later it starts while the kernel before it in the stream
// ends.
template <class Params>
Status LaunchEarly(const char* name, void (*kernel)(Params), int64_t num_blocks, int num_threads,
                   int smem_bytes, cudaStream_t stream, const Params& params) {
  int major = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(FindAttribute(cudaDevAttrComputeCapabilityMajor, &major));
  return Launch(name, kernel, num_blocks, num_threads, smem_bytes, stream, params, major >= 9);
}

#ifdef __CUDACC__
// Until the kernels before this one in the stream have ended, and what they wrote can be read.
__device__ __forceinline__ void WaitForPreviousKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel, if it was launched early, come as far as its own wait.
__device__ __forceinline__ void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif  // __CUDACC__

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_CUDA_LAUNCH_H_
