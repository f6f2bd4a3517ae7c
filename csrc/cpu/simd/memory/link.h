// The temporal link of one write head (Graves et al., 2016), and the reads along it, in one sweep over the matrix.
//
//   next_ij = (1 - w_i - w_j) previous_ij + w_i p_j,  next_ii = 0
//   forward_r = next read_r,  backward_r = next^T read_r;  reads are those of the step before
//
// link [N,n]; w, p [n]; read, forward, backward [R,n]. The padding of all is zero, and stays so.
#pragma once
#include "../../memory_kernels.h"
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
  const Team* team = nullptr;

  // Row i's elements j.. of the next link, from those of the previous.
  ALWAYS_INLINE Vec<C> updated(Vec<C> previous_ij, C w_i, Vec<C> w_j, Vec<C> p_j) const {
    return ((C(1) - w_i) - w_j) * previous_ij + w_i * p_j;
  }
};

template <class C>
ALWAYS_INLINE inline Vec<C> without_lane(Vec<C> x, int64_t lane) {
  return lane_numbers<C>(0) == static_cast<Integer<C>>(lane) ? Vec<C>{} : x;
}

// f(Heads<rows>(), i) for these rows of the matrix in blocks.
template <int rows, class F>
inline void for_each_rows(Span all, const F& f) {
  int64_t i = all.begin;
  for (; i + rows <= all.end; i += rows) f(Heads<rows>(), i);
  for (; i < all.end; ++i) f(Heads<1>(), i);
}

// f(rows, own) for all rows of the matrix. Alone: at once, with own = nullptr. In a team: a part of them in each thread, of
// which all but one have zeros [size] in `own` for their sums, and afterwards add(own) for each of these.
template <class C, class F, class Add>
inline void share_rows(const Link<C>& link, int64_t size, const F& f, const Add& add) {
  if (link.team == nullptr || link.locations < kTeamLocations) return f(Span{0, link.locations}, static_cast<C*>(nullptr));
  struct Call {
    const Link<C>& link;
    int64_t size;
    const F& f;
    C* sums;
  } call{link, size, f, static_cast<C*>(link.team->memory)};
  const int64_t parts = link.team->parts;
  link.team->run(
      *link.team,
      [](void* argument, int64_t part) {
        const Call& c = *static_cast<const Call*>(argument);
        const int64_t blocks = (c.link.locations + kLinkRows - 1) / kLinkRows, of = c.link.team->parts;
        C* const own = part == 0 ? nullptr : c.sums + (part - 1) * c.size;
        if (own) fill(own, c.size, C(0));
        c.f(Span{blocks * part / of * kLinkRows, least(blocks * (part + 1) / of * kLinkRows, c.link.locations)}, own);
      },
      &call);
  for (int64_t part = 1; part < parts; ++part) add(static_cast<const C*>(call.sums + (part - 1) * size));
}
template <class C>
inline void add_row(const C* x, int64_t n, C* sum) {
  for (int64_t i = 0; i < n; i += kLanes<C>) store(sum + i, load(sum + i) + load(x + i));
}

// f(begin, end, on_diagonal) for the columns of the rows i..i+rows-1 before, on and behind the diagonal, in whole vectors.
template <class C, int rows, class F>
ALWAYS_INLINE inline void for_each_columns(int64_t i, int64_t n, const F& f) {
  const int64_t first = i / kLanes<C> * kLanes<C>, end = (i + rows + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
  f(0, first, Constant<false>());
  f(first, end, Constant<true>());
  f(end, n, Constant<false>());
}

// Some rows, and `heads` heads of the reads. updates: `next` is computed, else it is there. Everything is captured by value:
// what a reference leads to would have to be loaded again after every store.
template <class C, int rows, int heads, bool updates>
inline void link_reads_of_rows(Link<C> link, C* next, const C* read, C* forward, C* backward, int64_t i) {
  const int64_t n = link.n;
  Vec<C> along[rows * heads] = {};
  Corner<C, rows, heads> read_i(read, n, i);
  Corner<C, rows, 1> w_i(link.weights, n, i);
  const C* const from = link.previous + i * n;
  C* const to = next + i * n;
  for_each_columns<C, rows>(i, n, [=, &along, &read_i, &w_i](int64_t begin, int64_t end, auto diagonal) ALWAYS_INLINE {
    for (int64_t j = begin; j < end; j += kLanes<C>) {
      const Vec<C> w_j = load(link.weights + j), p_j = load(link.precedence + j);
      Vec<C> across[heads], read_j[heads];
      UNROLL for (int r = 0; r < heads; ++r) across[r] = load(backward + r * n + j), read_j[r] = load(read + r * n + j);
      UNROLL for (int q = 0; q < rows; ++q) {
        Vec<C> x = load((updates ? from : to) + q * n + j);
        if constexpr (updates) {
          x = link.updated(x, w_i(0, q), w_j, p_j);
          if constexpr (decltype(diagonal)::value) x = without_lane<C>(x, i + q - j);
          store(to + q * n + j, x);
        }
        UNROLL for (int r = 0; r < heads; ++r) {
          along[r * rows + q] += x * read_j[r];
          across[r] += x * read_i(r, q);
        }
      }
      UNROLL for (int r = 0; r < heads; ++r) store(backward + r * n + j, across[r]);
    }
  });
  C sums[rows * heads];
  store_sums<C>(along, sums);
  UNROLL for (int r = 0; r < heads; ++r) copy_few<C, rows>(sums + r * rows, forward + r * n + i);
}
template <class C, int heads, bool updates>
void link_reads(const Link<C>& link, C* next, const C* read, C* forward, C* backward) {
  fill(backward, heads * link.n, C(0));
  share_rows(
      link, heads * link.n,
      [&](Span part, C* own) {
        for_each_rows<kLinkRows>(part, [&](auto rows, int64_t i) {
          link_reads_of_rows<C, decltype(rows)::count, heads, updates>(link, next, read, forward, own ? own : backward, i);
        });
      },
      [&](const C* own) { add_row(own, heads * link.n, backward); });
  for (int r = 0; r < heads; ++r) clear_padding(forward + r * link.n, link.locations, link.n);
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
  const auto rows = [=](Span part, const C*) {
    for (int64_t i = part.begin; i < part.end; ++i) {
      for (int64_t j = 0; j < n; j += kLanes<C>) {
        const Vec<C> w_j = load(link.weights + j), p_j = load(link.precedence + j);
        store(next + i * n + j, link.updated(load(link.previous + i * n + j), link.weights[i], w_j, p_j));
      }
      next[i * n + i] = 0;
    }
  };
  share_rows(link, 0, rows, [](const C*) {});
}

// next [n] = (1 - sum w) p + w.
template <class C>
inline void update_precedence(int64_t n, const C* w, const C* p, C* next) {
  Vec<C> total = {};
  for (int64_t i = 0; i < n; i += kLanes<C>) total += load(w + i);
  const C kept = C(1) - sum<C>(total);
  for (int64_t i = 0; i < n; i += kLanes<C>) store(next + i, kept * load(p + i) + load(w + i));
}
// grad [n]: of the next precedence, becomes that of p. grad_weights [n] is added to.
template <class C>
inline void update_precedence_backward(int64_t locations, int64_t n, const C* w, const C* p, C* grad, C* grad_weights) {
  Vec<C> both[2] = {};
  for (int64_t i = 0; i < n; i += kLanes<C>) both[0] += load(w + i), both[1] += load(p + i) * load(grad + i);
  C total[2];
  store_sums<C>(both, total);
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    const Vec<C> g = load(grad + i);
    store(grad_weights + i, load(grad_weights + i) + g - total[1]);
    store(grad + i, (C(1) - total[0]) * g);
  }
  clear_padding(grad_weights, locations, n);
}

template <class C>
struct LinkGradients {
  C* link;                         // [N,n]: of the next link, becomes that of the previous one
  const C *forward, *backward;     // [R,n]: of the reads along it
  C *read, *weights, *precedence;  // [R,n], [n], [n]: added to
};

// Some rows and `heads` heads. last: what flows to the previous link is complete with these.
template <class C, int rows, int heads, bool last>
inline void link_backward_of_rows(Link<C> link, const C* read, LinkGradients<C> grad, int64_t i) {
  const int64_t n = link.n;
  Vec<C> along[rows * heads] = {}, of_w_i[rows] = {};
  Corner<C, rows, heads> read_i(read, n, i), of_forward_i(grad.forward, n, i);
  Corner<C, rows, 1> w_i(link.weights, n, i);
  const C* const from = link.previous + i * n;
  C* const of_link = grad.link + i * n;
  for_each_columns<C, rows>(
      i, n, [=, &along, &of_w_i, &read_i, &of_forward_i, &w_i](int64_t begin, int64_t end, auto diagonal) ALWAYS_INLINE {
        for (int64_t j = begin; j < end; j += kLanes<C>) {
          const Vec<C> w_j = load(link.weights + j), p_j = load(link.precedence + j);
          Vec<C> across[heads], read_j[heads], of_backward_j[heads];
          UNROLL for (int r = 0; r < heads; ++r) {
            across[r] = load(grad.read + r * n + j);
            read_j[r] = load(read + r * n + j), of_backward_j[r] = load(grad.backward + r * n + j);
          }
          Vec<C> of_w_j = load(grad.weights + j), of_p_j = load(grad.precedence + j), g[rows];
          UNROLL for (int q = 0; q < rows; ++q) {
            const Vec<C> previous = load(from + q * n + j);
            Vec<C> x = link.updated(previous, w_i(0, q), w_j, p_j), h = {};
            g[q] = load(of_link + q * n + j);
            UNROLL for (int r = 0; r < heads; ++r) {
              g[q] += of_forward_i(r, q) * read_j[r];
              h += read_i(r, q) * of_backward_j[r];
            }
            g[q] += h;
            if constexpr (decltype(diagonal)::value) {
              x = without_lane<C>(x, i + q - j), g[q] = without_lane<C>(g[q], i + q - j);
            }
            UNROLL for (int r = 0; r < heads; ++r) {
              across[r] += of_forward_i(r, q) * x;
              along[r * rows + q] += of_backward_j[r] * x;
            }
            if constexpr (last) {
              const Vec<C> kept = g[q] * previous;
              of_w_i[q] += g[q] * p_j - kept;
              of_w_j -= kept;
              of_p_j += g[q] * w_i(0, q);
              g[q] *= (C(1) - w_i(0, q)) - w_j;
            }
          }
          UNROLL for (int q = 0; q < rows; ++q) store(of_link + q * n + j, g[q]);
          UNROLL for (int r = 0; r < heads; ++r) store(grad.read + r * n + j, across[r]);
          if constexpr (last) store(grad.weights + j, of_w_j), store(grad.precedence + j, of_p_j);
        }
      });
  C sums[rows * heads];
  store_sums<C>(along, sums);
  UNROLL for (int r = 0; r < heads; ++r) add_few<C, rows>(sums + r * rows, grad.read + r * n + i);
  if constexpr (last) {
    C of_w[rows];
    store_sums<C>(of_w_i, of_w);
    add_few<C, rows>(of_w, grad.weights + i);
  }
}
template <class C, int heads, bool last>
void link_backward(const Link<C>& link, const C* read, const LinkGradients<C>& grad) {
  const int64_t n = link.n;
  share_rows(
      link, (heads + 2) * n,
      [&](Span part, C* own) {
        LinkGradients<C> g = grad;
        if (own) g.read = own, g.weights = own + heads * n, g.precedence = g.weights + n;
        for_each_rows<kLinkRows>(part, [&](auto rows, int64_t i) {
          link_backward_of_rows<C, decltype(rows)::count, heads, last>(link, read, g, i);
        });
      },
      [&](const C* own) {
        add_row(own, heads * n, grad.read);
        add_row(own + heads * n, n, grad.weights), add_row(own + (heads + 1) * n, n, grad.precedence);
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
