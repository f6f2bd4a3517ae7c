#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "../common/dispatch_args.h"
#include "pool.h"

namespace routing_ext::cpu {
namespace {

constexpr int64_t kBytesPerTask = 64 << 10;  // less is not worth another thread

// memcpy that takes null pointers for empty rows.
void copy_row(char* target, const char* source, int64_t bytes) {
  if (bytes > 0) std::memcpy(target, source, bytes);
}

int64_t rows_per_task(const MoveRowsArgs& args) {
  return std::max<int64_t>(1, kBytesPerTask / std::max<int64_t>(args.row_bytes, 1));
}

int64_t checked_row(const char* op, const MoveRowsArgs& args, const int64_t* order, int64_t i) {
  const int64_t row = order[i];
  CHECK_ARG(op, "order", row >= 0 && row < args.num_rows, "must be in [0, ", args.num_rows, "), got ", row, " at ", i);
  return row;
}

at::Tensor gather_rows_cpu(const at::Tensor& x, const at::Tensor& order) {
  const MoveRowsArgs args = gather_rows_args(x, order, pooled_empty);
  const int64_t* const rows = args.order.const_data_ptr<int64_t>();
  const char* const source = static_cast<const char*>(args.source.const_data_ptr());
  char* const target = static_cast<char*>(args.target.mutable_data_ptr());
  at::parallel_for(0, args.n, rows_per_task(args), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = checked_row("gather_rows", args, rows, i);
      copy_row(target + i * args.row_bytes, source + row * args.row_bytes, args.row_bytes);
    }
  });
  return args.result;
}

at::Tensor scatter_rows_cpu(const at::Tensor& y, const at::Tensor& order, int64_t num_rows) {
  constexpr const char* kOp = "scatter_rows";
  const MoveRowsArgs args = scatter_rows_args(y, order, num_rows, pooled_empty);
  const int64_t* const rows = args.order.const_data_ptr<int64_t>();
  const char* const source = static_cast<const char*>(args.source.const_data_ptr());
  char* const target = static_cast<char*>(args.target.mutable_data_ptr());
  std::vector<int64_t> source_of(num_rows, -1);  // by row of the target, so that each is written once, zeros included
  for (int64_t i = 0; i < args.n; ++i) {
    int64_t& s = source_of[checked_row(kOp, args, rows, i)];
    CHECK_ARG(kOp, "order", s < 0, "must not repeat an index, got ", rows[i], " at ", s, " and at ", i);
    s = i;
  }
  at::parallel_for(0, num_rows, rows_per_task(args), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      char* const out = target + r * args.row_bytes;
      if (source_of[r] < 0) {
        std::fill_n(out, args.row_bytes, 0);
      } else {
        copy_row(out, source + source_of[r] * args.row_bytes, args.row_bytes);
      }
    }
  });
  return args.result;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("gather_rows", gather_rows_cpu);
  m.impl("scatter_rows", scatter_rows_cpu);
}

}  // namespace routing_ext::cpu
