// The operators that memory networks are made of. The threads share the samples.
#include "memory_ops.h"

#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "../common/kernel_type.h"
#include "memory_ops_kernels.h"

namespace routing_ext::cpu {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

constexpr int64_t kCostOfElement = 4;  // in multiplications
constexpr int64_t kCostOfRank = 200;   // of a location among the others

// Of each tensor, where a sample begins.
template <class T>
class SamplePointers {
 public:
  template <class Tensors>
  SamplePointers(const Tensors& tensors, int64_t batch) {
    for (const Tensor& t : tensors) {
      if constexpr (std::is_const_v<T>) {
        base_.push_back(t.defined() ? static_cast<T*>(t.const_data_ptr()) : nullptr);
      } else {
        base_.push_back(static_cast<T*>(t.mutable_data_ptr()));
      }
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

template <class F>
void with_kernels(at::ScalarType dtype, const F& f) {
  const WideKernels<MemoryOpsKernels>& k = memory_ops_kernels();
  if (dtype == at::kFloat) return f(KernelType<float>(), k.f32);
  return f(KernelType<double>(), k.f64);
}

// Tensors of the shapes of `results`, as the kernel computes them that choose(kernels) names. cost: of a sample, in
// multiplications, beyond the reading and writing of its elements.
template <size_t count, class Choose>
std::array<Tensor, count> computed(MemoryOpArgs a, const char* const (&results)[count], const Choose& choose,
                                   double temperature = 0, int64_t cost = 0) {
  const Dimensions& d = a.sizes;
  const int64_t batch = d['B'];
  std::array<Tensor, count> out;
  for (size_t i = 0; i < count; ++i) {
    out[i] = empty_result(a, results[i]);
    cost += kCostOfElement * out[i].numel() / std::max<int64_t>(batch, 1);
  }
  pad_links(a);
  const MemoryOpSizes sizes{d['N'], d['W'], d['H'], d['V'], d['R'], d['S'], temperature};
  with_kernels(a.dtype(), [&](auto kernel_type, const auto& kernels) {
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
  for (size_t i = 0; i < count; ++i) unpad_link(a, results[i], out[i]);
  return out;
}

#define ROUTING_EXT_KERNEL(name) [](const auto& kernels) { return kernels.name; }

Tensor content_weights_cpu(const Tensor& keys, const Tensor& strengths, const Tensor& memory) {
  const MemoryOpArgs a("content_weights", {{"keys", "BHW"}, {"strengths", "BH"}, {"memory", "BNW"}},
                       {keys, strengths, memory});
  return computed(a, {"BHN"}, ROUTING_EXT_KERNEL(content_weights))[0];
}
auto content_weights_backward_cpu(const Tensor& grad, const Tensor& keys, const Tensor& strengths, const Tensor& memory) {
  const MemoryOpArgs a("content_weights_backward", {{"grad", "BHN"}, {"keys", "BHW"}, {"strengths", "BH"}, {"memory", "BNW"}},
                       {grad, keys, strengths, memory});
  return std::tuple_cat(computed(a, {"BHW", "BH", "BNW"}, ROUTING_EXT_KERNEL(content_weights_backward)));
}

Tensor dnc_usage_cpu(const Tensor& usage, const Tensor& write_weights, const Tensor& free_gates, const Tensor& read_weights) {
  const MemoryOpArgs a("dnc_usage", {{"usage", "BN"}, {"write_weights", "BVN"}, {"free_gates", "BR"}, {"read_weights", "BRN"}},
                       {usage, write_weights, free_gates, read_weights});
  return computed(a, {"BN"}, ROUTING_EXT_KERNEL(dnc_usage))[0];
}
auto dnc_usage_backward_cpu(const Tensor& grad, const Tensor& usage, const Tensor& write_weights, const Tensor& free_gates,
                            const Tensor& read_weights) {
  const MemoryOpArgs a(
      "dnc_usage_backward",
      {{"grad", "BN"}, {"usage", "BN"}, {"write_weights", "BVN"}, {"free_gates", "BR"}, {"read_weights", "BRN"}},
      {grad, usage, write_weights, free_gates, read_weights});
  return std::tuple_cat(computed(a, {"BN", "BVN", "BR", "BRN"}, ROUTING_EXT_KERNEL(dnc_usage_backward)));
}

int64_t cost_of_ranks(const MemoryOpArgs& a, double temperature) {
  return temperature == 0 ? kCostOfRank * a.sizes['V'] * a.sizes['N'] : 0;
}
auto dnc_allocation_cpu(const Tensor& usage, const Tensor& write_gates, double temperature) {
  const MemoryOpArgs a("dnc_allocation", {{"usage", "BN"}, {"write_gates", "BV"}}, {usage, write_gates});
  CHECK_ARG(a.op, "temperature", temperature >= 0, "must not be negative, got ", temperature);
  return std::tuple_cat(
      computed(a, {"BVN", "BN", "BVN"}, ROUTING_EXT_KERNEL(dnc_allocation), temperature, cost_of_ranks(a, temperature)));
}
auto dnc_allocation_backward_cpu(const Optional& grad_allocation, const Optional& grad_usage, const Tensor& usage,
                                 const Tensor& write_gates, const Tensor& kept, double temperature) {
  const MemoryOpArgs a(
      "dnc_allocation_backward",
      {{"grad_allocation", "BVN"}, {"grad_usage", "BN"}, {"usage", "BN"}, {"write_gates", "BV"}, {"kept", "BVN"}},
      {or_undefined(grad_allocation), or_undefined(grad_usage), usage, write_gates, kept});
  return std::tuple_cat(
      computed(a, {"BN", "BV"}, ROUTING_EXT_KERNEL(dnc_allocation_backward), temperature, cost_of_ranks(a, temperature)));
}

auto dnc_temporal_link_cpu(const Tensor& link, const Tensor& precedence, const Tensor& write_weights,
                           const Tensor& read_weights) {
  const MemoryOpArgs a("dnc_temporal_link",
                       {{"link", "BVNn"}, {"precedence", "BVN"}, {"write_weights", "BVN"}, {"read_weights", "BRN"}},
                       {link, precedence, write_weights, read_weights});
  return std::tuple_cat(computed(a, {"BVNn", "BVN", "BVRN", "BVRN"}, ROUTING_EXT_KERNEL(dnc_temporal_link)));
}
auto dnc_temporal_link_backward_cpu(const Optional& grad_link, const Optional& grad_precedence, const Optional& grad_forward,
                                    const Optional& grad_backward, const Tensor& link, const Tensor& precedence,
                                    const Tensor& write_weights, const Tensor& read_weights) {
  const MemoryOpArgs a("dnc_temporal_link_backward",
                       {{"grad_link", "BVNn"},
                        {"grad_precedence", "BVN"},
                        {"grad_forward", "BVRN"},
                        {"grad_backward", "BVRN"},
                        {"link", "BVNn"},
                        {"precedence", "BVN"},
                        {"write_weights", "BVN"},
                        {"read_weights", "BRN"}},
                       {or_undefined(grad_link), or_undefined(grad_precedence), or_undefined(grad_forward),
                        or_undefined(grad_backward), link, precedence, write_weights, read_weights});
  return std::tuple_cat(computed(a, {"BVNn", "BVN", "BVN", "BRN"}, ROUTING_EXT_KERNEL(dnc_temporal_link_backward)));
}

Tensor ntm_location_cpu(const Tensor& content, const Tensor& gates, const Tensor& shifts, const Tensor& sharpness,
                        const Tensor& previous) {
  const MemoryOpArgs a("ntm_location",
                       {{"content", "BHN"}, {"gates", "BH"}, {"shifts", "BHS"}, {"sharpness", "BH"}, {"previous", "BHN"}},
                       {content, gates, shifts, sharpness, previous});
  return computed(a, {"BHN"}, ROUTING_EXT_KERNEL(ntm_location))[0];
}
auto ntm_location_backward_cpu(const Tensor& grad, const Tensor& content, const Tensor& gates, const Tensor& shifts,
                               const Tensor& sharpness, const Tensor& previous) {
  const MemoryOpArgs a(
      "ntm_location_backward",
      {{"grad", "BHN"}, {"content", "BHN"}, {"gates", "BH"}, {"shifts", "BHS"}, {"sharpness", "BH"}, {"previous", "BHN"}},
      {grad, content, gates, shifts, sharpness, previous});
  return std::tuple_cat(computed(a, {"BHN", "BH", "BHS", "BH", "BHN"}, ROUTING_EXT_KERNEL(ntm_location_backward)));
}

Tensor memory_write_cpu(const Tensor& memory, const Tensor& write_weights, const Tensor& erase, const Tensor& add) {
  const MemoryOpArgs a("memory_write", {{"memory", "BNW"}, {"write_weights", "BVN"}, {"erase", "BVW"}, {"add", "BVW"}},
                       {memory, write_weights, erase, add});
  return computed(a, {"BNW"}, ROUTING_EXT_KERNEL(memory_write))[0];
}
auto memory_write_backward_cpu(const Tensor& grad, const Tensor& memory, const Tensor& write_weights, const Tensor& erase,
                               const Tensor& add) {
  const MemoryOpArgs a("memory_write_backward",
                       {{"grad", "BNW"}, {"memory", "BNW"}, {"write_weights", "BVN"}, {"erase", "BVW"}, {"add", "BVW"}},
                       {grad, memory, write_weights, erase, add});
  return std::tuple_cat(computed(a, {"BNW", "BVN", "BVW", "BVW"}, ROUTING_EXT_KERNEL(memory_write_backward)));
}

Tensor memory_read_cpu(const Tensor& memory, const Tensor& read_weights) {
  const MemoryOpArgs a("memory_read", {{"memory", "BNW"}, {"read_weights", "BRN"}}, {memory, read_weights});
  return computed(a, {"BRW"}, ROUTING_EXT_KERNEL(memory_read))[0];
}
auto memory_read_backward_cpu(const Tensor& grad, const Tensor& memory, const Tensor& read_weights) {
  const MemoryOpArgs a("memory_read_backward", {{"grad", "BRW"}, {"memory", "BNW"}, {"read_weights", "BRN"}},
                       {grad, memory, read_weights});
  return std::tuple_cat(computed(a, {"BNW", "BRN"}, ROUTING_EXT_KERNEL(memory_read_backward)));
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("content_weights", content_weights_cpu);
  m.impl("content_weights_backward", content_weights_backward_cpu);
  m.impl("dnc_usage", dnc_usage_cpu);
  m.impl("dnc_usage_backward", dnc_usage_backward_cpu);
  m.impl("dnc_allocation", dnc_allocation_cpu);
  m.impl("dnc_allocation_backward", dnc_allocation_backward_cpu);
  m.impl("dnc_temporal_link", dnc_temporal_link_cpu);
  m.impl("dnc_temporal_link_backward", dnc_temporal_link_backward_cpu);
  m.impl("ntm_location", ntm_location_cpu);
  m.impl("ntm_location_backward", ntm_location_backward_cpu);
  m.impl("memory_write", memory_write_cpu);
  m.impl("memory_write_backward", memory_write_backward_cpu);
  m.impl("memory_read", memory_read_cpu);
  m.impl("memory_read_backward", memory_read_backward_cpu);
}

}  // namespace routing_ext::cpu
