// Whether a normalised interface, forward and backward, is the same in every thread order; whether it is right, the op tests
// ask. Linked with bugs planted in the kernels.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "memory/memory_cell.cuh"
#include "outcome.h"

namespace {

using namespace routing_ext::cuda;
using Values = std::vector<float>;

constexpr int64_t kBatch = 2, kSize = 300;

Rows<float> rows_of(Values& values) { return {values.data(), static_cast<int64_t>(values.size()) / kBatch}; }
Rows<const float> given(const Values& values) { return {values.data(), static_cast<int64_t>(values.size()) / kBatch}; }

cudaError_t run(std::vector<Values>& results) {
  std::mt19937_64 random(1);
  const auto filled = [&](int64_t size) {
    Values values(size);
    for (float& x : values) x = std::uniform_real_distribution<float>(-1, 1)(random);
    return values;
  };
  const Values weight = filled(kSize), bias = filled(kSize);
  Values x = filled(kBatch * kSize), grad = filled(kBatch * kSize), normed(x.size(), NAN), scale(kBatch, NAN);
  Values grad_weight(x.size(), NAN), grad_bias(x.size(), NAN);
  const NormForward<float> forward{{},          kBatch,     kSize,           1e-5f,         weight.data(),
                                   bias.data(), rows_of(x), rows_of(normed), rows_of(scale)};
  cudaError_t error = launch_norm(forward, nullptr);
  if (error != cudaSuccess) return error;
  const NormBackward<float> backward{
      {}, kBatch, kSize, weight.data(), given(normed), given(scale), rows_of(grad), rows_of(grad_weight), rows_of(grad_bias)};
  error = launch_norm_backward(backward, nullptr);
  results = {x, normed, scale, grad, grad_weight, grad_bias};
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
