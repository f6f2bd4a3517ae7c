// A row of the record has what the step's backward pass needs and, behind that, the next memory and weights.
#include <torch/library.h>

#include <array>
#include <tuple>

#include "../../common/memory_options_args.h"
#include "ntm_record.cuh"
#include "operator_glue.h"
#include "step_glue.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

StepShape shape_of(const MemoryOpArgs& a, at::ArrayRef<double> options) {
  const Dimensions& d = a.sizes;
  StepShape s{false, d['B'], d['N'], d['W'], d['V'], d['R'], 0, memory_options(a.op, options)};
  const int64_t given = d['I'];
  s.shifts = (given - s.interface_size()) / (s.reads + s.writes);
  CHECK_ARG(a.op, "interface", s.shifts >= 1, "must be of at least one shift for each head, got ", s.shifts, " of ", given,
            " elements");
  CHECK_ARG(a.op, "interface", given == s.interface_size(), "must have ", s.interface_size(), " elements, got ", given);
  return s;
}
int64_t row_size(const StepShape& s, at::ArrayRef<double> options, at::ScalarType dtype) {
  return memory_row_size("ntm", options, {0, 0, 0, s.locations, s.word, s.writes, s.reads, s.shifts}, dtype);
}

template <class C>
StepState<C> state_of(const Tensor& memory, const Tensor& write_weights, const Tensor& read_weights) {
  StepState<C> state;
  state.memory = rows_of<C>(memory);
  state.write_weights = rows_of<C>(write_weights), state.read_weights = rows_of<C>(read_weights);
  return state;
}
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ntm_access_cuda(const Tensor& interface, const Tensor& memory,
                                                                   const Tensor& write_weights, const Tensor& read_weights,
                                                                   at::ArrayRef<double> options) {
  const LaunchScope scope(interface);
  const MemoryOpArgs a("ntm_access",
                       {{"interface", "BI"}, {"memory", "BNW"}, {"write_weights", "BVN"}, {"read_weights", "BRN"}},
                       {interface, memory, write_weights, read_weights});
  const StepShape shape = shape_of(a, options);
  const auto empty = [&](const char* letters) { return at::empty(a.sizes.shape(letters), a.options); };
  const Tensor next_memory = empty("BNW"), next_writes = empty("BVN"), next_reads = empty("BRN"), read = empty("BRW");
  const Tensor record = at::empty({shape.batch, row_size(shape, options, a.dtype())}, a.options);
  with_state_type(a.dtype(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    Step<T> step{};
    step.interface = rows_of<const T>(a.tensors[0]);
    step.previous = state_of<const T>(a.tensors[1], a.tensors[2], a.tensors[3]);
    step.next = state_of<T>(next_memory, next_writes, next_reads);
    step.read_vectors = rows_of<T>(read), step.record = rows_of<T>(record);
    step.copy = state_in_record(shape, step.record, NtmRecord(shape).size);
    const Tensor scratch = scratch_of(ntm_step_scratch_bytes<T>(shape), a.options);
    check_launch(a.op, launch_ntm_step(shape, step, scratch.mutable_data_ptr(), scope.stream()));
  });
  return {next_memory, next_writes, next_reads, read, record};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ntm_access_backward_cuda(
    const Optional& grad_memory, const Optional& grad_write_weights, const Optional& grad_read_weights,
    const Optional& grad_read_vectors, const Tensor& interface, const Tensor& memory, const Tensor& write_weights,
    const Tensor& read_weights, const Tensor& record, at::ArrayRef<double> options) {
  const LaunchScope scope(interface);
  const MemoryOpArgs a("ntm_access_backward",
                       {{"grad_memory", "BNW"},
                        {"grad_write_weights", "BVN"},
                        {"grad_read_weights", "BRN"},
                        {"grad_read_vectors", "BRW"},
                        {"interface", "BI"},
                        {"memory", "BNW"},
                        {"write_weights", "BVN"},
                        {"read_weights", "BRN"}},
                       {or_undefined(grad_memory), or_undefined(grad_write_weights), or_undefined(grad_read_weights),
                        or_undefined(grad_read_vectors), interface, memory, write_weights, read_weights});
  const StepShape shape = shape_of(a, options);
  CHECK_ARG(a.op, "record",
            record.sizes() == at::IntArrayRef({shape.batch, row_size(shape, options, a.dtype())}) && record.is_contiguous() &&
                record.scalar_type() == a.dtype() && record.device() == interface.device(),
            "must be the one that the forward pass gave, got ", record.sizes());
  std::array<Tensor, 4> results;
  for (size_t i = 0; i < results.size(); ++i) results[i] = at::empty(a.tensors[4 + i].sizes(), a.options);
  with_state_type(a.dtype(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    StepBackward<T> step{};
    step.previous = state_of<const T>(a.tensors[5], a.tensors[6], a.tensors[7]);
    step.record = rows_of<const T>(record);
    step.next = state_in_record(shape, step.record, NtmRecord(shape).size);
    step.grad_next = state_of<const T>(a.tensors[0], a.tensors[1], a.tensors[2]);
    step.grad_read_vectors = rows_of<const T>(a.tensors[3]);
    step.grad_interface = rows_of<T>(results[0]);
    step.grad_previous = state_of<T>(results[1], results[2], results[3]);
    const Tensor scratch = scratch_of(ntm_step_backward_scratch_bytes<T>(shape), a.options);
    check_launch(a.op, launch_ntm_step_backward(shape, step, scratch.mutable_data_ptr(), scope.stream()));
  });
  return std::tuple_cat(results);
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("ntm_access", ntm_access_cuda);
  m.impl("ntm_access_backward", ntm_access_backward_cuda);
}

}  // namespace routing_ext::cuda
