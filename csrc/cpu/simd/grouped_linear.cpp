// The three products of grouped_linear for one module. S: the storage type; C: the type computed in (float for low precision).
#include "../grouped_linear_kernels.h"
#include "gemm.h"

namespace routing_ext::cpu {
namespace {

// Rows, columns and depth are taken in blocks whose packed operands stay in the second-level cache.
constexpr int64_t kRowBlock = 8 * kTileRows;
constexpr int64_t kPackedBytes = 384 << 10;
constexpr int64_t kDepthBlock = 256;
// Of a matrix that is read along its rows: shorter, so that a block has long rows.
constexpr int64_t kStraightDepthBlock = 128;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kBiasRows = 16;  // summed before they are added to what is there: sums of sums round less
// Most partial sums of low precision's weight gradients, which a thread keeps as float.
constexpr int64_t kPartialElements = 1 << 20;

template <class S>
using ComputeOf = typename Compute<S>::type;

// A block of rows of a matrix in the order of a plan, as the tile wants them: pointers to the matrix itself where that is
// possible, else to a converted copy, zero where `positive` is zero or less.
template <class S>
struct RowBlock {
  using C = ComputeOf<S>;
  const S* base;
  const S* positive;
  const int64_t* order;
  int64_t columns;
  C* copy;  // [kRowBlock, depth of the block], or nullptr
  const C* rows[kRowBlock];

  bool direct() const {
    if constexpr (sizeof(S) == sizeof(C)) return positive == nullptr;
    return false;
  }
  // Columns k..k+depth-1 of the rows at positions begin..begin+count-1.
  void take(int64_t begin, int64_t count, int64_t k, int64_t depth) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = order[begin + i] * columns + k;
      if constexpr (sizeof(S) == sizeof(C)) {
        if (positive == nullptr) {
          rows[i] = base + at;
          continue;
        }
      }
      C* out = copy + i * depth;
      masked_row(base + at, positive ? positive + at : nullptr, depth, out);
      rows[i] = out;
    }
  }
  void prefetch(int64_t first, int64_t last, int64_t depth) const {
    for (int64_t i = first; i < last; ++i)
      for (int64_t k = 0; k < depth; k += kLineBytes / sizeof(S)) __builtin_prefetch(rows[i] + k);
  }

 private:
  static void masked_row(const S* row, const S* mask, int64_t depth, C* out) {
    int64_t k = 0;
    for (; k + kLanes<C> <= depth; k += kLanes<C>) {
      Vec<C> value = load(row + k);
      if (mask) value = load(mask + k) <= 0 ? Vec<C>{} : value;
      store(out + k, value);
    }
    if (k == depth) return;
    Vec<C> value = load_partial(row + k, depth - k);
    if (mask) value = load_partial(mask + k, depth - k) <= 0 ? Vec<C>{} : value;
    store_partial(out + k, value, depth - k);
  }
};

// out[order[rows], cols] = A matrix, + bias, relu. A: `columns` of `a`. matrix: [depth, n], or [n, depth] if transposed, with
// `stride` between its rows.
template <class S, bool transposed>
void rows_times_matrix(RowBlock<S> a, const S* matrix, int64_t stride, const S* bias, bool relu, S* out, int64_t out_stride,
                       Span rows, Span cols) {
  using C = ComputeOf<S>;
  constexpr bool converted = sizeof(S) != sizeof(C);
  // Sums go on from block to block in `out`, which low precision is too coarse for.
  const int64_t depth_block = converted ? a.columns : least(a.columns, transposed ? kDepthBlock : kStraightDepthBlock);
  const int64_t per_pass =
      kPackedBytes / static_cast<int64_t>(sizeof(C)) / (depth_block + 1) / kTileColumns<C> * kTileColumns<C>;
  const int64_t block_cols = least(cols.size(), per_pass < kTileColumns<C> ? kTileColumns<C> : per_pass);
  // A matrix that is used for few rows is read where it lies.
  const bool in_place = !converted && !transposed && rows.size() < kTileRows;
  const int64_t copy_size = a.direct() ? 0 : kRowBlock * ((depth_block + 15) / 16 * 16);
  C* const scratch = static_cast<C*>(thread_scratch(sizeof(C) * (copy_size + depth_block * padded<C>(block_cols))));
  a.copy = scratch;
  C* const packed = scratch + copy_size;
  alignas(64) C sums[kTileRows * kTileColumns<C>];

  int64_t k0 = 0;
  do {  // once where there are no columns, too: the bias remains
    const int64_t depth = least(depth_block, a.columns - k0);
    const bool first = k0 == 0, last = k0 + depth == a.columns;
    for (int64_t c0 = cols.begin; c0 < cols.end; c0 += block_cols) {
      const int64_t c1 = least(cols.end, c0 + block_cols);
      const int64_t whole = c0 + (c1 - c0) / kTileColumns<C> * kTileColumns<C>;
      if constexpr (transposed) {
        for (int64_t c = c0; c < c1; c += kTileColumns<C>)
          pack_panel_transposed(matrix + c * stride + k0, stride, depth, least(kTileColumns<C>, c1 - c),
                                packed + (c - c0) * depth);
      } else {
        pack_panels(matrix + k0 * stride + c0, stride, depth, in_place ? whole - c0 : 0, c1 - c0, packed);
      }
      for (int64_t r0 = rows.begin; r0 < rows.end; r0 += kRowBlock) {
        const int64_t count = least(kRowBlock, rows.end - r0);
        a.take(r0, count, k0, depth);
        for (int64_t c = c0; c < c1; c += kTileColumns<C>) {
          const int64_t width = least(kTileColumns<C>, c1 - c);
          const C* panel = packed + (c - c0) * depth;
          int64_t ldb = padded<C>(width);
          if constexpr (!transposed && !converted) {
            if (in_place && c < whole) panel = matrix + k0 * stride + c, ldb = stride;
          }
          for (int64_t r = 0; r < count;) {
            const int64_t height = next_tile_rows(count - r);
            if (c == c0 && a.direct()) a.prefetch(r + height, least(count, r + height + kTileRows), depth);
            const int64_t* const at = a.order + r0 + r;
            tile<C>(height, width, RowPointers<C>{a.rows + r}, panel, ldb, depth, sums);
            for (int64_t m = 0; m < height; ++m) {
              S* const result = out + at[m] * out_stride + c;
              finish_row(sums + m * kTileColumns<C>, first ? nullptr : result, last && bias ? bias + c : nullptr, last && relu,
                         width, result);
            }
            r += height;
          }
        }
      }
    }
    k0 += depth_block;
  } while (k0 < a.columns);
}

// ---- forward ---------------------------------------------------------------------------------------------------------------

// A tile of dot products along d, whose sums over the lanes are formed together.
template <class C>
inline constexpr int kDotOuts = kLanes<C> >= 16  ? 4
                                : kLanes<C> >= 4 ? 2
                                                 : 1;
template <class C>
inline constexpr int kDotRows = kLanes<C> / kDotOuts<C> < 4 ? kLanes<C> / kDotOuts<C> : 4;

// y[at, o..o+outs-1] = act(x weight^T + bias) for `rows` rows.
template <class S, int rows, int outs, bool prefetch>
inline void dot_tile(const GroupedForward<S>& p, const S* weight, Vec<ComputeOf<S>> bias, const int64_t* at, int64_t o) {
  using C = ComputeOf<S>;
  constexpr int64_t lanes = kLanes<C>;
  constexpr int count = rows == 3 ? 4 : rows;  // of sum_each
  const S* x[rows];
  UNROLL for (int m = 0; m < rows; ++m) x[m] = p.x + at[m] * p.d;
  const S* const w = weight + o * p.d;
  Vec<C> sums[count * outs] = {};
  int64_t k = 0;
  for (; k + lanes <= p.d; k += lanes) {
    Vec<C> row[rows];
    UNROLL for (int m = 0; m < rows; ++m) row[m] = load(x[m] + k);
    UNROLL for (int j = 0; j < outs; ++j) {
      const Vec<C> column = load(w + j * p.d + k);
      if constexpr (prefetch) __builtin_prefetch(w + (outs + j) * p.d + k);  // the rows that come next
      UNROLL for (int m = 0; m < rows; ++m) sums[m * outs + j] += row[m] * column;
    }
  }
  if (k < p.d) {
    Vec<C> row[rows];
    UNROLL for (int m = 0; m < rows; ++m) row[m] = load_partial(x[m] + k, p.d - k);
    UNROLL for (int j = 0; j < outs; ++j) {
      const Vec<C> column = load_partial(w + j * p.d + k, p.d - k);
      UNROLL for (int m = 0; m < rows; ++m) sums[m * outs + j] += row[m] * column;
    }
  }
  Vec<C> y = sum_each<C>(sums) + bias;   // [rows][outs], and more
  if (p.relu) y = y < 0 ? Vec<C>{} : y;  // NaN stays
  S results[lanes];
  store(results, y);
  UNROLL for (int m = 0; m < rows; ++m) __builtin_memcpy(p.y + at[m] * p.o + o, results + m * outs, sizeof(S) * outs);
}
template <class S, int outs, bool prefetch>
inline void dot_tile_of_rows(int64_t rows, const GroupedForward<S>& p, const S* weight, Vec<ComputeOf<S>> bias,
                             const int64_t* at, int64_t o) {
  constexpr int most = kDotRows<ComputeOf<S>>;
  if constexpr (most >= 4) {
    if (rows == 4) return dot_tile<S, 4, outs, prefetch>(p, weight, bias, at, o);
    if (rows == 3) return dot_tile<S, 3, outs, prefetch>(p, weight, bias, at, o);
  }
  if (rows == 2) return dot_tile<S, 2, outs, prefetch>(p, weight, bias, at, o);
  return dot_tile<S, 1, outs, prefetch>(p, weight, bias, at, o);
}

// Outputs o..o+outs-1 of all rows.
template <class S, int outs>
void dot_columns(const GroupedForward<S>& p, const S* weight, const S* bias, Span rows, int64_t o, bool prefetch) {
  using C = ComputeOf<S>;
  C biases[kLanes<C>] = {};
  if (bias) {
    const Vec<C> own = load_partial(bias + o, outs);
    UNROLL for (int i = 0; i < kLanes<C>; ++i) biases[i] = own[i % outs];
  }
  const Vec<C> b = load(biases);
  for (int64_t r = rows.begin; r < rows.end; r += kDotRows<C>) {
    const int64_t count = least(kDotRows<C>, rows.end - r);
    if (prefetch && r == rows.begin)
      dot_tile_of_rows<S, outs, true>(count, p, weight, b, p.order + r, o);
    else
      dot_tile_of_rows<S, outs, false>(count, p, weight, b, p.order + r, o);
  }
}

template <class S>
void dot_forward(const GroupedForward<S>& p, const S* weight, const S* bias, Span rows, Span cols) {
  constexpr int outs = kDotOuts<ComputeOf<S>>;
  int64_t o = cols.begin;
  for (; o + outs <= cols.end; o += outs) dot_columns<S, outs>(p, weight, bias, rows, o, o + 2 * outs <= cols.end);
  for (; o < cols.end; ++o) dot_columns<S, 1>(p, weight, bias, rows, o, false);
}

// Dot products read the weight as it lies, at the price of sums over lanes for each row; the alternative turns it first, once
// for all rows. Which is cheaper depends on the rows and on the length of the dot products (measured).
constexpr int64_t kDotCost = 3;
constexpr int64_t kConvertingDotRows = 5;  // low precision converts the weight again for each few rows
template <class S>
void forward(const GroupedForward<S>& p, const S* weight, const S* bias, Span rows, Span cols) {
  const bool converts = sizeof(S) != sizeof(ComputeOf<S>);
  if (converts ? rows.size() < kConvertingDotRows : rows.size() * kDotCost < p.d)
    return dot_forward(p, weight, bias, rows, cols);
  rows_times_matrix<S, true>(RowBlock<S>{p.x, nullptr, p.order, p.d, nullptr, {}}, weight, p.d, bias, p.relu, p.y, p.o, rows,
                             cols);
}

// ---- backward --------------------------------------------------------------------------------------------------------------

template <class S>
void grad_x(const GroupedBackward<S>& p, const S* weight, Span rows, Span cols) {
  rows_times_matrix<S, false>(RowBlock<S>{p.grad, p.y, p.order, p.o, nullptr, {}}, weight, p.d, nullptr, false, p.grad_x, p.d,
                              rows, cols);
}

// panel[l][j] = grad[order[first + l]][out + j], zero where y is not positive, for j < width <= kPanelRows.
// bias_sums [kPanelRows] += the sums over l.
template <class S>
void pack_grad(const GroupedBackward<S>& p, int64_t first, int64_t depth, int64_t out, int64_t width, ComputeOf<S>* panel,
               ComputeOf<S>* bias_sums) {
  using C = ComputeOf<S>;
  constexpr int lanes = kLanes<C>, most = kPanelRows / lanes;
  static_assert(kPanelRows % lanes == 0);
  for (int64_t l0 = 0; l0 < depth; l0 += kBiasRows) {
    Vec<C> sums[most] = {};
    for (int64_t l = l0; l < least(l0 + kBiasRows, depth); ++l) {
      const int64_t at = p.order[first + l] * p.o + out;
      C* const row = panel + l * kPanelRows;
      UNROLL for (int v = 0; v < most; ++v) {
        const int64_t left = width - v * lanes, from = at + v * lanes;
        if (left <= 0) break;
        Vec<C> g = left < lanes ? load_partial(p.grad + from, left) : load(p.grad + from);
        if (p.y) g = (left < lanes ? load_partial(p.y + from, left) : load(p.y + from)) <= 0 ? Vec<C>{} : g;
        store(row + v * lanes, g);
        sums[v] += g;
      }
    }
    UNROLL for (int v = 0; v < most; ++v) store(bias_sums + v * lanes, load(bias_sums + v * lanes) + sums[v]);
  }
}

// A block [height, width] that a tile will write: its lines arrive while the tile is computed.
template <class S>
inline void prefetch_for_write(const S* block, int64_t stride, int64_t height, int64_t width) {
  for (int64_t m = 0; m < height; ++m)
    for (int64_t c = 0; c < width; c += kLineBytes / sizeof(S)) __builtin_prefetch(block + m * stride + c, 1);
}

template <class S>
void grad_weight(const GroupedBackward<S>& p, S* grad_weight, S* grad_bias, Span rows, Span outs, Span ins) {
  using C = ComputeOf<S>;
  constexpr int64_t lanes = kLanes<C>;
  const int64_t panels = (outs.size() + kPanelRows - 1) / kPanelRows;
  const int64_t block = least(kDepthBlock, rows.size());
  const int64_t in_width = padded<C>(ins.size());
  constexpr bool converted = sizeof(S) != sizeof(C);
  // Sums go on from block to block in C, so low precision needs a place of its own.
  const bool several = rows.size() > block;
  if (several && converted && outs.size() > kTileRows && outs.size() * in_width > kPartialElements) {
    const int64_t middle = outs.begin + (outs.size() / 2 + kTileRows - 1) / kTileRows * kTileRows;
    ::routing_ext::cpu::grad_weight<S>(p, grad_weight, grad_bias, rows, {outs.begin, middle}, ins);
    return ::routing_ext::cpu::grad_weight<S>(p, grad_weight, grad_bias, rows, {middle, outs.end}, ins);
  }
  const int64_t grad_size = panels * block * kPanelRows, bias_size = panels * kPanelRows;
  const int64_t partial_size = several && converted ? outs.size() * in_width : 0;
  C* const grads = static_cast<C*>(thread_scratch(sizeof(C) * (grad_size + bias_size + block * in_width + partial_size)));
  C* const bias_sums = grads + grad_size;
  C* const inputs = bias_sums + bias_size;  // panels [block][kTileColumns]
  C* const partial = inputs + block * in_width;
  alignas(64) C sums[kTileRows * kTileColumns<C>];
  for (int64_t i = 0; i < bias_size; ++i) bias_sums[i] = 0;

  for (int64_t r0 = rows.begin; r0 < rows.end; r0 += block) {
    const int64_t depth = least(block, rows.end - r0);
    const bool first = r0 == rows.begin, last = r0 + depth == rows.end;
    for (int64_t g = 0; g < panels; ++g) {
      const int64_t o = g * kPanelRows;
      pack_grad(p, r0, depth, outs.begin + o, least(kPanelRows, outs.size() - o), grads + o * depth, bias_sums + o);
    }
    pack_rows(p.x + ins.begin, p.order + r0, p.d, depth, ins.size(), inputs);
    // Row by row of the result, so that it is written in the order of its memory.
    for (int64_t o = 0; o < outs.size(); o += kTileRows) {
      const int64_t height = least(kTileRows, outs.size() - o);
      const C* const g = grads + o / kPanelRows * kPanelRows * depth + o % kPanelRows;
      for (int64_t c = 0; c < ins.size(); c += kTileColumns<C>) {
        const int64_t width = least(kTileColumns<C>, ins.size() - c);
        S* const result = grad_weight + (outs.begin + o) * p.d + ins.begin + c;
        if (first) prefetch_for_write(result, p.d, height, width);
        tile<C>(height, width, PanelColumns<C>{g}, inputs + c * depth, padded<C>(width), depth, sums);
        for (int64_t m = 0; m < height; ++m) {
          const C* const sum = sums + m * kTileColumns<C>;
          C* const kept = partial + (o + m) * in_width + c;
          S* const row = result + m * p.d;
          if constexpr (!converted) {
            finish_row(sum, first ? nullptr : row, static_cast<const S*>(nullptr), false, width, row);
          } else if (several) {
            finish_row(sum, first ? nullptr : kept, static_cast<const C*>(nullptr), false, width, kept);
            if (last) finish_row(kept, static_cast<const S*>(nullptr), static_cast<const S*>(nullptr), false, width, row);
          } else {
            finish_row(sum, static_cast<const S*>(nullptr), static_cast<const S*>(nullptr), false, width, row);
          }
        }
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
constexpr GroupedLinearKernels<S> kernels_of = {forward<S>, grad_x<S>, grad_weight<S>};

}  // namespace

ROUTING_EXT_DEFINE_KERNELS(AllKernels<GroupedLinearKernels>, grouped_linear_kernels) = {
    {kernels_of<float>, kernels_of<double>}, kernels_of<bfloat16>, kernels_of<float16>};

}  // namespace routing_ext::cpu
