// Runs torch-free CUDA kernels on the CPU, for tests only. docs/cuda-emulation.md says what it finds and what it cannot see.
//
//   g++ -std=c++20 -x c++ -I tests/cuda_emu kernel.cu          # this file stands in for the toolkit's <cuda_runtime.h>
//
// A kernel is started with cudaLaunchKernelEx (plain C++; `<<<>>>` does not parse here). Each thread of a block is a fiber
// that runs until it waits; then its warp goes on as far as it can, then its block, then its cluster. So a launch is
// deterministic for a given `cuda_emu::order`, and a data race shows as a result that depends on it. Reported as
// cudaErrorLaunchFailure, with a message on stderr and in cudaGetErrorString: a barrier that not all threads reach, or reach
// in different source lines; a warp operation whose mask disagrees; an array of dynamic shared memory written out of bounds
// (with -fsanitize=address: read, too). Shared memory starts as NaN. A launch beyond the limits of the hardware fails as it
// would there.
//
// Not modelled: memory ordering, preemption between two waits, streams, speed. `__shared__` is `static`, so neither poisoned
// nor one per block of a cluster: use SharedArena (dynamic shared memory). One launch at a time per process. x86-64 only.
#pragma once
#include <math.h>

#include <bit>
#include <map>
#include <type_traits>
#include <utility>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// Written between the type and the name of a parameter, it makes the parameter a reference: one object for the whole grid, as
// on the device, instead of a copy for each thread.
#define __grid_constant__ &

// ---- vector types
// ------------------------------------------------------------------------------------------------------------- With their
// alignment, so that -fsanitize=alignment finds the accesses that a GPU would refuse.
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

// ---- runtime API
// --------------------------------------------------------------------------------------------------------------
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorInvalidClusterSize = 912
};
using cudaStream_t = struct CUstream_st*;
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrClusterLaunch = 120
};
struct cudaFuncAttributes {
  int ptxVersion;
};
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttributeValue {
  int cooperative;
  dim3 clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace cuda_emu {

// What the hardware allows since sm_70, of shared memory on sm_90.
inline constexpr uint64_t kMaxThreads = 1024;
inline constexpr unsigned kMaxBlockZ = 64, kMaxGridX = INT32_MAX, kMaxGridYZ = 65535;
inline constexpr unsigned kMaxCluster = 8, kMaxNonPortableCluster = 16;
inline constexpr size_t kDefaultShared = 48 << 10, kMaxShared = 227 << 10;
inline constexpr size_t kMaxArgumentBytes = 32764;
// Of an H100.
inline constexpr int kMultiprocessors = 132;
inline constexpr uint64_t kMaxResidentThreads = 2048, kMaxResidentBlocks = 32;
inline constexpr size_t kReservedShared = 1 << 10;  // of each block

template <class... P>
constexpr size_t argument_bytes() {
  size_t bytes = 0;
  [[maybe_unused]] const auto add = [&bytes](size_t size, size_t alignment) {
    bytes = (bytes + alignment - 1) / alignment * alignment + size;
  };
  (add(sizeof(P), alignof(P)), ...);
  return bytes;
}

struct Permissions {  // of a kernel, given with cudaFuncSetAttribute
  size_t shared = kDefaultShared;
  unsigned cluster = kMaxCluster;
};
inline std::map<const void*, Permissions> permissions;
inline cudaError_t last_error = cudaSuccess;

template <class... P>
Permissions& permissions_of(void (*kernel)(P...)) {
  return permissions[reinterpret_cast<const void*>(kernel)];
}

inline dim3 cluster_of(const cudaLaunchConfig_t& c) {
  dim3 cluster;
  for (unsigned i = 0; i < c.numAttrs; ++i) {
    if (c.attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = c.attrs[i].val.clusterDim;
  }
  return cluster;
}
inline bool is_cooperative(const cudaLaunchConfig_t& c) {
  return std::any_of(c.attrs, c.attrs + c.numAttrs, [](const cudaLaunchAttribute& a) {
    return a.id == cudaLaunchAttributeCooperative && a.val.cooperative != 0;
  });
}
inline cudaError_t check_launch(const cudaLaunchConfig_t& c, const Permissions& allowed, dim3 cluster) {
  const dim3 g = c.gridDim, b = c.blockDim;
  if (cluster.count() > c.gridDim.count() || g.count() == 0 || g.x > kMaxGridX || g.y > kMaxGridYZ || g.z > kMaxGridYZ ||
      b.count() == 0 || b.count() > kMaxThreads || b.z > kMaxBlockZ || g.x % cluster.x || g.y % cluster.y || g.z % cluster.z) {
    return cudaErrorInvalidConfiguration;
  }
  return c.dynamicSmemBytes > allowed.shared ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace cuda_emu

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  cuda_emu::Permissions& allowed = cuda_emu::permissions_of(kernel);
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    allowed.cluster = value != 0 ? cuda_emu::kMaxNonPortableCluster : cuda_emu::kMaxCluster;
    return cudaSuccess;
  }
  if (value < 0 || size_t(value) > cuda_emu::kMaxShared) return cuda_emu::last_error = cudaErrorInvalidValue;
  allowed.shared = std::max(cuda_emu::kDefaultShared, size_t(value));
  return cudaSuccess;
}

template <class... P>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*kernel)(P...), const cudaLaunchConfig_t* config) {
  const dim3 cluster = cuda_emu::cluster_of(*config);
  if (cluster.count() > cuda_emu::permissions_of(kernel).cluster) return cuda_emu::last_error = cudaErrorInvalidClusterSize;
  const cudaError_t refused = cuda_emu::check_launch(*config, cuda_emu::permissions_of(kernel), cluster);
  if (refused != cudaSuccess) return cuda_emu::last_error = refused;
  // As many blocks to a multiprocessor as its threads and its shared memory allow, whatever their registers.
  const uint64_t by_threads = cuda_emu::kMaxResidentThreads / config->blockDim.count();
  const uint64_t by_shared =
      (cuda_emu::kMaxShared + cuda_emu::kReservedShared) / (config->dynamicSmemBytes + cuda_emu::kReservedShared);
  const uint64_t resident = std::min({by_threads, by_shared, cuda_emu::kMaxResidentBlocks});
  *clusters = static_cast<int>(cuda_emu::kMultiprocessors * resident / cluster.count());
  return cudaSuccess;
}
template <class... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(P...)) {
  attributes->ptxVersion = 90;
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... args) {
  static_assert(cuda_emu::argument_bytes<std::remove_reference_t<P>...>() <= cuda_emu::kMaxArgumentBytes,
                "kernel arguments have 32764 bytes");
  const cuda_emu::Permissions& allowed = cuda_emu::permissions_of(kernel);
  dim3 cluster = cuda_emu::cluster_of(*config);
  if (cluster.count() == 0 || cluster.count() > allowed.cluster) return cuda_emu::last_error = cudaErrorInvalidClusterSize;
  // All blocks at once, so that they can wait for each other.
  if (cuda_emu::is_cooperative(*config)) cluster = config->gridDim;
  const cudaError_t refused = cuda_emu::check_launch(*config, allowed, cluster);
  if (refused != cudaSuccess) return cuda_emu::last_error = refused;
  const auto run = [&](P... arguments) {
    return cuda_emu::machine.run_grid(config->gridDim, config->blockDim, cluster, config->dynamicSmemBytes,
                                      [&] { kernel(arguments...); });
  };
  return cuda_emu::last_error = run(std::forward<A>(args)...) ? cudaSuccess : cudaErrorLaunchFailure;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = cuda_emu::kMultiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(cuda_emu::kMaxShared);
      break;
    case cudaDevAttrClusterLaunch:
      *value = 1;
      break;
  }
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_emu::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidClusterSize:
      return "invalid cluster size";
    case cudaErrorLaunchFailure:
      return cuda_emu::message.c_str();
  }
  return "unrecognized error code";
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}

// ---- device functions
// ---------------------------------------------------------------------------------------------------------
#define CUDA_EMU_SITE cuda_emu::Site at = cuda_emu::Site::current()

namespace cuda_emu {

inline uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, unsigned source_lane, Site site) {
  Fiber& f = *machine.self;
  if (!(mask >> f.lane & 1)) machine.fail("the mask of a warp operation leaves out the caller", site);
  f.op = op, f.mask = mask, f.value = value, f.source_lane = source_lane;
  machine.wait(Wait::warp, site);
  return f.result;
}

template <class T>
uint64_t bits_of(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T shuffle(unsigned mask, T value, int source_lane, Site site) {
  const uint64_t bits = warp_operation(WarpOp::shuffle, mask, bits_of(value), static_cast<unsigned>(source_lane), site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int lane() { return static_cast<int>(machine.self->lane); }
inline int segment(int width) { return lane() & ~(width - 1); }  // first lane of those that exchange values

}  // namespace cuda_emu

inline void __syncthreads(CUDA_EMU_SITE) { cuda_emu::machine.wait(cuda_emu::Wait::block, at); }
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMU_SITE) {
  cuda_emu::warp_operation(cuda_emu::WarpOp::sync, mask, 0, 0, at);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMU_SITE) {
  return static_cast<unsigned>(cuda_emu::warp_operation(cuda_emu::WarpOp::ballot, mask, predicate != 0, 0, at));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMU_SITE) { return __ballot_sync(mask, predicate, at) != 0; }
inline int __all_sync(unsigned mask, int predicate, CUDA_EMU_SITE) { return __ballot_sync(mask, !predicate, at) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_EMU_SITE) {
  return static_cast<unsigned>(cuda_emu::warp_operation(cuda_emu::WarpOp::match, mask, cuda_emu::bits_of(value), 0, at));
}
template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, CUDA_EMU_SITE) {
  return cuda_emu::shuffle(mask, v, cuda_emu::segment(width) | (source & (width - 1)), at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, CUDA_EMU_SITE) {
  const int source = cuda_emu::lane() ^ bits;
  return cuda_emu::shuffle(mask, v, source < cuda_emu::segment(width) + width ? source : cuda_emu::lane(), at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, CUDA_EMU_SITE) {
  const int source = cuda_emu::lane() + static_cast<int>(delta);
  return cuda_emu::shuffle(mask, v, source < cuda_emu::segment(width) + width ? source : cuda_emu::lane(), at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, CUDA_EMU_SITE) {
  const int source = cuda_emu::lane() - static_cast<int>(delta);
  return cuda_emu::shuffle(mask, v, source >= cuda_emu::segment(width) ? source : cuda_emu::lane(), at);
}
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return std::exchange(*p, T(*p + v));
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return std::exchange(*p, std::max(*p, v));
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return *p == expected ? std::exchange(*p, v) : *p;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline void __trap(CUDA_EMU_SITE) { cuda_emu::machine.fail("a trap", at); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
