// What the kernels of a DNC's step share: sizes and options, and where the parts of the interface and of the record lie.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "allocation.cuh"
#include "content.cuh"
#include "interface.cuh"
#include "step.cuh"
#include "usage.cuh"

namespace routing_ext::cuda {

struct DncPlan {
  int locations, word, writes, reads;
  bool linked, separate_allocation, detached_usage, masks, plain_cosine, erases_freed, sharpens_link;
  double temperature;
  InterfaceMap map;
  DncRecord record;

  explicit DncPlan(const StepShape& s)
      : locations(static_cast<int>(s.locations)),
        word(static_cast<int>(s.word)),
        writes(static_cast<int>(s.writes)),
        reads(static_cast<int>(s.reads)),
        linked(s.linked()),
        separate_allocation(s.options.separate_allocation),
        detached_usage(s.options.detached_usage),
        masks(s.options.masks),
        plain_cosine(s.options.plain_cosine),
        erases_freed(s.options.erases_freed),
        sharpens_link(s.options.sharpens_link),
        temperature(s.options.temperature),
        map(true, s.writes, s.reads, s.word, 0, s.options),
        record(s) {}

  __host__ __device__ int heads() const { return writes > reads ? writes : reads; }  // the most of one kind
  __host__ __device__ int modes() const { return 2 * writes + 1; }
  __host__ __device__ int backward_mode(int r, int v) const { return r * modes() + v; }
  __host__ __device__ int forward_mode(int r, int v) const { return r * modes() + writes + v; }
  __host__ __device__ int content_mode(int r) const { return r * modes() + 2 * writes; }
  __host__ __device__ int backward_sharpness(int r, int v) const { return r * 2 * writes + v; }
  __host__ __device__ int forward_sharpness(int r, int v) const { return r * 2 * writes + writes + v; }
};

// The parts of an interface vector, behind its activations, or of the gradient of one; nullptr where they are not there.
template <class T>
struct DncInterface {
  T *write_keys, *write_strengths, *allocation_gates, *write_gates, *erase, *add, *read_keys, *read_strengths, *free_gates;
  T *modes, *write_masks, *read_masks, *sharpness;

  __device__ DncInterface(const DncPlan& plan, T* base) {
    int part = 0;
    const auto next = [&](bool is_there = true) { return is_there ? base + plan.map.begin[part++] : nullptr; };
    write_keys = next(), write_strengths = next(), allocation_gates = next(), write_gates = next(), erase = next();
    add = next(), read_keys = next(), read_strengths = next(), free_gates = next();
    modes = next(plan.linked);
    write_masks = next(plan.masks), read_masks = next(plan.masks);
    sharpness = next(plan.sharpens_link);
  }
};

template <class T>
__device__ __forceinline__ T* offset(T* base, int64_t by) {
  return base ? base + by : nullptr;
}

template <class T>
__device__ Lookup<T> write_lookup(const DncPlan& plan, const DncInterface<const T>& x, const T* memory) {
  const T inner = plan.plain_cosine ? T(0) : T(kEpsilon);
  return {plan.writes, plan.locations, plan.word, x.write_keys, x.write_masks, x.write_strengths, memory, inner};
}
template <class T>
__device__ Lookup<T> read_lookup(const DncPlan& plan, const DncInterface<const T>& x, const T* memory) {
  const T inner = plan.plain_cosine ? T(0) : T(kEpsilon);
  return {plan.reads, plan.locations, plan.word, x.read_keys, x.read_masks, x.read_strengths, memory, inner};
}

// What a write by allocation adds to the usage that the next head sees.
template <class T>
__device__ __forceinline__ T allocation_amount(const DncPlan& plan, const DncInterface<const T>& x, int v) {
  return plan.separate_allocation ? x.allocation_gates[v] * x.write_gates[v] : x.write_gates[v];
}

// ---- sharpened reads along the link ----------------------------------------------------------------------------------------
//
//   out = softmax(sharpness log(row + eps)) = (row + eps)^sharpness / sum

template <class T>
__device__ __forceinline__ T above_eps(T x) {
  return (x > T(0) ? x : T(0)) + T(kEpsilon);
}

}  // namespace routing_ext::cuda
