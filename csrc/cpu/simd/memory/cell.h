// The cell of a memory network: an LSTM controller, the accessor, and an output layer.
#pragma once
#include "../../memory_cell_kernels.h"
#include "../controller.h"
#include "../skinny.h"
#include "dnc.h"
#include "layout.h"
#include "ntm.h"

namespace routing_ext::cpu {
namespace {

template <class C>
constexpr AccessKernels<C> dnc_kernels = {dnc_forward<C>, dnc_backward<C>, dnc_relink<C>};
template <class C>
constexpr AccessKernels<C> ntm_kernels = {ntm_forward<C>, ntm_backward<C>, nullptr};

template <class C>
inline const AccessKernels<C>& access_kernels(MemoryKind kind) {
  return kind == MemoryKind::dnc ? dnc_kernels<C> : ntm_kernels<C>;
}

// ---- packing ---------------------------------------------------------------------------------------------------------------

inline Span share(int64_t n, int64_t part, int64_t parts) { return {n * part / parts, n * (part + 1) / parts}; }

// f(first column, width) for each panel of this part.
template <class C, class F>
inline void for_each_panel(int64_t columns, int64_t part, int64_t parts, const F& f) {
  int64_t panel = 0;
  for (int64_t c = 0, width; c < columns; c += width, ++panel) {
    width = next_panel_columns<C>(columns - c);
    if (panel % parts == part) f(c, width);
  }
}

template <class C>
void pack_forward(const CellShape& s, const CellWeights<const C>& w, C* packed, int64_t part, int64_t parts) {
  if (s.hidden == 0) return;  // no weights
  const PackedLayout<C> at(s);
  const int64_t of_input = s.input + s.heard();  // columns of w.input
  for_each_panel<C>(s.gates(), part, parts, [&](int64_t c, int64_t width) {
    const int64_t stride = padded<C>(width);
    C* panel = packed + at.gates + c * (s.input + s.seen());
    const auto pack = [&](const C* matrix, int64_t columns, int64_t depth) {
      transpose_rows([&](int64_t r) { return matrix + (c + r) * columns; }, width, depth, true, panel, stride);
      panel += depth * stride;
    };
    pack(w.input, of_input, s.input);
    pack(w.hidden, s.hidden, s.hidden);
    pack(w.input + s.input, of_input, s.heard());
    for (int64_t i = c; i < c + width; ++i) packed[at.gates_bias + i] = w.input_bias[i] + w.hidden_bias[i];
  });
  for_each_panel<C>(s.access.interface_size(), part, parts, [&](int64_t c, int64_t width) {
    transpose_rows([&](int64_t r) { return w.interface[c + r]; }, width, s.hidden, true, packed + at.interface + c * s.hidden,
                   padded<C>(width));
    for (int64_t i = c; i < c + width; ++i) packed[at.interface_bias + i] = *w.interface_bias[i];
  });
  if (part == 0) copy(w.norm, s.normalised(), packed + at.norm), copy(w.norm_bias, s.normalised(), packed + at.norm_bias);
  for_each_panel<C>(s.output, part, parts, [&](int64_t c, int64_t width) {
    transpose_rows([&](int64_t r) { return w.output + (c + r) * s.features(); }, width, s.features(), true,
                   packed + at.output + c * s.features(), padded<C>(width));
    for (int64_t i = c; i < c + width; ++i) packed[at.output_bias + i] = w.output_bias[i];
  });
}

template <class C>
void pack_backward(const CellShape& s, const CellWeights<const C>& w, C* packed, int64_t part, int64_t parts) {
  if (s.hidden == 0) return;
  const PackedLayout<C> at(s);
  const auto pack = [&](int64_t depth, int64_t columns, C* panels, const auto& row) {
    const Span mine = share(depth, part, parts);
    for (int64_t k = mine.begin; k < mine.end; ++k) pack_row_of_panels(row(k), columns, depth, k, panels);
  };
  const int64_t of_input = s.input + s.heard();
  pack(s.output, s.features(), packed + at.from_output, [&](int64_t k) { return w.output + k * s.features(); });
  pack(s.access.interface_size(), s.hidden, packed + at.from_interface, [&](int64_t k) { return w.interface[k]; });
  C* const of_seen = static_cast<C*>(thread_scratch(sizeof(C) * s.seen()));
  pack(s.gates(), s.seen(), packed + at.to_seen, [&](int64_t k) {
    copy(w.hidden + k * s.hidden, s.hidden, of_seen);
    copy(w.input + k * of_input + s.input, s.heard(), of_seen + s.hidden);
    return of_seen;
  });
  pack(s.gates(), s.input, packed + at.to_input, [&](int64_t k) { return w.input + k * of_input; });
  if (part == 0) copy(w.norm, s.normalised(), packed + at.from_norm);
}

// Begins to fetch a row from memory.
template <bool to_write, class C>
inline void fetch(const C* row, int64_t count) {
  for (int64_t i = 0; i < count; i += AccessLayout<C>::kAlign) __builtin_prefetch(row + i, to_write, 2);
}

// ---- one step --------------------------------------------------------------------------------------------------------------

// The accessor's part of a step. interface [rows,IF].
template <class C>
inline void access_rows(const CellShape& s, const CellStep<C>& step, const C* interface) {
  const CellLayout<C> at(s);
  const int64_t interface_size = s.access.interface_size(), row = at.row_size;
  for (int64_t b = 0; b < step.rows; ++b) {
    const C* const previous = step.previous + b * row;
    C* const next = step.next + b * row;
    const int64_t link = b * at.access.link_size;
    if (b + 1 < step.rows) fetch<true>(next + row + at.small, row - at.small);
    access_kernels<C>(s.access.kind)
        .forward(s.access,
                 {interface + b * interface_size,
                  {previous + at.small, previous + at.memory, step.previous_link ? step.previous_link + link : nullptr},
                  {next + at.small, next + at.memory, step.next_link + link},
                  next + at.record,
                  next + at.features + s.hidden,
                  step.scratch,
                  step.team});
  }
}
// The outputs where there is no output layer.
template <class C>
inline void copy_features(const CellShape& s, const CellStep<C>& step) {
  const CellLayout<C> at(s);
  for (int64_t b = 0; b < step.rows; ++b)
    copy(step.next + b * at.row_size + at.features, s.features(), step.y + b * s.features());
}

template <class C>
void cell_forward(const CellShape& s, const CellStep<C>& step) {
  const CellLayout<C> at(s);
  const PackedLayout<C> packed(s);
  const int64_t interface_size = s.access.interface_size(), row = at.row_size;
  const C clip = static_cast<C>(s.clip);
  const Rows<C> features{step.next + at.features, row};
  if (s.hidden == 0) {
    access_rows(s, step, step.x);
    return copy_features(s, step);
  }

  skinny_product<C>(step.rows, {{step.x, s.input}, s.input}, {{step.previous + at.features, row}, s.seen()},
                    step.packed + packed.gates, s.gates(), {step.packed + packed.gates_bias, 0}, {step.next + at.gates, row});
  for (int64_t b = 0; b < step.rows; ++b) {
    C* const next = step.next + b * row;
    lstm_forward(s.hidden, clip, step.previous + b * row + at.cell, next + at.gates, next + at.cell, next + at.tanh_cell,
                 next + at.features);
  }

  skinny_product<C>(step.rows, {{features.data, row}, s.hidden}, step.packed + packed.interface, interface_size,
                    {step.packed + packed.interface_bias, 0}, {step.interface, interface_size});
  for (int64_t b = 0; s.normalised() > 0 && b < step.rows; ++b) {
    C* const next = step.next + b * row;
    norm_forward(interface_size, static_cast<C>(s.access.options.epsilon), step.packed + packed.norm,
                 step.packed + packed.norm_bias, step.interface + b * interface_size, next + at.normed, next + at.scale);
  }
  access_rows<C>(s, step, step.interface);
  if (s.output == 0) return copy_features(s, step);

  skinny_product<C>(step.rows, {{features.data, row}, s.features()}, step.packed + packed.output, s.output,
                    {step.packed + packed.output_bias, 0}, {step.next + at.slope, row});
  for (int64_t b = 0; b < step.rows; ++b)
    output_forward(s.output, s.access.options.linear_output, clip, step.next + b * row + at.slope, step.y + b * s.output);
}

template <class C>
void cell_backward(const CellShape& s, const CellStepBackward<C>& step) {
  const CellLayout<C> at(s);
  const PackedLayout<C> packed(s);
  const int64_t row = at.row_size, state_row = at.state_size;
  const Rows<C> of_features{step.grad_state + at.features, state_row};
  const auto grads = [&](int64_t offset, int64_t depth) { return Factor<C>{{step.grads + offset, at.grad_size}, depth}; };
  // of_features += what comes through `depth` gradients.
  const auto add_to_features = [&](const Factor<C>& x, int64_t panels, int64_t columns) {
    skinny_product<C>(step.rows, x, step.packed + panels, columns, {of_features.data, state_row}, of_features);
  };

  if (step.grad_y && s.output == 0) {
    for (int64_t b = 0; b < step.rows; ++b) {
      C* const sum = of_features.data + b * state_row;
      for (int64_t j = 0; j < s.features(); ++j) sum[j] += step.grad_y[b * s.features() + j];
    }
  } else if (step.grad_y) {
    for (int64_t b = 0; b < step.rows; ++b) {
      const C *const slope = step.next + b * row + at.slope, *const grad_y = step.grad_y + b * s.output;
      C* const out = step.grads + b * at.grad_size + at.grad_output;
      for_each_vector<C>(s.output,
                         [&](int64_t j, auto lanes) { lanes.store(out + j, lanes.load(slope + j) * lanes.load(grad_y + j)); });
    }
    add_to_features(grads(at.grad_output, s.output), packed.from_output, s.features());
  } else {
    for (int64_t b = 0; b < step.rows; ++b) fill(step.grads + b * at.grad_size + at.grad_output, s.output, C(0));
  }

  for (int64_t b = 0; b < step.rows; ++b) {
    const C *const previous = step.previous + b * row, *const next = step.next + b * row;
    C* const grad = step.grad_state + b * state_row;
    const int64_t link = b * at.access.link_size;
    if (b + 1 < step.rows) fetch<false>(previous + row, row);
    access_kernels<C>(s.access.kind)
        .backward(s.access,
                  {{previous + at.small, previous + at.memory, step.previous_link ? step.previous_link + link : nullptr},
                   {next + at.small, next + at.memory, nullptr},
                   next + at.record,
                   grad + at.features + s.hidden,
                   {grad + at.small, grad + at.memory, step.grad_link + link},
                   step.grads + b * at.grad_size + at.grad_interface,
                   step.scratch,
                   step.team});
  }
  if (s.hidden == 0) {  // nobody sees the read vectors of the step before
    for (int64_t b = 0; b < step.rows; ++b) {
      fill(of_features.data + b * state_row, s.features(), C(0));
      if (step.grad_x) copy(step.grads + b * at.grad_size + at.grad_interface, s.input, step.grad_x + b * s.input);
    }
    return;
  }
  for (int64_t b = 0; s.normalised() > 0 && b < step.rows; ++b) {
    const C* const next = step.next + b * row;
    C* const of_step = step.grads + b * at.grad_size;
    norm_backward(s.normalised(), step.packed + packed.from_norm, next + at.normed, next[at.scale],
                  of_step + at.grad_interface, of_step + at.grad_norm, of_step + at.grad_norm_bias);
  }
  add_to_features(grads(at.grad_interface, s.access.interface_size()), packed.from_interface, s.hidden);

  for (int64_t b = 0; b < step.rows; ++b) {
    const C* const next = step.next + b * row;
    C* const grad = step.grad_state + b * state_row;
    lstm_backward(s.hidden, static_cast<C>(s.clip), step.previous + b * row + at.cell, next + at.gates, next + at.tanh_cell,
                  grad + at.features, grad + at.cell, step.grads + b * at.grad_size + at.grad_gates);
  }
  const Factor<C> gates = grads(at.grad_gates, s.gates());
  if (step.grad_x) skinny_product<C>(step.rows, gates, step.packed + packed.to_input, s.input, {}, {step.grad_x, s.input});
  if (step.is_first) return;
  skinny_product<C>(step.rows, gates, step.packed + packed.to_seen, s.seen(), {}, of_features);
  for (int64_t b = 0; s.deaf && b < step.rows; ++b) fill(of_features.data + b * state_row + s.hidden, s.read_size(), C(0));
}

template <class C>
void cell_relink(const CellShape& s, int64_t rows, const C* previous, const C* previous_link, const C* next, C* next_link,
                 const Team* team) {
  const CellLayout<C> at(s);
  for (int64_t b = 0; b < rows; ++b, previous += at.row_size, next += at.row_size, next_link += at.access.link_size) {
    const C* const link = previous_link ? previous_link + b * at.access.link_size : nullptr;
    access_kernels<C>(s.access.kind)
        .relink(s.access, {previous + at.small, nullptr, link}, {const_cast<C*>(next) + at.small, nullptr, next_link}, team);
  }
}

// ---- gradients of the parameters -------------------------------------------------------------------------------------------

// Samples summed in one product, so that what is packed stays in the second-level cache.
inline constexpr int64_t kGradDepth = 256;

// What some weights are multiplied with, packed for the tiles of gemm.h.
template <class C>
struct Inputs {
  Rows<const C> rows;
  int64_t columns;
  C* panels;

  ALWAYS_INLINE void pack(int64_t first, int64_t depth) const {
    pack_panels(rows.data + first * rows.stride, rows.stride, depth, 0, columns, panels);
  }
};

// panel[k][j] = grads[k][j] for j < width <= kPanelRows. sums [kPanelRows]: over k.
template <class C>
inline void pack_grads(Rows<const C> grads, int64_t depth, int64_t width, C* panel, C* sums) {
  constexpr int lanes = kLanes<C>, most = kPanelRows / lanes;
  Vec<C> total[most] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const C* const row = grads.data + k * grads.stride;
    UNROLL for (int v = 0; v < most; ++v) {
      const int64_t left = width - v * lanes;
      if (left <= 0) break;
      const Vec<C> g = left < lanes ? load_partial(row + v * lanes, left) : load(row + v * lanes);
      store(panel + k * kPanelRows + v * lanes, g);
      total[v] += g;
    }
  }
  UNROLL for (int v = 0; v < most; ++v) store(sums + v * lanes, total[v]);
}

// Adds to the gradients of the weights of `outs` what one block of `depth` samples says, or begins them with it. grads
// [depth, .]: of the outputs. target(i, o): the row of output o's gradient that belongs to input i; bias(o, sum): takes the
// sum of its gradients.
template <class C, class Target, class Bias>
void weight_rows(Rows<const C> grads, Span outs, int64_t depth, bool begins, int inputs, const Inputs<C>* input, C* panel,
                 const Target& target, const Bias& bias) {
  alignas(64) C sums[kTileRows * kTileColumns<C>];
  alignas(64) C bias_sums[kPanelRows];
  for (int64_t first = outs.begin; first < outs.end; first += kPanelRows) {
    const int64_t width = least(kPanelRows, outs.end - first);
    pack_grads(Rows<const C>{grads.data + first, grads.stride}, depth, width, panel, bias_sums);
    for (int64_t m = 0; m < width; ++m) bias(first + m, bias_sums[m]);
    for (int64_t o = 0; o < width; o += kTileRows) {
      const int64_t height = least(kTileRows, width - o);
      for (int i = 0; i < inputs; ++i) {
        for (int64_t c = 0; c < input[i].columns; c += kTileColumns<C>) {
          const int64_t columns = least(kTileColumns<C>, input[i].columns - c);
          tile<C>(height, columns, PanelColumns<C>{panel + o}, input[i].panels + c * depth, padded<C>(columns), depth, sums);
          for (int64_t m = 0; m < height; ++m) {
            C* const row = target(i, first + o + m) + c;
            finish_row(sums + m * kTileColumns<C>, begins ? nullptr : row, static_cast<const C*>(nullptr), false, columns,
                       row);
          }
        }
      }
    }
  }
}

// All outputs, those of the gates, of the interface and of the output layer, in this order, are shared by what they cost.
template <class C>
void weight_gradients(const CellShape& s, const CellWeightGradients<C>& g, int64_t part, int64_t parts) {
  const CellLayout<C> at(s);
  const CellWeights<C>& w = g.weights;
  const int64_t depth = g.depth, reads = s.read_size();

  const int64_t costs[] = {s.input + s.seen(), s.hidden, s.features()};  // of an output
  const int64_t counts[] = {s.gates(), s.access.interface_size(), s.output};
  int64_t total = 0, before = 0;
  for (int i = 0; i < 3; ++i) total += costs[i] * counts[i];
  const Span mine = share(total, part, parts);
  Span outs[3];
  for (int i = 0; i < 3; ++i) {
    const auto out_at = [&](int64_t cost) {
      return cost <= before ? 0 : least((cost - before + costs[i] - 1) / costs[i], counts[i]);
    };
    outs[i] = {out_at(mine.begin), out_at(mine.end)};
    before += costs[i] * counts[i];
  }

  const int64_t block = least(kGradDepth, depth), widths = padded<C>(s.input) + padded<C>(s.hidden) + padded<C>(reads);
  C* const panel = static_cast<C*>(thread_scratch(sizeof(C) * block * (kPanelRows + widths)));
  C* const of_x = panel + block * kPanelRows;
  C *const of_hidden = of_x + block * padded<C>(s.input), *const of_reads = of_hidden + block * padded<C>(s.hidden);
  const auto hidden_of = [&](const C* features) { return Inputs<C>{{features, g.stride}, s.hidden, of_hidden}; };
  const auto reads_of = [&](const C* features) { return Inputs<C>{{features + s.hidden, g.stride}, reads, of_reads}; };
  // The gates saw the features before the step, or the hidden state alone, the other layers those after it.
  const Inputs<C> of_gates[] = {{{g.x, s.input}, s.input, of_x}, hidden_of(g.seen), reads_of(g.seen)};
  const int gate_inputs = s.deaf ? 2 : 3;
  const Inputs<C> of_output[] = {hidden_of(g.made), reads_of(g.made)};

  int64_t k = 0;
  do {  // once where there are no samples, too: their sum is zero
    const int64_t count = least(kGradDepth, depth - k);
    const bool begins = k == 0;
    const auto add = [&](C* sum, C value) { *sum = begins ? value : *sum + value; };
    const auto grads = [&](int64_t offset) { return Rows<const C>{g.grads + k * at.grad_size + offset, at.grad_size}; };
    if (outs[0].size() > 0) {
      for (int i = 0; i < gate_inputs; ++i) of_gates[i].pack(k, count);
      weight_rows(
          grads(at.grad_gates), outs[0], count, begins, gate_inputs, of_gates, panel,
          [&](int i, int64_t o) {
            return i == 1 ? w.hidden + o * s.hidden : w.input + o * (s.input + s.heard()) + (i == 0 ? 0 : s.input);
          },
          [&](int64_t o, C value) {
            add(w.input_bias + o, value);
            add(w.hidden_bias + o, value);
          });
    }
    if (outs[1].size() + outs[2].size() > 0) of_output[0].pack(k, count);
    weight_rows(
        grads(at.grad_interface), outs[1], count, begins, 1, of_output, panel, [&](int, int64_t o) { return w.interface[o]; },
        [&](int64_t o, C value) { add(w.interface_bias[o], value); });
    if (outs[2].size() > 0) of_output[1].pack(k, count);
    weight_rows(
        grads(at.grad_output), outs[2], count, begins, 2, of_output, panel,
        [&](int i, int64_t o) { return w.output + o * s.features() + i * s.hidden; },
        [&](int64_t o, C value) { add(w.output_bias + o, value); });
    k += count;
  } while (k < depth);

  const Span norm = share(s.normalised(), part, parts);
  if (norm.size() == 0) return;
  const auto add_rows = [&](int64_t offset, C* sum) {
    fill(sum + norm.begin, norm.size(), C(0));
    for (int64_t i = 0; i < depth; ++i) {
      const C* const row = g.grads + i * at.grad_size + offset;
      for (int64_t j = norm.begin; j < norm.end; ++j) sum[j] += row[j];
    }
  };
  add_rows(at.grad_norm, w.norm), add_rows(at.grad_norm_bias, w.norm_bias);
}

// ---- the caller's layout ---------------------------------------------------------------------------------------------------

inline constexpr double kInitialMemory = 1e-6;  // and read vectors

template <class C>
void import_state(const CellShape& s, const CellState<const C>& given, Span samples, bool is_gradient, C* rows,
                  int64_t stride) {
  const CellLayout<C> at(s);
  const AccessShape& a = s.access;
  const int64_t n = at.access.n, locations = a.locations;
  const bool is_zero = is_gradient || a.options.zero_state;
  const C initial = is_zero ? C(0) : C(kInitialMemory);
  for (int64_t b = samples.begin; b < samples.end; ++b, rows += stride) {
    const auto take = [&](const C* from, int64_t count, int64_t width, int64_t padded, C otherwise, C* to) {
      import_rows(from ? from + b * count * width : nullptr, count, width, padded, otherwise, to);
    };
    const auto take_weights = [&](const C* from, int64_t heads, C* to) {
      take(from, heads, locations, n, C(0), to);
      if (from == nullptr && !is_zero) {
        for (int64_t h = 0; h < heads; ++h) to[h * n] = 1;
      }
    };
    C* const small = rows + at.small;
    take(given.hidden, 1, s.hidden, s.hidden, C(0), rows + at.features);
    take(given.read_vectors, 1, s.read_size(), s.read_size(), initial, rows + at.features + s.hidden);
    take(given.cell, 1, s.hidden, s.hidden, C(0), rows + at.cell);
    if (a.kind == MemoryKind::dnc) {
      take(given.usage, 1, locations, n, C(0), small + at.access.usage);
      if (!is_gradient) fill(small + at.access.usage + locations, n - locations, C(1));
      if (a.linked()) take(given.precedence, a.writes, locations, n, C(0), small + at.access.precedence);
    }
    take_weights(given.write_weights, a.writes, small + at.access.write_weights);
    take_weights(given.read_weights, a.reads, small + at.access.read_weights);

    C *const memory = rows + at.memory, *const norms = small + at.access.norms;
    if (given.memory) {
      import_memory(given.memory + b * locations * a.word, locations, a.word, n, memory);
    } else {
      import_rows(given.memory, a.word, locations, n, initial, memory);
    }
    if (is_gradient) {
      fill(norms, n, C(0));
    } else {
      memory_norms<C>(memory, a.word, n, norms);
    }
  }
}

template <class C>
void export_state(const CellShape& s, const C* rows, int64_t stride, const CellState<C>& wanted, Span samples) {
  const CellLayout<C> at(s);
  const AccessShape& a = s.access;
  const int64_t n = at.access.n, locations = a.locations;
  for (int64_t b = samples.begin; b < samples.end; ++b, rows += stride) {
    const auto give = [&](const C* from, int64_t count, int64_t width, int64_t padded, C* to) {
      export_rows(from, count, width, padded, to ? to + b * count * width : nullptr);
    };
    const C* const small = rows + at.small;
    give(rows + at.features, 1, s.hidden, s.hidden, wanted.hidden);
    give(rows + at.features + s.hidden, 1, s.read_size(), s.read_size(), wanted.read_vectors);
    give(rows + at.cell, 1, s.hidden, s.hidden, wanted.cell);
    give(small + at.access.usage, 1, locations, n, wanted.usage);
    give(small + at.access.precedence, a.linked() ? a.writes : 0, locations, n, wanted.precedence);
    give(small + at.access.write_weights, a.writes, locations, n, wanted.write_weights);
    give(small + at.access.read_weights, a.reads, locations, n, wanted.read_weights);
    if (wanted.memory) export_memory(rows + at.memory, locations, a.word, n, wanted.memory + b * locations * a.word);
  }
}

template <class C>
constexpr CellKernels<C> cell_kernels = {pack_forward<C>, pack_backward<C>,    cell_forward<C>, cell_backward<C>,
                                         cell_relink<C>,  weight_gradients<C>, import_state<C>, export_state<C>};

}  // namespace
}  // namespace routing_ext::cpu
