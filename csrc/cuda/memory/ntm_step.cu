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

// ---- launches --------------------------------------------------------------------------------------------------------------

template <template <class> class Work, class T>
SampleLaunch launch_of(const StepShape& shape) {
  WorkspaceSize<T> size;
  const Work<T> counted(size, NtmShape(shape));
  return SampleLaunch(size);
}
template <class T>
size_t scratch_bytes(const SampleLaunch& how, int64_t batch) {
  return static_cast<size_t>(batch * how.scratch_elements) * sizeof(T);
}
bool is_valid(const StepShape& s) {
  const int64_t heads = larger(s.writes, s.reads), row = larger(larger(s.locations, s.word), s.shifts);
  return s.batch >= 0 && s.batch <= INT32_MAX && row <= INT32_MAX / heads && s.interface_size() <= INT32_MAX;
}

template <class T, class Kernel, class Params>
cudaError_t launch_kernel(Kernel in_shared, Kernel in_scratch, const SampleLaunch& how, const StepShape& shape,
                          const Params& step, void* scratch, cudaStream_t stream) {
  if (!is_valid(shape)) return cudaErrorInvalidValue;
  if (shape.batch == 0) return cudaSuccess;
  const dim3 blocks(static_cast<unsigned>(shape.batch)), threads(group_threads(larger(shape.locations, shape.word)));
  return launch(how.in_shared ? in_shared : in_scratch, blocks, threads, how.shared_bytes, stream, NtmShape(shape), step,
                static_cast<T*>(scratch), how.scratch_elements);
}

}  // namespace

template <class T>
size_t ntm_step_scratch_bytes(const StepShape& shape) {
  return scratch_bytes<T>(launch_of<NtmWork, T>(shape), shape.batch);
}
template <class T>
cudaError_t launch_ntm_step(const StepShape& shape, const Step<T>& step, void* scratch, cudaStream_t stream) {
  return launch_kernel<T>(ntm_step_kernel<T, true>, ntm_step_kernel<T, false>, launch_of<NtmWork, T>(shape), shape, step,
                          scratch, stream);
}

template <class T>
size_t ntm_step_backward_scratch_bytes(const StepShape& shape) {
  return scratch_bytes<T>(launch_of<NtmBackwardWork, T>(shape), shape.batch);
}
template <class T>
cudaError_t launch_ntm_step_backward(const StepShape& shape, const StepBackward<T>& step, void* scratch, cudaStream_t stream) {
  return launch_kernel<T>(ntm_step_backward_kernel<T, true>, ntm_step_backward_kernel<T, false>,
                          launch_of<NtmBackwardWork, T>(shape), shape, step, scratch, stream);
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
