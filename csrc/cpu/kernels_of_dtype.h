// The choice of kernels by the dtype of tensors.
#pragma once
#include "../common/kernel_type.h"
#include "kernel_tables.h"

namespace routing_ext::cpu {

// f(KernelType<T>(), kernels for it), for float or double.
template <template <class> class K, class F>
void with_kernels(const WideKernels<K>& kernels, at::ScalarType dtype, const F& f) {
  if (dtype == at::kFloat) return f(KernelType<float>(), kernels.f32);
  return f(KernelType<double>(), kernels.f64);
}

// For a dtype that CHECK_FLOAT accepts.
template <template <class> class K, class F>
void with_kernels(const AllKernels<K>& kernels, at::ScalarType dtype, const F& f) {
  if (dtype == at::kBFloat16) return f(KernelType<bfloat16>(), kernels.bf16);
  if (dtype == at::kHalf) return f(KernelType<float16>(), kernels.f16);
  const WideKernels<K>& wide = kernels;
  return with_kernels(wide, dtype, f);
}

}  // namespace routing_ext::cpu
