// The arguments and results of grouped_linear, checked and as the kernels want them: one pointer a module, whether the caller
// gave K separate tensors or one stacked tensor. Shared by the CPU and the CUDA glue.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <numeric>
#include <optional>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "empty.h"

namespace routing_ext {

// The samples of each module, as dispatch_plan gives them.
struct Routing {
  at::Tensor order, layout;  // [B], [K+2], contiguous
  int64_t batch, num_modules;

  // `like` [B, ...].
  Routing(const char* op, const at::Tensor& order_, const at::Tensor& layout_, const at::Tensor& like)
      : order(order_), layout(layout_), batch(like.size(0)), num_modules(layout_.dim() == 1 ? layout_.size(0) - 2 : 0) {
    CHECK_INDEX(op, order, like);
    CHECK_INDEX(op, layout, like);
    CHECK_ARG(op, "order", order.size(0) == batch, "must have one index for each of ", batch, " samples, got ", order.sizes());
    CHECK_ARG(op, "layout", num_modules >= 0, "must have at least 2 elements, got ", layout.sizes());
    order = order.contiguous();
    layout = layout.contiguous();
  }
};

// The modules that take part: those of the caller's list, or all K for a stacked tensor.
inline std::vector<int64_t> listed_modules(const char* op, at::IntArrayRef modules, bool stacked, int64_t num_modules) {
  if (stacked) {
    std::vector<int64_t> all(num_modules);
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  int64_t previous = -1;
  for (const int64_t k : modules) {
    CHECK_ARG(op, "modules", k > previous && k < num_modules, "must ascend within [0, ", num_modules, "), got ", modules);
    previous = k;
  }
  return modules.vec();
}

// One parameter of all modules that take part.
struct GroupedParameter {
  std::vector<at::Tensor> tensors;  // one for each module, or a single stacked one
  int64_t entries = 0;
  bool stacked = false;

  // Parameters given by the caller. `row_shape`: of one module's, [o,d] or [o]. `like` gives dtype and device.
  GroupedParameter(const char* op, const char* argument, at::TensorList given, bool stacked_, int64_t entries_,
                   at::IntArrayRef row_shape, const at::Tensor& like)
      : entries(entries_), stacked(stacked_) {
    CHECK_ARG(op, argument, static_cast<int64_t>(given.size()) == (stacked ? 1 : entries), "must have ",
              stacked ? "a single stacked tensor" : "one tensor for each module listed", ", got ", given.size(),
              " tensor(s) for ", entries, " module(s)");
    std::vector<int64_t> shape = shape_of(row_shape);
    tensors.reserve(given.size());
    for (const at::Tensor& t : given) {
      CHECK_ARG(op, argument, t.sizes() == at::IntArrayRef(shape), "must have shape ", at::IntArrayRef(shape), ", got ",
                t.sizes());
      CHECK_ARG(op, argument, t.scalar_type() == like.scalar_type(), "must have the dtype of the input, ", like.scalar_type(),
                ", got ", t.scalar_type());
      CHECK_ARG(op, argument, t.device() == like.device(), "must be on ", like.device(), ", got ", t.device());
      tensors.push_back(t.contiguous());
    }
  }
  // Room for gradients. Not wanted: stays empty.
  GroupedParameter(bool wanted, bool stacked_, int64_t entries_, at::IntArrayRef row_shape, const at::Tensor& like,
                   Empty empty)
      : entries(entries_), stacked(stacked_) {
    if (!wanted) return;
    const std::vector<int64_t> shape = shape_of(row_shape);
    for (int64_t e = 0; e < (stacked ? 1 : entries); ++e) tensors.push_back(empty(shape, like.options()));
  }

  // [entries], or empty if there is nothing. T: const for what the caller gave.
  template <class T>
  std::vector<T*> pointers() const {
    std::vector<T*> out;
    if (tensors.empty()) return out;
    out.reserve(entries);
    const int64_t stride = stacked && entries > 0 ? tensors[0].numel() / entries : 0;
    for (int64_t e = 0; e < entries; ++e) {
      const at::Tensor& t = tensors[stacked ? 0 : e];
      if constexpr (std::is_const_v<T>) {
        out.push_back(static_cast<T*>(t.const_data_ptr()) + e * stride);
      } else {
        out.push_back(static_cast<T*>(t.mutable_data_ptr()) + e * stride);
      }
    }
    return out;
  }

 private:
  std::vector<int64_t> shape_of(at::IntArrayRef row_shape) const {
    std::vector<int64_t> shape = row_shape.vec();
    if (stacked) shape.insert(shape.begin(), entries);
    return shape;
  }
};

// A list of parameters is stacked if no modules are named and there is one tensor of a dimension more.
inline bool is_stacked(at::TensorList tensors, at::IntArrayRef modules, int64_t row_dim) {
  return modules.empty() && tensors.size() == 1 && tensors[0].dim() == row_dim + 1;
}

struct GroupedForwardArgs {
  static constexpr const char* kOp = "grouped_linear";

  at::Tensor x, y;  // [B,d], [B,o]: to be filled
  int64_t in_features, out_features;
  Routing routing;
  bool stacked;
  std::vector<int64_t> modules;            // [entries]
  GroupedParameter weights;                // [o,d] each
  std::optional<GroupedParameter> biases;  // [o] each

  GroupedForwardArgs(const at::Tensor& x_, const at::Tensor& order, const at::Tensor& layout, at::TensorList weights_,
                     at::TensorList biases_, at::IntArrayRef modules_, int64_t out_features_, Empty empty = plain_empty)
      : x(checked(x_).contiguous()),
        in_features(checked_width(x, weights_, out_features_)),
        out_features(out_features_),
        routing(kOp, order, layout, x),
        stacked(is_stacked(weights_, modules_, 2)),
        modules(listed_modules(kOp, modules_, stacked, routing.num_modules)),
        weights(kOp, "weights", weights_, stacked, entries(), {out_features, in_features}, x) {
    CHECK_ARG(kOp, "out_features", out_features >= 0, "must not be negative, got ", out_features);
    if (!biases_.empty()) biases.emplace(kOp, "biases", biases_, stacked, entries(), at::IntArrayRef{out_features}, x);
    y = empty({routing.batch, out_features}, x.options());
  }
  int64_t entries() const { return static_cast<int64_t>(modules.size()); }

 private:
  static const at::Tensor& checked(const at::Tensor& x) {
    CHECK_DIM(kOp, x, 2);
    CHECK_FLOAT(kOp, x);
    return x;
  }
  // If all weights fit each other, it is x that does not fit.
  static int64_t checked_width(const at::Tensor& x, at::TensorList weights, int64_t out_features) {
    const int64_t width = weights.empty() || weights[0].dim() < 2 ? x.size(1) : weights[0].size(-1);
    const auto fits = [&](const at::Tensor& w) { return w.dim() >= 2 && w.size(-1) == width && w.size(-2) == out_features; };
    CHECK_ARG(kOp, "x", width == x.size(1) || !std::all_of(weights.begin(), weights.end(), fits), "must have ", width,
              " columns, as the weights have, got ", x.sizes());
    return x.size(1);
  }
};

struct GroupedBackwardArgs {
  static constexpr const char* kOp = "grouped_linear_backward";

  at::Tensor grad, y, x;  // [B,o], [B,o], [B,d]; y and x may be undefined
  int64_t in_features, out_features;
  bool wants_x, wants_weights, wants_biases;
  Routing routing;
  bool stacked;
  std::vector<int64_t> modules;             // [entries]
  std::optional<GroupedParameter> weights;  // [o,d] each, if grad_x is wanted
  at::Tensor grad_x;                        // [B,d], to be filled, or empty
  GroupedParameter grad_weights, grad_biases;

  GroupedBackwardArgs(const at::Tensor& grad_, const std::optional<at::Tensor>& y_, const std::optional<at::Tensor>& x_,
                      const at::Tensor& order, const at::Tensor& layout, at::TensorList weights_, at::IntArrayRef modules_,
                      int64_t in_features_, std::array<bool, 3> output_mask, Empty empty = plain_empty)
      : grad(checked(grad_).contiguous()),
        y(saved("y", y_, grad.size(1))),
        x(saved("x", x_, in_features_)),
        in_features(in_features_),
        out_features(grad.size(1)),
        wants_x(output_mask[0]),
        wants_weights(output_mask[1]),
        wants_biases(output_mask[2]),
        routing(kOp, order, layout, grad),
        stacked(modules_.empty()),
        modules(listed_modules(kOp, modules_, stacked, routing.num_modules)),
        grad_weights(wants_weights, stacked, entries(), {out_features, in_features}, grad, empty),
        grad_biases(wants_biases, stacked, entries(), {out_features}, grad, empty) {
    CHECK_ARG(kOp, "in_features", in_features >= 0, "must not be negative, got ", in_features);
    CHECK_ARG(kOp, "x", x.defined() || !wants_weights, "is needed for the gradient of the weights, got none");
    if (wants_x) {
      weights.emplace(kOp, "weights", weights_, stacked, entries(), at::IntArrayRef{out_features, in_features}, grad);
    }
    grad_x = wants_x ? empty({routing.batch, in_features}, grad.options()) : empty({0}, grad.options());
  }
  int64_t entries() const { return static_cast<int64_t>(modules.size()); }

 private:
  static const at::Tensor& checked(const at::Tensor& grad) {
    CHECK_DIM(kOp, grad, 2);
    CHECK_FLOAT(kOp, grad);
    return grad;
  }
  // A [B,width] tensor that the forward pass saved, contiguous; undefined if it is not there.
  at::Tensor saved(const char* argument, const std::optional<at::Tensor>& t, int64_t width) const {
    if (!t.has_value() || !t->defined()) return {};
    const std::array<int64_t, 2> shape{grad.size(0), width};
    CHECK_ARG(kOp, argument, t->sizes() == at::IntArrayRef(shape), "must have shape ", at::IntArrayRef(shape), ", got ",
              t->sizes());
    CHECK_ARG(kOp, argument, t->scalar_type() == grad.scalar_type(), "must have the dtype of grad, ", grad.scalar_type(),
              ", got ", t->scalar_type());
    CHECK_ARG(kOp, argument, t->device() == grad.device(), "must be on ", grad.device(), " like grad, got ", t->device());
    return t->contiguous();
  }
};

}  // namespace routing_ext
