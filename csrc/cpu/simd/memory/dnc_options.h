// What a DNC's step does only if asked to: see MemoryOptions.
#pragma once
#include "allocation.h"
#include "passes.h"

namespace routing_ext::cpu {
namespace {

// ---- masked lookup (Csordas and Schmidhuber, 2019) -------------------------------------------------------------------------
//
// Key and memory are seen through the head's mask:
//   dot = (key mask^2) . row,  |key|^2 = key^2 . mask^2,  |row|^2 = row^2 . mask^2

template <class C>
struct MaskedHeads {
  int64_t heads, word, n, words;  // `words`: between the rows of what has a row a head
  const C *masks, *keys;          // [H,words]

  ALWAYS_INLINE C square(int64_t h, int64_t w) const { return masks[h * words + w] * masks[h * words + w]; }

  // masked_keys [H,words] = key mask^2, key_norms [H].
  void mask_keys(C* masked_keys, C* key_norms) const {
    for (int64_t h = 0; h < heads; ++h) {
      C norm = 0;
      for (int64_t w = 0; w < word; ++w) {
        const C key = keys[h * words + w];
        masked_keys[h * words + w] = key * square(h, w), norm += key * key * square(h, w);
      }
      key_norms[h] = norm;
    }
  }
  // norms [H,n]: of the rows of the memory.
  void mask_norms(const C* memory, C* norms) const {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < n; i += kLanes<C>) {
        Vec<C> total = {};
        for (int64_t w = 0; w < word; ++w) {
          const Vec<C> x = load(memory + w * n + i);
          total += square(h, w) * x * x;
        }
        store(norms + h * n + i, total);
      }
    }
  }
  // grad_norms [H,n], grad_keys [H,words] of the masked keys, grad_key_norms [H]. grad_memory [W,n] is added to; grad_keys
  // becomes that of the keys, with all that comes through their norms, whose own gradient becomes zero. grad_masks [H,words]
  // is set.
  void backward(const C* memory, const C* grad_norms, C* grad_memory, C* grad_keys, C* grad_key_norms, C* grad_masks) const {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t w = 0; w < word; ++w) {
        const C mask = masks[h * words + w], q = square(h, w), key = keys[h * words + w];
        Vec<C> squares = {};
        for (int64_t i = 0; i < n; i += kLanes<C>) {
          const Vec<C> x = load(memory + w * n + i), part = load(grad_norms + h * n + i) * x;
          C* const at = grad_memory + w * n + i;
          store(at, load(at) + C(2) * q * part);
          squares += part * x;
        }
        C& of_key = grad_keys[h * words + w];
        const C of_q = key * of_key + key * key * grad_key_norms[h] + sum<C>(squares);
        of_key = q * (of_key + C(2) * key * grad_key_norms[h]);
        grad_masks[h * words + w] = C(2) * mask * of_q;
      }
      grad_key_norms[h] = 0;
    }
  }
};

// ---- freed locations are erased (Csordas and Schmidhuber, 2019) ------------------------------------------------------------

// kept [W,n] = memory times what the free gates leave of each location.
template <class C>
inline void erase_freed(const UsageWeights<C>& used, int64_t word, const C* memory, C* kept) {
  for (int64_t i = 0; i < used.n; i += kLanes<C>) {
    const Vec<C> left = used.not_freed(i);
    for (int64_t w = 0; w < word; ++w) store(kept + w * used.n + i, left * load(memory + w * used.n + i));
  }
}
// grad [W,n]: of `kept`, becomes that of the memory. grad_left [n]: of what is left of a location, is set.
template <class C>
inline void erase_freed_backward(const UsageWeights<C>& used, int64_t word, const C* memory, C* grad, C* grad_left) {
  for (int64_t i = 0; i < used.n; i += kLanes<C>) {
    const Vec<C> left = used.not_freed(i);
    Vec<C> total = {};
    for (int64_t w = 0; w < word; ++w) {
      C* const at = grad + w * used.n + i;
      total += load(at) * load(memory + w * used.n + i);
      store(at, left * load(at));
    }
    store(grad_left + i, total);
  }
}
// grad_read [R,n] and grad_free [R] += what flows through that.
template <class C>
inline void left_backward(const UsageWeights<C>& used, const C* grad_left, C* grad_read, C* grad_free) {
  for (int64_t r = 0; r < used.reads; ++r) {
    Vec<C> free_gate = {};
    for (int64_t i = 0; i < used.n; i += kLanes<C>) {
      const Vec<C> others = load(grad_left + i) * used.not_freed(i, r);
      C* const at = grad_read + r * used.n + i;
      store(at, load(at) - others * used.free_gates[r]);
      free_gate -= others * load(used.read_weights + r * used.n + i);
    }
    grad_free[r] += sum<C>(free_gate);
  }
}

// ---- sharpened reads along the link (Csordas and Schmidhuber, 2019) --------------------------------------------------------
//
//   out = softmax(sharpness log(row + eps)) = (row + eps)^sharpness / sum

template <class C>
inline Vec<C> above_eps(Vec<C> row) {
  return larger_of<C>(row, Vec<C>{}) + C(kEpsilon);
}
template <class C>
inline void sharpen(int64_t locations, int64_t n, C sharpness, const C* row, C* out) {
  for (int64_t i = 0; i < n; i += kLanes<C>) store(out + i, sharpness * logarithm<C>(above_eps<C>(load(row + i))));
  fill(out + locations, n - locations, out[0]);
  softmax(locations, n, out);
}
// grad [n]: of `out`, becomes that of the row. -> Of the sharpness.
template <class C>
inline C sharpen_backward(int64_t n, C sharpness, const C* row, const C* out, C* grad) {
  Vec<C> along = {}, of_sharpness = {};
  for (int64_t i = 0; i < n; i += kLanes<C>) along += load(grad + i) * load(out + i);
  const C mean = sum<C>(along);
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    const Vec<C> score = load(out + i) * (load(grad + i) - mean), x = load(row + i), above = above_eps<C>(x);
    of_sharpness += score * logarithm<C>(above);
    store(grad + i, x < C(0) ? Vec<C>{} : sharpness * score / above);
  }
  return sum<C>(of_sharpness);
}

}  // namespace
}  // namespace routing_ext::cpu
