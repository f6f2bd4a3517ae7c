// A normalised interface, forward and backward. Linked with bugs planted in the kernels.
#include "memory/memory_cell.cuh"
#include "step_check.h"

namespace {

constexpr int64_t kSize = 300;

cudaError_t run(std::vector<Values>& results) {
  Filler fill;
  Values weight(kSize), bias(kSize), x = unset(kSize), grad = x, normed = x, scale = unset(1), grad_weight = x, grad_bias = x;
  for (Values* values : {&weight, &bias, &x, &grad}) fill(*values, -1, 1);
  const NormForward<float> forward{
      {}, kBatch, kSize, 1e-5f, weight.data(), bias.data(), rows_of<float>(x), rows_of<float>(normed), rows_of<float>(scale)};
  cudaError_t error = launch_norm(forward, nullptr);
  if (error != cudaSuccess) return error;
  const NormBackward<float> backward{{},
                                     kBatch,
                                     kSize,
                                     weight.data(),
                                     rows_of<const float>(normed),
                                     rows_of<const float>(scale),
                                     rows_of<float>(grad),
                                     rows_of<float>(grad_weight),
                                     rows_of<float>(grad_bias)};
  error = launch_norm_backward(backward, nullptr);
  results = {x, normed, scale, grad, grad_weight, grad_bias};
  return error;
}

}  // namespace

int main() { print_whether_the_same(run); }
