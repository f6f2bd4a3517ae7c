// Categorical samples with torch's recipe and its stream of random numbers.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exponential.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <optional>
#include <vector>

#include "../common/checks.h"
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

Tensor sample_categorical_cpu(const Tensor& probs, const std::optional<Tensor>& row_of, const std::optional<Tensor>& order,
                              at::IntArrayRef sizes, int64_t batch) {
  constexpr const char* kOp = "sample_categorical";
  CHECK_DIM(kOp, probs, 2);
  int64_t count = 0;
  for (const int64_t size : sizes) count += size;
  const auto indices = [&](const char* argument, const std::optional<Tensor>& t, int64_t least) {
    if (!t.has_value()) return Tensor();
    CHECK_INDEX(kOp, *t, probs);
    CHECK_ARG(kOp, argument, t->size(0) >= least, "must have at least ", least, " elements, got ", t->size(0));
    return t->contiguous();
  };
  const Tensor samples = indices("order", order, count), rows = indices("row_of", row_of, batch), p = probs.contiguous();
  CHECK_ARG(kOp, "sizes", order.has_value() || count == batch, "must add up to the batch of ", batch, ", got ", sizes);
  const int64_t selections = p.size(1), num_rows = p.size(0);
  CHECK_ARG(kOp, "probs", selections > 0, "must have at least one action, got ", p.sizes());
  const int64_t* const sample_at = order.has_value() ? samples.const_data_ptr<int64_t>() : nullptr;
  const int64_t* const row_at = row_of.has_value() ? rows.const_data_ptr<int64_t>() : nullptr;
  const Tensor actions =
      count == batch ? at::empty({batch}, p.options().dtype(at::kLong)) : at::zeros({batch}, p.options().dtype(at::kLong));
  int64_t* const action = actions.mutable_data_ptr<int64_t>();
  const at::Generator generator = at::detail::getDefaultCPUGenerator();

  // f(probs of the i-th sample [K], its place in the batch), in the order of the draws.
  const auto for_each_sample = [&](const auto* of_rows, const auto& f) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t sample = sample_at == nullptr ? i : sample_at[i];
      CHECK_ARG(kOp, "order", sample >= 0 && sample < batch, "must be in [0, ", batch, "), got ", sample);
      const int64_t row = row_at == nullptr ? sample : row_at[sample];
      CHECK_ARG(kOp, "row_of", row >= 0 && row < num_rows, "must be in [0, ", num_rows, "), got ", row);
      f(i, of_rows + row * selections, action[sample]);
    }
  };
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), kOp, [&] {
    const scalar_t* const of_rows = p.const_data_ptr<scalar_t>();
    if (torch_draws_this_stream()) {
      Stream stream(generator);
      const int64_t samples_a_block = std::max<int64_t>(1, std::min(count, kNumbersABlock / selections));
      const int64_t block = samples_a_block * selections;
      std::vector<double> complements(block), rates(block);
      for_each_sample(of_rows, [&](int64_t i, const scalar_t* its, int64_t& chosen) {
        const int64_t at = i % samples_a_block * selections;
        if (at == 0) {
          const int64_t drawn = std::min(block, (count - i) * selections);
          stream.fill(complements.data(), drawn);
          sampling_kernels().rough_rates(complements.data(), rates.data(), drawn);
        }
        chosen = choose(its, complements.data() + at, rates.data() + at, selections);
      });
      return;
    }
    const Tensor noise = at::empty({count, selections}, p.options());
    int64_t first = 0;
    for (const int64_t size : sizes) {
      noise.narrow(0, first, size).exponential_();
      first += size;
    }
    const Tensor scores = at::empty({selections}, p.options());
    const scalar_t* const q = noise.const_data_ptr<scalar_t>();
    scalar_t* const score = scores.mutable_data_ptr<scalar_t>();
    for_each_sample(of_rows, [&](int64_t i, const scalar_t* its, int64_t& chosen) {
      for (int64_t k = 0; k < selections; ++k) score[k] = its[k] / q[i * selections + k];
      chosen =
          std::max_element(score, score + selections, [](scalar_t a, scalar_t b) { return a < b || (b != b && a == a); }) -
          score;
    });
  });
  return actions;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) { m.impl("sample_categorical", sample_categorical_cpu); }

}  // namespace routing_ext::cpu
