// A tile of a matrix product, computed by one block in shared memory and registers, on tensor cores where they serve. What the
// matrices are is the caller's business: it passes functors that load their elements.
//
// Tensor cores multiply float16 and bfloat16, and float where the caller allows TF32; all are summed as float.
#pragma once
#include <mma.h>

#include <cstdint>
#include <type_traits>

#include "element_types.cuh"
#include "launch.cuh"
#include "shared_arena.cuh"

namespace routing_ext::cuda {

// ---- element types ---------------------------------------------------------------------------------------------------------

// Elements that are loaded or stored together.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T v[kCount];
};

// ---- tile shapes -----------------------------------------------------------------------------------------------------------

constexpr int kThreads = 128;
constexpr int kDepth = 16;
// Blocks of a multiprocessor at once, which bounds the registers of a thread: 168 and 255. One block more would spill.
template <class Acc>
constexpr int kBlocks = sizeof(Acc) == sizeof(float) ? 3 : 2;
constexpr int kMaxPackBytes = 16;  // of one access to shared memory

template <int kRows_, int kCols_, int kThreadRows_, int kThreadCols_>
struct TileShape {
  static constexpr int kRows = kRows_, kCols = kCols_;                          // of the tile
  static constexpr int kThreadRows = kThreadRows_, kThreadCols = kThreadCols_;  // of a thread's part of it, in registers
  static constexpr int kColThreads = kCols / kThreadCols;
  static_assert(kRows % kThreadRows == 0 && kCols % kThreadCols == 0, "threads cover the tile");
  static_assert(kRows / kThreadRows * kColThreads == kThreads, "each thread has one part of the tile");
  static_assert(kRows * kDepth % kThreads == 0 && kCols * kDepth % kThreads == 0, "threads load equally much");
  static_assert(kRows % kDepth == 0, "a split of whole steps");
};

// One operand's tile in shared memory, twice: one is read while the other is filled. Element (i, depth) is at [depth][i], so
// that a thread reads neighbours together. E: the accumulator's type, or for tensor cores that of the matrices.
template <class E, int kSize>
struct OperandTile {
  static constexpr int kPerThread = kSize * kDepth / kThreads;
  static constexpr int kPad = sizeof(E) < sizeof(float) ? 8 : 4;  // spreads a column over the banks, and keeps packs aligned
  static constexpr int kStride = kSize + kPad;
  static constexpr int64_t kElements = 2 * kDepth * kStride;
  static_assert(kPad * sizeof(E) % kMaxPackBytes == 0 && kSize * sizeof(E) % kMaxPackBytes == 0, "aligned packs");

  E* memory;           // [2][kDepth][kStride]
  E next[kPerThread];  // on the way from global memory

  explicit __device__ OperandTile(SharedArena& arena) : memory(arena.take<E>(kElements)) {}

  __device__ const E* row(int buffer, int depth) const { return memory + (buffer * kDepth + depth) * kStride; }

  // Element e of a step: neighbouring threads read neighbouring addresses.
  template <bool kDepthContiguous>
  static __device__ __forceinline__ int index(int e) {
    return kDepthContiguous ? e / kDepth : e % kSize;
  }
  template <bool kDepthContiguous>
  static __device__ __forceinline__ int depth(int e) {
    return kDepthContiguous ? e % kDepth : e / kSize;
  }

  template <class Load>
  __device__ __forceinline__ void fetch(const Load& load, int64_t first) {
#pragma unroll
    for (int n = 0; n < kPerThread; ++n) {
      const int e = threadIdx.x + n * kThreads;
      next[n] = narrow<E>(load(index<Load::kDepthContiguous>(e), first + depth<Load::kDepthContiguous>(e)));
    }
  }
  template <class Load>
  __device__ __forceinline__ void put(const Load&, int buffer) {
#pragma unroll
    for (int n = 0; n < kPerThread; ++n) {
      const int e = threadIdx.x + n * kThreads;
      memory[(buffer * kDepth + depth<Load::kDepthContiguous>(e)) * kStride + index<Load::kDepthContiguous>(e)] = next[n];
    }
  }
};

template <int kCount, class Acc>
__device__ __forceinline__ void load_packs(Acc (&to)[kCount], const Acc* from) {
  constexpr int kFit = kMaxPackBytes / static_cast<int>(sizeof(Acc));
  constexpr int kPack = kCount < kFit ? kCount : kFit;
  static_assert(kCount % kPack == 0, "whole packs");
#pragma unroll
  for (int n = 0; n < kCount; n += kPack) {
    const auto pack = *reinterpret_cast<const Pack<Acc, kPack>*>(from + n);
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[n + i] = pack.v[i];
  }
}

// ---- the tile product ------------------------------------------------------------------------------------------------------

// A thread's part of a tile: rows first_row().., columns first_col()...
template <class Shape, class Acc>
struct ThreadTile {
  Acc sum[Shape::kThreadRows][Shape::kThreadCols] = {};

  static __device__ __forceinline__ int first_row() { return threadIdx.x / Shape::kColThreads * Shape::kThreadRows; }
  static __device__ __forceinline__ int first_col() { return threadIdx.x % Shape::kColThreads * Shape::kThreadCols; }
};

template <class Shape, class Acc>
using TileA = OperandTile<Acc, Shape::kRows>;
template <class Shape, class Acc>
using TileB = OperandTile<Acc, Shape::kCols>;

// tile.sum[row][col] = sum over k < depth of load_a(row, k) load_b(col, k).
//
// A load functor returns its element, or zero where the matrix has none, and says with kDepthContiguous along which index its
// elements are neighbours in memory. after_step(a, buffer) sees each step of the first operand in shared memory.
template <class Shape, class Acc, class LoadA, class LoadB, class AfterStep>
__device__ __forceinline__ void multiply_tile(int64_t depth, const LoadA& load_a, const LoadB& load_b, SharedArena& arena,
                                              ThreadTile<Shape, Acc>& tile, AfterStep&& after_step) {
  TileA<Shape, Acc> a(arena);
  TileB<Shape, Acc> b(arena);
  const int first_row = tile.first_row(), first_col = tile.first_col();
  int buffer = 0;
  a.fetch(load_a, 0), b.fetch(load_b, 0);
  a.put(load_a, buffer), b.put(load_b, buffer);
  __syncthreads();
  for (int64_t first = 0; first < depth; first += kDepth) {
    const bool more = first + kDepth < depth;
    if (more) a.fetch(load_a, first + kDepth), b.fetch(load_b, first + kDepth);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Acc a_k[Shape::kThreadRows], b_k[Shape::kThreadCols];
      load_packs(a_k, a.row(buffer, k) + first_row);
      load_packs(b_k, b.row(buffer, k) + first_col);
#pragma unroll
      for (int i = 0; i < Shape::kThreadRows; ++i) {
#pragma unroll
        for (int j = 0; j < Shape::kThreadCols; ++j) tile.sum[i][j] += a_k[i] * b_k[j];
      }
    }
    after_step(a, buffer);
    if (more) {
      buffer = 1 - buffer;
      a.put(load_a, buffer), b.put(load_b, buffer);
      __syncthreads();
    }
  }
}

// ---- the same on tensor cores ----------------------------------------------------------------------------------------------

// Before compute capability 8.0 they know neither bfloat16 nor TF32, and all is multiplied as float.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define ROUTING_EXT_TENSOR_CORES 1
#else
#define ROUTING_EXT_TENSOR_CORES 0
#endif

constexpr int kFragment = 16;  // its rows and columns
template <class T>
constexpr int kFragmentDepth = sizeof(T) == sizeof(float) ? 8 : 16;

// Which part of the tile a warp computes: as near to a square as it goes.
template <class Shape>
struct WarpTile {
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kWarpRows = Shape::kRows >= 2 * kFragment ? 2 : 1, kWarpCols = kWarps / kWarpRows;
  static constexpr int kRows = Shape::kRows / kWarpRows, kCols = Shape::kCols / kWarpCols;
  static constexpr int kRowFragments = kRows / kFragment, kColFragments = kCols / kFragment;
  static_assert(kRows % kFragment == 0 && kCols % kFragment == 0, "whole fragments");
  static_assert(kDepth % kFragmentDepth<float> == 0 && kDepth % kFragmentDepth<__half> == 0, "whole fragments");

  static constexpr int kStride = Shape::kCols + 4;  // of the sums in shared memory; spreads a column over the banks
  static constexpr int64_t kSums = int64_t{Shape::kRows} * kStride;

  static __device__ __forceinline__ int first_row() { return threadIdx.x / kWarp / kWarpCols * kRows; }
  static __device__ __forceinline__ int first_col() { return threadIdx.x / kWarp % kWarpCols * kCols; }
};

#if ROUTING_EXT_TENSOR_CORES

namespace wmma = nvcuda::wmma;

// TF32 wants its operands rounded.
template <class T, class Fragment>
__device__ __forceinline__ void round_fragment(Fragment& f) {
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int e = 0; e < f.num_elements; ++e) f.x[e] = wmma::__float_to_tf32(f.x[e]);
  }
}

// multiply_tile; the sums pass through shared memory, as nobody knows which of them a thread of a warp has.
template <class Shape, class T, class LoadA, class LoadB, class AfterStep>
__device__ __forceinline__ void multiply_tile_on_tensor_cores(int64_t depth, const LoadA& load_a, const LoadB& load_b,
                                                              SharedArena& arena, ThreadTile<Shape, float>& tile,
                                                              AfterStep&& after_step) {
  using Element = std::conditional_t<std::is_same_v<T, float>, wmma::precision::tf32, T>;
  constexpr int kStep = kFragmentDepth<T>;
  using Warp = WarpTile<Shape>;
  TileA<Shape, T> a(arena);
  TileB<Shape, T> b(arena);
  float* sums = arena.take<float>(Warp::kSums);
  wmma::fragment<wmma::accumulator, kFragment, kFragment, kStep, float> sum[Warp::kRowFragments][Warp::kColFragments];
#pragma unroll
  for (int i = 0; i < Warp::kRowFragments; ++i) {
#pragma unroll
    for (int j = 0; j < Warp::kColFragments; ++j) wmma::fill_fragment(sum[i][j], 0.0f);
  }
  int buffer = 0;
  a.fetch(load_a, 0), b.fetch(load_b, 0);
  a.put(load_a, buffer), b.put(load_b, buffer);
  __syncthreads();
  for (int64_t first = 0; first < depth; first += kDepth) {
    const bool more = first + kDepth < depth;
    if (more) a.fetch(load_a, first + kDepth), b.fetch(load_b, first + kDepth);
#pragma unroll
    for (int k = 0; k < kDepth; k += kStep) {
      wmma::fragment<wmma::matrix_a, kFragment, kFragment, kStep, Element, wmma::col_major> rows[Warp::kRowFragments];
#pragma unroll
      for (int i = 0; i < Warp::kRowFragments; ++i) {
        wmma::load_matrix_sync(rows[i], a.row(buffer, k) + Warp::first_row() + i * kFragment, a.kStride);
        round_fragment<T>(rows[i]);
      }
#pragma unroll
      for (int j = 0; j < Warp::kColFragments; ++j) {
        wmma::fragment<wmma::matrix_b, kFragment, kFragment, kStep, Element, wmma::row_major> cols;
        wmma::load_matrix_sync(cols, b.row(buffer, k) + Warp::first_col() + j * kFragment, b.kStride);
        round_fragment<T>(cols);
#pragma unroll
        for (int i = 0; i < Warp::kRowFragments; ++i) wmma::mma_sync(sum[i][j], rows[i], cols, sum[i][j]);
      }
    }
    after_step(a, buffer);
    if (more) {
      buffer = 1 - buffer;
      a.put(load_a, buffer), b.put(load_b, buffer);
      __syncthreads();
    }
  }
#pragma unroll
  for (int i = 0; i < Warp::kRowFragments; ++i) {
#pragma unroll
    for (int j = 0; j < Warp::kColFragments; ++j) {
      float* to = sums + (Warp::first_row() + i * kFragment) * Warp::kStride + Warp::first_col() + j * kFragment;
      wmma::store_matrix_sync(to, sum[i][j], Warp::kStride, wmma::mem_row_major);
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Shape::kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kThreadCols; ++j) {
      tile.sum[i][j] = sums[(tile.first_row() + i) * Warp::kStride + tile.first_col() + j];
    }
  }
}

#endif  // ROUTING_EXT_TENSOR_CORES

template <class T>
constexpr bool kIsLow = sizeof(T) < sizeof(float);

// multiply_tile of matrices of T, by what suits them best. kTf32: float may be rounded to it.
template <class T, bool kTf32, class Shape, class LoadA, class LoadB, class AfterStep>
__device__ __forceinline__ void multiply(int64_t depth, const LoadA& load_a, const LoadB& load_b, SharedArena& arena,
                                         ThreadTile<Shape, Accumulator<T>>& tile, AfterStep&& after_step) {
#if ROUTING_EXT_TENSOR_CORES
  constexpr bool kOnTensorCores = kIsLow<T> || kTf32;
  if constexpr (kOnTensorCores) multiply_tile_on_tensor_cores<Shape, T>(depth, load_a, load_b, arena, tile, after_step);
#else
  constexpr bool kOnTensorCores = false;
#endif
  if constexpr (!kOnTensorCores) multiply_tile(depth, load_a, load_b, arena, tile, after_step);
}

// Of a block that keeps the numbers of so many samples, and calls multiply.
template <class Shape, class T, bool kTf32>
size_t tile_shared_bytes(int64_t samples) {
  SharedArena arena;
  arena.reserve<int64_t>(samples);
  arena.template reserve<Accumulator<T>>(TileA<Shape, Accumulator<T>>::kElements);  // more than for tensor cores
  arena.template reserve<Accumulator<T>>(TileB<Shape, Accumulator<T>>::kElements);
  if (kIsLow<T> || kTf32) arena.reserve<float>(WarpTile<Shape>::kSums);
  return arena.bytes();
}

}  // namespace routing_ext::cuda
