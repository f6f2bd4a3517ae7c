// What policy gradients on tables compute, and its gradients. See policy_gradients.cu for the terms.
//
// T: float, double. All matrices are contiguous. Arrays of pointers and of sizes are in host memory and are read before the
// launch returns; what they point to is on the device.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace routing_ext::cuda {

template <class T>
struct PreferenceTables {
  const T* const* preferences;  // [tables], each [rows,K]
  const T* const* values;       // likewise; nullptr: not read
  const int64_t* rows;          // [tables]
  int64_t tables, selections;
};

// states [n,K,2], probs [n,K]: of all rows. One launch for each 128 tables.
template <class T>
cudaError_t launch_preference_states(const PreferenceTables<T>& p, T* states, T* probs, cudaStream_t stream);

// grad [n,K,2]; of_preferences and of_values [n,K]. One launch for each 128 tables.
template <class T>
cudaError_t launch_preference_states_backward(const PreferenceTables<T>& p, const T* grad, T* of_preferences, T* of_values,
                                              cudaStream_t stream);

// Decisions by parts. An index out of range takes zeros, and its gradient goes nowhere.
template <class T>
struct DecisionParts {
  const T* const* rows;            // [parts], each [n,K,C]
  const int64_t* const* row_of;    // [parts], each [.]; nullptr: the decisions' rows are in order
  const int64_t* const* actions;   // [parts], each [.]
  const int64_t* num_rows;         // [parts], n
  const int64_t* selections;       // [parts], K
  const int64_t* counts;           // [parts], how many decisions
  int64_t parts, channels, count;  // count: N, of all parts
};

// taken [C,N]. One launch for each 32 parts.
template <class T>
cudaError_t launch_taken(const DecisionParts<T>& d, T* taken, cudaStream_t stream);

// returns [parts], each [.]; losses [N], factors [2,N]. One launch for each 32 parts.
template <class T>
cudaError_t launch_wpl_losses(const DecisionParts<T>& d, const T* const* returns, T* losses, T* factors, cudaStream_t stream);

constexpr int64_t kTakenMaxChannels = 16;  // that have a gradient

// grads [channels of them], each [N], of the first channels; scale [N] or nullptr; found: the gradients of all rows, one part
// behind the other, every element is written. One launch for each 32 parts.
template <class T>
cudaError_t launch_taken_backward(const DecisionParts<T>& d, const T* const* grads, int64_t grad_channels, const T* scale,
                                  T* found, cudaStream_t stream);

}  // namespace routing_ext::cuda
