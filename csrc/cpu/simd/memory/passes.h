// Writing to the memory and reading from it, memory [W,n].
//
//   next_w = previous_w prod_v (1 - weights_v erase_vw) + sum_v weights_v add_vw
//   read_rw = sum_n weights_r next_w
#pragma once
#include "content.h"

namespace routing_ext::cpu {
namespace {

template <class C>
struct Write {
  int64_t word, n, words, heads;  // `words`: between the rows of erase and add
  const C* previous;              // [W,n]
  const C* weights;               // [V,n]
  const C *erase, *add;           // [V,words]

  // What is kept of a memory row's part, all heads but `except` erasing.
  ALWAYS_INLINE Vec<C> kept(int64_t w, int64_t i, int64_t except = -1) const {
    Vec<C> product = broadcast(C(1));
    for (int64_t v = 0; v < heads; ++v) {
      if (v != except) product *= C(1) - load(weights + v * n + i) * erase[v * words + w];
    }
    return product;
  }
};

// next and its norms [n].
template <class C>
inline void write_memory(const Write<C>& write, C* next, C* norms) {
  const int64_t n = write.n;
  for_each_block<C, 2>(n, [&](auto vectors, int64_t i) {
    constexpr int width = decltype(vectors)::count;
    Vec<C> squares[width] = {};
    if (write.heads == 1) {
      Vec<C> weight[width];
      UNROLL for (int v = 0; v < width; ++v) weight[v] = load(write.weights + i + v * kLanes<C>);
      for (int64_t w = 0; w < write.word; ++w) {
        const C erase = write.erase[w], add = write.add[w];
        UNROLL for (int v = 0; v < width; ++v) {
          const Vec<C> before = load(write.previous + w * n + i + v * kLanes<C>);
          const Vec<C> x = before * (C(1) - weight[v] * erase) + weight[v] * add;
          store(next + w * n + i + v * kLanes<C>, x);
          squares[v] += x * x;
        }
      }
    } else {
      for (int64_t w = 0; w < write.word; ++w) {
        UNROLL for (int v = 0; v < width; ++v) {
          const int64_t at = i + v * kLanes<C>;
          Vec<C> x = load(write.previous + w * n + at) * write.kept(w, at);
          for (int64_t h = 0; h < write.heads; ++h) x += load(write.weights + h * n + at) * write.add[h * write.words + w];
          store(next + w * n + at, x);
          squares[v] += x * x;
        }
      }
    }
    UNROLL for (int v = 0; v < width; ++v) store(norms + i + v * kLanes<C>, squares[v]);
  });
}

// read [heads,W] = weights [heads,n] memory^T.
template <class C>
inline void read_memory(int64_t heads, const C* weights, const C* memory, int64_t word, int64_t n, C* read) {
  for_each_heads(heads, [&](auto some, int64_t h) {
    constexpr int count = decltype(some)::count;
    constexpr int rows = ROUTING_EXT_VECTOR_BYTES == 64 ? 4 : 2;
    const auto of_rows = [&](auto block, int64_t w) {
      constexpr int width = decltype(block)::count;
      Vec<C> total[count * width] = {};
      for (int64_t i = 0; i < n; i += kLanes<C>) {
        Vec<C> m[width];
        UNROLL for (int q = 0; q < width; ++q) m[q] = load(memory + (w + q) * n + i);
        UNROLL for (int k = 0; k < count; ++k) {
          const Vec<C> weight = load(weights + (h + k) * n + i);
          UNROLL for (int q = 0; q < width; ++q) total[k * width + q] += weight * m[q];
        }
      }
      C sums[count * width];
      store_sums<C>(total, sums);
      UNROLL for (int k = 0; k < count; ++k) copy_few<C, width>(sums + k * width, read + (h + k) * word + w);
    };
    int64_t w = 0;
    for (; w + rows <= word; w += rows) of_rows(Heads<rows>(), w);
    for (; w < word; ++w) of_rows(Heads<1>(), w);
  });
}

// grad_weights [heads,n] += grad_read [heads,W] memory.
template <class C>
inline void read_memory_backward(int64_t heads, const C* grad_read, const C* memory, int64_t word, int64_t n,
                                 C* grad_weights) {
  for_each_heads(heads, [&](auto some, int64_t h) {
    constexpr int count = decltype(some)::count;
    for_each_block<C, count>(n, [&](auto vectors, int64_t i) {
      constexpr int width = decltype(vectors)::count;
      Vec<C> total[count][width];
      UNROLL for (int k = 0; k < count; ++k) {
        UNROLL for (int v = 0; v < width; ++v) total[k][v] = load(grad_weights + (h + k) * n + i + v * kLanes<C>);
      }
      for (int64_t w = 0; w < word; ++w) {
        UNROLL for (int v = 0; v < width; ++v) {
          const Vec<C> m = load(memory + w * n + i + v * kLanes<C>);
          UNROLL for (int k = 0; k < count; ++k) total[k][v] += grad_read[(h + k) * word + w] * m;
        }
      }
      UNROLL for (int k = 0; k < count; ++k) {
        UNROLL for (int v = 0; v < width; ++v) store(grad_weights + (h + k) * n + i + v * kLanes<C>, total[k][v]);
      }
    });
  });
}

// What flows into a memory from those who looked at it: content addressing by `heads` keys, and, if `reads`, the read vectors.
template <class C>
struct Lookups {
  int64_t heads, words;
  const C* keys;           // [heads,words]
  const C* grad_products;  // [heads,n]: of key . memory row
  const C* grad_norms;     // [n]: of |memory row|^2
  bool reads;
  const C* weights;    // [heads,n]: of the reads
  const C* grad_read;  // [heads,W]
  C* grad_keys;        // [heads,words] +=
};

// `rows` elements of each location and `count` heads, from element w and head h on. grad [W,n] of the memory: added to. The
// norms' share comes with head 0. Everything is captured by value, as in link.h.
template <class C, int rows, int count, bool reads>
inline void look_up_backward_of_rows(Lookups<C> look, int64_t h, int64_t w, const C* memory, int64_t word, int64_t n,
                                     C* grad) {
  const Elements<C, rows, count> key(look.keys + h * look.words, look.words, w);
  const Elements<C, rows, reads ? count : 1> read(reads ? look.grad_read + h * word : look.keys, word, w);
  const C *const from = memory + w * n, *const products = look.grad_products + h * n, *const weights = look.weights + h * n;
  C* const to = grad + w * n;
  const C of_norms = h == 0 ? C(2) : C(0);
  Vec<C> of_key[count * rows] = {};
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    const Vec<C> of_norm = of_norms * load(look.grad_norms + i);
    Vec<C> m[rows], g[rows];
    UNROLL for (int q = 0; q < rows; ++q) {
      m[q] = load(from + q * n + i);
      g[q] = load(to + q * n + i) + of_norm * m[q];
    }
    UNROLL for (int k = 0; k < count; ++k) {
      const Vec<C> product = load(products + k * n + i);
      UNROLL for (int q = 0; q < rows; ++q) {
        g[q] += product * key(k, q);
        of_key[k * rows + q] += product * m[q];
      }
      if constexpr (reads) {
        const Vec<C> weight = load(weights + k * n + i);
        UNROLL for (int q = 0; q < rows; ++q) g[q] += weight * read(k, q);
      }
    }
    UNROLL for (int q = 0; q < rows; ++q) store(to + q * n + i, g[q]);
  }
  C sums[count * rows];
  store_sums<C>(of_key, sums);
  UNROLL for (int k = 0; k < count; ++k) add_few<C, rows>(sums + k * rows, look.grad_keys + (h + k) * look.words + w);
}
template <class C, int count, bool reads>
void look_up_backward_heads(const Lookups<C>& look, int64_t h, const C* memory, int64_t word, int64_t n, C* grad) {
  constexpr int rows = ROUTING_EXT_VECTOR_BYTES == 64 ? 4 : 2;
  int64_t w = 0;
  for (; w + rows <= word; w += rows) look_up_backward_of_rows<C, rows, count, reads>(look, h, w, memory, word, n, grad);
  for (; w < word; ++w) look_up_backward_of_rows<C, 1, count, reads>(look, h, w, memory, word, n, grad);
}
template <class C>
inline void look_up_backward(const Lookups<C>& look, const C* memory, int64_t word, int64_t n, C* grad) {
  for_each_heads(look.heads, [&](auto some, int64_t h) {
    constexpr int count = decltype(some)::count;
    if (look.reads) {
      look_up_backward_heads<C, count, true>(look, h, memory, word, n, grad);
    } else {
      look_up_backward_heads<C, count, false>(look, h, memory, word, n, grad);
    }
  });
}

// `rows` elements of each location from element w on, of one head that writes alone.
template <class C, int rows>
inline void write_backward_of_rows(Write<C> write, int64_t w, C* grad, C* grad_weights, C* grad_erase, C* grad_add) {
  const int64_t n = write.n;
  const C* const from = write.previous + w * n;
  C* const to = grad + w * n;
  Vec<C> erase[rows], add[rows], both[2 * rows] = {};  // of erase, and then of add
  UNROLL for (int q = 0; q < rows; ++q) erase[q] = broadcast(write.erase[w + q]), add[q] = broadcast(write.add[w + q]);
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    const Vec<C> weight = load(write.weights + i);
    Vec<C> of_weight = load(grad_weights + i);
    UNROLL for (int q = 0; q < rows; ++q) {
      const Vec<C> g = load(to + q * n + i), previous = load(from + q * n + i), written = g * weight;
      of_weight += g * (add[q] - previous * erase[q]);
      both[q] -= written * previous;
      both[rows + q] += written;
      store(to + q * n + i, g - written * erase[q]);
    }
    store(grad_weights + i, of_weight);
  }
  C sums[2 * rows];
  store_sums<C>(both, sums);
  copy_few<C, rows>(sums, grad_erase + w), copy_few<C, rows>(sums + rows, grad_add + w);
}

// grad [W,n]: of the next memory, becomes that of the previous one. grad_weights [V,n] are added to, grad_erase and grad_add
// [V,words] are set.
template <class C>
inline void write_memory_backward(const Write<C>& write, C* grad, C* grad_weights, C* grad_erase, C* grad_add) {
  const int64_t n = write.n;
  if (write.heads == 1) {
    constexpr int rows = ROUTING_EXT_VECTOR_BYTES == 64 ? 4 : 2;
    int64_t w = 0;
    for (; w + rows <= write.word; w += rows)
      write_backward_of_rows<C, rows>(write, w, grad, grad_weights, grad_erase, grad_add);
    for (; w < write.word; ++w) write_backward_of_rows<C, 1>(write, w, grad, grad_weights, grad_erase, grad_add);
    return;
  }
  for (int64_t w = 0; w < write.word; ++w) {
    for (int64_t h = 0; h < write.heads; ++h) {
      const C erase = write.erase[h * write.words + w], add = write.add[h * write.words + w];
      const bool last = h == write.heads - 1;
      Vec<C> both[2] = {};  // of erase and add
      for (int64_t i = 0; i < n; i += kLanes<C>) {
        const Vec<C> g = load(grad + w * n + i), weight = load(write.weights + h * n + i);
        const Vec<C> others = g * write.kept(w, i, h);
        const Vec<C> erased = others * load(write.previous + w * n + i);
        C* const at = grad_weights + h * n + i;
        store(at, load(at) + g * add - erased * erase);
        both[0] -= erased * weight;
        both[1] += g * weight;
        if (last) store(grad + w * n + i, others * (C(1) - weight * erase));
      }
      C sums[2];
      store_sums<C>(both, sums);
      grad_erase[h * write.words + w] = sums[0], grad_add[h * write.words + w] = sums[1];
    }
  }
}

}  // namespace
}  // namespace routing_ext::cpu
