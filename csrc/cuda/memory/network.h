// A memory network on the device: where everything of its tape lies, its weights as the products want them, and one step,
// forward and backward, of controller and accessor. Whole sequences and single steps share it.
//
// A tape [times,B,row] has rows as long as the CPU's: its shape does not depend on the device, what lies where in a row does.
// The row of a time has the state at that time, and what the backward pass needs of the step that led to it.
//
// H hidden units, F = H + R*W features: the hidden state, then the read vectors. IF: elements of the interface.
#pragma once
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/split_with_sizes_copy.h>
#include <ATen/ops/sum.h>

#include <string_view>
#include <utility>
#include <vector>

#include "../../common/memory_sequence_args.h"
#include "memory_cell.cuh"
#include "step_glue.h"

namespace routing_ext::cuda {

// Of [times,B,size], at a time; a tensor of fewer times is used in turns.
inline at::Tensor at_time(const at::Tensor& t, int64_t time) { return t.select(0, time % t.size(0)); }
template <class C>
Rows<C> rows_at(const at::Tensor& t, int64_t time) {
  if (t.numel() == 0) return {};
  return {data_of<C>(t) + time % t.size(0) * t.stride(0), t.stride(1)};
}
// [T,B,.] with all steps in one dimension, the same memory.
inline at::Tensor all_rows(const at::Tensor& t) { return t.flatten(0, 1); }
template <class C>
Rows<C> step_rows(const at::Tensor& t) {
  if (!t.defined() || t.numel() == 0) return {};
  return {data_of<C>(t), t.size(1) > 1 ? t.stride(1) : t.stride(0)};
}

template <class C>
Rows<const C> read_only(const Rows<C>& rows) {
  return {rows.data, rows.stride};
}
template <class C>
StepState<const C> read_only(const StepState<C>& s) {
  return {read_only(s.memory), read_only(s.usage),         read_only(s.precedence),
          read_only(s.link),   read_only(s.write_weights), read_only(s.read_weights)};
}

struct Network {
  const char* op;
  StepShape step;
  int64_t input, hidden, output;  // I, H, O
  double clip;

  Network(const char* op_, const MemorySizes& s, double clip_value) : Network(op_, s, s.batch, clip_value) {
    CHECK_ARG(op, "weights", !s.deaf && s.first_rows.empty(),
              "must be of a controller that hears, and one by one for the parts of the interface, on this device");
  }
  // Of MemorySizes or MemoryStepSizes.
  template <class Sizes>
  Network(const char* op_, const Sizes& s, int64_t batch, double clip_value)
      : op(op_),
        step{s.dnc, batch, s.locations, s.word, s.writes, s.reads, s.shifts, s.options},
        input(s.input),
        hidden(s.hidden),
        output(s.output),
        clip(clip_value) {}

  int64_t batch() const { return step.batch; }
  int64_t reads() const { return step.reads * step.word; }
  int64_t features() const { return hidden + reads(); }
  int64_t interface() const { return step.interface_size(); }
  int64_t normalised() const { return step.options.normalises ? interface() : 0; }  // elements of the interface: all or none
  int64_t y_size() const { return output > 0 ? output : features(); }
  int64_t memory() const { return step.locations * step.word; }
  int64_t usage() const { return step.dnc ? step.locations : 0; }
  int64_t precedence() const { return step.linked() ? step.writes * step.locations : 0; }
  int64_t link() const { return precedence() * step.locations; }
  int64_t write_weights() const { return step.writes * step.locations; }
  int64_t read_weights() const { return step.reads * step.locations; }
  int64_t record() const { return record_size(step); }
  double initial_memory() const { return step.options.zero_state ? 0 : 1e-6; }  // and read vectors
};

// ---- rows ------------------------------------------------------------------------------------------------------------------

// Hands out parts of rows [.,size] one after the other.
class RowParts {
 public:
  explicit RowParts(const at::Tensor& rows) : rows_(rows) {}
  at::Tensor take(int64_t size) {
    constexpr int64_t kAlign = 4;  // so that each part of a row is aligned to 16 bytes
    const int64_t here = used_;
    used_ += round_up(size, kAlign);
    TORCH_INTERNAL_ASSERT(here + size <= rows_.size(-1), "rows of ", rows_.size(-1), " elements are too short");
    return rows_.narrow(-1, here, size);
  }

 private:
  at::Tensor rows_;
  int64_t used_ = 0;
};

// A state, or the gradient of one, [...,B,size] each; all but the link.
struct StateRows {
  at::Tensor features, cell, memory, usage, precedence, write_weights, read_weights;

  StateRows() = default;
  StateRows(const Network& net, RowParts& parts)
      : features(parts.take(net.features())),
        cell(parts.take(net.hidden)),
        memory(parts.take(net.memory())),
        usage(parts.take(net.usage())),
        precedence(parts.take(net.precedence())),
        write_weights(parts.take(net.write_weights())),
        read_weights(parts.take(net.read_weights())) {}
};

// Of [times,B,size], the state at a time.
inline StateRows state_at(const StateRows& all, int64_t time) {
  StateRows rows;
  rows.features = at_time(all.features, time), rows.cell = at_time(all.cell, time), rows.memory = at_time(all.memory, time);
  rows.usage = at_time(all.usage, time), rows.precedence = at_time(all.precedence, time);
  rows.write_weights = at_time(all.write_weights, time), rows.read_weights = at_time(all.read_weights, time);
  return rows;
}

// The length of a row of a tape.
inline int64_t row_size(const Network& net, std::string_view model, at::ArrayRef<double> options, at::ScalarType dtype) {
  const StepShape& s = net.step;
  return memory_row_size(model, options, {net.input, net.hidden, net.output, s.locations, s.word, s.writes, s.reads, s.shifts},
                         dtype);
}

// [times,B,size] each.
struct Tape {
  StateRows state;
  at::Tensor gates, tanh_cell, slopes;  // 4H, H, O: of the LSTM, and of the outputs
  at::Tensor normed, scale;             // IF, 1: of the interface's normalisation, see NormForward
  at::Tensor record;                    // of the accessor; undefined: there will be no backward pass

  Tape(const Network& net, const at::Tensor& rows) : Tape(net, RowParts(rows)) {}

 private:
  Tape(const Network& net, RowParts parts)
      : state(net, parts),
        gates(parts.take(4 * net.hidden)),
        tanh_cell(parts.take(net.hidden)),
        slopes(parts.take(net.output)),
        normed(parts.take(net.normalised())),
        scale(parts.take(net.normalised() > 0 ? 1 : 0)),
        record(parts.take(net.record())) {}
};

// Of one step, [B,size] each, or of many: of the gates and of the interface before their activations, of what the output layer
// gives, and each step's share of those of weight and bias of the normalisation.
struct StepGradients {
  at::Tensor gates, interface, output;  // 4H, IF, O
  at::Tensor norm, norm_bias;           // IF twice

  StepGradients() = default;
  StepGradients(const Network& net, const at::Tensor& rows) : StepGradients(net, RowParts(rows)) {}

 private:
  StepGradients(const Network& net, RowParts parts)
      : gates(parts.take(4 * net.hidden)),
        interface(parts.take(net.interface())),
        output(parts.take(net.output)),
        norm(parts.take(net.normalised())),
        norm_bias(parts.take(net.normalised())) {}
};

// ---- weights ---------------------------------------------------------------------------------------------------------------

// As the products want them.
struct Weights {
  at::Tensor input;                      // [4H,I]
  at::Tensor recurrent;                  // [4H,F]: of the hidden state, then of the read vectors
  at::Tensor gate_bias;                  // [4H]: the sum of both
  at::Tensor interface, interface_bias;  // [IF,H], [IF]
  at::Tensor norm, norm_bias;            // [IF] twice; undefined without a normalisation
  at::Tensor output, output_bias;        // [O,F], [O]; undefined without an output layer

  Weights() = default;
  // given: as MemorySizes has them.
  Weights(const Network& net, const std::vector<at::Tensor>& given) {
    if (net.hidden == 0) return;
    input = given[0].narrow(1, 0, net.input);
    recurrent = at::cat({given[1], given[0].narrow(1, net.input, net.reads())}, 1);
    gate_bias = at::add(given[2], given[3]);
    const InterfaceParts interface_parts = net.step.parts();
    std::vector<at::Tensor> parts, biases;
    for (int p = 0; p < interface_parts.count; ++p) parts.push_back(given[4 + 2 * p]), biases.push_back(given[5 + 2 * p]);
    interface = at::cat(parts), interface_bias = at::cat(biases);
    const size_t norm_at = 4 + 2 * interface_parts.count;
    if (net.normalised() > 0) norm = given[norm_at], norm_bias = given[norm_at + 1];
    if (net.output > 0) output = given[given.size() - 2], output_bias = given.back();
  }

  // All of them in one tensor, and back.
  at::Tensor packed() const {
    std::vector<at::Tensor> all;
    for (const at::Tensor& t :
         {input, recurrent, gate_bias, interface, interface_bias, norm, norm_bias, output, output_bias}) {
      if (t.defined()) all.push_back(t.flatten());
    }
    return at::cat(all);
  }
  static int64_t packed_size(const Network& net) {
    return 4 * net.hidden * (net.input + net.features() + 1) + net.interface() * (net.hidden + 1) + 2 * net.normalised() +
           net.output * (net.features() + 1);
  }
  Weights(const Network& net, const at::Tensor& packed) {
    int64_t used = 0;
    const auto take = [&](int64_t rows, int64_t columns) {
      const at::Tensor here = packed.narrow(0, used, rows * columns).view({rows, columns});
      used += rows * columns;
      return here;
    };
    input = take(4 * net.hidden, net.input), recurrent = take(4 * net.hidden, net.features());
    gate_bias = take(1, 4 * net.hidden)[0];
    interface = take(net.interface(), net.hidden), interface_bias = take(1, net.interface())[0];
    if (net.normalised() > 0) norm = take(1, net.interface())[0], norm_bias = take(1, net.interface())[0];
    if (net.output > 0) output = take(net.output, net.features()), output_bias = take(1, net.output)[0];
  }
};

// The gradients of the weights of all steps, in the order and the shapes of MemorySizes. x, seen and made [T,B,.]: the
// inputs, and the features before and after each step.
inline std::vector<at::Tensor> weight_gradients(const Network& net, const MemorySizes& s, const at::Tensor& x,
                                                const at::Tensor& seen, const at::Tensor& made, const StepGradients& of) {
  std::vector<at::Tensor> grads;
  for (const Shape& shape : s.weight_shapes()) grads.push_back(at::empty(shape, x.options()));
  const at::Tensor of_gates = all_rows(of.gates), of_interface = all_rows(of.interface), all_seen = all_rows(seen);
  // Not at::mm, which autocast would make one of low precision.
  const auto product = [](at::Tensor to, const at::Tensor& of_outputs, const at::Tensor& inputs) {
    at::mm_out(to, of_outputs.t(), inputs);
  };
  product(grads[0].narrow(1, 0, net.input), of_gates, all_rows(x));
  product(grads[0].narrow(1, net.input, net.reads()), of_gates, all_seen.narrow(1, net.hidden, net.reads()));
  product(grads[1], of_gates, all_seen.narrow(1, 0, net.hidden));
  at::sum_out(grads[2], of_gates, at::IntArrayRef{0});
  grads[3].copy_(grads[2]);
  std::vector<at::Tensor> parts, biases;
  for (size_t p = 0; p < s.interface.size(); ++p) parts.push_back(grads[4 + 2 * p]), biases.push_back(grads[5 + 2 * p]);
  const at::Tensor all_made = all_rows(made), of_parts = at::empty({net.interface(), net.hidden}, x.options());
  product(of_parts, of_interface, all_made.narrow(1, 0, net.hidden));
  at::split_with_sizes_copy_out(parts, of_parts, s.interface, 0);
  at::split_with_sizes_copy_out(biases, at::sum(of_interface, at::IntArrayRef{0}), s.interface, 0);
  if (net.normalised() > 0) {
    at::sum_out(grads[s.norm_at()], all_rows(of.norm), at::IntArrayRef{0});
    at::sum_out(grads[s.norm_at() + 1], all_rows(of.norm_bias), at::IntArrayRef{0});
  }
  if (net.output > 0) {
    product(grads[grads.size() - 2], all_rows(of.output), all_made);
    at::sum_out(grads.back(), all_rows(of.output), at::IntArrayRef{0});
  }
  return grads;
}

// ---- states ----------------------------------------------------------------------------------------------------------------

// As the caller has it, in the order of MemorySizes::state_shapes, any of them undefined, or none at all.
struct GivenState {
  at::Tensor memory, usage, precedence, link, write_weights, read_weights, hidden, cell, read_vectors;

  GivenState() = default;
  GivenState(const Network& net, const std::vector<at::Tensor>& state) {
    if (state.empty()) return;
    size_t i = 0;
    memory = state[i++];
    if (net.step.dnc) usage = state[i++], precedence = state[i++], link = state[i++];
    write_weights = state[i++], read_weights = state[i++], hidden = state[i++], cell = state[i++], read_vectors = state[i++];
  }
};

// One launch that copies parts of a state.
template <class C>
class Moves {
 public:
  explicit Moves(const Network& net) : net_(net) { all_.batch = net.batch(); }

  // `from` not there: `otherwise`, with ones in between.
  void add(const Rows<const C>& from, const Rows<C>& to, int64_t size, C otherwise = 0, int64_t ones_every = 0) {
    if (to.data != nullptr) all_.parts[all_.num_parts++] = {from, to, size, otherwise, ones_every};
  }
  void add(const at::Tensor& from, const at::Tensor& to, C otherwise = 0, int64_t ones_every = 0) {
    if (!to.defined() || to.numel() == 0) return;
    add(sample_rows<const C>(from), sample_rows<C>(to), to.numel() / to.size(0), otherwise, ones_every);
  }
  void launch(cudaStream_t stream) const { check_launch(net_.op, launch_move_states(all_, stream)); }
  // Of the samples whose end is at this time.
  void launch_for_ends(const SequenceSamples& samples, int64_t time, cudaStream_t stream) {
    all_.lengths = samples.lengths, all_.time = time;
    launch(stream);
  }

 private:
  const Network& net_;
  MoveStates<C> all_{};
};

// The caller's state, what is not given being the initial one, or zero for a gradient, into rows. All but the link.
template <class C>
void add_import(Moves<C>& moves, const Network& net, const GivenState& given, const StateRows& to, bool is_gradient) {
  const bool is_zero = is_gradient || net.step.options.zero_state;
  const C initial = is_gradient ? C(0) : static_cast<C>(net.initial_memory());
  const int64_t ones_every = is_zero ? 0 : net.step.locations;
  moves.add(given.memory, to.memory, initial);
  moves.add(given.usage, to.usage);
  moves.add(given.precedence, to.precedence);
  moves.add(given.write_weights, to.write_weights, 0, ones_every);
  moves.add(given.read_weights, to.read_weights, 0, ones_every);
  moves.add(given.cell, to.cell);
  if (!to.features.defined()) return;
  moves.add(given.hidden, to.features.narrow(1, 0, net.hidden));
  moves.add(given.read_vectors, to.features.narrow(1, net.hidden, net.reads()), initial);
}
template <class C>
void add_export(Moves<C>& moves, const Network& net, const StateRows& from, const GivenState& to) {
  moves.add(from.memory, to.memory);
  moves.add(from.usage, to.usage);
  moves.add(from.precedence, to.precedence);
  moves.add(from.write_weights, to.write_weights);
  moves.add(from.read_weights, to.read_weights);
  moves.add(from.cell, to.cell);
  moves.add(from.features.narrow(1, 0, net.hidden), to.hidden);
  moves.add(from.features.narrow(1, net.hidden, net.reads()), to.read_vectors);
}

// The accessor's part at a time.
template <class C>
StepState<C> step_state(const StateRows& rows, int64_t time, const Rows<C>& link) {
  return {rows_at<C>(rows.memory, time),        rows_at<C>(rows.usage, time),       rows_at<C>(rows.precedence, time), link,
          rows_at<C>(rows.write_weights, time), rows_at<C>(rows.read_weights, time)};
}
// y [T,B,O], and slopes [T,B,O] in place of what the output layer gives.
template <class C>
void output_forward(const Network& net, const SequenceSamples& samples, const at::Tensor& slopes, const at::Tensor& y,
                    cudaStream_t stream) {
  const OutputForward<C> output{samples,
                                y.size(0),
                                net.output,
                                net.step.options.linear_output,
                                static_cast<C>(net.clip),
                                step_rows<const C>(slopes),
                                step_rows<C>(y),
                                step_rows<C>(slopes)};
  check_launch(net.op, launch_output(output, stream));
}

// ---- one step --------------------------------------------------------------------------------------------------------------

// What steps of a run have in common.
template <class C>
struct StepContext {
  const Network& net;
  const Weights& weights;
  const Tape& tape;
  StepState<const C> initial;  // with resets
  void* scratch;               // of step_scratch
  cudaStream_t stream;
};

// The controller and the accessor take the step from one time of the tape to another. The gates of the later time are there as
// far as they come from the inputs. seen [B,F]: the features before. interface [B,IF]: scratch, or it, without a controller.
template <class C>
void step_forward(const StepContext<C>& run, const StepSamples& now, int64_t from, int64_t to, const at::Tensor& seen,
                  const at::Tensor& interface, const Rows<const C>& previous_link, const Rows<C>& next_link) {
  const Network& net = run.net;
  const StateRows& state = run.tape.state;
  const at::Tensor features = at_time(state.features, to);
  if (net.hidden > 0) {
    at::Tensor gates = at_time(run.tape.gates, to), interface_out = interface;
    at::addmm_out(gates, gates, seen, run.weights.recurrent.t());
    const LstmForward<C> lstm{now,
                              net.batch(),
                              net.hidden,
                              static_cast<C>(net.clip),
                              rows_at<const C>(state.cell, from),
                              sample_rows<C>(gates),
                              rows_at<C>(state.cell, to),
                              rows_at<C>(run.tape.tanh_cell, to),
                              sample_rows<C>(features)};
    check_launch(net.op, launch_lstm(lstm, run.stream));
    at::addmm_out(interface_out, run.weights.interface_bias, features.narrow(1, 0, net.hidden), run.weights.interface.t());
  }
  if (net.normalised() > 0) {
    const NormForward<C> norm{now,
                              net.batch(),
                              net.interface(),
                              static_cast<C>(net.step.options.epsilon),
                              data_of<const C>(run.weights.norm),
                              data_of<const C>(run.weights.norm_bias),
                              sample_rows<C>(interface),
                              rows_at<C>(run.tape.normed, to),
                              rows_at<C>(run.tape.scale, to)};
    check_launch(net.op, launch_norm(norm, run.stream));
  }
  Step<C> step{};
  step.samples = now, step.interface = sample_rows<const C>(interface);
  step.previous = step_state<const C>(state, from, previous_link), step.initial = run.initial;
  step.next = step_state<C>(state, to, next_link);
  step.read_vectors = sample_rows<C>(features.narrow(1, net.hidden, net.reads()));
  if (run.tape.record.defined()) step.record = rows_at<C>(run.tape.record, to);
  check_launch(net.op, launch_step(net.step, step, run.scratch, run.stream));
}

// grads, grad_cell: of the state after the step, become those of the state before. of_features [B,F]: of the features after
// the step; that of the hidden state is added to. of: is set. of_before [B,F]: of the features before the step, added to if
// `adds`, else set; may be of_features then. carried [B,4H]: scratch, if samples may begin anew.
template <class C>
void step_backward(const StepContext<C>& run, const StepSamples& now, int64_t from, int64_t to,
                   const Rows<const C>& previous_link, const StepState<C>& grads, const Rows<C>& grad_cell,
                   const at::Tensor& of_features, const StepGradients& of, const at::Tensor& carried, at::Tensor of_before,
                   bool adds) {
  const Network& net = run.net;
  const StateRows& state = run.tape.state;
  StepBackward<C> step{};
  step.samples = now;
  step.previous = step_state<const C>(state, from, previous_link), step.initial = run.initial;
  step.next = step_state<const C>(state, to, {}), step.record = rows_at<const C>(run.tape.record, to);
  step.grad_next = read_only(grads), step.grad_previous = grads;
  step.grad_read_vectors = sample_rows<const C>(of_features.narrow(1, net.hidden, net.reads()));
  step.grad_interface = sample_rows<C>(of.interface);
  check_launch(net.op, launch_step_backward(net.step, step, run.scratch, run.stream));
  if (net.hidden == 0) return;

  if (net.normalised() > 0) {
    const NormBackward<C> norm{now,
                               net.batch(),
                               net.interface(),
                               data_of<const C>(run.weights.norm),
                               rows_at<const C>(run.tape.normed, to),
                               rows_at<const C>(run.tape.scale, to),
                               sample_rows<C>(of.interface),
                               sample_rows<C>(of.norm),
                               sample_rows<C>(of.norm_bias)};
    check_launch(net.op, launch_norm_backward(norm, run.stream));
  }
  at::Tensor of_hidden = of_features.narrow(1, 0, net.hidden);
  at::addmm_out(of_hidden, of_hidden, of.interface, run.weights.interface);
  const LstmBackward<C> lstm{now,
                             net.batch(),
                             net.hidden,
                             static_cast<C>(net.clip),
                             rows_at<const C>(state.cell, from),
                             rows_at<const C>(run.tape.gates, to),
                             rows_at<const C>(run.tape.tanh_cell, to),
                             sample_rows<const C>(of_hidden),
                             grad_cell,
                             sample_rows<C>(of.gates),
                             sample_rows<C>(carried)};
  check_launch(net.op, launch_lstm_backward(lstm, run.stream));
  const at::Tensor& back = carried.defined() ? carried : of.gates;
  if (adds) {
    at::addmm_out(of_before, of_before, back, run.weights.recurrent);
  } else {
    at::mm_out(of_before, back, run.weights.recurrent);
  }
}

// The link after a step, made again.
template <class C>
void step_relink(const StepContext<C>& run, const StepSamples& now, int64_t from, int64_t to,
                 const Rows<const C>& previous_link, const Rows<C>& next_link) {
  Step<C> step{};
  step.samples = now;
  step.previous = step_state<const C>(run.tape.state, from, previous_link), step.initial = run.initial;
  step.next.write_weights = rows_at<C>(run.tape.state.write_weights, to), step.next.link = next_link;
  check_launch(run.net.op, launch_dnc_relink(run.net.step, step, run.stream));
}

}  // namespace routing_ext::cuda
