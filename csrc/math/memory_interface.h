// What a step of a memory network does differently if asked to, and what it reads from its interface vector. Torch-free.
#pragma once
#include <cstdint>

namespace routing_ext {

// routing_ext/_memory_options.py explains them. All zero: as in the reference.
struct MemoryOptions {
  bool paper_usage;
  double temperature;  // of allocation by softmax; zero: by sorting

  static constexpr int kCount = 2;  // numbers, in this order
  static MemoryOptions of(const double* numbers) { return {numbers[0] != 0, numbers[1]}; }
};

}  // namespace routing_ext
