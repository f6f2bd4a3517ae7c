// TERMINOLOGY
//   B samples, each of n choices: row b * n + j is the j-th of sample b.
#include "combine_rows.cuh"

#include "../common/host_device.h"
#include "element_types.cuh"
#include "launch.cuh"

namespace routing_ext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// A thread an element of the result.
template <class T>
__global__ void __launch_bounds__(kThreads)
    combine_rows_kernel(CombinedRows r, const T* __restrict__ y, const T* __restrict__ weights, T* __restrict__ combined) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= r.batch * r.width) return;
  const int64_t sample = e / r.width, column = e % r.width, first = sample * r.choices;
  Accumulator<T> sum = 0;
  for (int64_t j = 0; j < r.choices; ++j) sum += widen(weights[first + j]) * widen(y[(first + j) * r.width + column]);
  combined[e] = narrow<T>(sum);
}

// A thread an element of y.
template <class T>
__global__ void __launch_bounds__(kThreads) combine_rows_grad_y_kernel(CombinedRows r, const T* __restrict__ grad,
                                                                       const T* __restrict__ weights, T* __restrict__ grad_y) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= r.batch * r.choices * r.width) return;
  const int64_t row = e / r.width, column = e % r.width;
  grad_y[e] = narrow<T>(widen(weights[row]) * widen(grad[row / r.choices * r.width + column]));
}

// A warp a weight.
template <class T>
__global__ void __launch_bounds__(kThreads)
    combine_rows_grad_weights_kernel(CombinedRows r, const T* __restrict__ grad, const T* __restrict__ y,
                                     T* __restrict__ grad_weights) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= r.batch * r.choices) return;
  const int lane = threadIdx.x % kWarp;
  const T *g = grad + row / r.choices * r.width, *from = y + row * r.width;
  Accumulator<T> sum = 0;
  for (int64_t i = lane; i < r.width; i += kWarp) sum += widen(g[i]) * widen(from[i]);
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(kFullWarp, sum, distance);
  if (lane == 0) grad_weights[row] = narrow<T>(sum);
}

dim3 blocks_for(int64_t items, int64_t items_a_block) { return dim3(static_cast<unsigned>(divide_up(items, items_a_block))); }

}  // namespace

template <class T>
cudaError_t launch_combine_rows(const CombinedRows& r, const T* y, const T* weights, T* combined, cudaStream_t stream) {
  const int64_t elements = r.batch * r.width;
  if (elements == 0) return cudaSuccess;
  return launch(combine_rows_kernel<T>, blocks_for(elements, kThreads), dim3(kThreads), 0, stream, r, y, weights, combined);
}

template <class T>
cudaError_t launch_combine_rows_backward(const CombinedRows& r, const T* grad, const T* y, const T* weights, T* grad_y,
                                         T* grad_weights, cudaStream_t stream) {
  const int64_t rows = r.batch * r.choices;
  if (grad_y != nullptr && rows * r.width > 0) {
    const cudaError_t error = launch(combine_rows_grad_y_kernel<T>, blocks_for(rows * r.width, kThreads), dim3(kThreads), 0,
                                     stream, r, grad, weights, grad_y);
    if (error != cudaSuccess) return error;
  }
  if (grad_weights == nullptr || rows == 0) return cudaSuccess;
  return launch(combine_rows_grad_weights_kernel<T>, blocks_for(rows, kWarps), dim3(kThreads), 0, stream, r, grad, y,
                grad_weights);
}

#define INSTANTIATE(T)                                                                                 \
  template cudaError_t launch_combine_rows(const CombinedRows&, const T*, const T*, T*, cudaStream_t); \
  template cudaError_t launch_combine_rows_backward(const CombinedRows&, const T*, const T*, const T*, T*, T*, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
INSTANTIATE(__half);
INSTANTIATE(__nv_bfloat16);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
