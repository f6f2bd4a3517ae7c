// Memory for large results. Fresh memory costs more than the arithmetic: the system hands it out page by page, at a page fault
// each, and gradients are freed and made again at every step. So large blocks are kept for the next tensor of their size.
#pragma once
#include <ATen/core/Tensor.h>

namespace routing_ext::cpu {

// Like at::empty for a CPU tensor. Large ones take a kept block if there is one; it returns when the tensor's memory is freed.
at::Tensor pooled_empty(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace routing_ext::cpu
