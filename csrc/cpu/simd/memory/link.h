// The temporal link of one write head (Graves et al., 2016), and the reads along it, in one sweep over the matrix.
//
//   next_ij = (1 - w_i - w_j) previous_ij + w_i p_j,  next_ii = 0
//   forward_r = next read_r,  backward_r = next^T read_r;  reads are those of the step before
//
// link [N,n]; w, p [n]; read, forward, backward [R,n]. The padding of all is zero, and stays so.
#pragma once
#include "functions.h"

namespace routing_ext::cpu {
namespace {

// Rows of the matrix taken at once. Each has a sum for every head; more would not fit the registers.
inline constexpr int kLinkRows = ROUTING_EXT_VECTOR_BYTES == 64 ? 4 : 2;

template <class C>
struct Link {
  int64_t locations, n;
  const C* previous;              // [N,n]
  const C *weights, *precedence;  // w, p

  // Row i's elements j.. of the next link, from those of the previous.
  ALWAYS_INLINE Vec<C> updated(Vec<C> previous_ij, C w_i, Vec<C> w_j, Vec<C> p_j) const {
    return ((C(1) - w_i) - w_j) * previous_ij + w_i * p_j;
  }
};

template <class C>
ALWAYS_INLINE inline Vec<C> without_lane(Vec<C> x, int64_t lane) {
  return lane_numbers<C>(0) == static_cast<Integer<C>>(lane) ? Vec<C>{} : x;
}

// f(j, on_diagonal) for each vector of the rows i..i+rows-1.
template <class C, int rows, class F>
ALWAYS_INLINE inline void for_each_column(int64_t i, int64_t n, const F& f) {
  const int64_t first = i / kLanes<C> * kLanes<C>, end = (i + rows + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
  for (int64_t j = 0; j < first; j += kLanes<C>) f(j, Constant<false>());
  for (int64_t j = first; j < end; j += kLanes<C>) f(j, Constant<true>());
  for (int64_t j = end; j < n; j += kLanes<C>) f(j, Constant<false>());
}

// f(Heads<rows>(), i) for all rows in blocks.
template <class F>
inline void for_each_rows(int64_t locations, const F& f) {
  int64_t i = 0;
  for (; i + kLinkRows <= locations; i += kLinkRows) f(Heads<kLinkRows>(), i);
  for (; i < locations; ++i) f(Heads<1>(), i);
}

// `heads` heads of the reads. updates: `next` is computed, else it is there.
template <class C, int heads, bool updates>
void link_reads(const Link<C>& link, C* next, const C* read, C* forward, C* backward) {
  const int64_t n = link.n;
  fill(backward, heads * n, C(0));
  for_each_rows(link.locations, [&](auto some, int64_t i) {
    constexpr int rows = decltype(some)::count;
    Vec<C> along[rows * heads] = {};
    for_each_column<C, rows>(i, n, [&](int64_t j, auto diagonal) ALWAYS_INLINE {
      const Vec<C> w_j = load(link.weights + j), p_j = load(link.precedence + j);
      Vec<C> across[heads];
      UNROLL for (int r = 0; r < heads; ++r) across[r] = load(backward + r * n + j);
      UNROLL for (int q = 0; q < rows; ++q) {
        Vec<C> x;
        if constexpr (updates) {
          x = link.updated(load(link.previous + (i + q) * n + j), link.weights[i + q], w_j, p_j);
          if constexpr (decltype(diagonal)::value) x = without_lane<C>(x, i + q - j);
          store(next + (i + q) * n + j, x);
        } else {
          x = load(next + (i + q) * n + j);
        }
        UNROLL for (int r = 0; r < heads; ++r) {
          along[q * heads + r] += x * load(read + r * n + j);
          across[r] += x * read[r * n + i + q];
        }
      }
      UNROLL for (int r = 0; r < heads; ++r) store(backward + r * n + j, across[r]);
    });
    C sums[rows * heads];
    store_sums<C>(along, sums);
    UNROLL for (int q = 0; q < rows; ++q) {
      UNROLL for (int r = 0; r < heads; ++r) forward[r * n + i + q] = sums[q * heads + r];
    }
  });
  for (int r = 0; r < heads; ++r) clear_padding(forward + r * n, link.locations, n);
}

template <class C>
inline void update_link(const Link<C>& link, C* next, int64_t reads, const C* read, C* forward, C* backward) {
  const int64_t n = link.n;
  for_each_heads(reads, [&](auto some, int64_t r) {
    constexpr int heads = decltype(some)::count;
    if (r == 0) {
      link_reads<C, heads, true>(link, next, read, forward, backward);
    } else {
      link_reads<C, heads, false>(link, next, read + r * n, forward + r * n, backward + r * n);
    }
  });
}

// The update alone.
template <class C>
inline void relink(const Link<C>& link, C* next) {
  const int64_t n = link.n;
  for (int64_t i = 0; i < link.locations; ++i) {
    for (int64_t j = 0; j < n; j += kLanes<C>) {
      const Vec<C> w_j = load(link.weights + j), p_j = load(link.precedence + j);
      store(next + i * n + j, link.updated(load(link.previous + i * n + j), link.weights[i], w_j, p_j));
    }
    next[i * n + i] = 0;
  }
}

template <class C>
struct LinkGradients {
  C* link;                         // [N,n]: of the next link, becomes that of the previous one
  const C *forward, *backward;     // [R,n]: of the reads along it
  C *read, *weights, *precedence;  // [R,n], [n], [n]: added to
};

// `heads` heads. last: what flows to the previous link is complete with these.
template <class C, int heads, bool last>
void link_backward(const Link<C>& link, const C* read, const LinkGradients<C>& grad) {
  const int64_t n = link.n;
  for_each_rows(link.locations, [&](auto some, int64_t i) {
    constexpr int rows = decltype(some)::count;
    Vec<C> along[rows * heads] = {}, of_w_i[rows] = {};
    for_each_column<C, rows>(i, n, [&](int64_t j, auto diagonal) ALWAYS_INLINE {
      const Vec<C> w_j = load(link.weights + j), p_j = load(link.precedence + j);
      Vec<C> across[heads], of_w_j = {}, of_p_j = {};
      UNROLL for (int r = 0; r < heads; ++r) across[r] = load(grad.read + r * n + j);
      UNROLL for (int q = 0; q < rows; ++q) {
        const C w_i = link.weights[i + q];
        const Vec<C> previous = load(link.previous + (i + q) * n + j);
        Vec<C> x = link.updated(previous, w_i, w_j, p_j);
        C* const at = grad.link + (i + q) * n + j;
        Vec<C> g = load(at), h = {};
        UNROLL for (int r = 0; r < heads; ++r) {
          g += grad.forward[r * n + i + q] * load(read + r * n + j);
          h += read[r * n + i + q] * load(grad.backward + r * n + j);
        }
        g += h;
        if constexpr (decltype(diagonal)::value) x = without_lane<C>(x, i + q - j), g = without_lane<C>(g, i + q - j);
        UNROLL for (int r = 0; r < heads; ++r) {
          across[r] += grad.forward[r * n + i + q] * x;
          along[q * heads + r] += load(grad.backward + r * n + j) * x;
        }
        if constexpr (last) {
          const Vec<C> kept = g * previous;
          of_w_i[q] += g * p_j - kept;
          of_w_j -= kept;
          of_p_j += g * w_i;
          store(at, ((C(1) - w_i) - w_j) * g);
        } else {
          store(at, g);
        }
      }
      UNROLL for (int r = 0; r < heads; ++r) store(grad.read + r * n + j, across[r]);
      if constexpr (last) {
        store(grad.weights + j, load(grad.weights + j) + of_w_j);
        store(grad.precedence + j, load(grad.precedence + j) + of_p_j);
      }
    });
    C sums[rows * heads];
    store_sums<C>(along, sums);
    UNROLL for (int q = 0; q < rows; ++q) {
      UNROLL for (int r = 0; r < heads; ++r) grad.read[r * n + i + q] += sums[q * heads + r];
    }
    if constexpr (last) {
      C of_w[rows];
      store_sums<C>(of_w_i, of_w);
      UNROLL for (int q = 0; q < rows; ++q) grad.weights[i + q] += of_w[q];
    }
  });
}

template <class C>
inline void update_link_backward(const Link<C>& link, int64_t reads, const C* read, const LinkGradients<C>& grad) {
  for_each_heads(reads, [&](auto some, int64_t r) {
    constexpr int heads = decltype(some)::count;
    LinkGradients<C> part = grad;
    part.forward += r * link.n, part.backward += r * link.n, part.read += r * link.n;
    if (r + heads == reads) {
      link_backward<C, heads, true>(link, read + r * link.n, part);
    } else {
      link_backward<C, heads, false>(link, read + r * link.n, part);
    }
  });
}

}  // namespace
}  // namespace routing_ext::cpu
