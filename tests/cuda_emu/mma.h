// Stand-in for the part of <mma.h> that the kernels use: tile products of a warp, summed in float.
//
// Each lane holds the whole of an operand, and its share of a result: real fragments are spread over the warp in a way that is
// not specified, so that a kernel may only treat all elements of a fragment alike, as here. A lane that does not take part is
// found, as at any warp operation.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <type_traits>

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

namespace emulated {
template <class T>
using Stored = std::conditional_t<std::is_same_v<T, precision::tf32>, float, T>;
inline float widened(float v) { return v; }
inline float widened(__half v) { return __half2float(v); }
inline float widened(__nv_bfloat16 v) { return __bfloat162float(v); }
constexpr int kLanes = 32;
constexpr uintptr_t kAlignment = 32;  // of what is loaded and stored
constexpr unsigned kMultipleBytes = 16;

template <class T>
void check(const T* p, unsigned stride, cuda_emu::Site at) {
  if (reinterpret_cast<uintptr_t>(p) % kAlignment != 0 || stride * sizeof(T) % kMultipleBytes != 0) {
    cuda_emu::machine.fail("a tile product's matrix is not aligned", at);
  }
}
}  // namespace emulated

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {  // an operand: row by row of [M,K] or [K,N]
  static constexpr bool kIsA = std::is_same_v<Use, matrix_a>;
  static constexpr int kRows = kIsA ? M : K, kCols = kIsA ? K : N, num_elements = kRows * kCols;
  emulated::Stored<T> x[num_elements];
};
template <int M, int N, int K>
struct fragment<accumulator, M, N, K, float, void> {
  static constexpr int num_elements = M * N / emulated::kLanes;
  float x[num_elements];
  // Where element e of the calling lane is.
  static int row(int e) { return (cuda_emu::lane() * num_elements + e) / N; }
  static int col(int e) { return (cuda_emu::lane() * num_elements + e) % N; }
};

template <class Fragment>
void fill_fragment(Fragment& f, float value) {
  for (float& v : f.x) v = value;
}

template <class Use, int M, int N, int K, class T, class Layout>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const emulated::Stored<T>* p, unsigned stride, CUDA_EMU_SITE) {
  emulated::check(p, stride, at);
  __syncwarp(0xffffffffu, at);
  using F = fragment<Use, M, N, K, T, Layout>;
  constexpr bool by_row = std::is_same_v<Layout, row_major>;
  for (int row = 0; row < F::kRows; ++row) {
    for (int col = 0; col < F::kCols; ++col)
      f.x[row * F::kCols + col] = by_row ? p[row * stride + col] : p[col * stride + row];
  }
}

template <int M, int N, int K, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, float>& c,
              CUDA_EMU_SITE) {
  __syncwarp(0xffffffffu, at);
  for (int e = 0; e < d.num_elements; ++e) {
    float sum = c.x[e];
    for (int k = 0; k < K; ++k) {
      sum += emulated::widened(a.x[d.row(e) * K + k]) * emulated::widened(b.x[k * N + d.col(e)]);
    }
    d.x[e] = sum;
  }
}

template <int M, int N, int K>
void store_matrix_sync(float* p, const fragment<accumulator, M, N, K, float>& f, unsigned stride, layout_t layout,
                       CUDA_EMU_SITE) {
  emulated::check(p, stride, at);
  for (int e = 0; e < f.num_elements; ++e) {
    p[layout == mem_row_major ? f.row(e) * stride + f.col(e) : f.col(e) * stride + f.row(e)] = f.x[e];
  }
  __syncwarp(0xffffffffu, at);
}

// Rounds to 10 bits of the fraction, to nearest, ties away from zero.
inline float __float_to_tf32(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if ((bits & 0x7F800000) == 0x7F800000) return v;
  return std::bit_cast<float>((bits + 0x1000) & ~uint32_t{0x1FFF});
}

}  // namespace nvcuda::wmma
