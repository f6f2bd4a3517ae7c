// The arguments of dnc_access and ntm_access and of their backward passes, checked. Shared by the CPU and the CUDA glue.
#pragma once
#include <c10/util/SmallVector.h>

#include <initializer_list>

#include "memory_ops_args.h"
#include "memory_options_args.h"

namespace routing_ext {

// A tensor of a state, in the order of the schema, or the read vectors, which come last.
struct StatePart {
  const char *name, *gradient, *shape;
};
constexpr std::array<StatePart, 7> dnc_state(bool linked) {
  return {{{"memory", "grad_memory", "BNW"},
           {"usage", "grad_usage", "BN"},
           {"precedence", "grad_precedence", linked ? "BVN" : "BVL"},
           {"link", "grad_link", linked ? "BVNN" : "BVLL"},
           {"write_weights", "grad_write_weights", "BVN"},
           {"read_weights", "grad_read_weights", "BRN"},
           {"read_vectors", "grad_read_vectors", "BRW"}}};
}
constexpr std::array<StatePart, 4> kNtmState{{{"memory", "grad_memory", "BNW"},
                                              {"write_weights", "grad_write_weights", "BVN"},
                                              {"read_weights", "grad_read_weights", "BRN"},
                                              {"read_vectors", "grad_read_vectors", "BRW"}}};

// Options as the operator gets them, and what they mean.
struct AccessOptions {
  at::ArrayRef<double> numbers;
  MemoryOptions meaning;

  AccessOptions(const char* op, at::ArrayRef<double> numbers_) : numbers(numbers_), meaning(memory_options(op, numbers_)) {
    CHECK_ARG(op, "options", !meaning.normalises, "must be without a normalisation, which sequences have");
  }
};

// count: of the tensors of a state and the read vectors, which the forward pass gives, beside the record. The backward pass
// gives as many: of the interface and of the state.
template <size_t count>
struct MemoryAccessArgs : MemoryOpCall<count> {
  using Tensors = std::initializer_list<GivenTensor>;
  static constexpr bool kIsDnc = count == dnc_state(true).size();

  AccessOptions how;
  int64_t shifts = 0;  // of an NTM's head
  at::Tensor record;   // of the backward pass

  // Of the forward pass.
  MemoryAccessArgs(const char* op, const AccessOptions& how_, const std::array<StatePart, count>& state,
                   const at::Tensor& interface, Tensors previous)
      : MemoryOpCall<count>(op, arguments(state, {}, interface, previous), shapes(state)), how(how_) {
    check_sizes();
  }
  // Of the backward pass. grads: of the next state and the read vectors.
  MemoryAccessArgs(const char* op, const AccessOptions& how_, const std::array<StatePart, count>& state, Tensors grads,
                   const at::Tensor& interface, Tensors previous, const at::Tensor& record_)
      : MemoryOpCall<count>(op, arguments(state, grads, interface, previous), shapes_of_gradients(state)),
        how(how_),
        record(record_) {
    check_sizes();
  }

  // row_size: that of the forward pass on this device.
  void check_record(int64_t row_size) const {
    CHECK_ARG(this->op, "record",
              record.sizes() == at::IntArrayRef({this->sizes['B'], row_size}) && record.is_contiguous() &&
                  record.scalar_type() == this->dtype() && record.device() == this->options.device(),
              "must be the one that the forward pass gave, got ", record.sizes());
  }

 private:
  static auto arguments(const std::array<StatePart, count>& state, Tensors grads, const at::Tensor& interface,
                        Tensors previous) {
    c10::SmallVector<Argument, 2 * count> all;
    const StatePart* part = state.data();
    for (const GivenTensor& t : grads) all.push_back({part->gradient, part->shape, t}), ++part;
    all.push_back({"interface", "BI", interface});
    part = state.data();
    for (const GivenTensor& t : previous) all.push_back({part->name, part->shape, t}), ++part;
    return all;
  }
  static std::array<const char*, count> shapes(const std::array<StatePart, count>& state) {
    std::array<const char*, count> all;
    for (size_t i = 0; i < count; ++i) all[i] = state[i].shape;
    return all;
  }
  static std::array<const char*, count> shapes_of_gradients(const std::array<StatePart, count>& state) {
    std::array<const char*, count> all{"BI"};
    for (size_t i = 1; i < count; ++i) all[i] = state[i - 1].shape;
    return all;
  }
  int64_t interface_size() const {
    const Dimensions& d = this->sizes;
    return InterfaceParts(kIsDnc, d['V'], d['R'], d['W'], shifts, how.meaning).total;
  }
  void check_sizes() {
    const Dimensions& d = this->sizes;
    const int64_t given = d['I'];
    if (!kIsDnc) shifts = (given - interface_size()) / (d['R'] + d['V']);
    CHECK_ARG(this->op, "interface", kIsDnc || shifts >= 1, "must be of at least one shift for each head, got ", shifts,
              " of ", given, " elements");
    CHECK_ARG(this->op, "link", d['L'] == 0, "must be empty, and precedence likewise, where there is none, got ", d['L'],
              " locations");
    CHECK_ARG(this->op, "interface", given == interface_size(), "must have ", interface_size(), " elements, got ", given);
  }
};

// ---- the operators ---------------------------------------------------------------------------------------------------------

inline auto dnc_access_args(const at::Tensor& interface, const at::Tensor& memory, const at::Tensor& usage,
                            const at::Tensor& precedence, const at::Tensor& link, const at::Tensor& write_weights,
                            const at::Tensor& read_weights, at::ArrayRef<double> options) {
  constexpr const char* kOp = "dnc_access";
  const AccessOptions how(kOp, options);
  return MemoryAccessArgs(kOp, how, dnc_state(!how.meaning.unlinked), interface,
                          {memory, usage, precedence, link, write_weights, read_weights});
}
inline auto dnc_access_backward_args(const std::optional<at::Tensor>& grad_memory, const std::optional<at::Tensor>& grad_usage,
                                     const std::optional<at::Tensor>& grad_precedence,
                                     const std::optional<at::Tensor>& grad_link,
                                     const std::optional<at::Tensor>& grad_write_weights,
                                     const std::optional<at::Tensor>& grad_read_weights,
                                     const std::optional<at::Tensor>& grad_read_vectors, const at::Tensor& interface,
                                     const at::Tensor& memory, const at::Tensor& usage, const at::Tensor& precedence,
                                     const at::Tensor& link, const at::Tensor& write_weights, const at::Tensor& read_weights,
                                     const at::Tensor& record, at::ArrayRef<double> options) {
  constexpr const char* kOp = "dnc_access_backward";
  const AccessOptions how(kOp, options);
  return MemoryAccessArgs(
      kOp, how, dnc_state(!how.meaning.unlinked),
      {grad_memory, grad_usage, grad_precedence, grad_link, grad_write_weights, grad_read_weights, grad_read_vectors},
      interface, {memory, usage, precedence, link, write_weights, read_weights}, record);
}

inline auto ntm_access_args(const at::Tensor& interface, const at::Tensor& memory, const at::Tensor& write_weights,
                            const at::Tensor& read_weights, at::ArrayRef<double> options) {
  constexpr const char* kOp = "ntm_access";
  return MemoryAccessArgs(kOp, AccessOptions(kOp, options), kNtmState, interface, {memory, write_weights, read_weights});
}
inline auto ntm_access_backward_args(const std::optional<at::Tensor>& grad_memory,
                                     const std::optional<at::Tensor>& grad_write_weights,
                                     const std::optional<at::Tensor>& grad_read_weights,
                                     const std::optional<at::Tensor>& grad_read_vectors, const at::Tensor& interface,
                                     const at::Tensor& memory, const at::Tensor& write_weights, const at::Tensor& read_weights,
                                     const at::Tensor& record, at::ArrayRef<double> options) {
  constexpr const char* kOp = "ntm_access_backward";
  return MemoryAccessArgs(kOp, AccessOptions(kOp, options), kNtmState,
                          {grad_memory, grad_write_weights, grad_read_weights, grad_read_vectors}, interface,
                          {memory, write_weights, read_weights}, record);
}

}  // namespace routing_ext
