// A memory network step by step, on a tape that the caller keeps: see cpu/memory_step.cpp. Rows of the tape are those of
// memory_sequence, and links are not padded. `sizes` are I, H, O, N, W, V, R, S.
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "../../common/memory_step_args.h"
#include "network.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

Network network(const char* op, std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes, int64_t batch,
                double clip_value = 0) {
  return Network(op, MemoryStepSizes(op, model, options, sizes), batch, clip_value);
}

void check_tape(const Network& net, std::string_view model, at::ArrayRef<double> options, const Tensor& tape) {
  check_rows(net.op, "tape", tape, {tape.size(0), net.batch(), row_size(net, model, options, tape.scalar_type())});
}
void check_weights(const Network& net, const Tensor& packed) {
  CHECK_ARG(net.op, "packed", packed.numel() == Weights::packed_size(net), "must be the packed weights");
}
template <class C>
Rows<C> link_rows(const Network& net, const char* argument, const Optional& link) {
  if (!link || net.link() == 0) return {};
  check_link(net.op, argument, link, net.batch() * net.link());
  return {data_of<C>(*link), net.link()};
}

Tensor pooled_empty_cuda(at::IntArrayRef sizes, const Tensor& like) { return at::empty(sizes, like.options()); }
int64_t memory_step_link_row_cuda(const Tensor&, int64_t num_locations) { return num_locations; }

// The same for both passes.
Tensor memory_pack_cuda(std::string_view model, at::ArrayRef<double> options, const Tensor& x, at::TensorList weights,
                        int64_t num_locations, bool) {
  const LaunchScope scope(x);
  const MemorySizes sizes("memory_pack", model, options, x, weights, {num_locations});
  return Weights(Network("memory_pack", sizes, 0), contiguous_tensors(weights)).packed();
}

Tensor memory_step_cuda(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes, double clip_value,
                        const Tensor& packed, const Tensor& x, Tensor& rows, Tensor& inputs, const Optional& previous_link,
                        const Optional& next_link, int64_t from, int64_t to) {
  const LaunchScope scope(x);
  const Network net = network("memory_step", model, options, sizes, rows.size(1), clip_value);
  check_inputs(net.op, x, rows, net.input);
  check_tape(net, model, options, rows);
  check_weights(net, packed);
  check_times(net.op, from, to, rows, inputs, net.input);
  const Weights w(net, packed);
  const Tape tape(net, rows);
  const Tensor y = at::empty({1, net.batch(), net.y_size()}, x.options());
  inputs[std::max<int64_t>(to - 1, 0)].copy_(x);
  with_state_type(x.scalar_type(), [&](auto kernel_type) {
    using C = typename decltype(kernel_type)::type;
    const Tensor scratch = step_scratch<C>(net.step, false, x.options());
    const StepContext<C> run{net, w, tape, {}, scratch.mutable_data_ptr(), scope.stream()};
    Tensor gates = tape.gates[to];
    at::addmm_out(gates, w.gate_bias, x, w.input.t());
    step_forward(run, {}, from, to, tape.state.features[from], at::empty({net.batch(), net.interface()}, x.options()),
                 link_rows<const C>(net, "previous_link", previous_link), link_rows<C>(net, "next_link", next_link));
    const Tensor features = tape.state.features[to];
    if (net.output == 0) {
      y[0].copy_(features);
      return;
    }
    const Tensor slopes = tape.slopes.narrow(0, to, 1);
    Tensor outputs = slopes[0];
    at::addmm_out(outputs, w.output_bias, features, w.output.t());
    output_forward<C>(net, {nullptr, nullptr, net.batch()}, slopes, y, scope.stream());
  });
  return y;
}

Tensor memory_step_backward_cuda(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes,
                                 double clip_value, const Tensor& packed, const Optional& grad_y, const Tensor& rows,
                                 const Optional& previous_link, int64_t step, Tensor& grad_state, const Optional& grad_link,
                                 Tensor& grads, bool wants_x) {
  const LaunchScope scope(rows);
  const Network net = network("memory_step_backward", model, options, sizes, rows.size(1), clip_value);
  check_tape(net, model, options, rows);
  check_weights(net, packed);
  check_step(net.op, step, std::min(rows.size(0) - 1, grads.size(0)));
  check_rows(net.op, "grad_state", grad_state, {net.batch(), grad_state.size(1)});
  check_rows(net.op, "grads", grads, {grads.size(0), net.batch(), grads.size(2)});
  check_grad_y(net.op, grad_y, rows, net.y_size());
  const Weights w(net, packed);
  const Tape tape(net, rows);
  Tensor grad_x = at::empty({wants_x ? net.batch() : 0, net.input}, rows.options());
  with_state_type(rows.scalar_type(), [&](auto kernel_type) {
    using C = typename decltype(kernel_type)::type;
    const Tensor scratch = step_scratch<C>(net.step, true, rows.options());
    const StepContext<C> run{net, w, tape, {}, scratch.mutable_data_ptr(), scope.stream()};
    RowParts parts(grad_state);
    const StateRows of_state(net, parts);
    const StepGradients of(net, grads[step]);
    Tensor of_features = of_state.features, of_output = of.output;
    if (!grad_y) {
      of_output.zero_();
    } else if (net.output == 0) {
      of_features.add_(grad_y->view({net.batch(), net.y_size()}));
    } else {
      at::mul_out(of_output, tape.slopes[step + 1], grad_y->reshape({net.batch(), net.output}));
      at::addmm_out(of_features, of_features, of_output, w.output);
    }
    const StepState<C> of_accessor{sample_rows<C>(of_state.memory),        sample_rows<C>(of_state.usage),
                                   sample_rows<C>(of_state.precedence),    link_rows<C>(net, "grad_link", grad_link),
                                   sample_rows<C>(of_state.write_weights), sample_rows<C>(of_state.read_weights)};
    step_backward(run, {}, step, step + 1, link_rows<const C>(net, "previous_link", previous_link), of_accessor,
                  sample_rows<C>(of_state.cell), of_features, of, {}, of_features, false);
    if (wants_x) at::mm_out(grad_x, of.gates, w.input);
  });
  return grad_x;
}

void memory_step_relink_cuda(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes, const Tensor& rows,
                             const Optional& previous_link, Tensor& next_link, int64_t step) {
  const LaunchScope scope(rows);
  const Network net = network("memory_step_relink", model, options, sizes, rows.size(1));
  CHECK_ARG(net.op, "model", net.step.linked(), "must be a dnc with a link, got ", model);
  check_tape(net, model, options, rows);
  check_step(net.op, step, rows.size(0) - 1);
  const Weights none;
  const Tape tape(net, rows);
  with_state_type(rows.scalar_type(), [&](auto kernel_type) {
    using C = typename decltype(kernel_type)::type;
    const StepContext<C> run{net, none, tape, {}, nullptr, scope.stream()};
    step_relink(run, {}, step, step + 1, link_rows<const C>(net, "previous_link", previous_link),
                link_rows<C>(net, "next_link", next_link));
  });
}

std::vector<Tensor> memory_step_weight_gradients_cuda(std::string_view model, at::ArrayRef<double> options,
                                                      at::TensorList weights, int64_t num_locations, const Tensor& inputs,
                                                      const Tensor& rows, const Tensor& grads) {
  const LaunchScope scope(rows);
  const MemorySizes sizes("memory_step_weight_gradients", model, options, inputs, weights, {num_locations});
  const Network net("memory_step_weight_gradients", sizes, 0);
  const int64_t steps = sizes.steps;
  check_rows(net.op, "inputs", inputs, {steps, net.batch(), net.input});
  check_rows(net.op, "tape", rows, {steps + 1, net.batch(), row_size(net, model, options, rows.scalar_type())});
  check_rows(net.op, "grads", grads, {steps, net.batch(), grads.size(2)});
  const Tensor features = Tape(net, rows).state.features;
  return weight_gradients(net, sizes, inputs, features.narrow(0, 0, steps), features.narrow(0, 1, steps),
                          StepGradients(net, grads));
}

void memory_step_import_cuda(std::string_view model, at::ArrayRef<double> options, const Tensor& inputs,
                             at::TensorList weights, int64_t num_locations, const c10::List<Optional>& state, bool is_gradient,
                             Tensor& rows) {
  const LaunchScope scope(rows);
  const MemorySizes sizes("memory_step_import", model, options, inputs, weights, {num_locations});
  const Network net("memory_step_import", sizes, 0);
  check_rows(net.op, "rows", rows, {net.batch(), rows.size(1)});
  RowParts parts(rows);
  const StateRows to(net, parts);
  const std::vector<Tensor> held = sizes.checked_state(net.op, "state", state, inputs);
  with_state_type(rows.scalar_type(), [&](auto kernel_type) {
    Moves<typename decltype(kernel_type)::type> moves(net);
    add_import(moves, net, GivenState(net, held), to, is_gradient);
    moves.launch(scope.stream());
  });
}

// All but the link, in whose place is an empty tensor.
std::vector<Tensor> memory_step_export_cuda(std::string_view model, at::ArrayRef<double> options, const Tensor& inputs,
                                            at::TensorList weights, int64_t num_locations, const Tensor& rows) {
  const LaunchScope scope(rows);
  const MemorySizes sizes("memory_step_export", model, options, inputs, weights, {num_locations});
  const Network net("memory_step_export", sizes, 0);
  check_rows(net.op, "rows", rows, {net.batch(), rows.size(1)});
  RowParts parts(rows);
  const StateRows from(net, parts);
  std::vector<Tensor> state;
  for (const Shape& shape : sizes.state_shapes()) state.push_back(at::empty(shape, rows.options()));
  if (sizes.linked) state[MemorySizes::kLink] = at::empty({0}, rows.options());
  with_state_type(rows.scalar_type(), [&](auto kernel_type) {
    Moves<typename decltype(kernel_type)::type> moves(net);
    add_export(moves, net, from, GivenState(net, state));
    moves.launch(scope.stream());
  });
  return state;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("pooled_empty", pooled_empty_cuda);
  m.impl("memory_step_link_row", memory_step_link_row_cuda);
  m.impl("memory_pack", memory_pack_cuda);
  m.impl("memory_step", memory_step_cuda);
  m.impl("memory_step_backward", memory_step_backward_cuda);
  m.impl("memory_step_relink", memory_step_relink_cuda);
  m.impl("memory_step_weight_gradients", memory_step_weight_gradients_cuda);
  m.impl("memory_step_import", memory_step_import_cuda);
  m.impl("memory_step_export", memory_step_export_cuda);
}

}  // namespace routing_ext::cuda
