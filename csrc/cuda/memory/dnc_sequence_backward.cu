// The backward pass of a DNC over a sequence, in one launch.
#include "dnc_step_backward.cuh"
#include "sequence_pass.cuh"

namespace routing_ext::cuda {
namespace {

template <class T>
struct DncBackward {
  using Value = T;
  using Plan = DncPlan;
  using Work = DncBackwardWork<T>;

  template <class... Args>
  static __device__ void step(const Args&... args) {
    dnc_step_backward(args...);
  }
  template <class Group>
  static __device__ void relink(const Group& group, const DncPlan& plan, const SampleState<const T>& before,
                                const T* write_weights, T* next) {
    for (int v = 0; v < plan.writes; ++v) {
      const int64_t row = static_cast<int64_t>(v) * plan.locations, matrix = row * plan.locations;
      const Link<T> link{plan.locations,      0,      offset(before.link, matrix), offset(before.precedence, row),
                         write_weights + row, nullptr};
      cuda::relink(group, link, 0, 1, next + matrix);
    }
  }
};

}  // namespace

template <class T>
SequenceFit dnc_sequence_backward_fit(const SequenceShape& shape, int blocks) {
  return fit_of<BackwardPass<DncBackward<T>>>(shape, blocks);
}
template <class T>
cudaError_t launch_dnc_sequence_backward(const SequenceShape& shape, SequenceWay way, const SequenceBackward<T>& sequence,
                                         cudaStream_t stream) {
  return launch_pass<BackwardPass<DncBackward<T>>>(shape, way, sequence, stream);
}

#define INSTANTIATE(T)                                                                                             \
  template SequenceFit dnc_sequence_backward_fit<T>(const SequenceShape&, int);                                    \
  template cudaError_t launch_dnc_sequence_backward(const SequenceShape&, SequenceWay, const SequenceBackward<T>&, \
                                                    cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
