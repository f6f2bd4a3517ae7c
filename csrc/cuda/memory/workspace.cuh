// Where the arrays lie that the phases of a step hand to each other: in shared memory, or, where a sample has so many
// locations that they do not fit, in device memory; partial sums are always in shared memory. A structure of arrays is made
// with a Workspace, which hands them out, on the device, and with a WorkspaceSize, which counts, on the host.
//
//   take, take_partials           an array of the group
//   take_own, take_own_partials   an array of each block
//   blocks                        of the group
//
// Of a cluster each block in turn has the next array of the group, and keeps place for those of the others, so that all have
// one layout.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../launch.cuh"
#include "../shared_arena.cuh"
#include "group.cuh"
#include "step.cuh"

namespace routing_ext::cuda {

template <class T, bool in_shared, class Group = BlockGroup>
class Workspace {
 public:
  using Value = T;

  // scratch: of the sample; only if not in shared memory.
  __device__ explicit Workspace(T* scratch, const Group& group = {}) : group_(group), next_(scratch) {}

  // nullptr where there are no elements.
  __device__ T* take(int64_t count) {
    if constexpr (in_shared) return take_partials(count);
    return take_scratch(count);
  }
  __device__ T* take_partials(int64_t count) {
    T* const own = take_own_partials(count);
    return own == nullptr ? nullptr : group_.of_block(own, turn_++ % group_.blocks());
  }
  __device__ T* take_own(int64_t count) {
    if constexpr (in_shared) return take_own_partials(count);
    return take_scratch(count);
  }
  __device__ T* take_own_partials(int64_t count) { return count == 0 ? nullptr : arena_.take<T>(count); }
  __device__ int blocks() const { return group_.blocks(); }

 private:
  Group group_;
  SharedArena arena_;
  T* next_;
  int turn_ = 0;

  __device__ T* take_scratch(int64_t count) {
    T* const here = next_;
    next_ += count;
    return count == 0 ? nullptr : here;
  }
};

template <class T>
class WorkspaceSize {
 public:
  using Value = T;

  explicit WorkspaceSize(int blocks = 1) : blocks_(blocks) {}

  __host__ __device__ T* take(int64_t count) {
    all_.reserve<T>(count);
    elements_ += count;
    return nullptr;
  }
  __host__ __device__ T* take_partials(int64_t count) {
    all_.reserve<T>(count), partials_.reserve<T>(count);
    return nullptr;
  }
  __host__ __device__ T* take_own(int64_t count) { return take(count); }
  __host__ __device__ T* take_own_partials(int64_t count) { return take_partials(count); }
  __host__ __device__ int blocks() const { return blocks_; }
  size_t shared_bytes(bool in_shared) const { return in_shared ? all_.bytes() : partials_.bytes(); }
  int64_t elements() const { return elements_; }

 private:
  SharedArena all_, partials_;
  int64_t elements_ = 0;
  int blocks_;
};

// What a sweep needs for its sums along columns, `sums` for each of `cols` columns.
template <class Space>
__host__ __device__ typename Space::Value* take_column_partials(Space& space, int64_t sums, int64_t cols) {
  return space.take_own_partials(column_partials_size<typename Space::Value>(sums, cols, space.blocks()));
}

// How a kernel that works on one sample a block is launched.
struct SampleLaunch {
  bool in_shared;
  size_t shared_bytes;
  int64_t scratch_elements;  // of each sample; 0 in shared memory

  template <class T>
  explicit SampleLaunch(const WorkspaceSize<T>& size)
      : in_shared(size.shared_bytes(true) <= shared_limit()),
        shared_bytes(size.shared_bytes(in_shared)),
        scratch_elements(in_shared ? 0 : size.elements()) {}

  template <class T>
  size_t scratch_bytes(int64_t batch) const {
    return static_cast<size_t>(batch * scratch_elements) * sizeof(T);
  }
};

// Arrays(workspace, shape): the arrays of a kernel.
template <class Arrays, class T, class Shape>
SampleLaunch sample_launch(const Shape& shape) {
  WorkspaceSize<T> size;
  [[maybe_unused]] const Arrays counted(size, shape);
  return SampleLaunch(size);
}

// Whether the kernels can take a step of this shape.
inline bool countable(const StepShape& s) {
  const int64_t most = larger(larger(s.writes, s.reads), 1);
  return countable(most * larger(s.locations, s.word)) && countable(s.interface_size()) && countable(s.batch) &&
         countable(s.reads * (2 * s.writes + 1));
}

// Launches a kernel of a step: with the arrays of Work in shared memory, or in scratch memory where they do not fit. Plan: the
// shape as the kernel wants it.
template <class Plan, class Work, class T, class Kernel, class Params>
cudaError_t launch_step(Kernel in_shared, Kernel in_scratch, const StepShape& shape, const Params& step, void* scratch,
                        cudaStream_t stream) {
  if (shape.batch == 0) return cudaSuccess;
  if (!countable(shape)) return cudaErrorInvalidValue;
  const Plan plan(shape);
  const SampleLaunch how = sample_launch<Work, T>(plan);
  return launch(how.in_shared ? in_shared : in_scratch, dim3(static_cast<unsigned>(shape.batch)),
                dim3(group_threads(larger(shape.locations, shape.word))), how.shared_bytes, stream, plan, step,
                static_cast<T*>(scratch), how.scratch_elements);
}

}  // namespace routing_ext::cuda
