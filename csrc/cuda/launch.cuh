// Kernel launch without <<<>>>, so that a .cu file is plain C++ to a host compiler.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "device.cuh"

namespace routing_ext::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kClusterArch = 900;  // __CUDA_ARCH__ from which on there are clusters

struct LaunchGrid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks along x that are one
};

// What the CUDA runtime is told of a launch. It refers to itself, so it stays where it is.
class LaunchConfig {
 public:
  cudaLaunchConfig_t config{};

  LaunchConfig(const LaunchGrid& grid, cudaStream_t stream) {
    config.gridDim = grid.blocks;
    config.blockDim = grid.threads;
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = stream;
    if (grid.cluster == 1) return;
    cluster_.id = cudaLaunchAttributeClusterDimension;
    cluster_.val.clusterDim.x = grid.cluster, cluster_.val.clusterDim.y = cluster_.val.clusterDim.z = 1;
    config.attrs = &cluster_;
    config.numAttrs = 1;
  }
  LaunchConfig(const LaunchConfig&) = delete;

 private:
  cudaLaunchAttribute cluster_{};
};

// What a kernel is allowed is one for all threads of the host: so it is always the most.
template <class... Params>
cudaError_t allow_shared_bytes(void (*kernel)(Params...), size_t bytes) {
  if (bytes <= kDefaultSharedBytes) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_limit()));
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchGrid& grid, cudaStream_t stream, Args&&... args) {
  const cudaError_t e = allow_shared_bytes(kernel, grid.shared_bytes);
  if (e != cudaSuccess) return e;
  const LaunchConfig launch(grid, stream);
  return cudaLaunchKernelEx(&launch.config, kernel, std::forward<Args>(args)...);
}
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t stream,
                   Args&&... args) {
  return launch(kernel, LaunchGrid{blocks, threads, shared_bytes}, stream, std::forward<Args>(args)...);
}

// How many clusters of this launch the current device runs at the same time; 0 where it knows none, or where all there is of
// the kernel was compiled for devices that know none.
template <class... Params>
int64_t clusters_at_once(void (*kernel)(Params...), const LaunchGrid& grid) {
  cudaFuncAttributes compiled{};
  if (device_attribute(cudaDevAttrClusterLaunch) == 0 || cudaFuncGetAttributes(&compiled, kernel) != cudaSuccess ||
      compiled.ptxVersion < kClusterArch / 10) {
    return 0;
  }
  const LaunchConfig launch(grid, nullptr);
  int clusters = 0;
  if (allow_shared_bytes(kernel, grid.shared_bytes) != cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) != cudaSuccess) {
    cudaGetLastError();  // which is this one
    return 0;
  }
  return clusters;
}

}  // namespace routing_ext::cuda
