// Gathers and scatters the rows of a contiguous matrix of any type: rows are so many bytes.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace routing_ext::cuda {

// source and target do not overlap.
struct MoveRows {
  const void* source;    // gather: [num_rows, row_bytes]; scatter: [n, row_bytes]
  const int64_t* order;  // [n], rows of the num_rows
  void* target;          // gather: [n, row_bytes]; scatter: [num_rows, row_bytes]
  int64_t n, num_rows, row_bytes;
};

// target[i] = source[order[i]]; zero where order[i] is out of range. One launch.
cudaError_t launch_gather_rows(const MoveRows& m, cudaStream_t stream);

// target[order[i]] = source[i], nothing where order[i] is out of range. One launch; if n < num_rows, a memset before it makes
// the rows that are not written zero. If n == num_rows, a valid `order` writes each of them, and there is none.
cudaError_t launch_scatter_rows(const MoveRows& m, cudaStream_t stream);

}  // namespace routing_ext::cuda
