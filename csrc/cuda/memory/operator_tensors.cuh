// What operators that take one block for each sample are given.
#pragma once
#include <cstdint>

namespace routing_ext::cuda {

// N locations of W elements, H heads of any kind, V write heads, R read heads, S shifts; zero for what an operator has not.
struct MemoryOpShape {
  int64_t batch, locations, word, heads, writes, reads, shifts;
  double temperature;  // of dnc_allocation by softmax; zero: by sorting
};

// The tensors of the schema in its order, contiguous; an argument that is not given is nullptr.
template <class T>
struct MemoryOpTensors {
  static constexpr int kMostIn = 8, kMostOut = 5;
  const T* in[kMostIn] = {};
  T* out[kMostOut] = {};
  int64_t in_stride[kMostIn] = {}, out_stride[kMostOut] = {};  // from sample to sample
};

}  // namespace routing_ext::cuda
