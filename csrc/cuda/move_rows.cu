// TERMINOLOGY
//   n rows are moved, between a matrix of n rows and one of num_rows rows that `order` indexes.
//   chunk   what a thread moves at once: the largest type that divides a row and the alignment of both matrices.
//   lanes   the threads that share a row. A block moves kThreads / lanes rows.
#include "move_rows.cuh"

#include "../common/host_device.h"
#include "launch.cuh"

namespace routing_ext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunksPerThread = 8;  // longer rows are divided among several blocks
constexpr int64_t kMaxRowParts = 65535;  // blocks along y
constexpr int kUnroll = 4;               // loads in flight of a thread

enum class Direction { gather, scatter };

// Threads (x, y) of block (bx, by) move chunks x, x + lanes, ... of the by-th part of row y of block bx.
template <class Chunk, Direction kDirection>
__global__ void __launch_bounds__(kThreads) move_rows_kernel(MoveRows m, int64_t chunks) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (i >= m.n) return;
  const int64_t index = m.order[i];
  const bool in_range = index >= 0 && index < m.num_rows;
  const int64_t row = in_range ? index : 0;
  const bool gathers = kDirection == Direction::gather;
  if (!gathers && !in_range) return;

  const Chunk* __restrict__ source = static_cast<const Chunk*>(m.source) + (gathers ? row : i) * chunks;
  Chunk* __restrict__ target = static_cast<Chunk*>(m.target) + (gathers ? i : row) * chunks;
  const int64_t stride = static_cast<int64_t>(blockDim.x) * gridDim.y;
#pragma unroll kUnroll
  for (int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; c < chunks; c += stride) {
    target[c] = in_range ? source[c] : Chunk{};
  }
}

template <class Chunk, Direction kDirection>
cudaError_t launch_chunks(const MoveRows& m, cudaStream_t stream) {
  const int64_t chunks = m.row_bytes / static_cast<int64_t>(sizeof(Chunk));
  int lanes = 1;
  while (lanes < kThreads && lanes < chunks) lanes *= 2;
  const int rows = kThreads / lanes;
  int64_t parts = divide_up(chunks, lanes * kChunksPerThread);
  if (parts > kMaxRowParts) parts = kMaxRowParts;
  const dim3 grid(static_cast<unsigned>(divide_up(m.n, rows)), static_cast<unsigned>(parts));
  return launch(move_rows_kernel<Chunk, kDirection>, grid, dim3(lanes, rows), 0, stream, m, chunks);
}

template <Direction kDirection>
cudaError_t launch_move(const MoveRows& m, cudaStream_t stream) {
  if (m.n == 0 || m.row_bytes == 0) return cudaSuccess;
  const uintptr_t common =
      reinterpret_cast<uintptr_t>(m.source) | reinterpret_cast<uintptr_t>(m.target) | static_cast<uintptr_t>(m.row_bytes);
  if (common % sizeof(int4) == 0) return launch_chunks<int4, kDirection>(m, stream);
  if (common % sizeof(int2) == 0) return launch_chunks<int2, kDirection>(m, stream);
  if (common % sizeof(int32_t) == 0) return launch_chunks<int32_t, kDirection>(m, stream);
  if (common % sizeof(int16_t) == 0) return launch_chunks<int16_t, kDirection>(m, stream);
  return launch_chunks<int8_t, kDirection>(m, stream);
}

}  // namespace

cudaError_t launch_gather_rows(const MoveRows& m, cudaStream_t stream) { return launch_move<Direction::gather>(m, stream); }

cudaError_t launch_scatter_rows(const MoveRows& m, cudaStream_t stream) {
  const size_t target_bytes = static_cast<size_t>(m.num_rows) * static_cast<size_t>(m.row_bytes);
  if (m.n < m.num_rows && target_bytes > 0) {
    const cudaError_t e = cudaMemsetAsync(m.target, 0, target_bytes, stream);
    if (e != cudaSuccess) return e;
  }
  return launch_move<Direction::scatter>(m, stream);
}

}  // namespace routing_ext::cuda
