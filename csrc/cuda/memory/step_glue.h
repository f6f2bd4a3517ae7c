// Between tensors and the arrays of a step.
#pragma once
#include <ATen/core/Tensor.h>

#include <type_traits>

#include "step.cuh"

namespace routing_ext::cuda {

// C: float or double, const for what the caller gave. A tensor [B,...] that is not defined: nullptr.
template <class C>
Rows<C> rows_of(const at::Tensor& t) {
  if (!t.defined()) return {};
  const int64_t stride = t.size(0) > 0 ? t.numel() / t.size(0) : 0;
  if constexpr (std::is_const_v<C>) {
    return {static_cast<C*>(t.const_data_ptr()), stride};
  } else {
    return {static_cast<C*>(t.mutable_data_ptr()), stride};
  }
}

// The next memory and weights, which an operator keeps behind a step's own record of `size` elements.
template <class C>
StepState<C> state_in_record(const StepShape& s, const Rows<C>& record, int64_t size) {
  StepState<C> state;
  state.memory = {record.data + size, record.stride};
  state.write_weights = {state.memory.data + s.locations * s.word, record.stride};
  state.read_weights = {state.write_weights.data + s.writes * s.locations, record.stride};
  return state;
}

}  // namespace routing_ext::cuda
