#include "sampling.cuh"

#include <ATen/ops/empty.h>
#include <ATen/ops/exponential.h>
#include <ATen/ops/uniform.h>
#include <torch/library.h>

#include <optional>

#include "../common/cuda_glue.h"
#include "../common/sampling_args.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor;

Samples samples_of(const SamplesArgs& a) {
  return {a.order_data(),  a.row_of_data(), a.actions.mutable_data_ptr<int64_t>(), a.count, a.batch,
          a.probs.size(0), a.selections};
}

Tensor sample_categorical_cuda(const Tensor& probs, const std::optional<Tensor>& row_of, const std::optional<Tensor>& order,
                               at::IntArrayRef sizes, int64_t batch) {
  constexpr const char* kOp = "sample_categorical";
  const LaunchScope scope(probs);
  const SamplesArgs a(kOp, probs, row_of, order, num_deciding(kOp, sizes, order.has_value(), batch), batch);
  const Tensor noise = at::empty({a.count, a.selections}, probs.options());
  int64_t first = 0;
  for (const int64_t size : sizes) {  // agent after agent, else the stream would be another
    noise.narrow(0, first, size).exponential_();
    first += size;
  }
  with_float_or_double(kOp, probs.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    check_launch(
        kOp, launch_sample_largest<T>(samples_of(a), a.probs.const_data_ptr<T>(), noise.const_data_ptr<T>(), scope.stream()));
  });
  return a.actions;
}

Tensor sample_by_inversion_cuda(const Tensor& probs, const std::optional<Tensor>& row_of, const std::optional<Tensor>& order,
                                int64_t count, int64_t batch) {
  constexpr const char* kOp = "sample_by_inversion";
  const LaunchScope scope(probs);
  const SamplesArgs a(kOp, probs, row_of, order, count, batch);
  const Tensor noise = at::empty({count}, probs.options()).uniform_();
  with_float_or_double(kOp, probs.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    check_launch(kOp, launch_sample_by_inversion<T>(samples_of(a), a.probs.const_data_ptr<T>(), noise.const_data_ptr<T>(),
                                                    scope.stream()));
  });
  return a.actions;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("sample_by_inversion", sample_by_inversion_cuda);
  m.impl("sample_categorical", sample_categorical_cuda);
}

}  // namespace routing_ext::cuda
