// An NTM's step, forward and backward. Linked with bugs planted in the kernels.
#include "memory/ntm_record.cuh"
#include "step_check.h"

namespace {

const StepShape kShape{false, kBatch, 70, 9, 2, 3, 3, {}};

struct State {
  Values memory, write_weights, read_weights;

  State()
      : memory(unset(kShape.locations * kShape.word)),
        write_weights(unset(kShape.writes * kShape.locations)),
        read_weights(unset(kShape.reads * kShape.locations)) {}
  template <class T>
  StepState<T> rows() {
    StepState<T> state;
    state.memory = rows_of<T>(memory);
    state.write_weights = rows_of<T>(write_weights), state.read_weights = rows_of<T>(read_weights);
    return state;
  }
};

cudaError_t run(std::vector<Values>& results) {
  Filler fill;
  State before, after, of_after, of_before;
  fill(before.memory, -1, 1), fill(before.write_weights, 0, 0.02f), fill(before.read_weights, 0, 0.02f);
  fill(of_after.memory, -1, 1), fill(of_after.write_weights, -1, 1), fill(of_after.read_weights, -1, 1);
  Values interface = unset(kShape.interface_size()), of_interface = interface;
  Values read = unset(kShape.reads * kShape.word), of_read = read, record = unset(NtmRecord(kShape).size);
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

int main() { print_whether_the_same(run); }
