// The backward pass of a DNC's step in one launch.
#include "dnc_step_backward.cuh"

#include "workspace.cuh"

namespace routing_ext::cuda {
namespace {

template <class T, bool in_shared>
__global__ void __launch_bounds__(kMaxGroup, 1)
    dnc_step_backward_kernel(const DncPlan __grid_constant__ plan, const StepBackward<T> __grid_constant__ step, T* scratch,
                             int64_t scratch_elements) {
  const int64_t sample = blockIdx.x;
  if (!step.samples.runs(sample)) return;
  Workspace<T, in_shared> workspace(scratch + sample * scratch_elements);
  const DncBackwardWork<T> work(workspace, plan);
  dnc_step_backward(
      BlockGroup(), plan, SampleState<const T>(step.samples.begins(sample) ? step.initial : step.previous, sample),
      SampleState<const T>(step.next, sample), step.record[sample], SampleState<const T>(step.grad_next, sample),
      step.grad_read_vectors[sample], SampleState<T>(step.grad_previous, sample), step.grad_interface[sample], work);
}

}  // namespace

template <class T>
size_t dnc_step_backward_scratch_bytes(const StepShape& shape) {
  return sample_launch<DncBackwardWork<T>, T>(DncPlan(shape)).template scratch_bytes<T>(shape.batch);
}

template <class T>
cudaError_t launch_dnc_step_backward(const StepShape& shape, const StepBackward<T>& step, void* scratch, cudaStream_t stream) {
  return launch_step<DncPlan, DncBackwardWork<T>, T>(dnc_step_backward_kernel<T, true>, dnc_step_backward_kernel<T, false>,
                                                     shape, step, scratch, stream);
}

#define INSTANTIATE(T)                                                  \
  template size_t dnc_step_backward_scratch_bytes<T>(const StepShape&); \
  template cudaError_t launch_dnc_step_backward(const StepShape&, const StepBackward<T>&, void*, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
