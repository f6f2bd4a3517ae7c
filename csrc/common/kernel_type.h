// What the glue of CPU and CUDA kernels needs to pass tensors to templates.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <type_traits>

namespace routing_ext {

// Names the type of a kernel's elements to a generic lambda.
template <class T>
struct KernelType {
  using type = T;
};

// T: of an element as the kernel sees it, const for what is read. A tensor that is not there: nullptr.
template <class T>
T* data_of(const at::Tensor& t) {
  if (!t.defined()) return nullptr;
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(t.const_data_ptr());
  } else {
    return static_cast<T*>(t.mutable_data_ptr());
  }
}
template <class T>
T* data_of(const std::optional<at::Tensor>& t) {
  return t ? data_of<T>(*t) : nullptr;
}

}  // namespace routing_ext
