// Divides grouped_linear among threads, one parallel region a pass. Each element of a result is summed by one thread, in an
// order that does not depend on timing.
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "../common/grouped_linear_args.h"
#include "../common/kernel_type.h"
#include "grouped_linear_kernels.h"
#include "kernels_of_dtype.h"
#include "pool.h"
#include "threads.h"

namespace routing_ext::cpu {
namespace {

constexpr int64_t kRowsPerThread = 8;  // with fewer, threads share the columns instead, if there are enough
constexpr int64_t kColumnsPerThread = 64;

// The samples of the modules that take part, by position in `order`.
struct Segments {
  std::vector<Span> rows;    // [entries]
  std::vector<Span> unused;  // positions of samples whose module is not listed, or that are inactive
  int64_t active = 0;        // samples in `rows`

  Segments(const char* op, const Routing& routing, const std::vector<int64_t>& modules) {
    const int64_t* const order = routing.order.const_data_ptr<int64_t>();
    const int64_t* const layout = routing.layout.const_data_ptr<int64_t>();
    std::vector<bool> seen(routing.batch);
    for (int64_t i = 0; i < routing.batch; ++i) {
      CHECK_ARG(op, "order", order[i] >= 0 && order[i] < routing.batch && !seen[order[i]], "must be a permutation of [0, ",
                routing.batch, "), got ", order[i], " at ", i);
      seen[order[i]] = true;
    }
    rows.reserve(modules.size());
    int64_t end = 0;
    for (const int64_t k : modules) {
      const Span segment{layout[k], layout[k + 1]};
      CHECK_ARG(op, "layout", segment.begin >= end && segment.end >= segment.begin && segment.end <= routing.batch,
                "must ascend within [0, ", routing.batch, "], got ", segment.begin, " and ", segment.end, " for module ", k);
      if (segment.begin > end) unused.push_back({end, segment.begin});
      rows.push_back(segment);
      active += segment.size();
      end = segment.end;
    }
    if (end < routing.batch) unused.push_back({end, routing.batch});
  }
};

// How a product with samples as rows is divided: by rows, or by columns where there are too few.
struct Division {
  int64_t threads;
  bool by_columns;

  Division(const Segments& s, int64_t in_features, int64_t out_features, int64_t columns) {
    threads = std::clamp<int64_t>(s.active * in_features * out_features / kMultiplicationsPerThread, 1, at::get_num_threads());
    by_columns = s.active < threads * kRowsPerThread && columns >= threads * kColumnsPerThread;
  }
  // f(entry, rows, cols) for the t-th thread's part of each module.
  template <class F>
  void for_each_product(const Segments& s, int64_t columns, int64_t t, const F& f) const {
    if (by_columns) {
      const Span blocks = part_of(divide_up(columns, kColumnsPerThread), t, threads);
      const Span cols{blocks.begin * kColumnsPerThread, std::min(blocks.end * kColumnsPerThread, columns)};
      for (size_t e = 0; e < s.rows.size(); ++e) {
        if (s.rows[e].size() > 0) f(e, s.rows[e], cols);
      }
      return;
    }
    const Span mine = part_of(s.active, t, threads);
    int64_t before = 0;  // samples of earlier entries
    for (size_t e = 0; e < s.rows.size() && before < mine.end; ++e) {
      const Span& all = s.rows[e];
      const Span rows{all.begin + std::max<int64_t>(mine.begin - before, 0),
                      all.begin + std::min(mine.end - before, all.size())};
      if (rows.size() > 0) f(e, rows, Span{0, columns});
      before += all.size();
    }
  }
};

// f(entry, outs) for the t-th thread's part of the gradients [entries,o,d]; a row costs as much as its module has samples.
template <class F>
void for_each_gradient(const Segments& s, int64_t out_features, int64_t t, int64_t threads, const F& f) {
  const int64_t entries = static_cast<int64_t>(s.rows.size());
  const Span mine = part_of((s.active + entries) * out_features, t, threads);
  int64_t before = 0;
  for (size_t e = 0; e < s.rows.size(); ++e) {
    const int64_t cost = s.rows[e].size() + 1;
    const auto first_out = [&](int64_t at) { return std::clamp<int64_t>(divide_up(at - before, cost), 0, out_features); };
    const Span outs{mine.begin <= before ? 0 : first_out(mine.begin), mine.end <= before ? 0 : first_out(mine.end)};
    if (outs.size() > 0) f(e, outs);
    before += cost * out_features;
  }
}

// Zeros in the rows [., width] of the samples in `unused`, the t-th thread's part.
template <class T>
void zero_unused(const Segments& s, const int64_t* order, T* matrix, int64_t width, int64_t t, int64_t threads) {
  for (const Span& all : s.unused) {
    const Span part = part_of(all.size(), t, threads);
    for (int64_t i = all.begin + part.begin; i < all.begin + part.end; ++i) std::fill_n(matrix + order[i] * width, width, T{});
  }
}

at::Tensor grouped_linear_cpu(const at::Tensor& x, const at::Tensor& order, const at::Tensor& layout, at::TensorList weights,
                              at::TensorList biases, at::IntArrayRef modules, int64_t out_features, bool relu) {
  const GroupedForwardArgs a(x, order, layout, weights, biases, modules, out_features, pooled_empty);
  const Segments segments(a.kOp, a.routing, a.modules);
  const Division division(segments, a.in_features, a.out_features, a.out_features);
  with_kernels(grouped_linear_kernels(), x.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using T = typename decltype(kernel_type)::type;
    const auto weight = a.weights.pointers<const T>();
    const auto bias = a.biases ? a.biases->pointers<const T>() : std::vector<const T*>(weight.size(), nullptr);
    const GroupedForward<T> p{static_cast<const T*>(a.x.const_data_ptr()),
                              a.routing.order.const_data_ptr<int64_t>(),
                              static_cast<T*>(a.y.mutable_data_ptr()),
                              a.in_features,
                              a.out_features,
                              relu};
    in_threads(division.threads, [&](int64_t t) {
      division.for_each_product(segments, a.out_features, t,
                                [&](size_t e, Span rows, Span cols) { kernels.forward(p, weight[e], bias[e], rows, cols); });
      zero_unused(segments, p.order, p.y, p.o, t, division.threads);
    });
  });
  return a.y;
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>> grouped_linear_backward_cpu(
    const at::Tensor& grad, const std::optional<at::Tensor>& y, const std::optional<at::Tensor>& x, const at::Tensor& order,
    const at::Tensor& layout, at::TensorList weights, at::IntArrayRef modules, int64_t in_features,
    std::array<bool, 3> output_mask) {
  GroupedBackwardArgs a(grad, y, x, order, layout, weights, modules, in_features, output_mask, pooled_empty);
  const Segments segments(a.kOp, a.routing, a.modules);
  const Division division(segments, a.in_features, a.out_features, a.in_features);
  with_kernels(grouped_linear_kernels(), grad.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using T = typename decltype(kernel_type)::type;
    const auto weight = a.wants_x ? a.weights->pointers<const T>() : std::vector<const T*>();
    const auto grad_weight = a.grad_weights.pointers<T>(), grad_bias = a.grad_biases.pointers<T>();
    const GroupedBackward<T> p{data_of<const T>(a.grad),
                               data_of<const T>(a.y),
                               data_of<const T>(a.x),
                               a.routing.order.const_data_ptr<int64_t>(),
                               static_cast<T*>(a.grad_x.mutable_data_ptr()),
                               a.in_features,
                               a.out_features};
    const Span ins{0, a.wants_weights ? a.in_features : 0};
    in_threads(division.threads, [&](int64_t t) {
      if (a.wants_x) {
        division.for_each_product(segments, a.in_features, t,
                                  [&](size_t e, Span rows, Span cols) { kernels.grad_x(p, weight[e], rows, cols); });
        zero_unused(segments, p.order, p.grad_x, p.d, t, division.threads);
      }
      if (!a.wants_weights && !a.wants_biases) return;
      for_each_gradient(segments, a.out_features, t, division.threads, [&](size_t e, Span outs) {
        T* const w = a.wants_weights ? grad_weight[e] : nullptr;
        T* const b = a.wants_biases ? grad_bias[e] : nullptr;
        if (segments.rows[e].size() > 0) return kernels.grad_weight(p, w, b, segments.rows[e], outs, ins);
        if (w) std::fill_n(w + outs.begin * p.d, outs.size() * p.d, T{});
        if (b) std::fill_n(b + outs.begin, outs.size(), T{});
      });
    });
  });
  return {a.grad_x, std::move(a.grad_weights.tensors), std::move(a.grad_biases.tensors)};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("grouped_linear", grouped_linear_cpu);
  m.impl("grouped_linear_backward", grouped_linear_backward_cpu);
}

}  // namespace routing_ext::cpu
