// Addressing by content: softmax over locations of strength * cosine(key, memory row), as the heads see both through their
// masks, if they have some.
//
//   dot = (key mask^2) . row,  cosine = dot / (sqrt(A B) + eps)
//   A = |key mask|^2 + inner,  B = |row mask|^2 + inner;  inner is eps, or 0 for the plain cosine
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "group.cuh"

namespace routing_ext::cuda {

constexpr double kEpsilon = 1e-6;

template <class T>
struct Lookup {
  int heads, locations, word;
  const T* keys;       // [H,W]
  const T* masks;      // [H,W], or nullptr
  const T* strengths;  // [H]
  const T* memory;     // [N,W]
  T inner;

  __device__ __forceinline__ T square(int at) const { return masks[at] * masks[at]; }
  // Where the norms of the memory's rows lie for a head: they depend on it only through its mask.
  __device__ __forceinline__ int64_t norms_of(int head) const { return masks ? static_cast<int64_t>(head) * locations : 0; }
  int64_t norm_rows() const { return masks ? heads : 1; }
};

// Sums of the keys' squares, seen through the masks: key_norms(h).
template <class Group, class T>
__device__ __forceinline__ RowSums<1, T> key_norms(const Group& group, const Lookup<T>& look, T* partials) {
  return RowSums<1, T>(group, look.heads, look.word, partials, [&](int h) {
    return [&look, h](int w, T* sums) {
      const int at = h * look.word + w;
      const T key = look.keys[at];
      sums[0] += key * key * (look.masks ? look.square(at) : T(1));
    };
  });
}

// Of each row of a matrix [rows,width] the products with vectors [H,width]: out [H,rows], which is set or added to. norms
// [rows]: of the rows, squared; may be nullptr.
template <class Group, class T>
__device__ void row_products(const Group& group, int heads, const T* vectors, const T* matrix, int rows, int width, bool adds,
                             T* out, T* norms) {
  const int lanes = lanes_for(width);
#pragma unroll 1
  for (int h = 0; h < heads; h += kHeads) {
    const int count = static_cast<int>(smaller(heads - h, kHeads));
    for_each_row(group, rows, lanes, [&](int row, int lane, bool is_there) {
      const T* const own = matrix + static_cast<int64_t>(row) * width;
      T sums[kHeads + 1] = {};
#pragma unroll 4
      for (int w = lane; w < width; w += lanes) {
        const T x = own[w];
        sums[kHeads] += x * x;
#pragma unroll
        for (int k = 0; k < kHeads; ++k) sums[k] += k < count ? vectors[(h + k) * width + w] * x : T(0);
      }
      team_sums(sums, lanes);
      if (!is_there || lane != 0) return;
#pragma unroll
      for (int k = 0; k < kHeads; ++k) {
        if (k >= count) continue;
        T& to = out[static_cast<int64_t>(h + k) * rows + row];
        to = adds ? to + sums[k] : sums[k];
      }
      if (norms && h == 0) norms[row] = sums[kHeads];
    });
  }
}

// Of each row of a matrix [rows,width] its squared norm.
template <class Group, class T>
__device__ void row_norms(const Group& group, const T* matrix, int rows, int width, T* norms) {
  const int lanes = lanes_for(width);
  for_each_row(group, rows, lanes, [&](int row, int lane, bool is_there) {
    const T* const own = matrix + static_cast<int64_t>(row) * width;
    T square = 0;
    for (int w = lane; w < width; w += lanes) square += own[w] * own[w];
    square = team_sum(square, lanes);
    if (is_there && lane == 0) norms[row] = square;
  });
}

// dots [H,N], unless nullptr, and norms [norm_rows,N] of a lookup.
template <class Group, class T>
__device__ void masked_products(const Group& group, const Lookup<T>& look, T* dots, T* norms) {
  const int lanes = lanes_for(look.word);
  for (int h = 0; h < look.heads; ++h) {
    for_each_row(group, look.locations, lanes, [&](int row, int lane, bool is_there) {
      const T* const own = look.memory + static_cast<int64_t>(row) * look.word;
      T dot = 0, square = 0;
      for (int w = lane; w < look.word; w += lanes) {
        const int at = h * look.word + w;
        const T x = own[w], seen = look.square(at) * x;
        dot += look.keys[at] * seen, square += seen * x;
      }
      dot = team_sum(dot, lanes), square = team_sum(square, lanes);
      if (!is_there || lane != 0) return;
      const int64_t to = static_cast<int64_t>(h) * look.locations + row;
      if (dots) dots[to] = dot;
      norms[to] = square;
    });
  }
}
template <class Group, class T>
__device__ void look_up(const Group& group, const Lookup<T>& look, T* dots, T* norms) {
  if (look.masks) {
    masked_products(group, look, dots, norms);
  } else {
    row_products(group, look.heads, look.keys, look.memory, look.locations, look.word, false, dots, norms);
  }
}

// The first phase of the softmax; dots [H,N] become the cosines. also [H,N]: a second place for these, or nullptr.
template <class Group, class T>
__device__ Softmax<T> content_softmax(const Group& group, const Lookup<T>& look, const RowSums<1, T>& key_norms, T* dots,
                                      const T* norms, T* weights, T* partials, T* also) {
  return Softmax<T>(group, look.heads, look.locations, weights, partials, [&](int h) {
    const T a = key_norms.total(h) + look.inner, strength = look.strengths[h], inner = look.inner;
    T* const cosines = dots + h * look.locations;
    T* const also_cosines = also ? also + h * look.locations : nullptr;
    const T* const squares = norms + look.norms_of(h);
    return [=](int i) {
      const T cosine = cosines[i] / (sqrt(a * (squares[i] + inner)) + T(kEpsilon));
      cosines[i] = cosine;
      if (also_cosines) also_cosines[i] = cosine;
      return strength * cosine;
    };
  });
}

// ---- backward --------------------------------------------------------------------------------------------------------------

// grad_of(h) gives a function of i, the gradient of the weights; along(h) is the sum of it times the weights. dots [H,N] is
// set to the gradient of the dots, grad_norms [H,N] to what each head says about the norms of the memory's rows. The sums: of
// the strengths, and of the squared norms of the keys.
template <class Group, class T, class Along, class GradOf>
__device__ RowSums<2, T> content_backward(const Group& group, const Lookup<T>& look, const RowSums<1, T>& key_norms,
                                          const T* norms, const T* cosines, const T* weights, const Along& along,
                                          const GradOf& grad_of, T* dots, T* grad_norms, T* partials) {
  const T least = sizeof(T) == 4 ? T(1e-37) : T(1e-300);
  return RowSums<2, T>(group, look.heads, look.locations, partials, [&](int h) {
    const int64_t row = static_cast<int64_t>(h) * look.locations;
    const T mean = along(h), a = key_norms.total(h) + look.inner, strength = look.strengths[h], inner = look.inner;
    const T *const cosine_of = cosines + row, *const weight_of = weights + row, *const squares = norms + look.norms_of(h);
    T *const dot_of = dots + row, *const of_norm = grad_norms + row;
    const auto grad = grad_of(h);
    return [=](int i, T* sums) {
      const T score = weight_of[i] * (grad(i) - mean), cosine = cosine_of[i];
      const T b = squares[i] + inner, root = sqrt(a * b);
      const T dot = strength * score / (root + T(kEpsilon));
      const T product = dot * cosine * (T(-0.5) / (root + least));  // of A B; none where one is zero
      sums[0] += score * cosine, sums[1] += product * b;
      dot_of[i] = dot, of_norm[i] = product * a;
    };
  });
}
// The same, of grad [H,N], which becomes the gradient of the dots.
template <class Group, class T, class Along>
__device__ RowSums<2, T> content_backward(const Group& group, const Lookup<T>& look, const RowSums<1, T>& key_norms,
                                          const T* norms, const T* cosines, const T* weights, const Along& along, T* grad,
                                          T* grad_norms, T* partials) {
  const auto grad_of = [&](int h) {
    const T* const row = grad + static_cast<int64_t>(h) * look.locations;
    return [row](int i) { return row[i]; };
  };
  return content_backward(group, look, key_norms, norms, cosines, weights, along, grad_of, grad, grad_norms, partials);
}

// What flows into a memory from those who looked at it, and into their keys.
template <class T>
struct LookupGradients {
  const T* dots;                 // [H,N]
  const T* norms;                // [H,N]
  const RowSums<2, T>& scalars;  // of content_backward
  const T *weights, *grad_read;  // [H,N], [H,W]: of those who also read; or nullptr
  const T* grad_memory;          // [N,W]: what else flows into it, or nullptr
  T *out_memory, *keys, *masks;  // [N,W], [H,W], [H,W]: set; out_memory may be grad_memory
};

template <class T, int heads, bool masked>
struct LookupSweep {
  const Lookup<T>& look;
  const LookupGradients<T>& of;
  int h, count;
  OwnColumns<T> columns{look.word};
  T x[kColumns<T>] = {}, grad[kColumns<T>] = {};
  T key[heads][kColumns<T>] = {}, square[masked ? heads : 1][kColumns<T>] = {}, grad_read[heads][kColumns<T>] = {};
  T dot[heads] = {}, weight[heads] = {}, norm[masked ? heads : 1] = {};

  static constexpr int kMost = heads, kSums = masked ? 2 * heads : heads;

  __device__ __forceinline__ void column(int c, int w) {
    columns.hold(c, w);
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      const bool is_there = k < count && w < look.word;
      const int at = (h + k) * look.word + w;
      if constexpr (masked) square[k][c] = is_there ? look.square(at) : T(0);
      key[k][c] = is_there ? look.keys[at] : T(0);
      if constexpr (masked) key[k][c] *= square[k][c];
      grad_read[k][c] = is_there && of.grad_read ? of.grad_read[at] : T(0);
    }
  }
  __device__ __forceinline__ void row(int i) {
    const int64_t first = static_cast<int64_t>(i) * look.word;
    const T* const before = h == 0 ? of.grad_memory : of.out_memory;
    columns.load(look.memory + first, x);
    columns.load(before ? before + first : nullptr, grad);
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      const int64_t at = static_cast<int64_t>(h + k) * look.locations + i;
      dot[k] = k < count ? of.dots[at] : T(0);
      weight[k] = k < count && of.weights ? of.weights[at] : T(0);
      if constexpr (masked) norm[k] = k < count ? of.norms[at] : T(0);
    }
    if constexpr (!masked) {
      norm[0] = 0;
      for (int k = 0; h == 0 && k < look.heads; ++k) norm[0] += of.norms[static_cast<int64_t>(k) * look.locations + i];
    }
  }
  __device__ __forceinline__ void element(int i, int w, int c, T*, T (&down)[kSums][kColumns<T>]) {
    T g = grad[c];
    if constexpr (!masked) g += T(2) * norm[0] * x[c];
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      g += dot[k] * key[k][c] + weight[k] * grad_read[k][c];
      down[k][c] += dot[k] * x[c];
      if constexpr (masked) {
        g += T(2) * square[k][c] * norm[k] * x[c];
        down[heads + k][c] += norm[k] * x[c] * x[c];
      }
    }
    of.out_memory[static_cast<int64_t>(i) * look.word + w] = g;
  }
  __device__ __forceinline__ void column_sums(int w, const T* total) {
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      if (k >= count) continue;
      const int at = (h + k) * look.word + w;
      const T own = look.keys[at], of_norm = of.scalars.total(h + k, 1);
      if constexpr (masked) {
        const T of_square = own * total[k] + own * own * of_norm + total[heads + k];
        of.keys[at] = look.square(at) * (total[k] + T(2) * own * of_norm);
        of.masks[at] = T(2) * look.masks[at] * of_square;
      } else {
        of.keys[at] = total[k] + T(2) * own * of_norm;
      }
    }
  }
};

template <class Sweep, class Group, class T>
__device__ __forceinline__ void look_up_backward_by(const Group& group, const Lookup<T>& look, const LookupGradients<T>& of,
                                                    T* partials) {
#pragma unroll 1
  for (int h = 0; h < look.heads; h += Sweep::kMost) {
    Sweep body{look, of, h, static_cast<int>(smaller(look.heads - h, Sweep::kMost))};
    sweep<0, Sweep::kSums>(group, look.locations, look.word, lanes_for(look.word), partials, body);
  }
}
// A barrier at the end. Masked heads come one by one.
template <class Group, class T>
__device__ void look_up_backward(const Group& group, const Lookup<T>& look, const LookupGradients<T>& of, T* partials) {
  if (look.masks) {
    look_up_backward_by<LookupSweep<T, 1, true>>(group, look, of, partials);
  } else {
    look_up_backward_by<LookupSweep<T, kHeads, false>>(group, look, of, partials);
  }
}

}  // namespace routing_ext::cuda
