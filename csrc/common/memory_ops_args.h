// The arguments of the operators that memory networks are made of, checked, and the shapes of their results. Shared by the CPU
// and the CUDA glue.
//
// A shape is written in letters: B samples, N locations of W elements, H heads of any kind, V write heads, R read heads, S
// shifts, I elements of an interface vector; L, the locations of a link that is not there: 0. A link is what ends with NN.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"

namespace routing_ext {

// A tensor, which need not be there if it is optional.
struct GivenTensor {
  const at::Tensor* tensor;  // nullptr: it is not there

  GivenTensor(const at::Tensor& t) : tensor(t.defined() ? &t : nullptr) {}
  GivenTensor(const std::optional<at::Tensor>& t) : tensor(t && t->defined() ? &*t : nullptr) {}
};

struct Argument {
  const char *name, *shape;
  GivenTensor given;
};

// What each letter stands for: as much as the first argument that has it says.
class Dimensions {
 public:
  int64_t operator[](char letter) const { return known(letter) ? at(letter) : 0; }
  bool known(char letter) const { return at(letter) >= 0; }
  void learn(char letter, int64_t size) { sizes_[letter - 'A'] = size; }

  std::vector<int64_t> shape(const char* letters) const {
    std::vector<int64_t> sizes;
    for (; *letters; ++letters) sizes.push_back((*this)[*letters]);
    return sizes;
  }
  // Such as [2, N, 4], where N is not known yet.
  std::string text(const char* letters) const {
    std::string text;
    for (; *letters; ++letters) {
      text += text.empty() ? "[" : ", ";
      text += known(*letters) ? std::to_string(at(*letters)) : std::string(1, *letters);
    }
    return text + "]";
  }

 private:
  int64_t at(char letter) const { return sizes_[letter - 'A']; }
  std::array<int64_t, 26> sizes_ = unknown();
  static std::array<int64_t, 26> unknown() {
    std::array<int64_t, 26> sizes;
    sizes.fill(-1);
    return sizes;
  }
};

struct MemoryOpArgs {
  const char* op;
  std::vector<at::Tensor> tensors;   // contiguous; undefined where an optional one was not given
  std::vector<const char*> letters;  // of each
  Dimensions sizes;
  at::TensorOptions options;
  std::optional<double> temperature;  // of dnc_allocation alone

  at::ScalarType dtype() const { return c10::typeMetaToScalarType(options.dtype()); }

  MemoryOpArgs(const char* op_, at::ArrayRef<Argument> arguments) : op(op_) {
    const Argument* like = nullptr;
    tensors.reserve(arguments.size()), letters.reserve(arguments.size());
    for (const Argument& argument : arguments) {
      const auto& [name, shape, given] = argument;
      letters.push_back(shape);
      if (given.tensor == nullptr) {
        tensors.emplace_back();
        continue;
      }
      const at::Tensor& t = *given.tensor;
      tensors.push_back(t.contiguous());
      if (like == nullptr) {
        CHECK_ARG(op, name, t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble,
                  "must be float32 or float64, got ", t.scalar_type());
        like = &argument;
        options = t.options();
      }
      CHECK_ARG(op, name, matches(t, shape), "must have shape ", sizes.text(shape), ", got ", t.sizes());
      for (int64_t d = 0; d < t.dim(); ++d) {
        CHECK_ARG(op, name, shape[d] == 'B' || shape[d] == 'L' || t.size(d) > 0,
                  "must have at least 1 of each but samples, got ", t.sizes());
      }
      CHECK_ARG(op, name, t.scalar_type() == dtype(), "must have the dtype of ", like->name, ", ", dtype(), ", got ",
                t.scalar_type());
      CHECK_ARG(op, name, t.device() == options.device(), "must be on ", options.device(), ", got ", t.device());
    }
  }

 private:
  bool matches(const at::Tensor& t, const char* shape) {
    if (t.dim() != static_cast<int64_t>(std::strlen(shape))) return false;
    for (int64_t d = 0; d < t.dim(); ++d) {
      const char letter = shape[d];
      if (!sizes.known(letter)) {
        sizes.learn(letter, t.size(d));
      }
      if (t.size(d) != sizes[letter]) return false;
    }
    return true;
  }
};

// With the shapes of `count` results.
template <size_t count>
struct MemoryOpCall : MemoryOpArgs {
  std::array<const char*, count> results;

  MemoryOpCall(const char* op, at::ArrayRef<Argument> arguments, const std::array<const char*, count>& results_)
      : MemoryOpArgs(op, arguments), results(results_) {}
  MemoryOpCall(const char* op, at::ArrayRef<Argument> arguments, const char* const (&results_)[count])
      : MemoryOpCall(op, arguments, std::to_array(results_)) {}
};

// The operator of those arguments that args_of checks; compute(what args_of returns) -> an array of tensors, its results.
template <auto args_of, auto compute>
struct MemoryOperator;
template <class Args, class... Given, Args (*args_of)(Given...), auto compute>
struct MemoryOperator<args_of, compute> {
  static auto call(Given... given) {
    const auto results = compute(args_of(given...));
    if constexpr (results.size() == 1) {
      return results[0];
    } else {
      return std::tuple_cat(results);
    }
  }
};

// ---- the operators ---------------------------------------------------------------------------------------------------------

inline auto content_weights_args(const at::Tensor& keys, const at::Tensor& strengths, const at::Tensor& memory) {
  return MemoryOpCall("content_weights", {{"keys", "BHW", keys}, {"strengths", "BH", strengths}, {"memory", "BNW", memory}},
                      {"BHN"});
}
inline auto content_weights_backward_args(const at::Tensor& grad, const at::Tensor& keys, const at::Tensor& strengths,
                                          const at::Tensor& memory) {
  return MemoryOpCall(
      "content_weights_backward",
      {{"grad", "BHN", grad}, {"keys", "BHW", keys}, {"strengths", "BH", strengths}, {"memory", "BNW", memory}},
      {"BHW", "BH", "BNW"});
}

inline auto dnc_usage_args(const at::Tensor& usage, const at::Tensor& write_weights, const at::Tensor& free_gates,
                           const at::Tensor& read_weights) {
  return MemoryOpCall("dnc_usage",
                      {{"usage", "BN", usage},
                       {"write_weights", "BVN", write_weights},
                       {"free_gates", "BR", free_gates},
                       {"read_weights", "BRN", read_weights}},
                      {"BN"});
}
inline auto dnc_usage_backward_args(const at::Tensor& grad, const at::Tensor& usage, const at::Tensor& write_weights,
                                    const at::Tensor& free_gates, const at::Tensor& read_weights) {
  return MemoryOpCall("dnc_usage_backward",
                      {{"grad", "BN", grad},
                       {"usage", "BN", usage},
                       {"write_weights", "BVN", write_weights},
                       {"free_gates", "BR", free_gates},
                       {"read_weights", "BRN", read_weights}},
                      {"BN", "BVN", "BR", "BRN"});
}

inline void check_temperature(const char* op, double temperature) {
  CHECK_ARG(op, "temperature", temperature >= 0, "must not be negative, got ", temperature);
}
inline auto dnc_allocation_args(const at::Tensor& usage, const at::Tensor& write_gates, double temperature) {
  MemoryOpCall a("dnc_allocation", {{"usage", "BN", usage}, {"write_gates", "BV", write_gates}}, {"BVN", "BN", "BVN"});
  check_temperature(a.op, temperature);
  a.temperature = temperature;
  return a;
}
inline auto dnc_allocation_backward_args(const std::optional<at::Tensor>& grad_allocation,
                                         const std::optional<at::Tensor>& grad_usage, const at::Tensor& usage,
                                         const at::Tensor& write_gates, const at::Tensor& kept, double temperature) {
  MemoryOpCall a("dnc_allocation_backward",
                 {{"grad_allocation", "BVN", grad_allocation},
                  {"grad_usage", "BN", grad_usage},
                  {"usage", "BN", usage},
                  {"write_gates", "BV", write_gates},
                  {"kept", "BVN", kept}},
                 {"BN", "BV"});
  check_temperature(a.op, temperature);
  a.temperature = temperature;
  return a;
}

inline auto dnc_temporal_link_args(const at::Tensor& link, const at::Tensor& precedence, const at::Tensor& write_weights,
                                   const at::Tensor& read_weights) {
  return MemoryOpCall("dnc_temporal_link",
                      {{"link", "BVNN", link},
                       {"precedence", "BVN", precedence},
                       {"write_weights", "BVN", write_weights},
                       {"read_weights", "BRN", read_weights}},
                      {"BVNN", "BVN", "BVRN", "BVRN"});
}
inline auto dnc_temporal_link_backward_args(const std::optional<at::Tensor>& grad_link,
                                            const std::optional<at::Tensor>& grad_precedence,
                                            const std::optional<at::Tensor>& grad_forward,
                                            const std::optional<at::Tensor>& grad_backward, const at::Tensor& link,
                                            const at::Tensor& precedence, const at::Tensor& write_weights,
                                            const at::Tensor& read_weights) {
  return MemoryOpCall("dnc_temporal_link_backward",
                      {{"grad_link", "BVNN", grad_link},
                       {"grad_precedence", "BVN", grad_precedence},
                       {"grad_forward", "BVRN", grad_forward},
                       {"grad_backward", "BVRN", grad_backward},
                       {"link", "BVNN", link},
                       {"precedence", "BVN", precedence},
                       {"write_weights", "BVN", write_weights},
                       {"read_weights", "BRN", read_weights}},
                      {"BVNN", "BVN", "BVN", "BRN"});
}

inline auto ntm_location_args(const at::Tensor& content, const at::Tensor& gates, const at::Tensor& shifts,
                              const at::Tensor& sharpness, const at::Tensor& previous) {
  return MemoryOpCall("ntm_location",
                      {{"content", "BHN", content},
                       {"gates", "BH", gates},
                       {"shifts", "BHS", shifts},
                       {"sharpness", "BH", sharpness},
                       {"previous", "BHN", previous}},
                      {"BHN"});
}
inline auto ntm_location_backward_args(const at::Tensor& grad, const at::Tensor& content, const at::Tensor& gates,
                                       const at::Tensor& shifts, const at::Tensor& sharpness, const at::Tensor& previous) {
  return MemoryOpCall("ntm_location_backward",
                      {{"grad", "BHN", grad},
                       {"content", "BHN", content},
                       {"gates", "BH", gates},
                       {"shifts", "BHS", shifts},
                       {"sharpness", "BH", sharpness},
                       {"previous", "BHN", previous}},
                      {"BHN", "BH", "BHS", "BH", "BHN"});
}

inline auto memory_write_args(const at::Tensor& memory, const at::Tensor& write_weights, const at::Tensor& erase,
                              const at::Tensor& add) {
  return MemoryOpCall(
      "memory_write",
      {{"memory", "BNW", memory}, {"write_weights", "BVN", write_weights}, {"erase", "BVW", erase}, {"add", "BVW", add}},
      {"BNW"});
}
inline auto memory_write_backward_args(const at::Tensor& grad, const at::Tensor& memory, const at::Tensor& write_weights,
                                       const at::Tensor& erase, const at::Tensor& add) {
  return MemoryOpCall("memory_write_backward",
                      {{"grad", "BNW", grad},
                       {"memory", "BNW", memory},
                       {"write_weights", "BVN", write_weights},
                       {"erase", "BVW", erase},
                       {"add", "BVW", add}},
                      {"BNW", "BVN", "BVW", "BVW"});
}

inline auto memory_read_args(const at::Tensor& memory, const at::Tensor& read_weights) {
  return MemoryOpCall("memory_read", {{"memory", "BNW", memory}, {"read_weights", "BRN", read_weights}}, {"BRW"});
}
inline auto memory_read_backward_args(const at::Tensor& grad, const at::Tensor& memory, const at::Tensor& read_weights) {
  return MemoryOpCall("memory_read_backward",
                      {{"grad", "BRW", grad}, {"memory", "BNW", memory}, {"read_weights", "BRN", read_weights}},
                      {"BNW", "BRN"});
}

}  // namespace routing_ext
