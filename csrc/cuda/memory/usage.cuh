// Usage of the locations.
//
//   written = u + (1 - u) (1 - prod_v (1 - w_v)),  freed = written prod_r (1 - f_r r_r)
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "group.cuh"

namespace routing_ext::cuda {

template <class T>
struct UsageWeights {
  int locations, writes, reads;
  const T *write_weights, *read_weights;  // [V,N], [R,N] of the step before
  const T* free_gates;                    // [R]

  __device__ __forceinline__ T not_written(int i, int except = -1) const {
    T kept = 1;
    for (int v = 0; v < writes; ++v) {
      if (v != except) kept *= T(1) - write_weights[static_cast<int64_t>(v) * locations + i];
    }
    return kept;
  }
  __device__ __forceinline__ T not_freed(int i, int except = -1) const {
    T kept = 1;
    for (int r = 0; r < reads; ++r) {
      if (r != except) kept *= T(1) - free_gates[r] * read_weights[static_cast<int64_t>(r) * locations + i];
    }
    return kept;
  }
  __device__ __forceinline__ T written(T usage, int i) const { return usage + (T(1) - usage) * (T(1) - not_written(i)); }
};

// done(i, usage, what is left of the location).
template <class Group, class T, class F>
__device__ void update_usage(const Group& group, const UsageWeights<T>& weights, const T* usage, const F& done) {
  for_each(group, weights.locations, [&](int i) {
    const T left = weights.not_freed(i);
    done(i, weights.written(usage[i], i) * left, left);
  });
}

template <class T>
struct UsageGradients {
  const T* freed;                         // [N]
  const T* left;                          // [N]: of what is left of each location, or nullptr
  const T* reads;                         // [R,N]: what else flows into the read weights, or nullptr
  T *out_usage, *out_writes, *out_reads;  // [N], [V,N], [R,N]: set; out_writes may be nullptr, out_reads may be `reads`
};

// The sums: of the free gates.
template <class Group, class T>
__device__ RowSums<1, T> update_usage_backward(const Group& group, const UsageWeights<T>& weights, const T* usage,
                                               const UsageGradients<T>& of, T* partials) {
  for_each(group, weights.locations, [&](int i) {
    const T u = usage[i], of_written = of.freed[i] * weights.not_freed(i), free_part = of_written * (T(1) - u);
    for (int v = 0; of.out_writes && v < weights.writes; ++v) {
      of.out_writes[static_cast<int64_t>(v) * weights.locations + i] = free_part * weights.not_written(i, v);
    }
    of.out_usage[i] = of_written * weights.not_written(i);
  });
  return RowSums<1, T>(group, weights.reads, weights.locations, partials, [&](int r) {
    const int64_t row = static_cast<int64_t>(r) * weights.locations;
    return [&weights, &of, usage, r, row](int i, T* sums) {
      T of_left = of.freed[i] * weights.written(usage[i], i);
      if (of.left) of_left += of.left[i];
      const T others = of_left * weights.not_freed(i, r);
      sums[0] -= others * weights.read_weights[row + i];
      of.out_reads[row + i] = (of.reads ? of.reads[row + i] : T(0)) - others * weights.free_gates[r];
    };
  });
}

}  // namespace routing_ext::cuda
