// A step of a memory network between its controller and its output layer. A row of the record has what the backward pass needs
// of the step and, behind that, the next memory and weights.
#include <torch/library.h>

#include <array>

#include "../../common/memory_access_args.h"
#include "operator_glue.h"
#include "step_glue.h"

namespace routing_ext::cuda {
namespace {

template <size_t count>
StepShape shape_of(const MemoryAccessArgs<count>& a) {
  const Dimensions& d = a.sizes;
  return {a.kIsDnc, d['B'], d['N'], d['W'], d['V'], d['R'], a.shifts, a.how.meaning};
}
template <size_t count>
int64_t row_size(const MemoryAccessArgs<count>& a) {
  const Dimensions& d = a.sizes;
  return memory_row_size(a.kIsDnc ? "dnc" : "ntm", a.how.numbers, {0, 0, 0, d['N'], d['W'], d['V'], d['R'], a.shifts},
                         a.dtype());
}

// Of the first tensors of `state`, in the order of the schema.
template <class C>
StepState<C> state_of(const StepShape& s, at::TensorList state) {
  size_t i = 0;
  const auto next = [&] { return sample_rows<C>(state[i++]); };
  StepState<C> rows;
  rows.memory = next();
  if (s.dnc) rows.usage = next(), rows.precedence = next(), rows.link = next();
  rows.write_weights = next(), rows.read_weights = next();
  return rows;
}

// Arguments: the interface and the state.
template <size_t count>
std::array<at::Tensor, count + 1> access(const MemoryAccessArgs<count>& a) {
  const LaunchScope scope(first_defined(a.tensors));
  const StepShape shape = shape_of(a);
  std::array<at::Tensor, count + 1> results;
  for (size_t i = 0; i < count; ++i) results[i] = at::empty(a.sizes.shape(a.results[i]), a.options);
  results[count] = at::empty({shape.batch, row_size(a)}, a.options);
  with_state_type(a.dtype(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    Step<T> step{};
    step.interface = sample_rows<const T>(a.tensors[0]);
    step.previous = state_of<const T>(shape, at::TensorList(a.tensors).slice(1));
    step.next = state_of<T>(shape, results);
    step.read_vectors = sample_rows<T>(results[count - 1]), step.record = sample_rows<T>(results[count]);
    step.copy = state_in_record(shape, step.record);
    const at::Tensor scratch = step_scratch<T>(shape, false, a.options);
    check_launch(a.op, launch_step(shape, step, scratch.mutable_data_ptr(), scope.stream()));
  });
  return results;
}

// Arguments: the gradients of the next state and the read vectors, the interface and the state. -> Those of the last two.
template <size_t count>
std::array<at::Tensor, count> access_backward(const MemoryAccessArgs<count>& a) {
  const LaunchScope scope(first_defined(a.tensors));
  const StepShape shape = shape_of(a);
  a.check_record(row_size(a));
  std::array<at::Tensor, count> results;
  for (size_t i = 0; i < count; ++i) results[i] = at::empty(a.sizes.shape(a.results[i]), a.options);
  with_state_type(a.dtype(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    const at::TensorList given(a.tensors);
    StepBackward<T> step{};
    step.previous = state_of<const T>(shape, given.slice(count + 1));
    step.record = sample_rows<const T>(a.record);
    step.next = state_in_record(shape, step.record);
    step.grad_next = state_of<const T>(shape, given);
    step.grad_read_vectors = sample_rows<const T>(given[count - 1]);
    step.grad_interface = sample_rows<T>(results[0]);
    step.grad_previous = state_of<T>(shape, at::TensorList(results).slice(1));
    const at::Tensor scratch = step_scratch<T>(shape, true, a.options);
    check_launch(a.op, launch_step_backward(shape, step, scratch.mutable_data_ptr(), scope.stream()));
  });
  return results;
}

#define ROUTING_EXT_OPERATOR(name, compute) \
  m.impl(#name, MemoryOperator<name##_args, [](const auto& a) { return compute(a); }>::call)

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  ROUTING_EXT_OPERATOR(dnc_access, access);
  ROUTING_EXT_OPERATOR(dnc_access_backward, access_backward);
  ROUTING_EXT_OPERATOR(ntm_access, access);
  ROUTING_EXT_OPERATOR(ntm_access_backward, access_backward);
}

#undef ROUTING_EXT_OPERATOR

}  // namespace routing_ext::cuda
