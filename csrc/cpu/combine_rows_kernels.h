// What combine_rows asks of the kernels under simd/: the sums of some samples, on one thread. Torch-free.
#pragma once
#include "kernel_tables.h"

namespace routing_ext::cpu {

template <class T>
struct CombineForward {
  const T* y;        // [B*n,width]
  const T* weights;  // [B,n]
  T* combined;       // [B,width]
  int64_t choices, width;
};

template <class T>
struct CombineBackward {
  const T* grad;     // [B,width]
  const T* y;        // [B*n,width]
  const T* weights;  // [B,n]
  T* grad_y;         // like y; nullptr: not wanted
  T* grad_weights;   // like weights; nullptr: not wanted
  int64_t choices, width;
};

template <class T>
struct CombineRowsKernels {
  void (*forward)(const CombineForward<T>& p, Span samples);
  void (*backward)(const CombineBackward<T>& p, Span samples);
};

ROUTING_EXT_DECLARE_KERNELS(AllKernels<CombineRowsKernels>, combine_rows_kernels)

}  // namespace routing_ext::cpu
