// An NTM over a sequence, in one launch each pass, with one block a sample and with four. Linked with bugs planted in the
// kernels.
#include "memory/ntm_record.cuh"
#include "memory/sequence.cuh"
#include "step_check.h"

namespace {

constexpr int64_t kSteps = 3, kHidden = 20;
const StepShape kStep{false, kBatch, 12, 5, 2, 3, 3, {}};
const SequenceShape kShape{kStep, kSteps, kHidden};
constexpr int64_t kLengths[kBatch] = {3, 2};
constexpr bool kResets[kSteps * kBatch] = {false, false, true, false, false, false};

// [times,B,size], NaN.
struct Timed {
  int64_t size;
  Values values;

  Timed(int64_t times, int64_t size_) : size(size_), values(times * kBatch * size_, NAN) {}
  template <class T>
  TimedRows<T> rows() {
    return {values.data(), size, kBatch * size, false};
  }
  template <class T>
  Rows<T> first() {
    return {values.data(), size};
  }
};

struct States {
  Timed memory, write_weights, read_weights;

  explicit States(int64_t times)
      : memory(times, kStep.locations * kStep.word),
        write_weights(times, kStep.writes * kStep.locations),
        read_weights(times, kStep.reads * kStep.locations) {}
  template <class T>
  TimedState<T> rows() {
    return {memory.rows<T>(), {}, {}, write_weights.rows<T>(), read_weights.rows<T>()};
  }
  template <class T>
  StepState<T> first() {
    return {memory.first<T>(), {}, {}, {}, write_weights.first<T>(), read_weights.first<T>()};
  }
};

cudaError_t run(SequenceWay way, std::vector<Values>& results) {
  Filler fill;
  const auto fill_first = [&](Timed& array, float low, float high) {
    fill.first(array.values, kBatch * array.size, low, high);
  };
  const int64_t interface_size = kStep.interface_size(), features_size = kShape.features();
  Values recurrent(4 * kHidden * features_size), interface_weights(interface_size * kHidden), bias(interface_size);
  for (Values* weights : {&recurrent, &interface_weights, &bias}) fill(*weights, -0.5f, 0.5f);

  Timed features(kSteps + 1, features_size), cell(kSteps + 1, kHidden), gates(kSteps + 1, 4 * kHidden);
  Timed tanh_cell(kSteps + 1, kHidden), record(kSteps + 1, NtmRecord(kStep).size);
  States state(kSteps + 1), initial(1), last(1);
  Timed last_hidden(1, kHidden), last_cell(1, kHidden), last_read(1, features_size - kHidden);
  fill_first(features, -1, 1), fill_first(cell, -1, 1), fill(gates.values, -1, 1);
  for (States* s : {&state, &initial}) {
    fill_first(s->memory, -1, 1), fill_first(s->write_weights, 0, 0.05f), fill_first(s->read_weights, 0, 0.05f);
  }
  const SequenceSamples samples{kLengths, kResets, kBatch};
  SequenceForward<float> forward{};
  forward.samples = samples, forward.clip = 20, forward.initial_read = 1e-6f;
  forward.recurrent = recurrent.data(), forward.interface_weights = interface_weights.data();
  forward.interface_bias = bias.data();
  forward.features = features.rows<float>(), forward.cell = cell.rows<float>(), forward.gates = gates.rows<float>();
  forward.tanh_cell = tanh_cell.rows<float>(), forward.record = record.rows<float>();
  forward.state = state.rows<float>(), forward.initial = initial.first<const float>(), forward.last = last.first<float>();
  forward.last_hidden = last_hidden.first<float>(), forward.last_cell = last_cell.first<float>();
  forward.last_read = last_read.first<float>();
  const cudaError_t error = launch_ntm_sequence(kShape, way, forward, nullptr);
  if (error != cudaSuccess) return error;
  for (const Timed* array : {&last.memory, &last.write_weights, &last.read_weights, &last_hidden, &last_cell, &last_read}) {
    results.push_back(array->values);
  }

  Timed of_features(kSteps + 1, features_size), of_gates(kSteps, 4 * kHidden), of_interface(kSteps, interface_size);
  Timed of_cell(1, kHidden), of_reset(1, kStep.locations * kStep.word);
  States of_state(1);
  fill(of_features.values, -1, 1);
  for (Timed* array : {&of_cell, &of_reset, &of_state.memory, &of_state.write_weights, &of_state.read_weights}) {
    fill_first(*array, -1, 1);
  }
  std::fill(of_interface.values.begin(), of_interface.values.end(), 0.f);
  SequenceBackward<float> backward{};
  backward.samples = samples, backward.clip = 20;
  backward.recurrent = recurrent.data(), backward.interface_weights = interface_weights.data();
  backward.cell = cell.rows<const float>(), backward.gates = gates.rows<const float>();
  backward.tanh_cell = tanh_cell.rows<const float>(), backward.record = record.rows<const float>();
  backward.state = state.rows<const float>(), backward.initial = initial.first<const float>();
  backward.of_features = of_features.rows<float>(), backward.of_gates = of_gates.rows<float>();
  backward.of_interface = of_interface.rows<float>(), backward.of_state = of_state.first<float>();
  backward.of_cell = of_cell.first<float>(), backward.of_reset_memory = of_reset.first<float>();
  const cudaError_t failed = launch_ntm_sequence_backward(kShape, way, backward, nullptr);
  for (const Timed* array : {&of_features, &of_gates, &of_interface, &of_cell, &of_reset, &of_state.memory,
                             &of_state.write_weights, &of_state.read_weights}) {
    results.push_back(array->values);
  }
  return failed;
}

}  // namespace

int main() {
  print_whether_the_same([](std::vector<Values>& results) {
    const cudaError_t error = run({1, SequenceFit::weights}, results);
    return error == cudaSuccess ? run({4, SequenceFit::weights}, results) : error;
  });
}
