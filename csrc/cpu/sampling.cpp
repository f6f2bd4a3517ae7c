// Categorical samples: with torch's recipe and its stream of random numbers, and with one number a sample.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exponential.h>
#include <ATen/ops/uniform.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <optional>
#include <vector>

#include "../common/sampling_args.h"
#include "sampling_kernels.h"

namespace routing_ext::cpu {
namespace {

using at::Tensor;

constexpr int64_t kNumbersABlock = 1024;  // drawn at a time

// What torch makes an exponential number of: 1 - u, u uniform in [0, 1), a multiple of 2^-53.
class Stream {
 public:
  explicit Stream(const at::Generator& generator)
      : generator_(at::check_generator<at::CPUGeneratorImpl>(generator)),
        lock_(generator_->mutex_),
        engine_(generator_->engine().data()) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    at::mt19937 engine = generator_->engine();
    engine.set_data(engine_);
    generator_->set_engine(engine);
  }

  void fill(double* complements, int64_t count) {
    const SamplingKernels& kernels = sampling_kernels();
    int64_t i = 0;
    while (i < count) {
      // `left_` counts one more than the words of the state that were not taken yet.
      const int64_t pairs = std::min<int64_t>(count - i, (engine_.left_ - 1) / 2);
      if (pairs > 0) {
        kernels.complements_of(engine_.state_.data() + engine_.next_, complements + i, pairs);
        take(2 * pairs);
        i += pairs;
        continue;
      }
      uint32_t pair[2];  // the state ends within it
      for (uint32_t& word : pair) {
        if (engine_.left_ == 1) {
          kernels.twist(engine_.state_.data());
          engine_.next_ = 0;
          engine_.left_ = kMersenneState + 1;
        }
        word = engine_.state_[engine_.next_];
        take(1);
      }
      kernels.complements_of(pair, complements + i++, 1);
    }
  }

 private:
  void take(int64_t words) {
    engine_.next_ += words;
    engine_.left_ -= words;
  }

  at::CPUGeneratorImpl* const generator_;
  const std::lock_guard<std::mutex> lock_;
  at::mt19937_data_pod engine_;
};

// As torch has it; 1 - complement is exact.
template <class T>
T exponential(double complement) {
  return static_cast<T>(-1.0 * std::log1p(-(1 - complement)));
}

// Whether exponential_ draws these numbers. With some libraries and on some processors it draws others.
bool torch_draws_this_stream() {
  static const bool same = [] {
    const auto generator = at::make_generator<at::CPUGeneratorImpl>(1), twin = at::make_generator<at::CPUGeneratorImpl>(1);
    for (const int64_t count : {1, 7, 2000}) {
      const Tensor theirs = at::empty({count}, at::kFloat).exponential_(1, generator);
      std::vector<double> ours(count);
      Stream(twin).fill(ours.data(), count);
      const float* const t = theirs.const_data_ptr<float>();
      for (int64_t i = 0; i < count; ++i) {
        if (t[i] != exponential<float>(ours[i])) return false;
      }
    }
    return generator.get_state().equal(twin.get_state());
  }();
  return same;
}

// The first largest of probs[k] / q[k] over the actions that `asked` admits; NaN counts as the largest, as in torch's argmax.
template <class T, class Asked>
int64_t best_action(const T* probs, const double* complements, int64_t selections, const Asked& asked) {
  int64_t best = -1;
  T most{};
  for (int64_t k = 0; k < selections; ++k) {
    if (!asked(k)) continue;
    const T score = probs[k] / exponential<T>(complements[k]);
    if (best < 0 || score > most || (std::isnan(score) && !std::isnan(most))) best = k, most = score;
  }
  return best;
}

// The same, exact logarithms only for what may be the largest. rates: rough 1 / q; they become the scores.
template <class T>
int64_t choose(const T* probs, const double* complements, double* rates, int64_t selections) {
  constexpr double kDoubt = 1e-5;  // more than the error of a rough score and of the rounding to T
  for (int64_t k = 0; k < selections; ++k) rates[k] *= probs[k];
  const double* const scores = rates;
  double most = scores[0];
  for (int64_t k = 1; k < selections; ++k) most = scores[k] > most ? scores[k] : most;
  // A NaN fails one of the two tests: it is the first score, or it is counted as a candidate.
  const double least = most * (1 - kDoubt);
  int64_t candidates = 0, best = 0;
  for (int64_t k = 0; k < selections; ++k) {
    const bool is_candidate = !(scores[k] < least);
    candidates += is_candidate;
    best = is_candidate ? k : best;
  }
  if (!(most > std::numeric_limits<float>::min() && most < std::numeric_limits<float>::max())) {
    return best_action(probs, complements, selections, [](int64_t) { return true; });
  }
  if (candidates == 1) return best;
  return best_action(probs, complements, selections, [&](int64_t k) { return !(scores[k] < least); });
}

// Whose indices are in range.
struct Samples : SamplesArgs {
  Samples(const char* op, const Tensor& probs_, const std::optional<Tensor>& row_of_, const std::optional<Tensor>& order_,
          int64_t count_, int64_t batch_)
      : SamplesArgs(op, probs_, row_of_, order_, count_, batch_) {
    check_range(op, "order", order_data(), count, batch);
    check_range(op, "row_of", row_of_data(), batch, probs.size(0));
  }

  // f(i, the row of the i-th that decides, its action).
  template <class F>
  void for_each(const F& f) const {
    const int64_t *const sample_at = order_data(), *const row_at = row_of_data();
    int64_t* const action = actions.mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t sample = sample_at == nullptr ? i : sample_at[i];
      f(i, row_at == nullptr ? sample : row_at[sample], action[sample]);
    }
  }

 private:
  static void check_range(const char* op, const char* argument, const int64_t* index, int64_t count, int64_t end) {
    for (int64_t i = 0; index != nullptr && i < count; ++i) {
      CHECK_ARG(op, argument, index[i] >= 0 && index[i] < end, "must be in [0, ", end, "), got ", index[i]);
    }
  }
};

Tensor sample_by_inversion_cpu(const Tensor& probs, const std::optional<Tensor>& row_of, const std::optional<Tensor>& order,
                               int64_t count, int64_t batch) {
  const Samples samples("sample_by_inversion", probs, row_of, order, count, batch);
  const int64_t selections = samples.selections;
  const Tensor noise = at::empty({count}, probs.options()).uniform_();
  AT_DISPATCH_FLOATING_TYPES(probs.scalar_type(), "sample_by_inversion", [&] {
    const scalar_t* const prob = samples.probs.const_data_ptr<scalar_t>();
    const scalar_t* const uniform = noise.const_data_ptr<scalar_t>();
    std::vector<double> sums(samples.probs.numel());
    for (int64_t row = 0; row < samples.probs.size(0); ++row) {
      double sum = 0;
      for (int64_t i = row * selections; i < (row + 1) * selections; ++i) sums[i] = sum += prob[i];
    }
    samples.for_each([&](int64_t i, int64_t row, int64_t& action) {
      const double *const begin = sums.data() + row * selections, *const last = begin + selections - 1;
      // Above zero, so that an action of probability 0 never comes first.
      action = std::lower_bound(begin, last, (1.0 - uniform[i]) * *last) - begin;
    });
  });
  return samples.actions;
}

Tensor sample_categorical_cpu(const Tensor& probs, const std::optional<Tensor>& row_of, const std::optional<Tensor>& order,
                              at::IntArrayRef sizes, int64_t batch) {
  constexpr const char* kOp = "sample_categorical";
  const Samples samples(kOp, probs, row_of, order, num_deciding(kOp, sizes, order.has_value(), batch), batch);
  const int64_t count = samples.count, selections = samples.selections;
  const at::Generator generator = at::detail::getDefaultCPUGenerator();
  AT_DISPATCH_FLOATING_TYPES(probs.scalar_type(), kOp, [&] {
    const scalar_t* const prob = samples.probs.const_data_ptr<scalar_t>();
    if (torch_draws_this_stream()) {
      Stream stream(generator);
      const int64_t samples_a_block = std::max<int64_t>(1, std::min(count, kNumbersABlock / selections));
      const int64_t block = samples_a_block * selections;
      std::vector<double> complements(block), rates(block);
      samples.for_each([&](int64_t i, int64_t row, int64_t& action) {
        const int64_t at = i % samples_a_block * selections;
        if (at == 0) {
          const int64_t drawn = std::min(block, (count - i) * selections);
          stream.fill(complements.data(), drawn);
          sampling_kernels().rough_rates(complements.data(), rates.data(), drawn);
        }
        action = choose(prob + row * selections, complements.data() + at, rates.data() + at, selections);
      });
      return;
    }
    const Tensor noise = at::empty({count, selections}, probs.options());
    int64_t first = 0;
    for (const int64_t size : sizes) {
      noise.narrow(0, first, size).exponential_();
      first += size;
    }
    const Tensor scores = at::empty({selections}, probs.options());
    const scalar_t* const q = noise.const_data_ptr<scalar_t>();
    scalar_t* const score = scores.mutable_data_ptr<scalar_t>();
    samples.for_each([&](int64_t i, int64_t row, int64_t& action) {
      for (int64_t k = 0; k < selections; ++k) score[k] = prob[row * selections + k] / q[i * selections + k];
      action =
          std::max_element(score, score + selections, [](scalar_t a, scalar_t b) { return a < b || (b != b && a == a); }) -
          score;
    });
  });
  return samples.actions;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("sample_by_inversion", sample_by_inversion_cpu);
  m.impl("sample_categorical", sample_categorical_cpu);
}

}  // namespace routing_ext::cpu
