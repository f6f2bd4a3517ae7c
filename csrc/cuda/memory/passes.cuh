// Writing to the memory and reading from it, memory [N,W].
//
//   next_w = left previous_w prod_v (1 - weights_v erase_vw) + sum_v weights_v add_vw
//   read_rw = sum_n weights_rn next_nw
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "group.cuh"

namespace routing_ext::cuda {

template <class T>
struct Write {
  int heads, locations, word;
  const T* previous;     // [N,W]
  const T* left;         // [N]: what the free gates leave of each location, if they erase; else nullptr
  const T* weights;      // [V,N]
  const T *erase, *add;  // [V,W]

  __device__ __forceinline__ T weight(int v, int i) const { return weights[static_cast<int64_t>(v) * locations + i]; }
  // What is kept of an element, all heads but `except` erasing.
  __device__ __forceinline__ T kept(int i, int w, int except = -1) const {
    T product = 1;
    for (int v = 0; v < heads; ++v) {
      if (v != except) product *= T(1) - weight(v, i) * erase[v * word + w];
    }
    return product;
  }
};

// next [N,W]; also [N,W]: a second place for it, or nullptr.
template <class Group, class T>
__device__ void write_memory(const Group& group, const Write<T>& write, T* next, T* also) {
  const int lanes = lanes_for(write.word);
  for_each_row(group, write.locations, lanes, [&](int i, int lane, bool is_there) {
    if (!is_there) return;
    const T left = write.left ? write.left[i] : T(1);
    const int64_t row = static_cast<int64_t>(i) * write.word;
    OwnColumns<T> columns{write.word};
#pragma unroll 1
    for (int first = lane; first < write.word; first += kColumns<T> * lanes) {
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) columns.hold(c, first + c * lanes);
      T previous[kColumns<T>];
      columns.load(write.previous + row, previous);
#pragma unroll
      for (int c = 0; c < kColumns<T>; ++c) {
        const int w = columns.own[c];
        if (w >= write.word) continue;
        T x = left * previous[c] * write.kept(i, w);
        for (int v = 0; v < write.heads; ++v) x += write.weight(v, i) * write.add[v * write.word + w];
        next[row + w] = x;
        if (also) also[row + w] = x;
      }
    }
  });
}

// Of one head. The last one leaves in `grad` the gradient of the previous memory.
template <class T, bool is_last>
struct WriteSweep {
  const Write<T>& write;
  int v;
  T* grad;                   // [N,W]: of the next memory
  T* grad_weights;           // [V,N]: added to
  T* grad_left;              // [N]: set if there is `left`
  T *grad_erase, *grad_add;  // [V,W]: set
  OwnColumns<T> columns{write.word};
  T erase[kColumns<T>] = {}, add[kColumns<T>] = {}, weight = 0, left = 0;
  T of_next[kColumns<T>] = {}, previous[kColumns<T>] = {};

  __device__ __forceinline__ void column(int c, int w) {
    columns.hold(c, w);
    const bool is_there = w < write.word;
    erase[c] = is_there ? write.erase[v * write.word + w] : T(0);
    add[c] = is_there ? write.add[v * write.word + w] : T(0);
  }
  __device__ __forceinline__ void row(int i) {
    const int64_t first = static_cast<int64_t>(i) * write.word;
    columns.load(grad + first, of_next);
    columns.load(write.previous + first, previous);
    weight = write.weight(v, i);
    left = write.left ? write.left[i] : T(1);
  }
  __device__ __forceinline__ void element(int i, int w, int c, T* along, T (&down)[2][kColumns<T>]) {
    const T g = of_next[c], others = write.heads == 1 ? g : g * write.kept(i, w, v);
    const T erased = others * left * previous[c];
    along[0] += g * add[c] - erased * erase[c];
    down[0][c] -= erased * weight;
    down[1][c] += g * weight;
    if constexpr (is_last) {
      const T of_kept = others * (T(1) - weight * erase[c]);
      along[1] += of_kept * previous[c];
      grad[static_cast<int64_t>(i) * write.word + w] = left * of_kept;
    }
  }
  __device__ __forceinline__ void row_sums(int i, const T* along, bool is_first) {
    T& of_weight = grad_weights[static_cast<int64_t>(v) * write.locations + i];
    of_weight += along[0];
    if constexpr (is_last) {
      if (grad_left) grad_left[i] = is_first ? along[1] : grad_left[i] + along[1];
    }
  }
  __device__ __forceinline__ void column_sums(int w, const T* total) {
    grad_erase[v * write.word + w] = total[0], grad_add[v * write.word + w] = total[1];
  }
};

// grad [N,W]: of the next memory, becomes that of the previous one. See WriteSweep. A barrier at the end.
template <class Group, class T>
__device__ void write_memory_backward(const Group& group, const Write<T>& write, T* grad, T* grad_weights, T* grad_left,
                                      T* grad_erase, T* grad_add, T* partials) {
  const int lanes = lanes_for(write.word);
  for (int v = 0; v + 1 < write.heads; ++v) {
    WriteSweep<T, false> body{write, v, grad, grad_weights, grad_left, grad_erase, grad_add};
    sweep<1, 2>(group, write.locations, write.word, lanes, partials, body);
  }
  WriteSweep<T, true> body{write, write.heads - 1, grad, grad_weights, grad_left, grad_erase, grad_add};
  sweep<2, 2>(group, write.locations, write.word, lanes, partials, body);
}

template <class T, int heads>
struct ReadSweep {
  const T *weights, *memory;  // [H,N], [N,W]
  int locations, word, h, count;
  T* read;  // [H,W]
  OwnColumns<T> columns{word};
  T weight[heads] = {}, x[kColumns<T>] = {};

  __device__ __forceinline__ void column(int c, int w) { columns.hold(c, w); }
  __device__ __forceinline__ void row(int i) {
    columns.load(memory + static_cast<int64_t>(i) * word, x);
#pragma unroll
    for (int k = 0; k < heads; ++k) weight[k] = k < count ? weights[static_cast<int64_t>(h + k) * locations + i] : T(0);
  }
  __device__ __forceinline__ void element(int, int, int c, T*, T (&down)[heads][kColumns<T>]) {
#pragma unroll
    for (int k = 0; k < heads; ++k) down[k][c] += weight[k] * x[c];
  }
  __device__ __forceinline__ void column_sums(int w, const T* total) {
#pragma unroll
    for (int k = 0; k < heads; ++k) {
      if (k < count) read[(h + k) * word + w] = total[k];
    }
  }
};

// read [R,W] of weights [R,N]. A barrier at the end.
template <class Group, class T>
__device__ void read_memory(const Group& group, int heads, const T* weights, const T* memory, int locations, int word, T* read,
                            T* partials) {
#pragma unroll 1
  for (int h = 0; h < heads; h += kHeads) {
    ReadSweep<T, kHeads> body{weights, memory, locations, word, h, static_cast<int>(smaller(heads - h, kHeads)), read};
    sweep<0, kHeads>(group, locations, word, lanes_for(word), partials, body);
  }
}

}  // namespace routing_ext::cuda
