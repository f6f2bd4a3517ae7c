// One step of the DNC's accessor for one sample (Graves et al., 2016, with the order and the constants of the reference).
#pragma once
#include "../../memory_kernels.h"
#include "allocation.h"
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

  DncScalars(const AccessShape& s, C* scalars) {
    Parts<C> parts{scalars};
    write_strengths = parts.take(s.writes);
    allocation_gates = parts.take(s.writes), write_gates = parts.take(s.writes), write_norms = parts.take(s.writes);
    read_strengths = parts.take(s.reads), free_gates = parts.take(s.reads), read_norms = parts.take(s.reads);
    modes = parts.take(s.reads * s.modes());
  }
};

// What a write by allocation adds to the usage that the next head sees.
template <class C>
inline C allocation_amount(const AccessShape& s, const DncScalars<const C>& gates, int64_t v) {
  return s.options.paper_usage ? gates.allocation_gates[v] * gates.write_gates[v] : gates.write_gates[v];
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
  interface.keys(s.writes, word, at.words, record + at.write_keys, x.write_norms);
  interface.softpluses(s.writes, x.write_strengths);
  interface.sigmoids(2 * s.writes, x.allocation_gates);  // and the write gates behind them
  interface.sigmoid_rows(s.writes, word, at.words, record + at.erase);
  interface.tangent_rows(s.writes, word, at.words, record + at.add);
  interface.keys(s.reads, word, at.words, record + at.read_keys, x.read_norms);
  interface.softpluses(s.reads, x.read_strengths);
  interface.sigmoids(s.reads, x.free_gates);
  interface.softmaxes(s.reads, s.modes(), x.modes);

  const UsageWeights<C> used{s.writes, s.reads, n, before + at.write_weights, before + at.read_weights, x.free_gates};
  C* const freed = record + at.usage_freed;
  update_usage(used, before + at.usage, freed);

  key_products(s.writes, record + at.write_keys, at.words, step.previous.memory, word, n, record + at.write_cosine);
  C* const usage = after + at.usage;
  for (int64_t i = 0; i < n; i += kLanes<C>) store(usage + i, load(freed + i));
  const DncScalars<const C> gates(s, record + at.scalars);
  for (int64_t v = 0; v < s.writes; ++v) {
    C* const content = record + at.write_content + v * n;
    content_weights(x.write_strengths[v], x.write_norms[v], before + at.norms, locations, n, record + at.write_cosine + v * n,
                    content);
    C* const weights = after + at.write_weights + v * n;
    find_free(s.options.temperature, locations, n, usage, step.scratch, record + at.allocation + v * n, weights);
    const C gate = x.write_gates[v], by_allocation = x.allocation_gates[v], amount = allocation_amount<C>(s, gates, v);
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      const Vec<C> allocation = load(weights + i);
      store(usage + i, more_used<C>(load(usage + i), amount, allocation));
      store(weights + i, gate * (by_allocation * allocation + (C(1) - by_allocation) * load(content + i)));
    }
  }
  if (s.options.paper_usage) {
    for (int64_t i = 0; i < n; i += kLanes<C>) store(usage + i, load(freed + i));
  }

  const Write<C> write{
      word, n, at.words, s.writes, step.previous.memory, after + at.write_weights, record + at.erase, record + at.add};
  write_memory(write, step.next.memory, after + at.norms);

  for (int64_t v = 0; v < s.writes; ++v) {
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

  key_products(s.reads, record + at.read_keys, at.words, step.next.memory, word, n, record + at.read_cosine);
  for (int64_t r = 0; r < s.reads; ++r) {
    C* const content = record + at.read_content + r * n;
    content_weights(x.read_strengths[r], x.read_norms[r], after + at.norms, locations, n, record + at.read_cosine + r * n,
                    content);
    const C* const mode = x.modes + r * s.modes();
    C* const weights = after + at.read_weights + r * n;
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      Vec<C> total = mode[2 * s.writes] * load(content + i);
      for (int64_t v = 0; v < s.writes; ++v) {
        const int64_t row = (v * s.reads + r) * n + i;
        total += mode[s.writes + v] * load(record + at.forward + row) + mode[v] * load(record + at.backward + row);
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
  DncScalars<C> of(s, scratch.take(8 * at.kAlign + (s.writes + s.reads) * (modes + 8)));

  // What the step after said about this one's weights; what this one says about those before comes in their place.
  for (int64_t i = 0; i < s.writes * n; i += kLanes<C>) store(of_write_weights + i, load(grad + at.write_weights + i));
  for (int64_t i = 0; i < s.reads * n; i += kLanes<C>) store(of_read_weights + i, load(grad + at.read_weights + i));
  fill(grad + at.write_weights, s.writes * n, C(0)), fill(grad + at.read_weights, s.reads * n, C(0));
  fill(of_norms, n, C(0));
  fill(of_write_keys, s.writes * at.words, C(0)), fill(of_read_keys, s.reads * at.words, C(0));

  // Read vectors, and the weights they were read with.
  read_memory_backward(s.reads, step.grad_read, step.next.memory, word, n, of_read_weights);
  for (int64_t r = 0; r < s.reads; ++r) {
    const C *const g = of_read_weights + r * n, *const content = record + at.read_content + r * n;
    const C share = x.modes[r * modes + 2 * s.writes];
    C* const out = of_read_content + r * n;
    Vec<C> of_mode = {};
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      of_mode += load(g + i) * load(content + i);
      store(out + i, share * load(g + i));
    }
    of.modes[r * modes + 2 * s.writes] = sum<C>(of_mode);
    const ContentGradient<C> key = content_weights_backward(x.read_strengths[r], x.read_norms[r], after + at.norms, n,
                                                            record + at.read_cosine + r * n, content, out, of_norms);
    of.read_strengths[r] = key.strength, of.read_norms[r] = key.key_norm;
  }

  for (int64_t v = 0; v < s.writes; ++v) {
    const C *const w = after + at.write_weights + v * n, *const p = before + at.precedence + v * n;
    C *const of_w = of_write_weights + v * n, *const of_p = grad + at.precedence + v * n;
    update_precedence_backward(locations, n, w, p, of_p, of_w);

    for (int64_t r = 0; r < s.reads; ++r) {
      const int64_t row = (v * s.reads + r) * n;
      const C *const g = of_read_weights + r * n, *const along = record + at.forward + row;
      const C* const against = record + at.backward + row;
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
    }
    if (step.previous.link == nullptr) continue;  // and no precedence: the next link is zero, too
    const Link<C> link{locations, n, step.previous.link + v * locations * n, w, p, step.team};
    update_link_backward(link, s.reads, before + at.read_weights,
                         LinkGradients<C>{step.grad_state.link + v * locations * n, of_forward, of_backward,
                                          grad + at.read_weights, of_w, of_p});
  }

  // The memory, and who wrote to it.
  C* const of_memory = step.grad_state.memory;
  look_up_backward(Lookups<C>{s.reads, at.words, record + at.read_keys, of_read_content, of_norms, true,
                              after + at.read_weights, step.grad_read, of_read_keys},
                   step.next.memory, word, n, of_memory);
  const Write<C> write{
      word, n, at.words, s.writes, step.previous.memory, after + at.write_weights, record + at.erase, record + at.add};
  write_memory_backward(write, of_memory, of_write_weights, of_erase, of_add);

  // The write weights: allocation and content.
  for (int64_t i = 0; i < n; i += kLanes<C>) store(usages + i, load(record + at.usage_freed + i));
  for (int64_t v = 0; v < s.writes; ++v) {
    const C* const u = usages + v * n;
    const C amount = allocation_amount<C>(s, x, v);
    C* const a = allocation + v * n;
    found_free(s.options.temperature, locations, n, u, record + at.allocation + v * n, a);
    if (v + 1 == s.writes) break;
    for (int64_t i = 0; i < n; i += kLanes<C>) store(usages + (v + 1) * n + i, more_used<C>(load(u + i), amount, load(a + i)));
  }
  fill(of_norms, n, C(0));
  for (int64_t i = 0; i < n; i += kLanes<C>) store(of_usage + i, s.options.paper_usage ? Vec<C>{} : load(grad + at.usage + i));
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
    of.write_gates[v] = total[0] + total[2] * (s.options.paper_usage ? by_allocation : C(1));
    of.allocation_gates[v] = total[1] + (s.options.paper_usage ? total[2] * gate : C(0));
    find_free_backward(s.options.temperature, locations, n, u, record + at.allocation + v * n, of_allocation + v * n,
                       of_allocating, of_usage);
    const ContentGradient<C> key =
        content_weights_backward(x.write_strengths[v], x.write_norms[v], before + at.norms, n,
                                 record + at.write_cosine + v * n, content, of_write_content + v * n, of_norms);
    of.write_strengths[v] = key.strength, of.write_norms[v] = key.key_norm;
  }
  look_up_backward(Lookups<C>{s.writes, at.words, record + at.write_keys, of_write_content, of_norms, false, nullptr, nullptr,
                              of_write_keys},
                   step.previous.memory, word, n, of_memory);

  // The usage, and the weights of the step before.
  if (s.options.paper_usage) {
    for (int64_t i = 0; i < n; i += kLanes<C>) store(of_usage + i, load(of_usage + i) + load(grad + at.usage + i));
  }
  clear_padding(of_usage, locations, n);
  const UsageWeights<C> used{s.writes, s.reads, n, before + at.write_weights, before + at.read_weights, x.free_gates};
  update_usage_backward(used, before + at.usage, of_usage, s.options.paper_usage ? nullptr : grad + at.write_weights,
                        grad + at.read_weights, of.free_gates);
  for (int64_t i = 0; i < n; i += kLanes<C>) store(grad + at.usage + i, load(of_usage + i));

  ActivationGradients<C> interface(step.grad_interface);
  interface.keys(s.writes, word, at.words, record + at.write_keys, of_write_keys, of.write_norms);
  interface.softpluses(s.writes, x.write_strengths, of.write_strengths);
  interface.sigmoids(2 * s.writes, x.allocation_gates, of.allocation_gates);
  interface.sigmoid_rows(s.writes, word, at.words, record + at.erase, of_erase);
  interface.tangent_rows(s.writes, word, at.words, record + at.add, of_add);
  interface.keys(s.reads, word, at.words, record + at.read_keys, of_read_keys, of.read_norms);
  interface.softpluses(s.reads, x.read_strengths, of.read_strengths);
  interface.sigmoids(s.reads, x.free_gates, of.free_gates);
  interface.softmaxes(s.reads, modes, x.modes, of.modes);
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
