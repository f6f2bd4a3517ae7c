// Threads that work on one sample together, and how they add up. Every phase of a step is a template over the group: a block
// of threads, or a cluster of blocks (cluster.cuh).
//
// A phase finds what it reads published, and does not publish what it writes: between two phases, of which the later one
// reads what the earlier one wrote, or uses the same `partials`, the caller puts group.sync(). Sums are made in an order that
// depends on the sizes alone: results repeat bit for bit.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "../../common/host_device.h"
#include "../launch.cuh"

namespace routing_ext::cuda {

class BlockGroup {
 public:
  __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int size() const { return static_cast<int>(blockDim.x); }  // a multiple of kWarp
  __device__ __forceinline__ int lane() const { return rank() % kWarp; }
  __device__ __forceinline__ int warp() const { return rank() / kWarp; }
  __device__ __forceinline__ int warps() const { return size() / kWarp; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }

  // Of the blocks that are the group: how many, which is this one, its threads alone, and where an array in this one's shared
  // memory lies in another's.
  __device__ __forceinline__ static constexpr int blocks() { return 1; }
  __device__ __forceinline__ static constexpr int block() { return 0; }
  __device__ __forceinline__ BlockGroup in_block() const { return {}; }
  template <class T>
  __device__ __forceinline__ static T* of_block(T* own, int) {
    return own;
  }
};

constexpr int kMaxGroup = 256;  // threads of a block
constexpr int kMaxWarps = kMaxGroup / kWarp;

// How many threads work on a sample of so many locations: more would wait at each barrier and have nothing to do between them.
inline int group_threads(int64_t locations) {
  return locations <= 8 ? 32 : locations <= 32 ? 64 : locations <= 64 ? 128 : kMaxGroup;
}

// Heads are taken by one or by up to four at a time, with sums in registers: f(Heads<1 or 4>(), first head, how many).
template <int n>
struct Heads {
  static constexpr int kMost = n;
};
constexpr int kHeads = 4;
template <class F>
__device__ __forceinline__ void for_each_heads(int heads, const F& f) {
#pragma unroll 1
  for (int h = 0; h < heads; h += kHeads) {
    if (heads - h == 1) {
      f(Heads<1>(), h, 1);
    } else {
      f(Heads<kHeads>(), h, static_cast<int>(smaller(heads - h, kHeads)));
    }
  }
}

// Phases count elements of a sample's rows in int: whether so many are possible.
inline bool countable(int64_t elements) { return elements <= INT32_MAX - kMaxGroup * kWarp; }

// f(i) for i in [0, n), shared by the threads.
template <class Group, class F>
__device__ __forceinline__ void for_each(const Group& group, int n, const F& f) {
#pragma unroll 1
  for (int i = group.rank(); i < n; i += group.size()) f(i);
}

// ---- in a warp -------------------------------------------------------------------------------------------------------------

// Over the team of `lanes` lanes, a power of two; every lane of the warp calls it, and every lane of the team gets the result.
template <int count, class T>
__device__ __forceinline__ void team_sums(T (&x)[count], int lanes = kWarp) {
#pragma unroll 1
  for (int d = lanes / 2; d > 0; d /= 2) {
#pragma unroll
    for (int k = 0; k < count; ++k) x[k] += __shfl_xor_sync(kFullWarp, x[k], d);
  }
}
template <class T>
__device__ __forceinline__ T team_sum(T x, int lanes = kWarp) {
  T one[1] = {x};
  team_sums(one, lanes);
  return one[0];
}
template <class T>
__device__ __forceinline__ T team_product(T x, int lanes = kWarp) {
#pragma unroll 1
  for (int d = lanes / 2; d > 0; d /= 2) x *= __shfl_xor_sync(kFullWarp, x, d);
  return x;
}
template <class T>
__device__ __forceinline__ T warp_max(T x) {
  for (int d = kWarp / 2; d > 0; d /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, x, d);
    x = other > x ? other : x;
  }
  return x;
}

// How many lanes take a row of `width` elements together, so that each has up to four of them.
__host__ __device__ inline int lanes_for(int64_t width) {
  int lanes = 1;
  while (lanes < kWarp && lanes * 4 < width) lanes *= 2;
  return lanes;
}

// f(row, lane, is_there) for each of `rows` rows, which a team of `lanes` lanes takes together. All lanes of a warp come
// along: those without a row get the last one, and is_there false.
template <class Group, class F>
__device__ __forceinline__ void for_each_row(const Group& group, int rows, int lanes, const F& f) {
  const int teams = kWarp / lanes, team = group.lane() / lanes, lane = group.lane() % lanes;
#pragma unroll 1
  for (int first = group.warp() * teams; first < rows; first += group.warps() * teams) {
    const int row = first + team;
    f(row < rows ? row : rows - 1, lane, row < rows);
  }
}

// ---- in the group ----------------------------------------------------------------------------------------------------------

// Rows in pieces, one or more a warp: who has element i of a row. A warp meets the same elements in each loop over pieces.
// There are no more than one block's warps can take: who needs a sum adds them up.
struct Pieces {
  int rows, n, each;  // pieces of each row

  template <class Group>
  __device__ __forceinline__ Pieces(const Group& group, int rows_, int n_) : rows(rows_), n(n_), each(1) {
    const int warps = group.in_block().warps();
    if (rows > 0 && rows < warps) each = warps / rows;
  }

  // f(row, index of the piece among all).
  template <class Group, class F>
  __device__ __forceinline__ void for_each_piece(const Group& group, const F& f) const {
#pragma unroll 1
    for (int p = group.warp(); p < rows * each; p += group.warps()) f(p / each, p);
  }
  // f(i) for this lane's elements of a piece.
  template <class Group, class F>
  __device__ __forceinline__ void for_each_element(const Group& group, int piece, const F& f) const {
#pragma unroll 4
    for (int i = piece % each * kWarp + group.lane(); i < n; i += each * kWarp) f(i);
  }
};

// Elements of `partials` that sums of `rows` rows need, each of `count` sums.
__host__ __device__ constexpr int64_t partials_size(int64_t rows, int64_t count) { return count * larger(rows, kMaxWarps); }

// Sums over each row: of(row) gives a function (i, sums) that adds element i's share. The total is there after a barrier.
template <int count, class T>
struct RowSums {
  Pieces pieces;
  T* partials;  // [count,rows,pieces]

  template <class Group, class F>
  __device__ __forceinline__ RowSums(const Group& group, int rows, int n, T* partials_, const F& of)
      : pieces(group, rows, n), partials(partials_) {
    pieces.for_each_piece(group, [&](int row, int piece) {
      const auto add = of(row);
      T sums[count] = {};
      pieces.for_each_element(group, piece, [&](int i) { add(i, sums); });
      team_sums(sums);
      if (group.lane() != 0) return;
#pragma unroll
      for (int k = 0; k < count; ++k) partials[k * pieces.rows * pieces.each + piece] = sums[k];
    });
  }
  __device__ __forceinline__ T total(int row, int k = 0) const {
    const T* const of_row = partials + (k * pieces.rows + row) * pieces.each;
    T sum = of_row[0];
#pragma unroll 1
    for (int p = 1; p < pieces.each; ++p) sum += of_row[p];
    return sum;
  }
};

template <class T>
__device__ __forceinline__ T exponential(T x) {
  if constexpr (sizeof(T) == 4) return expf(x);
  if constexpr (sizeof(T) == 8) return exp(x);
}

// Softmax over each row, in two phases with a barrier between them. of(row) gives a function of i, the scores.
template <class T>
struct Softmax {
  Pieces pieces;
  T* out;       // [rows,n]: after the first phase exponentials of the scores beyond the largest of the piece
  T* partials;  // [2,rows,pieces]: the largest, and the sum of the exponentials

  template <class Group, class F>
  __device__ __forceinline__ Softmax(const Group& group, int rows, int n, T* out_, T* partials_, const F& of)
      : pieces(group, rows, n), out(out_), partials(partials_) {
    pieces.for_each_piece(group, [&](int row, int piece) {
      const auto score_of = of(row);
      T* const own = out + row * n;
      T most = -INFINITY, sum = 0;
      pieces.for_each_element(group, piece, [&](int i) {
        const T score = score_of(i);
        own[i] = score;
        most = score > most ? score : most;
      });
      most = warp_max(most);
      pieces.for_each_element(group, piece, [&](int i) { sum += own[i] = exponential(own[i] - most); });
      sum = team_sum(sum);
      if (group.lane() == 0) partials[piece] = most, partials[pieces.rows * pieces.each + piece] = sum;
    });
  }
  template <class Group>
  __device__ __forceinline__ void finish(const Group& group) const {
    finish(group, [](int, int, T) {});
  }
  // also(row, i, weight).
  template <class Group, class F>
  __device__ __forceinline__ void finish(const Group& group, const F& also) const {
    pieces.for_each_piece(group, [&](int row, int piece) {
      const T *const most = partials + row * pieces.each, *const sums = most + pieces.rows * pieces.each;
      T top = most[0], total = 0;
#pragma unroll 1
      for (int p = 1; p < pieces.each; ++p) top = most[p] > top ? most[p] : top;
#pragma unroll 1
      for (int p = 0; p < pieces.each; ++p) total += sums[p] * exponential(most[p] - top);
      const T scale = exponential(partials[piece] - top) / total;
      T* const own = out + row * pieces.n;
      pieces.for_each_element(group, piece, [&](int i) { also(row, i, own[i] *= scale); });
    });
  }
};

// ---- matrices --------------------------------------------------------------------------------------------------------------

template <class T>
constexpr int kColumns = 16 / sizeof(T);  // that a lane holds at a time

// Of each block of a group of so many: what its warps say, and if it is not alone, what it tells the others.
template <class T>
__host__ __device__ constexpr int64_t column_partials_size(int64_t column_sums, int64_t cols, int blocks) {
  return column_sums * (kMaxGroup * kColumns<T> + (blocks > 1 ? cols : 0));
}

// The sum of what each block has at the same place of an array of its own, after a barrier.
template <class Group, class T>
__device__ __forceinline__ T sum_of_blocks(const Group& group, T* own, int i) {
  T sum = 0;
#pragma unroll 1
  for (int b = 0; b < group.blocks(); ++b) sum += group.of_block(own, b)[i];
  return sum;
}

// The columns of a matrix that a lane holds, and their elements of a row. All of a row are loaded before any is stored, or
// each load would wait for the one before: the compiler does not know that they lie in different places.
template <class T>
struct OwnColumns {
  int cols;
  int own[kColumns<T>] = {};

  __device__ __forceinline__ void hold(int c, int col) { own[c] = col; }
  // row nullptr: zero.
  __device__ __forceinline__ void load(const T* row, T (&x)[kColumns<T>]) const {
#pragma unroll
    for (int c = 0; c < kColumns<T>; ++c) x[c] = row != nullptr && own[c] < cols ? row[own[c]] : T(0);
  }
};

// Passes over a matrix [rows,cols] once, with sums along its rows and along its columns. A team of `lanes` lanes walks down
// rows over a tile of columns. body's members:
//   column(c, col)                     this lane's c-th column will be `col`, which may be beyond the last
//   row(row)                           this team's row
//   element(row, col, c, along, down)  adds to along[row_sums] and to down[column_sums][c]
//   row_sums(row, along, is_first)     by one lane, for each tile of columns
//   column_sums(col, total)            by one thread, for each column; total[column_sums]
// partials [column_partials_size], of the block. A barrier stands between row_sums and column_sums, and at the end.
template <int row_sums, int column_sums, class T, class Group, class Body>
__device__ __forceinline__ void sweep(const Group& group, int rows, int cols, int lanes, T* partials, Body& body) {
  constexpr int columns = kColumns<T>;
  const int teams = kWarp / lanes, team = group.lane() / lanes, lane = group.lane() % lanes;
  const int tile = columns * lanes;
  const BlockGroup in_block = group.in_block();
  T* const of_block = partials + column_sums * kMaxGroup * columns;  // [sums,cols]
#pragma unroll 1
  for (int first = 0; first < cols; first += tile) {
    T down[column_sums][columns] = {};
#pragma unroll
    for (int c = 0; c < columns; ++c) body.column(c, first + c * lanes + lane);
#pragma unroll 1
    for (int base = group.warp() * teams; base < rows; base += group.warps() * teams) {
      const int row = base + team;
      const bool is_there = row < rows;
      T along[row_sums == 0 ? 1 : row_sums] = {};
      if (is_there) {
        body.row(row);
#pragma unroll
        for (int c = 0; c < columns; ++c) {
          const int col = first + c * lanes + lane;
          if (col < cols) body.element(row, col, c, along, down);
        }
      }
      if constexpr (row_sums > 0) {
        team_sums(along, lanes);
        if (is_there && lane == 0) body.row_sums(row, along, first == 0);
      }
    }
    // Over the teams of the warp, then over the warps: partials [warps,sums,tile].
#pragma unroll 1
    for (int d = lanes; d < kWarp; d *= 2) {
#pragma unroll
      for (int k = 0; k < column_sums; ++k) {
#pragma unroll
        for (int c = 0; c < columns; ++c) down[k][c] += __shfl_xor_sync(kFullWarp, down[k][c], d);
      }
    }
#pragma unroll
    for (int k = 0; k < column_sums; ++k) {
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        if (team == 0) partials[(in_block.warp() * column_sums + k) * tile + c * lanes + lane] = down[k][c];
      }
    }
    in_block.sync();
    for_each(in_block, static_cast<int>(smaller(tile, cols - first)), [&](int j) {
      T total[column_sums] = {};
#pragma unroll 1
      for (int w = 0; w < in_block.warps(); ++w) {
#pragma unroll
        for (int k = 0; k < column_sums; ++k) total[k] += partials[(w * column_sums + k) * tile + j];
      }
      if (group.blocks() == 1) {
        body.column_sums(first + j, total);
      } else {
#pragma unroll
        for (int k = 0; k < column_sums; ++k) of_block[k * cols + first + j] = total[k];
      }
    });
    in_block.sync();
  }
  if (group.blocks() == 1) return;
  group.sync();
  for_each(group, cols, [&](int j) {
    T total[column_sums];
#pragma unroll
    for (int k = 0; k < column_sums; ++k) total[k] = sum_of_blocks(group, of_block + k * cols, j);
    body.column_sums(j, total);
  });
  group.sync();
}

}  // namespace routing_ext::cuda
