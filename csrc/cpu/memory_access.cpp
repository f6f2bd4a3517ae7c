// A step of a memory network between its controller and its output layer. The threads share the samples.
//
// The step is that of a whole network without controller and output, in the same layout: see CellLayout.
#include <torch/library.h>

#include <algorithm>
#include <array>

#include "../common/memory_access_args.h"
#include "memory_cell.h"
#include "memory_ops.h"

namespace routing_ext::cpu {
namespace {

template <size_t count>
constexpr MemoryKind kKind = MemoryAccessArgs<count>::kIsDnc ? MemoryKind::dnc : MemoryKind::ntm;

template <size_t count>
CellShape shape_of(const MemoryAccessArgs<count>& a) {
  const Dimensions& d = a.sizes;
  return {{kKind<count>, d['N'], d['W'], d['R'], d['V'], a.shifts, a.how.meaning}, 0, 0, 0, 0};
}

// Of the first tensors of `state`, which has no read vectors if it is one of arguments.
template <class C>
CellState<C> pointers_to(MemoryKind kind, at::TensorList state) {
  size_t i = 0;
  const auto next = [&] { return i < state.size() ? data_of<C>(state[i++]) : nullptr; };
  CellState<C> p{};
  p.memory = next();
  if (kind == MemoryKind::dnc) p.usage = next(), p.precedence = next(), p.link = next();
  p.write_weights = next(), p.read_weights = next(), p.read_vectors = next();
  return p;
}

// f(sample, memory of `size` elements), the samples shared by the threads.
template <class C, class F>
void for_each_sample(const MemoryOpArgs& a, const CellShape& shape, int64_t size, const F& f) {
  const int64_t batch = a.sizes['B'];
  const int64_t threads = std::clamp<int64_t>(batch * cell_cost(shape) / kMultiplicationsPerThread, 1, at::get_num_threads());
  const at::Tensor work = pooled_empty({threads, size}, a.options);
  in_threads(threads, [&](int64_t t) {
    const Span mine = part_of(batch, t, threads);
    for (int64_t b = mine.begin; b < mine.end; ++b) f(b, data_of<C>(work) + t * size);
  });
}

// Arguments: the interface and the state.
template <size_t count>
std::array<at::Tensor, count + 1> access(MemoryAccessArgs<count> a) {
  constexpr MemoryKind kind = kKind<count>;
  const CellShape shape = shape_of(a);
  std::array<at::Tensor, count + 1> results;
  for (size_t i = 0; i < count; ++i) results[i] = empty_result(a, a.results[i]);
  pad_links(a);
  with_kernels(memory_kernels(), a.dtype(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const AccessKernels<C>& step = kind == MemoryKind::dnc ? kernels.dnc : kernels.ntm;
    const CellLayout<C> at(shape);
    results[count] = pooled_empty({a.sizes['B'], at.row_size}, a.options);
    const CellState<const C> before = pointers_to<const C>(kind, at::TensorList(a.tensors).slice(1));
    const CellState<C> after = pointers_to<C>(kind, results);
    const C* const interface = data_of<const C>(a.tensors[0]);
    C* const rows = data_of<C>(results[count]);
    for_each_sample<C>(a, shape, at.state_size + at.access.scratch_size, [&](int64_t b, C* previous) {
      C *const next = rows + b * at.row_size, *const scratch = previous + at.state_size;
      const int64_t link = b * at.access.link_size;
      kernels.cell.import_state(shape, before, {b, b + 1}, false, previous, at.state_size);
      step.forward(shape.access, {interface + b * a.sizes['I'],
                                  {previous + at.small, previous + at.memory, before.link + link},
                                  {next + at.small, next + at.memory, after.link + link},
                                  next + at.record,
                                  next + at.features,
                                  scratch});
      kernels.cell.export_state(shape, next, at.row_size, after, {b, b + 1});
    });
  });
  for (size_t i = 0; i < count; ++i) unpad_link(a, a.results[i], results[i]);
  return results;
}

// Arguments: the gradients of the next state and the read vectors, the interface and the state. -> Those of the last two.
template <size_t count>
std::array<at::Tensor, count> access_backward(MemoryAccessArgs<count> a) {
  constexpr MemoryKind kind = kKind<count>;
  const CellShape shape = shape_of(a);
  std::array<at::Tensor, count> results;
  for (size_t i = 0; i < count; ++i) results[i] = empty_result(a, a.results[i]);
  pad_links(a);
  with_kernels(memory_kernels(), a.dtype(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const AccessKernels<C>& step = kind == MemoryKind::dnc ? kernels.dnc : kernels.ntm;
    const CellLayout<C> at(shape);
    a.check_record(at.row_size);
    const at::TensorList given(a.tensors);
    const CellState<const C> before = pointers_to<const C>(kind, given.slice(count + 1));
    const CellState<const C> of_next = pointers_to<const C>(kind, given.slice(0, count));
    const CellState<C> of_previous = pointers_to<C>(kind, at::TensorList(results).slice(1));
    const C* const rows = data_of<const C>(a.record);
    C* const of_interface = data_of<C>(results[0]);
    for_each_sample<C>(a, shape, 2 * at.state_size + at.access.scratch_size, [&](int64_t b, C* previous) {
      const C* const next = rows + b * at.row_size;
      C *const grad = previous + at.state_size, *const scratch = grad + at.state_size;
      const int64_t link = b * at.access.link_size;
      kernels.cell.import_state(shape, before, {b, b + 1}, false, previous, at.state_size);
      kernels.cell.import_state(shape, of_next, {b, b + 1}, true, grad, at.state_size);
      if (of_next.link) {
        std::copy_n(of_next.link + link, at.access.link_size, of_previous.link + link);
      } else {
        std::fill_n(of_previous.link + link, at.access.link_size, C(0));
      }
      step.backward(shape.access, {{previous + at.small, previous + at.memory, before.link + link},
                                   {next + at.small, next + at.memory, nullptr},
                                   next + at.record,
                                   grad + at.features,
                                   {grad + at.small, grad + at.memory, of_previous.link + link},
                                   of_interface + b * a.sizes['I'],
                                   scratch});
      kernels.cell.export_state(shape, grad, at.state_size, of_previous, {b, b + 1});
    });
  });
  for (size_t i = 0; i < count; ++i) unpad_link(a, a.results[i], results[i]);
  return results;
}

#define ROUTING_EXT_OPERATOR(name, compute) \
  m.impl(#name, MemoryOperator<name##_args, [](auto a) { return compute(std::move(a)); }>::call)

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  ROUTING_EXT_OPERATOR(dnc_access, access);
  ROUTING_EXT_OPERATOR(dnc_access_backward, access_backward);
  ROUTING_EXT_OPERATOR(ntm_access, access);
  ROUTING_EXT_OPERATOR(ntm_access_backward, access_backward);
}

#undef ROUTING_EXT_OPERATOR

}  // namespace routing_ext::cpu
