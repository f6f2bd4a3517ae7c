// The operators that memory networks are made of: content_weights, dnc_usage, dnc_allocation, dnc_temporal_link, memory_write,
// memory_read, and their backward passes. One block of threads takes one sample.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

#include "operator_tensors.cuh"

namespace routing_ext::cuda {

enum class MemoryOp {
  content_weights,
  content_weights_backward,
  dnc_usage,
  dnc_usage_backward,
  dnc_allocation,
  dnc_allocation_backward,
  dnc_temporal_link,
  dnc_temporal_link_backward,
  memory_write,
  memory_write_backward,
  memory_read,
  memory_read_backward,
};

// T: float or double. Device memory that the launch needs, often 0.
template <class T>
size_t memory_op_scratch_bytes(MemoryOp op, const MemoryOpShape& shape);

template <class T>
cudaError_t launch_memory_op(MemoryOp op, const MemoryOpShape& shape, const MemoryOpTensors<T>& tensors, void* scratch,
                             cudaStream_t stream);

}  // namespace routing_ext::cuda
