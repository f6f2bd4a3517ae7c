// The interface vector and its activations: what comes out has the order of what goes in.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "../../math/memory_interface.h"
#include "group.cuh"

namespace routing_ext::cuda {

enum class Activation : unsigned char { word, strength, gate, softmax, sharpness, mask };

// Where each part of an interface vector begins, and what becomes of it.
struct InterfaceMap {
  static constexpr int kMost = 13;
  int begin[kMost + 1];
  Activation activation[kMost];
  int width[kMost];  // of the rows of a softmax
  int count;
  // Options.
  bool linear_words, oneplus_strengths;
  double mask_min;

  InterfaceMap(bool dnc, int64_t v, int64_t r, int64_t w, int64_t s, const MemoryOptions& o)
      : count(0), linear_words(o.linear_words), oneplus_strengths(dnc && o.oneplus_strengths), mask_min(o.mask_min) {
    begin[0] = 0;
    const InterfaceParts parts(dnc, v, r, w, s, o);
    const auto part = [&](Activation a, int64_t row = 1) {
      activation[count] = a, width[count] = static_cast<int>(row);
      begin[count + 1] = begin[count] + static_cast<int>(parts.sizes[count]);
      ++count;
    };
    using A = Activation;
    if (dnc) {
      part(A::word), part(A::strength), part(A::gate), part(A::gate), part(A::gate), part(A::word);
      part(A::word), part(A::strength), part(A::gate);
      if (!o.unlinked) part(A::softmax, 2 * v + 1);
      if (o.masks) part(A::mask), part(A::mask);
      if (o.sharpens_link) part(A::sharpness);
    } else {
      part(A::word), part(A::strength), part(A::gate), part(A::softmax, s), part(A::sharpness), part(A::gate), part(A::word);
      part(A::word), part(A::strength), part(A::gate), part(A::softmax, s), part(A::sharpness);
    }
  }

  __host__ __device__ int size() const { return begin[count]; }
  __device__ int part_of(int i) const {
    int p = 0;
    while (i >= begin[p + 1]) ++p;
    return p;
  }
};

template <class T>
__device__ __forceinline__ T sigmoid(T x) {
  return T(1) / (T(1) + exponential(-x));
}
constexpr double kSoftplusLinear = 20;  // torch's threshold: from here on, softplus(x) = x
template <class T>
__device__ __forceinline__ T softplus(T x) {
  return x > T(kSoftplusLinear) ? x : (x > T(0) ? x : T(0)) + log1p(exponential(x < T(0) ? x : -x));
}
// d softplus(x) / dx of y = softplus(x).
template <class T>
__device__ __forceinline__ T softplus_slope(T y) {
  return y > T(kSoftplusLinear) ? T(1) : -expm1(-y);
}

// out [I], of each block; also [I], if there.
template <class Group, class T>
__device__ void activate(const Group& group, const InterfaceMap& map, const T* interface, T* out, T* also) {
  const bool is_first = group.block() == 0;
  for_each(group.in_block(), map.size(), [&](int i) {
    const T x = interface[i];
    const int part = map.part_of(i);
    T y = 0;
    switch (map.activation[part]) {
      case Activation::word:
        y = map.linear_words ? x : tanh(x);
        break;
      case Activation::strength:
        y = softplus(x) + (map.oneplus_strengths ? T(1) : T(0));
        break;
      case Activation::sharpness:
        y = softplus(x) + T(1);
        break;
      case Activation::mask: {
        const T least = static_cast<T>(map.mask_min);
        y = least + (T(1) - least) * sigmoid(x);
        break;
      }
      case Activation::gate:
        y = sigmoid(x);
        break;
      case Activation::softmax: {
        const int width = map.width[part], first = i - (i - map.begin[part]) % width;
        T most = interface[first], total = 0;
        for (int k = 1; k < width; ++k) most = interface[first + k] > most ? interface[first + k] : most;
        for (int k = 0; k < width; ++k) total += exponential(interface[first + k] - most);
        y = exponential(x - most) / total;
        break;
      }
    }
    out[i] = y;
    if (also && is_first) also[i] = y;
  });
}

// grad_interface [I] of y [I], what the activations gave, and grad [I], the gradient of that.
template <class Group, class T>
__device__ void activate_backward(const Group& group, const InterfaceMap& map, const T* y, const T* grad, T* grad_interface) {
  for_each(group, map.size(), [&](int i) {
    const T own = y[i], g = grad[i];
    const int part = map.part_of(i);
    T slope = 0;
    switch (map.activation[part]) {
      case Activation::word:
        slope = map.linear_words ? T(1) : T(1) - own * own;
        break;
      case Activation::strength:
        slope = softplus_slope(own - (map.oneplus_strengths ? T(1) : T(0)));
        break;
      case Activation::sharpness:
        slope = softplus_slope(own - T(1));
        break;
      case Activation::mask: {
        const T least = static_cast<T>(map.mask_min);
        slope = (own - least) * (T(1) - own) / (T(1) - least);
        break;
      }
      case Activation::gate:
        slope = own * (T(1) - own);
        break;
      case Activation::softmax: {
        const int width = map.width[part], first = i - (i - map.begin[part]) % width;
        T along = 0;
        for (int k = 0; k < width; ++k) along += y[first + k] * grad[first + k];
        grad_interface[i] = own * (g - along);
        return;
      }
    }
    grad_interface[i] = g * slope;
  });
}

}  // namespace routing_ext::cuda
