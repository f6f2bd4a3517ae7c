// Tensors as the kernels of the memory networks want them: rows of links padded with zeros to a multiple of 64 bytes.
#pragma once
#include <ATen/ops/constant_pad_nd.h>

#include <string_view>

#include "../common/memory_links.h"
#include "../common/memory_ops_args.h"
#include "pool.h"
#include "threads.h"

namespace routing_ext::cpu {

inline bool is_link(std::string_view shape) { return shape.ends_with("NN"); }

// Rows as long as the kernels want them; the same tensor where they are.
inline at::Tensor padded_link(const at::Tensor& link) {
  const int64_t n = link.size(-1), more = padded_locations(n, link.element_size()) - n;
  return more == 0 ? link : at::constant_pad_nd(link, {0, more});
}
inline at::Tensor unpadded_link(const at::Tensor& link, int64_t locations) {
  return link.size(-1) == locations ? link : link.narrow(-1, 0, locations).contiguous();
}

inline void pad_links(MemoryOpArgs& a) {
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    at::Tensor& t = a.tensors[i];
    if (t.defined() && is_link(a.letters[i])) t = padded_link(t);
  }
}
inline at::Tensor empty_result(const MemoryOpArgs& a, const char* letters) {
  std::vector<int64_t> shape = a.sizes.shape(letters);
  if (is_link(letters)) shape.back() = padded_locations(shape.back(), a.options.dtype().itemsize());
  return pooled_empty(shape, a.options);
}
inline void unpad_link(const MemoryOpArgs& a, const char* letters, at::Tensor& result) {
  if (is_link(letters)) result = unpadded_link(result, a.sizes['N']);
}

}  // namespace routing_ext::cpu
