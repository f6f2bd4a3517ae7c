// TERMINOLOGY
//   B samples, S steps. A thread has one sample, and walks its steps from the last to the first.
#include "returns.cuh"

#include "../common/host_device.h"
#include "../math/policy_gradients.h"
#include "launch.cuh"

namespace routing_ext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTableSteps = 64;  // of one launch: 1.5 KB of its arguments
constexpr int kUnroll = 8;       // loads in flight

template <class T>
struct StepTable {
  const T* rewards[kTableSteps];
  T* own[kTableSteps];
  T* returns[kTableSteps];
  const T* later;  // [B], the returns behind the table's last step; nullptr: none
  int steps;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    discounted_returns_kernel(Returns<T> r, const StepTable<T> __grid_constant__ table) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= r.batch) return;
  const T final_reward = r.final_reward[i], count = static_cast<T>(r.steps);
  bool is_last = table.later == nullptr;
  T later = is_last ? T(0) : table.later[i];
  for (int j = table.steps - 1; j >= 0; --j) {
    const T own = own_reward(table.rewards[j][i], count, final_reward, r.normalise, is_last);
    later = is_last ? own : own + r.discounting * later;
    table.own[j][i] = own;
    table.returns[j][i] = later;
    is_last = false;
  }
}

// A thread an action.
__global__ void __launch_bounds__(kThreads) frequencies_kernel(Collaboration c) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= c.num_actions) return;
  int64_t times = 0;
#pragma unroll kUnroll
  for (int64_t i = 0; i < c.count; ++i) times += c.history[i] == k;
  c.frequencies[k] = static_cast<float>(times) / static_cast<float>(c.count) * c.ratio;
}

__global__ void __launch_bounds__(kThreads) collaboration_rewards_kernel(Collaboration c) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= c.n) return;
  const int64_t action = c.actions[i];
  c.rewards[i] = action >= 0 && action < c.num_actions ? c.frequencies[action] * c.ratio : 0.0f;
}

dim3 blocks_for(int64_t threads) { return dim3(static_cast<unsigned>(divide_up(threads, kThreads))); }

}  // namespace

template <class T>
cudaError_t launch_discounted_returns(const Returns<T>& r, cudaStream_t stream) {
  if (r.batch == 0) return cudaSuccess;
  const T* later = nullptr;
  for (int64_t end = r.steps; end > 0;) {
    const int64_t first = larger(end - kTableSteps, 0);
    StepTable<T> table{};
    for (int64_t j = first; j < end; ++j) {
      table.rewards[j - first] = r.rewards[j];
      table.own[j - first] = r.own[j];
      table.returns[j - first] = r.returns[j];
    }
    table.later = later;
    table.steps = static_cast<int>(end - first);
    const cudaError_t error = launch(discounted_returns_kernel<T>, blocks_for(r.batch), dim3(kThreads), 0, stream, r, table);
    if (error != cudaSuccess) return error;
    later = r.returns[first];
    end = first;
  }
  return cudaSuccess;
}

cudaError_t launch_collaboration_rewards(const Collaboration& c, cudaStream_t stream) {
  if (c.num_actions > 0) {
    const cudaError_t error = launch(frequencies_kernel, blocks_for(c.num_actions), dim3(kThreads), 0, stream, c);
    if (error != cudaSuccess) return error;
  }
  if (c.n == 0) return cudaSuccess;
  return launch(collaboration_rewards_kernel, blocks_for(c.n), dim3(kThreads), 0, stream, c);
}

template cudaError_t launch_discounted_returns(const Returns<float>&, cudaStream_t);
template cudaError_t launch_discounted_returns(const Returns<double>&, cudaStream_t);

}  // namespace routing_ext::cuda
