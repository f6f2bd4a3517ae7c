// How long the CPU's rows of links are, and which links a tape keeps. Tapes have one shape on every device.
#pragma once
#include <cstdint>

namespace routing_ext {

// N, rounded up to a multiple of 64 bytes.
inline int64_t padded_locations(int64_t locations, int64_t element_size) {
  const int64_t align = 64 / element_size;
  return (locations + align - 1) / align * align;
}

// The number of links between the first and the last state that are kept: after steps link_every, 2 link_every, ... < T.
inline int64_t kept_links(int64_t steps, int64_t link_every) { return steps > 0 ? (steps - 1) / link_every : 0; }

}  // namespace routing_ext
