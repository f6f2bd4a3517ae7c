// What grouped_linear asks of the kernels under simd/: the products of one module, on one thread. Torch-free.
//
// The kernels are compiled once per instruction set; kernels() gives those for this machine.
#pragma once
#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace routing_ext::cpu {

struct Span {
  int64_t begin, end;
  // Always inline: the kernels under simd/ must leave no weak symbol.
  __attribute__((always_inline)) int64_t size() const { return end - begin; }
};

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

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

struct Kernels {
  GroupedLinearKernels<float> f32;
  GroupedLinearKernels<double> f64;
  GroupedLinearKernels<bfloat16> bf16;
  GroupedLinearKernels<float16> f16;
};

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

inline const Kernels& kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512:
      return kernels_avx512;
    case Isa::avx2:
      return kernels_avx2;
    case Isa::baseline:
      break;
  }
#endif
  return kernels_baseline;
}

// Memory of the calling thread, 64-byte aligned, kept for its next call. One user at a time.
void* thread_scratch(size_t bytes);

}  // namespace routing_ext::cpu
