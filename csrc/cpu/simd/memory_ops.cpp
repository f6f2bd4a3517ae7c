// The operators that memory networks are made of. They are the accessor's own functions; what is here brings the tensors of a
// sample into the layout of these, and the results back.
#include "../memory_ops_kernels.h"
#include "memory/allocation.h"
#include "memory/layout.h"
#include "memory/link.h"
#include "memory/ntm.h"
#include "memory/passes.h"

namespace routing_ext::cpu {
namespace {

// Tensors of one sample in the layout of the kernels, in scratch memory where the given ones do not lie like that.
template <class C>
class Sample {
 public:
  const int64_t locations, word, n, words;  // N, W, and both padded

  Sample(const MemoryOpSizes& s, C* scratch)
      : locations(s.locations),
        word(s.word),
        n(AccessLayout<C>::padded(s.locations)),
        words(AccessLayout<C>::padded(s.word)),
        free_{scratch} {}

  C* take(int64_t count) { return free_.take(AccessLayout<C>::padded(count)); }
  C* zeros(int64_t count) {
    C* const all = take(count);
    fill(all, count, C(0));
    return all;
  }

  // Rows over locations, [count,N] to [count,n].
  const C* rows(const C* given, int64_t count) {
    if (given && locations == n) return given;
    C* const to = take(count * n);
    import_rows(given, count, locations, n, C(0), to);
    return to;
  }
  // What `give` brings to wanted [count,N], if it lies elsewhere.
  C* room(C* wanted, int64_t count) { return locations == n ? wanted : take(count * n); }
  // With what is given in it.
  C* room_from(const C* given, C* wanted, int64_t count) {
    C* const to = room(wanted, count);
    import_rows(given, count, locations, n, C(0), to);
    return to;
  }
  void give(const C* rows, C* wanted, int64_t count) const {
    if (rows != wanted) export_rows(rows, count, locations, n, wanted);
  }

  // Rows of words, [count,W] to [count,words].
  const C* word_rows(const C* given, int64_t count) {
    if (word == words) return given;
    C* const to = take(count * words);
    import_rows(given, count, word, words, C(0), to);
    return to;
  }
  C* word_room(C* wanted, int64_t count) { return word == words ? wanted : take(count * words); }
  void give_words(const C* rows, C* wanted, int64_t count) const {
    if (rows != wanted) export_rows(rows, count, word, words, wanted);
  }

  // [N,W] to [W,n], and back.
  C* memory(const C* given) {
    C* const to = take(word * n);
    import_memory(given, locations, word, n, to);
    return to;
  }
  void give_memory(const C* memory, C* wanted) const { export_memory(memory, locations, word, n, wanted); }

 private:
  Parts<C> free_;
};

// ---- by content ------------------------------------------------------------------------------------------------------------

// The weights, and what their gradient needs.
template <class C>
struct ContentOfSample {
  const C* memory;                           // [W,n]
  C *norms, *key_norms, *cosines, *weights;  // [n], [H], [H,n], [H,n]

  ContentOfSample(const MemoryOpSizes& s, const C* keys, const C* strengths, const C* given_memory, C* wanted,
                  Sample<C>& sample) {
    const int64_t n = sample.n;
    memory = sample.memory(given_memory);
    norms = sample.take(n), key_norms = sample.take(s.heads), cosines = sample.take(s.heads * n);
    weights = wanted ? sample.room(wanted, s.heads) : sample.take(s.heads * n);
    memory_norms(memory, s.word, n, norms);
    key_products(s.heads, keys, s.word, memory, s.word, n, cosines);
    for (int64_t h = 0; h < s.heads; ++h) {
      key_norms[h] = 0;
      for (int64_t w = 0; w < s.word; ++w) key_norms[h] += keys[h * s.word + w] * keys[h * s.word + w];
      content_weights(strengths[h], key_norms[h], norms, s.locations, n, cosines + h * n, weights + h * n);
    }
  }
};

// keys, strengths, memory -> weights
template <class C>
void content_weights_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const ContentOfSample<C> content(s, in[0], in[1], in[2], out[0], sample);
  sample.give(content.weights, out[0], s.heads);
}
// grad, keys, strengths, memory -> of keys, strengths, memory
template <class C>
void content_weights_backward_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const C *const keys = in[1], *const strengths = in[2];
  C *const grad_keys = out[0], *const grad_strengths = out[1];
  const int64_t n = sample.n;
  const ContentOfSample<C> content(s, keys, strengths, in[3], nullptr, sample);
  C *const grad = sample.take(s.heads * n), *const grad_norms = sample.zeros(n), *const grad_memory = sample.zeros(s.word * n);
  import_rows(in[0], s.heads, s.locations, n, C(0), grad);
  for (int64_t h = 0; h < s.heads; ++h) {
    const ContentGradient<C> key =
        content_weights_backward(strengths[h], content.key_norms[h], content.norms, n, content.cosines + h * n,
                                 content.weights + h * n, grad + h * n, grad_norms);
    grad_strengths[h] = key.strength;
    for (int64_t w = 0; w < s.word; ++w) grad_keys[h * s.word + w] = C(2) * key.key_norm * keys[h * s.word + w];
  }
  look_up_backward(Lookups<C>{s.heads, s.word, keys, grad, grad_norms, false, nullptr, nullptr, grad_keys}, content.memory,
                   s.word, n, grad_memory);
  sample.give_memory(grad_memory, out[2]);
}

// ---- usage and allocation --------------------------------------------------------------------------------------------------

// usage, write_weights, free_gates, read_weights -> usage
template <class C>
void dnc_usage_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const UsageWeights<C> weights{s.writes, s.reads, sample.n, sample.rows(in[1], s.writes), sample.rows(in[3], s.reads), in[2]};
  C* const freed = sample.room(out[0], 1);
  update_usage(weights, sample.rows(in[0], 1), freed);
  sample.give(freed, out[0], 1);
}
// grad, usage, write_weights, free_gates, read_weights -> of usage, write_weights, free_gates, read_weights
template <class C>
void dnc_usage_backward_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const UsageWeights<C> weights{s.writes, s.reads, sample.n, sample.rows(in[2], s.writes), sample.rows(in[4], s.reads), in[3]};
  C* const grad = sample.room_from(in[0], out[0], 1);
  C *const grad_write = sample.room_from(nullptr, out[1], s.writes), *const grad_read =
                                                                         sample.room_from(nullptr, out[3], s.reads);
  update_usage_backward(weights, sample.rows(in[1], 1), grad, grad_write, grad_read, out[2]);
  sample.give(grad, out[0], 1), sample.give(grad_write, out[1], s.writes), sample.give(grad_read, out[3], s.reads);
}

// usage, write_gates -> allocation, usage, kept
template <class C>
void dnc_allocation_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const int64_t n = sample.n;
  C *const allocation = sample.room(out[0], s.writes), *const usage = sample.room_from(in[0], out[1], 1);
  C *const kept = sample.room(out[2], s.writes), *const of_allocating = sample.take(3 * n);
  for (int64_t v = 0; v < s.writes; ++v) {
    C* const a = allocation + v * n;
    find_free(s.temperature, s.locations, n, usage, of_allocating, kept + v * n, a);
    for (int64_t i = 0; i < n; i += kLanes<C>) store(usage + i, more_used<C>(load(usage + i), in[1][v], load(a + i)));
  }
  sample.give(allocation, out[0], s.writes), sample.give(usage, out[1], 1), sample.give(kept, out[2], s.writes);
}
// grad_allocation, grad_usage, usage, write_gates, kept -> of usage, write_gates
template <class C>
void dnc_allocation_backward_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const int64_t n = sample.n;
  const C *const grad = sample.rows(in[0], s.writes), *const gates = in[3];
  const C* const kept = sample.rows(in[4], s.writes);
  C* const grad_usage = sample.room_from(in[1], out[0], 1);
  C *const usages = sample.take((s.writes + 1) * n), *const allocation = sample.take(s.writes * n);
  C *const of_allocation = sample.take(n), *const of_allocating = sample.take(5 * n);
  import_rows(in[2], 1, s.locations, n, C(0), usages);
  for (int64_t v = 0; v < s.writes; ++v) {  // what each head found
    C *const usage = usages + v * n, *const a = allocation + v * n;
    found_free(s.temperature, s.locations, n, usage, kept + v * n, a);
    for (int64_t i = 0; i < n; i += kLanes<C>) store(usage + n + i, more_used<C>(load(usage + i), gates[v], load(a + i)));
  }
  for (int64_t v = s.writes - 1; v >= 0; --v) {
    const C *const usage = usages + v * n, *const a = allocation + v * n;
    Vec<C> of_gate = {};
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      const MoreUsedGradient<C> of = more_used_backward<C>(load(grad_usage + i), load(usage + i), gates[v], load(a + i));
      of_gate += of.amount;
      store(of_allocation + i, load(grad + v * n + i) + of.allocation);
      store(grad_usage + i, of.usage);
    }
    out[1][v] = sum<C>(of_gate);
    find_free_backward(s.temperature, s.locations, n, usage, kept + v * n, of_allocation, of_allocating, grad_usage);
    clear_padding(grad_usage, s.locations, n);
  }
  sample.give(grad_usage, out[0], 1);
}

// ---- link ------------------------------------------------------------------------------------------------------------------

template <class C>
inline Link<C> link_of_head(const Sample<C>& sample, int64_t v, const C* link, const C* weights, const C* precedence) {
  const int64_t n = sample.n;
  return {sample.locations, n, link + v * sample.locations * n, weights + v * n, precedence + v * n};
}

// link, precedence, write_weights, read_weights -> link, precedence, forward, backward
template <class C>
void dnc_temporal_link_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const int64_t n = sample.n, v_r = s.writes * s.reads;
  const C *const precedence = sample.rows(in[1], s.writes), *const weights = sample.rows(in[2], s.writes);
  const C* const read = sample.rows(in[3], s.reads);
  C* const next = sample.room(out[1], s.writes);
  C *const forward = sample.room(out[2], v_r), *const backward = sample.room(out[3], v_r);
  for (int64_t v = 0; v < s.writes; ++v) {
    const Link<C> link = link_of_head(sample, v, in[0], weights, precedence);
    update_link(link, out[0] + v * s.locations * n, s.reads, read, forward + v * s.reads * n, backward + v * s.reads * n);
    update_precedence(n, link.weights, link.precedence, next + v * n);
  }
  sample.give(next, out[1], s.writes), sample.give(forward, out[2], v_r), sample.give(backward, out[3], v_r);
}
// grads of link, precedence, forward, backward; link, precedence, write_weights, read_weights -> of the last four
template <class C>
void dnc_temporal_link_backward_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const int64_t n = sample.n, v_r = s.writes * s.reads, matrix = s.locations * n;
  const C *const of_forward = sample.rows(in[2], v_r), *const of_backward = sample.rows(in[3], v_r);
  const C *const precedence = sample.rows(in[5], s.writes), *const weights = sample.rows(in[6], s.writes);
  const C* const read = sample.rows(in[7], s.reads);
  C *const of_link = out[0], *const of_precedence = sample.room_from(in[1], out[1], s.writes);
  C* const of_weights = sample.room_from(nullptr, out[2], s.writes);
  C* const of_read = sample.room_from(nullptr, out[3], s.reads);
  import_rows(in[0], 1, s.writes * matrix, s.writes * matrix, C(0), of_link);
  for (int64_t v = 0; v < s.writes; ++v) {
    const Link<C> link = link_of_head(sample, v, in[4], weights, precedence);
    update_precedence_backward(s.locations, n, link.weights, link.precedence, of_precedence + v * n, of_weights + v * n);
    const int64_t rows = v * s.reads * n;
    update_link_backward(link, s.reads, read,
                         LinkGradients<C>{of_link + v * matrix, of_forward + rows, of_backward + rows, of_read,
                                          of_weights + v * n, of_precedence + v * n});
  }
  sample.give(of_precedence, out[1], s.writes), sample.give(of_weights, out[2], s.writes),
      sample.give(of_read, out[3], s.reads);
}

// ---- by location, NTM ------------------------------------------------------------------------------------------------------

// content, gates, shifts, sharpness, previous -> weights
template <class C>
void ntm_location_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const int64_t n = sample.n;
  const C *const content = sample.rows(in[0], s.heads), *const previous = sample.rows(in[4], s.heads);
  C *const weights = sample.room(out[0], s.heads), *const shifted = sample.take(n), *const log = sample.take(n);
  C* const ring = sample.take(Ring<C>::size(n, s.shifts));
  for (int64_t h = 0; h < s.heads; ++h) {
    Location<C>{s.locations,          n,       s.shifts, content + h * n, previous + h * n, in[1][h], in[3][h],
                in[2] + h * s.shifts, shifted, log,      weights + h * n}
        .forward(ring);
  }
  sample.give(weights, out[0], s.heads);
}
// grad, content, gates, shifts, sharpness, previous -> of the last five
template <class C>
void ntm_location_backward_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const int64_t n = sample.n;
  const C *const content = sample.rows(in[1], s.heads), *const previous = sample.rows(in[5], s.heads);
  C *const grad = sample.room_from(in[0], out[0], s.heads), *const grad_previous = sample.room(out[4], s.heads);
  C *const weights = sample.take(n), *const shifted = sample.take(n), *const log = sample.take(n);
  C* const rings = sample.take(2 * Ring<C>::size(n, s.shifts));
  for (int64_t h = 0; h < s.heads; ++h) {
    const Location<C> location{s.locations,          n,       s.shifts, content + h * n, previous + h * n, in[2][h], in[4][h],
                               in[3] + h * s.shifts, shifted, log,      weights};
    location.forward(rings);
    location.backward(grad + h * n, grad_previous + h * n, out[1] + h, out[2] + h * s.shifts, out[3] + h, rings);
  }
  sample.give(grad, out[0], s.heads), sample.give(grad_previous, out[4], s.heads);
}

// ---- write and read --------------------------------------------------------------------------------------------------------

// memory, write_weights, erase, add -> memory
template <class C>
void memory_write_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const int64_t n = sample.n;
  C *const next = sample.take(s.word * n), *const norms = sample.take(n);
  const C *const memory = sample.memory(in[0]), *const weights = sample.rows(in[1], s.writes);
  write_memory(Write<C>{s.word, n, s.word, s.writes, memory, weights, in[2], in[3]}, next, norms);
  sample.give_memory(next, out[0]);
}
// grad, memory, write_weights, erase, add -> of the last four
template <class C>
void memory_write_backward_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  C *const grad = sample.memory(in[0]), *const grad_weights = sample.room_from(nullptr, out[1], s.writes);
  const C *const memory = sample.memory(in[1]), *const weights = sample.rows(in[2], s.writes);
  write_memory_backward(Write<C>{s.word, sample.n, s.word, s.writes, memory, weights, in[3], in[4]}, grad, grad_weights,
                        out[2], out[3]);
  sample.give_memory(grad, out[0]), sample.give(grad_weights, out[1], s.writes);
}

// Reading alone is two products of matrices, in which locations and words may change places: the memory is not turned.

// memory, read_weights -> read
template <class C>
void memory_read_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  C* const read = sample.word_room(out[0], s.reads);
  key_products(s.reads, in[1], s.locations, sample.word_rows(in[0], s.locations), s.locations, sample.words, read);
  sample.give_words(read, out[0], s.reads);
}
// grad, memory, read_weights -> of memory, read_weights
template <class C>
void memory_read_backward_of_sample(const MemoryOpSizes& s, const C* const* in, C* const* out, C* scratch) {
  Sample<C> sample(s, scratch);
  const C *const grad = sample.word_rows(in[0], s.reads), *const memory = sample.word_rows(in[1], s.locations);
  read_memory(s.reads, grad, memory, s.locations, sample.words, out[1]);
  C *const weights = sample.take(s.locations * s.reads), *const grad_memory = sample.word_room(out[0], s.locations);
  transpose_rows([&](int64_t r) { return in[2] + r * s.locations; }, s.reads, s.locations, false, weights, s.reads);
  key_products(s.locations, static_cast<const C*>(weights), s.reads, grad, s.reads, sample.words, grad_memory);
  sample.give_words(grad_memory, out[0], s.locations);
}

template <class C>
constexpr MemoryOpsKernels<C> memory_ops_kernels_of = {
    content_weights_of_sample<C>,   content_weights_backward_of_sample<C>,
    dnc_usage_of_sample<C>,         dnc_usage_backward_of_sample<C>,
    dnc_allocation_of_sample<C>,    dnc_allocation_backward_of_sample<C>,
    dnc_temporal_link_of_sample<C>, dnc_temporal_link_backward_of_sample<C>,
    ntm_location_of_sample<C>,      ntm_location_backward_of_sample<C>,
    memory_write_of_sample<C>,      memory_write_backward_of_sample<C>,
    memory_read_of_sample<C>,       memory_read_backward_of_sample<C>,
};

}  // namespace

ROUTING_EXT_DEFINE_KERNELS(WideKernels<MemoryOpsKernels>, memory_ops_kernels) = {memory_ops_kernels_of<float>,
                                                                                 memory_ops_kernels_of<double>};

}  // namespace routing_ext::cpu
