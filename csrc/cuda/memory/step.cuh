// One step of a memory network between its controller and its output layer, forward and backward, for all samples at once:
// what the operators dnc_access and ntm_access, and the loop of a sequence over its steps, ask of the kernels.
//
// TERMINOLOGY
//   B samples, N locations of W elements, V write heads, R read heads, S shifts (NTM), I elements of an interface vector
//   interface   what the controller says, before its activations; InterfaceParts has the order of its parts
//   record      what the backward pass needs of a step, beside the states before and after it
// One block of threads takes one sample. A sample that does not run at this step (StepSamples) is left alone: nothing is read
// or written that belongs to it.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../../common/host_device.h"
#include "../../math/memory_interface.h"

namespace routing_ext::cuda {

struct StepShape {
  bool dnc;
  int64_t batch, locations, word, writes, reads, shifts;  // B, N, W, V, R, S; S is 0 for a DNC
  MemoryOptions options;

  bool linked() const { return dnc && !options.unlinked; }
  InterfaceParts parts() const { return InterfaceParts(dnc, writes, reads, word, shifts, options); }
  int64_t interface_size() const { return parts().total; }
};

// One array of each sample, `stride` elements from sample to sample. data nullptr: it is not there.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  __host__ __device__ T* operator[](int64_t sample) const { return data ? data + sample * stride : nullptr; }
};

// A state, or the gradient of one. An NTM has no usage, precedence and link, an unlinked DNC no precedence and link.
template <class T>
struct StepState {
  Rows<T> memory;         // [N,W]
  Rows<T> usage;          // [N]
  Rows<T> precedence;     // [V,N]
  Rows<T> link;           // [V,N,N]
  Rows<T> write_weights;  // [V,N]
  Rows<T> read_weights;   // [R,N]
};

// A state of one sample.
template <class T>
struct SampleState {
  T *memory, *usage, *precedence, *link, *write_weights, *read_weights;

  __device__ SampleState(const StepState<T>& state, int64_t sample)
      : memory(state.memory[sample]),
        usage(state.usage[sample]),
        precedence(state.precedence[sample]),
        link(state.link[sample]),
        write_weights(state.write_weights[sample]),
        read_weights(state.read_weights[sample]) {}
  template <class Other>
  __device__ explicit SampleState(const SampleState<Other>& s)
      : memory(s.memory),
        usage(s.usage),
        precedence(s.precedence),
        link(s.link),
        write_weights(s.write_weights),
        read_weights(s.read_weights) {}
};

// Which samples run at this step, and which of them begin anew: on the device, so that nobody waits for them.
struct StepSamples {
  const int64_t* lengths = nullptr;  // [B]: sample b runs if time < lengths[b]; nullptr: all do
  int64_t time = 0;
  const bool* resets = nullptr;  // [B]: sample b begins with the initial state instead of the previous one; nullptr: none does

  __device__ bool runs(int64_t sample) const { return lengths == nullptr || time < lengths[sample]; }
  __device__ bool begins(int64_t sample) const { return resets != nullptr && resets[sample]; }
};

template <class T>
struct Step {
  StepSamples samples;
  Rows<const T> interface;               // [I]
  StepState<const T> previous, initial;  // link and precedence nullptr: zero. `initial`: only with resets
  StepState<T> next;                     // all of it is written; its link may be the previous one
  Rows<T> read_vectors;                  // [R,W]
  Rows<T> record;                        // [record_size]; nullptr: there will be no backward pass
  StepState<T> copy;                     // a second place for the next memory, write weights and read weights; nullptr: none
};

template <class T>
struct StepBackward {
  StepSamples samples;
  StepState<const T> previous, initial;  // as in the forward pass
  StepState<const T> next;               // of which memory, write weights and read weights are read
  Rows<const T> record;                  // [record_size]
  StepState<const T> grad_next;          // each may be nullptr: zero
  Rows<const T> grad_read_vectors;       // [R,W], or nullptr: zero
  StepState<T> grad_previous;            // is set, but the link where there is no previous one; may be grad_next
  Rows<T> grad_interface;                // [I], is set
};

// ---- sizes -----------------------------------------------------------------------------------------------------------------

// Where each array of a DNC's record lies, in elements.
struct DncRecord {
  int64_t interface;                      // [I]: behind its activations
  int64_t write_cosine, write_content;    // [V,N]
  int64_t read_cosine, read_content;      // [R,N]
  int64_t freed, kept;                    // [N], [V,N]: see allocation.cuh
  int64_t forward, backward;              // [V,R,N], if linked
  int64_t sharp_forward, sharp_backward;  // the same sharpened, if asked for
  int64_t size = 0;

  explicit DncRecord(const StepShape& s) {
    const int64_t v = s.writes * s.locations, r = s.reads * s.locations;
    const int64_t reads = s.linked() ? s.writes * r : 0, sharp = s.options.sharpens_link ? reads : 0;
    const auto take = [this](int64_t count) {
      const int64_t here = size;
      size += count;
      return here;
    };
    interface = take(s.interface_size());
    write_cosine = take(v), write_content = take(v), read_cosine = take(r), read_content = take(r);
    freed = take(s.locations), kept = take(v);
    forward = take(reads), backward = take(reads), sharp_forward = take(sharp), sharp_backward = take(sharp);
  }
};

// ---- launches --------------------------------------------------------------------------------------------------------------

// T: float or double. `scratch`: device memory of as many bytes as the function before says, often 0; launches on one stream
// may share it. Sizes must be below 2^31, and so must V*N, R*N, V*W and R*W; else a launch fails with cudaErrorInvalidValue.

template <class T>
size_t dnc_step_scratch_bytes(const StepShape& shape);
template <class T>
cudaError_t launch_dnc_step(const StepShape& shape, const Step<T>& step, void* scratch, cudaStream_t stream);

template <class T>
size_t dnc_step_backward_scratch_bytes(const StepShape& shape);
template <class T>
cudaError_t launch_dnc_step_backward(const StepShape& shape, const StepBackward<T>& step, void* scratch, cudaStream_t stream);

// The next link alone, as launch_dnc_step makes it, of the previous link and precedence and the next write weights.
template <class T>
cudaError_t launch_dnc_relink(const StepShape& shape, const Step<T>& step, cudaStream_t stream);

template <class T>
size_t ntm_step_scratch_bytes(const StepShape& shape);
template <class T>
cudaError_t launch_ntm_step(const StepShape& shape, const Step<T>& step, void* scratch, cudaStream_t stream);

template <class T>
size_t ntm_step_backward_scratch_bytes(const StepShape& shape);
template <class T>
cudaError_t launch_ntm_step_backward(const StepShape& shape, const StepBackward<T>& step, void* scratch, cudaStream_t stream);

}  // namespace routing_ext::cuda
