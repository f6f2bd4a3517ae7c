// How an operator makes the tensors of its results: at::empty, or what is faster on a device.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace routing_ext {

using Empty = at::Tensor (*)(at::IntArrayRef sizes, const at::TensorOptions& options);
inline at::Tensor plain_empty(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options); }

}  // namespace routing_ext
