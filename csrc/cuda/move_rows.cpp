#include "move_rows.cuh"

#include <torch/library.h>

#include "../common/cuda_glue.h"
#include "../common/dispatch_args.h"

namespace routing_ext::cuda {
namespace {

MoveRows kernel_args(const MoveRowsArgs& args) {
  return {args.source.const_data_ptr(),
          args.order.const_data_ptr<int64_t>(),
          args.target.mutable_data_ptr(),
          args.n,
          args.num_rows,
          args.row_bytes};
}

at::Tensor gather_rows_cuda(const at::Tensor& x, const at::Tensor& order) {
  const LaunchScope scope(x);
  const MoveRowsArgs args = gather_rows_args(x, order);
  check_launch("gather_rows", launch_gather_rows(kernel_args(args), scope.stream()));
  return args.result;
}

at::Tensor scatter_rows_cuda(const at::Tensor& y, const at::Tensor& order, int64_t num_rows) {
  const LaunchScope scope(y);
  const MoveRowsArgs args = scatter_rows_args(y, order, num_rows);
  check_launch("scatter_rows", launch_scatter_rows(kernel_args(args), scope.stream()));
  return args.result;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, ROUTING_EXT_DISPATCH_KEY, m) {
  m.impl("gather_rows", gather_rows_cuda);
  m.impl("scatter_rows", scatter_rows_cuda);
}

}  // namespace routing_ext::cuda
