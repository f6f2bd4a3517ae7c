// The arguments of memory_sequence and its backward pass, checked. Shared by the CPU and the CUDA glue.
//
// T steps, B samples, I inputs, H hidden units, O outputs, N locations of W elements, V write heads, R read heads, S shifts.
//
// A network may be without an output layer, O = 0: its outputs are the features, the hidden state and then the read vectors.
// Or it is the memory alone, H = 0, too: its inputs are interface vectors, its outputs the read vectors. Its controller may be
// deaf: it does not hear what was read.
#pragma once
#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <vector>

#include "checks.h"
#include "memory_links.h"
#include "memory_options_args.h"

namespace routing_ext {

using Shape = at::DimVector;

// The sizes of a network, as its weights tell them.
struct MemorySizes {
  bool dnc;
  int64_t steps, batch, input, hidden, output;     // T, B, I, H, O
  int64_t locations, word, writes, reads, shifts;  // N, W, V, R, S
  bool deaf = false;
  std::vector<int64_t> interface;   // outputs of each part
  int64_t interface_size;           // of all
  std::vector<int64_t> first_rows;  // of each part in the matrix of a joined interface; empty: each has a matrix of its own
  MemoryOptions options;
  bool linked;  // a DNC with a link

  // The weights: four of the LSTM, weight and bias of each part of the interface, of its normalisation if there is one and,
  // perhaps, of the output layer. With a joined interface the controller may be deaf: then the first one has I columns.
  // sizes: N; for a joined interface, and for the memory alone, which has no weights, N, W, V, R and S, and for a joined
  // interface perhaps the parts by their numbers, in the order in which they lie there.
  MemorySizes(const char* op, std::string_view model, at::ArrayRef<double> options_, const at::Tensor& x,
              at::TensorList weights, at::IntArrayRef sizes)
      : dnc(model == "dnc"),
        hidden(0),
        output(0),
        locations(sizes.empty() ? 0 : sizes[0]),
        options(memory_options(op, options_)),
        linked(dnc && !options.unlinked) {
    CHECK_ARG(op, "model", dnc || model == "ntm", "must be dnc or ntm, got ", model);
    CHECK_DIM(op, x, 3);
    CHECK_ARG(op, "x", x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, "must be float32 or float64, got ",
              x.scalar_type());
    CHECK_ARG(op, "num_locations", locations >= 1, "must be at least 1, got ", locations);
    steps = x.size(0), batch = x.size(1), input = x.size(2);
    if (weights.empty()) {
      of_memory(op, sizes);
      return;
    }
    const bool joined = sizes.size() > 1;
    const int64_t pairs = (joined ? 1 : InterfaceParts(dnc, 1, 1, 1, 1, options).count) + (options.normalises ? 1 : 0);
    const size_t without_output = 4 + 2 * pairs;
    const size_t count = without_output + 2;
    CHECK_ARG(op, "weights", weights.size() == count || weights.size() == without_output, "must be ", count, " tensors for ",
              model, ", or ", without_output, " without an output layer, got ", weights.size());
    const bool has_output = weights.size() == count;
    const auto size_of = [&](size_t i, int64_t dim) {
      CHECK_ARG(op, "weights", weights[i].dim() == 2, "must have 2 dimensions at ", i, ", got ", weights[i].sizes());
      return weights[i].size(dim);
    };
    const auto part = [&](size_t p) { return size_of(4 + 2 * p, 0); };  // of the interface
    hidden = size_of(1, 1), output = has_output ? size_of(count - 2, 0) : 0;
    if (joined) {
      take_sizes(op, sizes);
    } else {
      writes = part(1), reads = part(dnc ? 7 : 8);
    }
    CHECK_ARG(op, "weights", hidden >= 1 && (output >= 1 || !has_output) && writes >= 1 && reads >= 1,
              "must be of at least one hidden unit, output, write head and read head, got ", hidden, ", ", output, ", ",
              writes, " and ", reads);
    if (!joined) word = part(0) / writes, shifts = dnc ? 0 : part(3) / writes;
    deaf = joined && size_of(0, 1) == input;
    CHECK_ARG(op, "weights", word >= 1, "must be of words of at least one element, got write keys of shape ",
              weights[4].sizes());
    CHECK_ARG(op, "weights", dnc || shifts >= 1, "must be of at least one shift, got ", shifts);

    const InterfaceParts parts(dnc, writes, reads, word, shifts, options);
    interface.assign(parts.sizes, parts.sizes + parts.count), interface_size = parts.total;
    if (joined) place_parts(op, sizes);
    const std::vector<Shape> shapes = weight_shapes();
    for (size_t i = 0; i < weights.size(); ++i) {
      const at::Tensor& w = weights[i];
      CHECK_ARG(op, "weights", w.sizes() == at::IntArrayRef(shapes[i]), "must have shape ", at::IntArrayRef(shapes[i]), " at ",
                i, ", got ", w.sizes());
      check_like(op, "weights", i, w, x);
    }
  }

  // Where the weights of the normalisation are.
  size_t norm_at() const { return 4 + 2 * (first_rows.empty() ? interface.size() : 1); }
  int64_t y_size() const { return output > 0 ? output : hidden + reads * word; }
  // Elements of the links that a tape keeps: those after steps link_every, 2 link_every, ... < T, with rows as long as the
  // CPU's.
  int64_t links_on_tape(int64_t link_every, int64_t element_size) const {
    const int64_t kept = linked && steps > 0 ? (steps - 1) / link_every : 0;
    return kept * batch * writes * locations * padded_locations(locations, element_size);
  }

  std::vector<Shape> weight_shapes() const {
    if (hidden == 0) return {};
    const int64_t heard = deaf ? 0 : reads * word;
    std::vector<Shape> shapes{{4 * hidden, input + heard}, {4 * hidden, hidden}, {4 * hidden}, {4 * hidden}};
    if (first_rows.empty()) {
      for (const int64_t n : interface) shapes.push_back({n, hidden}), shapes.push_back({n});
    } else {
      shapes.push_back({interface_size, hidden}), shapes.push_back({interface_size});
    }
    if (options.normalises) shapes.insert(shapes.end(), 2, {interface_size});
    if (output > 0) shapes.push_back({output, hidden + reads * word}), shapes.push_back({output});
    return shapes;
  }
  // memory, usage, precedence, link, write weights, read weights, hidden, cell, read vectors; NTM: without usage to link. An
  // unlinked DNC: link and precedence are empty.
  std::vector<Shape> state_shapes() const {
    const int64_t b = batch, n = locations, l = linked ? n : 0;
    std::vector<Shape> shapes{{b, n, word}};
    if (dnc) shapes.insert(shapes.end(), {{b, n}, {b, writes, l}, {b, writes, l, l}});
    shapes.insert(shapes.end(), {{b, writes, n}, {b, reads, n}, {b, hidden}, {b, hidden}, {b, reads, word}});
    return shapes;
  }
  static constexpr size_t kLink = 3;  // its place in the state

  // The state's tensors, any of them undefined: initial; `given` may be empty.
  std::vector<at::Tensor> checked_state(const char* op, const char* argument,
                                        const c10::List<std::optional<at::Tensor>>& given, const at::Tensor& like) const {
    const std::vector<Shape> shapes = state_shapes();
    CHECK_ARG(op, argument, given.empty() || given.size() == shapes.size(), "must be ", shapes.size(),
              " tensors, or none, got ", given.size());
    std::vector<at::Tensor> state;
    for (size_t i = 0; i < given.size(); ++i) {
      const std::optional<at::Tensor> t = given.get(i);
      state.push_back(t && t->defined() ? t->contiguous() : at::Tensor());
      if (!state[i].defined()) continue;
      CHECK_ARG(op, argument, t->sizes() == at::IntArrayRef(shapes[i]), "must have shape ", at::IntArrayRef(shapes[i]), " at ",
                i, ", got ", t->sizes());
      check_like(op, argument, i, *t, like);
    }
    return state;
  }

  static void check_like(const char* op, const char* argument, size_t i, const at::Tensor& t, const at::Tensor& x) {
    CHECK_ARG(op, argument, t.scalar_type() == x.scalar_type(), "must have the dtype of x, ", x.scalar_type(), ", at ", i,
              ", got ", t.scalar_type());
    CHECK_ARG(op, argument, t.device() == x.device(), "must be on ", x.device(), " at ", i, ", got ", t.device());
  }

 private:
  void take_sizes(const char* op, at::IntArrayRef sizes) {
    CHECK_ARG(op, "sizes", sizes.size() >= 5,
              "must be N, W, V, R and S where there are no weights, or an interface of one matrix, got ", sizes);
    word = sizes[1], writes = sizes[2], reads = sizes[3], shifts = dnc ? 0 : sizes[4];
    CHECK_ARG(op, "sizes", word >= 1 && writes >= 1 && reads >= 1 && (dnc || shifts >= 1),
              "must be at least 1, shifts only of an NTM, got ", sizes);
  }
  void place_parts(const char* op, at::IntArrayRef sizes) {
    const int64_t count = interface.size();
    const at::IntArrayRef order = sizes.slice(5);
    const auto part_at = [&](int64_t place) { return order.empty() ? place : order[place]; };
    CHECK_ARG(op, "sizes", order.empty() || static_cast<int64_t>(order.size()) == count, "must have ", count,
              " parts behind the first five, or none, got ", sizes);
    first_rows.assign(count, -1);
    for (int64_t place = 0, row = 0; place < count; ++place) {
      const int64_t part = part_at(place);
      CHECK_ARG(op, "sizes", part >= 0 && part < count && first_rows[part] < 0, "must have each part once, got ", sizes);
      first_rows[part] = row, row += interface[part];
    }
  }
  void of_memory(const char* op, at::IntArrayRef sizes) {
    CHECK_ARG(op, "options", !options.normalises, "must be without a normalisation where there are no weights");
    take_sizes(op, sizes);
    const InterfaceParts parts(dnc, writes, reads, word, shifts, options);
    interface.assign(parts.sizes, parts.sizes + parts.count), interface_size = parts.total;
    CHECK_ARG(op, "x", input == parts.total, "must have ", parts.total, " elements of the interface, got ", input);
  }
};

inline std::vector<at::Tensor> contiguous_tensors(at::TensorList tensors) {
  std::vector<at::Tensor> all;
  all.reserve(tensors.size());
  for (const at::Tensor& t : tensors) all.push_back(t.contiguous());
  return all;
}

struct MemorySequenceArgs {
  static constexpr const char* kOp = "memory_sequence";

  MemorySizes sizes;
  at::Tensor x;                            // [T,B,I]
  std::vector<at::Tensor> weights, state;  // the state may be empty, or parts of it undefined: initial
  at::Tensor reset_memory;                 // [B,N,W], or undefined
  int64_t link_every;

  MemorySequenceArgs(std::string_view model, at::ArrayRef<double> options, const at::Tensor& x_,
                     const c10::List<std::optional<at::Tensor>>& state_, at::TensorList weights_,
                     const std::optional<at::Tensor>& reset_memory_, at::IntArrayRef sizes_, int64_t link_every_)
      : sizes(kOp, model, options, x_, weights_, sizes_),
        x(x_.contiguous()),
        weights(contiguous_tensors(weights_)),
        link_every(link_every_) {
    CHECK_ARG(kOp, "link_every", link_every >= 1, "must be at least 1, got ", link_every);
    state = sizes.checked_state(kOp, "state", state_, x_);
    CHECK_ARG(
        kOp, "state",
        !sizes.linked || state.empty() || state[MemorySizes::kLink].defined() || !state[MemorySizes::kLink - 1].defined(),
        "must have the link that its precedence belongs to");
    reset_memory = checked_reset_memory(kOp, sizes, reset_memory_, x_);
  }

  static at::Tensor checked_reset_memory(const char* op, const MemorySizes& sizes, const std::optional<at::Tensor>& given,
                                         const at::Tensor& x) {
    if (!given || !given->defined()) return {};
    const Shape shape = sizes.state_shapes()[0];
    CHECK_ARG(op, "reset_memory", given->sizes() == at::IntArrayRef(shape), "must have shape ", at::IntArrayRef(shape),
              ", got ", given->sizes());
    MemorySizes::check_like(op, "reset_memory", 0, *given, x);
    return given->contiguous();
  }
};

struct MemorySequenceBackwardArgs {
  static constexpr const char* kOp = "memory_sequence_backward";

  MemorySizes sizes;
  at::Tensor grad_y;                   // [T,B,O], or undefined: zero
  std::vector<at::Tensor> grad_state;  // of the final state, each perhaps undefined: zero
  at::Tensor x, link;                  // link: the initial one, or undefined: zero
  at::Tensor reset_memory;             // [B,N,W], or undefined
  std::vector<at::Tensor> weights;
  int64_t link_every;
  bool wants_x, wants_weights, wants_state, wants_reset_memory;

  MemorySequenceBackwardArgs(std::string_view model, at::ArrayRef<double> options, const std::optional<at::Tensor>& grad_y_,
                             const c10::List<std::optional<at::Tensor>>& grad_state_, const at::Tensor& x_,
                             const std::optional<at::Tensor>& link_, at::TensorList weights_,
                             const std::optional<at::Tensor>& reset_memory_, at::IntArrayRef sizes_, int64_t link_every_,
                             std::array<bool, 4> output_mask)
      : sizes(kOp, model, options, x_, weights_, sizes_),
        x(x_.contiguous()),
        weights(contiguous_tensors(weights_)),
        link_every(link_every_),
        wants_x(output_mask[0]),
        wants_weights(output_mask[1]),
        wants_state(output_mask[2]),
        wants_reset_memory(output_mask[3]) {
    CHECK_ARG(kOp, "link_every", link_every >= 1, "must be at least 1, got ", link_every);
    const std::vector<Shape> shapes = sizes.state_shapes();
    CHECK_ARG(kOp, "grad_state", grad_state_.size() == shapes.size(), "must be ", shapes.size(), " tensors, got ",
              grad_state_.size());
    grad_y = saved("grad_y", grad_y_, {sizes.steps, sizes.batch, sizes.y_size()});
    for (size_t i = 0; i < shapes.size(); ++i) grad_state.push_back(saved("grad_state", grad_state_.get(i), shapes[i]));
    if (sizes.linked) link = saved("link", link_, shapes[MemorySizes::kLink]);
    reset_memory = MemorySequenceArgs::checked_reset_memory(kOp, sizes, reset_memory_, x_);
  }

  // row_size: of a sample at one time.
  void check_tape(at::TensorList tape, int64_t row_size) const {
    const auto is_right = [&](size_t i, int64_t count) {
      const at::Tensor& t = tape[i];
      return t.numel() == count && t.is_contiguous() && t.scalar_type() == x.scalar_type() && t.device() == x.device();
    };
    CHECK_ARG(kOp, "tape",
              tape.size() == 2 && is_right(0, (sizes.steps + 1) * sizes.batch * row_size) &&
                  is_right(1, sizes.links_on_tape(link_every, x.element_size())),
              "must be the one that the forward pass gave");
  }

 private:
  // Contiguous; undefined if it is not there.
  at::Tensor saved(const char* argument, const std::optional<at::Tensor>& t, const Shape& shape) const {
    if (!t.has_value() || !t->defined()) return {};
    CHECK_ARG(kOp, argument, t->sizes() == at::IntArrayRef(shape), "must have shape ", at::IntArrayRef(shape), ", got ",
              t->sizes());
    CHECK_ARG(kOp, argument, t->scalar_type() == x.scalar_type(), "must have the dtype of x, ", x.scalar_type(), ", got ",
              t->scalar_type());
    CHECK_ARG(kOp, argument, t->device() == x.device(), "must be on ", x.device(), ", got ", t->device());
    return t->contiguous();
  }
};

}  // namespace routing_ext
