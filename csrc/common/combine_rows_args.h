// The arguments and results of combine_rows, checked. Shared by the CPU and the CUDA glue.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/accumulate.h>

#include <array>
#include <vector>

#include "checks.h"
#include "empty.h"

namespace routing_ext {

// B samples of n choices, each of `width` elements. All contiguous.
struct CombineRowsArgs {
  at::Tensor y, weights;  // [B*n,...], [B,n]
  int64_t batch, choices, width;

  CombineRowsArgs(const char* op, const at::Tensor& y_, const at::Tensor& weights_) : y(y_), weights(weights_) {
    CHECK_FLOAT(op, y);
    CHECK_DIM(op, weights, 2);
    batch = weights.size(0), choices = weights.size(1);
    CHECK_ARG(op, "y", y.dim() >= 1 && y.size(0) == batch * choices, "must have a row for each of the weights ",
              weights.sizes(), ", got ", y.sizes());
    CHECK_ARG(op, "weights", weights.scalar_type() == y.scalar_type(), "must have the dtype of y, ", y.scalar_type(), ", got ",
              weights.scalar_type());
    CHECK_SAME_DEVICE(op, weights, y);
    width = c10::multiply_integers(y.sizes().slice(1));
    y = y.contiguous();
    weights = weights.contiguous();
  }
};

struct CombineRowsForwardArgs : CombineRowsArgs {
  static constexpr const char* kOp = "combine_rows";

  at::Tensor combined;  // [B,...], to be filled

  CombineRowsForwardArgs(const at::Tensor& y_, const at::Tensor& weights_, Empty empty = plain_empty)
      : CombineRowsArgs(kOp, y_, weights_) {
    std::vector<int64_t> shape = y.sizes().vec();
    shape[0] = batch;
    combined = empty(shape, y.options());
  }
};

struct CombineRowsBackwardArgs : CombineRowsArgs {
  static constexpr const char* kOp = "combine_rows_backward";

  at::Tensor grad;                  // [B,...]
  at::Tensor grad_y, grad_weights;  // like y and weights, to be filled; undefined: not wanted

  CombineRowsBackwardArgs(const at::Tensor& grad_, const at::Tensor& y_, const at::Tensor& weights_,
                          std::array<bool, 2> output_mask, Empty empty = plain_empty)
      : CombineRowsArgs(kOp, y_, weights_) {
    CHECK_ARG(kOp, "grad",
              grad_.dim() == y.dim() && grad_.size(0) == batch && grad_.sizes().slice(1) == y.sizes().slice(1) &&
                  grad_.scalar_type() == y.scalar_type() && grad_.device() == y.device(),
              "must be like the rows of y, one for each of ", batch, " samples, got ", grad_.scalar_type(), " ",
              grad_.sizes());
    grad = grad_.contiguous();
    if (output_mask[0]) grad_y = empty(y.sizes(), y.options());
    if (output_mask[1]) grad_weights = empty(weights.sizes(), weights.options());
  }
};

}  // namespace routing_ext
