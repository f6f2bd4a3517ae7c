// Tensors that may not be there, as operators take them.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>

namespace routing_ext::autograd {

using Given = std::optional<at::Tensor>;

inline Given given(const at::Tensor& t) { return t.defined() ? Given(t) : std::nullopt; }

inline c10::List<Given> given(at::TensorList tensors) {
  c10::List<Given> all;
  all.reserve(tensors.size());
  for (const at::Tensor& t : tensors) all.push_back(given(t));
  return all;
}

}  // namespace routing_ext::autograd
