// The arguments of what policy gradients on tables compute, checked. Shared by the CPU and the CUDA glue.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <type_traits>
#include <vector>

#include "checks.h"

namespace routing_ext {

// Elements of each of the tensors. T: const for what the caller gave.
template <class T>
std::vector<T*> pointers_of(at::TensorList tensors) {
  std::vector<T*> all;
  all.reserve(tensors.size());
  for (const at::Tensor& t : tensors) {
    if constexpr (std::is_const_v<T>) {
      all.push_back(static_cast<T*>(t.const_data_ptr()));
    } else {
      all.push_back(static_cast<T*>(t.mutable_data_ptr()));
    }
  }
  return all;
}

inline void check_float32_or_float64(const char* op, const char* argument, const at::Tensor& t) {
  CHECK_ARG(op, argument, t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble, "must be float32 or float64, got ",
            t.scalar_type());
}

// Tables [.,K] each, of preferences, and perhaps of values of the same shapes. Contiguous.
struct PreferencesArgs {
  static constexpr const char* kOp = "preference_states";

  std::vector<at::Tensor> preferences, values;
  int64_t rows = 0, selections;  // of all tables; K

  explicit PreferencesArgs(at::TensorList given) {
    check_float32_or_float64(kOp, "preferences", given[0]);
    for (const at::Tensor& t : given) {
      preferences.push_back(checked(t, t, given[0]));
      rows += t.size(0);
    }
    selections = given[0].size(1);
  }
  PreferencesArgs(at::TensorList given, at::TensorList values_) : PreferencesArgs(given) {
    CHECK_ARG(kOp, "values", values_.size() == given.size(), "must have ", given.size(), " tensor(s) like preferences, got ",
              values_.size());
    for (size_t i = 0; i < given.size(); ++i) values.push_back(checked(values_[i], given[i], given[0]));
  }

 private:
  static at::Tensor checked(const at::Tensor& t, const at::Tensor& like, const at::Tensor& first) {
    CHECK_ARG(kOp, "preferences and values",
              t.dim() == 2 && t.sizes() == like.sizes() && t.size(1) == first.size(1) && t.size(1) > 0 &&
                  t.scalar_type() == first.scalar_type() && t.device() == first.device(),
              "must be alike [n,K] each, K at least 1, got ", t.scalar_type(), " ", t.sizes(), " on ", t.device(), " beside ",
              first.scalar_type(), " ", like.sizes(), " on ", first.device());
    return t.contiguous();
  }
};

// Decisions by parts: actions [.] of each, made at rows [n,K,C] or [n,K], at those of row_of, or in order. Contiguous. That
// the indices are in range, only the CPU can tell.
struct DecisionsArgs {
  std::vector<at::Tensor> rows, row_of, actions;
  int64_t count = 0;     // N, of all parts
  int64_t elements = 0;  // of all rows
  int64_t channels;

  DecisionsArgs(const char* op, at::TensorList rows_, at::TensorList row_of_, at::TensorList actions_) {
    check_float32_or_float64(op, "rows", rows_[0]);
    CHECK_ARG(op, "actions", actions_.size() == rows_.size(), "must have ", rows_.size(), " tensor(s) like rows, got ",
              actions_.size());
    CHECK_ARG(op, "row_of", row_of_.empty() || row_of_.size() == rows_.size(), "must be empty or have ", rows_.size(),
              " tensor(s) like rows, got ", row_of_.size());
    for (size_t i = 0; i < rows_.size(); ++i) {
      const at::Tensor& action = actions.emplace_back(actions_[i].contiguous());
      CHECK_INDEX(op, action, rows_[i]);
      const at::Tensor& row = row_of_.empty() ? action : row_of.emplace_back(row_of_[i].contiguous());
      CHECK_INDEX(op, row, rows_[i]);
      CHECK_ARG(op, "row_of", row.size(0) == action.size(0), "must have one row for each of ", action.size(0),
                " actions, got ", row.sizes());
      CHECK_ARG(op, "rows", rows_[i].dim() == 2 || rows_[i].dim() == 3, "must have 2 or 3 dimensions, got ", rows_[i].sizes());
      CHECK_ARG(op, "rows",
                rows_[i].scalar_type() == rows_[0].scalar_type() && rows_[i].sizes().slice(2) == rows_[0].sizes().slice(2) &&
                    rows_[i].device() == rows_[0].device(),
                "must be alike in dtype and channels, got ", rows_[0].sizes(), " and ", rows_[i].sizes());
      CHECK_ARG(op, "actions", !row_of_.empty() || action.size(0) <= rows_[i].size(0), "must be at most ", rows_[i].size(0),
                ", one a row, got ", action.size(0));
      rows.push_back(rows_[i].contiguous());
      count += action.size(0);
      elements += rows_[i].numel();
    }
    channels = rows[0].dim() == 3 ? rows[0].size(2) : 1;
  }
};

struct TakenGradientArgs : DecisionsArgs {
  std::vector<at::Tensor> grads;  // [N] of the first channels
  at::Tensor scale;               // [N] or undefined: a factor of all of them

  TakenGradientArgs(at::TensorList grads_, const std::optional<at::Tensor>& scale_, at::TensorList rows_,
                    at::TensorList row_of_, at::TensorList actions_)
      : DecisionsArgs(kOp, rows_, row_of_, actions_) {
    CHECK_ARG(kOp, "grads", static_cast<int64_t>(grads_.size()) <= channels, "must be at most ", channels,
              ", one a channel, got ", grads_.size());
    for (const at::Tensor& t : grads_) grads.push_back(checked("grads", t));
    if (scale_.has_value()) scale = checked("scale", *scale_);
  }

 private:
  static constexpr const char* kOp = "taken_backward";

  at::Tensor checked(const char* argument, const at::Tensor& t) const {
    CHECK_ARG(kOp, argument,
              t.dim() == 1 && t.size(0) == count && t.scalar_type() == rows[0].scalar_type() && t.device() == rows[0].device(),
              "must have one element for each of ", count, " decisions, like rows, got ", t.scalar_type(), " ", t.sizes());
    return t.contiguous();
  }
};

struct WplLossesArgs : DecisionsArgs {
  std::vector<at::Tensor> returns;  // [.] of each part
  at::Tensor losses, factors;       // [N]; [2,N], the gradients of the first two channels. To be filled.

  WplLossesArgs(at::TensorList rows_, at::TensorList row_of_, at::TensorList actions_, at::TensorList returns_)
      : DecisionsArgs(kOp, rows_, row_of_, actions_) {
    CHECK_ARG(kOp, "rows", rows[0].dim() == 3 && channels >= 2, "must have at least 2 channels, got ", rows[0].sizes());
    CHECK_ARG(kOp, "returns", returns_.size() == rows.size(), "must have ", rows.size(), " tensor(s) like rows, got ",
              returns_.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const at::Tensor& t = returns_[i];
      CHECK_ARG(kOp, "returns",
                t.sizes() == actions[i].sizes() && t.scalar_type() == rows[0].scalar_type() &&
                    t.device() == rows[0].device() && !t.requires_grad(),
                "must be constants, one for each action, ", rows[0].scalar_type(), " ", actions[i].sizes(), ", got ",
                t.scalar_type(), " ", t.sizes());
      returns.push_back(t.contiguous());
    }
    losses = at::empty({count}, rows[0].options());
    factors = at::empty({2, count}, rows[0].options());
  }

 private:
  static constexpr const char* kOp = "wpl_losses";
};

}  // namespace routing_ext
