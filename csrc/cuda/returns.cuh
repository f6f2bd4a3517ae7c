// Rewards and returns of decisions. See returns.cu.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace routing_ext::cuda {

// Of S steps that all samples made. The arrays of pointers are in host memory and are read before the launch returns.
template <class T>
struct Returns {
  const T* const* rewards;  // [S], each [B]
  T* const* own;            // likewise, the steps' shares
  T* const* returns;        // likewise
  const T* final_reward;    // [B]
  int64_t steps, batch;
  bool normalise;
  T discounting;
};

// One launch for each 64 steps.
template <class T>
cudaError_t launch_discounted_returns(const Returns<T>& r, cudaStream_t stream);

struct Collaboration {
  const int64_t* history;  // [count], in [0, num_actions): others do not count
  const int64_t* actions;  // [n]; the reward of one out of range is 0
  float* frequencies;      // [num_actions]
  float* rewards;          // [n]
  int64_t count, n, num_actions;
  float ratio;
};

// Two launches.
cudaError_t launch_collaboration_rewards(const Collaboration& c, cudaStream_t stream);

}  // namespace routing_ext::cuda
