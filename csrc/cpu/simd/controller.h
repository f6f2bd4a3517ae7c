// The elementwise part of an LSTM cell, of the output layer, and of a layer normalisation.
#pragma once
#include "memory/functions.h"

namespace routing_ext::cpu {
namespace {

// Zero where clipping stops the gradient.
template <class C>
inline Vec<C> where_unclipped(Vec<C> x, C clip, Vec<C> grad) {
  return (x >= -clip) & (x <= clip) ? grad : Vec<C>{};
}

// gates [4H]: i, f, g, o before their activations, and behind them afterwards.
template <class C>
inline void lstm_forward(int64_t hidden, C clip, const C* cell_before, C* gates, C* cell, C* tanh_cell, C* h) {
  for_each_vector<C>(hidden, [&](int64_t j, auto at) {
    const Vec<C> i = sigmoid<C>(at.load(gates + j)), f = sigmoid<C>(at.load(gates + hidden + j));
    const Vec<C> g = tangent<C>(at.load(gates + 2 * hidden + j)), o = sigmoid<C>(at.load(gates + 3 * hidden + j));
    const Vec<C> c = f * at.load(cell_before + j) + i * g, t = tangent<C>(c);
    at.store(gates + j, i), at.store(gates + hidden + j, f);
    at.store(gates + 2 * hidden + j, g), at.store(gates + 3 * hidden + j, o);
    at.store(cell + j, c), at.store(tanh_cell + j, t);
    at.store(h + j, clamped<C>(o * t, -clip, clip));
  });
}

// grad_cell [H]: of the cell; becomes that of the cell before. grad_gates [4H]: before their activations.
template <class C>
inline void lstm_backward(int64_t hidden, C clip, const C* cell_before, const C* gates, const C* tanh_cell, const C* grad_h,
                          C* grad_cell, C* grad_gates) {
  for_each_vector<C>(hidden, [&](int64_t j, auto at) {
    const Vec<C> i = at.load(gates + j), f = at.load(gates + hidden + j);
    const Vec<C> g = at.load(gates + 2 * hidden + j), o = at.load(gates + 3 * hidden + j), t = at.load(tanh_cell + j);
    const Vec<C> of_h = where_unclipped<C>(o * t, clip, at.load(grad_h + j));
    const Vec<C> of_cell = at.load(grad_cell + j) + of_h * o * (C(1) - t * t);
    at.store(grad_gates + j, of_cell * g * i * (C(1) - i));
    at.store(grad_gates + hidden + j, of_cell * at.load(cell_before + j) * f * (C(1) - f));
    at.store(grad_gates + 2 * hidden + j, of_cell * i * (C(1) - g * g));
    at.store(grad_gates + 3 * hidden + j, of_h * t * o * (C(1) - o));
    at.store(grad_cell + j, of_cell * f);
  });
}

// x [count] becomes (x - mean) / deviation * weight + bias. normed: without weight and bias. scale: 1 / deviation.
template <class C>
inline void norm_forward(int64_t count, C epsilon, const C* weight, const C* bias, C* x, C* normed, C* scale) {
  const C mean = sum_of<C>(count, [&](int64_t j, auto at) { return at.load(x + j); }) / static_cast<C>(count);
  for_each_vector<C>(count, [&](int64_t j, auto at) { at.store(normed + j, at.load(x + j) - mean); });
  const C variance =
      sum_of<C>(count, [&](int64_t j, auto at) { return at.load(normed + j) * at.load(normed + j); }) / static_cast<C>(count);
  const C factor = C(1) / square_root<C>(broadcast(variance + epsilon))[0];
  for_each_vector<C>(count, [&](int64_t j, auto at) {
    const Vec<C> n = at.load(normed + j) * factor;
    at.store(normed + j, n), at.store(x + j, n * at.load(weight + j) + at.load(bias + j));
  });
  *scale = factor;
}

// grad [count]: of what norm_forward gave; becomes that of x. grad_weight, grad_bias [count]: are set.
template <class C>
inline void norm_backward(int64_t count, const C* weight, const C* normed, C scale, C* grad, C* grad_weight, C* grad_bias) {
  const auto of_normed = [&](int64_t j, auto at) { return at.load(grad + j) * at.load(weight + j); };
  const C mean = sum_of<C>(count, of_normed) / static_cast<C>(count);
  const C along =
      sum_of<C>(count, [&](int64_t j, auto at) { return of_normed(j, at) * at.load(normed + j); }) / static_cast<C>(count);
  for_each_vector<C>(count, [&](int64_t j, auto at) {
    const Vec<C> g = at.load(grad + j), n = at.load(normed + j);
    at.store(grad_weight + j, g * n), at.store(grad_bias + j, g);
    at.store(grad + j, scale * (of_normed(j, at) - mean - n * along));
  });
}

// y = sigmoid(clip(x)), or x itself, and its slope in place of x.
template <class C>
inline void output_forward(int64_t count, bool linear, C clip, C* x, C* y) {
  if (linear) {
    copy(x, count, y);
    return fill(x, count, C(1));
  }
  for_each_vector<C>(count, [&](int64_t j, auto at) {
    const Vec<C> v = at.load(x + j), s = sigmoid<C>(clamped<C>(v, -clip, clip));
    at.store(y + j, s);
    at.store(x + j, where_unclipped<C>(v, clip, s * (C(1) - s)));
  });
}

}  // namespace
}  // namespace routing_ext::cpu
