#include "policy_gradients.cuh"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/cuda_glue.h"
#include "../common/policy_gradients_args.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor, at::TensorList;

// The tables of a call as launchers want them, while this lives.
template <class T>
struct Tables {
  std::vector<const T*> preferences, values;
  std::vector<int64_t> rows;
  int64_t selections;

  explicit Tables(const PreferencesArgs& a)
      : preferences(pointers_of<const T>(a.preferences)), values(pointers_of<const T>(a.values)), selections(a.selections) {
    for (const Tensor& t : a.preferences) rows.push_back(t.size(0));
  }
  PreferenceTables<T> get() const {
    return {preferences.data(), values.empty() ? nullptr : values.data(), rows.data(), static_cast<int64_t>(rows.size()),
            selections};
  }
};

std::tuple<Tensor, Tensor> preference_states_forward_cuda(TensorList preferences, TensorList values) {
  const PreferencesArgs a(preferences, values);
  const LaunchScope scope(preferences[0]);
  const Tensor states = at::empty({a.rows, a.selections, 2}, preferences[0].options());
  const Tensor probs = at::empty({a.rows, a.selections}, preferences[0].options());
  with_float_or_double(a.kOp, states.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    const Tables<T> tables(a);
    check_launch(a.kOp, launch_preference_states<T>(tables.get(), states.mutable_data_ptr<T>(), probs.mutable_data_ptr<T>(),
                                                    scope.stream()));
  });
  return {states, probs};
}

Tensor preference_states_backward_cuda(const Tensor& grad_, TensorList preferences) {
  const PreferencesArgs a(preferences);
  const LaunchScope scope(preferences[0]);
  const Tensor grad = grad_.contiguous(), found = at::empty({2, a.rows, a.selections}, preferences[0].options());
  CHECK_ARG(a.kOp, "grad",
            grad.numel() == found.numel() && grad.scalar_type() == found.scalar_type() && grad.device() == found.device(),
            "must be like the states, got ", grad.scalar_type(), " ", grad.sizes(), " on ", grad.device());
  with_float_or_double(a.kOp, found.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    const Tables<T> tables(a);
    T* const of_preferences = found.mutable_data_ptr<T>();
    check_launch(a.kOp, launch_preference_states_backward<T>(tables.get(), grad.const_data_ptr<T>(), of_preferences,
                                                             of_preferences + found.numel() / 2, scope.stream()));
  });
  return found;
}

template <class T>
struct Parts {
  std::vector<const T*> rows;
  std::vector<const int64_t*> row_of, actions;
  std::vector<int64_t> num_rows, selections, counts;
  int64_t channels, count;

  explicit Parts(const DecisionsArgs& a)
      : rows(pointers_of<const T>(a.rows)),
        row_of(pointers_of<const int64_t>(a.row_of)),
        actions(pointers_of<const int64_t>(a.actions)),
        channels(a.channels),
        count(a.count) {
    for (size_t i = 0; i < a.rows.size(); ++i) {
      num_rows.push_back(a.rows[i].size(0));
      selections.push_back(a.rows[i].size(1));
      counts.push_back(a.actions[i].size(0));
    }
  }
  DecisionParts<T> get() const {
    return {rows.data(),
            row_of.empty() ? nullptr : row_of.data(),
            actions.data(),
            num_rows.data(),
            selections.data(),
            counts.data(),
            static_cast<int64_t>(rows.size()),
            channels,
            count};
  }
};

Tensor taken_forward_cuda(TensorList rows, TensorList row_of, TensorList actions) {
  constexpr const char* kOp = "taken";
  const DecisionsArgs a(kOp, rows, row_of, actions);
  const LaunchScope scope(rows[0]);
  const Tensor taken = at::empty({a.channels, a.count}, rows[0].options());
  with_float_or_double(kOp, taken.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    const Parts<T> parts(a);
    check_launch(kOp, launch_taken<T>(parts.get(), taken.mutable_data_ptr<T>(), scope.stream()));
  });
  return taken;
}

Tensor taken_backward_cuda(TensorList grads, const std::optional<Tensor>& scale, TensorList rows, TensorList row_of,
                           TensorList actions) {
  constexpr const char* kOp = "taken_backward";
  const TakenGradientArgs a(grads, scale, rows, row_of, actions);
  CHECK_ARG(kOp, "grads", static_cast<int64_t>(a.grads.size()) <= kTakenMaxChannels, "must be of at most ", kTakenMaxChannels,
            " channels, got ", a.grads.size());
  const LaunchScope scope(rows[0]);
  const Tensor found = at::empty({a.elements}, rows[0].options());
  with_float_or_double(kOp, found.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    const Parts<T> parts(a);
    const auto given = pointers_of<const T>(a.grads);
    check_launch(kOp, launch_taken_backward<T>(parts.get(), given.data(), static_cast<int64_t>(given.size()),
                                               data_of<const T>(a.scale), found.mutable_data_ptr<T>(), scope.stream()));
  });
  return found;
}

std::tuple<Tensor, Tensor> wpl_losses_forward_cuda(TensorList rows, TensorList row_of, TensorList actions,
                                                   TensorList returns) {
  constexpr const char* kOp = "wpl_losses";
  const WplLossesArgs a(rows, row_of, actions, returns);
  const LaunchScope scope(rows[0]);
  with_float_or_double(kOp, a.losses.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    const Parts<T> parts(a);
    const auto returned = pointers_of<const T>(a.returns);
    check_launch(kOp, launch_wpl_losses<T>(parts.get(), returned.data(), a.losses.mutable_data_ptr<T>(),
                                           a.factors.mutable_data_ptr<T>(), scope.stream()));
  });
  return {a.losses, a.factors};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("preference_states_forward", preference_states_forward_cuda);
  m.impl("preference_states_backward", preference_states_backward_cuda);
  m.impl("taken_forward", taken_forward_cuda);
  m.impl("taken_backward", taken_backward_cuda);
  m.impl("wpl_losses_forward", wpl_losses_forward_cuda);
}

}  // namespace routing_ext::cuda
