// An NTM's step, and its backward pass, in one launch each.
#include "ntm_step.cuh"

#include "workspace.cuh"

namespace routing_ext::cuda {
namespace {

template <class T, bool in_shared>
__global__ void __launch_bounds__(kMaxGroup)
    ntm_step_kernel(const NtmShape __grid_constant__ s, const Step<T> __grid_constant__ step, T* scratch, int64_t elements) {
  const int64_t b = blockIdx.x;
  if (!step.samples.runs(b)) return;
  Workspace<T, in_shared> space(scratch + b * elements);
  const NtmWork<T> work(space, s);
  ntm_step(BlockGroup(), s, step.interface[b], SampleState<const T>(step.samples.begins(b) ? step.initial : step.previous, b),
           SampleState<T>(step.next, b), SampleState<T>(step.copy, b), step.read_vectors[b], step.record[b], work);
}

template <class T, bool in_shared>
__global__ void __launch_bounds__(kMaxGroup)
    ntm_step_backward_kernel(const NtmShape __grid_constant__ s, const StepBackward<T> __grid_constant__ step, T* scratch,
                             int64_t elements) {
  const int64_t b = blockIdx.x;
  if (!step.samples.runs(b)) return;
  Workspace<T, in_shared> space(scratch + b * elements);
  const NtmBackwardWork<T> work(space, s);
  ntm_step_backward(BlockGroup(), s, SampleState<const T>(step.samples.begins(b) ? step.initial : step.previous, b),
                    SampleState<const T>(step.next, b), step.record[b], SampleState<const T>(step.grad_next, b),
                    step.grad_read_vectors[b], SampleState<T>(step.grad_previous, b), step.grad_interface[b], work);
}

}  // namespace

template <class T>
size_t ntm_step_scratch_bytes(const StepShape& shape) {
  return sample_launch<NtmWork<T>, T>(NtmShape(shape)).template scratch_bytes<T>(shape.batch);
}
template <class T>
cudaError_t launch_ntm_step(const StepShape& shape, const Step<T>& step, void* scratch, cudaStream_t stream) {
  return launch_step<NtmShape, NtmWork<T>, T>(ntm_step_kernel<T, true>, ntm_step_kernel<T, false>, shape, step, scratch,
                                              stream);
}

template <class T>
size_t ntm_step_backward_scratch_bytes(const StepShape& shape) {
  return sample_launch<NtmBackwardWork<T>, T>(NtmShape(shape)).template scratch_bytes<T>(shape.batch);
}
template <class T>
cudaError_t launch_ntm_step_backward(const StepShape& shape, const StepBackward<T>& step, void* scratch, cudaStream_t stream) {
  return launch_step<NtmShape, NtmBackwardWork<T>, T>(ntm_step_backward_kernel<T, true>, ntm_step_backward_kernel<T, false>,
                                                      shape, step, scratch, stream);
}

#define INSTANTIATE(T)                                                                         \
  template size_t ntm_step_scratch_bytes<T>(const StepShape&);                                 \
  template cudaError_t launch_ntm_step(const StepShape&, const Step<T>&, void*, cudaStream_t); \
  template size_t ntm_step_backward_scratch_bytes<T>(const StepShape&);                        \
  template cudaError_t launch_ntm_step_backward(const StepShape&, const StepBackward<T>&, void*, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
