// TERMINOLOGY
//   element   one number of the result. Most kernels here have one thread for each, and none waits for another.
//   part      a tensor of a state. The kernels that go through whole states have a row of blocks for each sample and part.
#include "memory_cell.cuh"

#include "../launch.cuh"
#include "group.cuh"
#include "lstm.cuh"
#include "norm.cuh"

namespace routing_ext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 64;  // of a part of one sample; each thread goes on from there

__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + static_cast<int64_t>(threadIdx.x);
}

template <class Params>
cudaError_t launch_elements(void (*kernel)(Params, int64_t), const Params& p, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return launch(kernel, dim3(static_cast<unsigned>(divide_up(count, kThreads))), dim3(kThreads), 0, stream, p, count);
}

// Blocks (x, part, sample).
template <class Kernel, class Params>
cudaError_t launch_parts(Kernel kernel, const Params& p, int64_t batch, cudaStream_t stream) {
  int64_t largest = 0;
  for (int i = 0; i < p.num_parts; ++i) largest = larger(largest, p.parts[i].size);
  if (largest == 0 || batch == 0) return cudaSuccess;
  const int64_t blocks = smaller(divide_up(largest, kThreads), kMostBlocks);
  const dim3 grid(static_cast<unsigned>(batch), static_cast<unsigned>(p.num_parts), static_cast<unsigned>(blocks));
  return launch(kernel, grid, dim3(kThreads), 0, stream, p);
}
// f(i) for the elements of a part that are this thread's.
template <class F>
__device__ __forceinline__ void for_each_of_part(int64_t size, const F& f) {
  const int64_t stride = static_cast<int64_t>(gridDim.z) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.z) * kThreads + threadIdx.x; i < size; i += stride) f(i);
}

// ---- the LSTM cell ---------------------------------------------------------------------------------------------------------

template <class C>
__global__ void __launch_bounds__(kThreads) lstm_kernel(LstmForward<C> p, int64_t count) {
  const int64_t e = global_thread();
  if (e >= count) return;
  const int64_t b = e / p.hidden, j = e % p.hidden;
  if (!p.samples.runs(b)) return;
  C* const gates = p.gates[b] + j;
  const C before = p.samples.begins(b) ? C(0) : p.cell_before[b][j];
  p.to[b][j] = lstm_unit(gates, gates, p.hidden, before, p.clip, p.cell[b][j], p.tanh_cell[b][j]);
}

template <class C>
__global__ void __launch_bounds__(kThreads) lstm_backward_kernel(LstmBackward<C> p, int64_t count) {
  const int64_t e = global_thread();
  if (e >= count) return;
  const int64_t b = e / p.hidden, j = e % p.hidden;
  C grads[4] = {};
  const bool anew = p.samples.begins(b);
  if (p.samples.runs(b)) {
    lstm_unit_backward(p.gates[b] + j, p.hidden, p.cell_before[b][j], p.tanh_cell[b][j], p.grad_hidden[b][j], p.clip, anew,
                       p.grad_cell[b][j], grads);
  }
  C *const all = p.grad_gates[b] + j, *const carried = p.carried_gates[b];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    all[k * p.hidden] = grads[k];
    if (carried != nullptr) carried[j + k * p.hidden] = anew ? C(0) : grads[k];
  }
}

// ---- the normalisation -----------------------------------------------------------------------------------------------------

template <class C>
__global__ void __launch_bounds__(kMaxGroup, 1) norm_kernel(NormForward<C> p) {
  __shared__ C partials[norm_partials_size()];
  const int64_t b = blockIdx.x;
  if (!p.samples.runs(b)) return;
  normalise(BlockGroup(), static_cast<int>(p.size), p.epsilon, p.weight, p.bias, p.x[b], p.normed[b], p.scale[b], partials);
}

template <class C>
__global__ void __launch_bounds__(kMaxGroup, 1) norm_backward_kernel(NormBackward<C> p) {
  __shared__ C partials[norm_partials_size()];
  const BlockGroup group;
  const int64_t b = blockIdx.x;
  const int size = static_cast<int>(p.size);
  C *const grad_weight = p.grad_weight[b], *const grad_bias = p.grad_bias[b];
  if (!p.samples.runs(b)) return for_each(group, size, [&](int i) { grad_weight[i] = grad_bias[i] = 0; });
  normalise_backward(group, size, p.weight, p.normed[b], p.scale[b], p.grad[b], grad_weight, grad_bias, partials);
}

// A block for each sample.
template <class Params>
cudaError_t launch_samples(void (*kernel)(Params), const Params& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  if (!countable(p.size)) return cudaErrorInvalidValue;
  return launch(kernel, dim3(static_cast<unsigned>(p.batch)), dim3(group_threads(p.size)), 0, stream, p);
}

// ---- rows ------------------------------------------------------------------------------------------------------------------

template <class C>
__global__ void __launch_bounds__(kThreads) select_rows_kernel(SelectRows<C> p, int64_t count) {
  const int64_t e = global_thread();
  if (e >= count) return;
  const int64_t row = e / p.width, j = e % p.width, b = row % p.samples.batch;
  const StepSamples samples = p.samples.at(p.time + row / p.samples.batch);
  C value = 0;
  if (samples.runs(b)) {
    if (p.anew && samples.begins(b)) {
      value = feature_anew(j, p.hidden, p.initial);
    } else {
      const C* const factor = p.factor[row];
      value = factor != nullptr ? factor[j] * p.from[row][j] : p.from[row][j];
    }
  }
  p.to[row][j] = value;
}

template <class C>
__global__ void __launch_bounds__(kThreads) output_kernel(OutputForward<C> p, int64_t count) {
  const int64_t e = global_thread();
  if (e >= count) return;
  const int64_t row = e / p.width, j = e % p.width;
  C y = 0, slope = 0;
  if (p.samples.at(row / p.samples.batch).runs(row % p.samples.batch)) {
    const C x = p.x[row][j];
    y = p.linear ? x : sigmoid(clamped(x, p.clip));
    slope = p.linear ? C(1) : is_unclipped(x, p.clip) ? y * (C(1) - y) : C(0);
  }
  p.y[row][j] = y;
  p.slopes[row][j] = slope;
}

// ---- states ----------------------------------------------------------------------------------------------------------------

template <class C>
__global__ void __launch_bounds__(kThreads) move_states_kernel(const MoveStates<C> __grid_constant__ p) {
  const int64_t b = blockIdx.x;
  if (p.lengths != nullptr && p.lengths[b] != p.time) return;
  const MovedPart<C>& part = p.parts[blockIdx.y];
  const C* const from = part.from[b];
  C* const to = part.to[b];
  for_each_of_part(part.size, [&](int64_t i) {
    const bool is_one = part.ones_every > 0 && i % part.ones_every == 0;
    to[i] = from != nullptr ? from[i] : is_one ? C(1) : part.otherwise;
  });
}

template <class C>
__global__ void __launch_bounds__(kThreads) cut_gradients_kernel(const CutGradients<C> __grid_constant__ p) {
  const int64_t b = blockIdx.x;
  if (!p.samples.runs(b) || !p.samples.begins(b)) return;
  const CutPart<C>& part = p.parts[blockIdx.y];
  C *const grad = part.grad[b], *const sum = part.sum[b];
  for_each_of_part(part.size, [&](int64_t i) {
    if (sum != nullptr) sum[i] += grad[i];
    grad[i] = 0;
  });
}

template <class C>
__global__ void __launch_bounds__(kThreads) add_final_kernel(AddFinal<C> p, int64_t count) {
  const int64_t e = global_thread();
  if (e >= count) return;
  const int64_t features = p.hidden + p.read_size, b = e / features, j = e % features;
  const int64_t end = p.lengths == nullptr ? p.steps : p.lengths[b];
  const C* const hidden = p.grad_hidden;
  const C* const read = p.grad_read;
  C value = 0;
  if (j < p.hidden) {
    if (hidden != nullptr) value = hidden[b * p.hidden + j];
  } else if (read != nullptr) {
    value = read[b * p.read_size + j - p.hidden];
  }
  p.grads[(end * p.batch + b) * features + j] += value;
}

}  // namespace

template <class C>
cudaError_t launch_lstm(const LstmForward<C>& p, cudaStream_t stream) {
  return launch_elements(lstm_kernel<C>, p, p.batch * p.hidden, stream);
}
template <class C>
cudaError_t launch_lstm_backward(const LstmBackward<C>& p, cudaStream_t stream) {
  return launch_elements(lstm_backward_kernel<C>, p, p.batch * p.hidden, stream);
}
template <class C>
cudaError_t launch_norm(const NormForward<C>& p, cudaStream_t stream) {
  return launch_samples(norm_kernel<C>, p, stream);
}
template <class C>
cudaError_t launch_norm_backward(const NormBackward<C>& p, cudaStream_t stream) {
  return launch_samples(norm_backward_kernel<C>, p, stream);
}
template <class C>
cudaError_t launch_select_rows(const SelectRows<C>& p, cudaStream_t stream) {
  return launch_elements(select_rows_kernel<C>, p, p.steps * p.samples.batch * p.width, stream);
}
template <class C>
cudaError_t launch_output(const OutputForward<C>& p, cudaStream_t stream) {
  return launch_elements(output_kernel<C>, p, p.steps * p.samples.batch * p.width, stream);
}
template <class C>
cudaError_t launch_move_states(const MoveStates<C>& p, cudaStream_t stream) {
  return launch_parts(move_states_kernel<C>, p, p.batch, stream);
}
template <class C>
cudaError_t launch_cut_gradients(const CutGradients<C>& p, cudaStream_t stream) {
  if (p.samples.resets == nullptr) return cudaSuccess;
  return launch_parts(cut_gradients_kernel<C>, p, p.batch, stream);
}
template <class C>
cudaError_t launch_add_final(const AddFinal<C>& p, cudaStream_t stream) {
  if (p.grad_hidden == nullptr && p.grad_read == nullptr) return cudaSuccess;
  return launch_elements(add_final_kernel<C>, p, p.batch * (p.hidden + p.read_size), stream);
}

#define ROUTING_EXT_INSTANTIATE(C)                                                 \
  template cudaError_t launch_lstm(const LstmForward<C>&, cudaStream_t);           \
  template cudaError_t launch_lstm_backward(const LstmBackward<C>&, cudaStream_t); \
  template cudaError_t launch_norm(const NormForward<C>&, cudaStream_t);           \
  template cudaError_t launch_norm_backward(const NormBackward<C>&, cudaStream_t); \
  template cudaError_t launch_select_rows(const SelectRows<C>&, cudaStream_t);     \
  template cudaError_t launch_output(const OutputForward<C>&, cudaStream_t);       \
  template cudaError_t launch_move_states(const MoveStates<C>&, cudaStream_t);     \
  template cudaError_t launch_cut_gradients(const CutGradients<C>&, cudaStream_t); \
  template cudaError_t launch_add_final(const AddFinal<C>&, cudaStream_t)
ROUTING_EXT_INSTANTIATE(float);
ROUTING_EXT_INSTANTIATE(double);
#undef ROUTING_EXT_INSTANTIATE

}  // namespace routing_ext::cuda
