// The arguments of dispatch_plan, gather_rows and scatter_rows, checked. Shared by the CPU and the CUDA glue.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "empty.h"

namespace routing_ext {

// All contiguous.
struct DispatchPlanArgs {
  at::Tensor actions;  // [B]
  at::Tensor mask;     // [B], or undefined: all samples are active
  at::Tensor order;    // [B], to be filled
  at::Tensor layout;   // [K+2], to be filled
  int64_t batch, num_modules;

  DispatchPlanArgs(const at::Tensor& actions_, int64_t num_modules_, const std::optional<at::Tensor>& mask_, int64_t max_batch,
                   int64_t max_modules)
      : num_modules(num_modules_) {
    constexpr const char* kOp = "dispatch_plan";
    CHECK_ARG(kOp, "actions", actions_.dim() == 1, "must have 1 dimension, got ", actions_.sizes());
    CHECK_ARG(kOp, "actions", actions_.scalar_type() == at::kLong, "must have dtype int64, got ", actions_.scalar_type());
    batch = actions_.size(0);
    CHECK_ARG(kOp, "actions", batch <= max_batch, "must have at most ", max_batch, " samples, got ", batch);
    CHECK_ARG(kOp, "num_modules", num_modules >= 0 && num_modules <= max_modules, "must be in [0, ", max_modules, "], got ",
              num_modules);
    if (mask_.has_value()) {
      CHECK_ARG(kOp, "mask", mask_->sizes() == actions_.sizes(), "must have the shape of actions, ", actions_.sizes(),
                ", got ", mask_->sizes());
      CHECK_ARG(kOp, "mask", mask_->scalar_type() == at::kBool, "must have dtype bool, got ", mask_->scalar_type());
      CHECK_ARG(kOp, "mask", mask_->device() == actions_.device(), "must be on ", actions_.device(), " like actions, got ",
                mask_->device());
      mask = mask_->contiguous();
    }
    actions = actions_.contiguous();
    order = at::empty({batch}, actions.options());
    layout = at::empty({num_modules + 2}, actions.options());
  }

  const bool* mask_data() const { return mask.defined() ? mask.const_data_ptr<bool>() : nullptr; }
};

// All contiguous.
struct RankOfModuleArgs {
  static constexpr const char* kOp = "rank_of_module";

  at::Tensor actions, layout;  // [B], [K+2]
  at::Tensor ranks;            // [B], to be filled
  int64_t num_modules;

  RankOfModuleArgs(const at::Tensor& actions_, const at::Tensor& layout_) : actions(actions_), layout(layout_) {
    CHECK_INDEX(kOp, actions, actions);
    CHECK_INDEX(kOp, layout, actions);
    CHECK_ARG(kOp, "layout", layout.size(0) >= 2, "must have at least 2 elements, got ", layout.sizes());
    num_modules = layout.size(0) - 2;
    actions = actions.contiguous();
    layout = layout.contiguous();
    ranks = at::empty(actions.sizes(), actions.options());
  }
};

// Rows moved between a source and a target of any dtype, each row a run of bytes.
struct MoveRowsArgs {
  at::Tensor source, order, target;
  at::Tensor result;  // the target with the dimensions, and the memory format, of the source
  int64_t n;          // rows moved
  int64_t num_rows;   // of the matrix that `order` indexes
  int64_t row_bytes;
};

namespace detail {
inline MoveRowsArgs move_rows_args(const at::Tensor& given, const at::Tensor& order, int64_t target_rows, int64_t num_rows,
                                   Empty empty) {
  // Samples in channels_last are runs of bytes, too: seen with their channels last, they are contiguous.
  const bool is_plain = given.is_contiguous();
  const bool last_2d = !is_plain && given.dim() == 4 && given.is_contiguous(at::MemoryFormat::ChannelsLast);
  const bool last_3d = !is_plain && given.dim() == 5 && given.is_contiguous(at::MemoryFormat::ChannelsLast3d);
  const at::Tensor source = last_2d   ? given.permute({0, 2, 3, 1})
                            : last_3d ? given.permute({0, 2, 3, 4, 1})
                                      : given.contiguous();
  std::vector<int64_t> shape = source.sizes().vec();
  shape[0] = target_rows;
  const at::Tensor target = empty(shape, source.options());
  const at::Tensor result = last_2d ? target.permute({0, 3, 1, 2}) : last_3d ? target.permute({0, 4, 1, 2, 3}) : target;
  const int64_t row_bytes = c10::multiply_integers(source.sizes().slice(1)) * source.element_size();
  return {source, order.contiguous(), target, result, order.size(0), num_rows, row_bytes};
}
}  // namespace detail

inline MoveRowsArgs gather_rows_args(const at::Tensor& x, const at::Tensor& order, Empty empty = plain_empty) {
  constexpr const char* kOp = "gather_rows";
  CHECK_ARG(kOp, "x", x.dim() >= 1, "must have at least 1 dimension, got ", x.sizes());
  CHECK_INDEX(kOp, order, x);
  return detail::move_rows_args(x, order, order.size(0), x.size(0), empty);
}

inline MoveRowsArgs scatter_rows_args(const at::Tensor& y, const at::Tensor& order, int64_t num_rows,
                                      Empty empty = plain_empty) {
  constexpr const char* kOp = "scatter_rows";
  CHECK_ARG(kOp, "y", y.dim() >= 1, "must have at least 1 dimension, got ", y.sizes());
  CHECK_INDEX(kOp, order, y);
  CHECK_ARG(kOp, "order", order.size(0) == y.size(0), "must have an index for each of the ", y.size(0), " rows of y, got ",
            order.sizes());
  CHECK_ARG(kOp, "num_rows", num_rows >= order.size(0), "must be at least the number of rows of y, ", y.size(0), ", got ",
            num_rows);
  return detail::move_rows_args(y, order, num_rows, num_rows, empty);
}

}  // namespace routing_ext
