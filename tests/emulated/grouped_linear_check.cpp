// Compares grouped_linear's kernels for float with loops in double, in several thread orders. Linked with bugs planted in the
// kernels.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "grouped_linear.cuh"
#include "outcome.h"

namespace {

using namespace routing_ext::cuda;

struct Case {
  int64_t batch, num_modules, in_features, out_features;
};

class Problem {
 public:
  explicit Problem(const Case& c)
      : c_(c), samples_(c.num_modules), layout_(c.num_modules + 2), weights_(c.num_modules), biases_(c.num_modules) {
    for (int64_t i = 0; i < c.batch; ++i) {
      const int64_t k = static_cast<int64_t>(random_() % (c.num_modules + 1));  // num_modules: inactive
      if (k < c.num_modules) samples_[k].push_back(i);
      if (k == c.num_modules) inactive_.push_back(i);
    }
    for (int64_t k = 0; k < c.num_modules; ++k) {
      layout_[k] = static_cast<int64_t>(order_.size());
      order_.insert(order_.end(), samples_[k].begin(), samples_[k].end());
      weights_[k] = random_floats(c.out_features * c.in_features);
      biases_[k] = random_floats(c.out_features);
    }
    layout_[c.num_modules] = static_cast<int64_t>(order_.size());
    layout_[c.num_modules + 1] = -1;
    order_.insert(order_.end(), inactive_.begin(), inactive_.end());
    x_ = random_floats(c.batch * c.in_features), grad_ = random_floats(c.batch * c.out_features);
    std::iota(modules_.begin(), modules_.end(), 0);
  }

  cudaError_t forward(bool& right) {
    std::vector<float> y(c_.batch * c_.out_features, NAN);
    std::vector<double> want(y.size(), 0.);
    const auto weights = pointers<const float>(weights_), biases = pointers<const float>(biases_);
    const GroupedLinearForward<float> p{x_.data(), y.data(), c_.in_features, c_.out_features, true};
    const GroupedModules<const float> modules{modules_.data(), c_.num_modules, weights.data(), biases.data()};
    const cudaError_t error = launch_grouped_linear(p, rows(), modules, nullptr);
    for_each([&](int64_t k, int64_t i, int64_t o) {
      double sum = biases_[k][o];
      for (int64_t d = 0; d < c_.in_features; ++d) sum += weight(k, o, d) * x(i, d);
      want[i * c_.out_features + o] = std::max(sum, 0.);
    });
    right = right && close(y, want);
    return error;
  }

  cudaError_t backward(bool& right) {
    std::vector<float> grad_x(c_.batch * c_.in_features, NAN);
    std::vector<double> want_x(grad_x.size(), 0.);
    std::vector<std::vector<float>> grad_weights(c_.num_modules, std::vector<float>(c_.out_features * c_.in_features, NAN));
    std::vector<std::vector<float>> grad_biases(c_.num_modules, std::vector<float>(c_.out_features, NAN));
    std::vector<std::vector<double>> want_weights(c_.num_modules, std::vector<double>(c_.out_features * c_.in_features));
    std::vector<std::vector<double>> want_biases(c_.num_modules, std::vector<double>(c_.out_features));
    const auto weights = pointers<const float>(weights_);
    const auto weight_gradients = pointers<float>(grad_weights), bias_gradients = pointers<float>(grad_biases);
    const GroupedLinearBackward<float> p{grad_.data(), nullptr, x_.data(), grad_x.data(), c_.in_features, c_.out_features};
    const GroupedModules<const float> modules{modules_.data(), c_.num_modules, weights.data(), nullptr};
    const GroupedModules<float> gradients{modules_.data(), c_.num_modules, weight_gradients.data(), bias_gradients.data()};
    cudaError_t error = launch_grouped_linear_grad_x(p, rows(), modules, nullptr);
    if (error != cudaSuccess) return error;
    std::vector<unsigned char> scratch(grouped_linear_scratch_bytes(p, rows(), true), cuda_emu::kFill);
    error = launch_grouped_linear_grad_weight(p, rows(), gradients, scratch.data(), nullptr);
    for_each([&](int64_t k, int64_t i, int64_t o) {
      const double g = grad_[i * c_.out_features + o];
      want_biases[k][o] += g;
      for (int64_t d = 0; d < c_.in_features; ++d) {
        want_x[i * c_.in_features + d] += g * weight(k, o, d);
        want_weights[k][o * c_.in_features + d] += g * x(i, d);
      }
    });
    right = right && close(grad_x, want_x);
    for (int64_t k = 0; k < c_.num_modules; ++k) {
      right = right && close(grad_weights[k], want_weights[k]) && close(grad_biases[k], want_biases[k]);
    }
    return error;
  }

 private:
  const Case c_;
  std::mt19937_64 random_{1};
  std::vector<std::vector<int64_t>> samples_;
  std::vector<int64_t> inactive_, order_, layout_, modules_ = std::vector<int64_t>(c_.num_modules);
  std::vector<std::vector<float>> weights_, biases_;
  std::vector<float> x_, grad_;

  std::vector<float> random_floats(int64_t n) {
    std::vector<float> v(n);
    for (float& f : v) f = static_cast<float>(random_() % 2001) / 1000.f - 1.f;
    return v;
  }
  GroupedRows rows() const { return {order_.data(), layout_.data(), c_.batch, c_.num_modules}; }
  double weight(int64_t k, int64_t o, int64_t d) const { return weights_[k][o * c_.in_features + d]; }
  double x(int64_t i, int64_t d) const { return x_[i * c_.in_features + d]; }

  // f(module, sample, output) for the active samples.
  template <class F>
  void for_each(const F& f) const {
    for (int64_t k = 0; k < c_.num_modules; ++k) {
      for (const int64_t i : samples_[k]) {
        for (int64_t o = 0; o < c_.out_features; ++o) f(k, i, o);
      }
    }
  }
  template <class T>
  static std::vector<T*> pointers(auto& matrices) {
    std::vector<T*> out;
    for (auto& m : matrices) out.push_back(m.data());
    return out;
  }
  static bool close(const std::vector<float>& got, const std::vector<double>& want) {
    return std::equal(got.begin(), got.end(), want.begin(),
                      [](float g, double w) { return std::abs(g - w) <= 1e-4 * (1 + std::abs(w)); });  // false for NaN
  }
};

}  // namespace

int main() {
  const Case cases[] = {
      {70, 3, 37, 21},    // small tiles
      {530, 2, 40, 18},   // the gradient of the weights in splits
      {4200, 3, 20, 70},  // large tiles
  };
  print_outcomes([&](bool& right) {
    for (const Case& c : cases) {
      Problem problem(c);
      cudaError_t error = problem.forward(right);
      if (error == cudaSuccess) error = problem.backward(right);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}
