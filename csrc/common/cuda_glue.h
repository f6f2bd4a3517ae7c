// What the glue of CUDA kernels needs from torch, and the one file that knows streams, device guards and the dispatch key.
//
// Compiled with ROUTING_EXT_EMULATED, for tests, the same glue registers for CPU tensors the kernels that the emulation runs.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernel_type.h"
#ifndef ROUTING_EXT_EMULATED
#include <ATen/DeviceAccelerator.h>
#endif

#ifndef ROUTING_EXT_DISPATCH_KEY
#ifdef ROUTING_EXT_EMULATED
#define ROUTING_EXT_DISPATCH_KEY CPU
#else
#define ROUTING_EXT_DISPATCH_KEY CUDA
#endif
#endif

namespace routing_ext {

// Makes a tensor's device the current one while it lives, and gives the device's current stream.
class LaunchScope {
 public:
  explicit LaunchScope(const at::Tensor& t) : guard_(t.device()), device_(t.device()) {}

  cudaStream_t stream() const {
#ifdef ROUTING_EXT_EMULATED
    return nullptr;
#else
    return static_cast<cudaStream_t>(at::accelerator::getCurrentStream(device_.index()).native_handle());
#endif
  }

 private:
  c10::DeviceGuard guard_;
  [[maybe_unused]] c10::Device device_;
};

// Raises if a launcher of operator `op` has failed.
inline void check_launch(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it, else it would be blamed on the next launch
  TORCH_CHECK(false, op, ": launch of the CUDA kernel failed: ", cudaGetErrorString(error));
}

// f(KernelType<T>()) with the kernels' type for a dtype that CHECK_FLOAT accepts.
template <class F>
auto with_kernel_type(const char* op, at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kFloat:
      return f(KernelType<float>());
    case at::kDouble:
      return f(KernelType<double>());
    case at::kHalf:
      return f(KernelType<__half>());
    case at::kBFloat16:
      return f(KernelType<__nv_bfloat16>());
    default:
      TORCH_CHECK(false, op, ": no CUDA kernel for dtype ", dtype);
  }
}

// Likewise of the kernels that have these two only.
template <class F>
auto with_float_or_double(const char* op, at::ScalarType dtype, F&& f) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble, op, ": no CUDA kernel for dtype ", dtype);
  return dtype == at::kFloat ? f(KernelType<float>()) : f(KernelType<double>());
}

}  // namespace routing_ext
