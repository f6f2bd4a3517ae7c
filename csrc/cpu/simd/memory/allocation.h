// Usage of the locations, and allocation of the least used ones (Graves et al., 2016).
#pragma once
#include "content.h"

namespace routing_ext::cpu {
namespace {

// ---- usage -----------------------------------------------------------------------------------------------------------------
//
//   written = u + (1 - u) (1 - prod_v (1 - w_v)),  freed = written prod_r (1 - f_r r_r)

template <class C>
struct UsageWeights {
  int64_t writes, reads, n;
  const C *write_weights, *read_weights;  // [V,n], [R,n] of the step before
  const C* free_gates;                    // [R]

  Vec<C> not_written(int64_t i, int64_t except = -1) const {
    Vec<C> kept = broadcast(C(1));
    for (int64_t v = 0; v < writes; ++v) kept = v == except ? kept : kept * (C(1) - load(write_weights + v * n + i));
    return kept;
  }
  Vec<C> not_freed(int64_t i, int64_t except = -1) const {
    Vec<C> kept = broadcast(C(1));
    for (int64_t r = 0; r < reads; ++r)
      kept = r == except ? kept : kept * (C(1) - free_gates[r] * load(read_weights + r * n + i));
    return kept;
  }
  Vec<C> written(Vec<C> usage, int64_t i) const { return usage + (C(1) - usage) * (C(1) - not_written(i)); }
};

template <class C>
inline void update_usage(const UsageWeights<C>& weights, const C* usage, C* freed) {
  for (int64_t i = 0; i < weights.n; i += kLanes<C>)
    store(freed + i, weights.written(load(usage + i), i) * weights.not_freed(i));
}

// grad [n]: of `freed`, becomes that of usage. grad_write [V,n] and grad_read [R,n] are added to; the former may be nullptr.
// grad_free [R] is set.
template <class C>
inline void update_usage_backward(const UsageWeights<C>& weights, const C* usage, C* grad, C* grad_write, C* grad_read,
                                  C* grad_free) {
  const int64_t n = weights.n;
  for (int64_t r = 0; r < weights.reads; ++r) {
    Vec<C> free_gate = {};
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      const Vec<C> others = load(grad + i) * weights.written(load(usage + i), i) * weights.not_freed(i, r);
      C* const at = grad_read + r * n + i;
      store(at, load(at) - others * weights.free_gates[r]);
      free_gate -= others * load(weights.read_weights + r * n + i);
    }
    grad_free[r] = sum<C>(free_gate);
  }
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    const Vec<C> of_written = load(grad + i) * weights.not_freed(i), free_part = of_written * (C(1) - load(usage + i));
    for (int64_t v = 0; grad_write && v < weights.writes; ++v) {
      C* const at = grad_write + v * n + i;
      store(at, load(at) + free_part * weights.not_written(i, v));
    }
    store(grad + i, of_written * weights.not_written(i));
  }
}

// ---- allocation ------------------------------------------------------------------------------------------------------------
//
//   allocation_i = (1 - s_i) prod_{j before i} s_j,  s = eps + (1 - eps) usage
//
// j comes before i if s_j < s_i, or if they are equal and j < i. Few locations are not sorted: to compare all pairs, without
// branches, is faster (measured).

template <class C>
inline Vec<C> above_zero(Vec<C> usage) {
  return C(kEpsilon) + (C(1) - C(kEpsilon)) * usage;
}

// For the lanes of each vector at i: result = begin(), then f(result, j) with each location j that comes before the lane, or
// behind it if `reversed`; then end(i, result).
template <class C, bool reversed, class F, class Begin, class End>
inline void for_each_pair(int64_t locations, int64_t n, const C* s, const Begin& begin, const F& f, const End& end) {
  for_each_block<C, 4>(n, [&](auto vectors, int64_t i) {
    constexpr int width = decltype(vectors)::count;
    Vec<C> own[width], result[width];
    UNROLL for (int v = 0; v < width; ++v) own[v] = load(s + i + v * kLanes<C>), result[v] = begin();
    const int64_t within = least(i, locations), after = least(i + width * kLanes<C>, locations);
    // Outside the block the order of equal ones is the same for all its lanes.
    for (int64_t j = 0; j < within; ++j) {
      UNROLL for (int v = 0; v < width; ++v) result[v] =
          (reversed ? own[v] < s[j] : own[v] >= s[j]) ? f(result[v], j) : result[v];
    }
    for (int64_t j = within; j < after; ++j) {
      UNROLL for (int v = 0; v < width; ++v) {
        const Bits<C> number = lane_numbers<C>(i + v * kLanes<C>);
        const Bits<C> tie =
            (own[v] == s[j]) & (reversed ? number < static_cast<Integer<C>>(j) : number > static_cast<Integer<C>>(j));
        result[v] = ((reversed ? own[v] < s[j] : own[v] > s[j]) | tie) ? f(result[v], j) : result[v];
      }
    }
    for (int64_t j = after; j < locations; ++j) {
      UNROLL for (int v = 0; v < width; ++v) result[v] =
          (reversed ? own[v] <= s[j] : own[v] > s[j]) ? f(result[v], j) : result[v];
    }
    UNROLL for (int v = 0; v < width; ++v) end(i + v * kLanes<C>, result[v]);
  });
}

inline constexpr int64_t kMostCompared = 3 * ROUTING_EXT_VECTOR_BYTES;
inline constexpr int kDigitBits = 8;

// The locations by ascending s, equal ones by ascending index: sorted by one digit of the bits of s after the other, the last
// one first. order [2n]: scratch, in which the result lies.
template <class C>
inline const Integer<C>* sort_locations(int64_t locations, int64_t n, const C* s, Integer<C>* order) {
  constexpr int digits = 1 << kDigitBits;
  Integer<C>*from = order, *to = order + n;
  for (int64_t i = 0; i < locations; ++i) from[i] = static_cast<Integer<C>>(i);
  for (int shift = 0; shift < static_cast<int>(8 * sizeof(C)); shift += kDigitBits) {
    const auto digit = [&](int64_t i) {
      Integer<C> bits;
      __builtin_memcpy(&bits, s + i, sizeof(C));
      bits ^= bits < 0 ? ~Integer<C>(0) : Integer<C>(1) << (8 * sizeof(C) - 1);  // unsigned, they now have the order of s
      return (bits >> shift) & (digits - 1);
    };
    int64_t counts[digits] = {};
    for (int64_t i = 0; i < locations; ++i) ++counts[digit(i)];
    if (counts[digit(0)] == locations) continue;
    int64_t before = 0;
    for (int64_t& count : counts) {
      const int64_t own = count;
      count = before, before += own;
    }
    for (int64_t k = 0; k < locations; ++k) to[counts[digit(from[k])]++] = from[k];
    Integer<C>* const sorted = to;
    to = from, from = sorted;
  }
  return from;
}

// product [n]: of the s that come before each. scratch [2n].
template <class C>
inline void products_before(int64_t locations, int64_t n, const C* s, C* scratch, C* product) {
  if (locations > kMostCompared) {
    const Integer<C>* const order = sort_locations(locations, n, s, reinterpret_cast<Integer<C>*>(scratch));
    C before = 1;
    for (int64_t k = 0; k < locations; ++k) product[order[k]] = before, before *= s[order[k]];
    return clear_padding(product, locations, n);
  }
  for_each_pair<C, false>(
      locations, n, s, [] { return broadcast(C(1)); }, [&](Vec<C> x, int64_t j) { return x * s[j]; },
      [&](int64_t i, Vec<C> x) { store(product + i, x); });
}
// sums [n]: of the x that come after each. scratch [2n].
template <class C>
inline void sums_after(int64_t locations, int64_t n, const C* s, const C* x, C* scratch, C* sums) {
  if (locations > kMostCompared) {
    const Integer<C>* const order = sort_locations(locations, n, s, reinterpret_cast<Integer<C>*>(scratch));
    C after = 0;
    for (int64_t k = locations - 1; k >= 0; --k) sums[order[k]] = after, after += x[order[k]];
    return clear_padding(sums, locations, n);
  }
  for_each_pair<C, true>(
      locations, n, s, [] { return Vec<C>{}; }, [&](Vec<C> y, int64_t j) { return y + x[j]; },
      [&](int64_t i, Vec<C> y) { store(sums + i, y); });
}

template <class C>
inline void allocation_of_products(int64_t locations, int64_t n, const C* usage, const C* product, C* allocation) {
  for (int64_t i = 0; i < n; i += kLanes<C>)
    store(allocation + i, (C(1) - above_zero<C>(load(usage + i))) * load(product + i));
  clear_padding(allocation, locations, n);
}

// One head. product [n] is kept for the backward pass. scratch [3n].
template <class C>
inline void allocate(int64_t locations, int64_t n, const C* usage, C* scratch, C* product, C* allocation) {
  C* const s = scratch + 2 * n;
  for (int64_t i = 0; i < n; i += kLanes<C>) store(s + i, above_zero<C>(load(usage + i)));
  products_before(locations, n, s, scratch, product);
  allocation_of_products(locations, n, usage, product, allocation);
}

// grad_usage [n] += that of `grad` [n]. scratch [5n].
template <class C>
inline void allocate_backward(int64_t locations, int64_t n, const C* usage, const C* product, const C* grad, C* scratch,
                              C* grad_usage) {
  C *const s = scratch + 2 * n, *const x = s + n, *const sums = x + n;
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    const Vec<C> own = above_zero<C>(load(usage + i));
    store(s + i, own);
    store(x + i, (C(1) - own) * load(product + i) * load(grad + i));
  }
  sums_after(locations, n, s, x, scratch, sums);
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    const Vec<C> of_s = load(sums + i) / load(s + i) - load(product + i) * load(grad + i);
    store(grad_usage + i, load(grad_usage + i) + (C(1) - C(kEpsilon)) * of_s);
  }
}

// By softmax((1 - usage) / temperature) instead.
template <class C>
inline void allocate_by_softmax(int64_t locations, int64_t n, const C* usage, C temperature, C* allocation) {
  for (int64_t i = 0; i < n; i += kLanes<C>) store(allocation + i, (C(1) - load(usage + i)) / temperature);
  fill(allocation + locations, n - locations, allocation[0]);
  softmax(locations, n, allocation);
}
template <class C>
inline void allocate_by_softmax_backward(int64_t n, C temperature, const C* allocation, const C* grad, C* grad_usage) {
  Vec<C> along = {};
  for (int64_t i = 0; i < n; i += kLanes<C>) along += load(grad + i) * load(allocation + i);
  const C mean = sum<C>(along);
  for (int64_t i = 0; i < n; i += kLanes<C>)
    store(grad_usage + i, load(grad_usage + i) - load(allocation + i) * (load(grad + i) - mean) / temperature);
}

// One head, by softmax if a temperature is given. kept [n] is for the backward pass: the products, or the allocation itself.
// scratch [3n].
template <class C>
inline void find_free(double temperature, int64_t locations, int64_t n, const C* usage, C* scratch, C* kept, C* allocation) {
  if (temperature == 0) return allocate(locations, n, usage, scratch, kept, allocation);
  allocate_by_softmax(locations, n, usage, static_cast<C>(temperature), kept);
  copy(kept, n, allocation);
}
// The same allocation from what was kept.
template <class C>
inline void found_free(double temperature, int64_t locations, int64_t n, const C* usage, const C* kept, C* allocation) {
  if (temperature == 0) return allocation_of_products(locations, n, usage, kept, allocation);
  copy(kept, n, allocation);
}
// grad_usage [n] += that of `grad` [n]. scratch [5n].
template <class C>
inline void find_free_backward(double temperature, int64_t locations, int64_t n, const C* usage, const C* kept, const C* grad,
                               C* scratch, C* grad_usage) {
  if (temperature == 0) return allocate_backward(locations, n, usage, kept, grad, scratch, grad_usage);
  allocate_by_softmax_backward(n, static_cast<C>(temperature), kept, grad, grad_usage);
}

// usage + (1 - usage) amount allocation: what is written by an allocation counts as used.
template <class C>
inline Vec<C> more_used(Vec<C> usage, C amount, Vec<C> allocation) {
  return usage + (C(1) - usage) * (amount * allocation);
}
template <class C>
struct MoreUsedGradient {
  Vec<C> usage, amount, allocation;  // the amount's is to be summed
};
template <class C>
inline MoreUsedGradient<C> more_used_backward(Vec<C> grad, Vec<C> usage, C amount, Vec<C> allocation) {
  const Vec<C> unused = grad * (C(1) - usage);
  return {grad * (C(1) - amount * allocation), unused * allocation, unused * amount};
}

}  // namespace
}  // namespace routing_ext::cpu
