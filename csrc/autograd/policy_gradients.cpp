// What policy gradients on tables compute, each a single node of the graph.
#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "../common/checks.h"

namespace routing_ext::autograd {
namespace {

using at::Tensor, at::TensorList;
using torch::autograd::AutogradContext, torch::autograd::variable_list;

// ---- preference_states -----------------------------------------------------------------------------------------------------

double epsilon(at::ScalarType dtype) {
  return dtype == at::kDouble ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
}

struct Preferences {
  Tensor states, probs, total, least;  // [n,K,2], [n,K], [n,1], int64 [n,1]

  Preferences(TensorList preferences, TensorList values) {
    const Tensor preference = at::cat(preferences);
    Tensor lowest;
    std::tie(lowest, least) = preference.min(1, /*keepdim=*/true);
    const Tensor shifted = preference.sub(lowest).add(1e-6);
    total = shifted.sum(1, /*keepdim=*/true);
    probs = shifted.div(total);
    const double eps = epsilon(probs.scalar_type());
    states = at::stack({probs.clamp(eps, 1 - eps).log(), at::cat(values)}, 2);
  }
};

class PreferenceStates : public torch::autograd::Function<PreferenceStates> {
 public:
  static variable_list forward(AutogradContext* ctx, TensorList preferences, TensorList values) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Preferences p(preferences, values);
    variable_list saved{p.probs, p.total, p.least};
    saved.insert(saved.end(), preferences.begin(), preferences.end());
    saved.insert(saved.end(), values.begin(), values.end());
    ctx->save_for_backward(std::move(saved));
    ctx->mark_non_differentiable({p.probs});
    return {p.states, p.probs};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const TensorList parts = TensorList(saved).slice(3);
    const size_t count = parts.size() / 2;
    std::vector<int64_t> sizes;
    for (size_t i = 0; i < count; ++i) sizes.push_back(parts[i].size(0));
    Tensor probs = saved[0], total = saved[1];
    if (at::GradMode::is_enabled()) {  // for derivatives of this one
      const Preferences again(parts.slice(0, count), parts.slice(count));
      probs = again.probs, total = again.total;
    }
    const double eps = epsilon(probs.scalar_type());
    const Tensor inside = probs.ge(eps).logical_and_(probs.le(1 - eps));
    const Tensor of_probs = at::where(inside, grads[0].select(2, 0).div(probs), 0);
    const Tensor of_shifted = of_probs.sub(of_probs.mul(probs).sum(1, true)).div(total);
    const Tensor of_preferences = of_shifted.scatter_add(1, saved[2], of_shifted.sum(1, true).neg());
    variable_list all = of_preferences.split_with_sizes(sizes);
    const variable_list of_values = grads[0].select(2, 1).contiguous().split_with_sizes(sizes);
    all.insert(all.end(), of_values.begin(), of_values.end());
    return all;
  }
};

std::tuple<Tensor, Tensor> preference_states(TensorList preferences, TensorList values) {
  const variable_list found = PreferenceStates::apply(preferences, values);
  return {found[0], found[1]};
}

// ---- taken -----------------------------------------------------------------------------------------------------------------

// Calls f(i, c, from, at) for each of N decisions and each channel: element `at` of part i of the rows, decision `from`.
template <class F>
void for_each_taken(TensorList rows, TensorList row_of, TensorList actions, const F& f) {
  int64_t first = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t n = rows[i].size(0), selections = rows[i].size(1), channels = rows[i].dim() == 3 ? rows[i].size(2) : 1;
    const int64_t count = actions[i].size(0);
    const int64_t* const action = actions[i].const_data_ptr<int64_t>();
    const int64_t* const row = row_of.empty() ? nullptr : row_of[i].const_data_ptr<int64_t>();
    for (int64_t j = 0; j < count; ++j) {
      const int64_t r = row == nullptr ? j : row[j];
      CHECK_ARG("taken", "row_of", r >= 0 && r < n, "must be in [0, ", n, "), got ", r);
      CHECK_ARG("taken", "actions", action[j] >= 0 && action[j] < selections, "must be in [0, ", selections, "), got ",
                action[j]);
      for (int64_t c = 0; c < channels; ++c) f(i, c, first + j, (r * selections + action[j]) * channels + c);
    }
    first += count;
  }
}

class Taken : public torch::autograd::Function<Taken> {
 public:
  static variable_list forward(AutogradContext* ctx, TensorList rows, TensorList row_of, TensorList actions) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    int64_t count = 0;
    for (const Tensor& a : actions) count += a.size(0);
    std::vector<Tensor> given;
    for (const Tensor& t : rows) given.push_back(t.contiguous());
    variable_list taken;
    for (int64_t c = 0; c < (rows[0].dim() == 3 ? rows[0].size(2) : 1); ++c) {
      taken.push_back(at::empty({count}, rows[0].options()));
    }
    AT_DISPATCH_FLOATING_TYPES(rows[0].scalar_type(), "taken", [&] {
      std::vector<const scalar_t*> from;
      std::vector<scalar_t*> to;
      for (const Tensor& t : given) from.push_back(t.const_data_ptr<scalar_t>());
      for (const Tensor& t : taken) to.push_back(t.mutable_data_ptr<scalar_t>());
      for_each_taken(given, row_of, actions,
                     [&](size_t i, int64_t c, int64_t j, int64_t position) { to[c][j] = from[i][position]; });
    });
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
                                                     : gradients(rows, row_of, actions, grads);
    found.resize(saved.size() == 2 * parts ? 2 * parts : 3 * parts);
    return found;
  }

 private:
  static variable_list gradients(TensorList rows, TensorList row_of, TensorList actions, const variable_list& grads) {
    variable_list found, given;
    for (const Tensor& t : rows) found.push_back(at::zeros_like(t, at::MemoryFormat::Contiguous));
    for (const Tensor& t : grads) given.push_back(t.contiguous());
    AT_DISPATCH_FLOATING_TYPES(rows[0].scalar_type(), "taken", [&] {
      std::vector<const scalar_t*> from;
      std::vector<scalar_t*> to;
      for (const Tensor& t : given) from.push_back(t.const_data_ptr<scalar_t>());
      for (const Tensor& t : found) to.push_back(t.mutable_data_ptr<scalar_t>());
      for_each_taken(rows, row_of, actions,
                     [&](size_t i, int64_t c, int64_t j, int64_t position) { to[i][position] += from[c][j]; });
    });
    return found;
  }

  // The same by operators that have gradients themselves.
  static variable_list differentiable_gradients(TensorList rows, TensorList row_of, TensorList actions,
                                                const variable_list& grads) {
    const Tensor grad = at::stack(grads, 1);  // [N,C]
    variable_list found;
    int64_t first = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      const int64_t count = actions[i].size(0), selections = rows[i].size(1);
      const Tensor row = row_of.empty() ? at::ones_like(actions[i]).cumsum(0).sub_(1) : row_of[i];
      const Tensor flat = at::zeros({rows[i].size(0) * selections, grad.size(1)}, grad.options());
      found.push_back(
          flat.index_add(0, actions[i].add(row, selections), grad.narrow(0, first, count)).view(rows[i].sizes()));
      first += count;
    }
    return found;
  }
};

std::vector<Tensor> taken(TensorList rows, TensorList row_of, TensorList actions) {
  constexpr const char* kOp = "taken";
  CHECK_ARG(kOp, "rows", !rows.empty(), "must have at least one tensor, got none");
  CHECK_ARG(kOp, "actions", actions.size() == rows.size(), "must have ", rows.size(), " tensor(s) like rows, got ",
            actions.size());
  CHECK_ARG(kOp, "row_of", row_of.empty() || row_of.size() == rows.size(), "must be empty or have ", rows.size(),
            " tensor(s) like rows, got ", row_of.size());
  std::vector<Tensor> chosen, asked;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Tensor& action = chosen.emplace_back(actions[i].contiguous());
    CHECK_INDEX(kOp, action, rows[i]);
    const Tensor& row = row_of.empty() ? action : asked.emplace_back(row_of[i].contiguous());
    CHECK_INDEX(kOp, row, rows[i]);
    CHECK_ARG(kOp, "row_of", row.size(0) == action.size(0), "must have one row for each of ", action.size(0),
              " actions, got ", row.sizes());
    CHECK_ARG(kOp, "rows", rows[i].scalar_type() == rows[0].scalar_type() && rows[i].sizes().slice(2) == rows[0].sizes().slice(2),
              "must be alike in dtype and channels, got ", rows[0].sizes(), " and ", rows[i].sizes());
  }
  return Taken::apply(rows, TensorList(asked), TensorList(chosen));
}

// ---- wpl_losses ------------------------------------------------------------------------------------------------------------

class WplLosses : public torch::autograd::Function<WplLosses> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& policy, const Tensor& value, const Tensor& cum_return) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor gradient = cum_return.sub(value);
    const Tensor projected = at::where(gradient.lt(0), gradient.add(1), gradient.neg().add(2));
    const Tensor target = policy.mul(projected), of_policy = policy.sub(target), of_value = gradient.neg();
    ctx->save_for_backward({policy, value, target, cum_return.detach()});
    return of_policy.mul(of_policy).add_(of_value.mul(of_value));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor twice = grads[0].mul(2);
    return {twice.mul(saved[0].sub(saved[2])), twice.mul(saved[1].sub(saved[3])), Tensor()};
  }
};

Tensor wpl_losses(const Tensor& policy, const Tensor& value, const Tensor& cum_return) {
  return WplLosses::apply(policy, value, cum_return);
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeImplicitAutograd, m) {
  m.impl("preference_states", preference_states);
  m.impl("taken", taken);
  m.impl("wpl_losses", wpl_losses);
}

}  // namespace routing_ext::autograd
