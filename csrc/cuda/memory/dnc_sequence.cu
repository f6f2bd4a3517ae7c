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
SequenceFit dnc_sequence_fit(const SequenceShape& shape, int blocks) {
  return fit_of<ForwardPass<DncForward<T>>>(shape, blocks);
}
template <class T>
cudaError_t launch_dnc_sequence(const SequenceShape& shape, SequenceWay way, const SequenceForward<T>& sequence,
                                cudaStream_t stream) {
  return launch_pass<ForwardPass<DncForward<T>>>(shape, way, sequence, stream);
}

#define INSTANTIATE(T)                                                 \
  template SequenceFit dnc_sequence_fit<T>(const SequenceShape&, int); \
  template cudaError_t launch_dnc_sequence(const SequenceShape&, SequenceWay, const SequenceForward<T>&, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
