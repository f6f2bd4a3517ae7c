// The forward pass of a DNC over a sequence, in one launch.
#include "dnc_step.cuh"
#include "sequence_pass.cuh"

namespace routing_ext::cuda {
namespace {

template <class T>
struct DncForward {
  using Value = T;
  using Plan = DncPlan;
  using Work = DncWork<T>;

  template <class... Args>
  static __device__ void step(const Args&... args) {
    dnc_step(args...);
  }
};

}  // namespace

template <class T>
SequenceFit dnc_sequence_fit(const SequenceShape& shape) {
  return sequence_fit<DncForward<T>>(shape);
}
template <class T>
cudaError_t launch_dnc_sequence(const SequenceShape& shape, const SequenceForward<T>& sequence, cudaStream_t stream) {
  return launch_sequence<DncForward<T>>(shape, sequence, stream);
}

#define INSTANTIATE(T)                                            \
  template SequenceFit dnc_sequence_fit<T>(const SequenceShape&); \
  template cudaError_t launch_dnc_sequence(const SequenceShape&, const SequenceForward<T>&, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
