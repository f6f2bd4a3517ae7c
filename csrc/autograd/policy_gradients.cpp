// What policy gradients on tables compute, each a single node of the graph.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "raw.h"

namespace routing_ext::autograd {
namespace {

using at::Tensor, at::TensorList;
using torch::autograd::AutogradContext, torch::autograd::variable_list;

// A block of memory [.] or [n,.] as tensors of these shapes, one behind the other; no views to autograd.
Tensor slice_of(const Tensor& block, int64_t begin, at::IntArrayRef sizes) {
  Tensor part = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(block.storage()), block.key_set(), block.dtype());
  part.unsafeGetTensorImpl()->set_storage_offset(begin);
  part.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return part;
}

variable_list slices_like(const Tensor& block, TensorList like) {
  variable_list all;
  int64_t begin = 0;
  for (const Tensor& t : like) {
    all.push_back(slice_of(block, begin, t.sizes()));
    begin += t.numel();
  }
  return all;
}

// Without a tensor the dispatcher knows no device, and would say so at length.
void check_not_empty(const char* op, const char* argument, TensorList tensors) {
  CHECK_ARG(op, argument, !tensors.empty(), "must have at least one tensor, got none");
}

// ---- preference_states -----------------------------------------------------------------------------------------------------

constexpr double kLeastPreference = 1e-6;

class PreferenceStates : public torch::autograd::Function<PreferenceStates> {
 public:
  static variable_list forward(AutogradContext* ctx, TensorList preferences, TensorList values) {
    static const auto op =
        raw_operator<std::tuple<Tensor, Tensor>(TensorList, TensorList)>("routing_ext::preference_states_forward");
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [states, probs] = op.call(preferences, values);
    variable_list parts(preferences.begin(), preferences.end());
    parts.insert(parts.end(), values.begin(), values.end());
    ctx->save_for_backward(std::move(parts));
    ctx->mark_non_differentiable({probs});
    return {states, probs};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = raw_operator<Tensor(const Tensor&, TensorList)>("routing_ext::preference_states_backward");
    const variable_list parts = ctx->get_saved_variables();
    if (at::GradMode::is_enabled()) return differentiable_gradients(parts, grads[0]);
    const at::AutoDispatchBelowADInplaceOrView guard;
    return slices_like(op.call(grads[0], TensorList(parts).slice(0, parts.size() / 2)), parts);
  }

 private:
  // The same by operators that have gradients themselves.
  static variable_list differentiable_gradients(TensorList parts, const Tensor& grad) {
    const size_t count = parts.size() / 2;
    std::vector<int64_t> sizes;
    for (size_t i = 0; i < count; ++i) sizes.push_back(parts[i].size(0));
    const Tensor preference = at::cat(parts.slice(0, count));
    const auto [lowest, least] = preference.min(1, /*keepdim=*/true);
    const Tensor shifted = preference.sub(lowest).add(kLeastPreference), total = shifted.sum(1, true),
                 probs = shifted.div(total);
    const double eps =
        probs.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
    const Tensor inside = probs.ge(eps).logical_and(probs.le(1 - eps));
    const Tensor of_probs = at::where(inside, grad.select(2, 0).div(probs), 0);
    const Tensor of_shifted = of_probs.sub(of_probs.mul(probs).sum(1, true)).div(total);
    variable_list all = of_shifted.scatter_add(1, least, of_shifted.sum(1, true).neg()).split_with_sizes(sizes);
    const variable_list of_values = grad.select(2, 1).split_with_sizes(sizes);
    all.insert(all.end(), of_values.begin(), of_values.end());
    return all;
  }
};

std::tuple<Tensor, Tensor> preference_states(TensorList preferences, TensorList values) {
  check_not_empty("preference_states", "preferences", preferences);
  const variable_list found = PreferenceStates::apply(preferences, values);
  return {found[0], found[1]};
}

// ---- taken -----------------------------------------------------------------------------------------------------------------

using TakenGradients = Tensor(TensorList, const std::optional<Tensor>&, TensorList, TensorList, TensorList);

// The gradients of `rows`, of those of the first channels of decisions, each times `scale` if there is one.
variable_list raw_gradients(TensorList grads, const std::optional<Tensor>& scale, TensorList rows, TensorList row_of,
                            TensorList actions) {
  static const auto op = raw_operator<TakenGradients>("routing_ext::taken_backward");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return slices_like(op.call(grads, scale, rows, row_of, actions), rows);
}

class Taken : public torch::autograd::Function<Taken> {
 public:
  static variable_list forward(AutogradContext* ctx, TensorList rows, TensorList row_of, TensorList actions) {
    static const auto op = raw_operator<Tensor(TensorList, TensorList, TensorList)>("routing_ext::taken_forward");
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor channels = op.call(rows, row_of, actions);  // [C,N]
    variable_list taken;
    for (int64_t c = 0; c < channels.size(0); ++c) taken.push_back(slice_of(channels, c * channels.size(1), channels.size(1)));
    variable_list saved(rows.begin(), rows.end());
    saved.insert(saved.end(), actions.begin(), actions.end());
    saved.insert(saved.end(), row_of.begin(), row_of.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["parts"] = static_cast<int64_t>(rows.size());
    return taken;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const size_t parts = ctx->saved_data["parts"].toInt();
    const TensorList rows = TensorList(saved).slice(0, parts), actions = TensorList(saved).slice(parts, parts);
    const TensorList row_of = TensorList(saved).slice(2 * parts);
    variable_list found = at::GradMode::is_enabled() ? differentiable_gradients(rows, row_of, actions, grads)
                                                     : raw_gradients(grads, std::nullopt, rows, row_of, actions);
    found.resize(saved.size());
    return found;
  }

  // The gradients of `rows`, by operators that have gradients themselves.
  static variable_list differentiable_gradients(TensorList rows, TensorList row_of, TensorList actions,
                                                const variable_list& grads) {
    const Tensor grad = at::stack(grads, 1);  // [N,C]
    variable_list found;
    int64_t first = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      const int64_t count = actions[i].size(0), selections = rows[i].size(1);
      const Tensor row = row_of.empty() ? at::ones_like(actions[i]).cumsum(0).sub_(1) : row_of[i];
      const Tensor flat = at::zeros({rows[i].size(0) * selections, grad.size(1)}, grad.options());
      found.push_back(flat.index_add(0, actions[i].add(row, selections), grad.narrow(0, first, count)).view(rows[i].sizes()));
      first += count;
    }
    return found;
  }
};

std::vector<Tensor> taken(TensorList rows, TensorList row_of, TensorList actions) {
  check_not_empty("taken", "rows", rows);
  return Taken::apply(rows, row_of, actions);
}

// ---- wpl_losses ------------------------------------------------------------------------------------------------------------

class WplLosses : public torch::autograd::Function<WplLosses> {
 public:
  static Tensor forward(AutogradContext* ctx, TensorList rows, TensorList row_of, TensorList actions, TensorList returns) {
    static const auto op = raw_operator<std::tuple<Tensor, Tensor>(TensorList, TensorList, TensorList, TensorList)>(
        "routing_ext::wpl_losses_forward");
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [losses, factors] = op.call(rows, row_of, actions, returns);
    variable_list saved{factors};
    for (const TensorList list : {rows, actions, row_of, returns}) saved.insert(saved.end(), list.begin(), list.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["parts"] = static_cast<int64_t>(rows.size());
    return losses;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const size_t parts = ctx->saved_data["parts"].toInt();
    const TensorList rest = TensorList(saved).slice(1);
    const TensorList rows = rest.slice(0, parts), actions = rest.slice(parts, parts),
                     returns = rest.slice(rest.size() - parts);
    const TensorList row_of = rest.slice(2 * parts, rest.size() - 3 * parts);
    variable_list found = at::GradMode::is_enabled() ? differentiable_gradients(rows, row_of, actions, returns, grads[0])
                                                     : gradients(rows, row_of, actions, saved[0], grads[0]);
    found.resize(rest.size());
    return found;
  }

 private:
  static variable_list gradients(TensorList rows, TensorList row_of, TensorList actions, const Tensor& factors,
                                 const Tensor& grad) {
    const int64_t count = factors.size(1);
    const variable_list of_channels{slice_of(factors, 0, count), slice_of(factors, count, count)};
    return raw_gradients(of_channels, grad, rows, row_of, actions);
  }

  // The same by operators that have gradients themselves.
  static variable_list differentiable_gradients(TensorList rows, TensorList row_of, TensorList actions, TensorList returns,
                                                const Tensor& grad) {
    const variable_list at_actions = Taken::apply(rows, row_of, actions);
    const Tensor &policy = at_actions[0], &value = at_actions[1], gradient = at::cat(returns).sub(value);
    const Tensor projected = policy.mul(at::where(gradient.lt(0), gradient.add(1), gradient.neg().add(2))).detach();
    variable_list of_channels{grad.mul(policy.sub(projected)).mul(2), grad.mul(gradient).mul(-2)};
    of_channels.resize(at_actions.size(), at::zeros_like(grad));
    return Taken::differentiable_gradients(rows, row_of, actions, of_channels);
  }
};

Tensor wpl_losses(TensorList rows, TensorList row_of, TensorList actions, TensorList returns) {
  check_not_empty("wpl_losses", "rows", rows);
  return WplLosses::apply(rows, row_of, actions, returns);
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeImplicitAutograd, m) {
  m.impl("preference_states", preference_states);
  m.impl("taken", taken);
  m.impl("wpl_losses", wpl_losses);
}

}  // namespace routing_ext::autograd
