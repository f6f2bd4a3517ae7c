// Rewards and returns of decisions.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/checks.h"

namespace routing_ext::cpu {
namespace {

using at::Tensor;

Tensor latest_actions_cpu(const std::optional<Tensor>& known, const Tensor& actions, int64_t kept) {
  constexpr const char* kOp = "latest_actions";
  CHECK_INDEX(kOp, actions, actions);
  if (known.has_value()) CHECK_INDEX(kOp, *known, actions);
  const Tensor before = known.has_value() ? known->contiguous() : at::empty({0}, actions.options());
  const Tensor last = actions.contiguous();
  const int64_t of_last = std::min(last.size(0), kept), of_before = std::min(before.size(0), kept - of_last);
  const Tensor all = at::empty({of_before + of_last}, actions.options());
  int64_t* const to = all.mutable_data_ptr<int64_t>();
  std::copy_n(before.const_data_ptr<int64_t>() + before.size(0) - of_before, of_before, to);
  std::copy_n(last.const_data_ptr<int64_t>() + last.size(0) - of_last, of_last, to + of_before);
  return all;
}

std::tuple<Tensor, Tensor> collaboration_rewards_cpu(const Tensor& history, const Tensor& actions, int64_t num_actions,
                                                     double ratio) {
  constexpr const char* kOp = "collaboration_rewards";
  CHECK_INDEX(kOp, history, history);
  CHECK_INDEX(kOp, actions, history);
  const auto checked = [&](const char* argument, int64_t action) {
    CHECK_ARG(kOp, argument, action >= 0 && action < num_actions, "must be in [0, ", num_actions, "), got ", action);
    return action;
  };
  const Tensor past = history.contiguous(), taken = actions.contiguous();
  std::vector<int64_t> counts(num_actions, 0);
  const int64_t* const p = past.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < past.size(0); ++i) ++counts[checked("history", p[i])];
  const Tensor frequencies = at::empty({num_actions}, at::kFloat), rewards = at::empty(taken.sizes(), at::kFloat);
  float *const frequency = frequencies.mutable_data_ptr<float>(), *const reward = rewards.mutable_data_ptr<float>();
  const float total = static_cast<float>(past.size(0)), scale = static_cast<float>(ratio);
  for (int64_t k = 0; k < num_actions; ++k) frequency[k] = static_cast<float>(counts[k]) / total * scale;
  const int64_t* const action = taken.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < taken.size(0); ++i) reward[i] = frequency[checked("actions", action[i])] * scale;
  return {frequencies, rewards};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> discounted_returns_cpu(at::TensorList rewards, const Tensor& final_reward,
                                                                            bool normalise, double discounting) {
  constexpr const char* kOp = "discounted_returns";
  CHECK_DIM(kOp, final_reward, 1);
  const int64_t steps = static_cast<int64_t>(rewards.size()), batch = final_reward.size(0);
  const Tensor last = final_reward.contiguous();
  std::vector<Tensor> given, own, returns;
  for (const Tensor& t : rewards) {
    CHECK_ARG(kOp, "rewards", t.sizes() == final_reward.sizes() && t.scalar_type() == final_reward.scalar_type(),
              "must be like final_reward, ", final_reward.scalar_type(), " ", final_reward.sizes(), ", got ", t.scalar_type(),
              " ", t.sizes());
    given.push_back(t.contiguous());
    own.push_back(at::empty({batch}, last.options()));
    returns.push_back(at::empty({batch}, last.options()));
  }
  AT_DISPATCH_FLOATING_TYPES(last.scalar_type(), kOp, [&] {
    const scalar_t* const final = last.const_data_ptr<scalar_t>();
    const scalar_t count = static_cast<scalar_t>(steps), discount = static_cast<scalar_t>(discounting);
    for (int64_t j = steps - 1; j >= 0; --j) {
      const bool is_last = j == steps - 1;
      const scalar_t* const from = given[j].const_data_ptr<scalar_t>();
      const scalar_t* const next = is_last ? nullptr : returns[j + 1].const_data_ptr<scalar_t>();
      scalar_t* const reward = own[j].mutable_data_ptr<scalar_t>();
      scalar_t* const value = returns[j].mutable_data_ptr<scalar_t>();
      for (int64_t i = 0; i < batch; ++i) {
        reward[i] = from[i] / count;
        if (normalise) reward[i] *= std::abs(final[i]);
        if (is_last) reward[i] += final[i];
        value[i] = is_last ? reward[i] : reward[i] + discount * next[i];
      }
    }
  });
  return {own, returns};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("collaboration_rewards", collaboration_rewards_cpu);
  m.impl("discounted_returns", discounted_returns_cpu);
  m.impl("latest_actions", latest_actions_cpu);
}

}  // namespace routing_ext::cpu
