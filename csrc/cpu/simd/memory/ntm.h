// One step of the NTM's accessor for one sample (Graves et al., 2014).
#pragma once
#include "../../memory_kernels.h"
#include "interface.h"
#include "passes.h"

namespace routing_ext::cpu {
namespace {

// ---- addressing by location ------------------------------------------------------------------------------------------------
//
//   blended = gate content + (1 - gate) previous
//   shifted_i = sum_s shift_s blended_{(i + s - S/2) mod N}
//   weights = softmax(sharpness log shifted), which is shifted^sharpness / sum, and cannot divide zero by zero

// A row over locations that goes on at both ends, around the circle.
template <class C>
struct Ring {
  int64_t locations, n, halo;
  C* row;  // [n], with `halo` elements before and behind it that are the row's, too

  static int64_t size(int64_t n, int64_t shifts) { return n + 2 * AccessLayout<C>::padded(shifts / 2); }
  Ring(int64_t locations, int64_t n, int64_t shifts, C* memory)
      : locations(locations), n(n), halo(shifts / 2), row(memory + AccessLayout<C>::padded(shifts / 2)) {}

  // After the row itself is there.
  void close() {
    for (int64_t i = locations; i < n + halo; ++i) row[i] = i < locations + halo ? row[(i - locations) % locations] : C(0);
    for (int64_t i = 1; i <= halo; ++i) row[-i] = row[(locations - i % locations) % locations];
  }
};

inline constexpr float kSmallest = 1.1754944e-37f;  // ten times the least normal number
inline constexpr double kSmallestDouble = 2.2250738585072014e-307;
template <class C>
inline constexpr C kLeastShifted = sizeof(C) == 4 ? C(kSmallest) : C(kSmallestDouble);

template <class C>
struct Location {
  int64_t locations, n, shifts;
  const C *content, *previous;  // [n]
  C gate, sharpness;
  const C* shift;              // [S]
  C *shifted, *log, *weights;  // [n]; the first two are kept for the backward pass

  void blend(const Ring<C>& ring) const {
    for (int64_t i = 0; i < n; i += kLanes<C>)
      store(ring.row + i, gate * load(content + i) + (C(1) - gate) * load(previous + i));
  }

  // scratch: [Ring::size]
  void forward(C* scratch) const {
    Ring<C> ring(locations, n, shifts, scratch);
    blend(ring);
    ring.close();
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      Vec<C> x = {};
      for (int64_t s = 0; s < shifts; ++s) x += shift[s] * load(ring.row + i + s - shifts / 2);
      const Vec<C> l = logarithm<C>(larger_of<C>(x, broadcast(kLeastShifted<C>)));
      store(shifted + i, x), store(log + i, l), store(weights + i, sharpness * l);
    }
    fill(weights + locations, n - locations, weights[0]);
    softmax(locations, n, weights);
  }

  // grad [n]: of the weights; becomes that of the content. grad_previous [n] is set. scratch: two rings.
  void backward(C* grad, C* grad_previous, C* grad_gate, C* grad_shift, C* grad_sharpness, C* scratch) const {
    Ring<C> ring(locations, n, shifts, scratch), of_shifted(locations, n, shifts, scratch + Ring<C>::size(n, shifts));
    blend(ring);
    ring.close();
    Vec<C> along = {}, of_sharpness = {}, of_gate = {};
    for (int64_t i = 0; i < n; i += kLanes<C>) along += load(grad + i) * load(weights + i);
    const C mean = sum<C>(along);
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      const Vec<C> score = load(weights + i) * (load(grad + i) - mean), x = load(shifted + i);
      of_sharpness += score * load(log + i);
      store(of_shifted.row + i, x < kLeastShifted<C> ? Vec<C>{} : sharpness * score / x);
    }
    *grad_sharpness = sum<C>(of_sharpness);
    clear_padding(of_shifted.row, locations, n);
    for (int64_t s = 0; s < shifts; ++s) {
      Vec<C> of_shift = {};
      for (int64_t i = 0; i < n; i += kLanes<C>) of_shift += load(of_shifted.row + i) * load(ring.row + i + s - shifts / 2);
      grad_shift[s] = sum<C>(of_shift);
    }
    of_shifted.close();
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      Vec<C> x = {};
      for (int64_t s = 0; s < shifts; ++s) x += shift[s] * load(of_shifted.row + i - s + shifts / 2);
      of_gate += x * (load(content + i) - load(previous + i));
      store(grad + i, gate * x);
      store(grad_previous + i, (C(1) - gate) * x);
    }
    clear_padding(grad, locations, n), clear_padding(grad_previous, locations, n);
    *grad_gate = sum<C>(of_gate);
  }
};

// ---- heads -----------------------------------------------------------------------------------------------------------------

// The scalars of some heads, write or read, or their gradients.
template <class C>
struct NtmScalars {
  C *strengths, *gates, *shifts, *sharpness, *norms;  // [H], [H], [H,S], [H], [H]; norms of the keys, squared

  NtmScalars(const AccessShape& s, int64_t heads, Parts<C>& parts) {
    strengths = parts.take(heads), gates = parts.take(heads), shifts = parts.take(heads * s.shifts);
    sharpness = parts.take(heads), norms = parts.take(heads);
  }
};

// The write or the read heads of a record.
template <class C>
struct NtmHeads {
  int64_t count;
  NtmScalars<C> x;
  C *keys, *cosine, *content, *shifted, *log;

  void activate(const AccessShape& s, int64_t words, Activations<C>& interface) const {
    interface.keys(count, s.word, words, s.options.linear_words, keys, x.norms);
    interface.softpluses(count, x.strengths);
    interface.sigmoids(count, x.gates);
    interface.softmaxes(count, s.shifts, x.shifts);
    interface.apply(count, x.sharpness, [](Vec<C> y) { return C(1) + softplus<C>(y); });
  }
  Location<C> location(const AccessShape& s, int64_t n, int64_t h, const C* previous, C* weights) const {
    return {s.locations,      n,           s.shifts,       content + h * n,
            previous + h * n, x.gates[h],  x.sharpness[h], x.shifts + h * s.shifts,
            shifted + h * n,  log + h * n, weights + h * n};
  }
  void address(const AccessShape& s, const AccessLayout<C>& at, const C* memory, const C* norms, const C* previous, C* weights,
               C* scratch) const {
    const int64_t n = at.n;
    key_products(count, static_cast<const C*>(keys), at.words, memory, s.word, n, cosine);
    for (int64_t h = 0; h < count; ++h) {
      content_weights(x.strengths[h], x.norms[h], norms, s.locations, n, cosine + h * n, content + h * n);
      location(s, n, h, previous, weights).forward(scratch);
    }
  }
  // grad [H,n]: of the weights; becomes that of the products of keys and memory. grad_previous [H,n] is set.
  void address_backward(const AccessShape& s, const AccessLayout<C>& at, const C* norms, const C* previous, const C* weights,
                        C* grad, C* grad_previous, C* grad_norms, const NtmScalars<C>& of, C* scratch) const {
    const int64_t n = at.n;
    for (int64_t h = 0; h < count; ++h) {
      location(s, n, h, previous, const_cast<C*>(weights))
          .backward(grad + h * n, grad_previous + h * n, of.gates + h, of.shifts + h * s.shifts, of.sharpness + h, scratch);
      const ContentGradient<C> key = content_weights_backward(x.strengths[h], x.norms[h], norms, n, cosine + h * n,
                                                              content + h * n, grad + h * n, grad_norms);
      of.strengths[h] = key.strength, of.norms[h] = key.key_norm;
    }
  }
  void activate_backward(const AccessShape& s, int64_t words, const C* of_keys, const NtmScalars<C>& of,
                         ActivationGradients<C>& interface) const {
    interface.keys(count, s.word, words, s.options.linear_words, keys, of_keys, of.norms);
    interface.softpluses(count, x.strengths, of.strengths);
    interface.sigmoids(count, x.gates, of.gates);
    interface.softmaxes(count, s.shifts, x.shifts, of.shifts);
    interface.apply(count, x.sharpness, of.sharpness, [](Vec<C> y) { return softplus_slope<C>(y - C(1)); });
  }
};

template <class C>
struct NtmRecord {
  NtmHeads<C> writes, reads;

  NtmRecord(const AccessShape& s, const AccessLayout<C>& at, C* record)
      : NtmRecord(s, at, record, Parts<C>{record + at.scalars}) {}

 private:
  NtmRecord(const AccessShape& s, const AccessLayout<C>& at, C* record, Parts<C> scalars)
      : writes{s.writes,
               NtmScalars<C>(s, s.writes, scalars),
               record + at.write_keys,
               record + at.write_cosine,
               record + at.write_content,
               record + at.write_shifted,
               record + at.write_log},
        reads{s.reads,
              NtmScalars<C>(s, s.reads, scalars),
              record + at.read_keys,
              record + at.read_cosine,
              record + at.read_content,
              record + at.read_shifted,
              record + at.read_log} {}
};

template <class C>
void ntm_forward(const AccessShape& s, const AccessStep<C>& step) {
  const AccessLayout<C> at(s);
  const C* const before = step.previous.small;
  C *const after = step.next.small, *const record = step.record;
  const NtmRecord<C> kept(s, at, record);

  Activations<C> interface(step.interface);
  kept.writes.activate(s, at.words, interface);
  interface.sigmoid_rows(s.writes, s.word, at.words, record + at.erase);
  interface.word_rows(s.writes, s.word, at.words, s.options.linear_words, record + at.add);
  kept.reads.activate(s, at.words, interface);

  kept.writes.address(s, at, step.previous.memory, before + at.norms, before + at.write_weights, after + at.write_weights,
                      step.scratch);
  const Write<C> write{
      s.word, at.n, at.words, s.writes, step.previous.memory, after + at.write_weights, record + at.erase, record + at.add};
  write_memory(write, step.next.memory, after + at.norms);
  kept.reads.address(s, at, step.next.memory, after + at.norms, before + at.read_weights, after + at.read_weights,
                     step.scratch);
  read_memory(s.reads, after + at.read_weights, step.next.memory, s.word, at.n, step.read);
}

template <class C>
void ntm_backward(const AccessShape& s, const AccessStepBackward<C>& step) {
  const AccessLayout<C> at(s);
  const int64_t n = at.n;
  C* const record = const_cast<C*>(step.record);
  const C *const before = step.previous.small, *const after = step.next.small;
  C *const of_write_weights = step.grad_state.small + at.write_weights, *const of_memory = step.grad_state.memory;
  C* const of_read_weights = step.grad_state.small + at.read_weights;
  const NtmRecord<C> kept(s, at, record);

  Parts<C> scratch{step.scratch};
  C *const of_writes = scratch.take(s.writes * n), *const of_reads = scratch.take(s.reads * n),
           *const of_norms = scratch.take(n);
  C *const of_write_keys = scratch.take(s.writes * at.words), *const of_read_keys = scratch.take(s.reads * at.words);
  C *const of_erase = scratch.take(s.writes * at.words), *const of_add = scratch.take(s.writes * at.words);
  C* const rings = scratch.take(2 * Ring<C>::size(n, s.shifts));
  const NtmScalars<C> of_write(s, s.writes, scratch), of_read(s, s.reads, scratch);

  fill(of_norms, n, C(0));
  fill(of_write_keys, s.writes * at.words, C(0)), fill(of_read_keys, s.reads * at.words, C(0));
  for (int64_t i = 0; i < s.writes * n; i += kLanes<C>) store(of_writes + i, load(of_write_weights + i));
  for (int64_t i = 0; i < s.reads * n; i += kLanes<C>) store(of_reads + i, load(of_read_weights + i));

  read_memory_backward(s.reads, step.grad_read, step.next.memory, s.word, n, of_reads);
  kept.reads.address_backward(s, at, after + at.norms, before + at.read_weights, after + at.read_weights, of_reads,
                              of_read_weights, of_norms, of_read, rings);
  look_up_backward(Lookups<C>{s.reads, at.words, record + at.read_keys, of_reads, of_norms, true, after + at.read_weights,
                              step.grad_read, of_read_keys},
                   step.next.memory, s.word, n, of_memory);
  const Write<C> write{
      s.word, at.n, at.words, s.writes, step.previous.memory, after + at.write_weights, record + at.erase, record + at.add};
  write_memory_backward(write, of_memory, of_writes, of_erase, of_add);
  fill(of_norms, n, C(0));
  kept.writes.address_backward(s, at, before + at.norms, before + at.write_weights, after + at.write_weights, of_writes,
                               of_write_weights, of_norms, of_write, rings);
  look_up_backward(
      Lookups<C>{s.writes, at.words, record + at.write_keys, of_writes, of_norms, false, nullptr, nullptr, of_write_keys},
      step.previous.memory, s.word, n, of_memory);

  ActivationGradients<C> interface(step.grad_interface);
  kept.writes.activate_backward(s, at.words, of_write_keys, of_write, interface);
  interface.sigmoid_rows(s.writes, s.word, at.words, record + at.erase, of_erase);
  interface.word_rows(s.writes, s.word, at.words, s.options.linear_words, record + at.add, of_add);
  kept.reads.activate_backward(s, at.words, of_read_keys, of_read, interface);
}

}  // namespace
}  // namespace routing_ext::cpu
