// What policy gradients on tables compute, and its gradients.
#include "../math/policy_gradients.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/policy_gradients_args.h"

namespace routing_ext::cpu {
namespace {

using at::Tensor, at::TensorList;

// ---- preference_states -----------------------------------------------------------------------------------------------------

// A row of preferences, all of them less the least, and probabilities in proportion to these.
template <class T>
struct Preferences {
  const T* row;  // [K]
  int64_t selections, least = 0;
  T total;

  Preferences(const T* row_, int64_t selections_) : row(row_), selections(selections_) {
    for (int64_t k = 1; k < selections; ++k) least = row[k] < row[least] ? k : least;
    double sum = 0;
    for (int64_t k = 0; k < selections; ++k) sum += shifted_preference(row[k], row[least]);
    total = static_cast<T>(sum);
  }
  T prob(int64_t k) const { return shifted_preference(row[k], row[least]) / total; }
};

// f(preferences) for one row after the other.
template <class T, class F>
void for_each_row(TensorList tables, const F& f) {
  for (const Tensor& t : tables) {
    const T* const table = t.const_data_ptr<T>();
    for (int64_t row = 0; row < t.size(0); ++row) f(Preferences<T>(table + row * t.size(1), t.size(1)));
  }
}

std::tuple<Tensor, Tensor> preference_states_forward_cpu(TensorList preferences, TensorList values) {
  const PreferencesArgs args(preferences, values);
  const int64_t selections = args.selections;
  const Tensor probs = at::empty({args.rows, selections}, preferences[0].options()), logits = at::empty_like(probs);
  const Tensor states = at::empty({args.rows, selections, 2}, probs.options());
  AT_DISPATCH_FLOATING_TYPES(probs.scalar_type(), args.kOp, [&] {
    scalar_t *prob = probs.mutable_data_ptr<scalar_t>(), *logit = logits.mutable_data_ptr<scalar_t>();
    for_each_row<scalar_t>(args.preferences, [&](const auto& row) {
      for (int64_t k = 0; k < selections; ++k) {
        *prob++ = row.prob(k);
        *logit++ = clamped_prob(prob[-1]);
      }
    });
    logits.log_();
    logit = logits.mutable_data_ptr<scalar_t>();
    scalar_t* state = states.mutable_data_ptr<scalar_t>();
    for (const Tensor& t : args.values) {
      const scalar_t* const value = t.const_data_ptr<scalar_t>();
      for (int64_t i = 0; i < t.numel(); ++i, state += 2) state[0] = *logit++, state[1] = value[i];
    }
  });
  return {states, probs};
}

template <class T>
void gradient_of_row(const T* grad, const Preferences<T>& row, T* of_preference, T* of_value) {
  T mean = 0, sum = 0;
  for (int64_t k = 0; k < row.selections; ++k) {
    const T prob = row.prob(k);
    of_preference[k] = gradient_of_prob(grad[2 * k], prob);
    of_value[k] = grad[2 * k + 1];
    mean += of_preference[k] * prob;
  }
  for (int64_t k = 0; k < row.selections; ++k) {
    of_preference[k] = (of_preference[k] - mean) / row.total;
    if (k != row.least) sum += of_preference[k];
  }
  of_preference[row.least] = -sum;
}

Tensor preference_states_backward_cpu(const Tensor& grad_, TensorList preferences) {
  const PreferencesArgs args(preferences);
  const int64_t selections = args.selections;
  const Tensor grad = grad_.contiguous(), found = at::empty({2, args.rows, selections}, grad.options());
  CHECK_ARG(args.kOp, "grad", grad.numel() == found.numel() && grad.scalar_type() == preferences[0].scalar_type(),
            "must be like the states, got ", grad.scalar_type(), " ", grad.sizes());
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), args.kOp, [&] {
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    scalar_t* of_preference = found.mutable_data_ptr<scalar_t>();
    scalar_t* of_value = of_preference + args.rows * selections;
    for_each_row<scalar_t>(args.preferences, [&](const auto& row) {
      gradient_of_row(g, row, of_preference, of_value);
      g += 2 * selections, of_preference += selections, of_value += selections;
    });
  });
  return found;
}

// ---- taken, wpl_losses -----------------------------------------------------------------------------------------------------

void check_range(const char* op, const char* argument, const Tensor& index, int64_t end) {
  const int64_t* const values = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.size(0); ++i) {
    CHECK_ARG(op, argument, values[i] >= 0 && values[i] < end, "must be in [0, ", end, "), got ", values[i]);
  }
}

void check_ranges(const char* op, const DecisionsArgs& made) {
  for (size_t i = 0; i < made.rows.size(); ++i) {
    check_range(op, "actions", made.actions[i], made.rows[i].size(1));
    if (!made.row_of.empty()) check_range(op, "row_of", made.row_of[i], made.rows[i].size(0));
  }
}

// Calls f(i, j, n, at) for each of N decisions: the j-th of part i, the n-th of all, at the element `at` of the part's rows,
// the first of its channels.
template <class F>
void for_each_taken(const DecisionsArgs& made, const F& f) {
  int64_t decision = 0;
  for (size_t i = 0; i < made.rows.size(); ++i) {
    const int64_t selections = made.rows[i].size(1);
    const int64_t* const action = made.actions[i].const_data_ptr<int64_t>();
    const int64_t* const row = made.row_of.empty() ? nullptr : made.row_of[i].const_data_ptr<int64_t>();
    for (int64_t j = 0; j < made.actions[i].size(0); ++j) {
      const int64_t r = row == nullptr ? j : row[j];
      f(i, j, decision++, (r * selections + action[j]) * made.channels);
    }
  }
}

Tensor taken_forward_cpu(TensorList rows, TensorList row_of, TensorList actions) {
  constexpr const char* kOp = "taken";
  const DecisionsArgs made(kOp, rows, row_of, actions);
  check_ranges(kOp, made);
  const Tensor taken = at::empty({made.channels, made.count}, rows[0].options());
  AT_DISPATCH_FLOATING_TYPES(taken.scalar_type(), kOp, [&] {
    const auto from = pointers_of<const scalar_t>(made.rows);
    scalar_t* const to = taken.mutable_data_ptr<scalar_t>();
    for_each_taken(made, [&](size_t i, int64_t, int64_t n, int64_t position) {
      for (int64_t c = 0; c < made.channels; ++c) to[c * made.count + n] = from[i][position + c];
    });
  });
  return taken;
}

Tensor taken_backward_cpu(TensorList grads, const std::optional<Tensor>& scale, TensorList rows, TensorList row_of,
                          TensorList actions) {
  const TakenGradientArgs made(grads, scale, rows, row_of, actions);
  const Tensor found = at::zeros({made.elements}, rows[0].options());
  AT_DISPATCH_FLOATING_TYPES(found.scalar_type(), "taken_backward", [&] {
    const auto from = pointers_of<const scalar_t>(made.grads);
    const scalar_t* const factor = made.scale.defined() ? made.scale.const_data_ptr<scalar_t>() : nullptr;
    std::vector<scalar_t*> to{found.mutable_data_ptr<scalar_t>()};
    for (const Tensor& t : made.rows) to.push_back(to.back() + t.numel());
    for_each_taken(made, [&](size_t i, int64_t, int64_t n, int64_t position) {
      const scalar_t by = factor == nullptr ? 1 : factor[n];
      for (size_t c = 0; c < from.size(); ++c) to[i][position + c] += by * from[c][n];
    });
  });
  return found;
}

std::tuple<Tensor, Tensor> wpl_losses_forward_cpu(TensorList rows, TensorList row_of, TensorList actions, TensorList returns) {
  constexpr const char* kOp = "wpl_losses";
  const WplLossesArgs made(rows, row_of, actions, returns);
  check_ranges(kOp, made);
  AT_DISPATCH_FLOATING_TYPES(made.losses.scalar_type(), kOp, [&] {
    const auto from = pointers_of<const scalar_t>(made.rows), returned = pointers_of<const scalar_t>(made.returns);
    scalar_t* const loss = made.losses.mutable_data_ptr<scalar_t>();
    scalar_t *const of_policy = made.factors.mutable_data_ptr<scalar_t>(), *const of_value = of_policy + made.count;
    for_each_taken(made, [&](size_t i, int64_t j, int64_t n, int64_t position) {
      const WplTerms<scalar_t> terms = wpl_terms(from[i][position], from[i][position + 1], returned[i][j]);
      loss[n] = terms.loss, of_policy[n] = terms.of_policy, of_value[n] = terms.of_value;
    });
  });
  return {made.losses, made.factors};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("preference_states_forward", preference_states_forward_cpu);
  m.impl("preference_states_backward", preference_states_backward_cpu);
  m.impl("taken_forward", taken_forward_cpu);
  m.impl("taken_backward", taken_backward_cpu);
  m.impl("wpl_losses_forward", wpl_losses_forward_cpu);
}

}  // namespace routing_ext::cpu
