// TERMINOLOGY
//   B samples, K modules, d inputs, o outputs.
//   order    [B] the samples sorted by module; a position is an index into it.
//   bucket   0..K-1: the positions of a module; K: those of inactive samples, which belong to no module.
//   listed   a module that has an entry in the caller's list, so that its parameters are known.
//   part     the modules that one launch takes, so that the table of their parameters fits into its kernel arguments: the
//            kernels need no array of pointers on the device, hence no copy, and a CUDA graph can hold them.
//   tile     kRows x kCols of an output matrix, computed by one block: the sum over `depth` of a[row, depth] b[depth, col], in
//            steps of kDepth.
//              product         rows                depth             cols
//              y               samples             inputs            outputs
//              grad_x          samples             outputs           inputs
//              grad_weight     outputs             samples           inputs
//   slot     a number that finds a tile of samples without a sum over the modules: with h = kRows, bucket k owns the slots
//            from layout[k] / h + k up to layout[k+1] / h + k, both included. That is always enough for its tiles and at
//            most one too many, whose block has nothing to do.
//   split    the samples of a module may be divided among several blocks, which leave partial sums of grad_weight in scratch
//            memory; a second launch adds them up in order.
//
// No sum depends on the order in which blocks or threads run.
#include "grouped_linear.cuh"

#include <type_traits>

#include "../common/host_device.h"
#include "element_types.cuh"
#include "launch.cuh"
#include "shared_arena.cuh"
#include "tile_product.cuh"

namespace routing_ext::cuda {
namespace {

// ---- tile shapes -----------------------------------------------------------------------------------------------------------

using LargeTile = TileShape<64, 64, 8, 4>;
using SmallTile = TileShape<16, 64, 2, 4>;  // wastes less where modules have few samples, and makes more blocks

// Below this the large tile would leave many of the GPU's multiprocessors without work.
constexpr int64_t kFullGrid = 128;

// ---- operands --------------------------------------------------------------------------------------------------------------

// An element of a [B, width] matrix, by its offset.
template <class T>
struct Plain {
  const T* matrix;
  __device__ __forceinline__ Accumulator<T> operator()(int64_t at) const { return widen(matrix[at]); }
};
template <class T>
struct MaskedGradient {
  const T *grad, *y;
  __device__ __forceinline__ Accumulator<T> operator()(int64_t at) const {
    const Accumulator<T> g = widen(grad[at]);
    return y != nullptr && widen(y[at]) <= Accumulator<T>(0) ? Accumulator<T>(0) : g;
  }
};

// (row, k) -> matrix[sample of the row, k].
template <class T, class Element>
struct RowsOfSamples {
  static constexpr bool kDepthContiguous = true;
  Element element;
  const int64_t* samples;  // [rows], -1: none
  int64_t width;
  __device__ __forceinline__ Accumulator<T> operator()(int row, int64_t k) const {
    const int64_t sample = samples[row];
    return sample >= 0 && k < width ? element(sample * width + k) : Accumulator<T>(0);
  }
};

// (i, k) -> matrix[sample at the k-th position, first + i].
template <class T, class Element>
struct ColumnsOfSamples {
  static constexpr bool kDepthContiguous = false;
  Element element;
  const int64_t* order;  // [count], from the first position on
  int64_t count, batch, width, first;
  __device__ __forceinline__ Accumulator<T> operator()(int i, int64_t k) const {
    if (k >= count || first + i >= width) return Accumulator<T>(0);
    const int64_t sample = order[k];
    return sample >= 0 && sample < batch ? element(sample * width + first + i) : Accumulator<T>(0);
  }
};

// (i, k) -> weight[first + i, k].
template <class T>
struct WeightRows {
  static constexpr bool kDepthContiguous = true;
  const T* weight;  // [height,width]
  int64_t height, width, first;
  __device__ __forceinline__ Accumulator<T> operator()(int i, int64_t k) const {
    return first + i < height && k < width ? widen(weight[(first + i) * width + k]) : Accumulator<T>(0);
  }
};

// (i, k) -> weight[k, first + i].
template <class T>
struct WeightColumns {
  static constexpr bool kDepthContiguous = false;
  const T* weight;  // [height,width]
  int64_t height, width, first;
  __device__ __forceinline__ Accumulator<T> operator()(int i, int64_t k) const {
    return k < height && first + i < width ? widen(weight[k * width + first + i]) : Accumulator<T>(0);
  }
};

// What may be done with each step of the first operand: nothing, or the sum of its row threadIdx.x over all steps.
struct Nothing {
  template <class Operand>
  __device__ __forceinline__ void operator()(const Operand&, int) const {}
};
template <class Shape, class Acc>
struct RowSum {
  bool wanted;
  Acc sum;
  template <class Operand>
  __device__ __forceinline__ void operator()(const Operand& a, int buffer) {
    if (!wanted || threadIdx.x >= Shape::kRows) return;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) sum += widen(a.row(buffer, k)[threadIdx.x]);
  }
};
static_assert(LargeTile::kRows <= kThreads && SmallTile::kRows <= kThreads, "a thread sums up one row");

// ---- modules of a launch ---------------------------------------------------------------------------------------------------

// By module of the part. Passed as a kernel argument: up to 4 KB on any driver, 32 KB since CUDA 12.1.
template <class T, int kCapacity_>
struct ModuleTable {
  static constexpr int kCapacity = kCapacity_;
  T* weight[kCapacity];
  T* bias[kCapacity];
  bool listed[kCapacity];
};
constexpr int kSmallTable = 64, kLargeTable = 1024;
constexpr size_t kMaxTableBytes = 32000;  // and some more for the other arguments
static_assert(sizeof(ModuleTable<float, kLargeTable>) <= kMaxTableBytes, "kernel arguments have 32764 bytes");

struct Part {
  int64_t first, modules;
  int64_t buckets;  // modules, and in the last part the bucket of the inactive samples
};

__device__ __forceinline__ int64_t bucket_begin(const GroupedRows& rows, int64_t bucket) {
  if (bucket > rows.num_modules) return rows.batch;
  return smaller(larger(rows.layout[bucket], 0), rows.batch);  // so that no layout leads out of bounds
}

template <int kRows>
__device__ __forceinline__ int64_t first_slot(const GroupedRows& rows, int64_t bucket) {
  return bucket_begin(rows, bucket) / kRows + bucket;
}

// Positions begin..begin+count-1, all of one bucket.
struct SampleTile {
  int64_t bucket, begin;
  int count;
};

// Blocks of a launch for a matrix that has samples as rows: the tiles of columns one after the other, for each of them the
// slots. In one dimension of the grid, as only the first may have more than 65535 blocks.
template <class Shape>
__host__ __device__ unsigned slots_of(const GroupedRows& rows, const Part& part) {
  return static_cast<unsigned>(rows.batch / Shape::kRows + part.buckets);
}
template <class Shape>
dim3 sample_grid(const GroupedRows& rows, const Part& part, int64_t cols) {
  return dim3(slots_of<Shape>(rows, part) * static_cast<unsigned>(divide_up(cols, Shape::kCols)));
}
template <class Shape>
__device__ __forceinline__ int64_t first_col_of_block(const GroupedRows& rows, const Part& part) {
  return static_cast<int64_t>(blockIdx.x / slots_of<Shape>(rows, part)) * Shape::kCols;
}

// The block's tile of samples. Each warp searches for itself, 32 buckets at a time.
template <class Shape>
__device__ __forceinline__ SampleTile find_tile(const GroupedRows& rows, const Part& part) {
  constexpr int kRows = Shape::kRows;
  const int lane = threadIdx.x % kWarp;
  const int64_t slot = blockIdx.x % slots_of<Shape>(rows, part) + first_slot<kRows>(rows, part.first);
  int64_t bucket = part.first, candidates = part.buckets;  // it is among bucket..bucket+candidates-1
  while (candidates > 1) {
    const int64_t step = divide_up(candidates, kWarp), ahead = lane * step;
    const bool passed = lane == 0 || (ahead < candidates && first_slot<kRows>(rows, bucket + ahead) <= slot);
    const int64_t last_passed = (__popc(__ballot_sync(kFullWarp, passed)) - 1) * step;
    bucket += last_passed;
    candidates = smaller(step, candidates - last_passed);
  }
  const int64_t ahead = slot - first_slot<kRows>(rows, bucket);
  const int64_t begin = bucket_begin(rows, bucket) + ahead * kRows, end = bucket_begin(rows, bucket + 1);
  if (ahead < 0 || begin >= end) return {bucket, begin, 0};
  return {bucket, begin, static_cast<int>(smaller(kRows, end - begin))};
}

// samples[row] = the sample at the row-th position of the tile, -1 beyond the tile.
template <int kRows>
__device__ __forceinline__ void load_samples(const GroupedRows& rows, const SampleTile& tile, int64_t* samples) {
  for (int row = threadIdx.x; row < kRows; row += kThreads) {
    const int64_t sample = row < tile.count ? rows.order[tile.begin + row] : -1;
    samples[row] = sample < rows.batch ? sample : -1;
  }
}

// out[offset + j] = values[j] for j < left.
template <class T, int kCount>
__device__ __forceinline__ void store_run(T* out, const Accumulator<T> (&values)[kCount], int64_t left, bool aligned) {
  if (aligned && left >= kCount) {
    Pack<T, kCount> pack;
#pragma unroll
    for (int j = 0; j < kCount; ++j) pack.v[j] = narrow<T>(values[j]);
    *reinterpret_cast<Pack<T, kCount>*>(out) = pack;
    return;
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (j < left) out[j] = narrow<T>(values[j]);
  }
}

// out[sample of the row, first_col + col] = tile. out [B,width].
template <class Shape, class T>
__device__ __forceinline__ void store_samples(const ThreadTile<Shape, Accumulator<T>>& tile, const int64_t* samples, T* out,
                                              int64_t width, int64_t first_col) {
  const int64_t col = first_col + tile.first_col();
  const bool aligned = width % Shape::kThreadCols == 0;
#pragma unroll
  for (int i = 0; i < Shape::kThreadRows; ++i) {
    const int64_t sample = samples[tile.first_row() + i];
    if (sample >= 0) store_run(out + sample * width + col, tile.sum[i], width - col, aligned);
  }
}

// ---- kernels ---------------------------------------------------------------------------------------------------------------

// Blocks: see sample_grid.
template <class T, bool kTf32, class Shape, class Table>
__global__ void __launch_bounds__(kThreads, kBlocks<Accumulator<T>>)
    grouped_linear_forward_kernel(GroupedLinearForward<T> p, GroupedRows rows, Part part,
                                  const Table __grid_constant__ table) {
  using Acc = Accumulator<T>;
  const SampleTile samples_tile = find_tile<Shape>(rows, part);
  if (samples_tile.count == 0) return;
  SharedArena arena;
  int64_t* samples = arena.take<int64_t>(Shape::kRows);
  load_samples<Shape::kRows>(rows, samples_tile, samples);
  __syncthreads();

  ThreadTile<Shape, Acc> tile;
  const int64_t first_col = first_col_of_block<Shape>(rows, part);
  const int64_t entry = samples_tile.bucket - part.first;
  if (entry < part.modules && table.listed[entry]) {
    const RowsOfSamples<T, Plain<T>> x{{p.x}, samples, p.in_features};
    const WeightRows<T> weight{table.weight[entry], p.out_features, p.in_features, first_col};
    multiply<T, kTf32>(p.in_features, x, weight, arena, tile, Nothing());
    const T* bias = table.bias[entry];
#pragma unroll
    for (int j = 0; j < Shape::kThreadCols; ++j) {
      const int64_t col = first_col + tile.first_col() + j;
      const Acc b = bias != nullptr && col < p.out_features ? widen(bias[col]) : Acc(0);
#pragma unroll
      for (int i = 0; i < Shape::kThreadRows; ++i) {
        Acc& v = tile.sum[i][j];
        v += b;
        if (p.relu && v < Acc(0)) v = Acc(0);  // NaN stays
      }
    }
  }
  store_samples(tile, samples, p.y, p.out_features, first_col);
}

// Blocks: see sample_grid.
template <class T, bool kTf32, class Shape, class Table>
__global__ void __launch_bounds__(kThreads, kBlocks<Accumulator<T>>)
    grouped_linear_grad_x_kernel(GroupedLinearBackward<T> p, GroupedRows rows, Part part,
                                 const Table __grid_constant__ table) {
  const SampleTile samples_tile = find_tile<Shape>(rows, part);
  if (samples_tile.count == 0) return;
  SharedArena arena;
  int64_t* samples = arena.take<int64_t>(Shape::kRows);
  load_samples<Shape::kRows>(rows, samples_tile, samples);
  __syncthreads();

  ThreadTile<Shape, Accumulator<T>> tile;
  const int64_t first_col = first_col_of_block<Shape>(rows, part);
  const int64_t entry = samples_tile.bucket - part.first;
  if (entry < part.modules && table.listed[entry]) {
    const RowsOfSamples<T, MaskedGradient<T>> grad{{p.grad, p.y}, samples, p.out_features};
    const WeightColumns<T> weight{table.weight[entry], p.out_features, p.in_features, first_col};
    multiply<T, kTf32>(p.out_features, grad, weight, arena, tile, Nothing());
  }
  store_samples(tile, samples, p.grad_x, p.in_features, first_col);
}

// How grad_weight is cut into blocks: (tile, module of the part and split). The tiles of outputs come one after the other, for
// each of them the tiles of inputs.
struct WeightGrid {
  using Shape = LargeTile;
  int64_t out_tiles, in_tiles;
  int64_t splits;
  bool wants_weight, wants_bias;

  __host__ __device__ int64_t tiles(int64_t modules) const { return modules * out_tiles * in_tiles; }
  __device__ unsigned in_tile() const { return blockIdx.x % static_cast<unsigned>(in_tiles); }
  __device__ unsigned out_tile() const { return blockIdx.x / static_cast<unsigned>(in_tiles); }
  __device__ int64_t first_in() const { return in_tile() * int64_t{Shape::kCols}; }
  __device__ int64_t first_out() const { return out_tile() * int64_t{Shape::kRows}; }
  __device__ bool block_sums_bias() const { return wants_bias && in_tile() == 0; }
};

// A thread's share of a tile of grad_weight, and of the gradient of the bias for the tile's rows.
template <class Acc>
struct WeightTile {
  using Shape = WeightGrid::Shape;
  static constexpr int kThreadSums = Shape::kThreadRows * Shape::kThreadCols + 1;
  static constexpr int64_t kSums = int64_t{kThreadSums} * kThreads;

  ThreadTile<Shape, Acc> weight;
  RowSum<Shape, Acc> bias;

  // Element n of the thread in a partial tile [kThreadSums,kThreads].
  static __device__ __forceinline__ int64_t at(int n) { return static_cast<int64_t>(n) * kThreads + threadIdx.x; }

  __device__ __forceinline__ void store_partial(Acc* partial) const {
#pragma unroll
    for (int n = 0; n < kThreadSums - 1; ++n) partial[at(n)] = weight.sum[n / Shape::kThreadCols][n % Shape::kThreadCols];
    partial[at(kThreadSums - 1)] = bias.sum;
  }
  __device__ __forceinline__ void add_partial(const Acc* partial) {
#pragma unroll
    for (int n = 0; n < kThreadSums - 1; ++n) weight.sum[n / Shape::kThreadCols][n % Shape::kThreadCols] += partial[at(n)];
    bias.sum += partial[at(kThreadSums - 1)];
  }
  // grad_weight [o,d], grad_bias [o]; nullptr: not wanted.
  template <class T>
  __device__ __forceinline__ void store(const WeightGrid& grid, T* grad_weight, T* grad_bias, int64_t out_features,
                                        int64_t in_features) const {
    const int64_t first_out = grid.first_out();
    if (bias.wanted && threadIdx.x < Shape::kRows && first_out + threadIdx.x < out_features) {
      grad_bias[first_out + threadIdx.x] = narrow<T>(bias.sum);
    }
    if (grad_weight == nullptr) return;
    const int64_t col = grid.first_in() + weight.first_col();
    const bool aligned = in_features % Shape::kThreadCols == 0;
#pragma unroll
    for (int i = 0; i < Shape::kThreadRows; ++i) {
      const int64_t out = first_out + weight.first_row() + i;
      if (out < out_features) store_run(grad_weight + out * in_features + col, weight.sum[i], in_features - col, aligned);
    }
  }
};

// Where the block's tile starts in scratch [splits,modules,tiles,kSums], for the first split.
template <class Acc>
__device__ __forceinline__ int64_t partial_offset(const WeightGrid& grid, int64_t entry) {
  return (grid.tiles(entry) + blockIdx.x) * WeightTile<Acc>::kSums;
}

// Blocks: see WeightGrid.
template <class T, bool kTf32, class Table>
__global__ void __launch_bounds__(kThreads, kBlocks<Accumulator<T>>)
    grouped_linear_grad_weight_kernel(GroupedLinearBackward<T> p, GroupedRows rows, Part part, WeightGrid grid,
                                      Accumulator<T>* scratch, const Table __grid_constant__ table) {
  using Acc = Accumulator<T>;
  using Tile = WeightTile<Acc>;
  const int64_t entry = blockIdx.y / grid.splits, split = blockIdx.y % grid.splits;
  if (!table.listed[entry]) return;
  const int64_t module = part.first + entry, module_end = bucket_begin(rows, module + 1);
  const int64_t module_begin = smaller(bucket_begin(rows, module), module_end);
  const int64_t split_rows = divide_up(divide_up(module_end - module_begin, grid.splits), kDepth) * kDepth;
  const int64_t begin = smaller(module_begin + split * split_rows, module_end);
  const int64_t count = smaller(split_rows, module_end - begin);

  const int64_t* order = rows.order + begin;
  const ColumnsOfSamples<T, MaskedGradient<T>> grad{{p.grad, p.y}, order, count, rows.batch, p.out_features, grid.first_out()};
  const ColumnsOfSamples<T, Plain<T>> x{{p.x},          order, count, rows.batch, grid.wants_weight ? p.in_features : 0,
                                        grid.first_in()};
  SharedArena arena;
  Tile tile{{}, {grid.block_sums_bias(), Acc(0)}};
  multiply<T, kTf32>(count, grad, x, arena, tile.weight, tile.bias);
  if (grid.splits == 1) {
    tile.store(grid, table.weight[entry], table.bias[entry], p.out_features, p.in_features);
  } else {
    tile.store_partial(scratch + partial_offset<Acc>(grid, entry) + split * grid.tiles(part.modules) * Tile::kSums);
  }
}

// Blocks: (tile, module of the part).
template <class T, class Table>
__global__ void __launch_bounds__(kThreads, kBlocks<Accumulator<T>>)
    grouped_linear_add_splits_kernel(GroupedLinearBackward<T> p, Part part, WeightGrid grid, const Accumulator<T>* scratch,
                                     const Table __grid_constant__ table) {
  using Acc = Accumulator<T>;
  const int64_t entry = blockIdx.y;
  if (!table.listed[entry]) return;
  WeightTile<Acc> tile{{}, {grid.block_sums_bias(), Acc(0)}};
  const Acc* partial = scratch + partial_offset<Acc>(grid, entry);
  for (int64_t split = 0; split < grid.splits; ++split) {
    tile.add_partial(partial + split * grid.tiles(part.modules) * WeightTile<Acc>::kSums);
  }
  tile.store(grid, table.weight[entry], table.bias[entry], p.out_features, p.in_features);
}

// ---- launches --------------------------------------------------------------------------------------------------------------

// launch_part(part, table) for each part of the modules.
template <class Table, class T, class LaunchPart>
cudaError_t for_each_part_of(int64_t num_modules, const GroupedModules<T>& m, const LaunchPart& launch_part) {
  int64_t e = 0;
  for (int64_t first = 0; first == 0 || first < num_modules; first += Table::kCapacity) {
    const int64_t modules = smaller(Table::kCapacity, num_modules - first);
    const bool last = first + modules == num_modules;
    Table table{};
    for (; e < m.entries && m.modules[e] < first + modules; ++e) {
      const int64_t entry = m.modules[e] - first;
      table.listed[entry] = true;
      if (m.weights != nullptr) table.weight[entry] = m.weights[e];
      if (m.biases != nullptr) table.bias[entry] = m.biases[e];
    }
    const cudaError_t error = launch_part(Part{first, modules, modules + last}, table);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class T, class LaunchPart>
cudaError_t for_each_part(int64_t num_modules, const GroupedModules<T>& m, const LaunchPart& launch_part) {
  if (num_modules <= kSmallTable) return for_each_part_of<ModuleTable<T, kSmallTable>>(num_modules, m, launch_part);
  return for_each_part_of<ModuleTable<T, kLargeTable>>(num_modules, m, launch_part);
}

// launch_arithmetic(std::bool_constant<TF32>()): only float has that choice.
template <class T, class LaunchArithmetic>
cudaError_t with_arithmetic(bool tf32, const LaunchArithmetic& launch_arithmetic) {
  if constexpr (std::is_same_v<T, float>) {
    if (tf32) return launch_arithmetic(std::true_type());
  }
  return launch_arithmetic(std::false_type());
}

// launch_shape(shape) with the tile shape for products that have samples as rows.
template <class LaunchShape>
cudaError_t with_tile_shape(const GroupedRows& rows, int64_t cols, const LaunchShape& launch_shape) {
  const int64_t average = rows.batch / larger(rows.num_modules, 1);
  const int64_t blocks = rows.batch / LargeTile::kRows * divide_up(cols, LargeTile::kCols);
  const bool large = average >= LargeTile::kRows / 2 && blocks >= kFullGrid;
  return large ? launch_shape(LargeTile()) : launch_shape(SmallTile());
}

// A product that has samples as rows, of so many columns: kernel_of(arithmetic, shape, table) for each part of the modules.
template <class T, class Params, class KernelOf>
cudaError_t launch_on_samples(const Params& p, const GroupedRows& rows, const GroupedModules<const T>& modules, int64_t cols,
                              cudaStream_t stream, const KernelOf& kernel_of) {
  if (rows.batch == 0 || cols == 0) return cudaSuccess;
  return with_arithmetic<T>(p.tf32, [&](auto tf32) {
    return with_tile_shape(rows, cols, [&](auto shape) {
      using Shape = decltype(shape);
      const size_t shared = tile_shared_bytes<Shape, T, decltype(tf32)::value>(Shape::kRows);
      return for_each_part(rows.num_modules, modules, [&](const Part& part, const auto& table) {
        return launch(kernel_of(tf32, shape, table), sample_grid<Shape>(rows, part, cols), dim3(kThreads), shared, stream, p,
                      rows, part, table);
      });
    });
  });
}

constexpr int64_t kSplitGrid = 512;        // splits are made until there are so many blocks
constexpr int64_t kMinSplitSamples = 128;  // or they have so few samples on average

template <class T>
WeightGrid weight_grid(const GroupedLinearBackward<T>& p, const GroupedRows& rows, bool wants_weight, bool wants_bias) {
  using Shape = WeightGrid::Shape;
  const int64_t in_tiles = wants_weight ? larger(divide_up(p.in_features, Shape::kCols), 1) : 1;
  WeightGrid grid{divide_up(p.out_features, Shape::kRows), in_tiles, 1, wants_weight, wants_bias};
  const int64_t blocks = larger(grid.tiles(rows.num_modules), 1), average = rows.batch / larger(rows.num_modules, 1);
  grid.splits = larger(smaller(kSplitGrid / blocks, average / kMinSplitSamples), 1);
  return grid;
}
static_assert(kSplitGrid <= 65535 && kLargeTable <= 65535, "blocks along y");
static_assert(kSplitGrid <= kLargeTable, "more modules than fit into one part are not split");

}  // namespace

template <class T>
cudaError_t launch_grouped_linear(const GroupedLinearForward<T>& p, const GroupedRows& rows,
                                  const GroupedModules<const T>& modules, cudaStream_t stream) {
  return launch_on_samples(p, rows, modules, p.out_features, stream, [](auto tf32, auto shape, const auto& table) {
    return grouped_linear_forward_kernel<T, decltype(tf32)::value, decltype(shape), std::decay_t<decltype(table)>>;
  });
}

template <class T>
cudaError_t launch_grouped_linear_grad_x(const GroupedLinearBackward<T>& p, const GroupedRows& rows,
                                         const GroupedModules<const T>& modules, cudaStream_t stream) {
  return launch_on_samples(p, rows, modules, p.in_features, stream, [](auto tf32, auto shape, const auto& table) {
    return grouped_linear_grad_x_kernel<T, decltype(tf32)::value, decltype(shape), std::decay_t<decltype(table)>>;
  });
}

template <class T>
size_t grouped_linear_scratch_bytes(const GroupedLinearBackward<T>& p, const GroupedRows& rows, bool wants_weight) {
  using Acc = Accumulator<T>;
  const WeightGrid grid = weight_grid(p, rows, wants_weight, true);
  if (grid.splits == 1) return 0;
  return static_cast<size_t>(grid.splits * grid.tiles(rows.num_modules) * WeightTile<Acc>::kSums) * sizeof(Acc);
}

template <class T>
cudaError_t launch_grouped_linear_grad_weight(const GroupedLinearBackward<T>& p, const GroupedRows& rows,
                                              const GroupedModules<T>& gradients, void* scratch, cudaStream_t stream) {
  using Acc = Accumulator<T>;
  const bool wants_weight = gradients.weights != nullptr, wants_bias = gradients.biases != nullptr;
  const WeightGrid grid = weight_grid(p, rows, wants_weight, wants_bias);
  if (gradients.entries == 0 || grid.out_tiles == 0 || !(wants_weight || wants_bias)) return cudaSuccess;
  Acc* partial = static_cast<Acc*>(scratch);
  const unsigned tiles = static_cast<unsigned>(grid.tiles(1));
  return for_each_part(rows.num_modules, gradients, [&](const Part& part, const auto& table) {
    using Table = std::decay_t<decltype(table)>;
    const unsigned modules = static_cast<unsigned>(part.modules), splits = static_cast<unsigned>(grid.splits);
    const cudaError_t error = with_arithmetic<T>(p.tf32, [&](auto tf32) {
      constexpr bool kTf32 = decltype(tf32)::value;
      return launch(grouped_linear_grad_weight_kernel<T, kTf32, Table>, dim3(tiles, modules * splits), dim3(kThreads),
                    tile_shared_bytes<WeightGrid::Shape, T, kTf32>(0), stream, p, rows, part, grid, partial, table);
    });
    if (error != cudaSuccess || splits == 1) return error;
    return launch(grouped_linear_add_splits_kernel<T, Table>, dim3(tiles, modules), dim3(kThreads), 0, stream, p, part, grid,
                  static_cast<const Acc*>(partial), table);
  });
}

#define INSTANTIATE(T)                                                                                        \
  template cudaError_t launch_grouped_linear(const GroupedLinearForward<T>&, const GroupedRows&,              \
                                             const GroupedModules<const T>&, cudaStream_t);                   \
  template cudaError_t launch_grouped_linear_grad_x(const GroupedLinearBackward<T>&, const GroupedRows&,      \
                                                    const GroupedModules<const T>&, cudaStream_t);            \
  template size_t grouped_linear_scratch_bytes(const GroupedLinearBackward<T>&, const GroupedRows&, bool);    \
  template cudaError_t launch_grouped_linear_grad_weight(const GroupedLinearBackward<T>&, const GroupedRows&, \
                                                         const GroupedModules<T>&, void*, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
INSTANTIATE(__half);
INSTANTIATE(__nv_bfloat16);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
