// The arguments of single steps of a memory network on a tape [times,B,row], checked. Shared by the CPU and the CUDA glue.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "checks.h"
#include "memory_options_args.h"

namespace routing_ext {

// The sizes of a network, as the caller tells them.
struct MemoryStepSizes {
  bool dnc;
  int64_t input, hidden, output, locations, word, writes, reads, shifts;  // I, H, O, N, W, V, R, S
  MemoryOptions options;
  static constexpr bool deaf = false;  // the controller of single steps hears what was read

  MemoryStepSizes(const char* op, std::string_view model, at::ArrayRef<double> options_, at::IntArrayRef sizes)
      : dnc(model == "dnc") {
    CHECK_ARG(op, "model", dnc || model == "ntm", "must be dnc or ntm, got ", model);
    CHECK_ARG(op, "sizes", sizes.size() == 8, "must have 8 numbers, got ", sizes);
    input = sizes[0], hidden = sizes[1], output = sizes[2];
    locations = sizes[3], word = sizes[4], writes = sizes[5], reads = sizes[6], shifts = sizes[7];
    options = memory_options(op, options_);
  }
};

inline void check_rows(const char* op, const char* argument, const at::Tensor& t, at::IntArrayRef expected) {
  CHECK_ARG(op, argument, t.sizes() == expected && t.is_contiguous(), "must be contiguous of shape ", expected, ", got ",
            t.sizes());
}
// x [B,I] of the step that is written to a tape.
inline void check_inputs(const char* op, const at::Tensor& x, const at::Tensor& tape, int64_t input) {
  check_rows(op, "x", x, {tape.size(1), input});
  CHECK_DTYPE(op, x, tape.scalar_type());
}
// Of a step from one time to another, whose inputs are kept in inputs [T,B,I].
inline void check_times(const char* op, int64_t from, int64_t to, const at::Tensor& tape, const at::Tensor& inputs,
                        int64_t input) {
  CHECK_DIM(op, inputs, 3);
  check_rows(op, "inputs", inputs, {inputs.size(0), tape.size(1), input});
  CHECK_DTYPE(op, inputs, tape.scalar_type());
  CHECK_ARG(op, "to", std::min(from, to) >= 0 && std::max(from, to) < tape.size(0) && to <= inputs.size(0),
            "must be on the tape, got ", from, " and ", to);
}
inline void check_step(const char* op, int64_t step, int64_t steps) {
  CHECK_ARG(op, "step", step >= 0 && step < steps, "must be on the tape, got ", step);
}
// size: of the outputs of a sample.
inline void check_grad_y(const char* op, const std::optional<at::Tensor>& grad_y, const at::Tensor& tape, int64_t size) {
  if (!grad_y || !grad_y->defined()) return;
  const int64_t count = tape.size(1) * size;
  CHECK_ARG(op, "grad_y", grad_y->numel() == count, "must have ", count, " elements, got ", grad_y->numel());
  CHECK_ARG(op, "grad_y", grad_y->scalar_type() == tape.scalar_type(), "must have dtype ", tape.scalar_type(), ", got ",
            grad_y->scalar_type());
}
// count: elements of the links of all samples.
inline void check_link(const char* op, const char* argument, const std::optional<at::Tensor>& link, int64_t count) {
  CHECK_ARG(op, argument, !link || (link->numel() == count && link->is_contiguous()), "must be contiguous with ", count,
            " elements, got ", link->sizes());
}

}  // namespace routing_ext
