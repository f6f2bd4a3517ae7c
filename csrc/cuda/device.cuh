// What the current device has.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../common/host_device.h"

namespace routing_ext::cuda {

constexpr size_t kDefaultSharedBytes = 48 * 1024;  // a kernel may have more only when asked

// An attribute of the current device; 0 if nobody knows.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  const bool is_known =
      cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  return is_known ? value : 0;
}
// Shared memory that a block may have on the current device.
inline size_t shared_limit() { return larger(kDefaultSharedBytes, device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)); }
inline int64_t multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

}  // namespace routing_ext::cuda
