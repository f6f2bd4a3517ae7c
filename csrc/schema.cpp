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

  // x [B, ...], order [n] without repeats -> y [n, ...], y[i] = x[order[i]].
  m.def("gather_rows(Tensor x, Tensor order) -> Tensor");
  // y [n, ...], order [n] without repeats -> x [num_rows, ...], x[order[i]] = y[i], zero elsewhere.
  m.def("scatter_rows(Tensor y, Tensor order, SymInt num_rows) -> Tensor");

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
}

// Calling a raw operator on tensors that require a gradient is an error, not a silent None: the differentiable doors are the
// autograd Functions in routing_ext.ops.
TORCH_LIBRARY_IMPL(routing_ext, Autograd, m) {
  m.impl("gather_rows", torch::autograd::autogradNotImplementedFallback());
  m.impl("scatter_rows", torch::autograd::autogradNotImplementedFallback());
  m.impl("grouped_linear", torch::autograd::autogradNotImplementedFallback());
  m.impl("grouped_linear_backward", torch::autograd::autogradNotImplementedFallback());
}
