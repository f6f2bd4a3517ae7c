// Elementary functions and reductions of vectors.
#pragma once
#include "../vec.h"

#define ALWAYS_INLINE __attribute__((always_inline))

namespace routing_ext::cpu {
namespace {

template <class C>
using Bits = typename VecOf<Integer<C>, kLanes<C>>::type;

template <class C>
inline Bits<C> bits(Vec<C> x) {
  return reinterpret_cast<Bits<C>>(x);
}
template <class C>
inline Vec<C> from_bits(Bits<C> x) {
  return reinterpret_cast<Vec<C>>(x);
}
template <class C>
inline Vec<C> larger_of(Vec<C> a, Vec<C> b) {
  return a > b ? a : b;
}
template <class C>
inline Vec<C> smaller_of(Vec<C> a, Vec<C> b) {
  return a < b ? a : b;
}
// By the C library, lane by lane.
template <class C, class F>
inline Vec<C> each_lane(Vec<C> x, const F& f) {
  for (int i = 0; i < kLanes<C>; ++i) x[i] = f(x[i]);
  return x;
}
// A NaN stays one: comparisons with it are false.
template <class C>
inline Vec<C> clamped(Vec<C> x, C low, C high) {
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
}

template <class C>
inline Vec<C> square_root(Vec<C> x) {
#if defined(__AVX512F__)  // the forms with a mask: GCC warns of what the plain ones leave undefined
  if constexpr (sizeof(C) == 4) return reinterpret_cast<Vec<C>>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));
  if constexpr (sizeof(C) == 8) return reinterpret_cast<Vec<C>>(_mm512_maskz_sqrt_pd(0xff, reinterpret_cast<__m512d>(x)));
#elif defined(__AVX2__)
  if constexpr (sizeof(C) == 4) return reinterpret_cast<Vec<C>>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
  if constexpr (sizeof(C) == 8) return reinterpret_cast<Vec<C>>(_mm256_sqrt_pd(reinterpret_cast<__m256d>(x)));
#else
  return each_lane<C>(x, [](C lane) -> C {
    if constexpr (sizeof(C) == 4) return __builtin_sqrtf(lane);
    return __builtin_sqrt(lane);
  });
#endif
}

// 2^k p(x - k ln 2), p the Taylor polynomial; a relative error of some 1e-7 and 1e-16. Zero where it would be
// subnormal, never infinite.
template <class C>
inline Vec<C> exponential(Vec<C> x) {
  constexpr bool single = sizeof(C) == 4;
  constexpr C log2_e = C(1.4426950408889634);
  // Adding it rounds to an integer, which then stands in the last bits.
  constexpr C magic = single ? C(12582912) : C(6755399441055744);
  constexpr C ln2_high = single ? C(0.693359375) : C(6.93147180369123816490e-1);
  constexpr C ln2_low = single ? C(-2.12194440e-4) : C(1.90821492927058770002e-10);
  constexpr C low = single ? C(-87.3) : C(-708), high = single ? C(88.3) : C(709);
  const auto vanishes = x < low;
  x = clamped<C>(x, low, high);
  const Vec<C> shifted = x * log2_e + magic;
  const Vec<C> k = shifted - magic;
  const Vec<C> r = x - k * ln2_high - k * ln2_low;
  Vec<C> p;
  if constexpr (single) {
    p = broadcast(C(1. / 5040));
  } else {
    p = broadcast(C(1. / 6227020800));
    constexpr C terms[] = {1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040};
    UNROLL for (const C term : terms) p = p * r + term;
  }
  constexpr C terms[] = {C(1. / 720), C(1. / 120), C(1. / 24), C(1. / 6), C(0.5), C(1), C(1)};
  UNROLL for (const C term : terms) p = p * r + term;
  constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023;
  return vanishes ? Vec<C>{} : p * from_bits<C>((bits<C>(shifted) + bias) << mantissa);
}

template <class C>
inline Vec<C> sigmoid(Vec<C> x) {
  return C(1) / (C(1) + exponential<C>(-x));
}

template <class C>
inline Vec<C> tangent(Vec<C> x) {
  if constexpr (sizeof(C) == 8) {
    return each_lane<C>(x, [](C lane) { return __builtin_tanh(lane); });
  } else {
    const Vec<C> e = exponential<C>(C(-2) * x), square = x * x;
    const Vec<C> far = (C(1) - e) / (C(1) + e);
    // Near zero the difference above cancels.
    const Vec<C> near =
        x + x * square * (C(-1. / 3) + square * (C(2. / 15) + square * (C(-17. / 315) + square * C(62. / 2835))));
    return square < C(0.0625) ? near : far;
  }
}

// Of positive normal numbers.
template <class C>
inline Vec<C> logarithm(Vec<C> x) {
  if constexpr (sizeof(C) == 8) {
    return each_lane<C>(x, [](C lane) { return __builtin_log(lane); });
  } else {
    // x = 2^k m with m in [sqrt(1/2), sqrt(2)); log m by a polynomial (Cephes' minimax coefficients).
    Bits<C> whole = bits<C>(x);
    const Bits<C> k = (whole - 0x3f3504f3) >> 23;
    const Vec<C> f = from_bits<C>(whole - (k << 23)) - C(1), square = f * f;
    const Vec<C> exponent = __builtin_convertvector(k, Vec<C>);
    constexpr C terms[] = {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                           -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
    Vec<C> p = broadcast(C(7.0376836292e-2));
    UNROLL for (const C term : terms) p = p * f + term;
    return f + (p * f * square + exponent * C(-2.12194440e-4) - C(0.5) * square) + exponent * C(0.693359375);
  }
}

inline constexpr double kSoftplusLinear = 20;  // torch's threshold: from here on, softplus(x) = x

template <class C>
inline Vec<C> softplus(Vec<C> x) {
  const Vec<C> z = exponential<C>(x < C(0) ? x : -x);
  Vec<C> log1p;
  if constexpr (sizeof(C) == 8) {
    log1p = each_lane<C>(z, [](C lane) { return __builtin_log1p(lane); });
  } else {
    const Vec<C> rounded = C(1) + z, part = rounded - C(1);
    log1p = part == C(0) ? z : logarithm<C>(rounded) * (z / part);
  }
  return x > C(kSoftplusLinear) ? x : larger_of<C>(x, Vec<C>{}) + log1p;
}
// d softplus(x) / dx of y = softplus(x).
template <class C>
inline Vec<C> softplus_slope(Vec<C> y) {
  return y > C(kSoftplusLinear) ? broadcast(C(1)) : C(1) - exponential<C>(-y);
}

// ---- across lanes ----------------------------------------------------------------------------------------------------------

template <class C, int... i>
inline Bits<C> lane_numbers(Indices<i...>) {
  return Bits<C>{i...};
}
// {first, first + 1, ...}.
template <class C>
inline Bits<C> lane_numbers(int64_t first) {
  return lane_numbers<C>(typename MakeIndices<kLanes<C>>::type{}) + static_cast<Integer<C>>(first);
}

template <class C, int by, int... i>
inline Vec<C> rotated(Vec<C> x, Indices<i...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, x, ((i + by) % kLanes<C>)...);
#else
  return __builtin_shuffle(x, Bits<C>{((i + by) % kLanes<C>)...});
#endif
}
template <class C, int by = kLanes<C> / 2>
inline C largest(Vec<C> x) {
  if constexpr (by == 0) {
    return x[0];
  } else {
    return largest<C, by / 2>(larger_of<C>(x, rotated<C, by>(x, typename MakeIndices<kLanes<C>>::type{})));
  }
}
template <class C>
inline C sum(Vec<C> x) {
  Vec<C> one[1] = {x};
  return sum_each<C>(one)[0];
}

// out[i] = the sum of the lanes of v[i].
template <class C, int count>
inline void store_sums(const Vec<C> (&v)[count], C* out) {
  constexpr int lanes = kLanes<C>;
  constexpr int width = count >= lanes ? lanes : count > 8 ? 16 : count > 4 ? 8 : count > 2 ? 4 : count;
  UNROLL for (int first = 0; first < count; first += width) {
    Vec<C> part[width];
    UNROLL for (int i = 0; i < width; ++i) part[i] = first + i < count ? v[first + i] : Vec<C>{};
    // Stored as a whole, for what reads a part of it soon: a store with a mask would have to be over first.
    C sums[lanes];
    store(sums, sum_each<C>(part));
    constexpr int most = count < lanes ? count : lanes;
    UNROLL for (int i = 0; i < most; ++i) {
      if (first + i < count) out[first + i] = sums[i];
    }
  }
}

// ---- rows ------------------------------------------------------------------------------------------------------------------

template <class C>
inline void fill(C* row, int64_t count, C value) {
  for (int64_t i = 0; i < count; ++i) row[i] = value;
}
template <class C>
inline void copy(const C* from, int64_t count, C* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}
// The padding of a row over locations.
template <class C>
inline void clear_padding(C* row, int64_t count, int64_t padded) {
  for (int64_t i = count; i < padded; ++i) row[i] = 0;
}

// How to load and store at a place in a row: whole vectors, and what is left at its end.
template <class C>
struct WholeVector {
  ALWAYS_INLINE Vec<C> load(const C* p) const { return ::routing_ext::cpu::load(p); }
  ALWAYS_INLINE void store(C* p, Vec<C> x) const { ::routing_ext::cpu::store(p, x); }
};
template <class C>
struct PartOfVector {
  int64_t count;
  ALWAYS_INLINE Vec<C> load(const C* p) const { return load_partial(p, count); }
  ALWAYS_INLINE void store(C* p, Vec<C> x) const { store_partial(p, x, count); }
};
// f(i, at) for each vector of a row.
template <class C, class F>
ALWAYS_INLINE inline void for_each_vector(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes<C> <= count; i += kLanes<C>) f(i, WholeVector<C>{});
  if (i < count) f(i, PartOfVector<C>{count - i});
}
// The sum of f(i, at), which is zero beyond the end of the row.
template <class C, class F>
inline C sum_of(int64_t count, const F& f) {
  Vec<C> total{};
  for_each_vector<C>(count, [&](int64_t i, auto at) { total += f(i, at); });
  return sum<C>(total);
}

// The elements i..i+rows-1 of `heads` rows, each to be broadcast from memory where it is used. Broadcast ahead of a loop they
// would fill the registers; the compiler keeps from that as it does not know where `elements` points to, nor what changes it.
template <class C, int rows, int heads>
struct Corner {
  C values[heads][rows];
  const C* elements = values[0];
  ALWAYS_INLINE Corner(const C* x, int64_t n, int64_t i) {
    UNROLL for (int r = 0; r < heads; ++r) { UNROLL for (int q = 0; q < rows; ++q) values[r][q] = x[r * n + i + q]; }
    asm volatile("" : "+r"(elements) : : "memory");
  }
  ALWAYS_INLINE C operator()(int r, int q) const { return elements[r * rows + q]; }
};

// The same of one head, broadcast ahead where the registers are many.
template <class C, int rows>
struct Column {
  Vec<C> values[rows];
  ALWAYS_INLINE Column(const C* x, int64_t, int64_t i) {
    UNROLL for (int q = 0; q < rows; ++q) values[q] = broadcast(x[i + q]);
  }
  ALWAYS_INLINE Vec<C> operator()(int, int q) const { return values[q]; }
};
template <class C, int rows, int heads>
struct ElementsOf {
  using type = Corner<C, rows, heads>;
};
#if ROUTING_EXT_VECTOR_BYTES == 64
template <class C, int rows>
struct ElementsOf<C, rows, 1> {
  using type = Column<C, rows>;
};
#endif
template <class C, int rows, int heads>
using Elements = typename ElementsOf<C, rows, heads>::type;

// to [count] = x [count], and sum [count] += x [count].
template <class C, int count>
ALWAYS_INLINE inline void copy_few(const C* x, C* to) {
  using Few = typename VecOf<C, count>::unaligned;
  *reinterpret_cast<Few*>(to) = *reinterpret_cast<const Few*>(x);
}
template <class C, int count>
ALWAYS_INLINE inline void add_few(const C* x, C* sum) {
  using Few = typename VecOf<C, count>::unaligned;
  *reinterpret_cast<Few*>(sum) += *reinterpret_cast<const Few*>(x);
}

// Heads are taken four at a time, a number that the compiler knows: f(Heads<1..4>(), first head).
template <bool flag>
struct Constant {
  static constexpr bool value = flag;
};
template <int n>
struct Heads {
  static constexpr int count = n;
};
template <class F>
inline void for_each_heads(int64_t heads, const F& f) {
  for (int64_t h = 0; h < heads; h += 4) {
    switch (heads - h) {
      case 1:
        f(Heads<1>(), h);
        break;
      case 2:
        f(Heads<2>(), h);
        break;
      case 3:
        f(Heads<3>(), h);
        break;
      default:
        f(Heads<4>(), h);
    }
  }
}

// Vectors of a row in blocks whose sums, `sums` for each vector, fit the registers: f(Heads<vectors>(), first element).
inline constexpr int kSums = ROUTING_EXT_VECTOR_BYTES == 64 ? 20 : 8;
template <class C, int sums, class F>
inline void for_each_block(int64_t n, const F& f) {
  constexpr int most = kSums / sums < 1 ? 1 : kSums / sums > 8 ? 8 : kSums / sums;
  int64_t i = 0;
  for (; i + most * kLanes<C> <= n; i += most * kLanes<C>) f(Heads<most>(), i);
  for (; i < n; i += kLanes<C>) f(Heads<1>(), i);
}

}  // namespace
}  // namespace routing_ext::cpu
