// A DNC's step, phase by phase, for one sample.
//
// TERMINOLOGY
//   phase     what all threads of a group do between two barriers; usage.cuh, allocation.cuh, link.cuh, content.cuh and
//             passes.cuh have them
//   work      the arrays that the phases hand to each other, see workspace.cuh
//   partials  sums of single warps, which the next phase adds up
#pragma once
#include "dnc_plan.cuh"
#include "link.cuh"
#include "passes.cuh"
#include "workspace.cuh"

namespace routing_ext::cuda {

template <class T>
struct DncWork {
  T* x;                 // [I]: the interface behind its activations, of each block
  T *usage, *kept;      // [N]
  T* s;                 // [N], of each block
  T* left;              // [N], if freed locations are erased
  T *read, *next_read;  // [R,N]: the read weights before and after the step
  T* weights;           // [V,N]: the next write weights
  T *dots, *content;    // [V or R,N]
  T* norms;             // [N], or [V or R,N] as the masks see them
  T *along, *sharp;     // [2,R,N], if linked: forward and backward reads of one write head, and the same sharpened
  T *write_key_partials, *read_key_partials, *content_partials, *partials, *sharp_partials, *column_partials;

  template <class W>
  __host__ __device__ DncWork(W& w, const DncPlan& p) {
    const int64_t n = p.locations, r = p.reads * n, heads = p.heads() * n;
    x = w.take_own(p.map.size()), s = w.take_own(n);
    usage = w.take(n), kept = w.take(n), left = w.take(p.erases_freed ? n : 0);
    read = w.take(r), next_read = w.take(r), weights = w.take(p.writes * n);
    dots = w.take(heads), content = w.take(heads), norms = w.take(p.masks ? heads : n);
    along = w.take(p.linked ? 2 * r : 0), sharp = w.take(p.sharpens_link ? 2 * r : 0);
    write_key_partials = w.take_partials(partials_size(p.writes, 1));
    read_key_partials = w.take_partials(partials_size(p.reads, 1));
    content_partials = w.take_partials(partials_size(p.heads(), 2));
    partials = w.take_partials(partials_size(p.writes, 2));
    sharp_partials = w.take_partials(p.sharpens_link ? partials_size(2 * p.reads, 2) : 0);
    column_partials = take_column_partials(w, kHeads, larger(n, p.word));
  }
};

// copy: a second place for some of `after`; record may be nullptr. A barrier at the end.
template <class Group, class T>
__device__ void dnc_step(const Group& group, const DncPlan& plan, const T* interface, const SampleState<const T>& before,
                         const SampleState<T>& after, const SampleState<T>& copy, T* read_vectors, T* record,
                         const DncWork<T>& work) {
  const int n = plan.locations, writes = plan.writes, reads = plan.reads;
  const DncRecord& at = plan.record;
  const DncInterface<const T> x(plan, work.x);

  activate(group, plan.map, interface, work.x, offset(record, at.interface));
  for_each(group, reads * n, [&](int i) { work.read[i] = before.read_weights[i]; });
  group.sync();

  // What is in use, and what the write heads find by content.
  const UsageWeights<T> used{n, writes, reads, before.write_weights, work.read, x.free_gates};
  update_usage(group, used, before.usage, [&](int i, T freed, T left) {
    work.usage[i] = freed;
    if (record) record[at.freed + i] = freed;
    if (plan.separate_allocation) after.usage[i] = freed;
    if (plan.erases_freed) work.left[i] = left;
  });
  const Lookup<T> to_write = write_lookup(plan, x, before.memory), to_read = read_lookup<T>(plan, x, after.memory);
  const RowSums<1, T> write_key_norms = key_norms(group, to_write, work.write_key_partials);
  const RowSums<1, T> read_key_norms = key_norms(group, to_read, work.read_key_partials);
  look_up(group, to_write, work.dots, work.norms);
  group.sync();
  const Softmax<T> by_content = content_softmax(group, to_write, write_key_norms, work.dots, work.norms, work.content,
                                                work.content_partials, offset(record, at.write_cosine));

  // Where they write.
  const Allocation<T> allocation{n, static_cast<T>(plan.temperature)};
#pragma unroll 1
  for (int v = 0; v < writes; ++v) {
    find_free(group, allocation, work.usage, work.s, work.partials, work.kept);
    if (v == 0) {  // its softmax has been published by the barrier within
      by_content.finish(group, [&](int head, int i, T weight) {
        if (record) record[at.write_content + static_cast<int64_t>(head) * n + i] = weight;
      });
    }
    group.sync();
    const int64_t row = static_cast<int64_t>(v) * n;
    const T gate = x.write_gates[v], by_allocation = x.allocation_gates[v], amount = allocation_amount(plan, x, v);
    for_each(group, n, [&](int i) {
      const T usage = work.usage[i], kept = work.kept[i], found = allocation.found(usage, kept);
      const T weight = gate * (by_allocation * found + (T(1) - by_allocation) * work.content[row + i]);
      const T more = more_used(usage, amount, found);
      work.usage[i] = more;
      work.weights[row + i] = weight;
      after.write_weights[row + i] = weight;
      if (copy.write_weights) copy.write_weights[row + i] = weight;
      if (record) record[at.kept + row + i] = kept;
      if (v + 1 == writes && !plan.separate_allocation) after.usage[i] = more;
    });
    group.sync();
  }

  // They write, and the link learns of it.
  const Write<T> write{writes,       n,       plan.word, before.memory, plan.erases_freed ? work.left : nullptr,
                       work.weights, x.erase, x.add};
  write_memory(group, write, after.memory, copy.memory);
  const RowSums<1, T> written = written_sums(group, writes, n, static_cast<const T*>(work.weights), work.partials);
  group.sync();
  look_up(group, to_read, work.dots, work.norms);
  if (plan.linked)
    update_precedence(group, n, written, static_cast<const T*>(work.weights), before.precedence, after.precedence);
#pragma unroll 1
  for (int v = 0; plan.linked && v < writes; ++v) {
    const int64_t row = static_cast<int64_t>(v) * n, matrix = row * n, rows = row * reads;
    const Link<T> link{n, reads, offset(before.link, matrix), offset(before.precedence, row), work.weights + row, work.read};
    update_link(group, link, after.link + matrix, work.along, work.along + reads * n, work.column_partials);
    if (plan.sharpens_link) {
      const Softmax<T> sharpened(group, 2 * reads, n, work.sharp, work.sharp_partials, [&](int r) {
        const int is = r < reads ? plan.forward_sharpness(r, v) : plan.backward_sharpness(r - reads, v);
        const T sharpness = x.sharpness[is];
        const T* const along = work.along + r * n;
        return [=](int i) { return sharpness * log(above_eps(along[i])); };
      });
      group.sync();
      sharpened.finish(group);
      group.sync();
    }
    const T* const forward = plan.sharpens_link ? work.sharp : work.along;
    const T* const backward = forward + reads * n;
    for (int r = 0; r < reads; ++r) {
      const T forward_mode = x.modes[plan.forward_mode(r, v)], backward_mode = x.modes[plan.backward_mode(r, v)];
      for_each(group, n, [&](int i) {
        const int own = r * n + i;
        const T sum = forward_mode * forward[own] + backward_mode * backward[own];
        work.next_read[own] = v == 0 ? sum : work.next_read[own] + sum;
        if (!record) return;
        record[at.forward + rows + own] = work.along[own];
        record[at.backward + rows + own] = work.along[reads * n + own];
        if (!plan.sharpens_link) return;
        record[at.sharp_forward + rows + own] = forward[own];
        record[at.sharp_backward + rows + own] = backward[own];
      });
    }
    group.sync();
  }
  if (!plan.linked) group.sync();

  // What the read heads find by content, and what they read.
  const Softmax<T> read_by_content = content_softmax(group, to_read, read_key_norms, work.dots, work.norms, work.content,
                                                     work.content_partials, offset(record, at.read_cosine));
  group.sync();
  read_by_content.finish(group, [&](int r, int i, T content) {
    const int own = r * n + i;
    const T weight = plan.linked ? x.modes[plan.content_mode(r)] * content + work.next_read[own] : content;
    work.next_read[own] = weight;
    after.read_weights[own] = weight;
    if (copy.read_weights) copy.read_weights[own] = weight;
    if (record) record[at.read_content + own] = content;
  });
  group.sync();
  read_memory(group, reads, static_cast<const T*>(work.next_read), static_cast<const T*>(after.memory), n, plan.word,
              read_vectors, work.column_partials);
}

}  // namespace routing_ext::cuda
