// Checks what the emulation offers to correct kernels, and the limits that it enforces. For g++ only.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <utility>
#include <vector>

#include "launch.cuh"
#include "shared_arena.cuh"

namespace cg = cooperative_groups;
using routing_ext::cuda::launch;
using routing_ext::cuda::SharedArena;

#define REQUIRE(x)                                        \
  do {                                                    \
    if (!(x)) {                                           \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #x); \
      std::exit(1);                                       \
    }                                                     \
  } while (0)

namespace {

// ---- warp operations
// ----------------------------------------------------------------------------------------------------------

struct WarpResults {
  int up, up_narrow, down, exclusive_or, broadcast, narrow, any, all, half;
  unsigned ballot, match, match_float;
  double wide;
};

__global__ void warp_kernel(WarpResults* out) {
  const int t = threadIdx.x;
  WarpResults r{};
  r.up = __shfl_up_sync(~0u, t, 1), r.up_narrow = __shfl_up_sync(~0u, t, 3, 8), r.down = __shfl_down_sync(~0u, t, 2);
  r.exclusive_or = __shfl_xor_sync(~0u, t, 5), r.broadcast = __shfl_sync(~0u, t, 7), r.narrow = __shfl_sync(~0u, t, 3, 8);
  r.ballot = __ballot_sync(~0u, t % 3 == 0), r.any = __any_sync(~0u, t == 9), r.all = __all_sync(~0u, t < 31);
  r.match = __match_any_sync(~0u, t % 4), r.match_float = __match_any_sync(~0u, t < 10 ? -1.5f : 2.f);
  r.wide = __shfl_sync(~0u, t / 3., 8);
  if (t < 16) {
    r.half = __shfl_xor_sync(0x0000ffffu, t, 1);
  } else {
    r.half = -__shfl_xor_sync(0xffff0000u, t, 2);
  }
  __syncwarp();
  out[t] = r;
}

void check_warp_operations() {
  WarpResults out[32];
  REQUIRE(launch(warp_kernel, 1, 32, 0, nullptr, out) == cudaSuccess);
  for (int t = 0; t < 32; ++t) {
    const WarpResults& r = out[t];
    REQUIRE(r.up == (t > 0 ? t - 1 : 0) && r.up_narrow == (t % 8 >= 3 ? t - 3 : t) && r.down == (t < 30 ? t + 2 : t));
    REQUIRE(r.exclusive_or == (t ^ 5) && r.broadcast == 7 && r.narrow == t / 8 * 8 + 3);
    REQUIRE(r.ballot == 0x49249249u && r.any == 1 && r.all == 0 && r.half == (t < 16 ? t ^ 1 : -(t ^ 2)));
    REQUIRE(r.match == 0x11111111u << t % 4 && r.match_float == (t < 10 ? 0x3ffu : ~0x3ffu) && r.wide == 8 / 3.);
  }
  REQUIRE(__popc(0xf0f0u) == 8 && __clz(1) == 31 && __ffs(8) == 4 && __ffs(0) == 0);
}

// ---- blocks, clusters, grids
// --------------------------------------------------------------------------------------------------

__global__ void reverse_kernel(int* x) {
  SharedArena arena;
  arena.take<char>(3);
  int* const tile = arena.take<int>(blockDim.x);
  int* const own = x + blockIdx.x * blockDim.x;
  tile[threadIdx.x] = own[threadIdx.x];
  __syncthreads();
  own[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_static_kernel(int* x) {
  __shared__ int tile[256];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[255 - threadIdx.x];
}

struct Totals {
  int threads = 0, largest = -1;
  uint3 last{};
};
__global__ void count_kernel(Totals* totals) {
  atomicAdd(&totals->threads, 1);
  atomicMax(&totals->largest, static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x));
  if (blockIdx.x == 2 && blockIdx.y == 1 && threadIdx.y == 1 && threadIdx.x == 4)
    totals->last = {gridDim.y, blockDim.x, blockDim.y};
}

// x[b] = sum over the blocks of a cluster of (rank + 1).
__global__ void cluster_kernel(int* x) {
  SharedArena arena;
  int* const value = arena.take<int>(1);
  const auto cluster = cg::this_cluster();
  if (threadIdx.x == 0) *value = cluster.block_rank() + 1;
  cluster.sync();
  int sum = 0;
  for (unsigned k = 0; k < cluster.num_blocks(); ++k) sum += *cluster.map_shared_rank(value, k);
  if (threadIdx.x == 0) x[blockIdx.x] = sum;
  cluster.sync();
}

__global__ void grid_kernel(int* part, int* total) {
  part[blockIdx.x] = blockIdx.x + 1;
  cg::this_grid().sync();
  int sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += part[b];
  total[blockIdx.x] = sum;
}

template <class... P>
cudaError_t launch_with(cudaLaunchAttribute attribute, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, P... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared;
  config.attrs = &attribute, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}
cudaLaunchAttribute cooperative() { return {cudaLaunchAttributeCooperative, {1, {}}}; }
cudaLaunchAttribute cluster_of(unsigned x) { return {cudaLaunchAttributeClusterDimension, {0, dim3(x)}}; }

void check_blocks() {
  std::vector<int> x(512);
  for (int i = 0; i < 512; ++i) x[i] = i;
  SharedArena size;
  size.reserve<char>(3), size.reserve<int>(256);
  REQUIRE(size.bytes() == 16 + 1024);
  REQUIRE(launch(reverse_kernel, 2, 256, size.bytes(), nullptr, x.data()) == cudaSuccess);
  REQUIRE(x[0] == 255 && x[256] == 511 && x[511] == 256);
  REQUIRE(launch(reverse_static_kernel, 1, 256, 0, nullptr, x.data()) == cudaSuccess && x[0] == 0 && x[255] == 255);

  Totals totals;
  REQUIRE(launch(count_kernel, dim3(3, 2), dim3(35, 2), 0, nullptr, &totals) == cudaSuccess);
  REQUIRE(totals.threads == 420 && totals.largest == 69 && totals.last.x == 2 && totals.last.y == 35 && totals.last.z == 2);

  int part[8], total[8];
  REQUIRE(launch_with(cooperative(), grid_kernel, 5, 64, 0, part, total) == cudaSuccess && total[0] == 15 && total[4] == 15);
  REQUIRE(launch_with(cluster_of(4), cluster_kernel, 8, 40, 16, total) == cudaSuccess && total[0] == 10 && total[7] == 10);
}

// ---- limits of the hardware
// ---------------------------------------------------------------------------------------------------

__global__ void nothing_kernel() {}
struct Large {
  char bytes[32000];
};
__global__ void large_argument_kernel(const Large __grid_constant__ large, char* out) {
  if (threadIdx.x == 0) *out = large.bytes[31999];
}

cudaError_t launch_nothing(dim3 grid, dim3 block, size_t shared = 0) {
  return launch(nothing_kernel, grid, block, shared, nullptr);
}

void check_limits() {
  REQUIRE(launch_nothing(1, dim3(16, 1, 64)) == cudaSuccess && launch_nothing(dim3(1, 65535), 1) == cudaSuccess);
  for (const dim3 grid : {dim3(0), dim3(1, 65536), dim3(1, 1, 65536), dim3(1u << 31)}) {
    REQUIRE(launch_nothing(grid, 32) == cudaErrorInvalidConfiguration);
  }
  for (const dim3 block : {dim3(0), dim3(1025), dim3(32, 33), dim3(1, 1, 65)}) {
    REQUIRE(launch_nothing(1, block) == cudaErrorInvalidConfiguration);
  }
  REQUIRE(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess);

  cudaLaunchConfig_t config{};
  config.dynamicSmemBytes = (48 << 10) + 1;
  REQUIRE(cudaLaunchKernelEx(&config, nothing_kernel) == cudaErrorInvalidValue);
  REQUIRE(launch_nothing(1, 1, 227 << 10) == cudaSuccess);  // launch() asks for it
  REQUIRE(launch_nothing(1, 1, (227 << 10) + 1) == cudaErrorInvalidValue);

  int total[32];
  REQUIRE(launch_with(cluster_of(4), cluster_kernel, 6, 32, 16, total) == cudaErrorInvalidConfiguration);
  REQUIRE(launch_with(cluster_of(16), cluster_kernel, 16, 32, 16, total) == cudaErrorInvalidClusterSize);
  REQUIRE(cudaFuncSetAttribute(cluster_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess);
  REQUIRE(launch_with(cluster_of(16), cluster_kernel, 16, 32, 16, total) == cudaSuccess && total[0] == 136);

  static_assert(cuda_emu::argument_bytes<char, double, int>() == 20);
  Large large{};
  large.bytes[31999] = 7;
  char out = 0;
  REQUIRE(launch(large_argument_kernel, 1, 1024, 0, nullptr, large, &out) == cudaSuccess && out == 7);
}

// ---- 16-bit floats
// ------------------------------------------------------------------------------------------------------------

// Rounding is monotonic, so it is right everywhere if it is right at both neighbours, at the tie between them, and next to the
// tie.
template <class T, class ToFloat, class FromFloat>
void check_rounding(unsigned infinity, ToFloat to_float, FromFloat from_float) {
  for (unsigned bits = 0; bits < infinity; ++bits) {
    const auto value_of = [&](unsigned b) { return double{to_float(T{static_cast<uint16_t>(b)})}; };
    // Beyond the largest finite number, as if the next were one.
    const double lower = value_of(bits), upper = bits + 1 < infinity ? value_of(bits + 1) : 2 * lower - value_of(bits - 1);
    const float tie = static_cast<float>((lower + upper) / 2);
    const unsigned even = bits % 2 == 0 ? bits : bits + 1;
    const std::pair<float, unsigned> cases[] = {{static_cast<float>(lower), bits},
                                                {std::nextafter(tie, 0.f), bits},
                                                {tie, even},
                                                {std::nextafter(tie, std::numeric_limits<float>::infinity()), bits + 1}};
    for (const auto& [value, want] : cases) {
      REQUIRE(from_float(value).bits == want && from_float(-value).bits == (want | 0x8000));
    }
  }
  const float huge = std::numeric_limits<float>::infinity();
  REQUIRE(from_float(huge).bits == infinity && to_float(T{static_cast<uint16_t>(infinity | 0x8000)}) == -huge);
  REQUIRE(std::isnan(to_float(from_float(NAN))) && std::isnan(to_float(T{static_cast<uint16_t>(infinity + 1)})));
}

void check_small_floats() {
  check_rounding<__half>(0x7C00, __half2float, __float2half);
  check_rounding<__nv_bfloat16>(0x7F80, __bfloat162float, __float2bfloat16);
  REQUIRE(__half2float({0x3C00}) == 1.f && __half2float({0x0001}) == 0x1p-24f && __half2float({0x7BFF}) == 65504.f);
  REQUIRE(__bfloat162float({0x3F80}) == 1.f && __bfloat162float({0xC040}) == -3.f);
}

// ---- tile products
// ------------------------------------------------------------------------------------------------------------

namespace wmma = nvcuda::wmma;

// c [16,16] = sum over k of a(i, k) b(k, j), both with the depth as the slower index, stride 24.
template <class T, class Fragment, int kDepth>
__global__ void product_kernel(const T* a, const T* b, float* c) {
  wmma::fragment<wmma::matrix_a, 16, 16, kDepth, Fragment, wmma::col_major> rows;
  wmma::fragment<wmma::matrix_b, 16, 16, kDepth, Fragment, wmma::row_major> cols;
  wmma::fragment<wmma::accumulator, 16, 16, kDepth, float> sum;
  wmma::load_matrix_sync(rows, a, 24);
  wmma::load_matrix_sync(cols, b, 24);
  wmma::fill_fragment(sum, 1.0f);
  wmma::mma_sync(sum, rows, cols, sum);
  wmma::store_matrix_sync(c, sum, 16, wmma::mem_row_major);
}

template <class T, class Fragment, int kDepth, class ToFloat, class FromFloat>
void check_product(ToFloat to_float, FromFloat from_float) {
  alignas(32) T a[kDepth * 24], b[kDepth * 24];
  alignas(32) float c[256];
  for (int i = 0; i < kDepth * 24; ++i) a[i] = from_float(i % 7 - 3.f), b[i] = from_float(i % 5 - 1.5f);
  REQUIRE(launch(product_kernel<T, Fragment, kDepth>, 1, 32, 0, nullptr, a, b, c) == cudaSuccess);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      float want = 1;
      for (int k = 0; k < kDepth; ++k) want += to_float(a[k * 24 + i]) * to_float(b[k * 24 + j]);
      REQUIRE(c[i * 16 + j] == want);
    }
  }
  REQUIRE(launch(product_kernel<T, Fragment, kDepth>, 1, 32, 0, nullptr, a + 1, b, c) == cudaErrorLaunchFailure);
}

void check_products() {
  const auto same = [](float v) { return v; };
  check_product<__half, __half, 16>(__half2float, __float2half);
  check_product<__nv_bfloat16, __nv_bfloat16, 16>(__bfloat162float, __float2bfloat16);
  check_product<float, wmma::precision::tf32, 8>(same, same);
  REQUIRE(wmma::__float_to_tf32(1.f + 0x1p-11f) == 1.f + 0x1p-10f && wmma::__float_to_tf32(1.f + 0x1p-12f) == 1.f);
  REQUIRE(std::isnan(wmma::__float_to_tf32(NAN)) && wmma::__float_to_tf32(-3.f) == -3.f);
}

}  // namespace

int main() {
  for (const int64_t order : {0, -1, 1, 2, 3}) {
    cuda_emu::order = order;
    check_warp_operations();
    check_blocks();
    check_products();
  }
  check_limits();
  check_small_floats();
  std::puts("passed");
}
