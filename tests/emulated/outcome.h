// What the emulation makes of a launch, in several thread orders.
#pragma once
#include <cuda_runtime.h>

#include <cstdio>
#include <string>

// Prints "right", "wrong" or "refused <why>" for each order. `run(right)` launches and compares.
template <class Run>
void print_outcomes(const Run& run) {
  for (const int64_t order : {0, -1, 1, 2, 3}) {
    cuda_emu::order = order;
    bool right = true;
    const cudaError_t error = run(right);
    const std::string outcome = error != cudaSuccess ? std::string("refused ") + cudaGetErrorString(error)
                                : right              ? "right"
                                                     : "wrong";
    std::puts(outcome.c_str());
  }
}
