// TERMINOLOGY
//   K selections, C channels, N decisions.
//   table     [rows,K] preferences, or values, of an agent. Tables are many and small: a launch takes up to 128 of them.
//   part      the decisions of one step: actions at rows [n,K,C]. A launch takes up to 32 of them.
//   own row   the j-th decision has the j-th row; else `row_of` says which, and several decisions may share one.
//
// No sum depends on the order in which blocks or threads run.
#include "policy_gradients.cuh"

#include <type_traits>

#include "../common/host_device.h"
#include "../math/policy_gradients.h"
#include "launch.cuh"
#include "shared_arena.cuh"

namespace routing_ext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

dim3 blocks_for(int64_t items, int64_t items_a_block) { return dim3(static_cast<unsigned>(divide_up(items, items_a_block))); }

// The last of `first[0..n]`, ascending, that is not above i.
__device__ __forceinline__ int interval_of(const int64_t* first, int n, int64_t i) {
  int low = 0, high = n - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first[middle] <= i) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// ---- preference_states -----------------------------------------------------------------------------------------------------

constexpr int kTables = 128;  // of a launch: 3 KB of its arguments

template <class T>
struct RowTable {
  const T* preferences[kTables];
  const T* values[kTables];
  int64_t first_row[kTables];  // of each, among the rows of the launch
  int64_t rows;
  int tables;
};
static_assert(sizeof(RowTable<double>) <= 4000, "kernel arguments have 4 KB on any driver");

// A row of preferences, on a warp.
template <class T>
struct PreferenceRow {
  const T* row;  // [K]
  int64_t at;    // of the row's first element among those of its table
  int table;
  int64_t least;  // the first of the least ones
  T lowest, total;

  __device__ __forceinline__ PreferenceRow(const RowTable<T>& t, int64_t i, int64_t selections) {
    table = interval_of(t.first_row, t.tables, i);
    at = (i - t.first_row[table]) * selections;
    row = t.preferences[table] + at;
    const int lane = threadIdx.x % kWarp;
    lowest = row[0], least = 0;
    for (int64_t k = lane; k < selections; k += kWarp) keep_lower(row[k], k);
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const T other = __shfl_xor_sync(kFullWarp, lowest, distance);
      const int64_t where = __shfl_xor_sync(kFullWarp, least, distance);
      keep_lower(other, where);
    }
    double sum = 0;
    for (int64_t k = lane; k < selections; k += kWarp) sum += shifted_preference(row[k], lowest);
    total = static_cast<T>(sum_of_warp(sum));
  }
  __device__ __forceinline__ T prob(int64_t k) const { return shifted_preference(row[k], lowest) / total; }

  template <class Sum>
  static __device__ __forceinline__ Sum sum_of_warp(Sum value) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kFullWarp, value, distance);
    return value;
  }

 private:
  __device__ __forceinline__ void keep_lower(T value, int64_t k) {
    if (value < lowest || (value == lowest && k < least)) lowest = value, least = k;
  }
};

// A warp a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    preference_states_kernel(int64_t selections, T* states, T* probs, const RowTable<T> __grid_constant__ table) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= table.rows) return;
  const PreferenceRow<T> row(table, i, selections);
  const T* value = table.values[row.table] + row.at;
  for (int64_t k = threadIdx.x % kWarp; k < selections; k += kWarp) {
    const T prob = row.prob(k);
    probs[i * selections + k] = prob;
    states[2 * (i * selections + k)] = log(clamped_prob(prob));
    states[2 * (i * selections + k) + 1] = value[k];
  }
}

// A warp a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    preference_states_backward_kernel(int64_t selections, const T* grad, T* of_preferences, T* of_values,
                                      const RowTable<T> __grid_constant__ table) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= table.rows) return;
  const int lane = threadIdx.x % kWarp;
  const PreferenceRow<T> row(table, i, selections);
  const T* g = grad + 2 * i * selections;
  T *of_preference = of_preferences + i * selections, *of_value = of_values + i * selections;
  T mean = 0;
  for (int64_t k = lane; k < selections; k += kWarp) {
    const T prob = row.prob(k);
    mean += gradient_of_prob(g[2 * k], prob) * prob;
  }
  mean = row.sum_of_warp(mean);
  T sum = 0;
  for (int64_t k = lane; k < selections; k += kWarp) {
    const T own = (gradient_of_prob(g[2 * k], row.prob(k)) - mean) / row.total;
    if (k != row.least) of_preference[k] = own, sum += own;
    of_value[k] = g[2 * k + 1];
  }
  sum = row.sum_of_warp(sum);
  if (lane == 0) of_preference[row.least] = -sum;
}

// launch_tables(table, its first row) for all tables.
template <class T, class LaunchTables>
cudaError_t for_each_table(const PreferenceTables<T>& p, const LaunchTables& launch_tables) {
  int64_t row = 0;
  for (int64_t first = 0; first < p.tables; first += kTables) {
    RowTable<T> table{};
    table.tables = static_cast<int>(smaller(kTables, p.tables - first));
    for (int t = 0; t < table.tables; ++t) {
      table.preferences[t] = p.preferences[first + t];
      if (p.values != nullptr) table.values[t] = p.values[first + t];
      table.first_row[t] = table.rows;
      table.rows += p.rows[first + t];
    }
    if (table.rows == 0) continue;
    const cudaError_t error = launch_tables(table, row);
    if (error != cudaSuccess) return error;
    row += table.rows;
  }
  return cudaSuccess;
}

// ---- decisions -------------------------------------------------------------------------------------------------------------

constexpr int kParts = 32;  // of a launch: 2.3 KB of its arguments

template <class T>
struct PartTable {
  const T* rows[kParts];
  const int64_t* row_of[kParts];  // nullptr: own rows
  const int64_t* actions[kParts];
  const T* returns[kParts];
  int64_t first_decision[kParts + 1];  // among those of the launch
  int64_t first_row[kParts + 1];       // likewise
  int64_t first_element[kParts];       // of the rows, likewise
  int64_t selections[kParts];
  int parts;

  __device__ __forceinline__ int64_t count(int part) const { return first_decision[part + 1] - first_decision[part]; }
  __device__ __forceinline__ int64_t num_rows(int part) const { return first_row[part + 1] - first_row[part]; }
};
static_assert(sizeof(PartTable<double>) <= 4000, "kernel arguments have 4 KB on any driver");

// Where in all decisions, and in all elements of rows, a launch begins.
struct Begin {
  int64_t decision, element;
};

// The first channel of decision i of the launch; nullptr: out of range.
template <class T>
__device__ __forceinline__ const T* taken_at(const PartTable<T>& t, int part, int64_t j, int64_t channels) {
  const int64_t row = t.row_of[part] == nullptr ? j : t.row_of[part][j], action = t.actions[part][j];
  if (row < 0 || row >= t.num_rows(part) || action < 0 || action >= t.selections[part]) return nullptr;
  return t.rows[part] + (row * t.selections[part] + action) * channels;
}

// A thread a decision.
template <class T>
__global__ void __launch_bounds__(kThreads)
    taken_kernel(int64_t channels, int64_t count, int64_t begin, T* taken, const PartTable<T> __grid_constant__ table) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= table.first_decision[table.parts]) return;
  const int part = interval_of(table.first_decision, table.parts, i);
  const T* at = taken_at(table, part, i - table.first_decision[part], channels);
  for (int64_t c = 0; c < channels; ++c) taken[c * count + begin + i] = at == nullptr ? T(0) : at[c];
}

// A thread a decision.
template <class T>
__global__ void __launch_bounds__(kThreads) wpl_losses_kernel(int64_t channels, int64_t count, int64_t begin, T* losses,
                                                              T* factors, const PartTable<T> __grid_constant__ table) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= table.first_decision[table.parts]) return;
  const int part = interval_of(table.first_decision, table.parts, i);
  const int64_t j = i - table.first_decision[part], n = begin + i;
  const T* at = taken_at(table, part, j, channels);
  const WplTerms<T> terms = at == nullptr ? WplTerms<T>{0, 0, 0} : wpl_terms(at[0], at[1], table.returns[part][j]);
  losses[n] = terms.loss, factors[n] = terms.of_policy, factors[count + n] = terms.of_value;
}

// Gradients of decisions, of the first channels.
template <class T>
struct TakenGradients {
  const T* grads[kTakenMaxChannels];  // [N] each
  int64_t grad_channels, channels;
  const T* scale;  // [N]; nullptr: 1

  __device__ __forceinline__ T at(int64_t channel, int64_t n) const {
    return scale == nullptr ? grads[channel][n] : scale[n] * grads[channel][n];
  }
};

// Own rows. A thread a row's element [K,C], so that each is written once.
template <class T>
__global__ void __launch_bounds__(kThreads)
    taken_backward_own_kernel(TakenGradients<T> g, Begin begin, T* found, int64_t elements,
                              const PartTable<T> __grid_constant__ table) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= elements) return;
  const int part = interval_of(table.first_element, table.parts, e);
  const int64_t at = e - table.first_element[part], channel = at % g.channels, cell = at / g.channels;
  const int64_t j = cell / table.selections[part], k = cell % table.selections[part];
  const bool is_taken = channel < g.grad_channels && j < table.count(part) && table.actions[part][j] == k;
  found[begin.element + e] = is_taken ? g.at(channel, begin.decision + table.first_decision[part] + j) : T(0);
}

// Shared rows: block (row, columns and channel). Each warp takes every kWarps-th group of 32 decisions and adds up those of
// the row in its own sums, in their order; a lane has every 32nd column. The sums of the warps are added in their order.
constexpr int64_t kColumns = 256;  // of a block: 16 KB of sums in float64

template <class T>
__global__ void __launch_bounds__(kThreads)
    taken_backward_shared_kernel(TakenGradients<T> g, Begin begin, T* found, const PartTable<T> __grid_constant__ table) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int part = interval_of(table.first_row, table.parts, blockIdx.x);
  const int64_t selections = table.selections[part], row = blockIdx.x - table.first_row[part];
  const int64_t channel = blockIdx.y % g.channels, first = blockIdx.y / g.channels * kColumns;
  if (first >= selections) return;
  const int64_t columns = smaller(kColumns, selections - first);

  SharedArena arena;
  T* sums = arena.take<T>(kWarps * kColumns);
  T* own = sums + warp * kColumns;
  for (int64_t k = lane; k < columns; k += kWarp) own[k] = 0;
  const int64_t count = channel < g.grad_channels ? table.count(part) : 0;
  for (int64_t group = warp * kWarp; group < count; group += kThreads) {
    const int64_t j = group + lane;
    int64_t column = -1;
    T value = 0;
    if (j < count && table.row_of[part][j] == row) {
      column = table.actions[part][j] - first;
      if (column >= 0 && column < columns) value = g.at(channel, begin.decision + table.first_decision[part] + j);
    }
    unsigned left = __ballot_sync(kFullWarp, column >= 0 && column < columns);
    while (left != 0) {
      const int source = __ffs(static_cast<int>(left)) - 1;
      const int where = __shfl_sync(kFullWarp, static_cast<int>(column), source);
      const T added = __shfl_sync(kFullWarp, value, source);
      if (where % kWarp == lane) own[where] += added;
      left &= left - 1;
    }
  }
  __syncthreads();
  T* out = found + begin.element + table.first_element[part] + (row * selections + first) * g.channels + channel;
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    T sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * kColumns + k];
    out[k * g.channels] = sum;
  }
}

size_t taken_backward_shared_bytes(size_t element) {
  SharedArena arena;
  if (element == sizeof(double)) {
    arena.reserve<double>(kWarps * kColumns);
  } else {
    arena.reserve<float>(kWarps * kColumns);
  }
  return arena.bytes();
}

// launch_parts(table, where it begins) for all parts.
template <class T, class LaunchParts>
cudaError_t for_each_parts(const DecisionParts<T>& d, const T* const* returns, const LaunchParts& launch_parts) {
  Begin begin{0, 0};
  for (int64_t first = 0; first < d.parts; first += kParts) {
    PartTable<T> table{};
    table.parts = static_cast<int>(smaller(kParts, d.parts - first));
    int64_t elements = 0;
    for (int p = 0; p < table.parts; ++p) {
      table.rows[p] = d.rows[first + p];
      if (d.row_of != nullptr) table.row_of[p] = d.row_of[first + p];
      table.actions[p] = d.actions[first + p];
      if (returns != nullptr) table.returns[p] = returns[first + p];
      table.selections[p] = d.selections[first + p];
      table.first_decision[p + 1] = table.first_decision[p] + d.counts[first + p];
      table.first_row[p + 1] = table.first_row[p] + d.num_rows[first + p];
      table.first_element[p] = elements;
      elements += d.num_rows[first + p] * d.selections[first + p] * d.channels;
    }
    const cudaError_t error = launch_parts(table, begin, elements);
    if (error != cudaSuccess) return error;
    begin.decision += table.first_decision[table.parts];
    begin.element += elements;
  }
  return cudaSuccess;
}

}  // namespace

template <class T>
cudaError_t launch_preference_states(const PreferenceTables<T>& p, T* states, T* probs, cudaStream_t stream) {
  return for_each_table(p, [&](const RowTable<T>& table, int64_t row) {
    return launch(preference_states_kernel<T>, blocks_for(table.rows, kWarps), dim3(kThreads), 0, stream, p.selections,
                  states + 2 * row * p.selections, probs + row * p.selections, table);
  });
}

template <class T>
cudaError_t launch_preference_states_backward(const PreferenceTables<T>& p, const T* grad, T* of_preferences, T* of_values,
                                              cudaStream_t stream) {
  return for_each_table(p, [&](const RowTable<T>& table, int64_t row) {
    const int64_t at = row * p.selections;
    return launch(preference_states_backward_kernel<T>, blocks_for(table.rows, kWarps), dim3(kThreads), 0, stream,
                  p.selections, grad + 2 * at, of_preferences + at, of_values + at, table);
  });
}

template <class T>
cudaError_t launch_taken(const DecisionParts<T>& d, T* taken, cudaStream_t stream) {
  return for_each_parts<T>(d, nullptr, [&](const PartTable<T>& table, Begin begin, int64_t) {
    const int64_t decisions = table.first_decision[table.parts];
    if (decisions == 0) return cudaSuccess;
    return launch(taken_kernel<T>, blocks_for(decisions, kThreads), dim3(kThreads), 0, stream, d.channels, d.count,
                  begin.decision, taken, table);
  });
}

template <class T>
cudaError_t launch_wpl_losses(const DecisionParts<T>& d, const T* const* returns, T* losses, T* factors, cudaStream_t stream) {
  if (d.channels < 2) return cudaErrorInvalidValue;
  return for_each_parts<T>(d, returns, [&](const PartTable<T>& table, Begin begin, int64_t) {
    const int64_t decisions = table.first_decision[table.parts];
    if (decisions == 0) return cudaSuccess;
    return launch(wpl_losses_kernel<T>, blocks_for(decisions, kThreads), dim3(kThreads), 0, stream, d.channels, d.count,
                  begin.decision, losses, factors, table);
  });
}

template <class T>
cudaError_t launch_taken_backward(const DecisionParts<T>& d, const T* const* grads, int64_t grad_channels, const T* scale,
                                  T* found, cudaStream_t stream) {
  if (grad_channels > kTakenMaxChannels || grad_channels > d.channels) return cudaErrorInvalidValue;
  TakenGradients<T> g{};
  for (int64_t c = 0; c < grad_channels; ++c) g.grads[c] = grads[c];
  g.grad_channels = grad_channels, g.channels = d.channels, g.scale = scale;
  return for_each_parts<T>(d, nullptr, [&](const PartTable<T>& table, Begin begin, int64_t elements) {
    if (elements == 0) return cudaSuccess;
    if (d.row_of == nullptr) {
      return launch(taken_backward_own_kernel<T>, blocks_for(elements, kThreads), dim3(kThreads), 0, stream, g, begin, found,
                    elements, table);
    }
    int64_t most = 0;
    for (int p = 0; p < table.parts; ++p) most = larger(most, table.selections[p]);
    const dim3 grid(static_cast<unsigned>(table.first_row[table.parts]),
                    static_cast<unsigned>(divide_up(most, kColumns) * d.channels));
    return launch(taken_backward_shared_kernel<T>, grid, dim3(kThreads), taken_backward_shared_bytes(sizeof(T)), stream, g,
                  begin, found, table);
  });
}

#define INSTANTIATE(T)                                                                                                \
  template cudaError_t launch_preference_states(const PreferenceTables<T>&, T*, T*, cudaStream_t);                    \
  template cudaError_t launch_preference_states_backward(const PreferenceTables<T>&, const T*, T*, T*, cudaStream_t); \
  template cudaError_t launch_taken(const DecisionParts<T>&, T*, cudaStream_t);                                       \
  template cudaError_t launch_wpl_losses(const DecisionParts<T>&, const T* const*, T*, T*, cudaStream_t);             \
  template cudaError_t launch_taken_backward(const DecisionParts<T>&, const T* const*, int64_t, const T*, T*, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(double);
#undef INSTANTIATE

}  // namespace routing_ext::cuda
