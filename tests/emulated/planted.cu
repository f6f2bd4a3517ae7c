// Small kernels with one bug each, that the emulation has to find. usage: planted <name of the bug>
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "launch.cuh"
#include "outcome.h"
#include "shared_arena.cuh"

namespace cg = cooperative_groups;
using routing_ext::cuda::launch;
using routing_ext::cuda::SharedArena;

namespace {

constexpr int kThreads = 96;
constexpr size_t kBytes = kThreads * sizeof(int);

// ---- races: `bug` leaves out a barrier
// -----------------------------------------------------------------------------------------

__global__ void reverse(int* x, bool bug) {
  int* const tile = SharedArena().take<int>(kThreads);
  tile[threadIdx.x] = x[threadIdx.x];
  if (!bug) __syncthreads();
  x[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

__global__ void reverse_twice(int* x, bool bug) {
  int* const tile = SharedArena().take<int>(kThreads);
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = x[threadIdx.x] + round;
    __syncthreads();
    x[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
    if (!bug) __syncthreads();  // before `tile` is written again
  }
}

__global__ void reverse_in_warp(int* x, bool bug) {
  int* const tile = SharedArena().take<int>(kThreads);
  tile[threadIdx.x] = x[threadIdx.x];
  if (!bug) __syncwarp();
  x[threadIdx.x] = tile[threadIdx.x ^ 31];
}

// Each warp has a cell for its first element, or all have the same.
__global__ void cell_of_warp(int* x, bool bug) {
  int* const cell = SharedArena().take<int>(kThreads);
  const int warp = bug ? 0 : threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) cell[warp] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = cell[warp];
}

__global__ void two_buffers(int* x, bool bug) {
  const auto cluster = cg::this_cluster();
  int* const buffers = SharedArena().take<int>(2);
  int sum = 0;
  for (int round = 0; round < 4; ++round) {
    int* const buffer = buffers + (bug ? 0 : round % 2);
    if (threadIdx.x == 0) *buffer = round * 10 + static_cast<int>(cluster.block_rank());
    cluster.sync();
    for (unsigned k = 0; k < cluster.num_blocks(); ++k) sum = sum * 3 + *cluster.map_shared_rank(buffer, k);
  }
  cluster.sync();
  if (threadIdx.x == 0) x[cluster.block_rank()] = sum;
}

// ---- shared memory
// -------------------------------------------------------------------------------------------------------------

__global__ void uninitialised(int* x) { x[threadIdx.x] = SharedArena().take<int>(kThreads)[threadIdx.x]; }
__global__ void write_past_end(int* x, int distance) {
  int* const tile = SharedArena().take<int>(kThreads);
  tile[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x == 0) tile[kThreads + distance] = 1;
}
__global__ void read_past_end(int* x) {
  int* const tile = SharedArena().take<int>(kThreads);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[threadIdx.x + 1];
}
__global__ void take_too_much(int* x) { SharedArena().take<int>(kThreads + 1)[threadIdx.x] = x[threadIdx.x]; }
__global__ void disagree(int* x) { SharedArena().take<int>(1 + threadIdx.x / 32)[0] = x[0]; }
__global__ void leave_early(int* x) {
  const auto cluster = cg::this_cluster();
  int* const value = SharedArena().take<int>(1);
  *value = 1;
  cluster.sync();
  for (unsigned k = 0; k < cluster.num_blocks(); ++k) x[k] = *cluster.map_shared_rank(value, k);
}

// ---- barriers and warp operations that not all reach
// ---------------------------------------------------------------------------

__global__ void barrier_in_branch() {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void barrier_after_return(int n) {
  if (threadIdx.x >= static_cast<unsigned>(n)) return;
  __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void shuffle_in_branch(int* x) {
  if (threadIdx.x % 32 < 8) {
    *x = __shfl_xor_sync(~0u, 1, 1);
  } else {
    __syncwarp();
  }
}
__global__ void shuffle_without_caller(int* x) {
  if (threadIdx.x < 8) *x = __shfl_xor_sync(0xff00u, 1, 1);
}
__global__ void shuffle_from_absent_lane(float* x) {
  if (threadIdx.x < 8) x[threadIdx.x] = __shfl_sync(0xffu, 1.f, 20);
}

// ---- global memory
// -------------------------------------------------------------------------------------------------------------

__global__ void global_write_past_end(int* x) { x[threadIdx.x + 1] = 0; }
__global__ void misaligned(int* x) {
  if (threadIdx.x == 0) *reinterpret_cast<int2*>(x + 1) = {1, 2};
}

std::vector<int> ascending(int n) {
  std::vector<int> x(n);
  for (int i = 0; i < n; ++i) x[i] = i;
  return x;
}

using Run = std::function<cudaError_t(bool& right)>;

// A kernel that turns 0..kThreads-1 into what its correct form does.
Run race(void (*kernel)(int*, bool)) {
  return [kernel](bool& right) {
    std::vector<int> x = ascending(kThreads), want = x;
    const cudaError_t refused = launch(kernel, 1, kThreads, kBytes, nullptr, want.data(), false);
    if (refused != cudaSuccess) return refused;
    const cudaError_t error = launch(kernel, 1, kThreads, kBytes, nullptr, x.data(), true);
    right = x == want;
    return error;
  };
}

Run cluster_race(bool bug) {
  return [bug](bool& right) {
    int x[4] = {};
    cudaLaunchAttribute attribute{cudaLaunchAttributeClusterDimension, {0, dim3(4)}};
    cudaLaunchConfig_t config{};
    config.gridDim = 4, config.blockDim = 64, config.dynamicSmemBytes = 16, config.attrs = &attribute, config.numAttrs = 1;
    const cudaError_t error = cudaLaunchKernelEx(&config, two_buffers, x, bug);
    int want = 0;
    for (int round = 0; round < 4; ++round) {
      for (int k = 0; k < 4; ++k) want = want * 3 + round * 10 + k;
    }
    right = std::all_of(x, x + 4, [&](int v) { return v == want; });
    return error;
  };
}

template <class... P, class... A>
Run simple(void (*kernel)(P...), A... args) {
  return [=](bool& right) {
    std::vector<int> x = ascending(kThreads);
    if constexpr (sizeof...(P) == sizeof...(A)) {
      return launch(kernel, 1, kThreads, kBytes, nullptr, args...);
    } else {
      const cudaError_t error = launch(kernel, 1, kThreads, kBytes, nullptr, x.data(), args...);
      right = x == ascending(kThreads);
      return error;
    }
  };
}

Run cluster_that_leaves() {
  return [](bool&) {
    std::vector<int> x(4);
    cudaLaunchAttribute attribute{cudaLaunchAttributeClusterDimension, {0, dim3(4)}};
    cudaLaunchConfig_t config{};
    config.gridDim = 4, config.blockDim = 64, config.dynamicSmemBytes = 16, config.attrs = &attribute, config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, leave_early, x.data());
  };
}

Run absent_lane() {
  return [](bool& right) {
    float x[8];
    const cudaError_t error = launch(shuffle_from_absent_lane, 1, 32, 0, nullptr, x);
    right = x[0] == 1.f;
    return error;
  };
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, Run> bugs = {
      {"no barrier", race(reverse)},
      {"no barrier before reuse", race(reverse_twice)},
      {"no __syncwarp", race(reverse_in_warp)},
      {"warps share a cell", race(cell_of_warp)},
      {"cluster: one buffer", cluster_race(true)},
      {"cluster: two buffers", cluster_race(false)},
      {"cluster: block leaves", cluster_that_leaves()},
      {"shared memory not initialised", simple(uninitialised)},
      {"shared write past the end", simple(write_past_end, 0)},
      {"shared write far past the end", simple(write_past_end, 900)},
      {"shared write before the start", simple(write_past_end, -kThreads - 1)},
      {"shared read past the end", simple(read_past_end)},
      {"too little shared memory", simple(take_too_much)},
      {"threads disagree about shared memory", simple(disagree)},
      {"barrier in a branch", simple(barrier_in_branch)},
      {"barrier after an early return", simple(barrier_after_return, 50)},
      {"one barrier in two lines", simple(two_barriers)},
      {"shuffle in a branch", simple(shuffle_in_branch)},
      {"mask without the caller", simple(shuffle_without_caller)},
      {"shuffle from an absent lane", absent_lane()},
      {"global write past the end", simple(global_write_past_end)},
      {"misaligned access", simple(misaligned)},
  };
  const auto bug = argc == 2 ? bugs.find(argv[1]) : bugs.end();
  if (bug == bugs.end()) {
    std::printf("usage: %s <bug>\n", argv[0]);
    return 2;
  }
  print_outcomes(bug->second);
}
