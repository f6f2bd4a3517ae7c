// How work is divided among torch's threads.
#pragma once
#include <ATen/Parallel.h>

#include "kernel_tables.h"

namespace routing_ext::cpu {

constexpr int64_t kMultiplicationsPerThread = 1 << 18;  // fewer are not worth another thread (some 10 us)

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The t-th of `parts` parts of n things.
inline Span part_of(int64_t n, int64_t t, int64_t parts) { return {n * t / parts, n * (t + 1) / parts}; }

template <class F>
void in_threads(int64_t threads, const F& f) {
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) f(t);
  });
}

}  // namespace routing_ext::cpu
