// What the backward pass of an NTM's step needs of it. Torch-free, and no code of the device.
#pragma once
#include "step.cuh"

namespace routing_ext::cuda {

// Where each array lies, in elements.
struct NtmRecord {
  int64_t interface;                                   // [I]: behind its activations
  int64_t write_cosine, write_content, write_shifted;  // [V,N]
  int64_t read_cosine, read_content, read_shifted;     // [R,N]
  int64_t size = 0;

  explicit NtmRecord(const StepShape& s) {
    const int64_t v = s.writes * s.locations, r = s.reads * s.locations;
    const auto take = [this](int64_t count) {
      const int64_t here = size;
      size += count;
      return here;
    };
    interface = take(s.interface_size());
    write_cosine = take(v), write_content = take(v), write_shifted = take(v);
    read_cosine = take(r), read_content = take(r), read_shifted = take(r);
  }
};

}  // namespace routing_ext::cuda
