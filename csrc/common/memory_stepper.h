// What takes one step of a memory network after another, as a Python object calls it without torch's interpreter between them.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <optional>

namespace routing_ext {

class MemoryStepper : public torch::CustomClassHolder {
 public:
  // [1,B,O] from [B,I]. Nothing, if these are other weights than those it began with, or autograd is in another mode.
  virtual std::optional<at::Tensor> step(const at::Tensor& x, at::TensorList weights) = 0;
};

}  // namespace routing_ext
