// TERMINOLOGY
//   arrays    what the phases of an operator hand to each other, see workspace.cuh
//   partials  sums of single warps, which the next phase adds up
#include "ntm_location.cuh"

#include "location.cuh"
#include "operator.cuh"

namespace routing_ext::cuda {
namespace {

// From the i-th argument on: content, gates, shifts, sharpness, previous.
template <class T>
__device__ __forceinline__ Location<T> location_of(const MemoryOpSample<T>& s, int i) {
  return {s.heads, s.locations, s.shifts, s.in(i), s.in(i + 4), s.in(i + 1), s.in(i + 2), s.in(i + 3)};
}

// content, gates, shifts, sharpness, previous -> weights
template <class T>
struct NtmLocation {
  struct Arrays {
    T* partials;
    template <class W>
    __host__ __device__ Arrays(W& w, const MemoryOpShape& s) : partials(w.take_partials(partials_size(s.heads, 2))) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    const Softmax<T> softmax = locate(group, location_of(s, 0), static_cast<T*>(nullptr), s.out(0), a.partials);
    group.sync();
    softmax.finish(group);
  }
};

// grad, content, gates, shifts, sharpness, previous -> of the last five
template <class T>
struct NtmLocationBackward {
  struct Arrays {
    T *weights, *shifted, *of_shifted;  // [H,N] each
    T *softmax_partials, *partials;
    template <class W>
    __host__ __device__ Arrays(W& w, const MemoryOpShape& s)
        : weights(w.take(s.heads * s.locations)),
          shifted(w.take(s.heads * s.locations)),
          of_shifted(w.take(s.heads * s.locations)),
          softmax_partials(w.take_partials(partials_size(s.heads, 2))),
          partials(w.take_partials(location_partials_size(s.heads, s.shifts))) {}
  };
  template <class Group>
  static __device__ void run(const Group& group, const MemoryOpSample<T>& s, const Arrays& a) {
    const Location<T> location = location_of(s, 1);
    const Softmax<T> softmax = locate(group, location, a.shifted, a.weights, a.softmax_partials);
    group.sync();
    softmax.finish(group);
    group.sync();
    locate_backward(group, location,
                    LocationGradient<T>{a.shifted, a.weights, s.in(0), s.out(0), s.out(4), s.out(1), s.out(2), s.out(3),
                                        a.of_shifted, a.partials});
  }
};

}  // namespace

template <class T>
size_t ntm_location_scratch_bytes(const MemoryOpShape& shape, bool backward) {
  return backward ? memory_op_scratch<NtmLocationBackward<T>, T>(shape) : memory_op_scratch<NtmLocation<T>, T>(shape);
}

template <class T>
cudaError_t launch_ntm_location(const MemoryOpShape& shape, bool backward, const MemoryOpTensors<T>& tensors, void* scratch,
                                cudaStream_t stream) {
  return backward ? launch_memory_op<NtmLocationBackward<T>, T>(shape, tensors, scratch, stream)
                  : launch_memory_op<NtmLocation<T>, T>(shape, tensors, scratch, stream);
}

#define INSTANTIATE(T)                                                       \
  template size_t ntm_location_scratch_bytes<T>(const MemoryOpShape&, bool); \
  template cudaError_t launch_ntm_location(const MemoryOpShape&, bool, const MemoryOpTensors<T>&, void*, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
