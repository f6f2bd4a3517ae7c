#include "dispatch_plan.cuh"

#include <torch/library.h>

#include <tuple>

#include "../common/cuda_glue.h"
#include "../common/dispatch_args.h"

namespace routing_ext::cuda {
namespace {

std::tuple<at::Tensor, at::Tensor> dispatch_plan_cuda(const at::Tensor& actions, int64_t num_modules,
                                                      const std::optional<at::Tensor>& mask) {
  const DispatchPlanArgs args(actions, num_modules, mask, kDispatchPlanMaxBatch, kDispatchPlanMaxModules);
  const LaunchScope scope(actions);
  const size_t scratch_bytes = dispatch_plan_scratch_bytes(args.batch, num_modules);
  const at::Tensor scratch = at::empty({static_cast<int64_t>(scratch_bytes)}, actions.options().dtype(at::kByte));

  DispatchPlan plan;
  plan.actions = args.actions.const_data_ptr<int64_t>();
  plan.mask = args.mask_data();
  plan.order = args.order.mutable_data_ptr<int64_t>();
  plan.layout = args.layout.mutable_data_ptr<int64_t>();
  plan.scratch = static_cast<int32_t*>(scratch.mutable_data_ptr());
  plan.batch = args.batch;
  plan.num_modules = num_modules;
  check_launch("dispatch_plan", launch_dispatch_plan(plan, scope.stream()));
  return {args.order, args.layout};
}

at::Tensor rank_of_module_cuda(const at::Tensor& actions, const at::Tensor& layout) {
  const RankOfModuleArgs args(actions, layout);
  const LaunchScope scope(actions);
  check_launch(args.kOp, launch_rank_of_module(args.actions.const_data_ptr<int64_t>(), args.layout.const_data_ptr<int64_t>(),
                                               args.ranks.mutable_data_ptr<int64_t>(), args.actions.size(0), args.num_modules,
                                               scope.stream()));
  return args.ranks;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("dispatch_plan", dispatch_plan_cuda);
  m.impl("rank_of_module", rank_of_module_cuda);
}

}  // namespace routing_ext::cuda
