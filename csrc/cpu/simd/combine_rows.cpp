// Weighted sums of the rows of each sample.
#include "../combine_rows_kernels.h"
#include "vec.h"

namespace routing_ext::cpu {
namespace {

constexpr int kVectors = 4;  // side by side: sums whose additions need not wait for each other

template <class S>
inline typename Compute<S>::type widened(const S* p) {
  return load_partial(p, 1)[0];
}

// combined[first..] of one sample, in `vectors` vectors, of which the last has `last` elements.
template <int vectors, class S>
inline void combine(const S* y, const S* weights, S* combined, int64_t choices, int64_t width, int64_t last) {
  using C = typename Compute<S>::type;
  constexpr int lanes = kLanes<C>;
  const bool whole = last == lanes;
  Vec<C> sums[vectors] = {};
  for (int64_t j = 0; j < choices; ++j, y += width) {
    const Vec<C> weight = broadcast(widened(weights + j));
    UNROLL for (int v = 0; v < vectors - 1; ++v) sums[v] += weight * load(y + v * lanes);
    const S* const end = y + (vectors - 1) * lanes;
    sums[vectors - 1] += weight * (whole ? load(end) : load_partial(end, last));
  }
  UNROLL for (int v = 0; v < vectors - 1; ++v) store(combined + v * lanes, sums[v]);
  S* const end = combined + (vectors - 1) * lanes;
  whole ? store(end, sums[vectors - 1]) : store_partial(end, sums[vectors - 1], last);
}

template <class S>
void forward(const CombineForward<S>& p, Span samples) {
  constexpr int lanes = kLanes<typename Compute<S>::type>;
  for (int64_t b = samples.begin; b < samples.end; ++b) {
    const S *const y = p.y + b * p.choices * p.width, *const weights = p.weights + b * p.choices;
    S* const combined = p.combined + b * p.width;
    int64_t i = 0;
    for (; i + kVectors * lanes <= p.width; i += kVectors * lanes) {
      combine<kVectors>(y + i, weights, combined + i, p.choices, p.width, lanes);
    }
    for (; i < p.width; i += lanes) {
      combine<1>(y + i, weights, combined + i, p.choices, p.width, least(lanes, p.width - i));
    }
  }
}

// One row: grad_y = weight grad, and the sum over grad y.
template <bool wants_y, bool wants_weights, class S>
inline typename Compute<S>::type row_backward(const S* grad, const S* y, S weight_, S* grad_y, int64_t width) {
  using C = typename Compute<S>::type;
  constexpr int lanes = kLanes<C>;
  const Vec<C> weight = broadcast(widened(&weight_));
  Vec<C> sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kVectors * lanes <= width; i += kVectors * lanes) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const int64_t at = i + v * lanes;
      const Vec<C> g = load(grad + at);
      if constexpr (wants_y) store(grad_y + at, weight * g);
      if constexpr (wants_weights) sums[v] += g * load(y + at);
    }
  }
  for (; i < width; i += lanes) {
    const int64_t left = least(lanes, width - i);
    const Vec<C> g = load_partial(grad + i, left);
    if constexpr (wants_y) store_partial(grad_y + i, weight * g, left);
    if constexpr (wants_weights) sums[0] += g * load_partial(y + i, left);
  }
  static_assert(kVectors == 4);
  Vec<C> all[1] = {(sums[0] + sums[1]) + (sums[2] + sums[3])};
  return sum_each<C>(all)[0];
}

template <bool wants_y, bool wants_weights, class S>
void backward_of(const CombineBackward<S>& p, Span samples) {
  using C = typename Compute<S>::type;
  for (int64_t b = samples.begin; b < samples.end; ++b) {
    const S* const grad = p.grad + b * p.width;
    for (int64_t row = b * p.choices; row < (b + 1) * p.choices; ++row) {
      const int64_t at = row * p.width;
      const C sum = row_backward<wants_y, wants_weights>(grad, wants_weights ? p.y + at : nullptr, p.weights[row],
                                                         wants_y ? p.grad_y + at : nullptr, p.width);
      if constexpr (wants_weights) store_partial(p.grad_weights + row, broadcast(sum), 1);
    }
  }
}

template <class S>
void backward(const CombineBackward<S>& p, Span samples) {
  if (p.grad_y != nullptr && p.grad_weights != nullptr) return backward_of<true, true>(p, samples);
  if (p.grad_y != nullptr) return backward_of<true, false>(p, samples);
  if (p.grad_weights != nullptr) return backward_of<false, true>(p, samples);
}

template <class S>
constexpr CombineRowsKernels<S> kernels_of = {forward<S>, backward<S>};

}  // namespace

ROUTING_EXT_DEFINE_KERNELS(AllKernels<CombineRowsKernels>, combine_rows_kernels) = {
    {kernels_of<float>, kernels_of<double>}, kernels_of<bfloat16>, kernels_of<float16>};

}  // namespace routing_ext::cpu
