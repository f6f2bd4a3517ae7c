// Addressing by content: softmax over locations of strength * cosine(key, memory row).
//
//   cosine = dot / (sqrt(A B) + eps),  A = |key|^2 + inner,  B = |memory row|^2 + inner;  inner is eps, or 0 for the plain one
#pragma once
#include "functions.h"

namespace routing_ext::cpu {
namespace {

inline constexpr double kEpsilon = 1e-6;

// out [heads,n] = keys [heads,.] memory [W,n]; keys lie `stride` apart.
template <class C>
inline void key_products(int64_t heads, const C* keys, int64_t stride, const C* memory, int64_t word, int64_t n, C* out) {
  for_each_heads(heads, [&](auto some, int64_t h) {
    constexpr int count = decltype(some)::count;
    for_each_block<C, count>(n, [&](auto vectors, int64_t i) {
      constexpr int width = decltype(vectors)::count;
      Vec<C> product[count][width] = {};
      const C* const key = keys + h * stride;
      for (int64_t w = 0; w < word; ++w) {
        UNROLL for (int v = 0; v < width; ++v) {
          const Vec<C> m = load(memory + w * n + i + v * kLanes<C>);
          UNROLL for (int k = 0; k < count; ++k) product[k][v] += key[k * stride + w] * m;
        }
      }
      UNROLL for (int k = 0; k < count; ++k) {
        UNROLL for (int v = 0; v < width; ++v) store(out + (h + k) * n + i + v * kLanes<C>, product[k][v]);
      }
    });
  });
}

// In place. What the padding holds does not matter, as long as it is no larger than the rest; it becomes zero.
template <class C>
inline void softmax(int64_t locations, int64_t n, C* row) {
  Vec<C> most = load(row), total = {};
  for (int64_t i = kLanes<C>; i < n; i += kLanes<C>) most = larger_of<C>(most, load(row + i));
  const C top = largest<C>(most);
  for (int64_t i = 0; i < n; i += kLanes<C>) store(row + i, exponential<C>(load(row + i) - top));
  clear_padding(row, locations, n);
  for (int64_t i = 0; i < n; i += kLanes<C>) total += load(row + i);
  const C scale = C(1) / sum<C>(total);
  for (int64_t i = 0; i < n; i += kLanes<C>) store(row + i, load(row + i) * scale);
}

// Of one head. cosine [n]: on entry the dot products. norms [n]: |memory row|^2.
template <class C>
inline void content_weights(C strength, C key_norm, const C* norms, int64_t locations, int64_t n, C* cosine, C* weights,
                            C inner = C(kEpsilon)) {
  constexpr C eps = C(kEpsilon);
  const C a = key_norm + inner;
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    const Vec<C> similarity = load(cosine + i) / (square_root<C>(a * (load(norms + i) + inner)) + eps);
    store(cosine + i, similarity);
    store(weights + i, strength * similarity);
  }
  fill(weights + locations, n - locations, weights[0]);
  softmax(locations, n, weights);
}

template <class C>
struct ContentGradient {
  C strength, key_norm;  // of |key|^2
};
// Of one head. grad [n]: of the weights; becomes that of the dot products. grad_norms [n] += that of |memory row|^2.
template <class C>
inline ContentGradient<C> content_weights_backward(C strength, C key_norm, const C* norms, int64_t n, const C* cosine,
                                                   const C* weights, C* grad, C* grad_norms, C inner = C(kEpsilon)) {
  constexpr C eps = C(kEpsilon), least = sizeof(C) == 4 ? C(1e-37) : C(1e-300);
  const C a = key_norm + inner;
  Vec<C> along = {};
  for (int64_t i = 0; i < n; i += kLanes<C>) along += load(grad + i) * load(weights + i);
  const C mean = sum<C>(along);
  Vec<C> both[2] = {};
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    const Vec<C> score = load(weights + i) * (load(grad + i) - mean), similarity = load(cosine + i);
    const Vec<C> b = load(norms + i) + inner, root = square_root<C>(a * b);
    const Vec<C> dot = strength * score / (root + eps);
    const Vec<C> product = dot * similarity * (C(-0.5) / (root + least));  // of A B; none where one is zero
    both[0] += score * similarity;
    both[1] += product * b;
    store(grad + i, dot);
    store(grad_norms + i, load(grad_norms + i) + product * a);
  }
  C sums[2];
  store_sums<C>(both, sums);
  return {sums[0], sums[1]};
}

}  // namespace
}  // namespace routing_ext::cpu
