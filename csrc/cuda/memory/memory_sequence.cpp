// A memory network over a sequence. What does not depend on the step before is one product of torch for all steps: the
// inputs' share of the gates, the outputs, and the gradients of the inputs and of the weights. The others, of the gates and of
// the interface, come in one of two ways (sequence_launch.h), which leave the same tape:
//   by steps        the host goes through the steps: products by torch, and between them kernels of the cell and steps of the
//                   accessor
//   in one launch   a block goes through the steps of one sample, and makes the products itself
// The host never waits for the device, and asks it for nothing: lengths and resets are looked at by the kernels alone. So a
// CUDA graph can hold a sequence.
//
// A sample whose end has come keeps its state where it is: no kernel writes it any more. Rows of steps that a sample does not
// take hold anything, and are selected away before they could meet another's in a sum.
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "../../common/memory_masks_args.h"
#include "network.h"
#include "sequence_launch.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// Lengths and resets, on the device. The host does not see them: a length beyond the sequence is taken for its end.
class Masks {
 public:
  Masks(const char* op, const MemorySizes& s, const Optional& lengths, const Optional& resets, const Tensor& x)
      : batch_(s.batch),
        lengths_(checked_lengths(op, lengths, s.batch, x.device())),
        resets_(checked_resets(op, resets, s.steps, s.batch, x.device())) {
    if (lengths_.defined()) lengths_ = at::clamp(lengths_, 0, s.steps);
  }
  bool any() const { return lengths_.defined() || resets_.defined(); }
  bool has_lengths() const { return lengths_.defined(); }
  bool has_resets() const { return resets_.defined(); }
  SequenceSamples samples() const { return {data_of<const int64_t>(lengths_), data_of<const bool>(resets_), batch_}; }

 private:
  int64_t batch_;
  Tensor lengths_, resets_;
};

// The accessor's state with which samples begin anew; nothing if there are no resets.
template <class C>
class InitialState {
 public:
  InitialState(const Network& net, const Masks& masks, const Tensor& memory, const at::TensorOptions& options,
               cudaStream_t stream) {
    if (!masks.has_resets()) return;
    const auto empty = [&](int64_t size) { return at::empty({net.batch(), size}, options); };
    rows_.memory = empty(net.memory()), rows_.usage = empty(net.usage());
    rows_.write_weights = empty(net.write_weights()), rows_.read_weights = empty(net.read_weights());
    GivenState given;
    given.memory = memory;
    Moves<C> moves(net);
    add_import(moves, net, given, rows_, false);
    moves.launch(stream);
  }
  StepState<const C> operator*() const {
    StepState<const C> state;
    state.memory = sample_rows<const C>(rows_.memory), state.usage = sample_rows<const C>(rows_.usage);
    state.write_weights = sample_rows<const C>(rows_.write_weights);
    state.read_weights = sample_rows<const C>(rows_.read_weights);
    return state;
  }

 private:
  StateRows rows_;
};

// to [T,B,width] = factor * from, as SelectRows has it, without initial rows.
template <class C>
void select_rows(const Network& net, const SequenceSamples& samples, const Tensor& from, const Tensor& factor,
                 const Tensor& to, cudaStream_t stream) {
  const SelectRows<C> select{
      samples, 0, to.size(0), to.size(2), step_rows<const C>(from), step_rows<const C>(factor), step_rows<C>(to), false, 0, 0};
  check_launch(net.op, launch_select_rows(select, stream));
}
// to [steps,B,F]: the features from `time` on as the steps from there see them.
template <class C>
void select_seen(const Network& net, const SequenceSamples& samples, int64_t time, const Tensor& from, const Tensor& to,
                 cudaStream_t stream) {
  const SelectRows<C> select{samples,
                             time,
                             to.size(0),
                             net.features(),
                             step_rows<const C>(from),
                             {},
                             step_rows<C>(to),
                             true,
                             net.hidden,
                             static_cast<C>(net.initial_memory())};
  check_launch(net.op, launch_select_rows(select, stream));
}

// ---- forward ---------------------------------------------------------------------------------------------------------------

// The arguments are those of forward_in_one_launch.
template <class C>
void forward_by_steps(const StepContext<C>& run, const Masks& masks, int64_t steps, const Tensor& x, const LinkTimes<C>& links,
                      const GivenState& last) {
  const Network& net = run.net;
  const SequenceSamples samples = masks.samples();
  const Tensor& features = run.tape.state.features;
  // The final states of samples whose end is at this time, that of all if there are no lengths.
  const auto export_ends = [&](int64_t time) {
    Moves<C> exports(net);
    add_export(exports, net, state_at(run.tape.state, time), last);
    if (time < steps || steps == 0) exports.add(links.at(time), sample_rows<C>(last.link), net.link());
    exports.launch_for_ends(samples, time, run.stream);
  };
  Tensor interface, anew;  // of one step
  if (net.hidden > 0) {
    interface = at::empty({net.batch(), net.interface()}, x.options());
    if (masks.has_resets()) anew = at::empty({1, net.batch(), net.features()}, x.options());
  }
  for (int64_t time = 0; time < steps; ++time) {
    if (masks.has_lengths()) export_ends(time);
    Tensor seen = features[time];
    if (anew.defined()) {
      select_seen<C>(net, samples, time, features.narrow(0, time, 1), anew, run.stream);
      seen = anew[0];
    }
    step_forward(run, samples.at(time), time, time + 1, seen, net.hidden > 0 ? interface : x[time], links.at(time),
                 links.made(time + 1));
  }
  export_ends(steps);
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> memory_sequence_cuda(
    std::string_view model, at::ArrayRef<double> options_, const Tensor& x, const c10::List<Optional>& state,
    at::TensorList weights, const Optional& lengths, const Optional& resets, const Optional& reset_memory,
    at::IntArrayRef sizes, double clip_value, int64_t link_every, bool keep) {
  const LaunchScope scope(x);
  const MemorySequenceArgs a(model, options_, x, state, weights, reset_memory, sizes, link_every);
  const MemorySizes& s = a.sizes;
  const Network net(a.kOp, s, clip_value);
  const Masks masks(a.kOp, s, lengths, resets, x);
  const SequenceSamples samples = masks.samples();
  const Weights w(net, a.weights);
  const at::TensorOptions options = x.options();
  const int64_t steps = s.steps, batch = s.batch, row = row_size(net, model, options_, x.scalar_type());

  const Tensor y = at::empty({steps, batch, net.y_size()}, options);
  std::vector<Tensor> final_state, tape_tensors;
  for (const Shape& shape : s.state_shapes()) final_state.push_back(at::empty(shape, options));
  const GivenState before(net, a.state), after(net, final_state);
  // Without a backward pass two rows take turns. There are features and gates of all steps then, too, but no slopes.
  const Tensor rows = at::empty({keep ? steps + 1 : 2, batch, row}, options);
  Tape tape(net, rows);
  if (keep) {
    tape_tensors = {rows, at::empty({s.links_on_tape(link_every, x.element_size())}, options)};
  } else {
    tape.state.features = at::empty({steps + 1, batch, net.features()}, options);
    tape.gates = at::empty({steps + 1, batch, 4 * net.hidden}, options);
    tape.slopes = at::empty({steps + 1, batch, net.output}, options);
    tape.record = Tensor();
  }

  with_state_type(x.scalar_type(), [&](auto kernel_type) {
    using C = typename decltype(kernel_type)::type;
    const cudaStream_t stream = scope.stream();
    const InitialState<C> initial(net, masks, a.reset_memory, options, stream);
    const Tensor scratch = step_scratch<C>(net.step, false, options);
    const StepContext<C> run{net, w, tape, *initial, scratch.mutable_data_ptr(), stream};
    Moves<C> imports(net);
    add_import(imports, net, before, state_at(tape.state, 0), false);
    imports.launch(stream);

    // Links: after the last step where the caller gets it, the kept ones on the tape, the others in two places by turns.
    const int64_t others = std::clamp<int64_t>(steps - 1, 0, 2);
    const Tensor other_links = at::empty({keep && link_every == 1 ? 0 : others * batch * net.link()}, options);
    LinkTimes<C> links{net.link(), batch, steps, sample_rows<const C>(before.link), sample_rows<C>(after.link)};
    if (keep) links.kept = data_of<C>(tape_tensors[1]), links.every = static_cast<unsigned>(std::min(link_every, steps + 1));
    links.others = data_of<C>(other_links), links.turns = static_cast<unsigned>(std::max<int64_t>(others, 1));

    const Tensor& features = tape.state.features;
    if (net.hidden > 0) {
      Tensor gates = all_rows(tape.gates.narrow(0, 1, steps));
      at::addmm_out(gates, w.gate_bias, all_rows(a.x), w.input.t());
    }
    const SequenceShape shape{net.step, steps, net.hidden};
    const SequenceWay way = sequence_way<C>(a.kOp, shape, false);
    if (way.blocks > 0) {
      forward_in_one_launch(run, shape, way, samples, a.x, links, after);
    } else {
      forward_by_steps(run, masks, steps, a.x, links, after);
    }

    const Tensor made = features.narrow(0, 1, steps);
    if (net.output == 0) return select_rows<C>(net, samples, made, {}, y, stream);
    const Tensor slopes = tape.slopes.narrow(0, 1, steps);
    Tensor outputs = all_rows(slopes);
    at::addmm_out(outputs, w.output_bias, all_rows(made), w.output.t());
    output_forward<C>(net, samples, slopes, y, stream);
  });
  return {y, std::move(final_state), std::move(tape_tensors)};
}

// ---- backward --------------------------------------------------------------------------------------------------------------

// The arguments are those of backward_in_one_launch.
template <class C>
void backward_by_steps(const StepContext<C>& run, const Masks& masks, int64_t steps, const LinkTimes<C>& links,
                       const Tensor& of_features, const StepGradients& of, const StepState<C>& of_state,
                       const Rows<C>& of_cell, const Rows<C>& of_reset_memory) {
  const Network& net = run.net;
  const SequenceSamples samples = masks.samples();
  CutGradients<C> cut{{}, net.batch(), 0, {}};
  const auto add_cut = [&](const Rows<C>& grad, const Rows<C>& sum = {}) {
    if (grad.data != nullptr) cut.parts[cut.num_parts++] = {grad, sum, grad.stride};
  };
  add_cut(of_state.memory, of_reset_memory);
  add_cut(of_state.usage), add_cut(of_state.precedence), add_cut(of_state.link);
  add_cut(of_state.write_weights), add_cut(of_state.read_weights);

  const Tensor carried = masks.has_resets() ? at::empty({net.batch(), 4 * net.hidden}, of_features.options()) : Tensor();
  for (int64_t time = steps - 1; time >= 0; --time) {
    if (links.size > 0 && (time == steps - 1 || (time + 1) % links.every == 0)) {
      for (int64_t t = time / links.every * links.every; t < time; ++t) {
        step_relink(run, samples.at(t), t, t + 1, links.at(t), links.made(t + 1));
      }
    }
    StepGradients of_step;
    of_step.gates = of.gates[time], of_step.interface = of.interface[time];
    of_step.norm = of.norm[time], of_step.norm_bias = of.norm_bias[time];
    step_backward(run, samples.at(time), time, time + 1, links.at(time), of_state, of_cell, of_features[time + 1], of_step,
                  carried, of_features[time], true);
    cut.samples = samples.at(time);
    check_launch(net.op, launch_cut_gradients(cut, run.stream));
  }
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor> memory_sequence_backward_cuda(
    std::string_view model, at::ArrayRef<double> options_, const Optional& grad_y, const c10::List<Optional>& grad_state,
    const Tensor& x, const Optional& given_link, at::TensorList weights, const Optional& lengths, const Optional& resets,
    const Optional& reset_memory, at::TensorList tape_tensors, at::IntArrayRef sizes, double clip_value, int64_t link_every,
    std::array<bool, 4> output_mask) {
  const LaunchScope scope(x);
  const MemorySequenceBackwardArgs a(model, options_, grad_y, grad_state, x, given_link, weights, reset_memory, sizes,
                                     link_every, output_mask);
  const MemorySizes& s = a.sizes;
  const Network net(a.kOp, s, clip_value);
  const Masks masks(a.kOp, s, lengths, resets, x);
  const SequenceSamples samples = masks.samples();
  const Weights w(net, a.weights);
  const at::TensorOptions options = x.options();
  const int64_t steps = s.steps, batch = s.batch, row = row_size(net, model, options_, x.scalar_type());
  a.check_tape(tape_tensors, row);
  const Tape tape(net, tape_tensors[0].view({steps + 1, batch, row}));

  std::vector<Tensor> grad_weights, grad_initial;
  for (const Shape& shape : s.state_shapes()) grad_initial.push_back(at::empty(shape, options));
  const GivenState before(net, grad_initial), after(net, a.grad_state);
  const Tensor grad_x = at::empty(a.wants_x ? a.x.sizes() : at::IntArrayRef{0}, options);
  const Tensor grad_reset = a.wants_reset_memory ? at::zeros(a.reset_memory.sizes(), options) : at::empty({0}, options);

  with_state_type(x.scalar_type(), [&](auto kernel_type) {
    using C = typename decltype(kernel_type)::type;
    const cudaStream_t stream = scope.stream();
    const InitialState<C> initial(net, masks, a.reset_memory, options, stream);
    const Tensor scratch = step_scratch<C>(net.step, true, options);
    const StepContext<C> run{net, w, tape, *initial, scratch.mutable_data_ptr(), stream};

    // Of what each step gives. Without a controller, the inputs are the interface.
    StepGradients of;
    of.gates = at::empty({steps, batch, 4 * net.hidden}, options);
    of.interface = net.hidden == 0 && a.wants_x ? grad_x : at::empty({steps, batch, net.interface()}, options);
    of.output = at::empty({steps, batch, net.output}, options);
    of.norm = at::empty({steps, batch, net.normalised()}, options), of.norm_bias = at::empty_like(of.norm);
    if (masks.has_lengths()) of.interface.zero_();

    // Of the features at all times: from the outputs, and from the final state.
    const Tensor of_features = at::empty({steps + 1, batch, net.features()}, options);
    const Tensor from_outputs = of_features.narrow(0, 1, steps);
    if (!a.grad_y.defined()) {
      of_features.zero_(), of.output.zero_();
    } else {
      of_features[0].zero_();
      if (net.output == 0) {
        select_rows<C>(net, samples, a.grad_y, {}, from_outputs, stream);
      } else {
        select_rows<C>(net, samples, a.grad_y, tape.slopes.narrow(0, 1, steps), of.output, stream);
        Tensor all = all_rows(from_outputs);
        at::mm_out(all, all_rows(of.output), w.output);
      }
    }
    const AddFinal<C> add_final{samples.lengths,
                                steps,
                                batch,
                                net.hidden,
                                net.reads(),
                                data_of<const C>(after.hidden),
                                data_of<const C>(after.read_vectors),
                                data_of<C>(of_features)};
    check_launch(a.kOp, launch_add_final(add_final, stream));

    // Of the state, in place from step to step: where the caller gets that of the first one.
    StateRows of_rows;
    of_rows.memory = before.memory, of_rows.usage = before.usage, of_rows.precedence = before.precedence;
    of_rows.write_weights = before.write_weights, of_rows.read_weights = before.read_weights, of_rows.cell = before.cell;
    Moves<C> imports(net);
    add_import(imports, net, after, of_rows, true);
    imports.add(after.link, before.link);
    imports.launch(stream);
    const StepState<C> of_state = accessor_state<C>(before);
    const Rows<C> of_cell = sample_rows<C>(before.cell), of_reset_memory = sample_rows<C>(grad_reset);

    // The links that are not on the tape are made again, all between two that are.
    const int64_t between = std::max<int64_t>(std::min(link_every, steps) - 1, 0);
    const Tensor links_between = at::empty({between * batch * net.link()}, options);
    LinkTimes<C> links{net.link(), batch, steps, sample_rows<const C>(a.link), {}, data_of<C>(tape_tensors[1])};
    links.others = data_of<C>(links_between), links.every = static_cast<unsigned>(std::min(link_every, steps + 1)),
    links.turns = static_cast<unsigned>(std::max<int64_t>(between, 1));

    const SequenceShape shape{net.step, steps, net.hidden};
    const SequenceWay way = sequence_way<C>(a.kOp, shape, true);
    if (way.blocks > 0) {
      backward_in_one_launch(run, shape, way, samples, links, of_features, of, of_state, of_cell, of_reset_memory);
    } else {
      backward_by_steps(run, masks, steps, links, of_features, of, of_state, of_cell, of_reset_memory);
    }
    if (a.wants_state) {
      Moves<C> exports(net);
      exports.add(of_features[0].narrow(1, 0, net.hidden), before.hidden);
      exports.add(of_features[0].narrow(1, net.hidden, net.reads()), before.read_vectors);
      exports.launch(stream);
    }
    if (net.hidden == 0) return;

    if (a.wants_x) {
      Tensor all = all_rows(grad_x);
      at::mm_out(all, all_rows(of.gates), w.input);
    }
    if (!a.wants_weights) return;
    Tensor seen = tape.state.features.narrow(0, 0, steps), made = tape.state.features.narrow(0, 1, steps), inputs = a.x;
    if (masks.any()) {
      const auto selected = [&](Tensor& t, const auto& select) {
        const Tensor result = at::empty(t.sizes(), options);
        select(t, result);
        t = result;
      };
      const auto there = [&](const Tensor& from, const Tensor& to) { select_rows<C>(net, samples, from, {}, to, stream); };
      selected(seen, [&](const Tensor& from, const Tensor& to) { select_seen<C>(net, samples, 0, from, to, stream); });
      selected(made, there), selected(inputs, there);
    }
    grad_weights = weight_gradients(net, s, inputs, seen, made, of);
  });

  if (!a.wants_state) {
    grad_initial.clear();
  } else if (s.linked && !a.link.defined()) {
    grad_initial[MemorySizes::kLink] = at::empty({0}, options);
  }
  return {grad_x, std::move(grad_weights), std::move(grad_initial), grad_reset};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("memory_sequence", memory_sequence_cuda);
  m.impl("memory_sequence_backward", memory_sequence_backward_cuda);
}

}  // namespace routing_ext::cuda
