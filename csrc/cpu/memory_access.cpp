// A step of a memory network between its controller and its output layer. The threads share the samples.
//
// The step is that of a whole network without controller and output, in the same layout: see CellLayout.
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "../common/memory_options_args.h"
#include "memory_cell.h"
#include "memory_ops.h"

namespace routing_ext::cpu {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// A state in the order of the schema, and the read vectors.
constexpr std::array kDncState{"BNW", "BN", "BVN", "BVNn", "BVN", "BRN", "BRW"};
constexpr std::array kUnlinkedState{"BNW", "BN", "BVL", "BVLL", "BVN", "BRN", "BRW"};
constexpr std::array kNtmState{"BNW", "BVN", "BRN", "BRW"};
constexpr size_t kPrecedence = 2, kLink = 3;

const std::array<const char*, 7>& dnc_state(const char* op, at::ArrayRef<double> options) {
  return memory_options(op, options).unlinked ? kUnlinkedState : kDncState;
}

CellShape shape_of(const MemoryOpArgs& a, MemoryKind kind, at::ArrayRef<double> options) {
  const Dimensions& d = a.sizes;
  AccessShape shape{kind, d['N'], d['W'], d['R'], d['V'], 0, memory_options(a.op, options)};
  const int64_t given = d['I'];
  if (kind == MemoryKind::ntm) shape.shifts = (given - shape.interface_size()) / (shape.reads + shape.writes);
  CHECK_ARG(a.op, "interface", kind == MemoryKind::dnc || shape.shifts >= 1,
            "must be of at least one shift for each head, got ", shape.shifts, " of ", given, " elements");
  CHECK_ARG(a.op, "link", d['L'] == 0, "must be empty, and precedence likewise, where there is none, got ", d['L'],
            " locations");
  CHECK_ARG(a.op, "interface", given == shape.interface_size(), "must have ", shape.interface_size(), " elements, got ",
            given);
  return {shape, 0, 0, 0, 0};
}

// Of the first tensors of `state`, which has no read vectors if it is one of arguments.
template <class C, class Tensors>
CellState<C> pointers_to(MemoryKind kind, const Tensors& state) {
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
  const Tensor work = pooled_empty({threads, size}, a.options);
  in_threads(threads, [&](int64_t t) {
    const Span mine = part_of(batch, t, threads);
    for (int64_t b = mine.begin; b < mine.end; ++b) f(b, data_of<C>(work) + t * size);
  });
}

// a: the interface and the state.
template <size_t count>
auto access(MemoryOpArgs a, MemoryKind kind, const std::array<const char*, count>& letters, at::ArrayRef<double> options) {
  const CellShape shape = shape_of(a, kind, options);
  std::array<Tensor, count + 1> results;
  for (size_t i = 0; i < count; ++i) results[i] = empty_result(a, letters[i]);
  pad_links(a);
  with_memory_kernels(a.dtype(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const AccessKernels<C>& step = kind == MemoryKind::dnc ? kernels.dnc : kernels.ntm;
    const CellLayout<C> at(shape);
    results[count] = pooled_empty({a.sizes['B'], at.row_size}, a.options);
    const CellState<const C> before = pointers_to<const C>(kind, std::vector(a.tensors.begin() + 1, a.tensors.end()));
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
  for (size_t i = 0; i < count; ++i) unpad_link(a, letters[i], results[i]);
  return std::tuple_cat(results);
}

// a: the gradients of the next state and the read vectors, the interface and the state. -> Those of the last two.
template <size_t count>
auto access_backward(MemoryOpArgs a, MemoryKind kind, const std::array<const char*, count>& letters, const Tensor& record,
                     at::ArrayRef<double> options) {
  const CellShape shape = shape_of(a, kind, options);
  std::array<Tensor, count> results;
  results[0] = empty_result(a, "BI");
  for (size_t i = 1; i < count; ++i) results[i] = empty_result(a, letters[i - 1]);
  pad_links(a);
  with_memory_kernels(a.dtype(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const AccessKernels<C>& step = kind == MemoryKind::dnc ? kernels.dnc : kernels.ntm;
    const CellLayout<C> at(shape);
    CHECK_ARG(a.op, "record", record.sizes() == at::IntArrayRef({a.sizes['B'], at.row_size}) && record.is_contiguous(),
              "must be the one that the forward pass gave, got ", record.sizes());
    const auto state = a.tensors.begin() + count + 1;
    const CellState<const C> before = pointers_to<const C>(kind, std::vector(state, a.tensors.end()));
    const CellState<const C> of_next = pointers_to<const C>(kind, std::vector(a.tensors.begin(), a.tensors.begin() + count));
    const CellState<C> of_previous = pointers_to<C>(kind, std::vector(results.begin() + 1, results.end()));
    const C* const rows = data_of<const C>(record);
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
  for (size_t i = 1; i < count; ++i) unpad_link(a, letters[i - 1], results[i]);
  return std::tuple_cat(results);
}

auto dnc_access_cpu(const Tensor& interface, const Tensor& memory, const Tensor& usage, const Tensor& precedence,
                    const Tensor& link, const Tensor& write_weights, const Tensor& read_weights,
                    at::ArrayRef<double> options) {
  const auto& letters = dnc_state("dnc_access", options);
  const MemoryOpArgs a("dnc_access",
                       {{"interface", "BI"},
                        {"memory", "BNW"},
                        {"usage", "BN"},
                        {"precedence", letters[kPrecedence]},
                        {"link", letters[kLink]},
                        {"write_weights", "BVN"},
                        {"read_weights", "BRN"}},
                       {interface, memory, usage, precedence, link, write_weights, read_weights});
  return access(a, MemoryKind::dnc, letters, options);
}
auto dnc_access_backward_cpu(const Optional& grad_memory, const Optional& grad_usage, const Optional& grad_precedence,
                             const Optional& grad_link, const Optional& grad_write_weights, const Optional& grad_read_weights,
                             const Optional& grad_read_vectors, const Tensor& interface, const Tensor& memory,
                             const Tensor& usage, const Tensor& precedence, const Tensor& link, const Tensor& write_weights,
                             const Tensor& read_weights, const Tensor& record, at::ArrayRef<double> options) {
  const auto& letters = dnc_state("dnc_access_backward", options);
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
  return access_backward(a, MemoryKind::dnc, letters, record, options);
}

auto ntm_access_cpu(const Tensor& interface, const Tensor& memory, const Tensor& write_weights, const Tensor& read_weights,
                    at::ArrayRef<double> options) {
  const MemoryOpArgs a("ntm_access",
                       {{"interface", "BI"}, {"memory", "BNW"}, {"write_weights", "BVN"}, {"read_weights", "BRN"}},
                       {interface, memory, write_weights, read_weights});
  return access(a, MemoryKind::ntm, kNtmState, options);
}
auto ntm_access_backward_cpu(const Optional& grad_memory, const Optional& grad_write_weights,
                             const Optional& grad_read_weights, const Optional& grad_read_vectors, const Tensor& interface,
                             const Tensor& memory, const Tensor& write_weights, const Tensor& read_weights,
                             const Tensor& record, at::ArrayRef<double> options) {
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
  return access_backward(a, MemoryKind::ntm, kNtmState, record, options);
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("dnc_access", dnc_access_cpu);
  m.impl("dnc_access_backward", dnc_access_backward_cpu);
  m.impl("ntm_access", ntm_access_cpu);
  m.impl("ntm_access_backward", ntm_access_backward_cpu);
}

}  // namespace routing_ext::cpu
