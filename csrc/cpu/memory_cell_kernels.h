// What memory networks ask of the kernels under simd/ beyond the accessor: the whole cell, which is an LSTM controller, the
// accessor and an output layer, for some samples at one time step. Torch-free.
//
// I inputs, H hidden units, O outputs; F = H + R*W features: the hidden state, then the read vectors. IF: interface_size().
// Without an output layer, O = 0, the features are the outputs; without a controller, H = 0, too, and the inputs are interface
// vectors. A deaf controller does not hear what was read.
#pragma once
#include "kernel_tables.h"
#include "memory_kernels.h"

namespace routing_ext::cpu {

struct CellShape {
  AccessShape access;
  int64_t input, hidden, output;  // I, H, O
  double clip;                    // of the hidden state and the output
  bool deaf = false;

  ROUTING_EXT_INLINE int64_t read_size() const { return access.reads * access.word; }
  ROUTING_EXT_INLINE int64_t features() const { return hidden + read_size(); }
  // Of the read vectors, and of the features, what the controller sees at the next step.
  ROUTING_EXT_INLINE int64_t heard() const { return deaf ? 0 : read_size(); }
  ROUTING_EXT_INLINE int64_t seen() const { return hidden + heard(); }
  ROUTING_EXT_INLINE int64_t gates() const { return 4 * hidden; }
  // Elements of the interface that are normalised: all or none.
  ROUTING_EXT_INLINE int64_t normalised() const { return access.options.normalises ? access.interface_size() : 0; }
  ROUTING_EXT_INLINE int64_t y_size() const { return output > 0 ? output : features(); }
};

// Where each array of one sample at one time lies in its row of the tape. The link lies elsewhere.
template <class C>
struct CellLayout {
  AccessLayout<C> access;
  // The state after the step. The gradient of a state is laid out like it.
  int64_t features, cell, small, memory;  // [F], [H], [state_size], [W,n]
  int64_t state_size;
  // What the backward pass needs of the step.
  int64_t gates, tanh_cell;  // [4H]: i, f, g, o behind their activations; [H]
  int64_t record;            // [record_size]
  int64_t slope;             // [O]: of y against what the output layer gives, zero where that is clipped
  int64_t normed, scale;     // [IF], [1]: the interface before weight and bias of its normalisation, 1 / its deviation
  int64_t row_size;
  // A row of gradients: of the gates before their activations, of the interface before its normalisation, of what the output
  // layer gives, and this step's share of those of weight and bias of the normalisation.
  int64_t grad_gates, grad_interface, grad_output;  // [4H], [IF], [O]
  int64_t grad_norm, grad_norm_bias;                // [IF] twice
  int64_t grad_size;

  ROUTING_EXT_INLINE explicit CellLayout(const CellShape& s) : access(s.access) {
    int64_t at = 0;
    const auto take = [&at](int64_t count) __attribute__((always_inline)) {
      const int64_t here = at;
      at += AccessLayout<C>::padded(count);
      return here;
    };
    features = take(s.features()), cell = take(s.hidden);
    small = take(access.state_size), memory = take(access.memory_size);
    state_size = at;
    gates = take(s.gates()), tanh_cell = take(s.hidden), record = take(access.record_size), slope = take(s.output);
    normed = take(s.normalised()), scale = take(s.normalised() > 0 ? 1 : 0);
    row_size = odd(at), at = 0;
    grad_gates = take(s.gates()), grad_interface = take(s.access.interface_size()), grad_output = take(s.output);
    grad_norm = take(s.normalised()), grad_norm_bias = take(s.normalised());
    grad_size = odd(at);
  }

 private:
  // An odd number of cache lines, so that the same element of successive rows falls into different sets.
  ROUTING_EXT_INLINE static int64_t odd(int64_t size) {
    constexpr int64_t line = AccessLayout<C>::kAlign;
    return size / line % 2 == 0 ? size + line : size;
  }
};

// The state as the caller has it, all samples one after the other. Any may be nullptr.
template <class C>
struct CellState {
  C *memory, *usage, *precedence, *link;  // [B,N,W], [B,N], [B,V,N], [B,V,N,N]
  C *write_weights, *read_weights;        // [B,V,N], [B,R,N]
  C *hidden, *cell, *read_vectors;        // [B,H] twice, [B,R,W]
};

// The parameters as the caller has them, or their gradients.
template <class C>
struct CellWeights {
  C *input, *hidden, *input_bias, *hidden_bias;  // [4H,I+heard], [4H,H], [4H], [4H]
  C* const* interface;                           // [IF] rows of [H], for they lie in several tensors
  C* const* interface_bias;                      // [IF] elements
  C *norm, *norm_bias;                           // [IF] twice, of its normalisation
  C *output, *output_bias;                       // [O,F], [O]
};

// The parameters packed for the products. Forward and backward are packed separately, each from its own base.
template <class C>
struct PackedLayout {
  int64_t gates, interface, output;                 // panels of [I+seen,4H], [H,IF], [F,O]
  int64_t gates_bias, interface_bias, output_bias;  // [4H]: the sum of both, [IF], [O]
  int64_t norm, norm_bias;                          // [IF] twice
  int64_t forward_size;
  int64_t from_output, from_interface;  // panels of [O,F], [IF,H]
  int64_t to_seen, to_input;            // panels of [4H,seen], [4H,I]
  int64_t from_norm;                    // [IF]
  int64_t backward_size;

  ROUTING_EXT_INLINE explicit PackedLayout(const CellShape& s) {
    const int64_t interface_size = s.access.interface_size();
    int64_t at = 0;
    const auto take = [&at](int64_t depth, int64_t columns) __attribute__((always_inline)) {
      const int64_t here = at;
      at += depth * AccessLayout<C>::padded(columns);
      return here;
    };
    gates = take(s.input + s.seen(), s.gates());
    interface = take(s.hidden, interface_size), output = take(s.features(), s.output);
    gates_bias = take(1, s.gates()), interface_bias = take(1, interface_size), output_bias = take(1, s.output);
    norm = take(1, s.normalised()), norm_bias = take(1, s.normalised());
    forward_size = at, at = 0;
    from_output = take(s.output, s.features()), from_interface = take(interface_size, s.hidden);
    to_seen = take(s.gates(), s.seen()), to_input = take(s.gates(), s.input);
    from_norm = take(1, s.normalised());
    backward_size = at;
  }
};

// One step of `rows` samples. Every pointer is to the first of them.
template <class C>
struct CellStep {
  int64_t rows;
  const C* packed;                    // forward
  const C* x;                         // [rows,I]
  const C *previous, *previous_link;  // [rows,row_size], [rows,V,N,n] or nullptr
  C *next, *next_link;                // the link may be the previous one
  C* y;                               // [rows,y_size]
  C *interface, *scratch;             // [rows,IF]: scratch, too; [scratch_size] of AccessLayout
  const Team* team = nullptr;
};

template <class C>
struct CellStepBackward {
  int64_t rows;
  const C* packed;                           // backward
  const C *previous, *previous_link, *next;  // as in CellStep
  const C* grad_y;                           // [rows,y_size], or nullptr: zero
  C *grad_state, *grad_link;  // [rows,state_size], [rows,V,N,n]: of the next state; become those of the previous
  C* grads;                   // [rows,grad_size]
  C* grad_x;                  // [rows,I], or nullptr
  C* scratch;                 // [scratch_size] of AccessLayout
  const Team* team = nullptr;
  bool is_first = false;  // nobody wants the gradient of the previous features, which then is not set
};

// The gradients of the parameters, from all steps of all samples.
template <class C>
struct CellWeightGradients {
  int64_t depth;         // samples and steps, K
  const C* x;            // [K,I]
  const C *seen, *made;  // [K,F] twice, rows `stride` apart: the features before and after each step
  int64_t stride;
  const C* grads;  // [K,grad_size]
  CellWeights<C> weights;
};

template <class C>
struct CellKernels {
  // The part-th of `parts` parts of the packing.
  void (*pack_forward)(const CellShape&, const CellWeights<const C>&, C* packed, int64_t part, int64_t parts);
  void (*pack_backward)(const CellShape&, const CellWeights<const C>&, C* packed, int64_t part, int64_t parts);
  void (*forward)(const CellShape&, const CellStep<C>&);
  void (*backward)(const CellShape&, const CellStepBackward<C>&);
  // DNC: next_link as `forward` makes it, of the states before and after a step of `rows` samples.
  void (*relink)(const CellShape&, int64_t rows, const C* previous, const C* previous_link, const C* next, C* next_link,
                 const Team* team);
  void (*weight_gradients)(const CellShape&, const CellWeightGradients<C>&, int64_t part, int64_t parts);

  // Between the caller's layout and rows, `stride` apart; all but the link. What is not given is the initial state, or zero if
  // it is a gradient; what is not asked for is left out.
  void (*import_state)(const CellShape&, const CellState<const C>& given, Span samples, bool is_gradient, C* rows,
                       int64_t stride);
  void (*export_state)(const CellShape&, const C* rows, int64_t stride, const CellState<C>& wanted, Span samples);
};

template <class C>
struct MemoryKernels {
  AccessKernels<C> dnc, ntm;
  CellKernels<C> cell;
};

ROUTING_EXT_DECLARE_KERNELS(WideKernels<MemoryKernels>, memory_kernels)

}  // namespace routing_ext::cpu
