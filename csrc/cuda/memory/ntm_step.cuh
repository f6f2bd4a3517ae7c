// An NTM's step and its backward pass, phase by phase, for one sample.
//
// TERMINOLOGY
//   work    what a group hands from phase to phase: in shared memory, or in scratch memory where N is too large for that.
//   heads   the write heads, or the read heads: they are taken one after the other through the same phases.
// The order of a step: write heads look at the previous memory, write, and read heads look at the next one.
#pragma once
#include "content.cuh"
#include "interface.cuh"
#include "location.cuh"
#include "ntm_record.cuh"
#include "passes.cuh"
#include "workspace.cuh"

namespace routing_ext::cuda {

// The parts of the interface vector, see InterfaceParts.
enum NtmPart : int { kWriteHeads = 0, kErase = 5, kAdd = 6, kReadHeads = 7 };
// Of the heads, from the first of their parts on.
enum NtmHeadPart : int { kKeys, kStrengths, kGates, kShifts, kSharpness };

// A StepShape as the device wants it.
struct NtmShape {
  int locations, word, writes, reads, shifts;
  InterfaceMap map;
  NtmRecord record;

  explicit NtmShape(const StepShape& s)
      : locations(static_cast<int>(s.locations)),
        word(static_cast<int>(s.word)),
        writes(static_cast<int>(s.writes)),
        reads(static_cast<int>(s.reads)),
        shifts(static_cast<int>(s.shifts)),
        map(false, s.writes, s.reads, s.word, s.shifts, s.options),
        record(s) {}
  __host__ __device__ int most_heads() const { return writes > reads ? writes : reads; }
};

// The heads of one kind: how many, where their parts of the interface begin, and what the record has of them.
struct HeadKind {
  int count, part;
  int64_t cosine, content, shifted;
};
__device__ __forceinline__ HeadKind write_heads(const NtmShape& s) {
  return {s.writes, kWriteHeads, s.record.write_cosine, s.record.write_content, s.record.write_shifted};
}
__device__ __forceinline__ HeadKind read_heads(const NtmShape& s) {
  return {s.reads, kReadHeads, s.record.read_cosine, s.record.read_content, s.record.read_shifted};
}
template <class T>
__device__ __forceinline__ Lookup<T> lookup_of(const NtmShape& s, const HeadKind& heads, const T* interface, const T* memory) {
  const auto part = [&](NtmHeadPart p) { return interface + s.map.begin[heads.part + p]; };
  return {heads.count, s.locations, s.word, part(kKeys), nullptr, part(kStrengths), memory, T(kEpsilon)};
}
template <class T>
__device__ __forceinline__ Location<T> location_of(const NtmShape& s, const HeadKind& heads, const T* interface,
                                                   const T* content, const T* previous) {
  const auto part = [&](NtmHeadPart p) { return interface + s.map.begin[heads.part + p]; };
  return {heads.count, s.locations, s.shifts, content, previous, part(kGates), part(kShifts), part(kSharpness)};
}

// ---- forward ---------------------------------------------------------------------------------------------------------------

template <class T>
struct NtmWork {
  T* interface;                     // [I], behind its activations, of each block
  T* norms;                         // [N]: of the memory's rows, squared
  T *cosines, *content;             // [H,N]
  T *write_weights, *read_weights;  // [V,N], [R,N]
  T *key_partials, *partials, *column_partials;

  template <class Space>
  __host__ __device__ NtmWork(Space& space, const NtmShape& s) {
    const int64_t n = s.locations, heads = s.most_heads();
    interface = space.take_own(s.map.size()), norms = space.take(n);
    cosines = space.take(heads * n), content = space.take(heads * n);
    write_weights = space.take(s.writes * n), read_weights = space.take(s.reads * n);
    key_partials = space.take_partials(partials_size(heads, 1));
    partials = space.take_partials(partials_size(heads, 2));
    column_partials = take_column_partials(space, kHeads, s.word);
  }
};

// weights [H,N]; next and copy [H,N]: more places for them, copy may be nullptr. record: nullptr if there is none.
template <class Group, class T>
__device__ void address(const Group& group, const NtmShape& s, const HeadKind& heads, const NtmWork<T>& work, const T* memory,
                        const T* previous, T* record, T* weights, T* next, T* copy) {
  const Lookup<T> look = lookup_of(s, heads, static_cast<const T*>(work.interface), memory);
  look_up(group, look, work.cosines, work.norms);
  const RowSums<1, T> norms = key_norms(group, look, work.key_partials);
  group.sync();
  const Softmax<T> by_content = content_softmax(group, look, norms, work.cosines, static_cast<const T*>(work.norms),
                                                work.content, work.partials, record ? record + heads.cosine : nullptr);
  group.sync();
  by_content.finish(group, [&](int h, int i, T weight) {
    if (record) record[heads.content + static_cast<int64_t>(h) * s.locations + i] = weight;
  });
  group.sync();
  const Location<T> location =
      location_of(s, heads, static_cast<const T*>(work.interface), static_cast<const T*>(work.content), previous);
  const Softmax<T> by_location = locate(group, location, record ? record + heads.shifted : nullptr, weights, work.partials);
  group.sync();
  by_location.finish(group, [&](int h, int i, T weight) {
    const int64_t at = static_cast<int64_t>(h) * s.locations + i;
    next[at] = weight;
    if (copy) copy[at] = weight;
  });
  group.sync();
}

// copy: a second place for some of `after`; record may be nullptr. A barrier at the end.
template <class Group, class T>
__device__ void ntm_step(const Group& group, const NtmShape& s, const T* interface, const SampleState<const T>& before,
                         const SampleState<T>& after, const SampleState<T>& copy, T* read_vectors, T* record,
                         const NtmWork<T>& work) {
  activate(group, s.map, interface, work.interface, record ? record + s.record.interface : nullptr);
  group.sync();
  address(group, s, write_heads(s), work, before.memory, before.write_weights, record, work.write_weights, after.write_weights,
          copy.write_weights);
  const Write<T> write{s.writes,
                       s.locations,
                       s.word,
                       before.memory,
                       nullptr,
                       work.write_weights,
                       work.interface + s.map.begin[kErase],
                       work.interface + s.map.begin[kAdd]};
  write_memory(group, write, after.memory, copy.memory);
  group.sync();
  address(group, s, read_heads(s), work, static_cast<const T*>(after.memory), before.read_weights, record, work.read_weights,
          after.read_weights, copy.read_weights);
  read_memory(group, s.reads, static_cast<const T*>(work.read_weights), static_cast<const T*>(after.memory), s.locations,
              s.word, read_vectors, work.column_partials);
}

// ---- backward --------------------------------------------------------------------------------------------------------------

template <class T>
struct NtmBackwardWork {
  T* interface;              // [I]: the gradient behind the activations
  T* norms;                  // [N]
  T *of_writes, *of_reads;   // [V,N], [R,N]: of the weights, then of the weights by content, then of the products
  T *of_norms, *of_shifted;  // [H,N]
  T *key_partials, *sums, *scalars, *partials, *column_partials;

  template <class Space>
  __host__ __device__ NtmBackwardWork(Space& space, const NtmShape& s) {
    const int64_t n = s.locations, heads = s.most_heads();
    interface = space.take(s.map.size()), norms = space.take(n);
    of_writes = space.take(s.writes * n), of_reads = space.take(s.reads * n);
    of_norms = space.take(heads * n), of_shifted = space.take(heads * n);
    key_partials = space.take_partials(partials_size(heads, 1)), sums = space.take_partials(partials_size(heads, 1));
    scalars = space.take_partials(partials_size(heads, 2));
    partials = space.take_partials(location_partials_size(heads, s.shifts));
    column_partials = take_column_partials(space, kHeads, s.word);
  }
};

// What heads have seen of a memory, and what it means for it.
template <class T>
struct Seen {
  const T *memory, *previous, *weights;  // [N,W], [H,N], [H,N]
  const T* record;
  T *grad, *grad_previous;  // [H,N]
  const T* grad_read;       // [H,W], or nullptr
  const T* grad_memory;     // [N,W], or nullptr
  T* out_memory;            // [N,W], is set
};

// work.norms is there, but not published. grad becomes anything.
template <class Group, class T>
__device__ void address_backward(const Group& group, const NtmShape& s, const HeadKind& heads, const NtmBackwardWork<T>& work,
                                 const Seen<T>& seen, bool reads) {
  const T* const interface = seen.record + s.record.interface;
  const T *const content = seen.record + heads.content, *const cosines = seen.record + heads.cosine;
  const auto of_part = [&](NtmHeadPart p) { return work.interface + s.map.begin[heads.part + p]; };
  const Lookup<T> look = lookup_of(s, heads, interface, seen.memory);
  const RowSums<1, T> norms = key_norms(group, look, work.key_partials);
  group.sync();
  locate_backward(group, location_of(s, heads, interface, content, seen.previous),
                  LocationGradient<T>{seen.record + heads.shifted, seen.weights, seen.grad, seen.grad, seen.grad_previous,
                                      of_part(kGates), of_part(kShifts), of_part(kSharpness), work.of_shifted, work.partials});
  const RowSums<1, T> along(group, heads.count, s.locations, work.sums, [&](int h) {
    const T* const grad = seen.grad + static_cast<int64_t>(h) * s.locations;
    const T* const weights = content + static_cast<int64_t>(h) * s.locations;
    return [grad, weights](int i, T* sums) { sums[0] += grad[i] * weights[i]; };
  });
  group.sync();
  const RowSums<2, T> scalars = content_backward(
      group, look, norms, static_cast<const T*>(work.norms), cosines, content, [&](int h) { return along.total(h); },
      seen.grad, work.of_norms, work.scalars);
  group.sync();
  for_each(group, heads.count, [&](int h) { of_part(kStrengths)[h] = scalars.total(h, 0); });
  look_up_backward(group, look,
                   LookupGradients<T>{seen.grad, work.of_norms, scalars, reads ? seen.weights : nullptr, seen.grad_read,
                                      seen.grad_memory, seen.out_memory, of_part(kKeys), nullptr},
                   work.column_partials);
}

// Each of grad_next and grad_read_vectors may be nullptr: zero.
template <class Group, class T>
__device__ void ntm_step_backward(const Group& group, const NtmShape& s, const SampleState<const T>& before,
                                  const SampleState<const T>& next, const T* record, const SampleState<const T>& grad_next,
                                  const T* grad_read_vectors, const SampleState<T>& grad_previous, T* grad_interface,
                                  const NtmBackwardWork<T>& work) {
  const T *const interface = record + s.record.interface, *const memory = next.memory, *const grad_read = grad_read_vectors;
  T* const of_memory = grad_previous.memory;
  const int n = s.locations;

  // What is read here may lie where gradients of the previous state are written below.
  const auto fetch = [&](const T* grad, int count, T* to) {
    for_each(group, count, [&](int i) { to[i] = grad ? grad[i] : T(0); });
  };
  fetch(grad_next.write_weights, s.writes * n, work.of_writes);
  fetch(grad_next.read_weights, s.reads * n, work.of_reads);
  group.sync();

  // The read vectors, and the norms of the next memory along with them.
  const HeadKind readers = read_heads(s), writers = write_heads(s);
  const auto keys_of = [&](const HeadKind& heads) { return interface + s.map.begin[heads.part + kKeys]; };
  if (grad_read) {
    row_products(group, s.reads, grad_read, memory, n, s.word, true, work.of_reads, work.norms);
  } else {
    row_products(group, s.reads, keys_of(readers), memory, n, s.word, false, work.of_norms, work.norms);
  }
  address_backward(group, s, readers, work,
                   Seen<T>{memory, before.read_weights, next.read_weights, record, work.of_reads, grad_previous.read_weights,
                           grad_read, grad_next.memory, of_memory},
                   true);

  const Write<T> write{s.writes,
                       n,
                       s.word,
                       before.memory,
                       nullptr,
                       next.write_weights,
                       interface + s.map.begin[kErase],
                       interface + s.map.begin[kAdd]};
  write_memory_backward(group, write, of_memory, work.of_writes, static_cast<T*>(nullptr),
                        work.interface + s.map.begin[kErase], work.interface + s.map.begin[kAdd], work.column_partials);

  // For the norms alone; the products go where the next phases will write.
  row_products(group, s.writes, keys_of(writers), before.memory, n, s.word, false, work.of_norms, work.norms);
  address_backward(group, s, writers, work,
                   Seen<T>{before.memory, before.write_weights, next.write_weights, record, work.of_writes,
                           grad_previous.write_weights, nullptr, of_memory, of_memory},
                   false);
  activate_backward(group, s.map, interface, static_cast<const T*>(work.interface), grad_interface);
}

}  // namespace routing_ext::cuda
