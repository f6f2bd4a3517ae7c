// A whole sequence of a DNC in one launch.
#include "dnc_step.cuh"
#include "dnc_step_backward.cuh"
#include "sequence_kernels.cuh"

namespace routing_ext::cuda {
namespace {

struct Dnc {
  using Plan = DncPlan;
  template <class T>
  using Work = DncWork<T>;
  template <class T>
  using BackwardWork = DncBackwardWork<T>;

  template <class... Args>
  static __device__ void step(const Args&... args) {
    dnc_step(args...);
  }
  template <class... Args>
  static __device__ void step_backward(const Args&... args) {
    dnc_step_backward(args...);
  }
  template <class Group, class T>
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
bool dnc_sequence_fits(const SequenceShape& shape) {
  return shared_bytes_of<Dnc, ControllerWork<T>, DncWork<T>, T>(shape) <= shared_limit();
}
template <class T>
cudaError_t launch_dnc_sequence(const SequenceShape& shape, const SequenceForward<T>& sequence, cudaStream_t stream) {
  const size_t bytes = shared_bytes_of<Dnc, ControllerWork<T>, DncWork<T>, T>(shape);
  return launch_sequence<Dnc>(sequence_kernel<Dnc, T>, bytes, shape, sequence, stream);
}

template <class T>
bool dnc_sequence_backward_fits(const SequenceShape& shape) {
  return shared_bytes_of<Dnc, ControllerBackwardWork<T>, DncBackwardWork<T>, T>(shape) <= shared_limit();
}
template <class T>
cudaError_t launch_dnc_sequence_backward(const SequenceShape& shape, const SequenceBackward<T>& sequence,
                                         cudaStream_t stream) {
  const size_t bytes = shared_bytes_of<Dnc, ControllerBackwardWork<T>, DncBackwardWork<T>, T>(shape);
  return launch_sequence<Dnc>(sequence_backward_kernel<Dnc, T>, bytes, shape, sequence, stream);
}

#define INSTANTIATE(T)                                                                                     \
  template bool dnc_sequence_fits<T>(const SequenceShape&);                                                \
  template cudaError_t launch_dnc_sequence(const SequenceShape&, const SequenceForward<T>&, cudaStream_t); \
  template bool dnc_sequence_backward_fits<T>(const SequenceShape&);                                       \
  template cudaError_t launch_dnc_sequence_backward(const SequenceShape&, const SequenceBackward<T>&, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
