// The arguments of rewards and returns of decisions, checked. Shared by the CPU and the CUDA glue.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <vector>

#include "checks.h"

namespace routing_ext {

inline void check_latest_actions(const std::optional<at::Tensor>& known, const at::Tensor& actions) {
  constexpr const char* kOp = "latest_actions";
  CHECK_INDEX(kOp, actions, actions);
  if (known.has_value()) CHECK_INDEX(kOp, *known, actions);
}

struct CollaborationArgs {
  static constexpr const char* kOp = "collaboration_rewards";

  at::Tensor history, actions;      // [.], [n], contiguous
  at::Tensor frequencies, rewards;  // [num_actions], [n], to be filled

  CollaborationArgs(const at::Tensor& history_, const at::Tensor& actions_, int64_t num_actions)
      : history(history_), actions(actions_) {
    CHECK_INDEX(kOp, history, history);
    CHECK_INDEX(kOp, actions, history);
    CHECK_ARG(kOp, "num_actions", num_actions >= 0, "must not be negative, got ", num_actions);
    history = history.contiguous();
    actions = actions.contiguous();
    const at::TensorOptions options = history.options().dtype(at::kFloat);
    frequencies = at::empty({num_actions}, options);
    rewards = at::empty(actions.sizes(), options);
  }
};

struct ReturnsArgs {
  static constexpr const char* kOp = "discounted_returns";

  at::Tensor final_reward;               // [B], contiguous
  std::vector<at::Tensor> given;         // of each step [B], contiguous
  std::vector<at::Tensor> own, returns;  // likewise, to be filled
  int64_t steps, batch;

  ReturnsArgs(at::TensorList rewards, const at::Tensor& final_reward_) : final_reward(final_reward_) {
    CHECK_DIM(kOp, final_reward, 1);
    CHECK_ARG(kOp, "final_reward", final_reward.scalar_type() == at::kFloat || final_reward.scalar_type() == at::kDouble,
              "must be float32 or float64, got ", final_reward.scalar_type());
    steps = static_cast<int64_t>(rewards.size()), batch = final_reward.size(0);
    final_reward = final_reward.contiguous();
    for (const at::Tensor& t : rewards) {
      CHECK_ARG(kOp, "rewards",
                t.sizes() == final_reward.sizes() && t.scalar_type() == final_reward.scalar_type() &&
                    t.device() == final_reward.device(),
                "must be like final_reward, ", final_reward.scalar_type(), " ", final_reward.sizes(), " on ",
                final_reward.device(), ", got ", t.scalar_type(), " ", t.sizes(), " on ", t.device());
      given.push_back(t.contiguous());
      own.push_back(at::empty({batch}, final_reward.options()));
      returns.push_back(at::empty({batch}, final_reward.options()));
    }
  }
};

}  // namespace routing_ext
