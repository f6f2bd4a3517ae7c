// The operators that memory networks are made of. The threads share the samples.
#include "memory_ops.h"

#include <torch/library.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "kernels_of_dtype.h"
#include "memory_ops_kernels.h"

namespace routing_ext::cpu {
namespace {

constexpr int64_t kCostOfElement = 4;  // in multiplications
constexpr int64_t kCostOfRank = 200;   // of a location among the others

// Of each tensor, where a sample begins.
template <class T>
class SamplePointers {
 public:
  template <class Tensors>
  SamplePointers(const Tensors& tensors, int64_t batch) {
    for (const at::Tensor& t : tensors) {
      base_.push_back(data_of<T>(t));
      stride_.push_back(t.defined() ? t.numel() / std::max<int64_t>(batch, 1) : 0);
    }
  }
  std::vector<T*> of(int64_t sample) const {
    std::vector<T*> pointers(base_);
    for (size_t i = 0; i < pointers.size(); ++i) {
      if (pointers[i]) pointers[i] += sample * stride_[i];
    }
    return pointers;
  }

 private:
  std::vector<T*> base_;
  std::vector<int64_t> stride_;
};

// Of the kernel that choose(kernels) names.
template <size_t count, class Choose>
std::array<at::Tensor, count> computed(MemoryOpCall<count> a, const Choose& choose) {
  const Dimensions& d = a.sizes;
  const int64_t batch = d['B'];
  int64_t cost = a.temperature == 0 ? kCostOfRank * d['V'] * d['N'] : 0;  // of a sample, in multiplications
  std::array<at::Tensor, count> out;
  for (size_t i = 0; i < count; ++i) {
    out[i] = empty_result(a, a.results[i]);
    cost += kCostOfElement * out[i].numel() / std::max<int64_t>(batch, 1);
  }
  pad_links(a);
  const MemoryOpSizes sizes{d['N'], d['W'], d['H'], d['V'], d['R'], d['S'], a.temperature.value_or(0)};
  with_kernels(memory_ops_kernels(), a.dtype(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const MemoryOp<C> kernel = choose(kernels);
    const SamplePointers<const C> in(a.tensors, batch);
    const SamplePointers<C> to(out, batch);
    const int64_t samples_at_least = divide_up(kMultiplicationsPerThread, std::max<int64_t>(cost, 1));
    at::parallel_for(0, batch, samples_at_least, [&](int64_t begin, int64_t end) {
      C* const scratch = static_cast<C*>(thread_scratch(sizeof(C) * sizes.template scratch_size<C>()));
      for (int64_t b = begin; b < end; ++b) kernel(sizes, in.of(b).data(), to.of(b).data(), scratch);
    });
  });
  for (size_t i = 0; i < count; ++i) unpad_link(a, a.results[i], out[i]);
  return out;
}

#define ROUTING_EXT_OPERATOR(name)                                                          \
  m.impl(#name, MemoryOperator<name##_args, [](auto a) {                                    \
           return computed(std::move(a), [](const auto& kernels) { return kernels.name; }); \
         }>::call)

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  ROUTING_EXT_OPERATOR(content_weights);
  ROUTING_EXT_OPERATOR(content_weights_backward);
  ROUTING_EXT_OPERATOR(dnc_usage);
  ROUTING_EXT_OPERATOR(dnc_usage_backward);
  ROUTING_EXT_OPERATOR(dnc_allocation);
  ROUTING_EXT_OPERATOR(dnc_allocation_backward);
  ROUTING_EXT_OPERATOR(dnc_temporal_link);
  ROUTING_EXT_OPERATOR(dnc_temporal_link_backward);
  ROUTING_EXT_OPERATOR(ntm_location);
  ROUTING_EXT_OPERATOR(ntm_location_backward);
  ROUTING_EXT_OPERATOR(memory_write);
  ROUTING_EXT_OPERATOR(memory_write_backward);
  ROUTING_EXT_OPERATOR(memory_read);
  ROUTING_EXT_OPERATOR(memory_read_backward);
}

#undef ROUTING_EXT_OPERATOR

}  // namespace routing_ext::cpu
