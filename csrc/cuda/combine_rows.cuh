// Weighted sums of the rows of each sample. See combine_rows.cu.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace routing_ext::cuda {

// B samples of n choices, each a row of `width` elements.
struct CombinedRows {
  int64_t batch, choices, width;
};

// T: float, double, __half, __nv_bfloat16; sums of the last two are float. All matrices are contiguous.

// y [B*n,width], weights [B,n] -> combined [B,width]. One launch.
template <class T>
cudaError_t launch_combine_rows(const CombinedRows& r, const T* y, const T* weights, T* combined, cudaStream_t stream);

// grad [B,width] -> grad_y [B*n,width] and grad_weights [B,n]; nullptr: not wanted. One launch for each.
template <class T>
cudaError_t launch_combine_rows_backward(const CombinedRows& r, const T* grad, const T* y, const T* weights, T* grad_y,
                                         T* grad_weights, cudaStream_t stream);

}  // namespace routing_ext::cuda
