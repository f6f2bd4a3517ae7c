// The temporal link of one write head, and the reads along it, in one sweep over the matrix for up to four read heads.
//
//   next_ij = (1 - w_i - w_j) previous_ij + w_i p_j,  next_ii = 0
//   forward_r = next read_r,  backward_r = next^T read_r;  reads are those of the step before
//
// And of G, the gradient of the next link from the step behind and from the reads along it:
//   grad_previous_ij = (1 - w_i - w_j) G_ij,  grad_p_j += sum_i G_ij w_i
//   grad_w_i += sum_j G_ij (p_j - previous_ij),  grad_w_j -= sum_i G_ij previous_ij
//   grad_read_rj += sum_i grad_forward_ri next_ij,  grad_read_ri += sum_j grad_backward_rj next_ij
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "group.cuh"

namespace routing_ext::cuda {

template <class T>
struct Link {
  int locations, reads;
  const T *previous, *precedence;  // [N,N], [N]; nullptr: zero
  const T* weights;                // [N]
  const T* read;                   // [R,N]

  __device__ __forceinline__ int64_t at(int i, int j) const { return static_cast<int64_t>(i) * locations + j; }
  __device__ __forceinline__ const T* previous_row(int i) const { return previous ? previous + at(i, 0) : nullptr; }
  __device__ __forceinline__ T before(int i, int j) const { return previous ? previous[at(i, j)] : T(0); }
  __device__ __forceinline__ T p(int j) const { return precedence ? precedence[j] : T(0); }
  __device__ __forceinline__ T next(T before, T w_i, T w_j, T p_j, bool diagonal) const {
    return diagonal ? T(0) : ((T(1) - w_i) - w_j) * before + w_i * p_j;
  }
};

// Heads h, h + 1, ... h + count - 1. With the first ones the link is updated; for the others it is there.
template <class T, int heads>
struct LinkSweep {
  const Link<T>& link;
  int h, count;
  T* next;                // [N,N]
  T *forward, *backward;  // [R,N]: set
  OwnColumns<T> columns{link.locations};
  T w_j[kColumns<T>] = {}, p_j[kColumns<T>] = {}, read_j[heads][kColumns<T>] = {};
  T w_i = 0, read_i[heads] = {}, before[kColumns<T>] = {};

  __device__ __forceinline__ T read(int k, int i) const {
    return k < count ? link.read[static_cast<int64_t>(h + k) * link.locations + i] : T(0);
  }
  __device__ __forceinline__ void column(int c, int j) {
    columns.hold(c, j);
    const bool is_there = j < link.locations;
    w_j[c] = is_there ? link.weights[j] : T(0);
    p_j[c] = is_there ? link.p(j) : T(0);
#pragma unroll
    for (int k = 0; k < heads; ++k) read_j[k][c] = is_there ? read(k, j) : T(0);
  }
  __device__ __forceinline__ void row(int i) {
    columns.load(h == 0 ? link.previous_row(i) : next + link.at(i, 0), before);
    w_i = link.weights[i];
#pragma unroll
    for (int k = 0; k < heads; ++k) read_i[k] = read(k, i);
  }
  __device__ __forceinline__ void element(int i, int j, int c, T* along, T (&down)[heads][kColumns<T>]) {
    T x = before[c];
    if (h == 0) next[link.at(i, j)] = x = link.next(x, w_i, w_j[c], p_j[c], i == j);
#pragma unroll
    for (int k = 0; k < heads; ++k) along[k] += x * read_j[k][c], down[k][c] += x * read_i[k];
  }
  __device__ __forceinline__ void row_sums(int i, const T* along, bool is_first) {
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      if (k >= count) continue;
      T& to = forward[static_cast<int64_t>(h + k) * link.locations + i];
      to = is_first ? along[k] : to + along[k];
    }
  }
  __device__ __forceinline__ void column_sums(int j, const T* total) {
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      if (k < count) backward[static_cast<int64_t>(h + k) * link.locations + j] = total[k];
    }
  }
};

// A barrier at the end.
template <class Group, class T>
__device__ void update_link(const Group& group, const Link<T>& link, T* next, T* forward, T* backward, T* partials) {
  for_each_heads(link.reads, [&](auto some, int h, int count) {
    constexpr int heads = decltype(some)::kMost;
    LinkSweep<T, heads> body{link, h, count, next, forward, backward};
    sweep<heads, heads>(group, link.locations, link.locations, lanes_for(link.locations), partials, body);
  });
}

// The update alone, of rows first_row, first_row + step, ...
template <class Group, class T>
__device__ void relink(const Group& group, const Link<T>& link, int first_row, int step, T* next) {
  for (int i = first_row + group.warp(); i < link.locations; i += step * group.warps()) {
    const T w_i = link.weights[i];
    for (int j = group.lane(); j < link.locations; j += kWarp) {
      next[link.at(i, j)] = link.next(link.before(i, j), w_i, link.weights[j], link.p(j), i == j);
    }
  }
}

// The sums of the write weights, which precedence loses.
template <class Group, class T>
__device__ RowSums<1, T> written_sums(const Group& group, int writes, int locations, const T* weights, T* partials) {
  return RowSums<1, T>(group, writes, locations, partials, [&](int v) {
    const T* const w = weights + static_cast<int64_t>(v) * locations;
    return [w](int i, T* sums) { sums[0] += w[i]; };
  });
}
// next [V,N] = (1 - sum w) p + w.
template <class Group, class T>
__device__ void update_precedence(const Group& group, int locations, const RowSums<1, T>& written, const T* weights,
                                  const T* precedence, T* next) {
  written.pieces.for_each_piece(group, [&](int v, int piece) {
    const int64_t row = static_cast<int64_t>(v) * locations;
    const T kept = T(1) - written.total(v);
    written.pieces.for_each_element(
        group, piece, [&](int i) { next[row + i] = (precedence ? kept * precedence[row + i] : T(0)) + weights[row + i]; });
  });
}

// ---- backward --------------------------------------------------------------------------------------------------------------

// The sums of w, and of p and its gradient.
template <class Group, class T>
__device__ RowSums<2, T> precedence_sums(const Group& group, int writes, int locations, const T* weights, const T* precedence,
                                         const T* grad, T* partials) {
  return RowSums<2, T>(group, writes, locations, partials, [&](int v) {
    const int64_t row = static_cast<int64_t>(v) * locations;
    return [=](int i, T* sums) {
      sums[0] += weights[row + i];
      sums[1] += precedence ? precedence[row + i] * grad[row + i] : T(0);
    };
  });
}
// grad [V,N]: of the next precedence, becomes that of the previous one. grad_weights [V,N] is added to.
template <class Group, class T>
__device__ void update_precedence_backward(const Group& group, int locations, const RowSums<2, T>& sums, T* grad,
                                           T* grad_weights) {
  sums.pieces.for_each_piece(group, [&](int v, int piece) {
    const int64_t row = static_cast<int64_t>(v) * locations;
    const T written = sums.total(v, 0), of_written = sums.total(v, 1);
    sums.pieces.for_each_element(group, piece, [&](int i) {
      const T g = grad[row + i];
      grad_weights[row + i] += g - of_written;
      grad[row + i] = (T(1) - written) * g;
    });
  });
}

template <class T>
struct LinkGradients {
  const T* next;                   // [N,N], or nullptr: zero
  const T *forward, *backward;     // [R,N]: of the reads along it
  T* previous;                     // [N,N]: set; may be `next`
  T *read, *weights, *precedence;  // [R,N], [N], [N]: added to
};

// is_last: what flows to the previous link is complete with these heads.
template <class T, int heads, bool is_last>
struct LinkBackwardSweep {
  const Link<T>& link;
  const LinkGradients<T>& of;
  int h, count;
  OwnColumns<T> columns{link.locations};
  T w_j[kColumns<T>] = {}, p_j[kColumns<T>] = {}, read_j[heads][kColumns<T>] = {}, of_backward_j[heads][kColumns<T>] = {};
  T w_i = 0, read_i[heads] = {}, of_forward_i[heads] = {}, before[kColumns<T>] = {}, grad[kColumns<T>] = {};

  static constexpr int kRowSums = is_last ? heads + 1 : heads, kColumnSums = is_last ? heads + 2 : heads;

  __device__ __forceinline__ T head(const T* rows, int k, int i) const {
    return k < count ? rows[static_cast<int64_t>(h + k) * link.locations + i] : T(0);
  }
  __device__ __forceinline__ void column(int c, int j) {
    columns.hold(c, j);
    const bool is_there = j < link.locations;
    w_j[c] = is_there ? link.weights[j] : T(0);
    p_j[c] = is_there ? link.p(j) : T(0);
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      read_j[k][c] = is_there ? head(link.read, k, j) : T(0);
      of_backward_j[k][c] = is_there ? head(of.backward, k, j) : T(0);
    }
  }
  __device__ __forceinline__ void row(int i) {
    columns.load(link.previous_row(i), before);
    const T* const so_far = h == 0 ? of.next : of.previous;
    columns.load(so_far ? so_far + link.at(i, 0) : nullptr, grad);
    w_i = link.weights[i];
#pragma unroll
    for (int k = 0; k < heads; ++k) read_i[k] = head(link.read, k, i), of_forward_i[k] = head(of.forward, k, i);
  }
  __device__ __forceinline__ void element(int i, int j, int c, T* along, T (&down)[kColumnSums][kColumns<T>]) {
    const bool diagonal = i == j;
    const T x = link.next(before[c], w_i, w_j[c], p_j[c], diagonal);
    T g = grad[c];
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      g += of_forward_i[k] * read_j[k][c] + read_i[k] * of_backward_j[k][c];
      down[k][c] += of_forward_i[k] * x;
      along[k] += of_backward_j[k][c] * x;
    }
    if (diagonal) g = 0;
    if constexpr (is_last) {
      const T kept = g * before[c];
      along[heads] += g * p_j[c] - kept;
      down[heads][c] -= kept;
      down[heads + 1][c] += g * w_i;
      g *= (T(1) - w_i) - w_j[c];
    }
    of.previous[link.at(i, j)] = g;
  }
  __device__ __forceinline__ void row_sums(int i, const T* along, bool) {
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      if (k < count) of.read[static_cast<int64_t>(h + k) * link.locations + i] += along[k];
    }
    if constexpr (is_last) of.weights[i] += along[heads];
  }
  __device__ __forceinline__ void column_sums(int j, const T* total) {
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      if (k < count) of.read[static_cast<int64_t>(h + k) * link.locations + j] += total[k];
    }
    if constexpr (is_last) of.weights[j] += total[heads], of.precedence[j] += total[heads + 1];
  }
};

// A barrier at the end.
template <class Group, class T>
__device__ void update_link_backward(const Group& group, const Link<T>& link, const LinkGradients<T>& of, T* partials) {
  for_each_heads(link.reads, [&](auto some, int h, int count) {
    constexpr int heads = decltype(some)::kMost;
    const int lanes = lanes_for(link.locations);
    if (h + count == link.reads) {
      using Sweep = LinkBackwardSweep<T, heads, true>;
      Sweep body{link, of, h, count};
      sweep<Sweep::kRowSums, Sweep::kColumnSums>(group, link.locations, link.locations, lanes, partials, body);
    } else if constexpr (heads == kHeads) {
      using Sweep = LinkBackwardSweep<T, heads, false>;
      Sweep body{link, of, h, count};
      sweep<Sweep::kRowSums, Sweep::kColumnSums>(group, link.locations, link.locations, lanes, partials, body);
    }
  });
}

}  // namespace routing_ext::cuda
