#include "combine_rows.cuh"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "../common/combine_rows_args.h"
#include "../common/cuda_glue.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor;

Tensor combine_rows_cuda(const Tensor& y, const Tensor& weights) {
  const LaunchScope scope(y);
  const CombineRowsForwardArgs a(y, weights);
  with_kernel_type(a.kOp, a.y.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    check_launch(a.kOp, launch_combine_rows<T>({a.batch, a.choices, a.width}, static_cast<const T*>(a.y.const_data_ptr()),
                                               static_cast<const T*>(a.weights.const_data_ptr()),
                                               static_cast<T*>(a.combined.mutable_data_ptr()), scope.stream()));
  });
  return a.combined;
}

std::tuple<Tensor, Tensor> combine_rows_backward_cuda(const Tensor& grad, const Tensor& y, const Tensor& weights,
                                                      std::array<bool, 2> output_mask) {
  const LaunchScope scope(y);
  const CombineRowsBackwardArgs a(grad, y, weights, output_mask);
  with_kernel_type(a.kOp, a.y.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    check_launch(a.kOp, launch_combine_rows_backward<T>(
                            {a.batch, a.choices, a.width}, static_cast<const T*>(a.grad.const_data_ptr()),
                            static_cast<const T*>(a.y.const_data_ptr()), static_cast<const T*>(a.weights.const_data_ptr()),
                            data_of<T>(a.grad_y), data_of<T>(a.grad_weights), scope.stream()));
  });
  const auto or_empty = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, a.y.options()); };
  return {or_empty(a.grad_y), or_empty(a.grad_weights)};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("combine_rows", combine_rows_cuda);
  m.impl("combine_rows_backward", combine_rows_backward_cuda);
}

}  // namespace routing_ext::cuda
