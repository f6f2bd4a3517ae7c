// Products of a matrix and one vector, for a controller whose weights each sample reads for itself. The blocks of a group
// share the rows of a matrix: each takes some that follow one another.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "group.cuh"

namespace routing_ext::cuda {

constexpr int kRowsAtATime = 4;  // that a team takes: as many loads are under way, and their sums share the shuffles

// Rows of a matrix that a block takes, at most.
__host__ __device__ constexpr int64_t most_rows_of_block(int64_t rows, int64_t blocks) {
  return smaller(rows, divide_up(divide_up(rows, kRowsAtATime), blocks) * kRowsAtATime);
}

// The rows of a matrix that this block takes.
template <class T>
struct RowsOfBlock {
  int first, count, cols;
  T* data;  // [count,cols]

  // matrix: of all rows.
  template <class Group>
  __device__ __forceinline__ RowsOfBlock(const Group& group, int rows, int cols_, T* matrix) : cols(cols_) {
    const int64_t most = most_rows_of_block(rows, group.blocks());
    first = static_cast<int>(smaller(group.block() * most, rows));
    count = static_cast<int>(smaller(most, rows - first));
    data = matrix + static_cast<int64_t>(first) * cols;
  }
  __device__ __forceinline__ T* row(int i) const { return data + static_cast<int64_t>(i) * cols; }
};

// done(row, product) for each row of the matrix that this block takes and a vector [cols], by one lane.
template <class T, class F>
__device__ void matrix_times_vector(const BlockGroup& group, const RowsOfBlock<const T>& matrix, const T* vector,
                                    const F& done) {
  const int rows = matrix.count, cols = matrix.cols, lanes = lanes_for(cols);
  for_each_row(group, (rows + kRowsAtATime - 1) / kRowsAtATime, lanes, [&](int four, int lane, bool is_there) {
    const int first = four * kRowsAtATime;
    const T* own[kRowsAtATime];
    T sums[kRowsAtATime] = {};
#pragma unroll
    for (int k = 0; k < kRowsAtATime; ++k) own[k] = matrix.row(static_cast<int>(smaller(first + k, rows - 1)));
#pragma unroll 2
    for (int c = lane; c < cols; c += lanes) {
      const T x = vector[c];
#pragma unroll
      for (int k = 0; k < kRowsAtATime; ++k) sums[k] += own[k][c] * x;
    }
    team_sums(sums, lanes);
    if (!is_there || lane != 0) return;
#pragma unroll
    for (int k = 0; k < kRowsAtATime; ++k) {
      if (first + k < rows) done(matrix.first + first + k, sums[k]);
    }
  });
}

// The product of a vector [rows] and a matrix [rows,cols]; the total of a column is there after a barrier. A warp takes 32
// columns and every `parts`-th row of its block, so that there is enough to do for all warps, and no rest that few of them
// share.
template <class T>
struct VectorTimesMatrix {
  static constexpr int kUnits = 4;  // for each warp, at least
  static constexpr int64_t kMostUnits = kUnits * kMaxWarps;

  int cols, parts;
  T* partials;  // [parts,cols], of the block; behind them, if there are other blocks, [cols]

  static __host__ __device__ constexpr int64_t partials_size(int64_t cols, int blocks) {
    return cols + kMostUnits * kWarp + (blocks > 1 ? cols : 0);
  }

  template <class Group>
  __device__ __forceinline__ VectorTimesMatrix(const Group& group, const T* vector, const RowsOfBlock<const T>& matrix,
                                               T* partials_)
      : cols(matrix.cols), parts(1), partials(partials_) {
    const BlockGroup in_block = group.in_block();
    const int tiles = (cols + kWarp - 1) / kWarp;
    parts = (kUnits * in_block.warps() + tiles - 1) / tiles;
#pragma unroll 1
    for (int unit = in_block.warp(); unit < tiles * parts; unit += in_block.warps()) {
      const int col = unit % tiles * kWarp + in_block.lane(), part = unit / tiles;
      if (col >= cols) continue;
      T sum = 0;
#pragma unroll 8
      for (int row = part; row < matrix.count; row += parts) sum += vector[matrix.first + row] * matrix.row(row)[col];
      partials[part * cols + col] = sum;
    }
    if (group.blocks() == 1) return;
    in_block.sync();
    for_each(in_block, cols, [&](int col) { of_block()[col] = total_of_block(col); });
  }
  template <class Group>
  __device__ __forceinline__ T total(const Group& group, int col) const {
    return group.blocks() == 1 ? total_of_block(col) : sum_of_blocks(group, of_block(), col);
  }

 private:
  __device__ __forceinline__ T* of_block() const { return partials + parts * cols; }
  __device__ __forceinline__ T total_of_block(int col) const {
    T sum = 0;
#pragma unroll 1
    for (int p = 0; p < parts; ++p) sum += partials[p * cols + col];
    return sum;
  }
};

}  // namespace routing_ext::cuda
