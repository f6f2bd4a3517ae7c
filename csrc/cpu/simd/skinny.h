// Products of a few rows with a packed matrix, for networks that take one time step of a small batch at a time.
//
//   skinny_product:  out = start + [a, b] B
//   panel:           B as the tile reads it: [k][width], width = the columns of one tile, padded to whole vectors
//
// Unlike the tiles of gemm.h these are as high as a thread has rows, so that B, which is larger than both the other matrices,
// passes through the registers once.
#pragma once
#include "gemm.h"

namespace routing_ext::cpu {
namespace {

// Sums, columns and one broadcast: 28 of 32 registers, or 16 of 16.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kSkinnyRows = 8;
#else
inline constexpr int kSkinnyRows = 4;
#endif
inline constexpr int kSkinnyVectors = 3;

template <class C>
struct Rows {
  C* data;
  int64_t stride;
};
// `depth` columns of some rows.
template <class C>
struct Factor {
  Rows<const C> rows;
  int64_t depth;
};

template <class C>
struct SkinnyTile {
  Factor<C> a, b;
  const C* panel;
  Rows<const C> start;  // data of nullptr: zero
  Rows<C> out;
  int64_t columns;
};

template <class C, int rows, int vectors>
void skinny_tile(const SkinnyTile<C>& t) {
  constexpr int lanes = kLanes<C>;
  const bool whole = t.columns == vectors * lanes;
  Vec<C> sum[rows][vectors] = {};
  if (t.start.data) {
    UNROLL for (int m = 0; m < rows; ++m) {
      UNROLL for (int v = 0; v < vectors; ++v) {
        const C* const p = t.start.data + m * t.start.stride + v * lanes;
        sum[m][v] = whole ? load(p) : load_partial(p, t.columns - v * lanes);
      }
    }
  }
  const C* panel = t.panel;
  const auto add = [&](const Factor<C>& x) __attribute__((always_inline)) {
    const C* row[rows];
    UNROLL for (int m = 0; m < rows; ++m) row[m] = x.rows.data + m * x.rows.stride;
    for (int64_t k = 0; k < x.depth; ++k, panel += vectors * lanes) {
      Vec<C> column[vectors];
      UNROLL for (int v = 0; v < vectors; ++v) column[v] = load(panel + v * lanes);
      UNROLL for (int m = 0; m < rows; ++m) {
        const Vec<C> scalar = broadcast(row[m][k]);
        UNROLL for (int v = 0; v < vectors; ++v) sum[m][v] += scalar * column[v];
      }
    }
  };
  add(t.a);
  add(t.b);
  UNROLL for (int m = 0; m < rows; ++m) {
    UNROLL for (int v = 0; v < vectors; ++v) {
      C* const p = t.out.data + m * t.out.stride + v * lanes;
      if (whole) {
        store(p, sum[m][v]);
      } else {
        store_partial(p, sum[m][v], t.columns - v * lanes);
      }
    }
  }
}

template <class C, int rows>
void skinny_tile_of_width(const SkinnyTile<C>& t) {
  static_assert(kSkinnyVectors == 3);
  if (t.columns > 2 * kLanes<C>) return skinny_tile<C, rows, 3>(t);
  if (t.columns > kLanes<C>) return skinny_tile<C, rows, 2>(t);
  return skinny_tile<C, rows, 1>(t);
}
template <class C>
void skinny_tile_of_size(int64_t rows, const SkinnyTile<C>& t) {
  static_assert(kSkinnyRows == 8 || kSkinnyRows == 4);
  if constexpr (kSkinnyRows == 8) {
    if (rows == 8) return skinny_tile_of_width<C, 8>(t);
    if (rows == 7) return skinny_tile_of_width<C, 7>(t);
    if (rows == 6) return skinny_tile_of_width<C, 6>(t);
    if (rows == 5) return skinny_tile_of_width<C, 5>(t);
  }
  if (rows == 4) return skinny_tile_of_width<C, 4>(t);
  if (rows == 3) return skinny_tile_of_width<C, 3>(t);
  if (rows == 2) return skinny_tile_of_width<C, 2>(t);
  return skinny_tile_of_width<C, 1>(t);
}

// The width of the next panel of a matrix. The last two share what is left: one vector is too few to keep the adders busy.
template <class C>
inline int64_t next_panel_columns(int64_t left) {
  const int64_t vectors = padded<C>(left) / kLanes<C>;
  return least(left, (vectors == kSkinnyVectors + 1 ? 2 : kSkinnyVectors) * kLanes<C>);
}

// out [rows,columns] = start + [a, b] B; panels: B [a.depth + b.depth, columns], packed. `out` may be `start`.
template <class C>
inline void skinny_product(int64_t rows, const Factor<C>& a, const Factor<C>& b, const C* panels, int64_t columns,
                           Rows<const C> start, Rows<C> out) {
  for (int64_t c = 0, width; c < columns; c += width) {
    width = next_panel_columns<C>(columns - c);
    SkinnyTile<C> t{a, b, panels + c * (a.depth + b.depth), start, out, width};
    if (start.data) t.start.data += c;
    t.out.data += c;
    for (int64_t left = rows; left > 0;) {
      const int64_t height = left >= 2 * kSkinnyRows || left <= kSkinnyRows ? least(left, kSkinnyRows) : (left + 1) / 2;
      skinny_tile_of_size(height, t);
      t.a.rows.data += height * a.rows.stride, t.b.rows.data += height * b.rows.stride;
      if (start.data) t.start.data += height * start.stride;
      t.out.data += height * out.stride;
      left -= height;
    }
  }
}
template <class C>
inline void skinny_product(int64_t rows, const Factor<C>& a, const C* panels, int64_t columns, Rows<const C> start,
                           Rows<C> out) {
  skinny_product(rows, a, Factor<C>{a.rows, 0}, panels, columns, start, out);
}

// ---- packing ---------------------------------------------------------------------------------------------------------------

// out[c * stride + r] = row(r)[c] for r < rows, c < columns. pad: zeros up to a whole vector of r.
template <class C, class Row>
inline void transpose_rows(const Row& row, int64_t rows, int64_t columns, bool pad, C* out, int64_t stride) {
  constexpr int lanes = kLanes<C>;
  for (int64_t r = 0; r < rows; r += lanes) {
    const int64_t height = least(lanes, rows - r);
    const C* from[lanes];
    for (int64_t i = 0; i < height; ++i) from[i] = row(r + i);
    for (int64_t c = 0; c < columns; c += lanes) {
      const int64_t width = least(lanes, columns - c);
      Vec<C> block[lanes] = {};
      if (height == lanes && width == lanes) {
        UNROLL for (int i = 0; i < lanes; ++i) block[i] = load(from[i] + c);
      } else {
        for (int64_t i = 0; i < height; ++i) block[i] = load_partial(from[i] + c, width);
      }
      transpose<C>(block);
      if (width == lanes && (pad || height == lanes)) {
        UNROLL for (int i = 0; i < lanes; ++i) store(out + (c + i) * stride + r, block[i]);
      } else {
        for (int64_t i = 0; i < width; ++i) store_partial(out + (c + i) * stride + r, block[i], pad ? lanes : height);
      }
    }
  }
}

// Row k of the panels of a matrix [depth, columns].
template <class C>
inline void pack_row_of_panels(const C* row, int64_t columns, int64_t depth, int64_t k, C* panels) {
  for (int64_t c = 0, width; c < columns; c += width) {
    width = next_panel_columns<C>(columns - c);
    pack_row(row + c, width, panels + c * depth + k * padded<C>(width));
  }
}

}  // namespace
}  // namespace routing_ext::cpu
