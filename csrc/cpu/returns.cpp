// Rewards and returns of decisions.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/returns_args.h"
#include "../math/policy_gradients.h"

namespace routing_ext::cpu {
namespace {

using at::Tensor;

Tensor latest_actions_cpu(const std::optional<Tensor>& known, const Tensor& actions, int64_t kept) {
  check_latest_actions(known, actions);
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
  const CollaborationArgs args(history, actions, num_actions);
  const auto checked = [&](const char* argument, int64_t action) {
    CHECK_ARG(args.kOp, argument, action >= 0 && action < num_actions, "must be in [0, ", num_actions, "), got ", action);
    return action;
  };
  const Tensor &past = args.history, &taken = args.actions;
  std::vector<int64_t> counts(num_actions, 0);
  const int64_t* const p = past.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < past.size(0); ++i) ++counts[checked("history", p[i])];
  float* const frequency = args.frequencies.mutable_data_ptr<float>();
  float* const reward = args.rewards.mutable_data_ptr<float>();
  const float total = static_cast<float>(past.size(0)), scale = static_cast<float>(ratio);
  for (int64_t k = 0; k < num_actions; ++k) frequency[k] = static_cast<float>(counts[k]) / total * scale;
  const int64_t* const action = taken.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < taken.size(0); ++i) reward[i] = frequency[checked("actions", action[i])] * scale;
  return {args.frequencies, args.rewards};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> discounted_returns_cpu(at::TensorList rewards, const Tensor& final_reward,
                                                                            bool normalise, double discounting) {
  const ReturnsArgs args(rewards, final_reward);
  AT_DISPATCH_FLOATING_TYPES(final_reward.scalar_type(), args.kOp, [&] {
    const scalar_t* const final = args.final_reward.const_data_ptr<scalar_t>();
    const scalar_t count = static_cast<scalar_t>(args.steps), discount = static_cast<scalar_t>(discounting);
    for (int64_t j = args.steps - 1; j >= 0; --j) {
      const bool is_last = j == args.steps - 1;
      const scalar_t* const from = args.given[j].const_data_ptr<scalar_t>();
      const scalar_t* const next = is_last ? nullptr : args.returns[j + 1].const_data_ptr<scalar_t>();
      scalar_t* const reward = args.own[j].mutable_data_ptr<scalar_t>();
      scalar_t* const value = args.returns[j].mutable_data_ptr<scalar_t>();
      for (int64_t i = 0; i < args.batch; ++i) {
        reward[i] = own_reward(from[i], count, final[i], normalise, is_last);
        value[i] = is_last ? reward[i] : reward[i] + discount * next[i];
      }
    }
  });
  return {args.own, args.returns};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("collaboration_rewards", collaboration_rewards_cpu);
  m.impl("discounted_returns", discounted_returns_cpu);
  m.impl("latest_actions", latest_actions_cpu);
}

}  // namespace routing_ext::cpu
