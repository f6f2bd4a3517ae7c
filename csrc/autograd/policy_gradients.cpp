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
#include <type_traits>
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

// Decisions by parts: `actions [.]` of each, made at `rows [n,K,C]` or `[n,K]`, at those of `row_of`, or in order. Contiguous.
struct Decisions {
  variable_list rows, row_of, actions;

  Decisions(const char* op, TensorList rows_, TensorList row_of_, TensorList actions_) {
    CHECK_ARG(op, "rows", !rows_.empty(), "must have at least one tensor, got none");
    CHECK_ARG(op, "actions", actions_.size() == rows_.size(), "must have ", rows_.size(), " tensor(s) like rows, got ",
              actions_.size());
    CHECK_ARG(op, "row_of", row_of_.empty() || row_of_.size() == rows_.size(), "must be empty or have ", rows_.size(),
              " tensor(s) like rows, got ", row_of_.size());
    for (size_t i = 0; i < rows_.size(); ++i) {
      const Tensor& action = actions.emplace_back(actions_[i].contiguous());
      CHECK_INDEX(op, action, rows_[i]);
      const Tensor& row = row_of_.empty() ? action : row_of.emplace_back(row_of_[i].contiguous());
      CHECK_INDEX(op, row, rows_[i]);
      CHECK_ARG(op, "row_of", row.size(0) == action.size(0), "must have one row for each of ", action.size(0),
                " actions, got ", row.sizes());
      CHECK_ARG(op, "rows",
                rows_[i].scalar_type() == rows_[0].scalar_type() && rows_[i].sizes().slice(2) == rows_[0].sizes().slice(2),
                "must be alike in dtype and channels, got ", rows_[0].sizes(), " and ", rows_[i].sizes());
      rows.push_back(rows_[i].contiguous());
      check_range(op, "actions", action, rows_[i].size(1));
      if (row_of_.empty()) {
        CHECK_ARG(op, "actions", action.size(0) <= rows_[i].size(0), "must be at most ", rows_[i].size(0), ", one a row, got ",
                  action.size(0));
      } else {
        check_range(op, "row_of", row, rows_[i].size(0));
      }
    }
  }

 private:
  static void check_range(const char* op, const char* argument, const Tensor& index, int64_t end) {
    const int64_t* const values = index.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < index.size(0); ++i) {
      CHECK_ARG(op, argument, values[i] >= 0 && values[i] < end, "must be in [0, ", end, "), got ", values[i]);
    }
  }
};

int64_t total_size(TensorList tensors) {
  int64_t size = 0;
  for (const Tensor& t : tensors) size += t.size(0);
  return size;
}

template <class T>
std::vector<T*> pointers(TensorList tensors) {
  std::vector<T*> all;
  for (const Tensor& t : tensors) {
    if constexpr (std::is_const_v<T>) {
      all.push_back(t.const_data_ptr<std::remove_const_t<T>>());
    } else {
      all.push_back(t.mutable_data_ptr<T>());
    }
  }
  return all;
}

// Calls f(i, j, n, at) for each of N decisions: the j-th of part i, the n-th of all, at the element `at` of the part's rows,
// the first of its channels.
template <class F>
void for_each_taken(TensorList rows, TensorList row_of, TensorList actions, const F& f) {
  int64_t decision = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t selections = rows[i].size(1), channels = rows[i].dim() == 3 ? rows[i].size(2) : 1;
    const int64_t* const action = actions[i].const_data_ptr<int64_t>();
    const int64_t* const row = row_of.empty() ? nullptr : row_of[i].const_data_ptr<int64_t>();
    for (int64_t j = 0; j < actions[i].size(0); ++j) {
      const int64_t r = row == nullptr ? j : row[j];
      f(i, j, decision++, (r * selections + action[j]) * channels);
    }
  }
}

class Taken : public torch::autograd::Function<Taken> {
 public:
  static variable_list forward(AutogradContext* ctx, TensorList rows, TensorList row_of, TensorList actions) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const size_t channels = rows[0].dim() == 3 ? rows[0].size(2) : 1;
    variable_list taken;
    for (size_t c = 0; c < channels; ++c) taken.push_back(at::empty({total_size(actions)}, rows[0].options()));
    AT_DISPATCH_FLOATING_TYPES(rows[0].scalar_type(), "taken", [&] {
      const auto from = pointers<const scalar_t>(rows);
      const auto to = pointers<scalar_t>(taken);
      for_each_taken(rows, row_of, actions, [&](size_t i, int64_t, int64_t n, int64_t position) {
        for (size_t c = 0; c < channels; ++c) to[c][n] = from[i][position + c];
      });
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

 private:
  static variable_list gradients(TensorList rows, TensorList row_of, TensorList actions, const variable_list& grads) {
    variable_list found, given;
    for (const Tensor& t : rows) found.push_back(at::zeros(t.sizes(), t.options()));
    for (const Tensor& t : grads) given.push_back(t.contiguous());
    AT_DISPATCH_FLOATING_TYPES(rows[0].scalar_type(), "taken", [&] {
      const auto from = pointers<const scalar_t>(given);
      const auto to = pointers<scalar_t>(found);
      for_each_taken(rows, row_of, actions, [&](size_t i, int64_t, int64_t n, int64_t position) {
        for (size_t c = 0; c < from.size(); ++c) to[i][position + c] += from[c][n];
      });
    });
    return found;
  }
};

std::vector<Tensor> taken(TensorList rows, TensorList row_of, TensorList actions) {
  const Decisions made("taken", rows, row_of, actions);
  return Taken::apply(TensorList(made.rows), TensorList(made.row_of), TensorList(made.actions));
}

// ---- wpl_losses ------------------------------------------------------------------------------------------------------------

class WplLosses : public torch::autograd::Function<WplLosses> {
 public:
  static Tensor forward(AutogradContext* ctx, TensorList rows, TensorList row_of, TensorList actions, TensorList returns) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t count = total_size(actions);
    const Tensor losses = at::empty({count}, rows[0].options()), factors = at::empty({2, count}, rows[0].options());
    AT_DISPATCH_FLOATING_TYPES(rows[0].scalar_type(), "wpl_losses", [&] {
      const auto from = pointers<const scalar_t>(rows), returned = pointers<const scalar_t>(returns);
      scalar_t* const loss = losses.mutable_data_ptr<scalar_t>();
      scalar_t *const of_policy = factors.mutable_data_ptr<scalar_t>(), *const of_value = of_policy + count;
      for_each_taken(rows, row_of, actions, [&](size_t i, int64_t j, int64_t n, int64_t position) {
        const scalar_t policy = from[i][position], gradient = returned[i][j] - from[i][position + 1];
        const scalar_t difference = policy - policy * (gradient < 0 ? 1 + gradient : 2 - gradient);
        loss[n] = difference * difference + gradient * gradient;
        of_policy[n] = 2 * difference;
        of_value[n] = -2 * gradient;
      });
    });
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
    variable_list found;
    for (const Tensor& t : rows) found.push_back(at::zeros(t.sizes(), t.options()));
    const Tensor given = grad.contiguous();
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "wpl_losses", [&] {
      const auto to = pointers<scalar_t>(found);
      const scalar_t *const g = given.const_data_ptr<scalar_t>(), *const of_policy = factors.const_data_ptr<scalar_t>();
      const scalar_t* const of_value = of_policy + given.size(0);
      for_each_taken(rows, row_of, actions, [&](size_t i, int64_t, int64_t n, int64_t position) {
        to[i][position] += g[n] * of_policy[n];
        to[i][position + 1] += g[n] * of_value[n];
      });
    });
    return found;
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
  constexpr const char* kOp = "wpl_losses";
  const Decisions made(kOp, rows, row_of, actions);
  CHECK_ARG(kOp, "rows", rows[0].dim() == 3 && rows[0].size(2) >= 2, "must have at least 2 channels, got ", rows[0].sizes());
  CHECK_ARG(kOp, "returns", returns.size() == rows.size(), "must have ", rows.size(), " tensor(s) like rows, got ",
            returns.size());
  variable_list earned;
  for (size_t i = 0; i < rows.size(); ++i) {
    CHECK_ARG(kOp, "returns",
              returns[i].sizes() == actions[i].sizes() && returns[i].scalar_type() == rows[0].scalar_type() &&
                  !returns[i].requires_grad(),
              "must be constants, one for each action, ", rows[0].scalar_type(), " ", actions[i].sizes(), ", got ",
              returns[i].scalar_type(), " ", returns[i].sizes());
    earned.push_back(returns[i].contiguous());
  }
  return WplLosses::apply(TensorList(made.rows), TensorList(made.row_of), TensorList(made.actions), TensorList(earned));
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeImplicitAutograd, m) {
  m.impl("preference_states", preference_states);
  m.impl("taken", taken);
  m.impl("wpl_losses", wpl_losses);
}

}  // namespace routing_ext::autograd
