// For programs that ask whether kernels of memory networks give the same in every thread order; whether that is right, the op
// tests ask.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "memory/step.cuh"
#include "outcome.h"

using namespace routing_ext::cuda;
using Values = std::vector<float>;  // of all samples, one after the other

constexpr int64_t kBatch = 2;

template <class T>
Rows<T> rows_of(Values& values) {
  return {values.data(), static_cast<int64_t>(values.size()) / kBatch};
}
// Not there yet.
inline Values unset(int64_t size_of_sample) { return Values(kBatch * size_of_sample, NAN); }

// Uniform numbers, the same in every run.
class Filler {
 public:
  void operator()(Values& values, float low, float high) { first(values, values.size(), low, high); }
  // Of the first `count` values.
  void first(Values& values, int64_t count, float low, float high) {
    for (int64_t i = 0; i < count; ++i) values[i] = std::uniform_real_distribution<float>(low, high)(random_);
  }

 private:
  std::mt19937_64 random_{1};
};

// run(results) launches.
template <class Run>
void print_whether_the_same(const Run& run) {
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
