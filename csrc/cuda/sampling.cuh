// Actions of categorical distributions, drawn with random numbers that the caller has. See sampling.cu.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace routing_ext::cuda {

// Who decides, and with which row of probabilities. An index out of range decides nothing, a row out of range takes action 0.
struct Samples {
  const int64_t* order;   // [count], the samples that decide; nullptr: 0, 1, ...
  const int64_t* row_of;  // [batch], the row of each sample; nullptr: its own number
  int64_t* actions;       // [batch]; those of samples that do not decide are left as they are
  int64_t count, batch, rows, selections;
};

// probs [rows,K], noise [count,K]: the first largest of probs / noise, NaN before all. One launch.
template <class T>
cudaError_t launch_sample_largest(const Samples& s, const T* probs, const T* noise, cudaStream_t stream);

// noise [count] in [0, 1): the inverse of the cumulated probabilities. One launch.
template <class T>
cudaError_t launch_sample_by_inversion(const Samples& s, const T* probs, const T* noise, cudaStream_t stream);

}  // namespace routing_ext::cuda
