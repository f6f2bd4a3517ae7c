// What policy gradients on tables compute, each a single node of the graph.
#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "../common/checks.h"

namespace routing_ext::autograd {
namespace {

using at::Tensor, at::TensorList;
using torch::autograd::AutogradContext, torch::autograd::variable_list;

// Room for a tensor like each of these, contiguous, all in one block of memory.
variable_list in_one_block(TensorList like) {
  int64_t size = 0;
  for (const Tensor& t : like) size += t.numel();
  const Tensor block = at::empty({size}, like[0].options());
  variable_list all;
  all.reserve(like.size());
  int64_t begin = 0;
  for (const Tensor& t : like) {
    Tensor& part = all.emplace_back(
        at::detail::make_tensor<c10::TensorImpl>(c10::Storage(block.storage()), block.key_set(), block.dtype()));
    part.unsafeGetTensorImpl()->set_storage_offset(begin);
    part.unsafeGetTensorImpl()->set_sizes_contiguous(t.sizes());
    begin += t.numel();
  }
  return all;
}

// ---- preference_states -----------------------------------------------------------------------------------------------------

constexpr double kLeastPreference = 1e-6;

// A row of preferences, all of them less the least, and probabilities in proportion to these.
template <class T>
struct Preferences {
  const T* row;  // [K]
  int64_t selections, least = 0;
  T total;

  Preferences(const T* row_, int64_t selections_) : row(row_), selections(selections_) {
    for (int64_t k = 1; k < selections; ++k) least = row[k] < row[least] ? k : least;
    double sum = 0;
    for (int64_t k = 0; k < selections; ++k) sum += shifted(k);
    total = static_cast<T>(sum);
  }
  T shifted(int64_t k) const { return row[k] - row[least] + static_cast<T>(kLeastPreference); }
  T prob(int64_t k) const { return shifted(k) / total; }
};

// f(preferences, the values [K] of the same row, i, its row in part i), row after row.
template <class T, class F>
void for_each_row(TensorList parts, const F& f) {
  const size_t count = parts.size() / 2;
  for (size_t i = 0; i < count; ++i) {
    const T *const preference = parts[i].const_data_ptr<T>(), *const value = parts[i + count].const_data_ptr<T>();
    const int64_t selections = parts[i].size(1);
    for (int64_t row = 0; row < parts[i].size(0); ++row) {
      f(Preferences<T>(preference + row * selections, selections), value + row * selections, i, row);
    }
  }
}

class PreferenceStates : public torch::autograd::Function<PreferenceStates> {
 public:
  static variable_list forward(AutogradContext* ctx, TensorList preferences, TensorList values) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    variable_list parts(preferences.begin(), preferences.end());
    parts.insert(parts.end(), values.begin(), values.end());
    int64_t rows = 0;
    for (const Tensor& t : preferences) rows += t.size(0);
    const int64_t selections = parts[0].size(1);
    const Tensor probs = at::empty({rows, selections}, parts[0].options()), logits = at::empty_like(probs);
    const Tensor states = at::empty({rows, selections, 2}, probs.options());
    AT_DISPATCH_FLOATING_TYPES(probs.scalar_type(), "preference_states", [&] {
      constexpr scalar_t eps = std::numeric_limits<scalar_t>::epsilon();
      scalar_t *prob = probs.mutable_data_ptr<scalar_t>(), *logit = logits.mutable_data_ptr<scalar_t>();
      scalar_t* state = states.mutable_data_ptr<scalar_t>();
      for_each_row<scalar_t>(parts, [&](const auto& preferences, const scalar_t* value, size_t, int64_t) {
        for (int64_t k = 0; k < selections; ++k, state += 2) {
          *prob++ = preferences.prob(k);
          *logit++ = std::clamp(prob[-1], eps, 1 - eps);
          state[1] = value[k];
        }
      });
      logits.log_();
      logit = logits.mutable_data_ptr<scalar_t>(), state = states.mutable_data_ptr<scalar_t>();
      for (int64_t i = 0; i < rows * selections; ++i) state[2 * i] = logit[i];
    });
    ctx->save_for_backward(std::move(parts));
    ctx->mark_non_differentiable({probs});
    return {states, probs};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list parts = ctx->get_saved_variables();
    if (at::GradMode::is_enabled()) return differentiable_gradients(parts, grads[0]);
    const Tensor grad = grads[0].contiguous();  // [n,K,2]
    variable_list found = in_one_block(parts);
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "preference_states", [&] {
      const scalar_t* g = grad.const_data_ptr<scalar_t>();
      for_each_row<scalar_t>(parts, [&](const auto& preferences, const scalar_t*, size_t i, int64_t row) {
        const int64_t at = row * preferences.selections;
        gradient_of_row(g, preferences, found[i].template mutable_data_ptr<scalar_t>() + at,
                        found[i + found.size() / 2].template mutable_data_ptr<scalar_t>() + at);
        g += 2 * preferences.selections;
      });
    });
    return found;
  }

 private:
  template <class T>
  static void gradient_of_row(const T* grad, const Preferences<T>& preferences, T* of_preference, T* of_value) {
    constexpr T eps = std::numeric_limits<T>::epsilon();
    T mean = 0, sum = 0;
    for (int64_t k = 0; k < preferences.selections; ++k) {
      const T prob = preferences.prob(k);
      of_preference[k] = prob >= eps && prob <= 1 - eps ? grad[2 * k] / prob : 0;
      of_value[k] = grad[2 * k + 1];
      mean += of_preference[k] * prob;
    }
    for (int64_t k = 0; k < preferences.selections; ++k) {
      of_preference[k] = (of_preference[k] - mean) / preferences.total;
      if (k != preferences.least) sum += of_preference[k];
    }
    of_preference[preferences.least] = -sum;
  }

  // The same by operators that have gradients themselves.
  static variable_list differentiable_gradients(TensorList parts, const Tensor& grad) {
    const size_t count = parts.size() / 2;
    std::vector<int64_t> sizes;
    for (size_t i = 0; i < count; ++i) sizes.push_back(parts[i].size(0));
    const Tensor preference = at::cat(parts.slice(0, count));
    const auto [lowest, least] = preference.min(1, /*keepdim=*/true);
    const Tensor shifted = preference.sub(lowest).add(kLeastPreference), total = shifted.sum(1, true), probs = shifted.div(total);
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
  constexpr const char* kOp = "preference_states";
  CHECK_ARG(kOp, "preferences", !preferences.empty(), "must have at least one tensor, got none");
  CHECK_ARG(kOp, "values", values.size() == preferences.size(), "must have ", preferences.size(),
            " tensor(s) like preferences, got ", values.size());
  variable_list given;
  for (const TensorList list : {preferences, values}) {
    for (size_t i = 0; i < list.size(); ++i) {
      const Tensor &t = list[i], &like = preferences[i];
      CHECK_ARG(kOp, "preferences and values",
                t.dim() == 2 && t.sizes() == like.sizes() && t.size(1) == preferences[0].size(1) && t.size(1) > 0 &&
                    t.scalar_type() == preferences[0].scalar_type(),
                "must be alike [n,K] each, K at least 1, got ", t.scalar_type(), " ", t.sizes(), " beside ",
                preferences[0].scalar_type(), " ", like.sizes());
      given.push_back(t.contiguous());
    }
  }
  const size_t count = preferences.size();
  const variable_list found = PreferenceStates::apply(TensorList(given).slice(0, count), TensorList(given).slice(count));
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
      found.push_back(flat.index_add(0, actions[i].add(row, selections), grad.narrow(0, first, count)).view(rows[i].sizes()));
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
    CHECK_ARG(kOp, "row_of", row.size(0) == action.size(0), "must have one row for each of ", action.size(0), " actions, got ",
              row.sizes());
    CHECK_ARG(kOp, "rows",
              rows[i].scalar_type() == rows[0].scalar_type() && rows[i].sizes().slice(2) == rows[0].sizes().slice(2),
              "must be alike in dtype and channels, got ", rows[0].sizes(), " and ", rows[i].sizes());
  }
  return Taken::apply(rows, TensorList(asked), TensorList(chosen));
}

// ---- wpl_losses ------------------------------------------------------------------------------------------------------------

class WplLosses : public torch::autograd::Function<WplLosses> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& policy, const Tensor& value, const Tensor& cum_return) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor losses = at::empty_like(policy, at::MemoryFormat::Contiguous), target = at::empty_like(losses);
    const Tensor p = policy.contiguous(), v = value.contiguous(), r = cum_return.contiguous();
    AT_DISPATCH_FLOATING_TYPES(policy.scalar_type(), "wpl_losses", [&] {
      const scalar_t *const of_policy = p.const_data_ptr<scalar_t>(), *const of_value = v.const_data_ptr<scalar_t>();
      const scalar_t* const returned = r.const_data_ptr<scalar_t>();
      scalar_t *const loss = losses.mutable_data_ptr<scalar_t>(), *const aim = target.mutable_data_ptr<scalar_t>();
      for (int64_t i = 0; i < losses.numel(); ++i) {
        const scalar_t gradient = returned[i] - of_value[i];
        aim[i] = of_policy[i] * (gradient < 0 ? 1 + gradient : 2 - gradient);
        const scalar_t difference = of_policy[i] - aim[i];
        loss[i] = difference * difference + gradient * gradient;
      }
    });
    ctx->save_for_backward({policy, value, target, cum_return.detach()});
    return losses;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor twice = grads[0].mul(2);
    return {twice.mul(saved[0].sub(saved[2])), twice.mul(saved[1].sub(saved[3])), Tensor()};
  }
};

Tensor wpl_losses(const Tensor& policy, const Tensor& value, const Tensor& cum_return) {
  constexpr const char* kOp = "wpl_losses";
  CHECK_DIM(kOp, policy, 1);
  for (const Tensor& t : {value, cum_return}) {
    CHECK_ARG(kOp, "value and cum_return", t.sizes() == policy.sizes() && t.scalar_type() == policy.scalar_type(),
              "must be like policy, ", policy.scalar_type(), " ", policy.sizes(), ", got ", t.scalar_type(), " ", t.sizes());
  }
  return WplLosses::apply(policy, value, cum_return);
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeImplicitAutograd, m) {
  m.impl("preference_states", preference_states);
  m.impl("taken", taken);
  m.impl("wpl_losses", wpl_losses);
}

}  // namespace routing_ext::autograd
