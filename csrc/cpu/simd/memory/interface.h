// The interface vector and its activations.
#pragma once
#include "functions.h"

namespace routing_ext::cpu {
namespace {

// Walks along the interface vector of one sample.
template <class C>
class Activations {
 public:
  explicit Activations(const C* interface) : next_(interface) {}

  template <class F>
  void apply(int64_t count, C* out, const F& f) {
    const C* const from = next_;
    for_each_vector<C>(count, [=](int64_t i, auto at) { at.store(out + i, f(at.load(from + i))); });
    next_ += count;
  }
  void sigmoids(int64_t count, C* out) {
    apply(count, out, [](Vec<C> x) { return sigmoid<C>(x); });
  }
  void softpluses(int64_t count, C* out, C more = 0) {
    apply(count, out, [more](Vec<C> x) { return softplus<C>(x) + more; });
  }
  // Between `least` and 1.
  void mask_rows(int64_t rows, int64_t width, int64_t stride, C least, C* out) {
    for (int64_t r = 0; r < rows; ++r)
      apply(width, out + r * stride, [least](Vec<C> x) { return least + (C(1) - least) * sigmoid<C>(x); });
  }
  // Rows of `width`, `stride` apart in out.
  void sigmoid_rows(int64_t rows, int64_t width, int64_t stride, C* out) {
    for (int64_t r = 0; r < rows; ++r) sigmoids(width, out + r * stride);
  }
  // Words between -1 and 1, or as they are.
  void word_rows(int64_t rows, int64_t width, int64_t stride, bool linear, C* out) {
    for (int64_t r = 0; r < rows; ++r)
      apply(width, out + r * stride, [linear](Vec<C> x) { return linear ? x : tangent<C>(x); });
  }
  // And norms [rows] = the squared norms.
  void keys(int64_t rows, int64_t width, int64_t stride, bool linear, C* out, C* norms) {
    for (int64_t r = 0; r < rows; ++r) {
      Vec<C> squares = {};
      Vec<C>* const sum_of = &squares;
      apply(width, out + r * stride, [linear, sum_of](Vec<C> x) {
        const Vec<C> y = linear ? x : tangent<C>(x);  // of the absent lanes, zero
        *sum_of += y * y;
        return y;
      });
      norms[r] = sum<C>(squares);
    }
  }
  // Softmax of each of `rows` rows of `width`.
  void softmaxes(int64_t rows, int64_t width, C* out) {
    for (int64_t r = 0; r < rows; ++r) {
      C most = next_[r * width];
      for (int64_t k = 1; k < width; ++k) most = next_[r * width + k] > most ? next_[r * width + k] : most;
      for (int64_t k = 0; k < width; ++k) out[r * width + k] = next_[r * width + k] - most;
    }
    const int64_t count = rows * width;
    for (int64_t i = 0; i < count; i += kLanes<C>)
      store_partial(out + i, exponential<C>(load_partial(out + i, count - i)), count - i);
    for (int64_t r = 0; r < rows; ++r) {
      C total = 0;
      for (int64_t k = 0; k < width; ++k) total += out[r * width + k];
      const C scale = C(1) / total;
      for (int64_t k = 0; k < width; ++k) out[r * width + k] *= scale;
    }
    next_ += count;
  }

 private:
  const C* next_;
};

// The same walk along the gradient of the interface vector. y: what the activation gave, grad: the gradient of that.
template <class C>
class ActivationGradients {
 public:
  explicit ActivationGradients(C* grad_interface) : next_(grad_interface) {}

  template <class F>
  void apply(int64_t count, const C* y, const C* grad, const F& slope) {
    C* const to = next_;
    for_each_vector<C>(count, [=](int64_t i, auto at) { at.store(to + i, at.load(grad + i) * slope(at.load(y + i))); });
    next_ += count;
  }
  void sigmoids(int64_t count, const C* y, const C* grad) {
    apply(count, y, grad, [](Vec<C> x) { return x * (C(1) - x); });
  }
  void softpluses(int64_t count, const C* y, const C* grad, C more = 0) {
    apply(count, y, grad, [more](Vec<C> x) { return softplus_slope<C>(x - more); });
  }
  void mask_rows(int64_t rows, int64_t width, int64_t stride, C least, const C* y, const C* grad) {
    for (int64_t r = 0; r < rows; ++r)
      apply(width, y + r * stride, grad + r * stride, [least](Vec<C> x) { return (x - least) * (C(1) - x) / (C(1) - least); });
  }
  void sigmoid_rows(int64_t rows, int64_t width, int64_t stride, const C* y, const C* grad) {
    for (int64_t r = 0; r < rows; ++r) sigmoids(width, y + r * stride, grad + r * stride);
  }
  void word_rows(int64_t rows, int64_t width, int64_t stride, bool linear, const C* y, const C* grad) {
    const C slope = linear ? C(0) : C(1);
    for (int64_t r = 0; r < rows; ++r)
      apply(width, y + r * stride, grad + r * stride, [slope](Vec<C> x) { return C(1) - slope * x * x; });
  }
  // grad_norms [rows]: of the squared norms.
  void keys(int64_t rows, int64_t width, int64_t stride, bool linear, const C* y, const C* grad, const C* grad_norms) {
    const C slope = linear ? C(0) : C(1);
    for (int64_t r = 0; r < rows; ++r) {
      C* const to = next_;
      const C *const of_y = grad + r * stride, *const from = y + r * stride, twice = C(2) * grad_norms[r];
      for_each_vector<C>(width, [=](int64_t i, auto at) {
        const Vec<C> x = at.load(from + i);
        at.store(to + i, (at.load(of_y + i) + twice * x) * (C(1) - slope * x * x));
      });
      next_ += width;
    }
  }
  void softmaxes(int64_t rows, int64_t width, const C* y, const C* grad) {
    for (int64_t r = 0; r < rows; ++r, y += width, grad += width, next_ += width) {
      C along = 0;
      for (int64_t k = 0; k < width; ++k) along += y[k] * grad[k];
      for (int64_t k = 0; k < width; ++k) next_[k] = y[k] * (grad[k] - along);
    }
  }

 private:
  C* next_;
};

// Hands out consecutive parts of a piece of memory.
template <class C>
struct Parts {
  C* next;
  C* take(int64_t count) {
    C* const here = next;
    next += count;
    return here;
  }
};

}  // namespace
}  // namespace routing_ext::cpu
