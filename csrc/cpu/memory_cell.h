// A memory network as its kernels want it, from the tensors of the caller. Shared by whole sequences and single steps.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "../common/memory_sequence_args.h"
#include "kernels_of_dtype.h"
#include "memory_cell_kernels.h"
#include "pool.h"
#include "threads.h"

namespace routing_ext::cpu {

// Of MemorySizes or MemoryStepSizes.
template <class Sizes>
CellShape cell_shape(const Sizes& s, double clip_value) {
  return {{s.dnc ? MemoryKind::dnc : MemoryKind::ntm, s.locations, s.word, s.reads, s.writes, s.shifts, s.options},
          s.input,
          s.hidden,
          s.output,
          clip_value,
          s.deaf};
}

// C: float or double, const for what the caller gave.
template <class C>
class WeightPointers {
 public:
  WeightPointers(const MemorySizes& s, const std::vector<at::Tensor>& weights) {
    const bool joined = !s.first_rows.empty();
    for (size_t p = 0; !weights.empty() && p < s.interface.size(); ++p) {
      const size_t at = joined ? 4 : 4 + 2 * p;
      const int64_t row = joined ? s.first_rows[p] : 0;
      C *const weight = data_of<C>(weights[at]) + row * s.hidden, *const bias = data_of<C>(weights[at + 1]) + row;
      for (int64_t i = 0; i < s.interface[p]; ++i) rows_.push_back(weight + i * s.hidden), biases_.push_back(bias + i);
    }
    const auto data = [&](size_t i) { return i < weights.size() ? data_of<C>(weights[i]) : nullptr; };
    const size_t norm = s.norm_at(), output = norm + (s.options.normalises ? 2 : 0);
    cell_ = {data(0),        data(1), data(2), data(3),      rows_.data(),
             biases_.data(), nullptr, nullptr, data(output), data(output + 1)};
    if (s.options.normalises) cell_.norm = data(norm), cell_.norm_bias = data(norm + 1);
  }
  WeightPointers(const WeightPointers&) = delete;
  const CellWeights<C>& operator*() const { return cell_; }

 private:
  std::vector<C*> rows_, biases_;
  CellWeights<C> cell_;
};

// Of the tensors of a state in the order of MemorySizes::state_shapes, any of them undefined, or none at all.
template <class C>
CellState<C> cell_state(const MemorySizes& s, const std::vector<at::Tensor>& state) {
  if (state.empty()) return {};
  size_t i = 0;
  const auto next = [&] { return data_of<C>(state[i++]); };
  CellState<C> cell{};
  cell.memory = next();
  if (s.dnc) cell.usage = next(), cell.precedence = next(), cell.link = next();
  cell.write_weights = next(), cell.read_weights = next();
  cell.hidden = next(), cell.cell = next(), cell.read_vectors = next();
  return cell;
}

// The threads that work on one sample: several where it is large and there are at least twice as many threads as samples.
class SampleTeam {
 public:
  SampleTeam(const CellShape& s, int64_t batch, int64_t padded_locations, const at::TensorOptions& options) {
    const bool is_large = s.access.linked() && s.access.locations >= kTeamLocations;
    const bool is_alone = is_large && 2 * batch <= at::get_num_threads() && !at::in_parallel_region();
    team_.parts = is_alone ? at::get_num_threads() : 1;
    if (!is_alone) return;
    memory_ = pooled_empty({Team::size(team_.parts, padded_locations)}, options);
    team_.memory = memory_.mutable_data_ptr();
    team_.run = [](const Team& team, void (*f)(void*, int64_t), void* argument) {
      in_threads(team.parts, [&](int64_t part) { f(argument, part); });
    };
  }
  // nullptr if it is one thread.
  const Team* get() const { return team_.parts > 1 ? &team_ : nullptr; }

 private:
  at::Tensor memory_;
  Team team_{};
};

// Multiplications of one sample in one step forward, roughly.
inline int64_t cell_cost(const CellShape& s) {
  const AccessShape& a = s.access;
  const int64_t link = a.linked() ? a.writes * (1 + a.reads) * a.locations : 0;
  return s.gates() * (s.input + s.seen()) + s.hidden * a.interface_size() + s.output * s.features() +
         a.locations * (link + 3 * a.word * (a.writes + a.reads));
}

}  // namespace routing_ext::cpu
