#include "ntm_location.cuh"

#include <torch/library.h>

#include <tuple>

#include "operator_glue.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor;

template <size_t count>
auto computed(const MemoryOpArgs& a, bool backward, const char* const (&results)[count]) {
  return run_by_sample(
      a, results, 0,
      [&](auto kernel_type, const MemoryOpShape& shape) {
        return ntm_location_scratch_bytes<typename decltype(kernel_type)::type>(shape, backward);
      },
      [&](const MemoryOpShape& shape, const auto& tensors, void* scratch, cudaStream_t stream) {
        return launch_ntm_location(shape, backward, tensors, scratch, stream);
      });
}

Tensor ntm_location_cuda(const Tensor& content, const Tensor& gates, const Tensor& shifts, const Tensor& sharpness,
                         const Tensor& previous) {
  const MemoryOpArgs a("ntm_location",
                       {{"content", "BHN"}, {"gates", "BH"}, {"shifts", "BHS"}, {"sharpness", "BH"}, {"previous", "BHN"}},
                       {content, gates, shifts, sharpness, previous});
  return computed(a, false, {"BHN"})[0];
}

auto ntm_location_backward_cuda(const Tensor& grad, const Tensor& content, const Tensor& gates, const Tensor& shifts,
                                const Tensor& sharpness, const Tensor& previous) {
  const MemoryOpArgs a(
      "ntm_location_backward",
      {{"grad", "BHN"}, {"content", "BHN"}, {"gates", "BH"}, {"shifts", "BHS"}, {"sharpness", "BH"}, {"previous", "BHN"}},
      {grad, content, gates, shifts, sharpness, previous});
  return std::tuple_cat(computed(a, true, {"BHN", "BH", "BHS", "BH", "BHN"}));
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("ntm_location", ntm_location_cuda);
  m.impl("ntm_location_backward", ntm_location_backward_cuda);
}

}  // namespace routing_ext::cuda
