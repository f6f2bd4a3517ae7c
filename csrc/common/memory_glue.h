// What the glue of CUDA kernels of memory networks has in common.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include <string_view>

#include "kernel_type.h"

namespace routing_ext {

// f(KernelType<T>()) for float or double, which checked arguments have.
template <class F>
void with_state_type(at::ScalarType dtype, const F& f) {
  if (dtype == at::kFloat) return f(KernelType<float>());
  return f(KernelType<double>());
}

// The length of a row of a tape, and of a record, on every device. sizes: I, H, O, N, W, V, R, S.
inline int64_t memory_row_size(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes,
                               at::ScalarType dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("routing_ext::memory_row_size", "")
                             .typed<int64_t(std::string_view, at::ArrayRef<double>, at::IntArrayRef, at::ScalarType)>();
  return op.call(model, options, sizes, dtype);
}

}  // namespace routing_ext
