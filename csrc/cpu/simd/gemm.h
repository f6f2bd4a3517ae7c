// The register-tile product behind grouped_linear, and the packing it works on.
//
//   tile:   C[m][c] = sum_k A(m, k) * B[k][c],  m < kTileRows, c in up to kTileVectors vectors
//   panel:  B as the tile reads it: [k][width], width = the columns of one tile, padded with zeros to whole vectors
#pragma once
#include "vec.h"

namespace routing_ext::cpu {
namespace {

inline constexpr int kTileRows = 6;
// 6 x 4 sums and 4 + 1 operands fill 32 registers; 6 x 2 and 2 + 1 fill 16.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kTileVectors = 4;
#else
inline constexpr int kTileVectors = 2;
#endif
template <class C>
inline constexpr int kTileColumns = kTileVectors * kLanes<C>;

template <class C>
inline int64_t padded(int64_t columns) {
  return (columns + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
}

// A as rows anywhere in memory.
template <class C>
struct RowPointers {
  const C* const* rows;
  template <int tile_rows>
  struct Tile {
    const C* row[tile_rows];
    explicit Tile(const RowPointers& a) { UNROLL for (int m = 0; m < tile_rows; ++m) row[m] = a.rows[m]; }
    C operator()(int m, int64_t k) const { return row[m][k]; }
  };
};
// A as columns of a panel of its own: [k][kPanelRows], whole vectors and whole tiles wide.
inline constexpr int kPanelRows = 8 * kTileRows;
template <class C>
struct PanelColumns {
  const C* panel;
  template <int tile_rows>
  struct Tile {
    const C* panel;
    explicit Tile(const PanelColumns& a) : panel(a.panel) {}
    C operator()(int m, int64_t k) const { return panel[k * kPanelRows + m]; }
  };
};

// out [tile_rows][kTileColumns].
template <class C, int tile_rows, int vectors, class A>
void tile_product(const A& a, const C* b, int64_t ldb, int64_t depth, C* out) {
  const typename A::template Tile<tile_rows> rows(a);
  Vec<C> sum[tile_rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k, b += ldb) {
    Vec<C> column[vectors];
    UNROLL for (int v = 0; v < vectors; ++v) column[v] = load(b + v * kLanes<C>);
    UNROLL for (int m = 0; m < tile_rows; ++m) {
      const Vec<C> x = broadcast(rows(m, k));
      UNROLL for (int v = 0; v < vectors; ++v) sum[m][v] += x * column[v];
    }
  }
  UNROLL for (int m = 0; m < tile_rows; ++m) {
    UNROLL for (int v = 0; v < vectors; ++v) store(out + m * kTileColumns<C> + v * kLanes<C>, sum[m][v]);
  }
}

template <class C, int vectors, class A>
void tile_of_rows(int64_t tile_rows, const A& a, const C* b, int64_t ldb, int64_t depth, C* out) {
  static_assert(kTileRows == 6);
  switch (tile_rows) {
    case 6:
      return tile_product<C, 6, vectors>(a, b, ldb, depth, out);
    case 5:
      return tile_product<C, 5, vectors>(a, b, ldb, depth, out);
    case 4:
      return tile_product<C, 4, vectors>(a, b, ldb, depth, out);
    case 3:
      return tile_product<C, 3, vectors>(a, b, ldb, depth, out);
    case 2:
      return tile_product<C, 2, vectors>(a, b, ldb, depth, out);
    case 1:
      return tile_product<C, 1, vectors>(a, b, ldb, depth, out);
  }
}
// One tile of run-time size: tile_rows <= kTileRows, columns <= kTileColumns; out [kTileRows][kTileColumns].
template <class C, class A>
inline void tile(int64_t tile_rows, int64_t columns, const A& a, const C* b, int64_t ldb, int64_t depth, C* out) {
  const int64_t vectors = padded<C>(columns) / kLanes<C>;
  if constexpr (kTileVectors == 4) {
    if (vectors == 4) return tile_of_rows<C, 4>(tile_rows, a, b, ldb, depth, out);
    if (vectors == 3) return tile_of_rows<C, 3>(tile_rows, a, b, ldb, depth, out);
  }
  if (vectors == 2) return tile_of_rows<C, 2>(tile_rows, a, b, ldb, depth, out);
  return tile_of_rows<C, 1>(tile_rows, a, b, ldb, depth, out);
}
// out = act(sum + what is there + bias) for one row of a tile; `previous` and `bias` may be nullptr.
template <class S, class C>
inline void finish_row(const C* sum, const S* previous, const S* bias, bool relu, int64_t columns, S* out) {
  const auto finished = [&](Vec<C> x, Vec<C> before, Vec<C> b) {
    x = x + before + b;
    if (relu) x = x < 0 ? Vec<C>{} : x;  // NaN stays
    return x;
  };
  int64_t c = 0;
  for (; c + kLanes<C> <= columns; c += kLanes<C>) {
    store(out + c, finished(load(sum + c), previous ? load(previous + c) : Vec<C>{}, bias ? load(bias + c) : Vec<C>{}));
  }
  const int64_t left = columns - c;
  if (left == 0) return;
  const Vec<C> before = previous ? load_partial(previous + c, left) : Vec<C>{};
  store_partial(out + c, finished(load(sum + c), before, bias ? load_partial(bias + c, left) : Vec<C>{}), left);
}
// Height of the next tile, so that the last two share what is left.
inline int64_t next_tile_rows(int64_t left) {
  if (left >= 2 * kTileRows || left <= kTileRows) return least(left, kTileRows);
  return (left + 1) / 2;
}

// ---- packing ---------------------------------------------------------------------------------------------------------------

// panel[k][c] = matrix[k][c] for c < columns, zero up to the padded width.
template <class S, class C>
inline void pack_row(const S* row, int64_t columns, C* out) {
  int64_t c = 0;
  for (; c + kLanes<C> <= columns; c += kLanes<C>) store(out + c, load(row + c));
  if (c < columns) store(out + c, load_partial(row + c, columns - c));
}
// The columns first..columns-1 of a matrix [depth, columns] as panels [depth][kTileColumns]; `first` is a multiple of those.
// panels + c * depth is the panel from column c on.
template <class S, class C>
inline void pack_panels(const S* matrix, int64_t stride, int64_t depth, int64_t first, int64_t columns, C* panels) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t c = first; c < columns; c += kTileColumns<C>) {
      const int64_t width = least(kTileColumns<C>, columns - c);
      pack_row(matrix + k * stride + c, width, panels + c * depth + k * padded<C>(width));
    }
  }
}
// The same of the rows order[0..depth-1] of a matrix.
template <class S, class C>
inline void pack_rows(const S* matrix, const int64_t* order, int64_t stride, int64_t depth, int64_t columns, C* panels) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t c = 0; c < columns; c += kTileColumns<C>) {
      const int64_t width = least(kTileColumns<C>, columns - c);
      pack_row(matrix + order[k] * stride + c, width, panels + c * depth + k * padded<C>(width));
    }
  }
}
// panel[k][c] = matrix[c][k].
template <class S, class C>
inline void pack_panel_transposed(const S* matrix, int64_t stride, int64_t depth, int64_t columns, C* panel) {
  constexpr int lanes = kLanes<C>;
  const int64_t width = padded<C>(columns);
  for (int64_t c = 0; c < columns; c += lanes) {
    for (int64_t k = 0; k < depth; k += lanes) {
      Vec<C> block[lanes];
      const int64_t rows = columns - c, within = depth - k;
      if (rows >= lanes && within >= lanes) {
        UNROLL for (int i = 0; i < lanes; ++i) block[i] = load(matrix + (c + i) * stride + k);
        transpose<C>(block);
        UNROLL for (int i = 0; i < lanes; ++i) store(panel + (k + i) * width + c, block[i]);
      } else {
        for (int i = 0; i < lanes; ++i)
          block[i] = i < rows ? load_partial(matrix + (c + i) * stride + k, least(within, lanes)) : Vec<C>{};
        transpose<C>(block);
        for (int i = 0; i < least(within, lanes); ++i) store(panel + (k + i) * width + c, block[i]);
      }
    }
  }
}

}  // namespace
}  // namespace routing_ext::cpu
