// Argument checks whose messages name the operator, the argument, what was expected and what came.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace routing_ext {

// `op` is a string literal in all of these.
#define CHECK_ARG(op, argument, condition, ...) TORCH_CHECK(condition, op, ": ", argument, " ", __VA_ARGS__)
#define CHECK_DIM(op, t, n) CHECK_ARG(op, #t, (t).dim() == (n), "must have ", n, " dimension(s), got ", (t).sizes())
#define CHECK_DTYPE(op, t, dtype) \
  CHECK_ARG(op, #t, (t).scalar_type() == (dtype), "must have dtype ", dtype, ", got ", (t).scalar_type())
#define CHECK_SAME_DEVICE(op, t, other) \
  CHECK_ARG(op, #t, (t).device() == (other).device(), "must be on ", (other).device(), ", got ", (t).device())

// An index tensor: one-dimensional int64 on the device of `like`.
#define CHECK_INDEX(op, t, like)    \
  do {                              \
    CHECK_DIM(op, t, 1);            \
    CHECK_DTYPE(op, t, at::kLong);  \
    CHECK_SAME_DEVICE(op, t, like); \
  } while (0)

inline bool is_supported_float(at::ScalarType t) {
  return t == at::kFloat || t == at::kDouble || t == at::kBFloat16 || t == at::kHalf;
}
#define CHECK_FLOAT(op, t)                                                \
  CHECK_ARG(op, #t, ::routing_ext::is_supported_float((t).scalar_type()), \
            "must be float32, float64, bfloat16 or float16, got ", (t).scalar_type())

}  // namespace routing_ext
