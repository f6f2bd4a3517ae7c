// Stable counting sort of samples by the module that each of them chose. See dispatch_plan.cu.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace routing_ext::cuda {

struct DispatchPlan {
  const int64_t* actions;  // [B]
  const bool* mask;        // [B]: false = inactive; nullptr = all samples are active
  int64_t* order;          // [B]
  int64_t* layout;         // [K+2]
  int32_t* scratch;        // dispatch_plan_scratch_bytes(B, K); nullptr if that is 0
  int64_t batch, num_modules;
};

// Positions and modules are ints.
constexpr int64_t kDispatchPlanMaxBatch = INT32_MAX;
constexpr int64_t kDispatchPlanMaxModules = INT32_MAX - 2;

size_t dispatch_plan_scratch_bytes(int64_t batch, int64_t num_modules);

// One launch for small batches, two for others. Any batch up to kDispatchPlanMaxBatch, 0 included.
cudaError_t launch_dispatch_plan(const DispatchPlan& plan, cudaStream_t stream);

// ranks [B]: how many modules before its own have samples, for each of actions [B]; 0 where it is out of range. layout [K+2].
// One launch.
cudaError_t launch_rank_of_module(const int64_t* actions, const int64_t* layout, int64_t* ranks, int64_t batch,
                                  int64_t num_modules, cudaStream_t stream);

}  // namespace routing_ext::cuda
