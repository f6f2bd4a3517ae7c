// What grouped_linear asks of the kernels under simd/: the products of one module, on one thread. Torch-free.
//
// The kernels are compiled once per instruction set; grouped_linear_kernels() gives those for this machine.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernel_tables.h"

namespace routing_ext::cpu {

// `order` gives the row in x, y, grad and grad_x of each position in a Span of rows.
template <class T>
struct GroupedForward {
  const T* x;            // [B,d]
  const int64_t* order;  // [B]
  T* y;                  // [B,o]
  int64_t d, o;
  bool relu;
};

template <class T>
struct GroupedBackward {
  const T* grad;         // [B,o]
  const T* y;            // [B,o]: the gradient stops where y <= 0; nullptr: nowhere
  const T* x;            // [B,d]
  const int64_t* order;  // [B]
  T* grad_x;             // [B,d]
  int64_t d, o;
};

template <class T>
struct GroupedLinearKernels {
  // y[order[rows], cols] = act(x[order[rows]] weight[cols]^T + bias[cols]). weight [o,d]; bias [o] or nullptr.
  void (*forward)(const GroupedForward<T>& p, const T* weight, const T* bias, Span rows, Span cols);
  // grad_x[order[rows], cols] = grad[order[rows]] weight[:, cols].
  void (*grad_x)(const GroupedBackward<T>& p, const T* weight, Span rows, Span cols);
  // grad_weight[outs, ins] = grad[order[rows], outs]^T x[order[rows], ins], grad_weight [o,d]. Where grad_bias [o] is given:
  // grad_bias[outs] = the column sums of grad.
  void (*grad_weight)(const GroupedBackward<T>& p, T* grad_weight, T* grad_bias, Span rows, Span outs, Span ins);
};

ROUTING_EXT_DECLARE_KERNELS(AllKernels<GroupedLinearKernels>, grouped_linear_kernels)

}  // namespace routing_ext::cpu
