// TERMINOLOGY
//   K selections; a row holds K numbers in proportion to the probabilities of the actions.
//   decision  one of `count`: the i-th, of sample order[i], has the i-th row of noise.
#include "sampling.cuh"

#include "../common/host_device.h"
#include "launch.cuh"

namespace routing_ext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

struct Decision {
  int64_t sample, row;  // -1: none
};

__device__ __forceinline__ Decision decision_at(const Samples& s, int64_t i) {
  const int64_t sample = s.order == nullptr ? i : s.order[i];
  if (sample < 0 || sample >= s.batch) return {-1, -1};
  const int64_t row = s.row_of == nullptr ? sample : s.row_of[sample];
  return {sample, row >= 0 && row < s.rows ? row : -1};
}

template <class T>
struct Candidate {
  T score;
  int action;

  // Whether it comes before another one: as torch's argmax has it, but the first of equal ones.
  __device__ __forceinline__ bool beats(const Candidate& other) const {
    const bool is_nan = score != score, other_is_nan = other.score != other.score;
    if (is_nan != other_is_nan) return is_nan;
    return score > other.score || (!(score < other.score) && action < other.action);
  }
};

// A warp a decision.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_largest_kernel(Samples s, const T* probs, const T* noise) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= s.count) return;
  const int lane = threadIdx.x % kWarp;
  const Decision d = decision_at(s, i);
  if (d.sample < 0) return;
  if (d.row < 0) {
    if (lane == 0) s.actions[d.sample] = 0;
    return;
  }
  const T *prob = probs + d.row * s.selections, *q = noise + i * s.selections;
  Candidate<T> best{0, INT32_MAX};
  for (int64_t k = lane; k < s.selections; k += kWarp) {
    const Candidate<T> own{prob[k] / q[k], static_cast<int>(k)};
    if (best.action == INT32_MAX || own.beats(best)) best = own;
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Candidate<T> other{__shfl_xor_sync(kFullWarp, best.score, distance),
                             __shfl_xor_sync(kFullWarp, best.action, distance)};
    if (other.action != INT32_MAX && (best.action == INT32_MAX || other.beats(best))) best = other;
  }
  if (lane == 0) s.actions[d.sample] = best.action;
}

// A thread a decision: it adds in the order of the actions, so that one of probability 0 has no part of the line.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_by_inversion_kernel(Samples s, const T* probs, const T* noise) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= s.count) return;
  const Decision d = decision_at(s, i);
  if (d.sample < 0) return;
  int64_t action = 0;
  if (d.row >= 0) {
    const T* prob = probs + d.row * s.selections;
    double total = 0;
    for (int64_t k = 0; k < s.selections; ++k) total += prob[k];
    const double target = (1.0 - noise[i]) * total;  // above zero
    double sum = prob[0];
    while (action < s.selections - 1 && sum < target) sum += prob[++action];
  }
  s.actions[d.sample] = action;
}

}  // namespace

template <class T>
cudaError_t launch_sample_largest(const Samples& s, const T* probs, const T* noise, cudaStream_t stream) {
  if (s.selections <= 0 || s.selections >= INT32_MAX) return cudaErrorInvalidValue;
  if (s.count == 0) return cudaSuccess;
  return launch(sample_largest_kernel<T>, dim3(static_cast<unsigned>(divide_up(s.count, kWarps))), dim3(kThreads), 0, stream,
                s, probs, noise);
}

template <class T>
cudaError_t launch_sample_by_inversion(const Samples& s, const T* probs, const T* noise, cudaStream_t stream) {
  if (s.selections <= 0) return cudaErrorInvalidValue;
  if (s.count == 0) return cudaSuccess;
  return launch(sample_by_inversion_kernel<T>, dim3(static_cast<unsigned>(divide_up(s.count, kThreads))), dim3(kThreads), 0,
                stream, s, probs, noise);
}

#define INSTANTIATE(T)                                                                          \
  template cudaError_t launch_sample_largest(const Samples&, const T*, const T*, cudaStream_t); \
  template cudaError_t launch_sample_by_inversion(const Samples&, const T*, const T*, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
