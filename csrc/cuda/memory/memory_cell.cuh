// What of a memory network over a sequence is neither a product of matrices nor the accessor: the LSTM cell, the interface's
// normalisation, the logistic function of the outputs, and what moves states and their gradients. See memory_sequence.cpp.
//
// T steps, B samples, H hidden units, R*W elements of read vectors; F = H + R*W features: the hidden state, then the read
// vectors. C is float or double.
#pragma once
#include "step.cuh"

namespace routing_ext::cuda {

// StepSamples of all steps.
struct SequenceSamples {
  const int64_t* lengths;  // [B], from 0 to T; nullptr: all take all steps
  const bool* resets;      // [T,B]; nullptr: none begins anew
  int64_t batch;

  __host__ __device__ StepSamples at(int64_t time) const {
    return {lengths, time, resets != nullptr ? resets + time * batch : nullptr};
  }
  // How many steps a sample takes, of so many.
  __device__ int64_t end(int64_t sample, int64_t steps) const { return lengths != nullptr ? lengths[sample] : steps; }
};

template <class C>
struct LstmForward {
  StepSamples samples;
  int64_t batch, hidden;  // B, H
  C clip;
  Rows<const C> cell_before;    // [H]; a sample that begins anew has zero instead
  Rows<C> gates;                // [4H]: i, f, g, o before their activations, and behind them afterwards
  Rows<C> cell, tanh_cell, to;  // [H] each; to: the hidden state
};

template <class C>
struct LstmBackward {
  StepSamples samples;
  int64_t batch, hidden;
  C clip;
  Rows<const C> cell_before, gates, tanh_cell;
  Rows<const C> grad_hidden;  // [H]
  Rows<C> grad_cell;          // [H]: of the cell; becomes that of the cell before
  Rows<C> grad_gates;         // [4H]: before their activations; zero for samples that do not take the step
  Rows<C> carried_gates;      // [4H]: the same, but zero for those that begin anew; perhaps not there
};

// The interface of each sample, normalised, see norm.cuh.
template <class C>
struct NormForward {
  StepSamples samples;
  int64_t batch, size;  // B, IF
  C epsilon;
  const C *weight, *bias;  // [IF]
  Rows<C> x;               // [IF]: becomes the result
  Rows<C> normed, scale;   // [IF], [1]
};

template <class C>
struct NormBackward {
  StepSamples samples;
  int64_t batch, size;
  const C* weight;
  Rows<const C> normed, scale;
  Rows<C> grad;                    // [IF]: of the result, becomes that of x
  Rows<C> grad_weight, grad_bias;  // [IF]: this step's share; zero for samples that do not take the step
};

// Rows of the times from `time` on, B of each: to = factor * from. Zero for samples that do not take the step.
template <class C>
struct SelectRows {
  SequenceSamples samples;
  int64_t time, steps, width;
  Rows<const C> from, factor;  // [width]; factor not there: one
  Rows<C> to;                  // [width]
  // Whether a sample that begins anew has `hidden` zeros and then `initial` instead.
  bool anew;
  int64_t hidden;
  C initial;
};

// Rows of all times: y = sigmoid(clip(x)), or x itself, and its slope. Zero for samples that do not take the step.
template <class C>
struct OutputForward {
  SequenceSamples samples;
  int64_t steps, width;
  bool linear;
  C clip;
  Rows<const C> x;  // [width]
  Rows<C> y;        // [width]
  Rows<C> slopes;   // [width]; may be x
};

// Of each sample, to = from.
template <class C>
struct MovedPart {
  Rows<const C> from;
  Rows<C> to;
  int64_t size;  // of a sample
  // Where `from` is not there: one at each ones_every-th element, if that is not zero, and `otherwise` elsewhere.
  C otherwise;
  int64_t ones_every;
};
constexpr int kMostParts = 9;  // of a state
template <class C>
struct MoveStates {
  const int64_t* lengths;  // nullptr: of all samples; else: of those whose length is `time`
  int64_t time, batch;
  int num_parts;
  MovedPart<C> parts[kMostParts];
};

// The gradient of a state that a sample left behind when it began anew at this step: it is added to `sum`, and becomes zero.
template <class C>
struct CutPart {
  Rows<C> grad;
  Rows<C> sum;   // perhaps not there
  int64_t size;  // of a sample
};
template <class C>
struct CutGradients {
  StepSamples samples;
  int64_t batch;
  int num_parts;
  CutPart<C> parts[kMostParts];
};

// grads [T+1,B,F]: of the features at all times; those of the final state are added at the time of each sample's end.
template <class C>
struct AddFinal {
  const int64_t* lengths;                   // [B], or nullptr: T
  int64_t steps, batch, hidden, read_size;  // T, B, H, R*W
  const C *grad_hidden, *grad_read;         // [B,H], [B,R*W]; nullptr: zero
  C* grads;
};

// Each is one launch, or none where there is nothing to do.
template <class C>
cudaError_t launch_lstm(const LstmForward<C>& p, cudaStream_t stream);
template <class C>
cudaError_t launch_lstm_backward(const LstmBackward<C>& p, cudaStream_t stream);
template <class C>
cudaError_t launch_norm(const NormForward<C>& p, cudaStream_t stream);
template <class C>
cudaError_t launch_norm_backward(const NormBackward<C>& p, cudaStream_t stream);
template <class C>
cudaError_t launch_select_rows(const SelectRows<C>& p, cudaStream_t stream);
template <class C>
cudaError_t launch_output(const OutputForward<C>& p, cudaStream_t stream);
template <class C>
cudaError_t launch_move_states(const MoveStates<C>& p, cudaStream_t stream);
template <class C>
cudaError_t launch_cut_gradients(const CutGradients<C>& p, cudaStream_t stream);
template <class C>
cudaError_t launch_add_final(const AddFinal<C>& p, cudaStream_t stream);

}  // namespace routing_ext::cuda
