// A sequence in one launch: when it is, and of what tensors.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <string_view>

#include "../device.cuh"
#include "network.h"
#include "sequence.cuh"

namespace routing_ext::cuda {

// ---- when ------------------------------------------------------------------------------------------------------------------

// Microseconds that a step takes, but for what all ways have in common. The figures are assumptions about an H100: nothing is
// measured.
class StepTime {
 public:
  StepTime(const SequenceShape& s, int64_t element_size, bool backward)
      : batch_(static_cast<double>(s.step.batch)),
        multiprocessors_(static_cast<double>(std::max<int64_t>(multiprocessors(), 1))) {
    const StepShape& step = s.step;
    const int64_t links = step.linked() ? step.writes * step.locations * step.locations : 0;
    const int64_t memory = step.locations * step.word, weights = s.hidden * (4 * s.features() + step.interface_size());
    const auto kilobytes = [&](int64_t elements) { return static_cast<double>(elements * element_size) / 1024; };
    barriers_ = backward ? 25 : 17;
    weights_ = kilobytes(weights), state_ = kilobytes(backward ? 3 * links + 6 * memory : 2 * links + 4 * memory);
  }

  // In launches of their own: two products of torch, and two kernels that the other ways do not need; nodes of a graph.
  double by_steps() const {
    constexpr double kProduct = 4.5, kLaunch = 1.3;
    return from_l2(state_, 1) + 2 * kProduct + 2 * kLaunch;
  }
  double in_one_launch(int blocks, SequenceFit fit) const {
    constexpr double kFromShared = 130;  // KB/us
    constexpr double kBarrier = 0.4;     // of a cluster
    const bool holds = fit == SequenceFit::weights;
    return from_l2(state_ + (holds ? 0 : weights_), blocks) + (holds ? weights_ / blocks / kFromShared : 0) +
           (blocks > 1 ? barriers_ * kBarrier : 0);
  }

 private:
  double batch_, multiprocessors_, barriers_;
  double weights_, state_;  // kilobytes of a sample: the weights, and what moves of its state

  // All samples ask at the same time.
  double from_l2(double kilobytes, int blocks) const {
    constexpr double kAlone = 65, kAmongAll = 25;  // KB/us of one multiprocessor: alone, and when all ask
    const double rounds = std::ceil(batch_ * blocks / multiprocessors_);
    const double asking = std::min(batch_ * blocks, multiprocessors_);
    return rounds * kilobytes / blocks / std::min(kAlone, kAmongAll * multiprocessors_ / asking);
  }
};

// The way that is estimated to take least. For tests and measurements, the variable ROUTING_EXT_SEQUENCE says it: steps, or
// how many blocks take a sample.
template <class C>
SequenceWay sequence_way(const char* op, const SequenceShape& s, bool backward) {
  const auto fit_of = [&](int blocks) {
    return s.step.dnc ? backward ? dnc_sequence_backward_fit<C>(s, blocks) : dnc_sequence_fit<C>(s, blocks)
           : backward ? ntm_sequence_backward_fit<C>(s, blocks)
                      : ntm_sequence_fit<C>(s, blocks);
  };
  const char* const variable = std::getenv("ROUTING_EXT_SEQUENCE");
  const std::string_view wanted = variable == nullptr ? "" : variable;
  if (wanted == "steps") return {};
  const StepTime time(s, sizeof(C), backward);
  SequenceWay chosen;
  double least = time.by_steps();
  for (const int blocks : kBlocksOfSample) {
    const bool is_wanted = wanted == std::to_string(blocks);
    const bool may_pay = wanted.empty() && time.in_one_launch(blocks, SequenceFit::weights) < least;  // at best
    if (!is_wanted && !may_pay) continue;
    const SequenceFit fit = fit_of(blocks);
    CHECK_ARG(op, "ROUTING_EXT_SEQUENCE", !is_wanted || fit != SequenceFit::none,
              "must be steps where the vectors of a sample do not fit the shared memory of a block, or so many blocks do not "
              "run at once, got ",
              wanted);
    if (is_wanted) return {blocks, fit};
    if (fit == SequenceFit::none || time.in_one_launch(blocks, fit) >= least) continue;
    chosen = {blocks, fit}, least = time.in_one_launch(blocks, fit);
  }
  CHECK_ARG(op, "ROUTING_EXT_SEQUENCE", wanted.empty(), "must be steps, 1, 2, 4 or 8, got ", wanted);
  return chosen;
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
void forward_in_one_launch(const StepContext<C>& run, const SequenceShape& shape, SequenceWay way,
                           const SequenceSamples& samples, const at::Tensor& x, const LinkTimes<C>& links,
                           const GivenState& last) {
  const Network& net = run.net;
  const Tape& tape = run.tape;
  SequenceForward<C> all{};
  all.samples = samples, all.initial = run.initial;
  all.clip = static_cast<C>(net.clip), all.initial_read = static_cast<C>(net.initial_memory());
  all.recurrent = data_of<const C>(run.weights.recurrent);
  all.interface_weights = data_of<const C>(run.weights.interface);
  all.interface_bias = data_of<const C>(run.weights.interface_bias);
  all.epsilon = static_cast<C>(net.step.options.epsilon);
  all.norm = data_of<const C>(run.weights.norm), all.norm_bias = data_of<const C>(run.weights.norm_bias);
  all.normed = timed_rows<C>(tape.normed), all.scale = timed_rows<C>(tape.scale);
  if (net.hidden == 0) all.interface = timed_rows<const C>(x);
  all.features = timed_rows<C>(tape.state.features), all.cell = timed_rows<C>(tape.state.cell);
  all.gates = timed_rows<C>(tape.gates), all.tanh_cell = timed_rows<C>(tape.tanh_cell);
  all.state = timed_state<C>(tape.state), all.link = links, all.record = timed_rows<C>(tape.record);
  all.last = accessor_state<C>(last), all.last_hidden = sample_rows<C>(last.hidden);
  all.last_cell = sample_rows<C>(last.cell), all.last_read = sample_rows<C>(last.read_vectors);
  check_launch(net.op, net.step.dnc ? launch_dnc_sequence(shape, way, all, run.stream)
                                    : launch_ntm_sequence(shape, way, all, run.stream));
}

// of_features [T+1,B,F]: from the outputs and the final states, becomes the whole. of: its gates and interface are set.
// of_state, of_cell: of the final state, become those of the initial one. of_reset_memory: added to, perhaps empty.
template <class C>
void backward_in_one_launch(const StepContext<C>& run, const SequenceShape& shape, SequenceWay way,
                            const SequenceSamples& samples, const LinkTimes<C>& links, const at::Tensor& of_features,
                            const StepGradients& of, const StepState<C>& of_state, const Rows<C>& of_cell,
                            const Rows<C>& of_reset_memory) {
  const Network& net = run.net;
  const Tape& tape = run.tape;
  SequenceBackward<C> all{};
  all.samples = samples, all.clip = static_cast<C>(net.clip), all.initial = run.initial;
  all.recurrent = data_of<const C>(run.weights.recurrent);
  all.interface_weights = data_of<const C>(run.weights.interface);
  all.norm = data_of<const C>(run.weights.norm);
  all.normed = timed_rows<const C>(tape.normed), all.scale = timed_rows<const C>(tape.scale);
  all.of_norm = timed_rows<C>(of.norm), all.of_norm_bias = timed_rows<C>(of.norm_bias);
  all.cell = timed_rows<const C>(tape.state.cell), all.gates = timed_rows<const C>(tape.gates);
  all.tanh_cell = timed_rows<const C>(tape.tanh_cell), all.record = timed_rows<const C>(tape.record);
  all.state = timed_state<const C>(tape.state), all.link = links;
  all.of_features = timed_rows<C>(of_features), all.of_gates = timed_rows<C>(of.gates);
  all.of_interface = timed_rows<C>(of.interface);
  all.of_state = of_state, all.of_cell = of_cell, all.of_reset_memory = of_reset_memory;
  check_launch(net.op, net.step.dnc ? launch_dnc_sequence_backward(shape, way, all, run.stream)
                                    : launch_ntm_sequence_backward(shape, way, all, run.stream));
}

}  // namespace routing_ext::cuda
