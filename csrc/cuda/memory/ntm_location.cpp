#include "ntm_location.cuh"

#include <torch/library.h>

#include "operator_glue.h"

namespace routing_ext::cuda {
namespace {

template <bool backward, size_t count>
std::array<at::Tensor, count> computed(const MemoryOpCall<count>& a) {
  return run_by_sample(
      a,
      [](auto kernel_type, const MemoryOpShape& shape) {
        return ntm_location_scratch_bytes<typename decltype(kernel_type)::type>(shape, backward);
      },
      [](const MemoryOpShape& shape, const auto& tensors, void* scratch, cudaStream_t stream) {
        return launch_ntm_location(shape, backward, tensors, scratch, stream);
      });
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("ntm_location", MemoryOperator<ntm_location_args, [](const auto& a) { return computed<false>(a); }>::call);
  m.impl("ntm_location_backward",
         MemoryOperator<ntm_location_backward_args, [](const auto& a) { return computed<true>(a); }>::call);
}

}  // namespace routing_ext::cuda
