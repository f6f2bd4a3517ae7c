// What the operators that memory networks are made of ask of the kernels under simd/: each for one sample. Torch-free.
#pragma once
#include "memory_kernels.h"

namespace routing_ext::cpu {

// N locations of W elements, H heads of any kind, V write heads, R read heads, S shifts; zero for what an operator has not.
struct MemoryOpSizes {
  int64_t locations, word, heads, writes, reads, shifts;
  double temperature;  // of dnc_allocation by softmax; zero: by sorting

  // More than any operator needs, counted in elements of C.
  template <class C>
  ROUTING_EXT_INLINE int64_t scratch_size() const {
    const int64_t n = AccessLayout<C>::padded(locations), words = AccessLayout<C>::padded(word);
    return 2 * (word * n + locations * words) + (12 + 4 * (heads + writes + reads) + 2 * writes * reads) * n +
           2 * reads * words + AccessLayout<C>::padded(reads * locations) + 4 * AccessLayout<C>::padded(shifts) +
           2 * AccessLayout<C>::padded(heads + shifts);
  }
};

// in, out: one sample of each tensor of the schema, in its order; an argument that is not given is nullptr. All are
// contiguous, but the rows of links are padded with zeros to a multiple of 64 bytes.
template <class C>
using MemoryOp = void (*)(const MemoryOpSizes&, const C* const* in, C* const* out, C* scratch);

template <class C>
struct MemoryOpsKernels {
  MemoryOp<C> content_weights, content_weights_backward;
  MemoryOp<C> dnc_usage, dnc_usage_backward;
  MemoryOp<C> dnc_allocation, dnc_allocation_backward;
  MemoryOp<C> dnc_temporal_link, dnc_temporal_link_backward;
  MemoryOp<C> ntm_location, ntm_location_backward;
  MemoryOp<C> memory_write, memory_write_backward;
  MemoryOp<C> memory_read, memory_read_backward;
};

ROUTING_EXT_DECLARE_KERNELS(WideKernels<MemoryOpsKernels>, memory_ops_kernels)

}  // namespace routing_ext::cpu
