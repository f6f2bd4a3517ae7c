// What the glue of CPU and CUDA kernels needs to pass tensors to templates.
#pragma once
#include <ATen/core/Tensor.h>

namespace routing_ext {

// Names the type of a kernel's elements to a generic lambda.
template <class T>
struct KernelType {
  using type = T;
};

template <class T>
const T* data_or_null(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

}  // namespace routing_ext
