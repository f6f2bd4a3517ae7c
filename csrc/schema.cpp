// Every operator's schema on one screen: the public contract of torch.ops.routing_ext.
//
// B samples, K modules, n rows, d inputs, o outputs. Index tensors are int64. The dtype of x is float32, float64, bfloat16 or
// float16; low precision accumulates in float32.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

TORCH_LIBRARY(routing_ext, m) {
  // actions [B] in [0, K); mask [B] bool, false = inactive -> order [B], layout [K+2].
  // order: the active samples sorted by module (stable), then the inactive ones, each in batch order.
  // layout[0..K]: rows layout[k]..layout[k+1] of `order` belong to module k. layout[K+1]: -1, or, on CUDA, the first sample
  // whose action is out of range (it counts as inactive; the CPU raises at once).
  m.def("dispatch_plan(Tensor actions, SymInt num_modules, Tensor? mask) -> (Tensor order, Tensor layout)");

  // actions [B] and the layout made of them -> [B]: how many modules before its own have samples, for each sample; 0 where the
  // action is out of range.
  m.def("rank_of_module(Tensor actions, Tensor layout) -> Tensor");

  // x [B, ...], order [n] without repeats -> y [n, ...], y[i] = x[order[i]].
  m.def("gather_rows(Tensor x, Tensor order) -> Tensor");
  // y [n, ...], order [n] without repeats -> x [num_rows, ...], x[order[i]] = y[i], zero elsewhere.
  m.def("scatter_rows(Tensor y, Tensor order, SymInt num_rows) -> Tensor");

  // y [B*n, ...], weights [B,n] -> [B, ...]: of each sample, the sum of its n rows with their weights.
  m.def("combine_rows(Tensor y, Tensor weights) -> Tensor");
  // output_mask: (grad_y, grad_weights); what is not wanted comes back empty.
  m.def(
      "combine_rows_backward(Tensor grad, Tensor y, Tensor weights, bool[2] output_mask) -> (Tensor grad_y, "
      "Tensor grad_weights)");

  // x [B,d] -> y [B,o], y[i] = act(W[a_i] x[i] + b[a_i]); zero for rows whose module is not listed.
  // weights: one [o,d] for each entry of `modules` (ascending), or a single [K,o,d] with `modules` empty. biases: likewise [o]
  // or [K,o], or none. order and layout as dispatch_plan gives them: order is a permutation.
  m.def(
      "grouped_linear(Tensor x, Tensor order, Tensor layout, Tensor[] weights, Tensor[] biases, int[] modules, "
      "SymInt out_features, bool relu) -> Tensor");
  // grad [B,o]; y [B,o] if the activation was relu; x [B,d] if a weight gradient is wanted; weights if grad_x is.
  // output_mask: (grad_x, grad_weights, grad_biases); what is not wanted comes back empty. grad_weights has one [o,d] for each
  // module listed, or one [K,o,d] if `modules` is empty: zero for modules without samples.
  m.def(
      "grouped_linear_backward(Tensor grad, Tensor? y, Tensor? x, Tensor order, Tensor layout, Tensor[] weights, "
      "int[] modules, SymInt in_features, bool[3] output_mask) -> (Tensor grad_x, Tensor[] grad_weights, "
      "Tensor[] grad_biases)");

  // The same with a gradient, of any order: on the CPU, and for modules that all have samples.
  m.def(
      "grouped_linear_node(Tensor x, Tensor order, Tensor layout, Tensor[] weights, Tensor[] biases, int[] modules, "
      "SymInt out_features, bool relu) -> Tensor");

  // Decisions, float32 or float64. An index out of range is an error on the CPU; on CUDA it makes a zero.
  // probs [n,K]; row_of int64 [B], the row of each sample, none: one each; order: the samples that decide, sorted by agent,
  // none: all; sizes: how many each agent has -> actions int64 [B], 0 where no decision is made. For each sample that decides,
  // in this order, the first largest of probs / q, q drawn as Tensor.exponential_ does from the device's default generator.
  m.def("sample_categorical(Tensor probs, Tensor? row_of, Tensor? order, int[] sizes, SymInt batch) -> Tensor",
        {at::Tag::nondeterministic_seeded});
  // Likewise with one random number a sample, by the inverse of the cumulated probabilities. count: how many decide.
  m.def("sample_by_inversion(Tensor probs, Tensor? row_of, Tensor? order, SymInt count, SymInt batch) -> Tensor",
        {at::Tag::nondeterministic_seeded});
  // history int64 [.], actions int64 [n] in [0, num_actions) -> ratio times the frequency of each action in the history,
  // float32 [num_actions]; ratio times that of each of `actions` [n].
  m.def(
      "collaboration_rewards(Tensor history, Tensor actions, int num_actions, float ratio) -> (Tensor frequencies, "
      "Tensor rewards)");
  // rewards [B] of each of S steps that all samples made, final_reward [B] -> of each step rewards [B], divided by S, if
  // `normalise` multiplied by the size of the final one, which is added to the last; and returns [B].
  m.def(
      "discounted_returns(Tensor[] rewards, Tensor final_reward, bool normalise, float discounting) -> (Tensor[] rewards, "
      "Tensor[] returns)");
  // actions [n] behind those that are known, [.]; of all, the last `kept`.
  m.def("latest_actions(Tensor? known, Tensor actions, SymInt kept) -> Tensor");
  // With gradients of any order. preferences, values: tables [.,K] -> states [n,K,2], logarithms of probabilities that are
  // in proportion to preferences, and values; probs [n,K], without a gradient.
  m.def("preference_states(Tensor[] preferences, Tensor[] values) -> (Tensor states, Tensor probs)");
  // rows [.,K,C] or [.,K] each; row_of int64 [.], the row of each decision, empty: in order; actions int64 [.] -> C tensors
  // [N]: each channel of the decisions' rows at their actions.
  m.def("taken(Tensor[] rows, Tensor[] row_of, Tensor[] actions) -> Tensor[]");
  // The losses [N] of the weighted policy learner: of decisions like those of `taken`, whose first two channels are as
  // preference_states gives them, and their returns [.].
  m.def("wpl_losses(Tensor[] rows, Tensor[] row_of, Tensor[] actions, Tensor[] returns) -> Tensor");
  // What the three are made of. grad like states -> [2,n,K], of all preferences and of all values.
  m.def("preference_states_forward(Tensor[] preferences, Tensor[] values) -> (Tensor states, Tensor probs)");
  m.def("preference_states_backward(Tensor grad, Tensor[] preferences) -> Tensor");
  // -> [C,N]. grads [N] of the first channels, times scale [N] -> the gradients of all rows, one behind the other.
  m.def("taken_forward(Tensor[] rows, Tensor[] row_of, Tensor[] actions) -> Tensor");
  m.def("taken_backward(Tensor[] grads, Tensor? scale, Tensor[] rows, Tensor[] row_of, Tensor[] actions) -> Tensor");
  // -> losses [N]; factors [2,N], their derivatives by the two channels.
  m.def(
      "wpl_losses_forward(Tensor[] rows, Tensor[] row_of, Tensor[] actions, Tensor[] returns) -> (Tensor losses, "
      "Tensor factors)");

  // What memory networks are made of, float32 or float64: N locations of W elements, H heads of any kind, V write heads, R
  // read heads, S shifts. Each backward pass gives the gradients of the arguments in their order.
  //
  // keys [B,H,W], strengths [B,H], memory [B,N,W] -> weights [B,H,N].
  m.def("content_weights(Tensor keys, Tensor strengths, Tensor memory) -> Tensor");
  m.def(
      "content_weights_backward(Tensor grad, Tensor keys, Tensor strengths, Tensor memory) -> (Tensor grad_keys, "
      "Tensor grad_strengths, Tensor grad_memory)");
  // usage [B,N], write_weights [B,V,N], free_gates [B,R], read_weights [B,R,N] -> usage [B,N].
  m.def("dnc_usage(Tensor usage, Tensor write_weights, Tensor free_gates, Tensor read_weights) -> Tensor");
  m.def(
      "dnc_usage_backward(Tensor grad, Tensor usage, Tensor write_weights, Tensor free_gates, Tensor read_weights) -> "
      "(Tensor grad_usage, Tensor grad_write_weights, Tensor grad_free_gates, Tensor grad_read_weights)");
  // usage [B,N], write_gates [B,V] -> allocation [B,V,N], usage [B,N], kept [B,V,N]. temperature: of a softmax; zero: by
  // sorting. kept: the products of what is less used than each location, or the softmax.
  m.def(
      "dnc_allocation(Tensor usage, Tensor write_gates, float temperature) -> (Tensor allocation, Tensor usage, "
      "Tensor kept)");
  m.def(
      "dnc_allocation_backward(Tensor? grad_allocation, Tensor? grad_usage, Tensor usage, Tensor write_gates, "
      "Tensor kept, float temperature) -> (Tensor grad_usage, Tensor grad_write_gates)");
  // link [B,V,N,N], precedence and write_weights [B,V,N], read_weights [B,R,N] -> link, precedence, forward and backward
  // [B,V,R,N].
  m.def(
      "dnc_temporal_link(Tensor link, Tensor precedence, Tensor write_weights, Tensor read_weights) -> (Tensor link, "
      "Tensor precedence, Tensor forward, Tensor backward)");
  m.def(
      "dnc_temporal_link_backward(Tensor? grad_link, Tensor? grad_precedence, Tensor? grad_forward, Tensor? grad_backward, "
      "Tensor link, Tensor precedence, Tensor write_weights, Tensor read_weights) -> (Tensor grad_link, "
      "Tensor grad_precedence, Tensor grad_write_weights, Tensor grad_read_weights)");
  // content [B,H,N], gates [B,H], shifts [B,H,S], sharpness [B,H], previous [B,H,N] -> weights [B,H,N].
  m.def("ntm_location(Tensor content, Tensor gates, Tensor shifts, Tensor sharpness, Tensor previous) -> Tensor");
  m.def(
      "ntm_location_backward(Tensor grad, Tensor content, Tensor gates, Tensor shifts, Tensor sharpness, Tensor previous) -> "
      "(Tensor grad_content, Tensor grad_gates, Tensor grad_shifts, Tensor grad_sharpness, Tensor grad_previous)");
  // memory [B,N,W], write_weights [B,V,N], erase and add [B,V,W] -> memory [B,N,W].
  m.def("memory_write(Tensor memory, Tensor write_weights, Tensor erase, Tensor add) -> Tensor");
  m.def(
      "memory_write_backward(Tensor grad, Tensor memory, Tensor write_weights, Tensor erase, Tensor add) -> "
      "(Tensor grad_memory, Tensor grad_write_weights, Tensor grad_erase, Tensor grad_add)");
  // memory [B,N,W], read_weights [B,R,N] -> [B,R,W].
  m.def("memory_read(Tensor memory, Tensor read_weights) -> Tensor");
  m.def(
      "memory_read_backward(Tensor grad, Tensor memory, Tensor read_weights) -> (Tensor grad_memory, "
      "Tensor grad_read_weights)");

  // All of them, a step of a memory network between its controller and its output layer. interface [B,I], see AccessShape, and
  // a state -> the next state, read_vectors [B,R,W], and what the backward pass needs: record [B,row].
  // options, here and below: numbers of MemoryOptions, or none for the reference's step.
  m.def(
      "dnc_access(Tensor interface, Tensor memory, Tensor usage, Tensor precedence, Tensor link, Tensor write_weights, "
      "Tensor read_weights, float[] options) -> (Tensor memory, Tensor usage, Tensor precedence, Tensor link, "
      "Tensor write_weights, Tensor read_weights, Tensor read_vectors, Tensor record)");
  m.def(
      "dnc_access_backward(Tensor? grad_memory, Tensor? grad_usage, Tensor? grad_precedence, Tensor? grad_link, "
      "Tensor? grad_write_weights, Tensor? grad_read_weights, Tensor? grad_read_vectors, Tensor interface, Tensor memory, "
      "Tensor usage, Tensor precedence, Tensor link, Tensor write_weights, Tensor read_weights, Tensor record, "
      "float[] options) -> (Tensor grad_interface, Tensor grad_memory, Tensor grad_usage, Tensor grad_precedence, "
      "Tensor grad_link, Tensor grad_write_weights, Tensor grad_read_weights)");
  m.def(
      "ntm_access(Tensor interface, Tensor memory, Tensor write_weights, Tensor read_weights, float[] options) -> "
      "(Tensor memory, Tensor write_weights, Tensor read_weights, Tensor read_vectors, Tensor record)");
  m.def(
      "ntm_access_backward(Tensor? grad_memory, Tensor? grad_write_weights, Tensor? grad_read_weights, "
      "Tensor? grad_read_vectors, Tensor interface, Tensor memory, Tensor write_weights, Tensor read_weights, Tensor record, "
      "float[] options) -> (Tensor grad_interface, Tensor grad_memory, Tensor grad_write_weights, Tensor grad_read_weights)");

  // A memory network over T steps: LSTM controller, accessor, output layer. x [T,B,I], float32 or float64, -> y [T,B,O].
  // model: "dnc" or "ntm". weights: w_ih [4H,I+R*W], w_hh [4H,H], b_ih [4H], b_hh [4H]; weight [n,H] and bias [n] of each of
  // the parts of the interface, see InterfaceParts; weight [IF] and bias [IF] of its normalisation, if the options have one;
  // weight [O,H+R*W] and bias [O] of the output. Without the last two, y [T,B,H+R*W] is the hidden state and then the read
  // vectors. Without any, the memory is alone: x [T,B,IF] is the interface, y [T,B,R*W] the read vectors, and H is 0.
  // sizes: N; for the memory alone N, W, V, R, S.
  // On CPUs the interface may be one matrix [IF,H] and bias [IF]; then sizes are N, W, V, R, S and, where its parts do not lie
  // in their order, their numbers in that in which they lie. With w_ih [4H,I] the controller does not hear what was read.
  // state: memory [B,N,W], usage [B,N], precedence [B,V,N], link [B,V,N,N], write weights [B,V,N], read weights [B,R,N],
  // hidden [B,H], cell [B,H], read vectors [B,R,W]; for "ntm" without usage, precedence and link. Empty, or parts of it none:
  // initial.
  // lengths [B]: of the samples, behind them y is zero. resets [T,B]: where a sample begins anew. reset_memory [B,N,W]: with
  // which memory.
  // tape: what the backward pass needs, with every link_every-th link; empty unless `keep`.
  m.def(
      "memory_sequence(str model, float[] options, Tensor x, Tensor?[] state, Tensor[] weights, Tensor? lengths, "
      "Tensor? resets, Tensor? reset_memory, SymInt[] sizes, float clip_value, SymInt link_every, bool keep) -> (Tensor y, "
      "Tensor[] final_state, Tensor[] tape)");
  // grad_y and grad_state: none stands for zero. link: of the state that was given. output_mask: (grad_x, grad_weights,
  // grad_initial_state, grad_reset_memory); what is not wanted comes back empty, and so does the link's if there was none.
  m.def(
      "memory_sequence_backward(str model, float[] options, Tensor? grad_y, Tensor?[] grad_state, Tensor x, Tensor? link, "
      "Tensor[] weights, Tensor? lengths, Tensor? resets, Tensor? reset_memory, Tensor[] tape, SymInt[] sizes, "
      "float clip_value, SymInt link_every, bool[4] output_mask) -> (Tensor grad_x, Tensor[] grad_weights, "
      "Tensor[] grad_initial_state, Tensor grad_reset_memory)");
  // With a gradient, once: what the two above compute.
  m.def(
      "memory_sequence_node(str model, float[] options, Tensor x, Tensor?[] state, Tensor[] weights, Tensor? lengths, "
      "Tensor? resets, Tensor? reset_memory, SymInt[] sizes, float clip_value, SymInt link_every) -> (Tensor y, "
      "Tensor[] final_state)");
  // The length of a row of the tape, for T + 1 states of B samples. sizes: I, H, O, N, W, V, R, S.
  m.def("memory_row_size(str model, float[] options, int[] sizes, ScalarType dtype) -> int");

  // The same step by step, on a tape [K+1,B,row] that the caller keeps; see cpu/memory_step.cpp. packed: the weights as
  // memory_pack gives them. Links have rows of memory_step_link_row, none stands for zero (with no precedence). A step reads
  // the tape's row `from` and writes row `to`, and copies x [B,I] to inputs[to - 1].
  m.def("pooled_empty(int[] sizes, Tensor like) -> Tensor");
  // How long the rows of links of N locations are there.
  m.def("memory_step_link_row(Tensor like, int num_locations) -> int");
  m.def("memory_pack(str model, float[] options, Tensor x, Tensor[] weights, int num_locations, bool backward) -> Tensor");
  m.def(
      "memory_step(str model, float[] options, int[] sizes, float clip_value, Tensor packed, Tensor x, Tensor(a!) tape, "
      "Tensor(b!) inputs, Tensor? previous_link, Tensor(c!)? next_link, int from_row, int to_row) -> Tensor");
  // grad_state [B,state] and grad_link: of the state after the step, become those of the one before. grads [K,B,gradients]:
  // this step's are set.
  m.def(
      "memory_step_backward(str model, float[] options, int[] sizes, float clip_value, Tensor packed, Tensor? grad_y, "
      "Tensor tape, Tensor? previous_link, int step, Tensor(a!) grad_state, Tensor(b!)? grad_link, Tensor(c!) grads, "
      "bool wants_x) -> Tensor grad_x");
  m.def(
      "memory_step_relink(str model, float[] options, int[] sizes, Tensor tape, Tensor? previous_link, Tensor(a!) next_link, "
      "int step) -> ()");
  m.def(
      "memory_step_weight_gradients(str model, float[] options, Tensor[] weights, int num_locations, Tensor inputs, "
      "Tensor tape, Tensor grads) -> Tensor[]");
  // Between a state, or its gradient, and rows of a tape. The link is not among what is exported.
  m.def(
      "memory_step_import(str model, float[] options, Tensor inputs, Tensor[] weights, int num_locations, Tensor?[] state, "
      "bool is_gradient, Tensor(a!) rows) -> ()");
  m.def(
      "memory_step_export(str model, float[] options, Tensor inputs, Tensor[] weights, int num_locations, Tensor rows) -> "
      "Tensor[]");
  m.def("memory_step_layout(str model, float[] options, int[] sizes, ScalarType dtype) -> int[]");
}

// Calling a raw operator on tensors that require a gradient is an error, not a silent None: the differentiable doors are the
// autograd Functions in routing_ext.ops and csrc/autograd.
TORCH_LIBRARY_IMPL(routing_ext, Autograd, m) {
  m.impl("gather_rows", torch::autograd::autogradNotImplementedFallback());
  m.impl("scatter_rows", torch::autograd::autogradNotImplementedFallback());
  m.impl("combine_rows", torch::autograd::autogradNotImplementedFallback());
  m.impl("combine_rows_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("grouped_linear", torch::autograd::autogradNotImplementedFallback());
  m.impl("grouped_linear_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("discounted_returns", torch::autograd::autogradNotImplementedFallback());
  m.impl("preference_states_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("preference_states_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("taken_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("taken_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("wpl_losses_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("content_weights", torch::autograd::autogradNotImplementedFallback());
  m.impl("content_weights_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("dnc_usage", torch::autograd::autogradNotImplementedFallback());
  m.impl("dnc_usage_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("dnc_allocation", torch::autograd::autogradNotImplementedFallback());
  m.impl("dnc_allocation_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("dnc_temporal_link", torch::autograd::autogradNotImplementedFallback());
  m.impl("dnc_temporal_link_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("ntm_location", torch::autograd::autogradNotImplementedFallback());
  m.impl("ntm_location_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("memory_write", torch::autograd::autogradNotImplementedFallback());
  m.impl("memory_write_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("memory_read", torch::autograd::autogradNotImplementedFallback());
  m.impl("memory_read_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("dnc_access", torch::autograd::autogradNotImplementedFallback());
  m.impl("dnc_access_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("ntm_access", torch::autograd::autogradNotImplementedFallback());
  m.impl("ntm_access_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("memory_sequence", torch::autograd::autogradNotImplementedFallback());
  m.impl("memory_sequence_backward", torch::autograd::autogradNotImplementedFallback());
}
