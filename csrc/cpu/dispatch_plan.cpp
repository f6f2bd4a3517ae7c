#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "../common/dispatch_args.h"

namespace routing_ext::cpu {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max() - 2;

// A counting sort: count, turn counts into positions, place.
std::tuple<at::Tensor, at::Tensor> dispatch_plan_cpu(const at::Tensor& actions, int64_t num_modules,
                                                     const std::optional<at::Tensor>& mask) {
  const DispatchPlanArgs args(actions, num_modules, mask, kUnlimited, kUnlimited);
  const int64_t* const action = args.actions.const_data_ptr<int64_t>();
  const bool* const active = args.mask_data();
  int64_t* const order = args.order.mutable_data_ptr<int64_t>();
  int64_t* const layout = args.layout.mutable_data_ptr<int64_t>();
  const auto bucket = [&](int64_t i) { return active == nullptr || active[i] ? action[i] : num_modules; };

  // The next position of each module, and of the inactive samples.
  std::vector<int64_t> position(num_modules + 1, 0);
  for (int64_t i = 0; i < args.batch; ++i) {
    const int64_t k = bucket(i);
    const bool valid = k >= 0 && k < num_modules + (active != nullptr && !active[i]);
    CHECK_ARG("dispatch_plan", "actions", valid, "must be in [0, ", num_modules, "), got ", k, " for sample ", i);
    ++position[k];
  }
  int64_t begin = 0;
  for (int64_t k = 0; k <= num_modules; ++k) {
    layout[k] = begin;
    begin += position[k];
    position[k] = layout[k];
  }
  layout[num_modules + 1] = -1;
  for (int64_t i = 0; i < args.batch; ++i) order[position[bucket(i)]++] = i;
  return {args.order, args.layout};
}

at::Tensor rank_of_module_cpu(const at::Tensor& actions, const at::Tensor& layout) {
  const RankOfModuleArgs args(actions, layout);
  const int64_t num_modules = args.num_modules;
  const int64_t *const action = args.actions.const_data_ptr<int64_t>(), *const begin = args.layout.const_data_ptr<int64_t>();
  std::vector<int64_t> rank_of(num_modules);
  int64_t rank = 0;
  for (int64_t k = 0; k < num_modules; ++k) {
    rank_of[k] = rank;
    rank += begin[k] != begin[k + 1];
  }
  int64_t* const rank_at = args.ranks.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < args.actions.size(0); ++i) {
    // That of an inactive sample is an index, too.
    rank_at[i] = action[i] >= 0 && action[i] < num_modules ? std::min(rank_of[action[i]], std::max<int64_t>(rank - 1, 0)) : 0;
  }
  return args.ranks;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("dispatch_plan", dispatch_plan_cpu);
  m.impl("rank_of_module", rank_of_module_cpu);
}

}  // namespace routing_ext::cpu
