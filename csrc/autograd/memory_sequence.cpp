// A memory network over a sequence with a gradient: one node of the graph.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "raw.h"

namespace routing_ext::autograd {
namespace {

using at::Tensor, at::TensorList;
using torch::autograd::AutogradContext, torch::autograd::variable_list;
using Results = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>;

constexpr size_t kLink = 3;  // its place in the state of a DNC

// What has no gradient of its own.
struct Call : torch::CustomClassHolder {
  std::string model;
  std::vector<double> options;
  c10::SymInt num_locations;
  double clip_value;
  c10::SymInt link_every;

  Call(std::string_view model, at::ArrayRef<double> options, c10::SymInt num_locations, double clip_value,
       c10::SymInt link_every)
      : model(model),
        options(options.vec()),
        num_locations(std::move(num_locations)),
        clip_value(clip_value),
        link_every(std::move(link_every)) {}

  Results forward(const Tensor& x, TensorList state, TensorList weights, bool keep) const {
    static const auto op = raw_operator<Results(std::string_view, at::ArrayRef<double>, const Tensor&, TensorList, TensorList,
                                                c10::SymInt, double, c10::SymInt, bool)>("routing_ext::memory_sequence");
    return op.call(model, options, x, state, weights, num_locations, clip_value, link_every, keep);
  }
  Results backward(const variable_list& grads, const Tensor& x, const Tensor& link, TensorList weights, TensorList tape,
                   std::array<bool, 3> wanted) const {
    static const auto op =
        raw_operator<Results(std::string_view, at::ArrayRef<double>, const std::optional<Tensor>&,
                             const c10::List<std::optional<Tensor>>&, const Tensor&, const std::optional<Tensor>&, TensorList,
                             TensorList, c10::SymInt, double, c10::SymInt, std::array<bool, 3>)>(
            "routing_ext::memory_sequence_backward");
    const auto given = [](const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; };
    c10::List<std::optional<Tensor>> of_state;
    of_state.reserve(grads.size() - 1);
    for (size_t i = 1; i < grads.size(); ++i) of_state.push_back(given(grads[i]));
    return op.call(model, options, given(grads[0]), of_state, x, given(link), weights, tape, num_locations, clip_value,
                   link_every, wanted);
  }
};
using CallPtr = c10::intrusive_ptr<Call>;

bool any_requires_grad(TensorList tensors) {
  return std::ranges::any_of(tensors, [](const Tensor& t) { return t.requires_grad(); });
}

class MemorySequence : public torch::autograd::Function<MemorySequence> {
 public:
  // y and the final state.
  static variable_list forward(AutogradContext* ctx, const Tensor& x, TensorList state, TensorList weights,
                               const CallPtr& call) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, results, tape] = call->forward(x, state, weights, /*keep=*/true);
    results.insert(results.begin(), std::move(y));
    variable_list saved{x, call->model == "dnc" && !state.empty() ? state[kLink] : Tensor()};
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.insert(saved.end(), tape.begin(), tape.end());
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->saved_data["weights"] = static_cast<int64_t>(weights.size());
    ctx->saved_data["states"] = static_cast<int64_t>(state.size());
    ctx->saved_data["wanted"] =
        int64_t{x.requires_grad()} | int64_t{any_requires_grad(weights)} << 1 | int64_t{any_requires_grad(state)} << 2;
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto call = c10::static_intrusive_pointer_cast<Call>(ctx->saved_data["call"].toCapsule());
    TORCH_CHECK(!at::GradMode::is_enabled(), call->model, "_sequence: has no second derivative, got create_graph=True");
    const variable_list saved = ctx->get_saved_variables();
    const size_t weights = ctx->saved_data["weights"].toInt(), states = ctx->saved_data["states"].toInt();
    const int64_t bits = ctx->saved_data["wanted"].toInt();
    const std::array<bool, 3> wanted{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
    const TensorList rest = TensorList(saved).slice(2);
    auto [of_x, of_weights, of_state] =
        call->backward(grads, saved[0], saved[1], rest.slice(0, weights), rest.slice(weights), wanted);
    of_state.resize(states), of_weights.resize(weights);  // undefined what is not wanted
    variable_list all{wanted[0] ? std::move(of_x) : Tensor()};
    all.reserve(2 + states + weights);
    std::ranges::move(of_state, std::back_inserter(all));
    std::ranges::move(of_weights, std::back_inserter(all));
    all.emplace_back();  // the call's
    return all;
  }
};

std::tuple<Tensor, std::vector<Tensor>> memory_sequence_node(std::string_view model, at::ArrayRef<double> options,
                                                             const Tensor& x, TensorList state, TensorList weights,
                                                             c10::SymInt num_locations, double clip_value,
                                                             c10::SymInt link_every) {
  const auto call = c10::make_intrusive<Call>(model, options, std::move(num_locations), clip_value, std::move(link_every));
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || any_requires_grad(weights) || any_requires_grad(state))) {
    auto [y, final_state, _] = call->forward(x, state, weights, /*keep=*/false);
    return {std::move(y), std::move(final_state)};
  }
  variable_list results = MemorySequence::apply(x, state, weights, call);
  Tensor y = std::move(results.front());
  results.erase(results.begin());
  return {std::move(y), std::move(results)};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeImplicitAutograd, m) { m.impl("memory_sequence_node", memory_sequence_node); }

}  // namespace routing_ext::autograd
