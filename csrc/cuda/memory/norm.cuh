// The normalisation of an interface: normed = (x - mean) scale, scale = 1 / sqrt(variance + epsilon), and the result is
// normed weight + bias.
#pragma once
#include <cuda_runtime.h>

#include "group.cuh"

namespace routing_ext::cuda {

__host__ __device__ constexpr int64_t norm_partials_size() { return 2 * partials_size(1, 1); }

// x [size] becomes the result; normed [size] and scale [1] are set. partials [norm_partials_size]. Barriers within; none at
// the end.
template <class Group, class T>
__device__ void normalise(const Group& group, int size, T epsilon, const T* weight, const T* bias, T* x, T* normed, T* scale,
                          T* partials) {
  const RowSums<1, T> sum(group, 1, size, partials, [&](int) { return [&](int i, T(&sums)[1]) { sums[0] += x[i]; }; });
  group.sync();
  const T mean = sum.total(0) / static_cast<T>(size);
  const RowSums<1, T> squares(group, 1, size, partials + partials_size(1, 1),
                              [&](int) { return [&](int i, T(&sums)[1]) { sums[0] += (x[i] - mean) * (x[i] - mean); }; });
  group.sync();
  const T factor = T(1) / sqrt(squares.total(0) / static_cast<T>(size) + epsilon);
  for_each(group, size, [&](int i) {
    const T n = (x[i] - mean) * factor;
    normed[i] = n, x[i] = n * weight[i] + bias[i];
  });
  if (group.rank() == 0) *scale = factor;
}

// grad [size]: of the result, becomes that of x. grad_weight and grad_bias [size] are set. partials [norm_partials_size]. A
// barrier within; none at the end.
template <class Group, class T>
__device__ void normalise_backward(const Group& group, int size, const T* weight, const T* normed, const T* scale, T* grad,
                                   T* grad_weight, T* grad_bias, T* partials) {
  const RowSums<2, T> sums(group, 1, size, partials, [&](int) {
    return [&](int i, T(&sums)[2]) {
      const T of_normed = grad[i] * weight[i];
      sums[0] += of_normed, sums[1] += of_normed * normed[i];
    };
  });
  group.sync();
  const T mean = sums.total(0, 0) / static_cast<T>(size), along = sums.total(0, 1) / static_cast<T>(size);
  for_each(group, size, [&](int i) {
    const T g = grad[i];
    grad_weight[i] = g * normed[i], grad_bias[i] = g;
    grad[i] = *scale * (g * weight[i] - mean - normed[i] * along);
  });
}

}  // namespace routing_ext::cuda
