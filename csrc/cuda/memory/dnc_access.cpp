// A row of the record has what the step's backward pass needs and, behind that, the next memory and weights.
#include <torch/library.h>

#include <array>
#include <tuple>

#include "../../common/memory_options_args.h"
#include "operator_glue.h"
#include "step_glue.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// A state in the order of the schema, and the read vectors.
constexpr std::array kState{"BNW", "BN", "BVN", "BVNN", "BVN", "BRN", "BRW"};
constexpr std::array kUnlinkedState{"BNW", "BN", "BVL", "BVLL", "BVN", "BRN", "BRW"};
constexpr size_t kPrecedence = 2, kLink = 3;

const std::array<const char*, 7>& state_letters(const char* op, at::ArrayRef<double> options) {
  return memory_options(op, options).unlinked ? kUnlinkedState : kState;
}

StepShape shape_of(const MemoryOpArgs& a, at::ArrayRef<double> options) {
  const Dimensions& d = a.sizes;
  const StepShape s{true, d['B'], d['N'], d['W'], d['V'], d['R'], 0, memory_options(a.op, options)};
  CHECK_ARG(a.op, "link", d['L'] == 0, "must be empty, and precedence likewise, where there is none, got ", d['L'],
            " locations");
  CHECK_ARG(a.op, "interface", d['I'] == s.interface_size(), "must have ", s.interface_size(), " elements, got ", d['I']);
  return s;
}
int64_t row_size(const StepShape& s, at::ArrayRef<double> options, at::ScalarType dtype) {
  return memory_row_size("dnc", options, {0, 0, 0, s.locations, s.word, s.writes, s.reads, 0}, dtype);
}

// Of tensors in the order of the schema, from the first-th on.
template <class C, class Tensors>
StepState<C> state_of(const StepShape& s, const Tensors& tensors, size_t first = 0) {
  StepState<C> state;
  state.memory = rows_of<C>(tensors[first]), state.usage = rows_of<C>(tensors[first + 1]);
  if (s.linked()) {
    state.precedence = rows_of<C>(tensors[first + kPrecedence]), state.link = rows_of<C>(tensors[first + kLink]);
  }
  state.write_weights = rows_of<C>(tensors[first + 4]), state.read_weights = rows_of<C>(tensors[first + 5]);
  return state;
}

auto dnc_access_cuda(const Tensor& interface, const Tensor& memory, const Tensor& usage, const Tensor& precedence,
                     const Tensor& link, const Tensor& write_weights, const Tensor& read_weights,
                     at::ArrayRef<double> options) {
  const LaunchScope scope(interface);
  const auto& letters = state_letters("dnc_access", options);
  const MemoryOpArgs a("dnc_access",
                       {{"interface", "BI"},
                        {"memory", "BNW"},
                        {"usage", "BN"},
                        {"precedence", letters[kPrecedence]},
                        {"link", letters[kLink]},
                        {"write_weights", "BVN"},
                        {"read_weights", "BRN"}},
                       {interface, memory, usage, precedence, link, write_weights, read_weights});
  const StepShape shape = shape_of(a, options);
  std::array<Tensor, 8> results;
  for (size_t i = 0; i < letters.size(); ++i) results[i] = at::empty(a.sizes.shape(letters[i]), a.options);
  results[7] = at::empty({shape.batch, row_size(shape, options, a.dtype())}, a.options);
  with_state_type(a.dtype(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    Step<T> step{};
    step.interface = rows_of<const T>(a.tensors[0]);
    step.previous = state_of<const T>(shape, a.tensors, 1);
    step.next = state_of<T>(shape, results);
    step.read_vectors = rows_of<T>(results[6]), step.record = rows_of<T>(results[7]);
    step.copy = state_in_record(shape, step.record, DncRecord(shape).size);
    const Tensor scratch = scratch_of(dnc_step_scratch_bytes<T>(shape), a.options);
    check_launch(a.op, launch_dnc_step(shape, step, scratch.mutable_data_ptr(), scope.stream()));
  });
  return std::tuple_cat(results);
}

auto dnc_access_backward_cuda(const Optional& grad_memory, const Optional& grad_usage, const Optional& grad_precedence,
                              const Optional& grad_link, const Optional& grad_write_weights, const Optional& grad_read_weights,
                              const Optional& grad_read_vectors, const Tensor& interface, const Tensor& memory,
                              const Tensor& usage, const Tensor& precedence, const Tensor& link, const Tensor& write_weights,
                              const Tensor& read_weights, const Tensor& record, at::ArrayRef<double> options) {
  const LaunchScope scope(interface);
  const auto& letters = state_letters("dnc_access_backward", options);
  const MemoryOpArgs a(
      "dnc_access_backward",
      {{"grad_memory", "BNW"},
       {"grad_usage", "BN"},
       {"grad_precedence", letters[kPrecedence]},
       {"grad_link", letters[kLink]},
       {"grad_write_weights", "BVN"},
       {"grad_read_weights", "BRN"},
       {"grad_read_vectors", "BRW"},
       {"interface", "BI"},
       {"memory", "BNW"},
       {"usage", "BN"},
       {"precedence", letters[kPrecedence]},
       {"link", letters[kLink]},
       {"write_weights", "BVN"},
       {"read_weights", "BRN"}},
      {or_undefined(grad_memory), or_undefined(grad_usage), or_undefined(grad_precedence), or_undefined(grad_link),
       or_undefined(grad_write_weights), or_undefined(grad_read_weights), or_undefined(grad_read_vectors), interface, memory,
       usage, precedence, link, write_weights, read_weights});
  constexpr size_t kInterface = 7;  // before it the gradients of results, from it on those arguments that get gradients
  const StepShape shape = shape_of(a, options);
  CHECK_ARG(a.op, "record",
            record.sizes() == at::IntArrayRef({shape.batch, row_size(shape, options, a.dtype())}) && record.is_contiguous() &&
                record.scalar_type() == a.dtype() && record.device() == interface.device(),
            "must be the one that the forward pass gave, got ", record.sizes());
  std::array<Tensor, 7> results;
  for (size_t i = 0; i < results.size(); ++i) results[i] = at::empty(a.tensors[kInterface + i].sizes(), a.options);
  with_state_type(a.dtype(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    StepBackward<T> step{};
    step.previous = state_of<const T>(shape, a.tensors, kInterface + 1);
    step.record = rows_of<const T>(record);
    step.next = state_in_record(shape, step.record, DncRecord(shape).size);
    step.grad_next = state_of<const T>(shape, a.tensors);
    step.grad_read_vectors = rows_of<const T>(a.tensors[6]);
    step.grad_interface = rows_of<T>(results[0]);
    step.grad_previous = state_of<T>(shape, results, 1);
    const Tensor scratch = scratch_of(dnc_step_backward_scratch_bytes<T>(shape), a.options);
    check_launch(a.op, launch_dnc_step_backward(shape, step, scratch.mutable_data_ptr(), scope.stream()));
  });
  return std::tuple_cat(results);
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("dnc_access", dnc_access_cuda);
  m.impl("dnc_access_backward", dnc_access_backward_cuda);
}

}  // namespace routing_ext::cuda
