// How long the CPU's rows of links are. Tapes have one shape on every device.
#pragma once
#include <cstdint>

namespace routing_ext {

// N, rounded up to a multiple of 64 bytes.
inline int64_t padded_locations(int64_t locations, int64_t element_size) {
  const int64_t align = 64 / element_size;
  return (locations + align - 1) / align * align;
}

}  // namespace routing_ext
