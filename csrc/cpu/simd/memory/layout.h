// Between the layout of tensors and that of the kernels: rows padded, the memory turned.
#pragma once
#include "../skinny.h"
#include "functions.h"

namespace routing_ext::cpu {
namespace {

// to [count,padded] = from [count,width], or `otherwise` if there is none; zeros behind each row.
template <class C>
inline void import_rows(const C* from, int64_t count, int64_t width, int64_t padded, C otherwise, C* to) {
  for (int64_t i = 0; i < count; ++i, to += padded) {
    for (int64_t j = 0; j < width; ++j) to[j] = from ? from[i * width + j] : otherwise;
    clear_padding(to, width, padded);
  }
}
template <class C>
inline void export_rows(const C* from, int64_t count, int64_t width, int64_t padded, C* to) {
  if (to == nullptr) return;
  for (int64_t i = 0; i < count; ++i, from += padded) {
    for (int64_t j = 0; j < width; ++j) to[i * width + j] = from[j];
  }
}

// to [W,n] = from [N,W]; zeros behind each row.
template <class C>
inline void import_memory(const C* from, int64_t locations, int64_t word, int64_t n, C* to) {
  transpose_rows([&](int64_t i) { return from + i * word; }, locations, word, false, to, n);
  for (int64_t w = 0; w < word; ++w) clear_padding(to + w * n, locations, n);
}
template <class C>
inline void export_memory(const C* from, int64_t locations, int64_t word, int64_t n, C* to) {
  transpose_rows([&](int64_t w) { return from + w * n; }, word, locations, false, to, word);
}

// norms [n]: |memory row|^2.
template <class C>
inline void memory_norms(const C* memory, int64_t word, int64_t n, C* norms) {
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    Vec<C> squares = {};
    for (int64_t w = 0; w < word; ++w) squares += load(memory + w * n + i) * load(memory + w * n + i);
    store(norms + i, squares);
  }
}

}  // namespace
}  // namespace routing_ext::cpu
