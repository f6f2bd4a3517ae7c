// Between the tensors of an operator and a kernel that takes one block for each sample.
#pragma once
#include <ATen/ops/empty.h>

#include <array>

#include "../../common/cuda_glue.h"
#include "../../common/memory_glue.h"
#include "../../common/memory_ops_args.h"
#include "operator_tensors.cuh"

namespace routing_ext::cuda {

// Of arguments any of which may be undefined, the first that is not.
inline const at::Tensor& first_defined(const std::vector<at::Tensor>& tensors) {
  size_t i = 0;
  while (!tensors[i].defined()) ++i;
  return tensors[i];
}

// Device memory for a launch.
inline at::Tensor scratch_of(size_t bytes, const at::TensorOptions& options) {
  return at::empty({static_cast<int64_t>(bytes)}, options.dtype(at::kByte));
}

// scratch_bytes(KernelType<T>(), shape) and launch(shape, tensors, scratch, stream) are those of the kernel.
template <size_t count, class ScratchBytes, class Launch>
std::array<at::Tensor, count> run_by_sample(const MemoryOpCall<count>& a, const ScratchBytes& scratch_bytes,
                                            const Launch& launch) {
  const LaunchScope scope(first_defined(a.tensors));
  const Dimensions& d = a.sizes;
  const int64_t batch = d['B'];
  std::array<at::Tensor, count> out;
  for (size_t i = 0; i < count; ++i) out[i] = at::empty(d.shape(a.results[i]), a.options);
  if (batch == 0) return out;
  const MemoryOpShape shape{batch, d['N'], d['W'], d['H'], d['V'], d['R'], d['S'], a.temperature.value_or(0)};
  with_state_type(a.dtype(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    MemoryOpTensors<T> tensors;
    for (size_t i = 0; i < a.tensors.size(); ++i) {
      if (!a.tensors[i].defined()) continue;
      tensors.in[i] = data_of<const T>(a.tensors[i]), tensors.in_stride[i] = a.tensors[i].numel() / batch;
    }
    for (size_t i = 0; i < count; ++i) {
      tensors.out[i] = data_of<T>(out[i]), tensors.out_stride[i] = out[i].numel() / batch;
    }
    const at::Tensor scratch = scratch_of(scratch_bytes(kernel_type, shape), a.options);
    check_launch(a.op, launch(shape, tensors, scratch.mutable_data_ptr(), scope.stream()));
  });
  return out;
}

}  // namespace routing_ext::cuda
