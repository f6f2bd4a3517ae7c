// Operators that take one block for each sample: a kernel for all of them.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "group.cuh"
#include "operator_tensors.cuh"
#include "workspace.cuh"

namespace routing_ext::cuda {

// What a kernel sees of one sample.
template <class T>
struct MemoryOpSample {
  int locations, word, heads, writes, reads, shifts;
  T temperature;
  const MemoryOpTensors<T>& tensors;
  int64_t sample;

  __device__ MemoryOpSample(const MemoryOpShape& s, const MemoryOpTensors<T>& tensors_)
      : locations(static_cast<int>(s.locations)),
        word(static_cast<int>(s.word)),
        heads(static_cast<int>(s.heads)),
        writes(static_cast<int>(s.writes)),
        reads(static_cast<int>(s.reads)),
        shifts(static_cast<int>(s.shifts)),
        temperature(static_cast<T>(s.temperature)),
        tensors(tensors_),
        sample(blockIdx.x) {}
  __device__ const T* in(int i) const { return tensors.in[i] ? tensors.in[i] + sample * tensors.in_stride[i] : nullptr; }
  __device__ T* out(int i) const { return tensors.out[i] + sample * tensors.out_stride[i]; }
};

// Op: Op::Arrays(workspace, shape), and Op::run(group, sample, arrays).
template <class Op, class T, bool in_shared>
__global__ void __launch_bounds__(kMaxGroup, 1)
    memory_op_kernel(const MemoryOpShape __grid_constant__ shape, const MemoryOpTensors<T> __grid_constant__ tensors,
                     T* scratch, int64_t scratch_elements) {
  Workspace<T, in_shared> workspace(scratch + blockIdx.x * scratch_elements);
  const typename Op::Arrays arrays(workspace, shape);
  Op::run(BlockGroup(), MemoryOpSample<T>(shape, tensors), arrays);
}

template <class Op, class T>
size_t memory_op_scratch(const MemoryOpShape& shape) {
  return sample_launch<typename Op::Arrays, T>(shape).template scratch_bytes<T>(shape.batch);
}

template <class Op, class T>
cudaError_t launch_memory_op(const MemoryOpShape& shape, const MemoryOpTensors<T>& tensors, void* scratch,
                             cudaStream_t stream) {
  if (shape.batch == 0) return cudaSuccess;
  const int64_t most = larger(larger(shape.heads, shape.writes), larger(shape.reads, 1));
  if (!countable(most * larger(shape.locations, shape.word)) || !countable(shape.batch)) return cudaErrorInvalidValue;
  const SampleLaunch how = sample_launch<typename Op::Arrays, T>(shape);
  const auto kernel = how.in_shared ? memory_op_kernel<Op, T, true> : memory_op_kernel<Op, T, false>;
  const dim3 blocks(static_cast<unsigned>(shape.batch)), threads(group_threads(larger(shape.locations, shape.word)));
  return launch(kernel, blocks, threads, how.shared_bytes, stream, shape, tensors, static_cast<T*>(scratch),
                how.scratch_elements);
}

}  // namespace routing_ext::cuda
