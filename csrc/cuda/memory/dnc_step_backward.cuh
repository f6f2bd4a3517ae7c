// The backward pass of a DNC's step, phase by phase, for one sample. See dnc_step.cuh for the terms.
// of_... is the gradient of ...
#pragma once
#include "dnc_plan.cuh"
#include "link.cuh"
#include "passes.cuh"
#include "workspace.cuh"

namespace routing_ext::cuda {

template <class T>
struct DncBackwardWork {
  T *x, *of;                               // [I]: the interface behind its activations, of each block; its gradient
  T *read, *next_read, *weights;           // [R,N] twice, [V,N]: read weights before and after, next write weights
  T *of_read, *of_next_read, *of_weights;  // likewise
  T *of_precedence, *of_along;             // [V,N], [2,R,N], if linked
  T* grad_read;                            // [R,W], of each block
  T *dots, *of_norms, *norms;              // [V or R,N] three times; without masks the last is [N]
  T *usages, *of_usage, *of_found;         // [V,N], as each write head found it; [N] twice
  T *s, *t;                                // [N], of each block
  T *left, *of_left;                       // [N], if freed locations are erased
  T *write_key_partials, *read_key_partials, *mode_partials, *content_partials, *partials, *sharp_partials, *gate_partials;
  T *found_partials, *column_partials;

  template <class W>
  __host__ __device__ DncBackwardWork(W& w, const DncPlan& p) {
    const int64_t n = p.locations, r = p.reads * n, v = p.writes * n, heads = p.heads() * n;
    x = w.take_own(p.map.size()), of = w.take(p.map.size());
    read = w.take(r), next_read = w.take(r), weights = w.take(v);
    of_read = w.take(r), of_next_read = w.take(r), of_weights = w.take(v);
    of_precedence = w.take(p.linked ? v : 0), of_along = w.take(p.linked ? 2 * r : 0);
    grad_read = w.take_own(static_cast<int64_t>(p.reads) * p.word);
    dots = w.take(heads), of_norms = w.take(heads), norms = w.take(p.masks ? heads : n);
    usages = w.take(v), of_usage = w.take(n), of_found = w.take(n), s = w.take_own(n), t = w.take_own(n);
    left = w.take(p.erases_freed ? n : 0), of_left = w.take(p.erases_freed ? n : 0);
    write_key_partials = w.take_partials(partials_size(p.writes, 1));
    read_key_partials = w.take_partials(partials_size(p.reads, 1));
    mode_partials = w.take_partials(partials_size(p.linked ? p.reads * p.modes() : p.heads(), 1));
    content_partials = w.take_partials(partials_size(p.heads(), 2));
    partials = w.take_partials(partials_size(p.heads(), 2));
    sharp_partials = w.take_partials(p.sharpens_link ? partials_size(2 * p.reads, 1) : 0);
    gate_partials = w.take_partials(partials_size(1, 3)), found_partials = w.take_partials(partials_size(1, 1));
    column_partials = take_column_partials(w, kHeads + 2, larger(n, p.word));
  }
};

// Each of grad_next and grad_read_vectors may be nullptr: zero.
template <class Group, class T>
__device__ void dnc_step_backward(const Group& group, const DncPlan& plan, const SampleState<const T>& before,
                                  const SampleState<const T>& next, const T* record, const SampleState<const T>& grad_next,
                                  const T* grad_read_vectors, const SampleState<T>& grad_previous, T* grad_interface,
                                  const DncBackwardWork<T>& work) {
  const int n = plan.locations, word = plan.word, writes = plan.writes, reads = plan.reads;
  const DncRecord& at = plan.record;
  const DncInterface<const T> x(plan, work.x);
  const DncInterface<T> of(plan, work.of);

  for_each(group.in_block(), plan.map.size(), [&](int i) { work.x[i] = record[at.interface + i]; });
  for_each(group, writes * n, [&](int i) {
    work.weights[i] = next.write_weights[i];
    work.of_weights[i] = grad_next.write_weights ? grad_next.write_weights[i] : T(0);
    if (plan.linked) work.of_precedence[i] = grad_next.precedence ? grad_next.precedence[i] : T(0);
  });
  for_each(group, reads * n, [&](int i) {
    work.read[i] = before.read_weights[i], work.next_read[i] = next.read_weights[i];
    work.of_next_read[i] = grad_next.read_weights ? grad_next.read_weights[i] : T(0);
    work.of_read[i] = 0;
  });
  for_each(group.in_block(), reads * word,
           [&](int i) { work.grad_read[i] = grad_read_vectors ? grad_read_vectors[i] : T(0); });
  group.sync();

  // Read vectors, and the weights they were read with.
  const Lookup<T> to_write = write_lookup(plan, x, before.memory), to_read = read_lookup(plan, x, next.memory);
  const UsageWeights<T> used{n, writes, reads, before.write_weights, work.read, x.free_gates};
  row_products(group, reads, static_cast<const T*>(work.grad_read), next.memory, n, word, true, work.of_next_read,
               plan.masks ? nullptr : work.norms);
  if (plan.masks) masked_products(group, to_read, static_cast<T*>(nullptr), work.norms);
  const RowSums<1, T> write_key_norms = key_norms(group, to_write, work.write_key_partials);
  const RowSums<1, T> read_key_norms = key_norms(group, to_read, work.read_key_partials);
  const RowSums<2, T> precedence =
      precedence_sums(group, plan.linked ? writes : 0, n, static_cast<const T*>(work.weights), before.precedence,
                      static_cast<const T*>(work.of_precedence), work.partials);
  if (plan.erases_freed) for_each(group, n, [&](int i) { work.left[i] = used.not_freed(i); });
  group.sync();
  if (plan.linked) update_precedence_backward(group, n, precedence, work.of_precedence, work.of_weights);
  // What each mode weighs, in their order.
  const int modes = plan.linked ? plan.modes() : 1;
  const RowSums<1, T> of_modes(group, reads * modes, n, work.mode_partials, [&](int row) {
    const int r = row / modes, mode = row % modes;
    const int64_t forward = plan.sharpens_link ? at.sharp_forward : at.forward;
    const int64_t backward = plan.sharpens_link ? at.sharp_backward : at.backward;
    const int64_t found = mode == modes - 1 ? at.read_content + static_cast<int64_t>(r) * n
                          : mode < writes   ? backward + (static_cast<int64_t>(mode) * reads + r) * n
                                            : forward + (static_cast<int64_t>(mode - writes) * reads + r) * n;
    const T *const values = record + found, *const grad = work.of_next_read + r * n;
    return [=](int i, T* sums) { sums[0] += grad[i] * values[i]; };
  });
  group.sync();
  if (plan.linked) for_each(group, reads * modes, [&](int row) { of.modes[row] = of_modes.total(row); });
  const auto content_share = [&](int r) { return plan.linked ? x.modes[plan.content_mode(r)] : T(1); };
  const RowSums<2, T> of_read_content = content_backward(
      group, to_read, read_key_norms, static_cast<const T*>(work.norms), record + at.read_cosine, record + at.read_content,
      [&](int r) { return content_share(r) * of_modes.total(r * modes + modes - 1); },
      [&](int r) {
        const T share = content_share(r);
        const T* const grad = work.of_next_read + r * n;
        return [=](int i) { return share * grad[i]; };
      },
      work.dots, work.of_norms, work.content_partials);

  // The link, and the reads along it.
#pragma unroll 1
  for (int v = 0; plan.linked && v < writes; ++v) {
    const int64_t row = static_cast<int64_t>(v) * n, matrix = row * n, rows = row * reads;
    const auto mode_of = [&](int r) { return r < reads ? plan.forward_mode(r, v) : plan.backward_mode(r - reads, v); };
    const auto sharpness_of = [&](int r) {
      return r < reads ? plan.forward_sharpness(r, v) : plan.backward_sharpness(r - reads, v);
    };
    if (plan.sharpens_link) {
      const RowSums<1, T> of_sharpness(group, 2 * reads, n, work.sharp_partials, [&](int r) {
        const int head = r < reads ? r : r - reads;
        const int64_t own = rows + static_cast<int64_t>(head) * n;
        const T* const along = record + (r < reads ? at.forward : at.backward) + own;
        const T* const sharp = record + (r < reads ? at.sharp_forward : at.sharp_backward) + own;
        const T* const grad = work.of_next_read + head * n;
        T* const out = work.of_along + r * n;
        const T mode = x.modes[mode_of(r)], mean = of_modes.total(mode_of(r)), sharpness = x.sharpness[sharpness_of(r)];
        return [=](int i, T* sums) {
          const T score = sharp[i] * (mode * (grad[i] - mean)), above = above_eps(along[i]);
          sums[0] += score * log(above);
          out[i] = along[i] < T(0) ? T(0) : sharpness * score / above;
        };
      });
      group.sync();
      for_each(group, 2 * reads, [&](int r) { of.sharpness[sharpness_of(r)] = of_sharpness.total(r); });
    } else {
      for (int r = 0; r < 2 * reads; ++r) {
        const T mode = x.modes[mode_of(r)];
        const T* const grad = work.of_next_read + (r < reads ? r : r - reads) * n;
        for_each(group, n, [&](int i) { work.of_along[r * n + i] = mode * grad[i]; });
      }
    }
    group.sync();
    if (before.link == nullptr) continue;  // and no precedence: the next link is zero, too
    const Link<T> link{n, reads, before.link + matrix, offset(before.precedence, row), work.weights + row, work.read};
    const LinkGradients<T> of_link{offset(grad_next.link, matrix), work.of_along, work.of_along + reads * n,
                                   grad_previous.link + matrix,    work.of_read,  work.of_weights + row,
                                   work.of_precedence + row};
    update_link_backward(group, link, of_link, work.column_partials);
  }
  if (!plan.linked) group.sync();

  // The memory, and who wrote to it.
  for_each(group, reads, [&](int r) { of.read_strengths[r] = of_read_content.total(r, 0); });
  look_up_backward(group, to_read,
                   LookupGradients<T>{work.dots, work.of_norms, of_read_content, work.next_read, work.grad_read,
                                      grad_next.memory, grad_previous.memory, of.read_keys, of.read_masks},
                   work.column_partials);
  const Write<T> write{writes, n, word, before.memory, plan.erases_freed ? work.left : nullptr, work.weights, x.erase, x.add};
  write_memory_backward(group, write, grad_previous.memory, work.of_weights, plan.erases_freed ? work.of_left : nullptr,
                        of.erase, of.add, work.column_partials);

  // The write weights: allocation and content.
  const Allocation<T> allocation{n, static_cast<T>(plan.temperature)};
  for_each(group, n, [&](int i) {
    T usage = record[at.freed + i];
    for (int v = 0; v < writes; ++v) {  // as each head found it
      const int64_t own = static_cast<int64_t>(v) * n + i;
      work.usages[own] = usage;
      usage = more_used(usage, allocation_amount(plan, x, v), allocation.found(usage, record[at.kept + own]));
    }
    work.of_usage[i] = plan.separate_allocation || !grad_next.usage ? T(0) : grad_next.usage[i];
  });
  if (plan.masks) {
    masked_products(group, to_write, static_cast<T*>(nullptr), work.norms);
  } else {
    row_norms(group, before.memory, n, word, work.norms);
  }
  const auto write_share = [&](int v) { return x.write_gates[v] * (T(1) - x.allocation_gates[v]); };
  const RowSums<1, T> along(group, writes, n, work.partials, [&](int v) {
    const T share = write_share(v);
    const T *const grad = work.of_weights + v * n, *const content = record + at.write_content + v * n;
    return [=](int i, T* sums) { sums[0] += share * grad[i] * content[i]; };
  });
  group.sync();
#pragma unroll 1
  for (int v = writes - 1; v >= 0; --v) {
    const int64_t row = static_cast<int64_t>(v) * n;
    const T gate = x.write_gates[v], by_allocation = x.allocation_gates[v], amount = allocation_amount(plan, x, v);
    const T *const usage = work.usages + row, *const kept = record + at.kept + row;
    const RowSums<3, T> of_gates(group, 1, n, work.gate_partials, [&](int) {  // write gate, allocation gate, amount
      return [&](int i, T* sums) {
        const T found = allocation.found(usage[i], kept[i]), content = record[at.write_content + row + i];
        const T of_weight = work.of_weights[row + i];
        const MoreUsedGradient<T> more = more_used_backward(work.of_usage[i], usage[i], amount, found);
        sums[0] += of_weight * (by_allocation * found + (T(1) - by_allocation) * content);
        sums[1] += of_weight * gate * (found - content);
        sums[2] += more.amount;
        work.of_found[i] = of_weight * (gate * by_allocation) + more.allocation;
        work.of_usage[i] = more.usage;
      };
    });
    group.sync();
    if (group.rank() == 0) {
      const T of_amount = of_gates.total(0, 2);
      of.write_gates[v] = of_gates.total(0, 0) + of_amount * (plan.separate_allocation ? by_allocation : T(1));
      of.allocation_gates[v] = of_gates.total(0, 1) + (plan.separate_allocation ? of_amount * gate : T(0));
    }
    find_free_backward(group, allocation, usage, kept, static_cast<const T*>(work.of_found), work.s, work.t,
                       work.found_partials, work.of_usage);
    group.sync();
  }
  const RowSums<2, T> of_write_content = content_backward(
      group, to_write, write_key_norms, static_cast<const T*>(work.norms), record + at.write_cosine, record + at.write_content,
      [&](int v) { return along.total(v); },
      [&](int v) {
        const T share = write_share(v);
        const T* const grad = work.of_weights + v * n;
        return [=](int i) { return share * grad[i]; };
      },
      work.dots, work.of_norms, work.content_partials);
  if (plan.separate_allocation && grad_next.usage) for_each(group, n, [&](int i) { work.of_usage[i] += grad_next.usage[i]; });
  group.sync();
  for_each(group, writes, [&](int v) { of.write_strengths[v] = of_write_content.total(v, 0); });
  look_up_backward(group, to_write,
                   LookupGradients<T>{work.dots, work.of_norms, of_write_content, nullptr, nullptr, grad_previous.memory,
                                      grad_previous.memory, of.write_keys, of.write_masks},
                   work.column_partials);

  // The usage, and the weights of the step before.
  const UsageGradients<T> of_used{work.of_usage,
                                  plan.erases_freed ? work.of_left : nullptr,
                                  work.of_read,
                                  grad_previous.usage,
                                  plan.detached_usage ? nullptr : grad_previous.write_weights,
                                  grad_previous.read_weights};
  const RowSums<1, T> of_free_gates = update_usage_backward(group, used, before.usage, of_used, work.mode_partials);
  for_each(group, writes * n, [&](int i) {
    if (plan.detached_usage) grad_previous.write_weights[i] = 0;
    if (grad_previous.precedence) grad_previous.precedence[i] = work.of_precedence[i];
  });
  group.sync();
  for_each(group, reads, [&](int r) { of.free_gates[r] = of_free_gates.total(r); });
  group.sync();
  activate_backward(group, plan.map, static_cast<const T*>(work.x), static_cast<const T*>(work.of), grad_interface);
}

}  // namespace routing_ext::cuda
