// Compares dispatch_plan's kernels with std::stable_sort, in several thread orders. Linked with bugs planted in the kernels.
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "dispatch_plan.cuh"
#include "outcome.h"

namespace {

using routing_ext::cuda::DispatchPlan;

struct Case {
  int64_t batch, num_modules;
  bool masked;
};

// Some actions are out of range.
cudaError_t run(const Case& c, bool& right) {
  std::mt19937_64 random(c.batch);
  std::vector<int64_t> actions(c.batch), order(c.batch, -7), layout(c.num_modules + 2, -7);
  const std::unique_ptr<bool[]> mask(new bool[c.batch]);
  for (int64_t& a : actions) a = random() % 1000 == 0 ? c.num_modules + 3 : static_cast<int64_t>(random() % c.num_modules);
  for (int64_t i = 0; i < c.batch; ++i) mask[i] = random() % 4 != 0;
  std::vector<unsigned char> scratch(routing_ext::cuda::dispatch_plan_scratch_bytes(c.batch, c.num_modules), cuda_emu::kFill);

  DispatchPlan plan;
  plan.actions = actions.data(), plan.mask = c.masked ? mask.get() : nullptr;
  plan.order = order.data(), plan.layout = layout.data(), plan.scratch = reinterpret_cast<int32_t*>(scratch.data());
  plan.batch = c.batch, plan.num_modules = c.num_modules;
  const cudaError_t error = routing_ext::cuda::launch_dispatch_plan(plan, nullptr);
  if (error != cudaSuccess) return error;

  std::vector<int64_t> bucket(c.batch), want_order(c.batch), want_layout(c.num_modules + 2, 0);
  int64_t first_invalid = -1;
  for (int64_t i = c.batch - 1; i >= 0; --i) {
    const bool active = !c.masked || mask[i], valid = actions[i] < c.num_modules;
    bucket[i] = active && valid ? actions[i] : c.num_modules;
    if (active && !valid) first_invalid = i;
    ++want_layout[bucket[i] + 1];
  }
  std::iota(want_order.begin(), want_order.end(), 0);
  std::stable_sort(want_order.begin(), want_order.end(), [&](int64_t a, int64_t b) { return bucket[a] < bucket[b]; });
  std::partial_sum(want_layout.begin(), want_layout.end(), want_layout.begin());
  want_layout.back() = first_invalid;
  right = right && order == want_order && layout == want_layout;
  return cudaSuccess;
}

}  // namespace

int main() {
  const Case cases[] = {
      {1000, 5, true},      // one tile
      {900, 700, false},    // more modules than threads
      {9000, 40, true},     // several tiles
      {8300, 1800, false},  // counters in global memory
  };
  print_outcomes([&](bool& right) {
    for (const Case& c : cases) {
      const cudaError_t error = run(c, right);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}
