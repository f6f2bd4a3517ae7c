#include "returns.cuh"

#include <ATen/ops/cat.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/cuda_glue.h"
#include "../common/policy_gradients_args.h"
#include "../common/returns_args.h"

namespace routing_ext::cuda {
namespace {

using at::Tensor;

Tensor latest_actions_cuda(const std::optional<Tensor>& known, const Tensor& actions, int64_t kept) {
  check_latest_actions(known, actions);
  const LaunchScope scope(actions);
  const int64_t of_last = std::min(actions.size(0), kept), before = known.has_value() ? known->size(0) : 0,
                of_before = std::min(before, kept - of_last);
  const Tensor last = actions.narrow(0, actions.size(0) - of_last, of_last);
  if (of_before == 0) return last.clone(at::MemoryFormat::Contiguous);
  return at::cat({known->narrow(0, before - of_before, of_before), last});
}

std::tuple<Tensor, Tensor> collaboration_rewards_cuda(const Tensor& history, const Tensor& actions, int64_t num_actions,
                                                      double ratio) {
  const LaunchScope scope(history);
  const CollaborationArgs a(history, actions, num_actions);
  Collaboration c;
  c.history = a.history.const_data_ptr<int64_t>();
  c.actions = a.actions.const_data_ptr<int64_t>();
  c.frequencies = a.frequencies.mutable_data_ptr<float>();
  c.rewards = a.rewards.mutable_data_ptr<float>();
  c.count = a.history.size(0), c.n = a.actions.size(0), c.num_actions = num_actions;
  c.ratio = static_cast<float>(ratio);
  check_launch(a.kOp, launch_collaboration_rewards(c, scope.stream()));
  return {a.frequencies, a.rewards};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> discounted_returns_cuda(at::TensorList rewards,
                                                                             const Tensor& final_reward, bool normalise,
                                                                             double discounting) {
  const LaunchScope scope(final_reward);
  const ReturnsArgs a(rewards, final_reward);
  with_float_or_double(a.kOp, final_reward.scalar_type(), [&](auto kernel_type) {
    using T = typename decltype(kernel_type)::type;
    const auto given = pointers_of<const T>(a.given);
    const auto own = pointers_of<T>(a.own), returns = pointers_of<T>(a.returns);
    const Returns<T> r{given.data(), own.data(), returns.data(), a.final_reward.const_data_ptr<T>(),
                       a.steps,      a.batch,    normalise,      static_cast<T>(discounting)};
    check_launch(a.kOp, launch_discounted_returns<T>(r, scope.stream()));
  });
  return {a.own, a.returns};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("collaboration_rewards", collaboration_rewards_cuda);
  m.impl("discounted_returns", discounted_returns_cuda);
  m.impl("latest_actions", latest_actions_cuda);
}

}  // namespace routing_ext::cuda
