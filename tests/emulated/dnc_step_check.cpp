// Whether a DNC's step gives the same in every thread order; whether that is right, the op tests ask. Linked with bugs planted in
// the kernels.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "memory/step.cuh"
#include "outcome.h"

namespace {

using namespace routing_ext::cuda;
using Values = std::vector<float>;

constexpr int64_t kBatch = 2;
const StepShape kShape{true, kBatch, 70, 9, 2, 3, 0, {}};

// Of each array of a state the elements of a sample, all samples one after the other.
struct State {
  std::vector<Values> arrays;

  State() {
    const int64_t n = kShape.locations, v = kShape.writes * n, r = kShape.reads * n;
    for (const int64_t size : {n * kShape.word, n, v, v * n, v, r}) arrays.emplace_back(kBatch * size, NAN);
  }
  // Gives Rows of T, float or const float.
  template <class T>
  StepState<T> rows() {
    const auto of = [&](size_t i) { return Rows<T>{arrays[i].data(), static_cast<int64_t>(arrays[i].size()) / kBatch}; };
    return {of(0), of(1), of(2), of(3), of(4), of(5)};
  }
};

cudaError_t run(std::vector<Values>& results) {
  std::mt19937_64 random(1);
  const auto fill = [&](Values& values, float low, float high) {
    for (float& x : values) x = std::uniform_real_distribution<float>(low, high)(random);
  };
  State before, after;
  for (Values& values : before.arrays) fill(values, 0, values.size() == before.arrays[0].size() ? 1 : 0.02f);
  fill(before.arrays[1], 0, 1);
  const int64_t interface_size = kShape.interface_size(), record_size = DncRecord(kShape).size;
  Values interface(kBatch * interface_size), read(kBatch * kShape.reads * kShape.word, NAN);
  Values record(kBatch * record_size, NAN);
  fill(interface, -2, 2);
  Step<float> step{};
  step.interface = {interface.data(), interface_size};
  step.previous = before.rows<const float>(), step.next = after.rows<float>();
  step.read_vectors = {read.data(), kShape.reads * kShape.word}, step.record = {record.data(), record_size};
  Values scratch(dnc_step_scratch_bytes<float>(kShape) / sizeof(float));
  const cudaError_t error = launch_dnc_step(kShape, step, scratch.data(), nullptr);
  results = after.arrays;
  results.push_back(read), results.push_back(record);
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
