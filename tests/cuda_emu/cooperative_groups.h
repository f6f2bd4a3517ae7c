// Stand-in for the part of <cooperative_groups.h> that kernels may use: the cluster and the grid. See cuda_runtime.h beside
// it.
#pragma once
#include <cuda_runtime.h>

namespace cooperative_groups {

struct cluster_group {
  static void sync(CUDA_EMU_SITE) { cuda_emu::machine.wait(cuda_emu::Wait::cluster, at); }
  static unsigned block_rank() { return cuda_emu::machine.self->rank; }
  static unsigned num_blocks() { return static_cast<unsigned>(cuda_emu::machine.blocks.size()); }

  // The same array in the dynamic shared memory of another block of the cluster.
  template <class T>
  static T* map_shared_rank(T* local, unsigned rank, CUDA_EMU_SITE) {
    cuda_emu::Machine& m = cuda_emu::machine;
    auto* const p = reinterpret_cast<unsigned char*>(local);
    if (m.blocks[rank].live == 0) m.fail("shared memory of a block that has left the kernel", at);
    for (cuda_emu::Slice& s : m.blocks[m.self->rank].shared) {
      if (p < s.data() || p >= s.data() + s.bytes) continue;
      return reinterpret_cast<T*>(m.slice(rank, s.offset, s.bytes, at) + (p - s.data()));
    }
    m.fail("map_shared_rank of a pointer that is not in dynamic shared memory", at);
    return nullptr;
  }
};
struct grid_group {
  static void sync(CUDA_EMU_SITE) { cuda_emu::machine.wait(cuda_emu::Wait::cluster, at); }
};
inline cluster_group this_cluster() { return {}; }
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
