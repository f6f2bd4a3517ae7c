// A memory network step by step. The caller keeps the tape; steps read one row of it and write another, in place, and share
// the packed weights and one gradient of the state, so that nothing is copied from step to step.
//
// `sizes` are I, H, O, N, W, V, R, S. Rows of a tape are those of memory_sequence's, links padded as the kernels want them.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <tuple>

#include "../common/memory_links.h"
#include "../common/memory_step_args.h"
#include "memory_cell.h"

namespace routing_ext::cpu {
namespace {

// f(t-th thread's samples, t).
template <class F>
void for_each_share(const CellShape& shape, int64_t batch, int64_t passes, const SampleTeam& team, const F& f) {
  const int64_t most = team.get() ? 1 : std::max<int64_t>(std::min<int64_t>(batch, at::get_num_threads()), 1);
  const int64_t threads = std::clamp<int64_t>(passes * batch * cell_cost(shape) / kMultiplicationsPerThread, 1, most);
  in_threads(threads, [&](int64_t t) { f(part_of(batch, t, threads), t); });
}
int64_t most_threads(int64_t batch) { return std::max<int64_t>(std::min<int64_t>(batch, at::get_num_threads()), 1); }

void check_state_rows(const char* op, const at::Tensor& rows, int64_t batch, int64_t state_size) {
  CHECK_ARG(op, "rows", rows.dim() == 2 && rows.is_contiguous() && rows.size(0) == batch && rows.size(1) >= state_size,
            "must be contiguous of shape [", batch, ", at least ", state_size, "], got ", rows.sizes());
}

at::Tensor pooled_empty_cpu(at::IntArrayRef sizes, const at::Tensor& like) { return pooled_empty(sizes, like.options()); }

int64_t memory_step_link_row_cpu(const at::Tensor& like, int64_t num_locations) {
  return padded_locations(num_locations, like.element_size());
}

at::Tensor memory_pack_cpu(std::string_view model, at::ArrayRef<double> options, const at::Tensor& x, at::TensorList weights,
                           int64_t num_locations, bool backward) {
  const MemorySizes sizes("memory_pack", model, options, x, weights, {num_locations});
  const CellShape shape = cell_shape(sizes, 0);
  const std::vector<at::Tensor> held = contiguous_tensors(weights);
  at::Tensor packed;
  with_kernels(memory_kernels(), x.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const PackedLayout<C> at(shape);
    packed = pooled_empty({backward ? at.backward_size : at.forward_size}, x.options());
    const WeightPointers<const C> given(sizes, held);
    const auto pack = backward ? kernels.cell.pack_backward : kernels.cell.pack_forward;
    C* const out = data_of<C>(packed);
    const int64_t threads = std::clamp<int64_t>(packed.numel() / kMultiplicationsPerThread, 1, at::get_num_threads());
    in_threads(threads, [&](int64_t t) { pack(shape, *given, out, t, threads); });
  });
  return packed;
}

at::Tensor memory_step_cpu(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes, double clip_value,
                           const at::Tensor& packed, const at::Tensor& x, at::Tensor& tape, at::Tensor& inputs,
                           const std::optional<at::Tensor>& previous_link, const std::optional<at::Tensor>& next_link,
                           int64_t from, int64_t to) {
  constexpr const char* kOp = "memory_step";
  const CellShape shape = cell_shape(MemoryStepSizes(kOp, model, options, sizes), clip_value);
  const int64_t batch = tape.size(1);
  check_inputs(kOp, x, tape, shape.input);
  const at::Tensor y = at::empty({1, batch, shape.y_size()}, x.options());
  with_kernels(memory_kernels(), x.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    const int64_t row = at.row_size, interface_size = shape.access.interface_size(), link_size = at.access.link_size;
    check_rows(kOp, "tape", tape, {tape.size(0), batch, row});
    CHECK_ARG(kOp, "packed", packed.numel() == PackedLayout<C>(shape).forward_size, "must be the forward weights");
    CHECK_DTYPE(kOp, packed, tape.scalar_type());
    check_times(kOp, from, to, tape, inputs, shape.input);
    check_link(kOp, "previous_link", previous_link, batch * at.access.link_size);
    check_link(kOp, "next_link", next_link, batch * at.access.link_size);
    const at::Tensor interface = at::empty({batch, interface_size}, x.options());
    const at::Tensor work = pooled_empty({most_threads(batch), at.access.scratch_size}, x.options());
    C* const rows = data_of<C>(tape);
    const C *const x_data = data_of<const C>(x), *const before = data_of<const C>(previous_link);
    C *const after = data_of<C>(next_link), *const y_data = data_of<C>(y);
    C *const interface_data = data_of<C>(interface), *const scratch = data_of<C>(work);
    std::copy_n(x_data, x.numel(), data_of<C>(inputs) + std::max<int64_t>(to - 1, 0) * x.numel());
    const SampleTeam team(shape, batch, at.access.n, x.options());
    for_each_share(shape, batch, 1, team, [&](Span own, int64_t t) {
      const int64_t b = own.begin;
      kernels.cell.forward(
          shape, {own.size(), data_of<const C>(packed), x_data + b * shape.input, rows + (from * batch + b) * row,
                  before ? before + b * link_size : nullptr, rows + (to * batch + b) * row,
                  after ? after + b * link_size : nullptr, y_data + b * shape.y_size(), interface_data + b * interface_size,
                  scratch + t * at.access.scratch_size, team.get()});
    });
  });
  return y;
}

at::Tensor memory_step_backward_cpu(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes,
                                    double clip_value, const at::Tensor& packed, const std::optional<at::Tensor>& grad_y,
                                    const at::Tensor& tape, const std::optional<at::Tensor>& previous_link, int64_t step,
                                    at::Tensor& grad_state, const std::optional<at::Tensor>& grad_link, at::Tensor& grads,
                                    bool wants_x) {
  constexpr const char* kOp = "memory_step_backward";
  const CellShape shape = cell_shape(MemoryStepSizes(kOp, model, options, sizes), clip_value);
  const int64_t batch = tape.size(1);
  const at::Tensor grad_x = at::empty({wants_x ? batch : 0, shape.input}, tape.options());
  const at::Tensor given = grad_y ? grad_y->contiguous() : at::Tensor();
  check_grad_y(kOp, grad_y, tape, shape.y_size());
  with_kernels(memory_kernels(), tape.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    const int64_t row = at.row_size, link_size = at.access.link_size;
    check_rows(kOp, "tape", tape, {tape.size(0), batch, row});
    check_rows(kOp, "grad_state", grad_state, {batch, at.state_size});
    check_rows(kOp, "grads", grads, {grads.size(0), batch, at.grad_size});
    CHECK_ARG(kOp, "packed", packed.numel() == PackedLayout<C>(shape).backward_size, "must be the backward weights");
    check_step(kOp, step, std::min(tape.size(0) - 1, grads.size(0)));
    check_link(kOp, "previous_link", previous_link, batch * at.access.link_size);
    check_link(kOp, "grad_link", grad_link, batch * at.access.link_size);
    const at::Tensor work = pooled_empty({most_threads(batch), at.access.scratch_size}, tape.options());
    const C *const rows = data_of<const C>(tape), *const before = data_of<const C>(previous_link);
    const C* const of_y = data_of<const C>(given);
    C *const of_state = data_of<C>(grad_state), *const of_link = data_of<C>(grad_link);
    C *const of_step = data_of<C>(grads) + step * batch * at.grad_size, *const scratch = data_of<C>(work);
    C* const of_x = wants_x ? data_of<C>(grad_x) : nullptr;
    const SampleTeam team(shape, batch, at.access.n, tape.options());
    for_each_share(shape, batch, 2, team, [&](Span own, int64_t t) {
      const int64_t b = own.begin;
      kernels.cell.backward(
          shape,
          {own.size(), data_of<const C>(packed), rows + (step * batch + b) * row, before ? before + b * link_size : nullptr,
           rows + ((step + 1) * batch + b) * row, of_y ? of_y + b * shape.y_size() : nullptr, of_state + b * at.state_size,
           of_link ? of_link + b * link_size : nullptr, of_step + b * at.grad_size, of_x ? of_x + b * shape.input : nullptr,
           scratch + t * at.access.scratch_size, team.get()});
    });
  });
  return grad_x;
}

void memory_step_relink_cpu(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes,
                            const at::Tensor& tape, const std::optional<at::Tensor>& previous_link, at::Tensor& next_link,
                            int64_t step) {
  constexpr const char* kOp = "memory_step_relink";
  const CellShape shape = cell_shape(MemoryStepSizes(kOp, model, options, sizes), 0);
  CHECK_ARG(kOp, "model", shape.access.linked(), "must be a dnc with a link, got ", model);
  with_kernels(memory_kernels(), tape.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    const int64_t batch = tape.size(1), row = at.row_size, link_size = at.access.link_size;
    check_rows(kOp, "tape", tape, {tape.size(0), batch, row});
    check_link(kOp, "previous_link", previous_link, batch * at.access.link_size);
    check_link(kOp, "next_link", next_link, batch * at.access.link_size);
    check_step(kOp, step, tape.size(0) - 1);
    const C *const rows = data_of<const C>(tape), *const before = data_of<const C>(previous_link);
    C* const after = data_of<C>(next_link);
    const SampleTeam team(shape, batch, at.access.n, tape.options());
    for_each_share(shape, batch, 1, team, [&](Span own, int64_t) {
      const int64_t b = own.begin;
      kernels.cell.relink(shape, own.size(), rows + (step * batch + b) * row, before ? before + b * link_size : nullptr,
                          rows + ((step + 1) * batch + b) * row, after + b * link_size, team.get());
    });
  });
}

std::vector<at::Tensor> memory_step_weight_gradients_cpu(std::string_view model, at::ArrayRef<double> options,
                                                         at::TensorList weights, int64_t num_locations,
                                                         const at::Tensor& inputs, const at::Tensor& tape,
                                                         const at::Tensor& grads) {
  constexpr const char* kOp = "memory_step_weight_gradients";
  const MemorySizes sizes(kOp, model, options, inputs, weights, {num_locations});
  const CellShape shape = cell_shape(sizes, 0);
  std::vector<at::Tensor> result;
  for (const Shape& s : sizes.weight_shapes()) result.push_back(pooled_empty(s, inputs.options()));
  with_kernels(memory_kernels(), inputs.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    const int64_t steps = inputs.size(0), batch = inputs.size(1), threads = at::get_num_threads();
    check_rows(kOp, "inputs", inputs, {steps, batch, shape.input});
    check_rows(kOp, "tape", tape, {steps + 1, batch, at.row_size});
    check_rows(kOp, "grads", grads, {steps, batch, at.grad_size});
    const WeightPointers<C> wanted(sizes, result);
    const C* const seen = data_of<const C>(tape) + at.features;
    in_threads(threads, [&](int64_t t) {
      kernels.cell.weight_gradients(shape,
                                    {steps * batch, data_of<const C>(inputs), seen, seen + batch * at.row_size, at.row_size,
                                     data_of<const C>(grads), *wanted},
                                    t, threads);
    });
  });
  return result;
}

void memory_step_import_cpu(std::string_view model, at::ArrayRef<double> options, const at::Tensor& inputs,
                            at::TensorList weights, int64_t num_locations, const c10::List<std::optional<at::Tensor>>& state,
                            bool is_gradient, at::Tensor& rows) {
  constexpr const char* kOp = "memory_step_import";
  const MemorySizes sizes(kOp, model, options, inputs, weights, {num_locations});
  const CellShape shape = cell_shape(sizes, 0);
  const std::vector<at::Tensor> held = sizes.checked_state(kOp, "state", state, inputs);
  with_kernels(memory_kernels(), rows.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    check_state_rows(kOp, rows, sizes.batch, at.state_size);
    kernels.cell.import_state(shape, cell_state<const C>(sizes, held), Span{0, sizes.batch}, is_gradient, data_of<C>(rows),
                              rows.size(1));
  });
}

// All but the link, in whose place is an empty tensor.
std::vector<at::Tensor> memory_step_export_cpu(std::string_view model, at::ArrayRef<double> options, const at::Tensor& inputs,
                                               at::TensorList weights, int64_t num_locations, const at::Tensor& rows) {
  constexpr const char* kOp = "memory_step_export";
  const MemorySizes sizes(kOp, model, options, inputs, weights, {num_locations});
  const CellShape shape = cell_shape(sizes, 0);
  std::vector<at::Tensor> state;
  for (const Shape& s : sizes.state_shapes()) state.push_back(pooled_empty(s, rows.options()));
  if (sizes.linked) state[MemorySizes::kLink] = at::empty({0}, rows.options());
  with_kernels(memory_kernels(), rows.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    check_state_rows(kOp, rows, sizes.batch, at.state_size);
    kernels.cell.export_state(shape, data_of<const C>(rows), rows.size(1), cell_state<C>(sizes, state), Span{0, sizes.batch});
  });
  return state;
}

// (a row of the tape, the state's part of it, a row of gradients)
std::vector<int64_t> memory_step_layout(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes,
                                        at::ScalarType dtype) {
  const CellShape shape = cell_shape(MemoryStepSizes("memory_step_layout", model, options, sizes), 0);
  std::vector<int64_t> result;
  with_kernels(memory_kernels(), dtype, [&](auto kernel_type, const auto&) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    result = {at.row_size, at.state_size, at.grad_size};
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeExplicitAutograd, m) { m.impl("memory_step_layout", memory_step_layout); }
TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("pooled_empty", pooled_empty_cpu);
  m.impl("memory_step_link_row", memory_step_link_row_cpu);
  m.impl("memory_pack", memory_pack_cpu);
  m.impl("memory_step", memory_step_cpu);
  m.impl("memory_step_backward", memory_step_backward_cpu);
  m.impl("memory_step_relink", memory_step_relink_cpu);
  m.impl("memory_step_weight_gradients", memory_step_weight_gradients_cpu);
  m.impl("memory_step_import", memory_step_import_cpu);
  m.impl("memory_step_export", memory_step_export_cpu);
}

}  // namespace routing_ext::cpu
