// Linear layers of K modules, each applied to the samples that chose it. See grouped_linear.cu for the terms.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace routing_ext::cuda {

// Which samples belong to which module, as dispatch_plan gives it.
struct GroupedRows {
  const int64_t* order;   // [B]
  const int64_t* layout;  // [K+2], of which [K+1] is not read
  int64_t batch, num_modules;
};

// The parameters, or their gradients, of the modules that take part. The arrays are in host memory and are read before the
// launch returns; the matrices that they point to are on the device.
template <class T>
struct GroupedModules {
  const int64_t* modules;  // [entries], ascending, in [0, K)
  int64_t entries;
  T* const* weights;  // [entries], each [o,d]; nullptr: not wanted (gradients only)
  T* const* biases;   // [entries], each [o]; nullptr: none
};

template <class T>
struct GroupedLinearForward {
  const T* x;  // [B,d]
  T* y;        // [B,o], every row is written; zero where the sample's module is not listed
  int64_t in_features, out_features;
  bool relu;
  bool tf32;  // T float: products may be rounded to TF32
};

template <class T>
struct GroupedLinearBackward {
  const T* grad;  // [B,o]
  const T* y;     // [B,o]: the gradient stops where y <= 0; nullptr: nowhere
  const T* x;     // [B,d]; only for the gradient of the weights
  T* grad_x;      // [B,d], like y in the forward pass; only for launch_grouped_linear_grad_x
  int64_t in_features, out_features;
  bool tf32;  // as in the forward pass
};

// T: float, double, __half, __nv_bfloat16. All matrices are contiguous; outputs are aligned to 4 elements.

// One launch for each 1024 modules of K.
template <class T>
cudaError_t launch_grouped_linear(const GroupedLinearForward<T>& p, const GroupedRows& rows,
                                  const GroupedModules<const T>& modules, cudaStream_t stream);

// One launch for each 1024 modules of K.
template <class T>
cudaError_t launch_grouped_linear_grad_x(const GroupedLinearBackward<T>& p, const GroupedRows& rows,
                                         const GroupedModules<const T>& modules, cudaStream_t stream);

// Device memory that launch_grouped_linear_grad_weight needs, often 0, with the gradient of the weights or without.
template <class T>
size_t grouped_linear_scratch_bytes(const GroupedLinearBackward<T>& p, const GroupedRows& rows, bool wants_weight);

// One launch for each 1024 modules of K; two where scratch memory is needed. Modules without samples get zeros.
template <class T>
cudaError_t launch_grouped_linear_grad_weight(const GroupedLinearBackward<T>& p, const GroupedRows& rows,
                                              const GroupedModules<T>& gradients, void* scratch, cudaStream_t stream);

}  // namespace routing_ext::cuda
