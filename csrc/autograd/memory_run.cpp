// A memory network step by step, with a gradient and as fast as a whole sequence: nothing of the state is copied from step to
// step.
//
// All steps of a run work on one tape. What autograd sees of the state is a token, a tensor without content that each step
// takes and gives: it orders the backward passes of the steps, which hand the gradient of the state on in place.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "../common/memory_options_args.h"
#include "../common/memory_stepper.h"
#include "given.h"
#include "raw.h"

namespace routing_ext::autograd {
namespace {

using at::Tensor, at::TensorList;
using torch::autograd::AutogradContext, torch::autograd::variable_list;
using Numbers = at::ArrayRef<double>;

constexpr size_t kLink = 3;          // its place in the state of a DNC
constexpr int64_t kMostSteps = 256;  // of one piece of a tape

// What a run is of. sizes: I, H, O, N, W, V, R, S.
struct Network {
  std::string model;
  std::vector<double> options;
  std::vector<int64_t> sizes;
  double clip_value;

  bool is_linked() const { return model == "dnc" && !memory_options("memory_step", options).unlinked; }
  int64_t inputs() const { return sizes[0]; }
  int64_t locations() const { return sizes[3]; }
  int64_t writes() const { return sizes[5]; }
};

// ---- raw operators ---------------------------------------------------------------------------------------------------------

Tensor pooled_empty(at::IntArrayRef shape, const Tensor& like) {
  static const auto op = raw_operator<Tensor(at::IntArrayRef, const Tensor&)>("routing_ext::pooled_empty");
  return op.call(shape, like);
}

Tensor pack(const Network& net, TensorList weights, bool backward) {
  static const auto op =
      raw_operator<Tensor(std::string_view, Numbers, const Tensor&, TensorList, int64_t, bool)>("routing_ext::memory_pack");
  return op.call(net.model, net.options, at::empty({0, 0, net.inputs()}, weights[0].options()), weights, net.locations(),
                 backward);
}

// ---- weights ---------------------------------------------------------------------------------------------------------------

// Differs, but for a chance of 2^-64, where the values of a tensor do. None on other devices, where the host would wait for
// them.
std::optional<uint64_t> fingerprint(const Tensor& t) {
  if (!t.is_cpu() || !t.is_contiguous()) return std::nullopt;
  std::array<uint64_t, 8> lanes{1, 2, 3, 4, 5, 6, 7, 8};  // so many products in flight
  const auto mix = [](uint64_t& lane, uint64_t word) { lane = std::rotl((lane ^ word) * 0x9E3779B97F4A7C15u, 29); };
  const char* bytes = static_cast<const char*>(t.const_data_ptr());
  size_t left = t.nbytes();
  for (std::array<uint64_t, 8> words; left >= sizeof(words); bytes += sizeof(words), left -= sizeof(words)) {
    std::memcpy(words.data(), bytes, sizeof(words));
    for (size_t i = 0; i < words.size(); ++i) mix(lanes[i], words[i]);
  }
  std::array<uint64_t, 8> rest{};
  std::memcpy(rest.data(), bytes, left);
  for (const uint64_t word : rest) mix(lanes[0], word);
  for (size_t i = 1; i < lanes.size(); ++i) mix(lanes[0], lanes[i]);
  return lanes[0];
}

// The parameters as the kernels want them, for as long as they do not change.
class PackedWeights : public torch::CustomClassHolder {
 public:
  PackedWeights(Network network, std::vector<Tensor> given) : net(std::move(network)), given_(std::move(given)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    for (const Tensor& w : given_) {
      seen_.push_back({w._version(), w.const_data_ptr(), w.requires_grad(), fingerprint(w)});
      weights.push_back(w.detach());
    }
    forward_ = pack(net, given_, false);
  }

  // Whether these are the same tensors, unchanged as far as autograd knows, and frozen or not as they were.
  bool are_of(TensorList others) const {
    for (size_t i = 0; i < given_.size(); ++i) {
      const Tensor& w = others[i];
      const Seen& seen = seen_[i];
      if (!w.is_same(given_[i]) || w._version() != seen.version || w.const_data_ptr() != seen.place ||
          w.requires_grad() != seen.requires_grad) {
        return false;
      }
    }
    return others.size() == given_.size();
  }
  // Whether, moreover, nothing has changed them without autograd's knowledge, as `.data` does.
  bool have_values_of(TensorList others) const {
    if (!are_of(others)) return false;
    for (size_t i = 0; i < given_.size(); ++i) {
      if (!seen_[i].values || fingerprint(others[i]) != seen_[i].values) return false;
    }
    return true;
  }

  const Network net;
  const std::vector<Tensor>& with_history() const { return given_; }
  const Tensor& forward() const { return forward_; }
  const Tensor& backward() {
    const std::lock_guard lock(mutex_);  // of passes on several threads
    if (backward_.defined()) return backward_;
    for (size_t i = 0; i < given_.size(); ++i) {
      TORCH_CHECK(given_[i]._version() == seen_[i].version,
                  "one of the variables needed for gradient computation has been modified by an inplace operation: parameter ",
                  i, " of the network, ", given_[i].sizes(), ", is at version ", given_[i]._version(), ", expected ",
                  seen_[i].version);
    }
    return backward_ = pack(net, given_, true);
  }

  std::vector<Tensor> weights;  // without history

 private:
  struct Seen {
    int64_t version;
    const void* place;
    bool requires_grad;
    std::optional<uint64_t> values;
  };
  const std::vector<Tensor> given_;
  std::vector<Seen> seen_;
  Tensor forward_, backward_;
  std::mutex mutex_;
};
using PackedWeightsPtr = c10::intrusive_ptr<PackedWeights>;

// ---- the tape --------------------------------------------------------------------------------------------------------------

// Consecutive steps on one tensor: row 0 is the state before the first of them.
struct Piece {
  int64_t first, steps;
  Tensor tape, inputs;  // [steps+1,B,row], [steps,B,I]
};

// One backward pass: the gradient of the state, handed on from step to step.
struct Pass {
  std::optional<int64_t> time;                         // the gradient below is that of the state at this time
  Tensor state, link;                                  // [B,state], [B,V,N,n]
  std::map<int64_t, Tensor> grads;                     // of each piece, by its first step: [steps,B,gradients]
  int64_t last = 0;                                    // the steps before this time have run
  std::map<int64_t, std::vector<variable_list>> read;  // gradients of states that were looked at, by their time
  std::map<int64_t, Tensor> links;                     // that were computed again, by their time
};

// The steps of a run, and their backward passes. Refers to no tensor with a history but the parameters.
class Tape : public torch::CustomClassHolder {
 public:
  Tape(PackedWeightsPtr packed, int64_t batch, bool keep, int64_t steps, int64_t link_every)
      : packed_(std::move(packed)), net_(packed_->net), like_(packed_->weights[0]), batch_(batch), keep_(keep) {
    static const auto layout = raw_operator<std::vector<int64_t>(std::string_view, Numbers, at::IntArrayRef, at::ScalarType)>(
        "routing_ext::memory_step_layout");
    const std::vector<int64_t> sizes = layout.call(net_.model, net_.options, net_.sizes, like_.scalar_type());
    row_ = sizes[0], state_size_ = sizes[1], grad_size_ = sizes[2];
    static const auto link_row = raw_operator<int64_t(const Tensor&, int64_t)>("routing_ext::memory_step_link_row");
    const int64_t n = net_.locations();
    link_shape_ = {batch, net_.writes(), n, link_row.call(like_, n)};
    link_every_ = link_every;
    add_piece(0, keep ? std::min(steps, kMostSteps) : 1);
  }

  bool keeps() const { return keep_; }
  int64_t batch() const { return batch_; }
  const PackedWeights& packed() const { return *packed_; }

  // As the first state; none for the initial one.
  void import_state(TensorList state) {
    Tensor rows = pieces_[0].tape.select(0, 0);
    import_rows(given(state), false, rows);
    if (!net_.is_linked() || state.empty()) return;
    const Tensor& link = state[kLink];
    link_ = at::constant_pad_nd(link, {0, link_shape_.back() - link.size(-1)}).contiguous();
    links_[0] = link_;
  }

  variable_list export_state(int64_t time) {
    variable_list state = export_rows(row(time));
    if (net_.is_linked()) state[kLink] = link_.defined() ? unpadded(link_) : at::zeros(unpadded_shape(), like_.options());
    return state;
  }

  // The step from `time` to `time + 1`.
  Tensor forward(const Tensor& x, int64_t time) {
    static const auto op =
        raw_operator<Tensor(std::string_view, Numbers, at::IntArrayRef, double, const Tensor&, const Tensor&, Tensor&, Tensor&,
                            const Given&, const Given&, int64_t, int64_t)>("routing_ext::memory_step");
    int64_t from = time % 2, to = 1 - time % 2;
    if (keep_) {
      if (time - pieces_.back().first == pieces_.back().steps) go_on_from(time);
      from = time - pieces_.back().first, to = from + 1;
    }
    const Tensor previous = link_;
    if (net_.is_linked()) {
      const bool kept = keep_ && (time + 1) % link_every_ == 0, was_kept = keep_ && time % link_every_ == 0;
      if (kept || was_kept || !previous.defined()) link_ = pooled_empty(link_shape_, like_);
      if (kept) links_[time + 1] = link_;
    }
    Piece& piece = pieces_.back();
    return op.call(net_.model, net_.options, net_.sizes, net_.clip_value, packed_->forward(), x, piece.tape, piece.inputs,
                   given(previous), given(link_), from, to);
  }

  // Of the step from `time` to `time + 1`: the gradient of x.
  Tensor backward(int64_t time, const Tensor& grad_y, bool wants_x) {
    static const auto op =
        raw_operator<Tensor(std::string_view, Numbers, at::IntArrayRef, double, const Tensor&, const Given&, const Tensor&,
                            const Given&, int64_t, Tensor&, const Given&, Tensor&, bool)>("routing_ext::memory_step_backward");
    const Tensor& packed = packed_->backward();
    Pass& pass = current();
    const Piece& piece = at(time);
    gradient_at(pass, time + 1);
    Tensor& grads = pass.grads[piece.first];
    if (!grads.defined()) grads = pooled_empty({piece.steps, batch_, grad_size_}, like_);
    const Tensor previous = net_.is_linked() ? link_at(pass, time) : Tensor();
    Tensor of_x = op.call(net_.model, net_.options, net_.sizes, net_.clip_value, packed, given(grad_y), piece.tape,
                          given(previous), time - piece.first, pass.state, given(pass.link), grads, wants_x);
    pass.time = time, pass.last = std::max(pass.last, time + 1);
    return wants_x ? of_x : Tensor();
  }

  void read_backward(int64_t time, const variable_list& grads) { current().read[time].push_back(grads); }

  // The gradients of the first state and then of the weights, undefined if not wanted.
  variable_list finish(size_t states, bool wants_weights) {
    static const auto op =
        raw_operator<std::vector<Tensor>(std::string_view, Numbers, TensorList, int64_t, const Tensor&, const Tensor&,
                                         const Tensor&)>("routing_ext::memory_step_weight_gradients");
    Pass& pass = current();
    variable_list weights(packed_->weights.size()), all;
    if (states > 0) {
      gradient_at(pass, 0);
      all = export_rows(pass.state);
      if (net_.is_linked()) all[kLink] = unpadded(pass.link);
    }
    if (wants_weights) {
      for (const auto& [first, grads] : pass.grads) {
        const Piece& piece = at(first);
        const int64_t steps = std::min(pass.last - first, piece.steps);
        const variable_list more =
            op.call(net_.model, net_.options, packed_->weights, net_.locations(), piece.inputs.narrow(0, 0, steps),
                    piece.tape.narrow(0, 0, steps + 1), grads.narrow(0, 0, steps));
        for (size_t i = 0; i < weights.size(); ++i) weights[i].defined() ? weights[i].add_(more[i]) : weights[i] = more[i];
      }
    }
    end(torch::autograd::get_current_graph_task_id());
    std::ranges::move(weights, std::back_inserter(all));
    return all;
  }

 private:
  void add_piece(int64_t first, int64_t steps) {
    pieces_.push_back(
        {first, steps, pooled_empty({steps + 1, batch_, row_}, like_), pooled_empty({steps, batch_, net_.inputs()}, like_)});
  }
  // Another piece, which begins with the state at `time`, the end of the last one.
  void go_on_from(int64_t time) {
    add_piece(time, std::min(2 * pieces_.back().steps, kMostSteps));
    const auto state = [&](const Piece& piece, int64_t i) { return piece.tape.select(0, i).narrow(1, 0, state_size_); };
    const Piece& before = pieces_[pieces_.size() - 2];
    state(pieces_.back(), 0).copy_(state(before, before.steps));
  }
  const Piece& at(int64_t step) const {
    return *std::find_if(pieces_.rbegin(), pieces_.rend(), [&](const Piece& piece) { return piece.first <= step; });
  }
  Tensor row(int64_t time) const {
    if (!keep_) return pieces_[0].tape.select(0, time % 2);
    const Piece& piece = at(std::max<int64_t>(time - 1, 0));
    return piece.tape.select(0, time - piece.first);
  }

  // state: or its gradient.
  void import_rows(const c10::List<Given>& state, bool is_gradient, Tensor& rows) const {
    static const auto op = raw_operator<void(std::string_view, Numbers, const Tensor&, TensorList, int64_t,
                                             const c10::List<Given>&, bool, Tensor&)>("routing_ext::memory_step_import");
    op.call(net_.model, net_.options, pieces_[0].inputs, packed_->weights, net_.locations(), state, is_gradient, rows);
  }
  variable_list export_rows(const Tensor& rows) const {
    static const auto op =
        raw_operator<std::vector<Tensor>(std::string_view, Numbers, const Tensor&, TensorList, int64_t, const Tensor&)>(
            "routing_ext::memory_step_export");
    return op.call(net_.model, net_.options, pieces_[0].inputs, packed_->weights, net_.locations(), rows);
  }
  std::vector<int64_t> unpadded_shape() const { return {link_shape_[0], link_shape_[1], net_.locations(), net_.locations()}; }
  Tensor unpadded(const Tensor& link) const {
    return link.narrow(-1, 0, net_.locations()).clone(at::MemoryFormat::Contiguous);
  }

  // Passes may be under way on several threads, or one from a hook of another. Some never come to the first step.
  Pass& current() {
    const int task = torch::autograd::get_current_graph_task_id();
    const std::lock_guard lock(mutex_);
    const auto [pass, is_new] = passes_.try_emplace(task);
    if (is_new) {
      auto self = c10::intrusive_ptr<Tape>::reclaim_copy(this);
      torch::autograd::Engine::get_default_engine().queue_callback([self, task] { self->end(task); });
    }
    return pass->second;
  }
  void end(int task) {
    const std::lock_guard lock(mutex_);
    passes_.erase(task);
  }
  // Makes the gradient of the pass that of the state at `time`, of which all that follows has been gone through.
  void gradient_at(Pass& pass, int64_t time) const {
    if (!pass.state.defined()) {
      pass.state = pooled_empty({batch_, state_size_}, like_);
      if (net_.is_linked()) pass.link = pooled_empty(link_shape_, like_);
    }
    if (pass.time != time) {
      pass.state.zero_();
      if (net_.is_linked()) pass.link.zero_();
    }
    pass.time = time;
    const auto found = pass.read.find(time);
    if (found == pass.read.end()) return;
    for (const variable_list& grads : found->second) {
      Tensor rows = at::zeros_like(pass.state);
      import_rows(given(grads), true, rows);
      pass.state.add_(rows);
      if (net_.is_linked() && grads[kLink].defined()) pass.link.narrow(-1, 0, net_.locations()).add_(grads[kLink]);
    }
    pass.read.erase(found);
  }
  Tensor link_at(Pass& pass, int64_t time) const {
    static const auto relink =
        raw_operator<void(std::string_view, Numbers, at::IntArrayRef, const Tensor&, const Given&, Tensor&, int64_t)>(
            "routing_ext::memory_step_relink");
    const int64_t kept = time / link_every_ * link_every_;
    const auto at_kept = links_.find(kept);
    Tensor link = at_kept == links_.end() ? Tensor() : at_kept->second;
    if (time == kept) return link;
    if (const auto made = pass.links.find(time); made != pass.links.end()) return made->second;
    pass.links.clear();
    for (int64_t step = kept; step < time; ++step) {
      const Piece& piece = at(step);
      Tensor following = pooled_empty(link_shape_, like_);
      relink.call(net_.model, net_.options, net_.sizes, piece.tape, given(link), following, step - piece.first);
      link = pass.links[step + 1] = following;
    }
    return link;
  }

  const PackedWeightsPtr packed_;
  const Network& net_;
  const Tensor like_;
  const int64_t batch_;
  const bool keep_;
  int64_t row_, state_size_, grad_size_, link_every_;
  std::vector<int64_t> link_shape_;  // padded
  std::vector<Piece> pieces_;
  std::map<int64_t, Tensor> links_;  // padded; the kept ones, by their time
  Tensor link_;                      // padded; of the last state; undefined: zero, with no precedence
  std::map<int, Pass> passes_;       // by autograd's number for them
  std::mutex mutex_;                 // of passes_
};
using TapePtr = c10::intrusive_ptr<Tape>;

// ---- nodes -----------------------------------------------------------------------------------------------------------------

// What the nodes below keep of a run.
void keep(AutogradContext* ctx, const TapePtr& tape, int64_t time) {
  ctx->saved_data["tape"] = c10::IValue::make_capsule(tape);
  ctx->saved_data["time"] = time;
  ctx->set_materialize_grads(false);
}
TapePtr tape_of(AutogradContext* ctx) {
  TORCH_CHECK(!at::GradMode::is_enabled(), "memory_step: has no second derivative, got create_graph=True");
  return c10::static_intrusive_pointer_cast<Tape>(ctx->saved_data["tape"].toCapsule());
}
int64_t time_of(AutogradContext* ctx) { return ctx->saved_data["time"].toInt(); }

// The first token. Its backward pass comes last, and gives the gradients of the first state and of the weights.
class Begin : public torch::autograd::Function<Begin> {
 public:
  static Tensor forward(AutogradContext* ctx, TensorList state, TensorList weights, const TapePtr& tape) {
    keep(ctx, tape, 0);
    ctx->save_for_backward(variable_list(weights.begin(), weights.end()));
    const auto requires_grad = [](const Tensor& t) { return t.requires_grad(); };
    ctx->saved_data["states"] = static_cast<int64_t>(std::ranges::any_of(state, requires_grad) ? state.size() : 0);
    ctx->saved_data["given"] = static_cast<int64_t>(state.size());
    ctx->saved_data["wants_weights"] = std::ranges::any_of(weights, requires_grad);
    return at::empty({}, weights[0].options());
  }
  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    const TapePtr tape = tape_of(ctx);
    ctx->get_saved_variables();  // raises if a parameter has changed
    const at::AutoDispatchBelowADInplaceOrView guard;
    const size_t states = ctx->saved_data["states"].toInt(), given = ctx->saved_data["given"].toInt();
    variable_list all = tape->finish(states, ctx->saved_data["wants_weights"].toBool());
    if (states == 0) all.insert(all.begin(), given, Tensor());
    all.emplace_back();  // the tape's
    return all;
  }
};

// y and the next token.
class Step : public torch::autograd::Function<Step> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& token, const TapePtr& tape, int64_t time) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    keep(ctx, tape, time);
    return {tape->forward(x, time), at::empty({}, token.options())};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const TapePtr tape = tape_of(ctx);
    const at::AutoDispatchBelowADInplaceOrView guard;
    return {tape->backward(time_of(ctx), grads[0], ctx->needs_input_grad(0)), Tensor(), Tensor(), Tensor()};
  }
};

// The state at a time, for who looks at it.
class Read : public torch::autograd::Function<Read> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& token, const TapePtr& tape, int64_t time) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    keep(ctx, tape, time);
    return tape->export_state(time);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    tape_of(ctx)->read_backward(time_of(ctx), grads);
    return {Tensor(), Tensor(), Tensor()};
  }
};

// ---- runs ------------------------------------------------------------------------------------------------------------------

// A memory network taking one step after another.
class MemoryRun : public MemoryStepper {
 public:
  // state: before the first step; none: the initial one. steps: memory for so many is taken at once.
  MemoryRun(const PackedWeightsPtr& packed, const std::vector<Tensor>& state, int64_t batch, int64_t steps, int64_t link_every)
      : tape_(c10::make_intrusive<Tape>(packed, batch, at::GradMode::is_enabled(), steps, link_every)) {
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      tape_->import_state(state);
    }
    if (tape_->keeps()) token_ = Begin::apply(TensorList(state), TensorList(packed->with_history()), tape_);
  }

  int64_t time() const { return time_; }
  Given step(const Tensor& x, TensorList weights) override {
    if (tape_->keeps() != at::GradMode::is_enabled() || !tape_->packed().are_of(weights)) return std::nullopt;
    Tensor y;
    if (tape_->keeps()) {
      variable_list results = Step::apply(x.contiguous(), token_, tape_, time_);
      y = std::move(results[0]), token_ = std::move(results[1]);
    } else {
      y = tape_->forward(x.contiguous(), time_);
    }
    ++time_;
    return y;
  }
  // After the last step: tensors of their own, through which gradients flow.
  std::vector<Tensor> state() const { return tape_->keeps() ? Read::apply(token_, tape_, time_) : tape_->export_state(time_); }

 private:
  const TapePtr tape_;
  Tensor token_;
  int64_t time_ = 0;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(routing_ext, m) {
  m.class_<PackedWeights>("PackedWeights")
      .def(torch::init([](std::string model, std::vector<double> options, std::vector<int64_t> sizes, double clip_value,
                          std::vector<Tensor> weights) {
        return c10::make_intrusive<PackedWeights>(Network{std::move(model), std::move(options), std::move(sizes), clip_value},
                                                  std::move(weights));
      }))
      .def("have_values_of",
           [](const PackedWeightsPtr& self, const std::vector<Tensor>& weights) { return self->have_values_of(weights); });
  m.class_<MemoryRun>("MemoryRun")
      .def(torch::init<PackedWeightsPtr, std::vector<Tensor>, int64_t, int64_t, int64_t>())
      .def("time", &MemoryRun::time)
      .def("address",
           [](const c10::intrusive_ptr<MemoryRun>& self) {
             return reinterpret_cast<int64_t>(static_cast<MemoryStepper*>(self.get()));
           })
      .def("step", [](const c10::intrusive_ptr<MemoryRun>& self, const Tensor& x,
                      const std::vector<Tensor>& weights) { return self->step(x, weights); })
      .def("state", &MemoryRun::state);
}

}  // namespace routing_ext::autograd
