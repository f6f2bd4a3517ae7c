// A whole sequence of a memory network in one launch, between its products for all steps: what memory_sequence.cpp asks of the
// kernels. T steps, B samples, H hidden units, F = H + R*W features, IF elements of the interface. Times are 0 to T: the
// initial state, then that after each step.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "memory_cell.cuh"

namespace routing_ext::cuda {

// One array of each sample at each time. Either there is place for all times, or for two that take turns.
template <class T>
struct TimedRows {
  T* data = nullptr;
  int64_t stride = 0, time_stride = 0;  // from sample to sample, from time to time
  bool in_turns = false;

  __host__ __device__ Rows<T> at(int64_t time) const {
    if (data == nullptr) return {};
    return {data + (in_turns ? time % 2 : time) * time_stride, stride};
  }
};

// All of the accessor's state but the link.
template <class T>
struct TimedState {
  TimedRows<T> memory, usage, precedence, write_weights, read_weights;

  template <class Other>
  __host__ __device__ StepState<Other> at(int64_t time, const Rows<Other>& link) const {
    const auto rows = [time](const TimedRows<T>& all) {
      const Rows<T> found = all.at(time);
      return Rows<Other>{found.data, found.stride};
    };
    return {rows(memory), rows(usage), rows(precedence), link, rows(write_weights), rows(read_weights)};
  }
};

// Where the link of each time lies.
template <class T>
struct LinkTimes {
  int64_t size = 0, batch = 0, steps = 0;  // size: of a sample, 0 if there is no link; B; T
  Rows<const T> first;                     // of time 0; not there: zero
  Rows<T> last;                            // of time T; not there: it lies as the others do
  T *kept = nullptr, *others = nullptr;    // [.,B,size] of times every, 2 every, ...; [turns,B,size] of the others
  unsigned every = 0, turns = 1;           // every 0: none is kept

  __host__ __device__ Rows<T> made(int64_t time) const {
    if (size == 0) return {};
    if (time == steps && last.data != nullptr) return last;
    const auto t = static_cast<unsigned>(time);  // which is divided faster
    if (every > 0 && t % every == 0) return {kept + (t / every - 1) * batch * size, size};
    return {others + (t - 1) % turns * batch * size, size};
  }
  __host__ __device__ Rows<const T> at(int64_t time) const {
    if (time == 0) return first;
    const Rows<T> rows = made(time);
    return {rows.data, rows.stride};
  }
};

struct SequenceShape {
  StepShape step;
  int64_t steps, hidden;  // T, H; H 0: the accessor alone

  int64_t features() const { return hidden + step.reads * step.word; }
};

template <class T>
struct SequenceForward {
  SequenceSamples samples;
  T clip, initial_read;                           // of the hidden state; of the read vectors of a sample that begins anew
  const T *recurrent, *interface_weights;         // [4H,F], [IF,H]
  const T* interface_bias;                        // [IF]
  T epsilon;                                      // of the interface's normalisation, if it is asked for, and so are these:
  const T *norm, *norm_bias;                      // [IF] each: its weight and bias
  TimedRows<T> normed, scale;                     // [IF], [1]: see norm.cuh
  TimedRows<const T> interface;                   // [IF] of the step that begins at a time, without a controller
  TimedRows<T> features, cell, gates, tanh_cell;  // [F], [H], [4H], [H]; gates: the share of the inputs is there
  TimedState<T> state;                            // time 0 is there, and so it is of features and cell
  StepState<const T> initial;                     // with resets
  LinkTimes<T> link;
  TimedRows<T> record;                        // nullptr: there will be no backward pass
  StepState<T> last;                          // is set to the state at the end of each sample, and so are these:
  Rows<T> last_hidden, last_cell, last_read;  // [H], [H], [R*W]
};

template <class T>
struct SequenceBackward {
  SequenceSamples samples;
  T clip;
  const T *recurrent, *interface_weights, *norm;
  TimedRows<const T> cell, gates, tanh_cell, normed, scale, record;
  TimedState<const T> state;
  StepState<const T> initial;
  LinkTimes<T> link;          // those that are not kept are made again
  TimedRows<T> of_features;   // [F] of all times: from the outputs and the final states, becomes the whole
  TimedRows<T> of_gates;      // [4H] of the step that begins at a time, before the activations; is set for all samples
  TimedRows<T> of_interface;  // [IF] likewise; is set for samples that take the step
  TimedRows<T> of_norm, of_norm_bias;  // [IF] each: the step's share of those of weight and bias; is set for all samples
  StepState<T> of_state;               // of the final state, becomes that of time 0
  Rows<T> of_cell;                     // likewise
  Rows<T> of_reset_memory;             // added to, perhaps not there
};

// One block takes a sample, or so many that are a cluster, where the device has clusters and runs all of them at once.
constexpr int kBlocksOfSample[] = {1, 2, 4, 8};

// What fits the shared memory of these blocks on the current device: nothing, the vectors of a step, or the weights of the
// controller as well. These are held there where all blocks run at once, each on a multiprocessor of its own.
enum class SequenceFit { none, vectors, weights };

// How a pass goes: by steps, or in one launch with so many blocks for a sample, and what fits them.
struct SequenceWay {
  int blocks = 0;  // 0: by steps
  SequenceFit fit = SequenceFit::none;
};

template <class T>
SequenceFit dnc_sequence_fit(const SequenceShape& shape, int blocks);
template <class T>
cudaError_t launch_dnc_sequence(const SequenceShape& shape, SequenceWay way, const SequenceForward<T>& sequence,
                                cudaStream_t stream);

template <class T>
SequenceFit dnc_sequence_backward_fit(const SequenceShape& shape, int blocks);
template <class T>
cudaError_t launch_dnc_sequence_backward(const SequenceShape& shape, SequenceWay way, const SequenceBackward<T>& sequence,
                                         cudaStream_t stream);

template <class T>
SequenceFit ntm_sequence_fit(const SequenceShape& shape, int blocks);
template <class T>
cudaError_t launch_ntm_sequence(const SequenceShape& shape, SequenceWay way, const SequenceForward<T>& sequence,
                                cudaStream_t stream);

template <class T>
SequenceFit ntm_sequence_backward_fit(const SequenceShape& shape, int blocks);
template <class T>
cudaError_t launch_ntm_sequence_backward(const SequenceShape& shape, SequenceWay way, const SequenceBackward<T>& sequence,
                                         cudaStream_t stream);

}  // namespace routing_ext::cuda
