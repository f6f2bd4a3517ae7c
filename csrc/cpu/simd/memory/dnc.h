// One step of the DNC's accessor for one sample (Graves et al., 2016, with the order and the constants of the reference).
#pragma once
#include "../../memory_kernels.h"
#include "allocation.h"
#include "dnc_options.h"
#include "interface.h"
#include "link.h"
#include "passes.h"

namespace routing_ext::cpu {
namespace {

// The scalars of a record, or their gradients.
template <class C>
struct DncScalars {
  C *write_strengths, *allocation_gates, *write_gates, *write_norms;  // [V]; norms of the keys, squared
  C *read_strengths, *free_gates, *read_norms;                        // [R]
  C* modes;                                                           // [R,2V+1]
  C* sharpness;                                                       // [R,2V], if asked for

  DncScalars(const AccessShape& s, C* scalars) {
    Parts<C> parts{scalars};
    write_strengths = parts.take(s.writes);
    allocation_gates = parts.take(s.writes), write_gates = parts.take(s.writes), write_norms = parts.take(s.writes);
    read_strengths = parts.take(s.reads), free_gates = parts.take(s.reads), read_norms = parts.take(s.reads);
    modes = parts.take(s.reads * s.modes());
    sharpness = parts.take(s.options.sharpens_link ? s.reads * 2 * s.writes : 0);
  }
};

// What a write by allocation adds to the usage that the next head sees.
template <class C>
inline C allocation_amount(const AccessShape& s, const DncScalars<const C>& gates, int64_t v) {
  return s.options.separate_allocation ? gates.allocation_gates[v] * gates.write_gates[v] : gates.write_gates[v];
}

// What the write or the read heads look for, and in a memory of which norms [n] or, if that depends on the head, [H,n].
template <class C>
struct DncLookup {
  const C *keys, *norms;  // [H,words]
  int64_t norms_stride;
  C inner;  // of the cosine
};
template <class C>
inline MaskedHeads<C> masked_writes(const AccessShape& s, const AccessLayout<C>& at, const C* record) {
  return {s.writes, s.word, at.n, at.words, record + at.write_masks, record + at.write_keys};
}
template <class C>
inline MaskedHeads<C> masked_reads(const AccessShape& s, const AccessLayout<C>& at, const C* record) {
  return {s.reads, s.word, at.n, at.words, record + at.read_masks, record + at.read_keys};
}
template <class C>
inline DncLookup<C> write_lookup(const AccessShape& s, const AccessLayout<C>& at, const C* record, const C* norms) {
  const C inner = s.options.plain_cosine ? C(0) : C(kEpsilon);
  if (s.options.masks) return {record + at.masked_write_keys, record + at.masked_write_norms, at.n, inner};
  return {record + at.write_keys, norms, 0, inner};
}
template <class C>
inline DncLookup<C> read_lookup(const AccessShape& s, const AccessLayout<C>& at, const C* record, const C* norms) {
  const C inner = s.options.plain_cosine ? C(0) : C(kEpsilon);
  if (s.options.masks) return {record + at.masked_read_keys, record + at.masked_read_norms, at.n, inner};
  return {record + at.read_keys, norms, 0, inner};
}

template <class C>
void dnc_forward(const AccessShape& s, const AccessStep<C>& step) {
  const AccessLayout<C> at(s);
  const int64_t n = at.n, locations = s.locations, word = s.word;
  C* const record = step.record;
  const C* const before = step.previous.small;
  C* const after = step.next.small;

  DncScalars<C> x(s, record + at.scalars);
  Activations<C> interface(step.interface);
  const MemoryOptions& options = s.options;
  const C one = options.oneplus_strengths ? C(1) : C(0);
  interface.keys(s.writes, word, at.words, options.linear_words, record + at.write_keys, x.write_norms);
  interface.softpluses(s.writes, x.write_strengths, one);
  interface.sigmoids(2 * s.writes, x.allocation_gates);  // and the write gates behind them
  interface.sigmoid_rows(s.writes, word, at.words, record + at.erase);
  interface.word_rows(s.writes, word, at.words, options.linear_words, record + at.add);
  interface.keys(s.reads, word, at.words, options.linear_words, record + at.read_keys, x.read_norms);
  interface.softpluses(s.reads, x.read_strengths, one);
  interface.sigmoids(s.reads, x.free_gates);
  if (s.linked()) interface.softmaxes(s.reads, s.modes(), x.modes);
  if (options.masks) {
    const C least = static_cast<C>(options.mask_min);
    interface.mask_rows(s.writes, word, at.words, least, record + at.write_masks);
    interface.mask_rows(s.reads, word, at.words, least, record + at.read_masks);
    masked_writes(s, at, record).mask_keys(record + at.masked_write_keys, x.write_norms);
    masked_writes(s, at, record).mask_norms(step.previous.memory, record + at.masked_write_norms);
    masked_reads(s, at, record).mask_keys(record + at.masked_read_keys, x.read_norms);
  }
  if (options.sharpens_link) interface.softpluses(s.reads * 2 * s.writes, x.sharpness, C(1));

  const UsageWeights<C> used{s.writes, s.reads, n, before + at.write_weights, before + at.read_weights, x.free_gates};
  C* const freed = record + at.usage_freed;
  update_usage(used, before + at.usage, freed);

  const DncLookup<C> to_write = write_lookup<C>(s, at, record, before + at.norms);
  key_products(s.writes, to_write.keys, at.words, step.previous.memory, word, n, record + at.write_cosine);
  C* const usage = after + at.usage;
  for (int64_t i = 0; i < n; i += kLanes<C>) store(usage + i, load(freed + i));
  const DncScalars<const C> gates(s, record + at.scalars);
  for (int64_t v = 0; v < s.writes; ++v) {
    C* const content = record + at.write_content + v * n;
    content_weights(x.write_strengths[v], x.write_norms[v], to_write.norms + v * to_write.norms_stride, locations, n,
                    record + at.write_cosine + v * n, content, to_write.inner);
    C* const weights = after + at.write_weights + v * n;
    find_free(options.temperature, locations, n, usage, step.scratch, record + at.allocation + v * n, weights);
    const C gate = x.write_gates[v], by_allocation = x.allocation_gates[v], amount = allocation_amount<C>(s, gates, v);
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      const Vec<C> allocation = load(weights + i);
      store(usage + i, more_used<C>(load(usage + i), amount, allocation));
      store(weights + i, gate * (by_allocation * allocation + (C(1) - by_allocation) * load(content + i)));
    }
  }
  if (options.separate_allocation) copy(freed, n, usage);

  const C* written_to = step.previous.memory;
  if (options.erases_freed) {
    erase_freed(used, word, written_to, step.next.memory);
    written_to = step.next.memory;
  }
  const Write<C> write{word, n, at.words, s.writes, written_to, after + at.write_weights, record + at.erase, record + at.add};
  write_memory(write, step.next.memory, after + at.norms);

  for (int64_t v = 0; s.linked() && v < s.writes; ++v) {
    const C *const w = after + at.write_weights + v * n, *const p = before + at.precedence + v * n;
    C *const along = record + at.forward + v * s.reads * n, *const against = record + at.backward + v * s.reads * n;
    C* const link = step.next.link + v * locations * n;
    if (step.previous.link == nullptr) {
      fill(along, s.reads * n, C(0)), fill(against, s.reads * n, C(0)), fill(link, locations * n, C(0));
    } else {
      update_link(Link<C>{locations, n, step.previous.link + v * locations * n, w, p, step.team}, link, s.reads,
                  before + at.read_weights, along, against);
    }
    update_precedence(n, w, p, after + at.precedence + v * n);
  }

  const C *forward = record + at.forward, *backward = record + at.backward;
  if (options.sharpens_link) {
    for (int64_t v = 0; v < s.writes; ++v) {
      for (int64_t r = 0; r < s.reads; ++r) {
        const int64_t row = (v * s.reads + r) * n;
        const C* const sharpness = x.sharpness + r * 2 * s.writes + v;
        sharpen(locations, n, sharpness[s.writes], forward + row, record + at.sharp_forward + row);
        sharpen(locations, n, sharpness[0], backward + row, record + at.sharp_backward + row);
      }
    }
    forward = record + at.sharp_forward, backward = record + at.sharp_backward;
  }

  if (options.masks) masked_reads(s, at, record).mask_norms(step.next.memory, record + at.masked_read_norms);
  const DncLookup<C> to_read = read_lookup<C>(s, at, record, after + at.norms);
  key_products(s.reads, to_read.keys, at.words, step.next.memory, word, n, record + at.read_cosine);
  for (int64_t r = 0; r < s.reads; ++r) {
    C* const content = record + at.read_content + r * n;
    content_weights(x.read_strengths[r], x.read_norms[r], to_read.norms + r * to_read.norms_stride, locations, n,
                    record + at.read_cosine + r * n, content, to_read.inner);
    C* const weights = after + at.read_weights + r * n;
    if (!s.linked()) {
      copy(content, n, weights);
      continue;
    }
    const C* const mode = x.modes + r * s.modes();
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      Vec<C> total = mode[2 * s.writes] * load(content + i);
      for (int64_t v = 0; v < s.writes; ++v) {
        const int64_t row = (v * s.reads + r) * n + i;
        total += mode[s.writes + v] * load(forward + row) + mode[v] * load(backward + row);
      }
      store(weights + i, total);
    }
  }
  read_memory(s.reads, after + at.read_weights, step.next.memory, word, n, step.read);
}

template <class C>
void dnc_backward(const AccessShape& s, const AccessStepBackward<C>& step) {
  const AccessLayout<C> at(s);
  const int64_t n = at.n, locations = s.locations, word = s.word, modes = s.modes();
  const C* const record = step.record;
  const C *const before = step.previous.small, *const after = step.next.small;
  C* const grad = step.grad_state.small;
  const DncScalars<const C> x(s, record + at.scalars);

  Parts<C> scratch{step.scratch};
  C *const of_write_weights = scratch.take(s.writes * n), *const of_read_weights = scratch.take(s.reads * n);
  C *const of_forward = scratch.take(s.reads * n), *const of_backward = scratch.take(s.reads * n);
  C *const of_read_content = scratch.take(s.reads * n), *const of_write_content = scratch.take(s.writes * n);
  C* const of_allocation = scratch.take(s.writes * n);
  C *const allocation = scratch.take(s.writes * n), *const usages = scratch.take(s.writes * n);
  C *const of_norms = scratch.take(n), *const of_usage = scratch.take(n);
  C* const of_allocating = scratch.take(5 * n);
  C *const of_write_keys = scratch.take(s.writes * at.words), *const of_read_keys = scratch.take(s.reads * at.words);
  C *const of_erase = scratch.take(s.writes * at.words), *const of_add = scratch.take(s.writes * at.words);
  DncScalars<C> of(s, scratch.take(8 * at.kAlign + s.scalars()));
  const MemoryOptions& options = s.options;
  C* const of_masked_norms = scratch.take(options.masks ? (s.writes + s.reads) * n : 0);  // of the reads, then of the writes
  C* const of_masks = scratch.take(options.masks ? (s.writes + s.reads) * at.words : 0);  // of the writes, then of the reads
  C* const erased = scratch.take(options.erases_freed ? word * n : 0);
  C* const of_left = scratch.take(options.erases_freed ? n : 0);
  // Where a head's lookup leaves the gradient of the norms.
  const auto norms_of = [&](int64_t head) { return options.masks ? of_masked_norms + head * n : of_norms; };

  // What the step after said about this one's weights; what this one says about those before comes in their place.
  for (int64_t i = 0; i < s.writes * n; i += kLanes<C>) store(of_write_weights + i, load(grad + at.write_weights + i));
  for (int64_t i = 0; i < s.reads * n; i += kLanes<C>) store(of_read_weights + i, load(grad + at.read_weights + i));
  fill(grad + at.write_weights, s.writes * n, C(0)), fill(grad + at.read_weights, s.reads * n, C(0));
  fill(of_norms, n, C(0));
  fill(of_write_keys, s.writes * at.words, C(0)), fill(of_read_keys, s.reads * at.words, C(0));

  // Read vectors, and the weights they were read with.
  read_memory_backward(s.reads, step.grad_read, step.next.memory, word, n, of_read_weights);
  const DncLookup<C> to_read = read_lookup<C>(s, at, record, after + at.norms);
  for (int64_t r = 0; r < s.reads; ++r) {
    const C *const g = of_read_weights + r * n, *const content = record + at.read_content + r * n;
    C* const out = of_read_content + r * n;
    if (s.linked()) {
      const C share = x.modes[r * modes + 2 * s.writes];
      Vec<C> of_mode = {};
      for (int64_t i = 0; i < n; i += kLanes<C>) {
        of_mode += load(g + i) * load(content + i);
        store(out + i, share * load(g + i));
      }
      of.modes[r * modes + 2 * s.writes] = sum<C>(of_mode);
    } else {
      copy(g, n, out);
    }
    if (options.masks) fill(norms_of(r), n, C(0));
    const ContentGradient<C> key =
        content_weights_backward(x.read_strengths[r], x.read_norms[r], to_read.norms + r * to_read.norms_stride, n,
                                 record + at.read_cosine + r * n, content, out, norms_of(r), to_read.inner);
    of.read_strengths[r] = key.strength, of.read_norms[r] = key.key_norm;
  }

  const C* const forward = record + (options.sharpens_link ? at.sharp_forward : at.forward);
  const C* const backward = record + (options.sharpens_link ? at.sharp_backward : at.backward);
  for (int64_t v = 0; s.linked() && v < s.writes; ++v) {
    const C *const w = after + at.write_weights + v * n, *const p = before + at.precedence + v * n;
    C *const of_w = of_write_weights + v * n, *const of_p = grad + at.precedence + v * n;
    update_precedence_backward(locations, n, w, p, of_p, of_w);

    for (int64_t r = 0; r < s.reads; ++r) {
      const int64_t row = (v * s.reads + r) * n;
      const C *const g = of_read_weights + r * n, *const along = forward + row, *const against = backward + row;
      const C forward_mode = x.modes[r * modes + s.writes + v], backward_mode = x.modes[r * modes + v];
      Vec<C> of_modes[2] = {};
      for (int64_t i = 0; i < n; i += kLanes<C>) {
        of_modes[0] += load(g + i) * load(along + i), of_modes[1] += load(g + i) * load(against + i);
        store(of_forward + r * n + i, forward_mode * load(g + i));
        store(of_backward + r * n + i, backward_mode * load(g + i));
      }
      C total[2];
      store_sums<C>(of_modes, total);
      of.modes[r * modes + s.writes + v] = total[0], of.modes[r * modes + v] = total[1];
      if (options.sharpens_link) {
        const int64_t at_v = r * 2 * s.writes + v, at_v_forward = at_v + s.writes;
        of.sharpness[at_v_forward] =
            sharpen_backward(n, x.sharpness[at_v_forward], record + at.forward + row, along, of_forward + r * n);
        of.sharpness[at_v] = sharpen_backward(n, x.sharpness[at_v], record + at.backward + row, against, of_backward + r * n);
      }
    }
    if (step.previous.link == nullptr) continue;  // and no precedence: the next link is zero, too
    const Link<C> link{locations, n, step.previous.link + v * locations * n, w, p, step.team};
    update_link_backward(link, s.reads, before + at.read_weights,
                         LinkGradients<C>{step.grad_state.link + v * locations * n, of_forward, of_backward,
                                          grad + at.read_weights, of_w, of_p});
  }

  // The memory, and who wrote to it.
  C* const of_memory = step.grad_state.memory;
  look_up_backward(Lookups<C>{s.reads, at.words, to_read.keys, of_read_content, of_norms, true, after + at.read_weights,
                              step.grad_read, of_read_keys},
                   step.next.memory, word, n, of_memory);
  if (options.masks) {
    masked_reads<C>(s, at, record)
        .backward(step.next.memory, of_masked_norms, of_memory, of_read_keys, of.read_norms, of_masks + s.writes * at.words);
  }
  const UsageWeights<C> used{s.writes, s.reads, n, before + at.write_weights, before + at.read_weights, x.free_gates};
  const C* written_to = step.previous.memory;
  if (options.erases_freed) {
    erase_freed(used, word, written_to, erased);
    written_to = erased;
  }
  const Write<C> write{word, n, at.words, s.writes, written_to, after + at.write_weights, record + at.erase, record + at.add};
  write_memory_backward(write, of_memory, of_write_weights, of_erase, of_add);
  if (options.erases_freed) erase_freed_backward(used, word, step.previous.memory, of_memory, of_left);

  // The write weights: allocation and content.
  for (int64_t i = 0; i < n; i += kLanes<C>) store(usages + i, load(record + at.usage_freed + i));
  for (int64_t v = 0; v < s.writes; ++v) {
    const C* const u = usages + v * n;
    const C amount = allocation_amount<C>(s, x, v);
    C* const a = allocation + v * n;
    found_free(options.temperature, locations, n, u, record + at.allocation + v * n, a);
    if (v + 1 == s.writes) break;
    for (int64_t i = 0; i < n; i += kLanes<C>) store(usages + (v + 1) * n + i, more_used<C>(load(u + i), amount, load(a + i)));
  }
  fill(of_norms, n, C(0));
  for (int64_t i = 0; i < n; i += kLanes<C>)
    store(of_usage + i, options.separate_allocation ? Vec<C>{} : load(grad + at.usage + i));
  const DncLookup<C> to_write = write_lookup<C>(s, at, record, before + at.norms);
  for (int64_t v = s.writes - 1; v >= 0; --v) {
    const C *const g = of_write_weights + v * n, *const content = record + at.write_content + v * n;
    const C *const a = allocation + v * n, *const u = usages + v * n;
    const C gate = x.write_gates[v], by_allocation = x.allocation_gates[v], amount = allocation_amount<C>(s, x, v);
    Vec<C> of_gates[3] = {};  // write gate, allocation gate, amount
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      const Vec<C> by = load(a + i), c = load(content + i), of_w = load(g + i);
      const MoreUsedGradient<C> more = more_used_backward<C>(load(of_usage + i), load(u + i), amount, by);
      of_gates[0] += of_w * (by_allocation * by + (C(1) - by_allocation) * c);
      of_gates[1] += of_w * gate * (by - c);
      of_gates[2] += more.amount;
      store(of_allocation + v * n + i, of_w * (gate * by_allocation) + more.allocation);
      store(of_write_content + v * n + i, of_w * (gate * (C(1) - by_allocation)));
      store(of_usage + i, more.usage);
    }
    C total[3];
    store_sums<C>(of_gates, total);
    of.write_gates[v] = total[0] + total[2] * (options.separate_allocation ? by_allocation : C(1));
    of.allocation_gates[v] = total[1] + (options.separate_allocation ? total[2] * gate : C(0));
    find_free_backward(options.temperature, locations, n, u, record + at.allocation + v * n, of_allocation + v * n,
                       of_allocating, of_usage);
    if (options.masks) fill(norms_of(v), n, C(0));
    const ContentGradient<C> key = content_weights_backward(
        x.write_strengths[v], x.write_norms[v], to_write.norms + v * to_write.norms_stride, n,
        record + at.write_cosine + v * n, content, of_write_content + v * n, norms_of(v), to_write.inner);
    of.write_strengths[v] = key.strength, of.write_norms[v] = key.key_norm;
  }
  look_up_backward(
      Lookups<C>{s.writes, at.words, to_write.keys, of_write_content, of_norms, false, nullptr, nullptr, of_write_keys},
      step.previous.memory, word, n, of_memory);
  if (options.masks) {
    masked_writes<C>(s, at, record)
        .backward(step.previous.memory, of_masked_norms, of_memory, of_write_keys, of.write_norms, of_masks);
  }

  // The usage, and the weights of the step before.
  if (options.separate_allocation) {
    for (int64_t i = 0; i < n; i += kLanes<C>) store(of_usage + i, load(of_usage + i) + load(grad + at.usage + i));
  }
  clear_padding(of_usage, locations, n);
  update_usage_backward(used, before + at.usage, of_usage, options.detached_usage ? nullptr : grad + at.write_weights,
                        grad + at.read_weights, of.free_gates);
  if (options.erases_freed) left_backward(used, of_left, grad + at.read_weights, of.free_gates);
  for (int64_t i = 0; i < n; i += kLanes<C>) store(grad + at.usage + i, load(of_usage + i));

  ActivationGradients<C> interface(step.grad_interface);
  const C one = options.oneplus_strengths ? C(1) : C(0);
  interface.keys(s.writes, word, at.words, options.linear_words, record + at.write_keys, of_write_keys, of.write_norms);
  interface.softpluses(s.writes, x.write_strengths, of.write_strengths, one);
  interface.sigmoids(2 * s.writes, x.allocation_gates, of.allocation_gates);
  interface.sigmoid_rows(s.writes, word, at.words, record + at.erase, of_erase);
  interface.word_rows(s.writes, word, at.words, options.linear_words, record + at.add, of_add);
  interface.keys(s.reads, word, at.words, options.linear_words, record + at.read_keys, of_read_keys, of.read_norms);
  interface.softpluses(s.reads, x.read_strengths, of.read_strengths, one);
  interface.sigmoids(s.reads, x.free_gates, of.free_gates);
  if (s.linked()) interface.softmaxes(s.reads, modes, x.modes, of.modes);
  if (options.masks) {
    const C least = static_cast<C>(options.mask_min);
    interface.mask_rows(s.writes, word, at.words, least, record + at.write_masks, of_masks);
    interface.mask_rows(s.reads, word, at.words, least, record + at.read_masks, of_masks + s.writes * at.words);
  }
  if (options.sharpens_link) interface.softpluses(s.reads * 2 * s.writes, x.sharpness, of.sharpness, C(1));
}

template <class C>
void dnc_relink(const AccessShape& s, const AccessState<const C>& previous, const AccessState<C>& next, const Team* team) {
  const AccessLayout<C> at(s);
  const int64_t n = at.n, matrix = s.locations * n;
  for (int64_t v = 0; v < s.writes; ++v) {
    if (previous.link == nullptr) {
      fill(next.link + v * matrix, matrix, C(0));
    } else {
      relink(Link<C>{s.locations, n, previous.link + v * matrix, next.small + at.write_weights + v * n,
                     previous.small + at.precedence + v * n, team},
             next.link + v * matrix);
    }
  }
}

}  // namespace
}  // namespace routing_ext::cpu
