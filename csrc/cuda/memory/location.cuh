// Addressing by location: what heads of an NTM make of their weights by content (Graves et al., 2014).
//
//   blended = gate content + (1 - gate) previous
//   shifted_i = sum_s shift_s blended_{(i + s - S/2) mod N}
//   weights = softmax(sharpness log shifted), which is shifted^sharpness / sum, and cannot divide zero by zero
//
// The blend is not stored: each element is made again where a shift meets it.
#pragma once
#include "group.cuh"

namespace routing_ext::cuda {

// The logarithm is taken of no less: ten times the least normal number.
template <class T>
constexpr T kLeastShifted = sizeof(T) == 4 ? T(1.1754944e-37f) : T(2.2250738585072014e-307);

template <class T>
struct Location {
  int heads, n, shifts;                        // H, N, S
  const T *content, *previous;                 // [H,N]
  const T *gates, *shift_weights, *sharpness;  // [H], [H,S], [H]

  __device__ __forceinline__ int64_t row(int head) const { return static_cast<int64_t>(head) * n; }
  // Where the s-th shift moves from.
  __device__ __forceinline__ int offset(int s) const { return s - shifts / 2; }
};

// What lies `by` elements beyond the i-th of a ring of n.
__device__ __forceinline__ int beyond(int i, int by, int n) {
  const int j = (i + by) % n;
  return j < 0 ? j + n : j;
}

// The blend of one head.
template <class T>
struct Blend {
  const T *content, *previous;
  T gate;

  __device__ __forceinline__ Blend(const Location<T>& l, int head)
      : content(l.content + l.row(head)), previous(l.previous + l.row(head)), gate(l.gates[head]) {}
  __device__ __forceinline__ T operator[](int i) const { return gate * content[i] + (T(1) - gate) * previous[i]; }
};

// weights [H,N], and shifted [H,N] or nullptr. partials [partials_size(H, 2)]. A barrier, then finish() of what is returned.
template <class Group, class T>
__device__ __forceinline__ Softmax<T> locate(const Group& group, const Location<T>& l, T* shifted, T* weights, T* partials) {
  return Softmax<T>(group, l.heads, l.n, weights, partials, [&](int h) {
    const Blend<T> blended(l, h);
    const T* const shift = l.shift_weights + h * l.shifts;
    T* const own = shifted ? shifted + l.row(h) : nullptr;
    return [&l, blended, shift, own, sharpness = l.sharpness[h]](int i) {
      T x = 0;
      for (int s = 0; s < l.shifts; ++s) x += shift[s] * blended[beyond(i, l.offset(s), l.n)];
      if (own) own[i] = x;
      return sharpness * log(x > kLeastShifted<T> ? x : kLeastShifted<T>);
    };
  });
}

template <class T>
struct LocationGradient {
  const T *shifted, *weights;                           // [H,N]
  const T* grad;                                        // [H,N]: of the weights
  T* grad_content;                                      // [H,N], is set; may be grad
  T* grad_previous;                                     // [H,N], is set
  T *grad_gates, *grad_shift_weights, *grad_sharpness;  // [H], [H,S], [H], are set
  T* of_shifted;                                        // [H,N], scratch
  T* partials;                                          // [location_partials_size]
};
__host__ __device__ constexpr int64_t location_partials_size(int64_t heads, int64_t shifts) {
  return partials_size(heads, 1) + partials_size(heads * shifts, 1);
}

template <class Group, class T>
__device__ __forceinline__ void locate_backward(const Group& group, const Location<T>& l, const LocationGradient<T>& of) {
  T* const other_partials = of.partials + partials_size(l.heads, 1);
  const RowSums<1, T> along(group, l.heads, l.n, of.partials, [&](int h) {
    const T *const grad = of.grad + l.row(h), *const weights = of.weights + l.row(h);
    return [grad, weights](int i, T* sums) { sums[0] += grad[i] * weights[i]; };
  });
  group.sync();
  const RowSums<1, T> sharpness(group, l.heads, l.n, other_partials, [&](int h) {
    const T *const grad = of.grad + l.row(h), *const weights = of.weights + l.row(h), *const shifted = of.shifted + l.row(h);
    T* const of_shifted = of.of_shifted + l.row(h);
    return [=, mean = along.total(h), sharpness = l.sharpness[h]](int i, T* sums) {
      const T score = weights[i] * (grad[i] - mean), x = shifted[i];
      const bool is_least = x < kLeastShifted<T>;
      sums[0] += score * log(is_least ? kLeastShifted<T> : x);
      of_shifted[i] = is_least ? T(0) : sharpness * score / x;
    };
  });
  group.sync();
  for_each(group, l.heads, [&](int h) { of.grad_sharpness[h] = sharpness.total(h); });
  const RowSums<1, T> gates(group, l.heads, l.n, of.partials, [&](int h) {
    const Blend<T> blended(l, h);
    const T *const shift = l.shift_weights + h * l.shifts, *const of_shifted = of.of_shifted + l.row(h);
    T *const grad_content = of.grad_content + l.row(h), *const grad_previous = of.grad_previous + l.row(h);
    return [&l, blended, shift, of_shifted, grad_content, grad_previous](int i, T* sums) {
      T x = 0;
      for (int s = 0; s < l.shifts; ++s) x += shift[s] * of_shifted[beyond(i, -l.offset(s), l.n)];
      sums[0] += x * (blended.content[i] - blended.previous[i]);
      grad_content[i] = blended.gate * x;
      grad_previous[i] = (T(1) - blended.gate) * x;
    };
  });
  group.sync();
  for_each(group, l.heads, [&](int h) { of.grad_gates[h] = gates.total(h); });
  const RowSums<1, T> shifts(group, l.heads * l.shifts, l.n, other_partials, [&](int row) {
    const int h = row / l.shifts;
    return [&l, blended = Blend<T>(l, h), of_shifted = of.of_shifted + l.row(h), by = l.offset(row % l.shifts)](
               int i, T* sums) { sums[0] += of_shifted[i] * blended[beyond(i, by, l.n)]; };
  });
  group.sync();
  for_each(group, l.heads * l.shifts, [&](int row) { of.grad_shift_weights[row] = shifts.total(row); });
}

}  // namespace routing_ext::cuda
