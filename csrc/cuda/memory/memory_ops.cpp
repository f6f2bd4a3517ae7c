#include "memory_ops.cuh"

#include <torch/library.h>

#include "operator_glue.h"

namespace routing_ext::cuda {
namespace {

template <size_t count>
std::array<at::Tensor, count> computed(const MemoryOpCall<count>& a, MemoryOp op) {
  return run_by_sample(
      a,
      [op](auto kernel_type, const MemoryOpShape& shape) {
        return memory_op_scratch_bytes<typename decltype(kernel_type)::type>(op, shape);
      },
      [op](const auto&... arguments) { return launch_memory_op(op, arguments...); });
}

#define ROUTING_EXT_OPERATOR(name) \
  m.impl(#name, MemoryOperator<name##_args, [](const auto& a) { return computed(a, MemoryOp::name); }>::call)

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  ROUTING_EXT_OPERATOR(content_weights);
  ROUTING_EXT_OPERATOR(content_weights_backward);
  ROUTING_EXT_OPERATOR(dnc_usage);
  ROUTING_EXT_OPERATOR(dnc_usage_backward);
  ROUTING_EXT_OPERATOR(dnc_allocation);
  ROUTING_EXT_OPERATOR(dnc_allocation_backward);
  ROUTING_EXT_OPERATOR(dnc_temporal_link);
  ROUTING_EXT_OPERATOR(dnc_temporal_link_backward);
  ROUTING_EXT_OPERATOR(memory_write);
  ROUTING_EXT_OPERATOR(memory_write_backward);
  ROUTING_EXT_OPERATOR(memory_read);
  ROUTING_EXT_OPERATOR(memory_read_backward);
}

#undef ROUTING_EXT_OPERATOR

}  // namespace routing_ext::cuda
