#include "grouped_linear.cuh"

#include <ATen/Context.h>
#include <torch/library.h>

#include <tuple>
#include <utility>

#include "../common/cuda_glue.h"
#include "../common/grouped_linear_args.h"

namespace routing_ext::cuda {
namespace {

GroupedRows rows_of(const Routing& r) {
  return {r.order.const_data_ptr<int64_t>(), r.layout.const_data_ptr<int64_t>(), r.batch, r.num_modules};
}

// As torch's own products ask: torch.backends.cuda.matmul.allow_tf32.
bool allows_tf32() { return at::globalContext().allowTF32CuBLAS(); }

at::Tensor grouped_linear_cuda(const at::Tensor& x, const at::Tensor& order, const at::Tensor& layout, at::TensorList weights,
                               at::TensorList biases, at::IntArrayRef modules, int64_t out_features, bool relu) {
  const LaunchScope scope(x);
  const GroupedForwardArgs a(x, order, layout, weights, biases, modules, out_features);
  with_kernel_type(a.kOp, x.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    const auto weight_pointers = a.weights.pointers<const T>();
    const auto bias_pointers = a.biases ? a.biases->pointers<const T>() : std::vector<const T*>();
    const GroupedLinearForward<T> p{static_cast<const T*>(a.x.const_data_ptr()),
                                    static_cast<T*>(a.y.mutable_data_ptr()),
                                    a.in_features,
                                    a.out_features,
                                    relu,
                                    allows_tf32()};
    const GroupedModules<const T> parameters{a.modules.data(), a.entries(), weight_pointers.data(),
                                             a.biases ? bias_pointers.data() : nullptr};
    check_launch(a.kOp, launch_grouped_linear<T>(p, rows_of(a.routing), parameters, scope.stream()));
  });
  return a.y;
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>> grouped_linear_backward_cuda(
    const at::Tensor& grad, const std::optional<at::Tensor>& y, const std::optional<at::Tensor>& x, const at::Tensor& order,
    const at::Tensor& layout, at::TensorList weights, at::IntArrayRef modules, int64_t in_features,
    std::array<bool, 3> output_mask) {
  const LaunchScope scope(grad);
  GroupedBackwardArgs a(grad, y, x, order, layout, weights, modules, in_features, output_mask);
  const GroupedRows rows = rows_of(a.routing);
  with_kernel_type(a.kOp, grad.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    const GroupedLinearBackward<T> p{data_of<const T>(a.grad),
                                     data_of<const T>(a.y),
                                     data_of<const T>(a.x),
                                     static_cast<T*>(a.grad_x.mutable_data_ptr()),
                                     a.in_features,
                                     a.out_features,
                                     allows_tf32()};
    if (a.wants_x) {
      const auto pointers = a.weights->pointers<const T>();
      const GroupedModules<const T> parameters{a.modules.data(), a.entries(), pointers.data(), nullptr};
      check_launch(a.kOp, launch_grouped_linear_grad_x<T>(p, rows, parameters, scope.stream()));
    }
    if (a.wants_weights || a.wants_biases) {
      const auto weight_pointers = a.grad_weights.pointers<T>(), bias_pointers = a.grad_biases.pointers<T>();
      const GroupedModules<T> gradients{a.modules.data(), a.entries(), a.wants_weights ? weight_pointers.data() : nullptr,
                                        a.wants_biases ? bias_pointers.data() : nullptr};
      const size_t scratch_bytes = grouped_linear_scratch_bytes<T>(p, rows, a.wants_weights);
      const at::Tensor scratch = at::empty({static_cast<int64_t>(scratch_bytes)}, grad.options().dtype(at::kByte));
      check_launch(a.kOp,
                   launch_grouped_linear_grad_weight<T>(p, rows, gradients, scratch.mutable_data_ptr(), scope.stream()));
    }
  });
  return {a.grad_x, std::move(a.grad_weights.tensors), std::move(a.grad_biases.tensors)};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("grouped_linear", grouped_linear_cuda);
  m.impl("grouped_linear_backward", grouped_linear_backward_cuda);
}

}  // namespace routing_ext::cuda
