// A DNC's step. Linked with bugs planted in the kernels.
#include "step_check.h"

namespace {

const StepShape kShape{true, kBatch, 70, 9, 2, 3, 0, {}};

struct State {
  std::vector<Values> arrays;

  State() {
    const int64_t n = kShape.locations, v = kShape.writes * n, r = kShape.reads * n;
    for (const int64_t size : {n * kShape.word, n, v, v * n, v, r}) arrays.push_back(unset(size));
  }
  // Gives Rows of T, float or const float.
  template <class T>
  StepState<T> rows() {
    const auto of = [&](size_t i) { return rows_of<T>(arrays[i]); };
    return {of(0), of(1), of(2), of(3), of(4), of(5)};
  }
};

cudaError_t run(std::vector<Values>& results) {
  Filler fill;
  State before, after;
  for (Values& values : before.arrays) fill(values, 0, values.size() == before.arrays[0].size() ? 1 : 0.02f);
  fill(before.arrays[1], 0, 1);
  Values interface = unset(kShape.interface_size()), read = unset(kShape.reads * kShape.word);
  Values record = unset(DncRecord(kShape).size);
  fill(interface, -2, 2);
  Step<float> step{};
  step.interface = rows_of<const float>(interface);
  step.previous = before.rows<const float>(), step.next = after.rows<float>();
  step.read_vectors = rows_of<float>(read), step.record = rows_of<float>(record);
  Values scratch(dnc_step_scratch_bytes<float>(kShape) / sizeof(float));
  const cudaError_t error = launch_dnc_step(kShape, step, scratch.data(), nullptr);
  results = after.arrays;
  results.push_back(read), results.push_back(record);
  return error;
}

}  // namespace

int main() { print_whether_the_same(run); }
