// One hidden unit of the LSTM, forward and backward, and what a sample that begins anew sees.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "interface.cuh"

namespace routing_ext::cuda {

template <class C>
__device__ __forceinline__ C clamped(C x, C clip) {
  return x < -clip ? -clip : x > clip ? clip : x;
}
template <class C>
__device__ __forceinline__ bool is_unclipped(C x, C clip) {
  return x >= -clip && x <= clip;
}

// The features [H,R*W] of a sample that begins anew; initial: of its read vectors.
template <class C>
__device__ __forceinline__ C feature_anew(int64_t i, int64_t hidden, C initial) {
  return i < hidden ? C(0) : initial;
}

// before: the unit's gates i, f, g, o before their activations, `hidden` elements from one to the next; behind them in
// `gates`, which may be `before`. The hidden state is what comes back.
template <class C>
__device__ __forceinline__ C lstm_unit(const C* before, C* gates, int64_t hidden, C cell_before, C clip, C& cell,
                                       C& tanh_cell) {
  const C i = sigmoid(before[0]), f = sigmoid(before[hidden]);
  const C g = tanh(before[2 * hidden]), o = sigmoid(before[3 * hidden]);
  const C next = f * cell_before + i * g, t = tanh(next);
  gates[0] = i, gates[hidden] = f, gates[2 * hidden] = g, gates[3 * hidden] = o;
  cell = next, tanh_cell = t;
  return clamped(o * t, clip);
}

// grad_hidden: of the hidden state. grad_cell becomes that of the cell before, or zero for a sample that begins `anew`. grads:
// of the gates before their activations.
template <class C>
__device__ __forceinline__ void lstm_unit_backward(const C* gates, int64_t hidden, C cell_before, C tanh_cell, C grad_hidden,
                                                   C clip, bool anew, C& grad_cell, C (&grads)[4]) {
  const C i = gates[0], f = gates[hidden], g = gates[2 * hidden], o = gates[3 * hidden], t = tanh_cell;
  const C before = anew ? C(0) : cell_before;
  const C of_hidden = is_unclipped(o * t, clip) ? grad_hidden : C(0);
  const C of_cell = grad_cell + of_hidden * o * (C(1) - t * t);
  grads[0] = of_cell * g * i * (C(1) - i);
  grads[1] = of_cell * before * f * (C(1) - f);
  grads[2] = of_cell * i * (C(1) - g * g);
  grads[3] = of_hidden * t * o * (C(1) - o);
  grad_cell = anew ? C(0) : of_cell * f;
}

}  // namespace routing_ext::cuda
