// Whether an NTM's step, forward and backward, gives the same in every thread order; whether that is right, the op tests ask.
// Linked with bugs planted in the kernels.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "memory/ntm_record.cuh"
#include "outcome.h"

namespace {

using namespace routing_ext::cuda;
using Values = std::vector<float>;

constexpr int64_t kBatch = 2;
const StepShape kShape{false, kBatch, 70, 9, 2, 3, 3, {}};

template <class T>
Rows<T> rows_of(Values& values) {
  return {values.data(), static_cast<int64_t>(values.size()) / kBatch};
}

struct State {
  Values memory, write_weights, read_weights;

  State()
      : memory(kBatch * kShape.locations * kShape.word, NAN),
        write_weights(kBatch * kShape.writes * kShape.locations, NAN),
        read_weights(kBatch * kShape.reads * kShape.locations, NAN) {}
  template <class T>
  StepState<T> rows() {
    StepState<T> state;
    state.memory = rows_of<T>(memory);
    state.write_weights = rows_of<T>(write_weights), state.read_weights = rows_of<T>(read_weights);
    return state;
  }
};

cudaError_t run(std::vector<Values>& results) {
  std::mt19937_64 random(1);
  const auto fill = [&](Values& values, float low, float high) {
    for (float& x : values) x = std::uniform_real_distribution<float>(low, high)(random);
  };
  State before, after, of_after, of_before;
  fill(before.memory, -1, 1), fill(before.write_weights, 0, 0.02f), fill(before.read_weights, 0, 0.02f);
  fill(of_after.memory, -1, 1), fill(of_after.write_weights, -1, 1), fill(of_after.read_weights, -1, 1);
  Values interface(kBatch * kShape.interface_size()), of_interface(interface.size(), NAN);
  Values read(kBatch * kShape.reads * kShape.word, NAN), of_read(read.size());
  Values record(kBatch * NtmRecord(kShape).size, NAN);
  fill(interface, -2, 2), fill(of_read, -1, 1);

  Step<float> step{};
  step.interface = rows_of<const float>(interface), step.previous = before.rows<const float>();
  step.next = after.rows<float>(), step.read_vectors = rows_of<float>(read), step.record = rows_of<float>(record);
  Values scratch(ntm_step_scratch_bytes<float>(kShape) / sizeof(float));
  cudaError_t error = launch_ntm_step(kShape, step, scratch.data(), nullptr);
  if (error != cudaSuccess) return error;

  StepBackward<float> back{};
  back.previous = before.rows<const float>(), back.next = after.rows<const float>();
  back.record = rows_of<const float>(record), back.grad_next = of_after.rows<const float>();
  back.grad_read_vectors = rows_of<const float>(of_read), back.grad_previous = of_before.rows<float>();
  back.grad_interface = rows_of<float>(of_interface);
  scratch.resize(ntm_step_backward_scratch_bytes<float>(kShape) / sizeof(float));
  error = launch_ntm_step_backward(kShape, back, scratch.data(), nullptr);
  results = {after.memory,     after.write_weights,     after.read_weights,     read,        record,
             of_before.memory, of_before.write_weights, of_before.read_weights, of_interface};
  return error;
}

}  // namespace

int main() {
  std::vector<Values> first;
  print_outcomes([&](bool& right) {
    std::vector<Values> results;
    const cudaError_t error = run(results);
    if (error != cudaSuccess) return error;
    for (const Values& values : results) {
      right = right && std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
    }
    if (first.empty()) first = results;
    right = right && results == first;
    return cudaSuccess;
  });
}
