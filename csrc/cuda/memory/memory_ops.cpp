#include "memory_ops.cuh"

#include <torch/library.h>

#include <tuple>

#include "operator_glue.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

template <size_t count>
std::array<Tensor, count> computed(const MemoryOpArgs& a, MemoryOp op, const char* const (&results)[count],
                                   double temperature = 0) {
  return run_by_sample(
      a, results, temperature,
      [op](auto kernel_type, const MemoryOpShape& shape) {
        return memory_op_scratch_bytes<typename decltype(kernel_type)::type>(op, shape);
      },
      [op](const auto&... arguments) { return launch_memory_op(op, arguments...); });
}

Tensor content_weights_cuda(const Tensor& keys, const Tensor& strengths, const Tensor& memory) {
  const MemoryOpArgs a("content_weights", {{"keys", "BHW"}, {"strengths", "BH"}, {"memory", "BNW"}},
                       {keys, strengths, memory});
  return computed(a, MemoryOp::content_weights, {"BHN"})[0];
}
auto content_weights_backward_cuda(const Tensor& grad, const Tensor& keys, const Tensor& strengths, const Tensor& memory) {
  const MemoryOpArgs a("content_weights_backward", {{"grad", "BHN"}, {"keys", "BHW"}, {"strengths", "BH"}, {"memory", "BNW"}},
                       {grad, keys, strengths, memory});
  return std::tuple_cat(computed(a, MemoryOp::content_weights_backward, {"BHW", "BH", "BNW"}));
}

Tensor dnc_usage_cuda(const Tensor& usage, const Tensor& write_weights, const Tensor& free_gates, const Tensor& read_weights) {
  const MemoryOpArgs a("dnc_usage", {{"usage", "BN"}, {"write_weights", "BVN"}, {"free_gates", "BR"}, {"read_weights", "BRN"}},
                       {usage, write_weights, free_gates, read_weights});
  return computed(a, MemoryOp::dnc_usage, {"BN"})[0];
}
auto dnc_usage_backward_cuda(const Tensor& grad, const Tensor& usage, const Tensor& write_weights, const Tensor& free_gates,
                             const Tensor& read_weights) {
  const MemoryOpArgs a(
      "dnc_usage_backward",
      {{"grad", "BN"}, {"usage", "BN"}, {"write_weights", "BVN"}, {"free_gates", "BR"}, {"read_weights", "BRN"}},
      {grad, usage, write_weights, free_gates, read_weights});
  return std::tuple_cat(computed(a, MemoryOp::dnc_usage_backward, {"BN", "BVN", "BR", "BRN"}));
}

auto dnc_allocation_cuda(const Tensor& usage, const Tensor& write_gates, double temperature) {
  const MemoryOpArgs a("dnc_allocation", {{"usage", "BN"}, {"write_gates", "BV"}}, {usage, write_gates});
  CHECK_ARG(a.op, "temperature", temperature >= 0, "must not be negative, got ", temperature);
  return std::tuple_cat(computed(a, MemoryOp::dnc_allocation, {"BVN", "BN", "BVN"}, temperature));
}
auto dnc_allocation_backward_cuda(const Optional& grad_allocation, const Optional& grad_usage, const Tensor& usage,
                                  const Tensor& write_gates, const Tensor& kept, double temperature) {
  const MemoryOpArgs a(
      "dnc_allocation_backward",
      {{"grad_allocation", "BVN"}, {"grad_usage", "BN"}, {"usage", "BN"}, {"write_gates", "BV"}, {"kept", "BVN"}},
      {or_undefined(grad_allocation), or_undefined(grad_usage), usage, write_gates, kept});
  return std::tuple_cat(computed(a, MemoryOp::dnc_allocation_backward, {"BN", "BV"}, temperature));
}

auto dnc_temporal_link_cuda(const Tensor& link, const Tensor& precedence, const Tensor& write_weights,
                            const Tensor& read_weights) {
  const MemoryOpArgs a("dnc_temporal_link",
                       {{"link", "BVNn"}, {"precedence", "BVN"}, {"write_weights", "BVN"}, {"read_weights", "BRN"}},
                       {link, precedence, write_weights, read_weights});
  return std::tuple_cat(computed(a, MemoryOp::dnc_temporal_link, {"BVNn", "BVN", "BVRN", "BVRN"}));
}
auto dnc_temporal_link_backward_cuda(const Optional& grad_link, const Optional& grad_precedence, const Optional& grad_forward,
                                     const Optional& grad_backward, const Tensor& link, const Tensor& precedence,
                                     const Tensor& write_weights, const Tensor& read_weights) {
  const MemoryOpArgs a("dnc_temporal_link_backward",
                       {{"grad_link", "BVNn"},
                        {"grad_precedence", "BVN"},
                        {"grad_forward", "BVRN"},
                        {"grad_backward", "BVRN"},
                        {"link", "BVNn"},
                        {"precedence", "BVN"},
                        {"write_weights", "BVN"},
                        {"read_weights", "BRN"}},
                       {or_undefined(grad_link), or_undefined(grad_precedence), or_undefined(grad_forward),
                        or_undefined(grad_backward), link, precedence, write_weights, read_weights});
  return std::tuple_cat(computed(a, MemoryOp::dnc_temporal_link_backward, {"BVNn", "BVN", "BVN", "BRN"}));
}

Tensor memory_write_cuda(const Tensor& memory, const Tensor& write_weights, const Tensor& erase, const Tensor& add) {
  const MemoryOpArgs a("memory_write", {{"memory", "BNW"}, {"write_weights", "BVN"}, {"erase", "BVW"}, {"add", "BVW"}},
                       {memory, write_weights, erase, add});
  return computed(a, MemoryOp::memory_write, {"BNW"})[0];
}
auto memory_write_backward_cuda(const Tensor& grad, const Tensor& memory, const Tensor& write_weights, const Tensor& erase,
                                const Tensor& add) {
  const MemoryOpArgs a("memory_write_backward",
                       {{"grad", "BNW"}, {"memory", "BNW"}, {"write_weights", "BVN"}, {"erase", "BVW"}, {"add", "BVW"}},
                       {grad, memory, write_weights, erase, add});
  return std::tuple_cat(computed(a, MemoryOp::memory_write_backward, {"BNW", "BVN", "BVW", "BVW"}));
}

Tensor memory_read_cuda(const Tensor& memory, const Tensor& read_weights) {
  const MemoryOpArgs a("memory_read", {{"memory", "BNW"}, {"read_weights", "BRN"}}, {memory, read_weights});
  return computed(a, MemoryOp::memory_read, {"BRW"})[0];
}
auto memory_read_backward_cuda(const Tensor& grad, const Tensor& memory, const Tensor& read_weights) {
  const MemoryOpArgs a("memory_read_backward", {{"grad", "BRW"}, {"memory", "BNW"}, {"read_weights", "BRN"}},
                       {grad, memory, read_weights});
  return std::tuple_cat(computed(a, MemoryOp::memory_read_backward, {"BNW", "BRN"}));
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("content_weights", content_weights_cuda);
  m.impl("content_weights_backward", content_weights_backward_cuda);
  m.impl("dnc_usage", dnc_usage_cuda);
  m.impl("dnc_usage_backward", dnc_usage_backward_cuda);
  m.impl("dnc_allocation", dnc_allocation_cuda);
  m.impl("dnc_allocation_backward", dnc_allocation_backward_cuda);
  m.impl("dnc_temporal_link", dnc_temporal_link_cuda);
  m.impl("dnc_temporal_link_backward", dnc_temporal_link_backward_cuda);
  m.impl("memory_write", memory_write_cuda);
  m.impl("memory_write_backward", memory_write_backward_cuda);
  m.impl("memory_read", memory_read_cuda);
  m.impl("memory_read_backward", memory_read_backward_cuda);
}

}  // namespace routing_ext::cuda
