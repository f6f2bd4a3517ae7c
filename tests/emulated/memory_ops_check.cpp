// Compares kernels of memory networks with their equations, in several thread orders. Linked with bugs planted in the kernels.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "memory/memory_ops.cuh"
#include "outcome.h"

namespace {

using namespace routing_ext::cuda;
using Values = std::vector<float>;

constexpr int64_t kBatch = 2;

class Random {
 public:
  explicit Random(uint64_t seed) : random_(seed) {}
  Values operator()(int64_t count, float low = 0, float high = 1) {
    Values values(count);
    for (float& x : values) x = std::uniform_real_distribution<float>(low, high)(random_);
    return values;
  }

 private:
  std::mt19937_64 random_;
};

// A launch of an operator on tensors of `batch` samples; its results are NaN before.
cudaError_t call(MemoryOp op, const MemoryOpShape& shape, const std::vector<Values>& in, std::vector<Values>& out) {
  MemoryOpTensors<float> tensors;
  for (size_t i = 0; i < in.size(); ++i) {
    tensors.in[i] = in[i].data(), tensors.in_stride[i] = static_cast<int64_t>(in[i].size()) / shape.batch;
  }
  for (size_t i = 0; i < out.size(); ++i) {
    std::fill(out[i].begin(), out[i].end(), NAN);
    tensors.out[i] = out[i].data(), tensors.out_stride[i] = static_cast<int64_t>(out[i].size()) / shape.batch;
  }
  Values scratch(memory_op_scratch_bytes<float>(op, shape) / sizeof(float), NAN);
  return launch_memory_op(op, shape, tensors, scratch.data(), nullptr);
}

// NaN is not close to anything.
bool close(const Values& found, const std::vector<double>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!(std::abs(found[i] - expected[i]) <= 2e-5 * std::max(1.0, std::abs(expected[i])))) return false;
  }
  return true;
}

cudaError_t content_weights(bool& right) {
  constexpr int64_t kHeads = 3, kLocations = 70, kWord = 21;
  Random random(1);
  const Values keys = random(kBatch * kHeads * kWord, -1), strengths = random(kBatch * kHeads, 1, 4);
  const Values memory = random(kBatch * kLocations * kWord, -1);
  std::vector<Values> out{Values(kBatch * kHeads * kLocations)};
  const MemoryOpShape shape{kBatch, kLocations, kWord, kHeads, 0, 0, 0, 0};
  const cudaError_t error = call(MemoryOp::content_weights, shape, {keys, strengths, memory}, out);
  std::vector<double> expected;
  for (int64_t row = 0; row < kBatch * kHeads; ++row) {
    double total = 0;
    for (int64_t i = 0; i < kLocations; ++i) {
      double dot = 0, key = 1e-6, own = 1e-6;
      for (int64_t w = 0; w < kWord; ++w) {
        const double k = keys[row * kWord + w], m = memory[(row / kHeads * kLocations + i) * kWord + w];
        dot += k * m, key += k * k, own += m * m;
      }
      expected.push_back(std::exp(strengths[row] * dot / (std::sqrt(key * own) + 1e-6)));
      total += expected.back();
    }
    for (int64_t i = 0; i < kLocations; ++i) expected[row * kLocations + i] /= total;
  }
  right = right && close(out[0], expected);
  return error;
}

cudaError_t allocation(bool& right) {
  constexpr int64_t kHeads = 2, kLocations = 90;
  Random random(2);
  const Values usage = random(kBatch * kLocations), gates = random(kBatch * kHeads);
  std::vector<Values> out{Values(kBatch * kHeads * kLocations), Values(kBatch * kLocations),
                          Values(kBatch * kHeads * kLocations)};
  const MemoryOpShape shape{kBatch, kLocations, 0, 0, kHeads, 0, 0, 0};
  const cudaError_t error = call(MemoryOp::dnc_allocation, shape, {usage, gates}, out);
  std::vector<double> expected(kBatch * kHeads * kLocations), used(usage.begin(), usage.end());
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t v = 0; v < kHeads; ++v) {
      double* const u = used.data() + b * kLocations;
      std::vector<int64_t> order(kLocations);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return u[i] < u[j]; });
      double before = 1;
      for (const int64_t i : order) {
        const double s = 1e-6 + (1 - 1e-6) * u[i], found = (1 - s) * before;
        before *= s, expected[(b * kHeads + v) * kLocations + i] = found;
        u[i] += (1 - u[i]) * gates[b * kHeads + v] * found;
      }
    }
  }
  right = right && close(out[0], expected) && close(out[1], used);
  return error;
}

cudaError_t temporal_link(bool& right) {
  constexpr int64_t kReads = 5, kLocations = 70;
  Random random(3);
  const Values link = random(kBatch * kLocations * kLocations, 0, 0.02f), precedence = random(kBatch * kLocations, 0, 0.02f);
  const Values weights = random(kBatch * kLocations, 0, 0.02f), read = random(kBatch * kReads * kLocations, 0, 0.02f);
  std::vector<Values> out{Values(link.size()), Values(precedence.size()), Values(read.size()), Values(read.size())};
  const MemoryOpShape shape{kBatch, kLocations, 0, 0, 1, kReads, 0, 0};
  const cudaError_t error = call(MemoryOp::dnc_temporal_link, shape, {link, precedence, weights, read}, out);
  std::vector<double> next(link.size()), preceding(precedence.size()), forward(read.size()), backward(read.size());
  for (int64_t b = 0; b < kBatch; ++b) {
    const float *const w = weights.data() + b * kLocations, *const p = precedence.data() + b * kLocations;
    const double written = std::accumulate(w, w + kLocations, 0.0);
    for (int64_t i = 0; i < kLocations; ++i) {
      preceding[b * kLocations + i] = (1 - written) * p[i] + w[i];
      for (int64_t j = 0; j < kLocations; ++j) {
        const int64_t at = (b * kLocations + i) * kLocations + j;
        next[at] = i == j ? 0 : (1.0 - w[i] - w[j]) * link[at] + double{w[i]} * p[j];
        for (int64_t r = 0; r < kReads; ++r) {
          const int64_t row = (b * kReads + r) * kLocations;
          forward[row + i] += next[at] * read[row + j], backward[row + j] += next[at] * read[row + i];
        }
      }
    }
  }
  right = right && close(out[0], next) && close(out[1], preceding) && close(out[2], forward) && close(out[3], backward);
  return error;
}

}  // namespace

int main() {
  print_outcomes([](bool& right) {
    for (const auto& run : {content_weights, allocation, temporal_link}) {
      const cudaError_t error = run(right);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}
