// TERMINOLOGY
//   B samples, K modules.
//   bucket   0..K-1: a module; K: the samples that are inactive or whose action is out of range.
//   tile     the samples that one block sorts: a contiguous part of the batch, divided among the block's warps in turn.
//   counters [rows,K+2], one row for each contiguous part of the batch (a tile's or a warp's). Columns 0..K count the part's
//            samples by bucket; the warps' rows then turn into the position in `order` of the warp's next sample. Column K+1
//            is the largest B - i over the part's samples i whose action is out of range, else 0: it starts at zero like a
//            count, and the maximum over the parts tells the first such sample.
//
// A batch of one tile takes one launch, that of dispatch_plan_place_kernel. For larger ones dispatch_plan_count_kernel runs
// before it, so that each tile knows the counts of the others.
#include "dispatch_plan.cuh"

#include "../common/host_device.h"
#include "launch.cuh"
#include "shared_arena.cuh"

namespace routing_ext::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int64_t kOneTileRows = 8192;  // up to here a second launch costs more than one block that does all the work
constexpr int64_t kTileRows = 2048;     // of a larger batch: four steps of each warp
constexpr int64_t kMaxTiles = 128;      // every tile reads the counts of all
constexpr int kTileUnroll = 8;          // loads in flight while it does
// A block may have this much on every architecture since sm_80. Where K is too large for it, the warps count in global memory.
constexpr size_t kMaxSharedBytes = 96 * 1024;

static_assert(kDispatchPlanMaxBatch <= INT32_MAX && sizeof(int) == sizeof(int32_t), "positions are ints");

// How a batch is cut into tiles, and which counters live in global memory.
struct Tiling {
  int64_t rows;  // of a tile; the last one may have fewer
  int64_t tiles;
  int64_t columns;  // of the counters
  bool shared;      // the warps' counters are in shared memory

  size_t shared_bytes() const {
    SharedArena arena;
    arena.reserve<int>(kWarps);
    if (shared) arena.reserve<int>(kWarps * columns);
    return arena.bytes();
  }
  int64_t tile_counters() const { return tiles == 1 ? 0 : tiles * columns; }
  int64_t warp_counters() const { return shared ? 0 : tiles * kWarps * columns; }
};

Tiling tile_batch(int64_t batch, int64_t num_modules) {
  Tiling t{larger(batch, 1), 1, num_modules + 2, true};
  t.shared = t.shared_bytes() <= kMaxSharedBytes;
  if (batch <= kOneTileRows) return t;
  // No fewer samples than counters in a tile, so that the scratch memory stays in proportion to the batch.
  t.rows = round_up(larger(larger(kTileRows, t.columns), (batch + kMaxTiles - 1) / kMaxTiles), kThreads);
  t.tiles = (batch + t.rows - 1) / t.rows;
  return t;
}

// Samples begin..end-1.
struct Part {
  int64_t begin, end;
};

__device__ __forceinline__ Part part_of_tile(const DispatchPlan& plan, const Tiling& t) {
  const int64_t begin = blockIdx.x * t.rows;
  return {begin, smaller(begin + t.rows, plan.batch)};
}

__device__ __forceinline__ Part part_of_warp(Part tile) {
  const int64_t rows = round_up(tile.end - tile.begin, kThreads) / kWarps;
  const int64_t begin = smaller(tile.begin + threadIdx.x / kWarp * rows, tile.end);
  return {begin, smaller(begin + rows, tile.end)};
}

__device__ __forceinline__ bool is_active(const DispatchPlan& plan, int64_t i) { return plan.mask == nullptr || plan.mask[i]; }
__device__ __forceinline__ bool in_range(const DispatchPlan& plan, int64_t action) {
  return action >= 0 && action < plan.num_modules;
}

// Adds every `stride`-th sample of a part to the part's counters.
__device__ void count(const DispatchPlan& plan, Part part, int first, int stride, int* counters) {
  for (int64_t i = part.begin + first; i < part.end; i += stride) {
    const bool active = is_active(plan, i);
    const int64_t action = plan.actions[i];
    const bool valid = in_range(plan, action);
    atomicAdd(counters + (active && valid ? action : plan.num_modules), 1);
    if (active && !valid) atomicMax(counters + plan.num_modules + 1, static_cast<int>(plan.batch - i));
  }
}

__device__ void set_to_zero(int* counters, int64_t n) {
  for (int64_t i = threadIdx.x; i < n; i += kThreads) counters[i] = 0;
}

struct BlockSum {
  int before, total;  // sum over the threads before this one; over all
};

__device__ BlockSum block_sum_before(int value, int* warp_sums) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int inclusive = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(kFullWarp, inclusive, distance);
    if (lane >= distance) inclusive += other;
  }
  if (lane == kWarp - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  BlockSum sum{inclusive - value, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) sum.before += sum.total;
    sum.total += warp_sums[w];
  }
  __syncthreads();  // before `warp_sums` is written again
  return sum;
}

// Turns the warps' counts into positions. `counts` [parts,K+2]: of the parts of the whole batch, this tile being the `tile`-th
// of them; for a batch of one tile the parts are the warps' and `tile` is 0. The first tile writes the layout.
__device__ void counts_to_positions(const DispatchPlan& plan, const Tiling& t, const int* counts, int64_t parts, int64_t tile,
                                    int* warp_counters, int* warp_sums) {
  const int64_t first_invalid_column = plan.num_modules + 1;
  int round_begin = 0;  // position of the first bucket of a round
  for (int64_t first = 0; first < t.columns; first += kThreads) {
    const int64_t column = first + threadIdx.x;
    int total = 0, in_tiles_before = 0, maximum = 0;
    if (column < t.columns) {
#pragma unroll kTileUnroll
      for (int64_t p = 0; p < parts; ++p) {
        const int n = counts[p * t.columns + column];
        total += n;
        if (p < tile) in_tiles_before += n;
        if (n > maximum) maximum = n;
      }
    }
    if (column == first_invalid_column) {
      if (tile == 0) plan.layout[column] = maximum == 0 ? -1 : plan.batch - maximum;
      total = 0;
    }
    const BlockSum sum = block_sum_before(total, warp_sums);
    if (column < first_invalid_column) {
      const int bucket_begin = round_begin + sum.before;
      if (tile == 0) plan.layout[column] = bucket_begin;
      int position = bucket_begin + in_tiles_before;
      for (int w = 0; w < kWarps; ++w) {
        int& counter = warp_counters[w * t.columns + column];
        const int n = counter;
        counter = position;
        position += n;
      }
    }
    round_begin += sum.total;
  }
}

// Writes the samples of the calling warp to their positions, in batch order within each bucket.
__device__ void place(const DispatchPlan& plan, Part part, int* positions) {
  const int lane = threadIdx.x % kWarp;
  const unsigned lanes_before = (1u << lane) - 1;
  for (int64_t step = part.begin; step < part.end; step += kWarp) {
    const int64_t i = step + lane;
    int bucket = -1;  // surplus lanes
    if (i < part.end) {
      const int64_t action = plan.actions[i];
      bucket = static_cast<int>(is_active(plan, i) && in_range(plan, action) ? action : plan.num_modules);
    }
    const unsigned same_bucket = __match_any_sync(kFullWarp, bucket);
    const int rank = __popc(same_bucket & lanes_before);
    const int position = bucket < 0 ? 0 : positions[bucket];
    __syncwarp();  // all have read before the first of each bucket writes
    if (bucket >= 0 && rank == 0) positions[bucket] = position + __popc(same_bucket);
    __syncwarp();
    if (bucket >= 0) plan.order[position + rank] = i;
  }
}

// One block a tile. tile_counters [tiles,K+2].
__global__ void __launch_bounds__(kThreads) dispatch_plan_count_kernel(DispatchPlan plan, Tiling t, int* tile_counters) {
  int* counters = tile_counters + blockIdx.x * t.columns;
  set_to_zero(counters, t.columns);
  __syncthreads();
  count(plan, part_of_tile(plan, t), threadIdx.x, kThreads, counters);
}

// One block a tile. tile_counters [tiles,K+2], not read for a batch of one tile; global_warp_counters [tiles,warps,K+2], not
// used where they fit in shared memory.
__global__ void __launch_bounds__(kThreads)
    dispatch_plan_place_kernel(DispatchPlan plan, Tiling t, const int* tile_counters, int* global_warp_counters) {
  SharedArena arena;
  int* warp_sums = arena.take<int>(kWarps);
  int* warp_counters = t.shared ? arena.take<int>(kWarps * t.columns) : global_warp_counters + blockIdx.x * kWarps * t.columns;

  set_to_zero(warp_counters, kWarps * t.columns);
  __syncthreads();
  const Part part = part_of_warp(part_of_tile(plan, t));
  int* own_counters = warp_counters + threadIdx.x / kWarp * t.columns;
  count(plan, part, threadIdx.x % kWarp, kWarp, own_counters);
  __syncthreads();
  if (t.tiles == 1) {
    counts_to_positions(plan, t, warp_counters, kWarps, 0, warp_counters, warp_sums);
  } else {
    counts_to_positions(plan, t, tile_counters, t.tiles, blockIdx.x, warp_counters, warp_sums);
  }
  __syncthreads();
  place(plan, part, own_counters);
}

// A thread a sample. Modules are few here, agents for the most part: to count them anew costs less than a second launch.
__global__ void __launch_bounds__(kThreads)
    rank_of_module_kernel(const int64_t* actions, const int64_t* layout, int64_t* ranks, int64_t batch, int64_t num_modules) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= batch) return;
  const int64_t action = actions[i] >= 0 && actions[i] < num_modules ? actions[i] : 0;
  int64_t rank = 0, used = 0;
  for (int64_t k = 0; k < num_modules; ++k) {
    if (layout[k] == layout[k + 1]) continue;
    rank += k < action;
    ++used;
  }
  // That of an inactive sample is an index, too.
  ranks[i] = rank < used || used == 0 ? rank : used - 1;
}

}  // namespace

size_t dispatch_plan_scratch_bytes(int64_t batch, int64_t num_modules) {
  const Tiling t = tile_batch(batch, num_modules);
  return static_cast<size_t>(t.tile_counters() + t.warp_counters()) * sizeof(int);
}

cudaError_t launch_dispatch_plan(const DispatchPlan& plan, cudaStream_t stream) {
  if (plan.batch < 0 || plan.batch > kDispatchPlanMaxBatch || plan.num_modules < 0 ||
      plan.num_modules > kDispatchPlanMaxModules) {
    return cudaErrorInvalidValue;
  }
  const Tiling t = tile_batch(plan.batch, plan.num_modules);
  const dim3 grid(static_cast<unsigned>(t.tiles)), block(kThreads);
  int* tile_counters = plan.scratch;
  int* warp_counters = plan.scratch + t.tile_counters();
  if (t.tiles > 1) {
    const cudaError_t e = launch(dispatch_plan_count_kernel, grid, block, 0, stream, plan, t, tile_counters);
    if (e != cudaSuccess) return e;
  }
  return launch(dispatch_plan_place_kernel, grid, block, t.shared_bytes(), stream, plan, t, tile_counters, warp_counters);
}

cudaError_t launch_rank_of_module(const int64_t* actions, const int64_t* layout, int64_t* ranks, int64_t batch,
                                  int64_t num_modules, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(divide_up(batch, kThreads)));
  return launch(rank_of_module_kernel, grid, dim3(kThreads), 0, stream, actions, layout, ranks, batch, num_modules);
}

}  // namespace routing_ext::cuda
