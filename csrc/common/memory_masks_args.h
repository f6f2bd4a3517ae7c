// Which samples take part in which steps of a sequence, and where they begin anew, checked. Shared by the CPU and CUDA glue.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "checks.h"

namespace routing_ext {

// int64 [B]; undefined if they are not given. What they say is not looked at.
inline at::Tensor checked_lengths(const char* op, const std::optional<at::Tensor>& lengths, int64_t batch, at::Device device) {
  if (!lengths) return {};
  CHECK_ARG(op, "lengths", lengths->sizes() == at::IntArrayRef({batch}) && lengths->scalar_type() == at::kLong,
            "must be int64 of shape [", batch, "], got ", lengths->scalar_type(), " of ", lengths->sizes());
  CHECK_ARG(op, "lengths", lengths->device() == device, "must be on ", device, ", got ", lengths->device());
  return lengths->contiguous();
}

// bool [T,B]; undefined if they are not given.
inline at::Tensor checked_resets(const char* op, const std::optional<at::Tensor>& resets, int64_t steps, int64_t batch,
                                 at::Device device) {
  if (!resets) return {};
  CHECK_ARG(op, "resets", resets->sizes() == at::IntArrayRef({steps, batch}) && resets->scalar_type() == at::kBool,
            "must be bool of shape [", steps, ", ", batch, "], got ", resets->scalar_type(), " of ", resets->sizes());
  CHECK_ARG(op, "resets", resets->device() == device, "must be on ", device, ", got ", resets->device());
  return resets->contiguous();
}

}  // namespace routing_ext
