// Divides combine_rows among threads by samples: each sum is made by one thread.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "../common/combine_rows_args.h"
#include "combine_rows_kernels.h"
#include "kernels_of_dtype.h"
#include "pool.h"

namespace routing_ext::cpu {
namespace {

using at::Tensor;

constexpr int64_t kElementsPerTask = 16 << 10;  // fewer are not worth another thread

template <class F>
void for_samples(const CombineRowsArgs& a, const F& f) {
  const int64_t elements = std::max<int64_t>(a.choices * a.width, 1);
  at::parallel_for(0, a.batch, std::max<int64_t>(1, kElementsPerTask / elements),
                   [&](int64_t begin, int64_t end) { f(Span{begin, end}); });
}

Tensor combine_rows_cpu(const Tensor& y, const Tensor& weights) {
  const CombineRowsForwardArgs a(y, weights, pooled_empty);
  with_kernels(combine_rows_kernels(), a.y.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using T = typename decltype(kernel_type)::type;
    const CombineForward<T> p{static_cast<const T*>(a.y.const_data_ptr()), static_cast<const T*>(a.weights.const_data_ptr()),
                              static_cast<T*>(a.combined.mutable_data_ptr()), a.choices, a.width};
    for_samples(a, [&](Span samples) { kernels.forward(p, samples); });
  });
  return a.combined;
}

std::tuple<Tensor, Tensor> combine_rows_backward_cpu(const Tensor& grad, const Tensor& y, const Tensor& weights,
                                                     std::array<bool, 2> output_mask) {
  const CombineRowsBackwardArgs a(grad, y, weights, output_mask, pooled_empty);
  with_kernels(combine_rows_kernels(), a.y.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using T = typename decltype(kernel_type)::type;
    const auto wanted = [](const Tensor& t) { return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr; };
    const CombineBackward<T> p{static_cast<const T*>(a.grad.const_data_ptr()),
                               static_cast<const T*>(a.y.const_data_ptr()),
                               static_cast<const T*>(a.weights.const_data_ptr()),
                               wanted(a.grad_y),
                               wanted(a.grad_weights),
                               a.choices,
                               a.width};
    for_samples(a, [&](Span samples) { kernels.backward(p, samples); });
  });
  const auto or_empty = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, a.y.options()); };
  return {or_empty(a.grad_y), or_empty(a.grad_weights)};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("combine_rows", combine_rows_cpu);
  m.impl("combine_rows_backward", combine_rows_backward_cpu);
}

}  // namespace routing_ext::cpu
