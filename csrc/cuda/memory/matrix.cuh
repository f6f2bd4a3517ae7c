// Products of a matrix in device memory and one vector, for a controller whose weights each sample reads for itself.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "group.cuh"

namespace routing_ext::cuda {

// done(row, product) for each row of a matrix [rows,cols] and a vector [cols], by one lane. A team of lanes takes four rows
// at a time: as many loads are under way, and their sums share the shuffles.
template <class Group, class T, class F>
__device__ void matrix_times_vector(const Group& group, int rows, int cols, const T* matrix, const T* vector, const F& done) {
  constexpr int kRows = 4;
  const int lanes = lanes_for(cols);
  for_each_row(group, (rows + kRows - 1) / kRows, lanes, [&](int four, int lane, bool is_there) {
    const int first = four * kRows;
    const T* own[kRows];
    T sums[kRows] = {};
#pragma unroll
    for (int k = 0; k < kRows; ++k) own[k] = matrix + static_cast<int64_t>(smaller(first + k, rows - 1)) * cols;
#pragma unroll 2
    for (int c = lane; c < cols; c += lanes) {
      const T x = vector[c];
#pragma unroll
      for (int k = 0; k < kRows; ++k) sums[k] += own[k][c] * x;
    }
    team_sums(sums, lanes);
    if (!is_there || lane != 0) return;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (first + k < rows) done(first + k, sums[k]);
    }
  });
}

// The product of a vector [rows] and a matrix [rows,cols]; the total of a column is there after a barrier. A warp takes 32
// columns and every `parts`-th row, so that there is enough to do for all warps, and no rest that few of them share.
template <class T>
struct VectorTimesMatrix {
  static constexpr int kUnits = 4;  // for each warp, at least
  static constexpr int64_t kMostUnits = kUnits * (kMaxGroup / kWarp);

  int cols, parts;
  T* partials;  // [parts,cols]

  static __host__ __device__ constexpr int64_t partials_size(int64_t cols) { return cols + kMostUnits * kWarp; }

  template <class Group>
  __device__ __forceinline__ VectorTimesMatrix(const Group& group, int rows, int cols_, const T* vector, const T* matrix,
                                               T* partials_)
      : cols(cols_), parts(1), partials(partials_) {
    const int tiles = (cols + kWarp - 1) / kWarp;
    parts = (kUnits * group.warps() + tiles - 1) / tiles;
#pragma unroll 1
    for (int unit = group.warp(); unit < tiles * parts; unit += group.warps()) {
      const int col = unit % tiles * kWarp + group.lane(), part = unit / tiles;
      if (col >= cols) continue;
      T sum = 0;
#pragma unroll 8
      for (int row = part; row < rows; row += parts) sum += vector[row] * matrix[static_cast<int64_t>(row) * cols + col];
      partials[part * cols + col] = sum;
    }
  }
  __device__ __forceinline__ T total(int col) const {
    T sum = 0;
#pragma unroll 1
    for (int p = 0; p < parts; ++p) sum += partials[p * cols + col];
    return sum;
  }
};

}  // namespace routing_ext::cuda
