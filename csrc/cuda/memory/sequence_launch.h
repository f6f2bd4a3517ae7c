// A sequence in one launch: when it is, and of what tensors.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "network.h"
#include "sequence.cuh"

namespace routing_ext::cuda {

// ---- when ------------------------------------------------------------------------------------------------------------------

// In one launch each sample reads the weights for itself, at each step, if its block does not hold them; in return a step is
// without two products of torch and without two launches. The figures are assumptions about an H100, and not measured:
// microseconds that these take as nodes of a graph, and kilobytes a microsecond that one multiprocessor gets from L2 alone,
// and each of them when all ask. Shared memory gives about twice as much.
inline bool one_launch_pays(const SequenceShape& s, int64_t element_size, SequenceFit fit) {
  constexpr double kProductsAndLaunches = 2 * 4.5 + 2 * 1.3, kAlone = 65, kAmongAll = 25;
  if (fit != SequenceFit::vectors) return fit == SequenceFit::weights;
  const auto batch = static_cast<double>(s.step.batch), all = static_cast<double>(multiprocessors());
  const int64_t weights = s.hidden * (4 * s.features() + s.step.interface_size());
  const double kilobytes = static_cast<double>(weights * element_size) / 1024;
  return all > 0 && kilobytes * std::max(std::ceil(batch / all) / kAlone, batch / (kAmongAll * all)) <= kProductsAndLaunches;
}

// For tests and measurements, the variable ROUTING_EXT_SEQUENCE says which it is, steps or launch.
template <class C>
bool in_one_launch(const char* op, const SequenceShape& s, bool backward) {
  if (s.step.options.normalises) return false;  // its kernels know nothing of that
  const SequenceFit fit = s.step.dnc ? backward ? dnc_sequence_backward_fit<C>(s) : dnc_sequence_fit<C>(s)
                          : backward ? ntm_sequence_backward_fit<C>(s)
                                     : ntm_sequence_fit<C>(s);
  const char* const variable = std::getenv("ROUTING_EXT_SEQUENCE");
  const std::string_view wanted = variable == nullptr ? "" : variable;
  if (wanted.empty()) return one_launch_pays(s, sizeof(C), fit);
  CHECK_ARG(op, "ROUTING_EXT_SEQUENCE", wanted == "steps" || wanted == "launch", "must be steps or launch, got ", wanted);
  CHECK_ARG(op, "ROUTING_EXT_SEQUENCE", wanted == "steps" || fit != SequenceFit::none,
            "must be steps for a network whose vectors do not fit the shared memory of a block, got ", wanted);
  return wanted == "launch";
}

// ---- of what ---------------------------------------------------------------------------------------------------------------

// Of [times,B,size]: 0 to T or, if T is at most 1 or two take turns, 0 and 1.
template <class C>
TimedRows<C> timed_rows(const at::Tensor& t) {
  if (!t.defined() || t.numel() == 0) return {};
  return {data_of<C>(t), t.stride(1), t.stride(0), t.size(0) == 2};
}
template <class C>
TimedState<C> timed_state(const StateRows& rows) {
  return {timed_rows<C>(rows.memory), timed_rows<C>(rows.usage), timed_rows<C>(rows.precedence),
          timed_rows<C>(rows.write_weights), timed_rows<C>(rows.read_weights)};
}
template <class C>
StepState<C> accessor_state(const GivenState& s) {
  return {sample_rows<C>(s.memory), sample_rows<C>(s.usage),         sample_rows<C>(s.precedence),
          sample_rows<C>(s.link),   sample_rows<C>(s.write_weights), sample_rows<C>(s.read_weights)};
}

// Time 0 of the tape is there, and of the gates of all other times the share of the inputs. x [T,B,IF]: the interfaces,
// without a controller. last: is set to the state at each sample's end.
template <class C>
void forward_in_one_launch(const StepContext<C>& run, const SequenceShape& shape, const SequenceSamples& samples,
                           const at::Tensor& x, const LinkTimes<C>& links, const GivenState& last) {
  const Network& net = run.net;
  const Tape& tape = run.tape;
  SequenceForward<C> all{};
  all.samples = samples, all.initial = run.initial;
  all.clip = static_cast<C>(net.clip), all.initial_read = static_cast<C>(net.initial_memory());
  all.recurrent = data_of<const C>(run.weights.recurrent);
  all.interface_weights = data_of<const C>(run.weights.interface);
  all.interface_bias = data_of<const C>(run.weights.interface_bias);
  if (net.hidden == 0) all.interface = timed_rows<const C>(x);
  all.features = timed_rows<C>(tape.state.features), all.cell = timed_rows<C>(tape.state.cell);
  all.gates = timed_rows<C>(tape.gates), all.tanh_cell = timed_rows<C>(tape.tanh_cell);
  all.state = timed_state<C>(tape.state), all.link = links, all.record = timed_rows<C>(tape.record);
  all.last = accessor_state<C>(last), all.last_hidden = sample_rows<C>(last.hidden);
  all.last_cell = sample_rows<C>(last.cell), all.last_read = sample_rows<C>(last.read_vectors);
  check_launch(net.op,
               net.step.dnc ? launch_dnc_sequence(shape, all, run.stream) : launch_ntm_sequence(shape, all, run.stream));
}

// of_features [T+1,B,F]: from the outputs and the final states, becomes the whole. of: its gates and interface are set.
// of_state, of_cell: of the final state, become those of the initial one. of_reset_memory: added to, perhaps empty.
template <class C>
void backward_in_one_launch(const StepContext<C>& run, const SequenceShape& shape, const SequenceSamples& samples,
                            const LinkTimes<C>& links, const at::Tensor& of_features, const StepGradients& of,
                            const StepState<C>& of_state, const Rows<C>& of_cell, const Rows<C>& of_reset_memory) {
  const Network& net = run.net;
  const Tape& tape = run.tape;
  SequenceBackward<C> all{};
  all.samples = samples, all.clip = static_cast<C>(net.clip), all.initial = run.initial;
  all.recurrent = data_of<const C>(run.weights.recurrent);
  all.interface_weights = data_of<const C>(run.weights.interface);
  all.cell = timed_rows<const C>(tape.state.cell), all.gates = timed_rows<const C>(tape.gates);
  all.tanh_cell = timed_rows<const C>(tape.tanh_cell), all.record = timed_rows<const C>(tape.record);
  all.state = timed_state<const C>(tape.state), all.link = links;
  all.of_features = timed_rows<C>(of_features), all.of_gates = timed_rows<C>(of.gates);
  all.of_interface = timed_rows<C>(of.interface);
  all.of_state = of_state, all.of_cell = of_cell, all.of_reset_memory = of_reset_memory;
  check_launch(net.op, net.step.dnc ? launch_dnc_sequence_backward(shape, all, run.stream)
                                    : launch_ntm_sequence_backward(shape, all, run.stream));
}

}  // namespace routing_ext::cuda
