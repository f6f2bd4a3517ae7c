#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "../common/combine_rows_args.h"
#include "pool.h"

namespace routing_ext::cpu {
namespace {

using at::Tensor;

constexpr int64_t kElementsPerTask = 16 << 10;  // fewer are not worth another thread
constexpr int64_t kChunk = 256;                 // of a row, whose sums stay in the first-level cache

int64_t samples_per_task(const CombineRowsArgs& a) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(a.choices * a.width, 1));
}

Tensor combine_rows_cpu(const Tensor& y_, const Tensor& weights_) {
  const CombineRowsForwardArgs a(y_, weights_, pooled_empty);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, a.y.scalar_type(), a.kOp, [&] {
    using Acc = at::opmath_type<scalar_t>;
    const scalar_t *const y = a.y.const_data_ptr<scalar_t>(), *const weights = a.weights.const_data_ptr<scalar_t>();
    scalar_t* const combined = a.combined.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, a.batch, samples_per_task(a), [&](int64_t begin, int64_t end) {
      Acc sums[kChunk];
      for (int64_t b = begin; b < end; ++b) {
        for (int64_t first = 0; first < a.width; first += kChunk) {
          const int64_t count = std::min(kChunk, a.width - first);
          std::fill_n(sums, count, Acc(0));
          for (int64_t j = 0; j < a.choices; ++j) {
            const int64_t row = b * a.choices + j;
            const Acc weight = weights[row];
            const scalar_t* const from = y + row * a.width + first;
            for (int64_t i = 0; i < count; ++i) sums[i] += weight * static_cast<Acc>(from[i]);
          }
          for (int64_t i = 0; i < count; ++i) combined[b * a.width + first + i] = static_cast<scalar_t>(sums[i]);
        }
      }
    });
  });
  return a.combined;
}

std::tuple<Tensor, Tensor> combine_rows_backward_cpu(const Tensor& grad_, const Tensor& y_, const Tensor& weights_,
                                                     std::array<bool, 2> output_mask) {
  const CombineRowsBackwardArgs a(grad_, y_, weights_, output_mask, pooled_empty);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, a.y.scalar_type(), a.kOp, [&] {
    using Acc = at::opmath_type<scalar_t>;
    const scalar_t *const y = a.y.const_data_ptr<scalar_t>(), *const weights = a.weights.const_data_ptr<scalar_t>();
    const scalar_t* const grad = a.grad.const_data_ptr<scalar_t>();
    scalar_t* const grad_y = output_mask[0] ? a.grad_y.mutable_data_ptr<scalar_t>() : nullptr;
    scalar_t* const grad_weights = output_mask[1] ? a.grad_weights.mutable_data_ptr<scalar_t>() : nullptr;
    at::parallel_for(0, a.batch * a.choices, samples_per_task(a) * a.choices, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const scalar_t* const g = grad + row / a.choices * a.width;
        if (grad_y != nullptr) {
          const Acc weight = weights[row];
          scalar_t* const to = grad_y + row * a.width;
          for (int64_t i = 0; i < a.width; ++i) to[i] = static_cast<scalar_t>(weight * static_cast<Acc>(g[i]));
        }
        if (grad_weights != nullptr) {
          constexpr int kSums = 8;  // side by side
          const scalar_t* const from = y + row * a.width;
          Acc sums[kSums] = {}, sum = 0;
          int64_t i = 0;
          for (; i + kSums <= a.width; i += kSums) {
            for (int s = 0; s < kSums; ++s) sums[s] += static_cast<Acc>(g[i + s]) * static_cast<Acc>(from[i + s]);
          }
          for (; i < a.width; ++i) sum += static_cast<Acc>(g[i]) * static_cast<Acc>(from[i]);
          for (const Acc s : sums) sum += s;
          grad_weights[row] = static_cast<scalar_t>(sum);
        }
      }
    });
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
