// Tensors as the kernels of the memory networks want them: rows of links padded with zeros to a multiple of 64 bytes.
#pragma once
#include <ATen/ops/constant_pad_nd.h>

#include <string_view>

#include "../common/memory_ops_args.h"
#include "pool.h"
#include "threads.h"

namespace routing_ext::cpu {

inline bool is_link(std::string_view shape) { return shape.ends_with('n'); }

inline int64_t padded_length(const MemoryOpArgs& a) {
  const int64_t align = 64 / static_cast<int64_t>(a.options.dtype().itemsize());
  return divide_up(a.sizes['N'], align) * align;
}
// A link whose rows are as long as that stays the same tensor.
inline void pad_links(MemoryOpArgs& a) {
  const int64_t more = padded_length(a) - a.sizes['N'];
  for (size_t i = 0; more > 0 && i < a.tensors.size(); ++i) {
    at::Tensor& t = a.tensors[i];
    if (t.defined() && is_link(a.arguments[i].shape)) t = at::constant_pad_nd(t, {0, more});
  }
}

inline at::Tensor empty_result(const MemoryOpArgs& a, const char* letters) {
  std::vector<int64_t> shape = a.sizes.shape(letters);
  if (is_link(letters)) shape.back() = padded_length(a);
  return pooled_empty(shape, a.options);
}
inline void unpad_link(const MemoryOpArgs& a, const char* letters, at::Tensor& result) {
  if (is_link(letters) && result.size(-1) > a.sizes['N']) result = result.narrow(-1, 0, a.sizes['N']).contiguous();
}

}  // namespace routing_ext::cpu
