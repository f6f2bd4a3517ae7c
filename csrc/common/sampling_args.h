// The arguments of sample_categorical and sample_by_inversion, checked. Shared by the CPU and the CUDA glue.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>

#include "checks.h"

namespace routing_ext {

// The samples that decide and their rows of probabilities, and the actions to be filled in. Contiguous. That the indices are
// in range, only the CPU can tell.
struct SamplesArgs {
  at::Tensor probs, row_of, order;  // [n,K], [B] or undefined, [count] or undefined
  at::Tensor actions;               // [B], 0 where no decision is made
  int64_t count, batch, selections;

  SamplesArgs(const char* op, const at::Tensor& probs_, const std::optional<at::Tensor>& row_of_,
              const std::optional<at::Tensor>& order_, int64_t count_, int64_t batch_)
      : count(count_), batch(batch_) {
    CHECK_ARG(op, "probs", probs_.dim() == 2, "must have 2 dimensions, got ", probs_.sizes());
    CHECK_ARG(op, "probs", probs_.scalar_type() == at::kFloat || probs_.scalar_type() == at::kDouble,
              "must be float32 or float64, got ", probs_.scalar_type());
    probs = probs_.contiguous();
    selections = probs.size(1);
    CHECK_ARG(op, "probs", selections > 0, "must have at least one action, got ", probs.sizes());
    CHECK_ARG(op, "order", order_.has_value() || count == batch, "must be given where not all of ", batch,
              " samples decide, got none for ", count);
    order = indices(op, "order", order_, count);
    row_of = indices(op, "row_of", row_of_, batch);
    CHECK_ARG(op, "row_of", row_of.defined() || probs.size(0) >= batch,
              "must be given where probs has not one row for each of ", batch, " samples, got none for ", probs.sizes());
    const at::TensorOptions options = probs.options().dtype(at::kLong);
    actions = count == batch ? at::empty({batch}, options) : at::zeros({batch}, options);
  }

  const int64_t* order_data() const { return order.defined() ? order.const_data_ptr<int64_t>() : nullptr; }
  const int64_t* row_of_data() const { return row_of.defined() ? row_of.const_data_ptr<int64_t>() : nullptr; }

 private:
  at::Tensor indices(const char* op, const char* argument, const std::optional<at::Tensor>& t, int64_t least) const {
    if (!t.has_value()) return {};
    CHECK_INDEX(op, *t, probs);
    CHECK_ARG(op, argument, t->size(0) >= least, "must have at least ", least, " elements, got ", t->size(0));
    return t->contiguous();
  }
};

// How many samples decide, of the numbers of each agent.
inline int64_t num_deciding(const char* op, at::IntArrayRef sizes, bool has_order, int64_t batch) {
  int64_t count = 0;
  for (const int64_t size : sizes) count += size;
  CHECK_ARG(op, "sizes", has_order || count == batch, "must add up to the batch of ", batch, ", got ", sizes);
  return count;
}

}  // namespace routing_ext
