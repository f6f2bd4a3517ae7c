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

#include "given.h"
#include "raw.h"

namespace routing_ext::autograd {
namespace {

using at::Tensor, at::TensorList;
using torch::autograd::AutogradContext, torch::autograd::variable_list;
using Results = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>;

constexpr size_t kLink = 3;  // its place in the state of a DNC

// What has no gradient.
struct Call : torch::CustomClassHolder {
  std::string model;
  std::vector<double> options;
  std::vector<c10::SymInt> sizes;
  double clip_value;
  c10::SymInt link_every;
  std::vector<bool> given_state;  // which parts of it there are

  Call(std::string_view model, at::ArrayRef<double> options, c10::SymIntArrayRef sizes, double clip_value,
       c10::SymInt link_every, const c10::List<Given>& state)
      : model(model), options(options.vec()), sizes(sizes.vec()), clip_value(clip_value), link_every(std::move(link_every)) {
    for (size_t i = 0; i < state.size(); ++i) given_state.push_back(state.get(i).has_value());
  }

  // state, here and below: the parts of it that there are.
  Results forward(const Tensor& x, TensorList state, TensorList weights, const Given& lengths, const Given& resets,
                  const Given& reset_memory, bool keep) const {
    static const auto op =
        raw_operator<Results(std::string_view, at::ArrayRef<double>, const Tensor&, const c10::List<Given>&, TensorList,
                             const Given&, const Given&, const Given&, c10::SymIntArrayRef, double, c10::SymInt, bool)>(
            "routing_ext::memory_sequence");
    c10::List<Given> all;
    for (const bool there : given_state) all.push_back(there ? Given(*state.begin()) : Given()), state = state.slice(there);
    return op.call(model, options, x, all, weights, lengths, resets, reset_memory, sizes, clip_value, link_every, keep);
  }
  Tensor link(TensorList state) const {
    const bool there = model == "dnc" && !given_state.empty() && given_state[kLink];
    return there ? state[std::count(given_state.begin(), given_state.begin() + kLink, true)] : Tensor();
  }
  auto backward(const variable_list& grads, const Tensor& x, const Tensor& link, TensorList weights, const Tensor& lengths,
                const Tensor& resets, const Tensor& reset_memory, TensorList tape, std::array<bool, 4> wanted) const {
    using Gradients = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor>;
    static const auto op = raw_operator<Gradients(
        std::string_view, at::ArrayRef<double>, const Given&, const c10::List<Given>&, const Tensor&, const Given&, TensorList,
        const Given&, const Given&, const Given&, TensorList, c10::SymIntArrayRef, double, c10::SymInt, std::array<bool, 4>)>(
        "routing_ext::memory_sequence_backward");
    return op.call(model, options, given(grads[0]), given(TensorList(grads).slice(1)), x, given(link), weights, given(lengths),
                   given(resets), given(reset_memory), tape, sizes, clip_value, link_every, wanted);
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
                               const Given& reset_memory, const Given& lengths, const Given& resets, const CallPtr& call) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, results, tape] = call->forward(x, state, weights, lengths, resets, reset_memory, /*keep=*/true);
    results.insert(results.begin(), std::move(y));
    const auto or_undefined = [](const Given& t) { return t.value_or(Tensor()); };
    variable_list saved{x, call->link(state), or_undefined(lengths), or_undefined(resets), or_undefined(reset_memory)};
    ctx->saved_data["others"] = static_cast<int64_t>(saved.size());
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.insert(saved.end(), tape.begin(), tape.end());
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->saved_data["weights"] = static_cast<int64_t>(weights.size());

    ctx->saved_data["wanted"] = int64_t{x.requires_grad()} | int64_t{any_requires_grad(weights)} << 1 |
                                int64_t{any_requires_grad(state)} << 2 |
                                int64_t{reset_memory && reset_memory->requires_grad()} << 3;
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto call = c10::static_intrusive_pointer_cast<Call>(ctx->saved_data["call"].toCapsule());
    TORCH_CHECK(!at::GradMode::is_enabled(), call->model, "_sequence: has no second derivative, got create_graph=True");
    const variable_list saved = ctx->get_saved_variables();
    const size_t weights = ctx->saved_data["weights"].toInt();
    const int64_t bits = ctx->saved_data["wanted"].toInt();
    const std::array<bool, 4> wanted{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
    const TensorList rest = TensorList(saved).slice(ctx->saved_data["others"].toInt());
    auto [of_x, of_weights, of_state, of_reset_memory] = call->backward(
        grads, saved[0], saved[1], rest.slice(0, weights), saved[2], saved[3], saved[4], rest.slice(weights), wanted);
    const std::vector<bool>& given_state = call->given_state;
    of_state.resize(given_state.size()), of_weights.resize(weights);  // undefined what is not wanted
    variable_list all{wanted[0] ? std::move(of_x) : Tensor()};
    all.reserve(5 + of_state.size() + weights);
    for (size_t i = 0; i < given_state.size(); ++i) {
      if (given_state[i]) all.push_back(std::move(of_state[i]));
    }
    std::ranges::move(of_weights, std::back_inserter(all));
    all.push_back(wanted[3] ? std::move(of_reset_memory) : Tensor());
    all.resize(all.size() + 3);  // of lengths, resets and the call: none
    return all;
  }
};

std::tuple<Tensor, std::vector<Tensor>> memory_sequence_node(std::string_view model, at::ArrayRef<double> options,
                                                             const Tensor& x, const c10::List<Given>& given_state,
                                                             TensorList weights, const Given& lengths, const Given& resets,
                                                             const Given& reset_memory, c10::SymIntArrayRef sizes,
                                                             double clip_value, c10::SymInt link_every) {
  const auto call = c10::make_intrusive<Call>(model, options, sizes, clip_value, std::move(link_every), given_state);
  std::vector<Tensor> state;
  for (size_t i = 0; i < given_state.size(); ++i) {
    if (const Given t = given_state.get(i)) state.push_back(*t);
  }
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || any_requires_grad(weights) || any_requires_grad(state) ||
                                       (reset_memory && reset_memory->requires_grad()))) {
    auto [y, final_state, _] = call->forward(x, state, weights, lengths, resets, reset_memory, /*keep=*/false);
    return {std::move(y), std::move(final_state)};
  }
  variable_list results = MemorySequence::apply(x, TensorList(state), weights, reset_memory, lengths, resets, call);
  Tensor y = std::move(results.front());
  results.erase(results.begin());
  return {std::move(y), std::move(results)};
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeImplicitAutograd, m) { m.impl("memory_sequence_node", memory_sequence_node); }

}  // namespace routing_ext::autograd
