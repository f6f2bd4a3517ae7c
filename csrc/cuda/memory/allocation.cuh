// Allocation of the least used locations.
//
//   allocation_i = (1 - s_i) prod_{j before i} s_j,  s = eps + (1 - eps) usage
//
// j comes before i if s_j < s_i, or if they are equal and j < i. Nothing is sorted: all pairs are compared. Or by softmax:
// allocation = softmax((1 - usage) / temperature).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "content.cuh"
#include "group.cuh"

namespace routing_ext::cuda {

template <class T>
__device__ __forceinline__ T above_zero(T usage) {
  return T(kEpsilon) + (T(1) - T(kEpsilon)) * usage;
}
// Whether location j comes before location i.
template <class T>
__device__ __forceinline__ bool comes_before(T s_j, int j, T s_i, int i) {
  return s_j < s_i || (s_j == s_i && j < i);
}

// Lanes that share the pairs of a location: as many as there are threads for each.
template <class Group>
__device__ __forceinline__ int lanes_for_pairs(const Group& group, int locations) {
  int lanes = 1;
  while (lanes < kWarp && 2 * lanes * locations <= group.size()) lanes *= 2;
  return lanes;
}

template <class T>
struct Allocation {
  int locations;
  T temperature;  // zero: no softmax

  __device__ __forceinline__ bool by_softmax() const { return temperature != T(0); }
  // The allocation of what was kept for the backward pass.
  __device__ __forceinline__ T found(T usage, T kept) const { return by_softmax() ? kept : (T(1) - above_zero(usage)) * kept; }
};

// Of one head: kept [N], the products of what comes before, or the softmax itself; then the allocation is found(usage, kept).
// s [N], of each block, and partials are scratch. A barrier within; none before and after.
template <class Group, class T>
__device__ void find_free(const Group& group, const Allocation<T>& a, const T* usage, T* s, T* partials, T* kept) {
  if (a.by_softmax()) {
    const Softmax<T> softmax(group, 1, a.locations, kept, partials,
                             [&](int) { return [&](int i) { return (T(1) - usage[i]) / a.temperature; }; });
    group.sync();
    softmax.finish(group);
    return;
  }
  for_each(group.in_block(), a.locations, [&](int i) { s[i] = above_zero(usage[i]); });
  group.sync();
  const int lanes = lanes_for_pairs(group, a.locations);
  for_each_row(group, a.locations, lanes, [&](int i, int lane, bool is_there) {
    const T own = s[i];
    T product = 1;
    for (int j = lane; j < a.locations; j += lanes) product *= comes_before(s[j], j, own, i) ? s[j] : T(1);
    product = team_product(product, lanes);
    if (is_there && lane == 0) kept[i] = product;
  });
}

// grad [N]: of the allocation. grad_usage [N] is added to. s, x [N], of each block, and partials are scratch. A barrier
// within; none before and after.
template <class Group, class T>
__device__ void find_free_backward(const Group& group, const Allocation<T>& a, const T* usage, const T* kept, const T* grad,
                                   T* s, T* x, T* partials, T* grad_usage) {
  if (a.by_softmax()) {
    const RowSums<1, T> along(group, 1, a.locations, partials,
                              [&](int) { return [&](int i, T* sums) { sums[0] += grad[i] * kept[i]; }; });
    group.sync();
    const T mean = along.total(0);
    for_each(group, a.locations, [&](int i) { grad_usage[i] -= kept[i] * (grad[i] - mean) / a.temperature; });
    return;
  }
  for_each(group.in_block(), a.locations, [&](int i) {
    const T own = above_zero(usage[i]);
    s[i] = own, x[i] = (T(1) - own) * kept[i] * grad[i];
  });
  group.sync();
  const int lanes = lanes_for_pairs(group, a.locations);
  for_each_row(group, a.locations, lanes, [&](int i, int lane, bool is_there) {
    const T own = s[i];
    T after = 0;
    for (int j = lane; j < a.locations; j += lanes) after += comes_before(own, i, s[j], j) ? x[j] : T(0);
    after = team_sum(after, lanes);
    if (is_there && lane == 0) grad_usage[i] += (T(1) - T(kEpsilon)) * (after / own - kept[i] * grad[i]);
  });
}

// usage + (1 - usage) amount allocation: what is written by an allocation counts as used.
template <class T>
__device__ __forceinline__ T more_used(T usage, T amount, T allocation) {
  return usage + (T(1) - usage) * (amount * allocation);
}
template <class T>
struct MoreUsedGradient {
  T usage, amount, allocation;  // the amount's is to be summed
};
template <class T>
__device__ __forceinline__ MoreUsedGradient<T> more_used_backward(T grad, T usage, T amount, T allocation) {
  const T unused = grad * (T(1) - usage);
  return {grad * (T(1) - amount * allocation), unused * allocation, unused * amount};
}

}  // namespace routing_ext::cuda
