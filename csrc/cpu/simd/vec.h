// Vectors of the width of the instruction set that this file is compiled for (GCC and clang vector extensions).
//
// Everything under simd/ is compiled several times and linked into one library, so nothing here may leave a weak symbol: a
// linker that kept the AVX-512 copy of a shared inline function would break older machines. Hence no standard C++ library, and
// an anonymous namespace around all.
#pragma once
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../kernel_tables.h"

#if defined(__AVX512F__)
#define ROUTING_EXT_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define ROUTING_EXT_VECTOR_BYTES 32
#else
#define ROUTING_EXT_VECTOR_BYTES 16
#endif
#define UNROLL _Pragma("GCC unroll 16")

namespace routing_ext::cpu {
namespace {

// C: float or double, what is computed in.
template <class C>
inline constexpr int kLanes = ROUTING_EXT_VECTOR_BYTES / sizeof(C);

template <class C, int lanes = kLanes<C>>
struct VecOf {
  typedef C type __attribute__((vector_size(lanes * sizeof(C)), may_alias));
  // For memory of any alignment.
  typedef C unaligned __attribute__((vector_size(lanes * sizeof(C)), aligned(alignof(C)), may_alias));
};
template <class C>
using Vec = typename VecOf<C>::type;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class C>
inline Vec<C> broadcast(C x) {
  return Vec<C>{} + x;
}

// ---- loads and stores that convert between a storage type and the type computed in -----------------------------------------

using Vec16 = VecOf<uint16_t, kLanes<float>>::type;
using Vec16Unaligned = VecOf<uint16_t, kLanes<float>>::unaligned;
using Vec32 = VecOf<uint32_t, kLanes<float>>::type;

template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

inline Vec32 bits_of(Vec<float> x) { return reinterpret_cast<Vec32>(x); }
inline Vec<float> float_of(Vec32 x) { return reinterpret_cast<Vec<float>>(x); }
inline Vec32 choose(Vec32 condition, Vec32 yes, Vec32 no) { return (condition & yes) | (~condition & no); }

// IEEE half to float: shift the exponent into place and rescale, which also normalises subnormal halves.
inline Vec<float> widen(Vec16 half, float16) {
  const Vec32 h = __builtin_convertvector(half, Vec32);
  const Vec32 magnitude = (h & 0x7fff) << 13, sign = (h & 0x8000) << 16;
  const Vec<float> rescaled = float_of(magnitude) * 0x1p112f;
  const Vec32 special = reinterpret_cast<Vec32>(magnitude >= (Vec32{} + (0x7c00u << 13)));  // infinity, NaN
  return float_of(choose(special, magnitude | 0x7f800000, bits_of(rescaled)) | sign);
}
inline Vec<float> widen(Vec16 x, bfloat16) { return float_of(__builtin_convertvector(x, Vec32) << 16); }

// Both round to nearest even.
inline Vec16 narrow(Vec<float> value, float16) {
  const Vec32 bits = bits_of(value), sign = bits & 0x80000000, magnitude = bits ^ sign;
  const Vec32 nan = reinterpret_cast<Vec32>(magnitude > (Vec32{} + 0x7f800000u));
  const Vec32 overflow = reinterpret_cast<Vec32>(magnitude >= (Vec32{} + 0x47800000u));  // 65536 and more
  const Vec32 subnormal = reinterpret_cast<Vec32>(magnitude < (Vec32{} + 0x38800000u));  // below 2^-14
  // Adding 0.5 aligns the ten bits of a subnormal half with the end of the float's mantissa, and rounds.
  const Vec32 tiny = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  const Vec32 normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const Vec32 large = choose(nan, Vec32{} + 0x7e00u, Vec32{} + 0x7c00u);
  return __builtin_convertvector(choose(overflow, large, choose(subnormal, tiny, normal)) | sign >> 16, Vec16);
}
inline Vec16 narrow(Vec<float> value, bfloat16) {
  const Vec32 bits = bits_of(value);
  const Vec32 nan = reinterpret_cast<Vec32>((bits & 0x7fffffff) > (Vec32{} + 0x7f800000u));
  return __builtin_convertvector(choose(nan, Vec32{} + 0x7fc0u, (bits + 0x7fff + (bits >> 16 & 1)) >> 16), Vec16);
}

inline Vec<float> load(const float* p) { return *reinterpret_cast<const VecOf<float>::unaligned*>(p); }
inline Vec<double> load(const double* p) { return *reinterpret_cast<const VecOf<double>::unaligned*>(p); }
template <class S>
inline Vec<float> load(const S* p) {
  return widen(*reinterpret_cast<const Vec16Unaligned*>(p), S{});
}
inline void store(float* p, Vec<float> v) { *reinterpret_cast<VecOf<float>::unaligned*>(p) = v; }
inline void store(double* p, Vec<double> v) { *reinterpret_cast<VecOf<double>::unaligned*>(p) = v; }
template <class S>
inline void store(S* p, Vec<float> v) {
  *reinterpret_cast<Vec16Unaligned*>(p) = narrow(v, S{});
}

// The first `count` lanes; the others are zero.
template <class S>
inline Vec<typename Compute<S>::type> load_partial(const S* p, int64_t count) {
  constexpr int most = kLanes<typename Compute<S>::type>;
  S lanes[most] = {};
  for (int64_t i = 0; i < count && i < most; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class S>
inline void store_partial(S* p, Vec<typename Compute<S>::type> v, int64_t count) {
  constexpr int most = kLanes<typename Compute<S>::type>;
  S lanes[most];
  store(lanes, v);
  for (int64_t i = 0; i < count && i < most; ++i) p[i] = lanes[i];
}
#if defined(__AVX512F__)
inline uint32_t first_lanes(int64_t count) { return count < 32 ? (1u << count) - 1 : ~0u; }
inline Vec<float> load_partial(const float* p, int64_t count) {
  return reinterpret_cast<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(first_lanes(count)), p));
}
inline Vec<double> load_partial(const double* p, int64_t count) {
  return reinterpret_cast<Vec<double>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(count)), p));
}
inline void store_partial(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first_lanes(count)), reinterpret_cast<__m512>(v));
}
inline void store_partial(double* p, Vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(count)), reinterpret_cast<__m512d>(v));
}
#endif

// ---- across lanes ----------------------------------------------------------------------------------------------------------

template <int... i>
struct Indices {};
template <int n, int... i>
struct MakeIndices : MakeIndices<n - 1, n - 1, i...> {};
template <int... i>
struct MakeIndices<0, i...> {
  using type = Indices<i...>;
};

// The integer of the width of C.
template <class C>
struct IntegerOf {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <class C>
using Integer = typename IntegerOf<C>::type;

// {a0, b0, a1, b1, ...} of the lower (upper = 0) or the upper half of a and b.
template <class C, int upper, int... i>
inline Vec<C> interleave(Vec<C> a, Vec<C> b, Indices<i...>) {
  constexpr int lanes = kLanes<C>;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (upper * lanes / 2 + i / 2 + i % 2 * lanes)...);
#else
  return __builtin_shuffle(a, b, typename VecOf<Integer<C>, lanes>::type{(upper * lanes / 2 + i / 2 + i % 2 * lanes)...});
#endif
}

// {a0 + a1, a2 + a3, ..., b0 + b1, ...}.
template <class C, int... i>
inline Vec<C> add_neighbours(Vec<C> a, Vec<C> b, Indices<i...>) {
  constexpr int lanes = kLanes<C>;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (2 * i)...) + __builtin_shufflevector(a, b, (2 * i + 1)...);
#else
  using Mask = typename VecOf<Integer<C>, lanes>::type;
  return __builtin_shuffle(a, b, Mask{(2 * i)...}) + __builtin_shuffle(a, b, Mask{(2 * i + 1)...});
#endif
}

// Lane i of the result is the sum of all lanes of v[i]; count is a power of two, at most the number of lanes.
template <class C, int count>
inline Vec<C> sum_each(Vec<C> (&v)[count]) {
  constexpr int lanes = kLanes<C>;
  static_assert(count <= lanes && (count & (count - 1)) == 0);
  using All = typename MakeIndices<lanes>::type;
  int left = count;
  UNROLL for (int width = lanes; width > 1; width /= 2) {
    const int next = left > 1 ? left / 2 : 1;
    UNROLL for (int i = 0; i < next; ++i) v[i] =
        add_neighbours<C>(v[left > 1 ? 2 * i : i], v[left > 1 ? 2 * i + 1 : i], All{});
    left = next;
  }
  return v[0];
}

// The square block rows[i][j] becomes rows[j][i]: log2(lanes) perfect shuffles.
template <class C>
inline void transpose(Vec<C> (&rows)[kLanes<C>]) {
  constexpr int lanes = kLanes<C>;
  using All = typename MakeIndices<lanes>::type;
  UNROLL for (int stage = 1; stage < lanes; stage *= 2) {
    Vec<C> next[lanes];
    UNROLL for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave<C, 0>(rows[i], rows[i + lanes / 2], All{});
      next[2 * i + 1] = interleave<C, 1>(rows[i], rows[i + lanes / 2], All{});
    }
    UNROLL for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

}  // namespace
}  // namespace routing_ext::cpu
