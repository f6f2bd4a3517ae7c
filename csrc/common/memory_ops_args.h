// The arguments of the operators that memory networks are made of, checked. Shared by the CPU and the CUDA glue.
//
// A shape is written in letters: B samples, N locations of W elements, H heads of any kind, V write heads, R read heads, S
// shifts, I elements of an interface vector; L, the locations of a link that is not there: 0. n is N, but in rows that the
// kernels may want longer.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"

namespace routing_ext {

struct Argument {
  const char* name;
  const char* shape;
};

// What each letter stands for: as much as the first argument that has it says.
class Dimensions {
 public:
  int64_t operator[](char letter) const { return known(letter) ? at(letter) : 0; }
  bool known(char letter) const { return at(letter) >= 0; }
  void learn(char letter, int64_t size) { sizes_[index(letter)] = size; }

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
      text += known(*letters) ? std::to_string(at(*letters)) : std::string(1, upper(*letters));
    }
    return text + "]";
  }

 private:
  static char upper(char letter) { return letter == 'n' ? 'N' : letter; }
  static size_t index(char letter) { return upper(letter) - 'A'; }
  int64_t at(char letter) const { return sizes_[index(letter)]; }
  std::array<int64_t, 26> sizes_ = unknown();
  static std::array<int64_t, 26> unknown() {
    std::array<int64_t, 26> sizes;
    sizes.fill(-1);
    return sizes;
  }
};

inline at::Tensor or_undefined(const std::optional<at::Tensor>& t) { return t.value_or(at::Tensor()); }

struct MemoryOpArgs {
  const char* op;
  std::vector<Argument> arguments;
  Dimensions sizes;
  std::vector<at::Tensor> tensors;  // contiguous; undefined where an optional one was not given
  at::TensorOptions options;

  at::ScalarType dtype() const { return c10::typeMetaToScalarType(options.dtype()); }

  MemoryOpArgs(const char* op_, std::initializer_list<Argument> arguments_, std::initializer_list<at::Tensor> given)
      : op(op_), arguments(arguments_) {
    const at::Tensor* like = nullptr;
    const char* like_name = nullptr;
    for (const at::Tensor& t : given) {
      const auto& [name, shape] = arguments[tensors.size()];
      tensors.push_back(t.defined() ? t.contiguous() : t);
      if (!t.defined()) continue;
      if (like == nullptr) {
        CHECK_ARG(op, name, t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble,
                  "must be float32 or float64, got ", t.scalar_type());
        like = &t, like_name = name;
      }
      CHECK_ARG(op, name, matches(t, shape), "must have shape ", sizes.text(shape), ", got ", t.sizes());
      for (int64_t d = 0; d < t.dim(); ++d) {
        CHECK_ARG(op, name, shape[d] == 'B' || shape[d] == 'L' || t.size(d) > 0,
                  "must have at least 1 of each but samples, got ", t.sizes());
      }
      CHECK_ARG(op, name, t.scalar_type() == like->scalar_type(), "must have the dtype of ", like_name, ", ",
                like->scalar_type(), ", got ", t.scalar_type());
      CHECK_ARG(op, name, t.device() == like->device(), "must be on ", like->device(), ", got ", t.device());
    }
    options = like->options();
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

}  // namespace routing_ext
