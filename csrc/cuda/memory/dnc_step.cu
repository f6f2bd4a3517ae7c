// A DNC's step in one launch, and the update of its link alone.
#include "dnc_step.cuh"

#include "workspace.cuh"

namespace routing_ext::cuda {
namespace {

template <class T, bool in_shared>
__global__ void __launch_bounds__(kMaxGroup, 1)
    dnc_step_kernel(const DncPlan __grid_constant__ plan, const Step<T> __grid_constant__ step, T* scratch,
                    int64_t scratch_elements) {
  const int64_t sample = blockIdx.x;
  if (!step.samples.runs(sample)) return;
  Workspace<T, in_shared> workspace(scratch + sample * scratch_elements);
  const DncWork<T> work(workspace, plan);
  dnc_step(BlockGroup(), plan, step.interface[sample],
           SampleState<const T>(step.samples.begins(sample) ? step.initial : step.previous, sample),
           SampleState<T>(step.next, sample), SampleState<T>(step.copy, sample), step.read_vectors[sample],
           step.record[sample], work);
}

// Blocks: (sample, rows of the link, write head).
template <class T>
__global__ void __launch_bounds__(kMaxGroup) dnc_relink_kernel(int locations, const Step<T> __grid_constant__ step) {
  const int64_t sample = blockIdx.x, row = static_cast<int64_t>(blockIdx.z) * locations, matrix = row * locations;
  if (!step.samples.runs(sample)) return;
  const StepState<const T>& before = step.samples.begins(sample) ? step.initial : step.previous;
  const Link<T> link{locations,
                     0,
                     offset(before.link[sample], matrix),
                     offset(before.precedence[sample], row),
                     step.next.write_weights[sample] + row,
                     nullptr};
  const BlockGroup group;
  relink(group, link, static_cast<int>(blockIdx.y) * group.warps(), static_cast<int>(gridDim.y),
         step.next.link[sample] + matrix);
}

}  // namespace

template <class T>
size_t dnc_step_scratch_bytes(const StepShape& shape) {
  return sample_launch<DncWork<T>, T>(DncPlan(shape)).template scratch_bytes<T>(shape.batch);
}

template <class T>
cudaError_t launch_dnc_step(const StepShape& shape, const Step<T>& step, void* scratch, cudaStream_t stream) {
  return launch_step<DncPlan, DncWork<T>, T>(dnc_step_kernel<T, true>, dnc_step_kernel<T, false>, shape, step, scratch,
                                             stream);
}

template <class T>
cudaError_t launch_dnc_relink(const StepShape& shape, const Step<T>& step, cudaStream_t stream) {
  if (shape.batch == 0 || !shape.linked()) return cudaSuccess;
  constexpr int64_t kRowsOfBlock = 4 * kMaxGroup / kWarp, kMostAlongYZ = 65535;
  if (!countable(shape) || shape.writes > kMostAlongYZ) return cudaErrorInvalidValue;
  const auto blocks = static_cast<unsigned>(smaller(divide_up(shape.locations, kRowsOfBlock), kMostAlongYZ));
  return launch(dnc_relink_kernel<T>, dim3(static_cast<unsigned>(shape.batch), blocks, static_cast<unsigned>(shape.writes)),
                dim3(kMaxGroup), 0, stream, static_cast<int>(shape.locations), step);
}

#define INSTANTIATE(T)                                                                         \
  template size_t dnc_step_scratch_bytes<T>(const StepShape&);                                 \
  template cudaError_t launch_dnc_step(const StepShape&, const Step<T>&, void*, cudaStream_t); \
  template cudaError_t launch_dnc_relink(const StepShape&, const Step<T>&, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
