// The gradients of what decisions of few rows have taken. Linked with bugs planted in the kernel.
#include <cmath>
#include <cstdint>
#include <vector>

#include "outcome.h"
#include "policy_gradients.cuh"

using namespace routing_ext::cuda;

int main() {
  constexpr int64_t kRows = 3, kSelections = 40, kCount = 300;
  std::vector<int64_t> row_of(kCount), actions(kCount);
  std::vector<float> grad(kCount), expected(kRows * kSelections, 0);
  for (int64_t j = 0; j < kCount; ++j) {
    row_of[j] = j * 7 % kRows, actions[j] = j * 11 % kSelections, grad[j] = static_cast<float>(j % 16);
    expected[row_of[j] * kSelections + actions[j]] += grad[j];  // whole numbers: in any order
  }
  const float *const rows = expected.data(), *const grads = grad.data();
  const int64_t *const rows_of = row_of.data(), *const taken = actions.data();
  const DecisionParts<float> parts{&rows, &rows_of, &taken, &kRows, &kSelections, &kCount, 1, 1, kCount};
  print_outcomes([&](bool& right) {
    std::vector<float> found(expected.size(), NAN);
    const cudaError_t error = launch_taken_backward<float>(parts, &grads, 1, nullptr, found.data(), nullptr);
    right = found == expected;
    return error;
  });
}
