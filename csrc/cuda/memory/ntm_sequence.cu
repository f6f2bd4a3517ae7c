// A whole sequence of an NTM in one launch.
#include "ntm_step.cuh"
#include "sequence_kernels.cuh"

namespace routing_ext::cuda {
namespace {

struct Ntm {
  using Plan = NtmShape;
  template <class T>
  using Work = NtmWork<T>;
  template <class T>
  using BackwardWork = NtmBackwardWork<T>;

  template <class... Args>
  static __device__ void step(const Args&... args) {
    ntm_step(args...);
  }
  template <class... Args>
  static __device__ void step_backward(const Args&... args) {
    ntm_step_backward(args...);
  }
  template <class Group, class T>
  static __device__ void relink(const Group&, const NtmShape&, const SampleState<const T>&, const T*, T*) {}
};

}  // namespace

template <class T>
bool ntm_sequence_fits(const SequenceShape& shape) {
  return shared_bytes_of<Ntm, ControllerWork<T>, NtmWork<T>, T>(shape) <= shared_limit();
}
template <class T>
cudaError_t launch_ntm_sequence(const SequenceShape& shape, const SequenceForward<T>& sequence, cudaStream_t stream) {
  const size_t bytes = shared_bytes_of<Ntm, ControllerWork<T>, NtmWork<T>, T>(shape);
  return launch_sequence<Ntm>(sequence_kernel<Ntm, T>, bytes, shape, sequence, stream);
}

template <class T>
bool ntm_sequence_backward_fits(const SequenceShape& shape) {
  return shared_bytes_of<Ntm, ControllerBackwardWork<T>, NtmBackwardWork<T>, T>(shape) <= shared_limit();
}
template <class T>
cudaError_t launch_ntm_sequence_backward(const SequenceShape& shape, const SequenceBackward<T>& sequence,
                                         cudaStream_t stream) {
  const size_t bytes = shared_bytes_of<Ntm, ControllerBackwardWork<T>, NtmBackwardWork<T>, T>(shape);
  return launch_sequence<Ntm>(sequence_backward_kernel<Ntm, T>, bytes, shape, sequence, stream);
}

#define INSTANTIATE(T)                                                                                     \
  template bool ntm_sequence_fits<T>(const SequenceShape&);                                                \
  template cudaError_t launch_ntm_sequence(const SequenceShape&, const SequenceForward<T>&, cudaStream_t); \
  template bool ntm_sequence_backward_fits<T>(const SequenceShape&);                                       \
  template cudaError_t launch_ntm_sequence_backward(const SequenceShape&, const SequenceBackward<T>&, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
