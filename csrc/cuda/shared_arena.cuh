// Dynamic shared memory, handed out array by array. Host code sizes it with the same calls on an arena of its own.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace routing_ext::cuda {

class SharedArena {
 public:
  // Device: the next array of `count` elements. Every thread of a block makes the same calls in the same order.
  template <class T>
  __device__ T* take(int64_t count) {
    const size_t offset = used_;
    used_ += aligned_bytes<T>(count);
#ifdef __CUDACC__
    extern __shared__ __align__(kBaseAlignment) unsigned char dynamic_shared[];
    return reinterpret_cast<T*>(dynamic_shared + offset);
#else
    // An allocation of its own for each array, so that an overrun is seen.
    cuda_emu::Machine& machine = cuda_emu::machine;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    return reinterpret_cast<T*>(machine.slice(machine.self->rank, offset, bytes, cuda_emu::Site::current()));
#endif
  }

  // Host: counts the bytes that `take` uses.
  template <class T>
  __host__ __device__ void reserve(int64_t count) {
    used_ += aligned_bytes<T>(count);
  }
  size_t bytes() const { return used_; }

 private:
  static constexpr size_t kAlignment = 16;       // the widest access
  static constexpr size_t kBaseAlignment = 128;  // tile products ask for 32, where all arrays are multiples of that
  size_t used_ = 0;

  template <class T>
  __host__ __device__ static constexpr size_t aligned_bytes(int64_t count) {
    static_assert(alignof(T) <= kAlignment, "arrays of wider types would not be aligned");
    return (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }
};

}  // namespace routing_ext::cuda
