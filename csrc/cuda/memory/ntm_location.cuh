// The operator ntm_location and its backward pass. One block of threads takes one sample; location.cuh has the phases.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

#include "operator_tensors.cuh"

namespace routing_ext::cuda {

// T: float or double. Of the shape batch, locations, heads and shifts. Device memory that the launch needs, often 0.
template <class T>
size_t ntm_location_scratch_bytes(const MemoryOpShape& shape, bool backward);

template <class T>
cudaError_t launch_ntm_location(const MemoryOpShape& shape, bool backward, const MemoryOpTensors<T>& tensors, void* scratch,
                                cudaStream_t stream);

}  // namespace routing_ext::cuda
