// grouped_linear with a gradient, for modules that all have samples.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "raw.h"

namespace routing_ext::autograd {
namespace {

using at::Tensor, at::TensorList;
using torch::autograd::AutogradContext, torch::autograd::variable_list;

// What has no gradient of its own.
struct Call {
  Tensor order, layout;  // [B], [K+2]
  at::IntArrayRef modules;
  int64_t out_features;
  bool relu;
};

struct Gradients {
  Tensor x;
  std::vector<Tensor> weights, biases;
};

bool any_requires_grad(TensorList tensors) {
  for (const Tensor& t : tensors) {
    if (t.requires_grad()) return true;
  }
  return false;
}

// The same by operators that have gradients themselves.
Gradients differentiable_gradients(const Tensor& grad, const Tensor& y, const Tensor& x, const Tensor& order,
                                   const Tensor& layout, TensorList weights, at::IntArrayRef modules,
                                   std::array<bool, 3> wanted) {
  const Tensor passed = y.defined() ? grad.masked_fill(y.detach().le(0), 0) : grad;  // [B,o]
  const int64_t* const offsets = layout.const_data_ptr<int64_t>();
  Gradients found;
  for (size_t e = 0; e < modules.size(); ++e) {
    const int64_t begin = offsets[modules[e]];
    const Tensor rows = order.narrow(0, begin, offsets[modules[e] + 1] - begin), its = passed.index_select(0, rows);
    if (wanted[0]) {
      const Tensor of_x = its.mm(weights[e]);
      if (!found.x.defined()) found.x = at::zeros({grad.size(0), of_x.size(1)}, of_x.options());
      found.x = found.x.index_add(0, rows, of_x);
    }
    if (wanted[1]) found.weights.push_back(its.t().mm(x.index_select(0, rows)));
    if (wanted[2]) found.biases.push_back(its.sum(0));
  }
  return found;
}

class GroupedLinear : public torch::autograd::Function<GroupedLinear> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, TensorList weights, TensorList biases, const Call& call) {
    static const auto op = raw_operator<Tensor(const Tensor&, const Tensor&, const Tensor&, TensorList, TensorList,
                                               at::IntArrayRef, c10::SymInt, bool)>("routing_ext::grouped_linear");
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor y = op.call(x, call.order, call.layout, weights, biases, call.modules, call.out_features, call.relu);
    const bool wants_x = x.requires_grad(), wants_weights = any_requires_grad(weights);
    variable_list saved{call.order, call.layout, wants_weights ? x : Tensor(), call.relu ? y : Tensor()};
    if (wants_x) saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["modules"] = call.modules;
    ctx->saved_data["in_features"] = x.size(1);
    ctx->saved_data["wanted"] = int64_t{wants_x} | int64_t{wants_weights} << 1 | int64_t{any_requires_grad(biases)} << 2;
    ctx->saved_data["with_biases"] = !biases.empty();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = raw_operator<std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>(
        const Tensor&, const std::optional<Tensor>&, const std::optional<Tensor>&, const Tensor&, const Tensor&, TensorList,
        at::IntArrayRef, c10::SymInt, std::array<bool, 3>)>("routing_ext::grouped_linear_backward");
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &order = saved[0], &layout = saved[1], &x = saved[2], &y = saved[3];
    const std::vector<int64_t> modules = ctx->saved_data["modules"].toIntVector();
    const int64_t bits = ctx->saved_data["wanted"].toInt();
    const std::array<bool, 3> wanted{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
    const TensorList weights = TensorList(saved).slice(4);
    Gradients found;
    if (at::GradMode::is_enabled()) {
      found = differentiable_gradients(grads[0], y, x, order, layout, weights, modules, wanted);
    } else {
      const auto given = [](const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; };
      std::tie(found.x, found.weights, found.biases) = op.call(grads[0], given(y), given(x), order, layout, weights, modules,
                                                               ctx->saved_data["in_features"].toInt(), wanted);
      if (!wanted[0]) found.x = Tensor();
    }
    found.weights.resize(modules.size());
    if (ctx->saved_data["with_biases"].toBool()) found.biases.resize(modules.size());
    variable_list all{std::move(found.x)};
    all.insert(all.end(), found.weights.begin(), found.weights.end());
    all.insert(all.end(), found.biases.begin(), found.biases.end());
    all.emplace_back();  // the call's
    return all;
  }
};

Tensor grouped_linear_node(const Tensor& x, const Tensor& order, const Tensor& layout, TensorList weights, TensorList biases,
                           at::IntArrayRef modules, int64_t out_features, bool relu) {
  CHECK_ARG("grouped_linear_node", "x", x.is_cpu(), "must be on the CPU, where the layout can be read, got ", x.device());
  return GroupedLinear::apply(x, weights, biases, Call{order, layout, modules, out_features, relu});
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeImplicitAutograd, m) { m.impl("grouped_linear_node", grouped_linear_node); }

}  // namespace routing_ext::autograd
