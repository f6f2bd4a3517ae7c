// A cluster of blocks as a group (group.cuh), from compute capability 9.0 on: they run at the same time, see each other's
// shared memory, and wait for each other. A kernel has a barrier before the first look into another block's memory, when that
// may not have begun, and one after the last, when it may end.
#pragma once
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "group.cuh"

namespace routing_ext::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define ROUTING_EXT_CLUSTERS 1
#else
#define ROUTING_EXT_CLUSTERS 0
#endif

class ClusterGroup {
 public:
#if ROUTING_EXT_CLUSTERS
  __device__ __forceinline__ ClusterGroup()
      : block_(static_cast<int>(cooperative_groups::this_cluster().block_rank())),
        blocks_(static_cast<int>(cooperative_groups::this_cluster().num_blocks())) {}
  __device__ __forceinline__ void sync() const { cooperative_groups::this_cluster().sync(); }
  template <class T>
  __device__ __forceinline__ static T* of_block(T* own, int block) {
    return cooperative_groups::this_cluster().map_shared_rank(own, static_cast<unsigned>(block));
  }
#endif
  __device__ __forceinline__ int rank() const { return block_ * in_block().size() + in_block().rank(); }
  __device__ __forceinline__ int size() const { return blocks_ * in_block().size(); }
  __device__ __forceinline__ int lane() const { return in_block().lane(); }
  __device__ __forceinline__ int warp() const { return rank() / kWarp; }
  __device__ __forceinline__ int warps() const { return size() / kWarp; }
  __device__ __forceinline__ int block() const { return block_; }
  __device__ __forceinline__ int blocks() const { return blocks_; }
  __device__ __forceinline__ static BlockGroup in_block() { return {}; }

 private:
  int block_, blocks_;
};

// Whether kernels of this group are compiled for this architecture; elsewhere they trap, and are not launched.
template <class Group>
constexpr bool kRunsHere = ROUTING_EXT_CLUSTERS || std::is_same_v<Group, BlockGroup>;

}  // namespace routing_ext::cuda
