// An NTM over a sequence: each pass in one launch.
#include "ntm_step.cuh"
#include "sequence_pass.cuh"

namespace routing_ext::cuda {
namespace {

template <class T>
struct NtmForward {
  using Value = T;
  using Plan = NtmShape;
  using Work = NtmWork<T>;

  template <class... Args>
  static __device__ void step(const Args&... args) {
    ntm_step(args...);
  }
};

template <class T>
struct NtmBackward {
  using Value = T;
  using Plan = NtmShape;
  using Work = NtmBackwardWork<T>;

  template <class... Args>
  static __device__ void step(const Args&... args) {
    ntm_step_backward(args...);
  }
  template <class Group>
  static __device__ void relink(const Group&, const NtmShape&, const SampleState<const T>&, const T*, T*) {}
};

}  // namespace

template <class T>
SequenceFit ntm_sequence_fit(const SequenceShape& shape, int blocks) {
  return fit_of<ForwardPass<NtmForward<T>>>(shape, blocks);
}
template <class T>
cudaError_t launch_ntm_sequence(const SequenceShape& shape, SequenceWay way, const SequenceForward<T>& sequence,
                                cudaStream_t stream) {
  return launch_pass<ForwardPass<NtmForward<T>>>(shape, way, sequence, stream);
}

template <class T>
SequenceFit ntm_sequence_backward_fit(const SequenceShape& shape, int blocks) {
  return fit_of<BackwardPass<NtmBackward<T>>>(shape, blocks);
}
template <class T>
cudaError_t launch_ntm_sequence_backward(const SequenceShape& shape, SequenceWay way, const SequenceBackward<T>& sequence,
                                         cudaStream_t stream) {
  return launch_pass<BackwardPass<NtmBackward<T>>>(shape, way, sequence, stream);
}

#define INSTANTIATE(T)                                                                                                  \
  template SequenceFit ntm_sequence_fit<T>(const SequenceShape&, int);                                                  \
  template cudaError_t launch_ntm_sequence(const SequenceShape&, SequenceWay, const SequenceForward<T>&, cudaStream_t); \
  template SequenceFit ntm_sequence_backward_fit<T>(const SequenceShape&, int);                                         \
  template cudaError_t launch_ntm_sequence_backward(const SequenceShape&, SequenceWay, const SequenceBackward<T>&,      \
                                                    cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
