// The three products of grouped_linear for one module. S: the storage type; C: the type computed in (float for low precision).
#include "gemm.h"

namespace routing_ext::cpu {
namespace {

// Below this many rows, turning the weight costs more than the horizontal sums of dot products.
constexpr int64_t kDotRows = 5;
// Rows and columns are taken in blocks whose packed operands stay in the second-level cache.
constexpr int64_t kRowBlock = 8 * kTileRows;
constexpr int64_t kPackedBytes = 384 << 10;
constexpr int64_t kDepthBlock = 256;

template <class S>
using ComputeOf = typename Compute<S>::type;

// The rows of a matrix in the order of a plan, as the tile wants them: pointers to the matrix itself where that is possible,
// else to a converted copy, zero where `positive` is zero or less.
template <class S>
struct RowBlock {
  using C = ComputeOf<S>;
  const S* base;
  const S* positive;
  const int64_t* order;
  int64_t columns;
  C* copy;  // [kRowBlock, columns], or nullptr
  const C* rows[kRowBlock];

  bool direct() const {
    if constexpr (sizeof(S) == sizeof(C)) return positive == nullptr;
    return false;
  }
  void take(int64_t begin, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = order[begin + i] * columns;
      if constexpr (sizeof(S) == sizeof(C)) {
        if (positive == nullptr) {
          rows[i] = base + at;
          continue;
        }
      }
      C* out = copy + i * columns;
      masked_row(base + at, positive ? positive + at : nullptr, out);
      rows[i] = out;
    }
  }
  void prefetch(int64_t first, int64_t last) const {
    constexpr int64_t line = 64 / sizeof(S);
    for (int64_t i = first; i < last; ++i)
      for (int64_t k = 0; k < columns; k += line) __builtin_prefetch(rows[i] + k);
  }

 private:
  void masked_row(const S* row, const S* mask, C* out) const {
    int64_t k = 0;
    for (; k + kLanes<C> <= columns; k += kLanes<C>) {
      Vec<C> value = load(row + k);
      if (mask) value = load(mask + k) <= 0 ? Vec<C>{} : value;
      store(out + k, value);
    }
    if (k == columns) return;
    Vec<C> value = load_partial(row + k, columns - k);
    if (mask) value = load_partial(mask + k, columns - k) <= 0 ? Vec<C>{} : value;
    store_partial(out + k, value, columns - k);
  }
};

// out[order[rows], cols] = A matrix, + bias, relu. A: `columns` of `a`. matrix: [depth, n], or [n, depth] if transposed, with
// `stride` between its rows.
template <class S, bool transposed>
void rows_times_matrix(RowBlock<S> a, const S* matrix, int64_t stride, const S* bias, bool relu, S* out, int64_t out_stride,
                       Span rows, Span cols) {
  using C = ComputeOf<S>;
  constexpr int64_t lanes = kLanes<C>;
  const int64_t depth = a.columns;
  const int64_t per_pass = kPackedBytes / static_cast<int64_t>(sizeof(C)) / (depth + 1) / kTileColumns<C> * kTileColumns<C>;
  const int64_t block_cols = least(cols.size(), per_pass < kTileColumns<C> ? kTileColumns<C> : per_pass);
  // A matrix that is used for few rows is read where it lies.
  const bool in_place = sizeof(S) == sizeof(C) && !transposed && rows.size() < kTileRows;
  const int64_t copy_size = a.direct() ? 0 : kRowBlock * ((depth + 15) / 16 * 16);
  C* const scratch = static_cast<C*>(thread_scratch(sizeof(C) * (copy_size + depth * padded<C>(block_cols))));
  a.copy = scratch;
  C* const packed = scratch + copy_size;

  for (int64_t c0 = cols.begin; c0 < cols.end; c0 += block_cols) {
    const int64_t c1 = least(cols.end, c0 + block_cols);
    for (int64_t c = c0; c < c1; c += kTileColumns<C>) {
      const int64_t width = least(kTileColumns<C>, c1 - c);
      C* const panel = packed + (c - c0) * depth;
      if constexpr (transposed)
        pack_panel_transposed(matrix + c * stride, stride, depth, width, panel);
      else if (!in_place || width < kTileColumns<C>)
        pack_panel(matrix + c, stride, depth, width, panel);
    }
    for (int64_t r0 = rows.begin; r0 < rows.end; r0 += kRowBlock) {
      const int64_t count = least(kRowBlock, rows.end - r0);
      a.take(r0, count);
      for (int64_t c = c0; c < c1; c += kTileColumns<C>) {
        const int64_t width = least(kTileColumns<C>, c1 - c);
        const C* panel = packed + (c - c0) * depth;
        int64_t ldb = padded<C>(width);
        if constexpr (!transposed && sizeof(S) == sizeof(C)) {
          if (in_place && width == kTileColumns<C>) panel = matrix + c, ldb = stride;
        }
        for (int64_t r = 0; r < count;) {
          const int64_t height = next_tile_rows(count - r);
          if (c == c0 && a.direct()) a.prefetch(r + height, least(count, r + height + kTileRows));
          const int64_t* const at = a.order + r0 + r;
          tile<C>(
              height, width, RowPointers<C>{a.rows + r}, panel, ldb, depth, [](int, int) { return Vec<C>{}; },
              [&](int m, int v, Vec<C> sum) {
                const int64_t left = width - v * lanes;
                if (left <= 0) return;
                if (bias) sum += left < lanes ? load_partial(bias + c + v * lanes, left) : load(bias + c + v * lanes);
                if (relu) sum = sum < 0 ? Vec<C>{} : sum;  // NaN stays
                S* const y = out + at[m] * out_stride + c + v * lanes;
                left < lanes ? store_partial(y, sum, left) : store(y, sum);
              });
          r += height;
        }
      }
    }
  }
}

// ---- forward -----------------------------------------------------------------------------------------------------------------

// y[cols] = act(x weight[cols]^T + bias[cols]) for `count` rows, by dot products along d.
template <class S, int count, int outs>
inline void dot_tile(const GroupedForward<S>& p, const S* weight, const S* bias, int64_t first, int64_t o) {
  using C = ComputeOf<S>;
  constexpr int64_t lanes = kLanes<C>;
  const S* x[count];
  UNROLL for (int m = 0; m < count; ++m) x[m] = p.x + p.order[first + m] * p.d;
  Vec<C> sums[count][outs] = {};
  int64_t k = 0;
  for (; k + lanes <= p.d; k += lanes) {
    UNROLL for (int j = 0; j < outs; ++j) {
      const Vec<C> w = load(weight + (o + j) * p.d + k);
      UNROLL for (int m = 0; m < count; ++m) sums[m][j] += load(x[m] + k) * w;
    }
  }
  if (k < p.d) {
    UNROLL for (int j = 0; j < outs; ++j) {
      const Vec<C> w = load_partial(weight + (o + j) * p.d + k, p.d - k);
      UNROLL for (int m = 0; m < count; ++m) sums[m][j] += load_partial(x[m] + k, p.d - k) * w;
    }
  }
  UNROLL for (int m = 0; m < count; ++m) {
    C y[kLanes<C>];
    UNROLL for (int j = 0; j < outs; ++j) {
      y[j] = sum<C>(sums[m][j]);
      if (bias) y[j] += load_partial(bias + o + j, 1)[0];
      if (p.relu) y[j] = y[j] < 0 ? C(0) : y[j];
    }
    store_partial(p.y + p.order[first + m] * p.o + o, load(y), outs);
  }
}
template <class S, int count>
void dot_rows(const GroupedForward<S>& p, const S* weight, const S* bias, int64_t first, Span cols) {
  constexpr int outs = kLanes<ComputeOf<S>> < 4 ? kLanes<ComputeOf<S>> : 4;
  int64_t o = cols.begin;
  for (; o + outs <= cols.end; o += outs) dot_tile<S, count, outs>(p, weight, bias, first, o);
  for (; o < cols.end; ++o) dot_tile<S, count, 1>(p, weight, bias, first, o);
}

template <class S>
void forward(const GroupedForward<S>& p, const S* weight, const S* bias, Span rows, Span cols) {
  if (rows.size() >= kDotRows)
    return rows_times_matrix<S, true>(RowBlock<S>{p.x, nullptr, p.order, p.d, nullptr, {}}, weight, p.d, bias, p.relu, p.y,
                                      p.o, rows, cols);
  static_assert(kDotRows == 5);
  switch (rows.size()) {
    case 4:
      return dot_rows<S, 4>(p, weight, bias, rows.begin, cols);
    case 3:
      return dot_rows<S, 3>(p, weight, bias, rows.begin, cols);
    case 2:
      return dot_rows<S, 2>(p, weight, bias, rows.begin, cols);
    case 1:
      return dot_rows<S, 1>(p, weight, bias, rows.begin, cols);
  }
}

// ---- backward ----------------------------------------------------------------------------------------------------------------

template <class S>
void grad_x(const GroupedBackward<S>& p, const S* weight, Span rows, Span cols) {
  rows_times_matrix<S, false>(RowBlock<S>{p.grad, p.y, p.order, p.o, nullptr, {}}, weight, p.d, nullptr, false, p.grad_x, p.d,
                              rows, cols);
}

template <class S>
void grad_weight(const GroupedBackward<S>& p, S* grad_weight, S* grad_bias, Span rows, Span outs, Span ins) {
  using C = ComputeOf<S>;
  constexpr int64_t lanes = kLanes<C>;
  const int64_t out_tiles = (outs.size() + kTileRows - 1) / kTileRows;
  const int64_t block = least(kDepthBlock, rows.size());
  const int64_t in_width = padded<C>(ins.size());
  // Sums go on from block to block in C, so low precision needs a place of its own.
  const bool several = rows.size() > kDepthBlock, own_sums = several && sizeof(S) != sizeof(C);
  const int64_t grad_size = (out_tiles * kTileRows * block + 15) / 16 * 16;
  const int64_t sums_size = own_sums ? outs.size() * in_width : 0, bias_size = (outs.size() + 15) / 16 * 16;
  C* const grads = static_cast<C*>(thread_scratch(sizeof(C) * (grad_size + block * padded<C>(kTileColumns<C>) + bias_size + sums_size)));
  C* const panel = grads + grad_size;
  C* const bias_sums = panel + block * padded<C>(kTileColumns<C>);
  C* const sums = bias_sums + bias_size;
  for (int64_t i = 0; i < outs.size(); ++i) bias_sums[i] = 0;

  for (int64_t r0 = rows.begin; r0 < rows.end; r0 += block) {
    const int64_t depth = least(block, rows.end - r0);
    const bool first = r0 == rows.begin, last = r0 + depth == rows.end;
    for (int64_t l = 0; l < depth; ++l) {  // grads: out_tiles panels of [depth][kTileRows]
      const int64_t at = p.order[r0 + l] * p.o + outs.begin;
      C* out = grads + l * kTileRows;
      for (int64_t i = 0; i < outs.size(); i += lanes) {
        const int64_t left = least(lanes, outs.size() - i);
        Vec<C> g = left == lanes ? load(p.grad + at + i) : load_partial(p.grad + at + i, left);
        if (p.y) g = (left == lanes ? load(p.y + at + i) : load_partial(p.y + at + i, left)) <= 0 ? Vec<C>{} : g;
        if (grad_bias) {
          if (left == lanes)
            store(bias_sums + i, load(bias_sums + i) + g);
          else
            store_partial(bias_sums + i, load_partial(bias_sums + i, left) + g, left);
        }
        C values[lanes];
        store(values, g);
        for (int64_t j = 0; j < left; ++j) {
          const int64_t t = (i + j) / kTileRows;
          out[t * kTileRows * depth + (i + j) % kTileRows] = values[j];
        }
      }
    }
    for (int64_t c = ins.begin; c < ins.end; c += kTileColumns<C>) {
      const int64_t width = least(kTileColumns<C>, ins.end - c);
      for (int64_t l = 0; l < depth; ++l)
        pack_row(p.x + p.order[r0 + l] * p.d + c, width, panel + l * padded<C>(width));
      for (int64_t t = 0; t < out_tiles; ++t) {
        const int64_t o = t * kTileRows, height = least(kTileRows, outs.size() - o);
        S* const result = grad_weight + (outs.begin + o) * p.d + c;
        C* const partial = sums + o * in_width + (c - ins.begin);
        tile<C>(
            height, width, RowPanel<C>{grads + t * kTileRows * depth}, panel, padded<C>(width), depth,
            [&](int m, int v) {
              const int64_t left = width - v * lanes;
              if (first || left <= 0) return Vec<C>{};
              if (own_sums) return load(partial + m * in_width + v * lanes);
              const S* const at = result + m * p.d + v * lanes;
              return left < lanes ? load_partial(at, left) : load(at);
            },
            [&](int m, int v, Vec<C> sum) {
              const int64_t left = width - v * lanes;
              if (left <= 0) return;
              if (own_sums && !last) return store(partial + m * in_width + v * lanes, sum);
              S* const at = result + m * p.d + v * lanes;
              left < lanes ? store_partial(at, sum, left) : store(at, sum);
            });
      }
    }
  }
  if (grad_bias == nullptr) return;
  for (int64_t i = 0; i < outs.size(); i += lanes) {
    const int64_t left = least(lanes, outs.size() - i);
    store_partial(grad_bias + outs.begin + i, load_partial(bias_sums + i, left), left);
  }
}

template <class S>
constexpr GroupedLinearKernels<S> grouped_linear_kernels = {forward<S>, grad_x<S>, grad_weight<S>};

}  // namespace

// ROUTING_EXT_ISA: baseline, avx2 or avx512, given by the build.
#define ROUTING_EXT_JOIN(a, b) a##b
#define ROUTING_EXT_TABLE(isa) ROUTING_EXT_JOIN(kernels_, isa)
extern const Kernels ROUTING_EXT_TABLE(ROUTING_EXT_ISA);
const Kernels ROUTING_EXT_TABLE(ROUTING_EXT_ISA) = {grouped_linear_kernels<float>, grouped_linear_kernels<double>,
                                                    grouped_linear_kernels<bfloat16>, grouped_linear_kernels<float16>};

}  // namespace routing_ext::cpu
