// Clusters of thread blocks, which read each other's shared memory (sm_90 and newer).
#ifndef BLOCKSPARSE_KERNELS_COMMON_CUDA_CLUSTER_H_
#define BLOCKSPARSE_KERNELS_COMMON_CUDA_CLUSTER_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "src/kernels/common/cuda_launch.h"

namespace blocksparse {

constexpr int kMaxClusterSize = 8;  // that every such device can run

struct ClusterLaunch {
  int num_clusters;
  int cluster_size;
  int num_threads;
  int smem_bytes;

  // The configuration without a stream; it refers to *attribute.
  cudaLaunchConfig_t Config(cudaLaunchAttribute* attribute) const {
    *attribute = {};
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = cluster_size;
    attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(num_clusters) * cluster_size);
    config.blockDim = dim3(num_threads);
    config.dynamicSmemBytes = smem_bytes;
    config.attrs = attribute;
    config.numAttrs = 1;
    return config;
  }
};

template <class Params>
Status RaiseSmemLimit(const char* name, void (*kernel)(Params), int smem_bytes) {
  return CudaStatus(
      name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes));
}

template <class Params>
Status LaunchClusters(const char* name, void (*kernel)(Params), const ClusterLaunch& launch,
                      cudaStream_t stream, const Params& params) {
  BLOCKSPARSE_RETURN_IF_ERROR(RaiseSmemLimit(name, kernel, launch.smem_bytes));
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config = launch.Config(&attribute);
  config.stream = stream;
  return CudaStatus(name, cudaLaunchKernelEx(&config, kernel, params));
}

// Clusters that the current device runs at a time.
template <class Params>
Status CountActiveClusters(const char* name, void (*kernel)(Params), const ClusterLaunch& launch,
                           int* count) {
  BLOCKSPARSE_RETURN_IF_ERROR(RaiseSmemLimit(name, kernel, launch.smem_bytes));
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = launch.Config(&attribute);
  return CudaStatus(name, cudaOccupancyMaxActiveClusters(count, kernel, &config));
}

#ifdef __CUDACC__
// Every thread that has not ended, of all thread blocks of the cluster.
__device__ __forceinline__ void SyncCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
#endif
}
// Four floats from the shared memory of thread block `rank` of the cluster, where they lie at
// `shared` as here.
__device__ __forceinline__ float4 LoadClusterFour(uint32_t shared, int rank) {
  float4 values = make_float4(0.f, 0.f, 0.f, 0.f);
#if __CUDA_ARCH__ >= 900
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(values.x), "=f"(values.y), "=f"(values.z), "=f"(values.w)
               : "r"(address)
               : "memory");
#endif
  return values;
}
#endif  // __CUDACC__

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_CUDA_CLUSTER_H_
