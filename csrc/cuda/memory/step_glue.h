// Between tensors and the kernels of a step, whatever the kind of network.
#pragma once
#include <ATen/core/Tensor.h>

#include "../../common/kernel_type.h"
#include "ntm_record.cuh"
#include "operator_glue.h"

namespace routing_ext::cuda {

// Of [B,...], of which each sample's part is contiguous. Not there if the tensor is not, or if it is empty.
template <class C>
Rows<C> sample_rows(const at::Tensor& t) {
  if (!t.defined() || t.numel() == 0) return {};
  return {data_of<C>(t), t.stride(0)};
}

inline int64_t record_size(const StepShape& s) { return s.dnc ? DncRecord(s).size : NtmRecord(s).size; }

// The next memory and weights, which an operator keeps behind a step's own record.
template <class C>
StepState<C> state_in_record(const StepShape& s, const Rows<C>& record) {
  StepState<C> state;
  state.memory = {record.data + record_size(s), record.stride};
  state.write_weights = {state.memory.data + s.locations * s.word, record.stride};
  state.read_weights = {state.write_weights.data + s.writes * s.locations, record.stride};
  return state;
}

template <class C>
at::Tensor step_scratch(const StepShape& s, bool backward, const at::TensorOptions& options) {
  if (!s.dnc) return scratch_of(backward ? ntm_step_backward_scratch_bytes<C>(s) : ntm_step_scratch_bytes<C>(s), options);
  return scratch_of(backward ? dnc_step_backward_scratch_bytes<C>(s) : dnc_step_scratch_bytes<C>(s), options);
}
template <class C>
cudaError_t launch_step(const StepShape& s, const Step<C>& step, void* scratch, cudaStream_t stream) {
  return s.dnc ? launch_dnc_step(s, step, scratch, stream) : launch_ntm_step(s, step, scratch, stream);
}
template <class C>
cudaError_t launch_step_backward(const StepShape& s, const StepBackward<C>& step, void* scratch, cudaStream_t stream) {
  return s.dnc ? launch_dnc_step_backward(s, step, scratch, stream) : launch_ntm_step_backward(s, step, scratch, stream);
}

}  // namespace routing_ext::cuda
