// A memory network over a sequence. The threads share the samples, and each takes its own through all steps: within a sequence
// no thread waits for another. It takes a few at a time, so that their state stays in its cache from step to step.
//
// The tape [T+1,B,row_size] has the states before and after all steps, and what the backward pass needs of them. Of the links,
// by far the largest part of a state, every link_every-th is kept; the backward pass makes those between again.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <tuple>

#include "../common/memory_step_args.h"
#include "memory_cell.h"
#include "memory_ops.h"
#include "memory_schedule.h"

namespace routing_ext::cpu {
namespace {

constexpr int64_t kBlockBytes = 2 << 20;  // of the states of samples that are taken through the sequence together

// The samples of a thread, and how many of them it takes at a time.
struct Samples {
  const Schedule& schedule;
  int64_t batch, threads, at_a_time;

  // alone: the samples come one by one, for a team of threads works on each.
  Samples(const CellShape& s, const Schedule& schedule_, int64_t passes, int64_t batch_, int64_t state_bytes, bool alone)
      : schedule(schedule_), batch(batch_) {
    const int64_t most = alone ? 1 : std::min<int64_t>(batch, at::get_num_threads());
    threads = std::clamp<int64_t>(passes * schedule.total() * cell_cost(s) / kMultiplicationsPerThread, 1,
                                  std::max<int64_t>(most, 1));
    const int64_t own = divide_up(batch, threads);
    const int64_t blocks = divide_up(own * state_bytes, kBlockBytes);
    at_a_time = std::max<int64_t>(divide_up(own, std::max<int64_t>(blocks, 1)), 1);
  }
  // f(block) for the t-th thread.
  template <class F>
  void for_each_block(int64_t t, const F& f) const {
    const Span mine = schedule.share(t, threads);
    for (int64_t b = mine.begin; b < mine.end; b += at_a_time) f(Span{b, std::min(b + at_a_time, mine.end)});
  }
};

// Memory of each thread, from one tensor: parts are taken in turn.
template <class C>
class Work {
 public:
  explicit Work(C* memory) : next_(memory) {}
  C* take(int64_t count) {
    C* const here = next_;
    next_ += AccessLayout<C>::padded(count);
    return here;
  }

 private:
  C* next_;
};

// The states of samples that begin anew, without their links. None if no sample does.
template <class C>
class InitialRows {
 public:
  // memory [B,N,W]: of each, or undefined: they are all the same.
  InitialRows(const MemoryKernels<C>& kernels, const CellShape& shape, const Schedule& schedule, const at::Tensor& memory,
              const at::TensorOptions& options) {
    if (!schedule.has_resets()) return;
    rows_ = pooled_empty({memory.defined() ? memory.size(0) : 1, CellLayout<C>(shape).row_size}, options);
    stride_ = memory.defined() ? rows_.size(1) : 0;
    kernels.cell.import_state(shape, {data_of<const C>(memory)}, {0, rows_.size(0)}, false, data_of<C>(rows_), rows_.size(1));
  }
  const C* row(int64_t sample) const { return data_of<const C>(rows_) + sample * stride_; }

 private:
  at::Tensor rows_;
  int64_t stride_ = 0;
};

template <class C>
void copy_link(const C* from, int64_t count, C* to) {  // from nullptr: zero
  from ? std::copy_n(from, count, to) : std::fill_n(to, count, C(0));
}

// Where the states and the links of a sample are, C const for the backward pass.
template <class C>
struct Tape {
  C *rows, *links;  // [T+1,B,row_size], [kept*B*V*N*n]
  int64_t batch, row_size, link_size, link_every;

  C* state(int64_t t, int64_t sample) const { return rows + (t * batch + sample) * row_size; }
  // After step t > 0; one that is kept.
  bool keeps_link(int64_t t) const { return t % link_every == 0; }
  C* link(int64_t t, int64_t sample) const { return links + ((t / link_every - 1) * batch + sample) * link_size; }
};

// What the gradients of the weights are made of, without the steps that are not there, whose rows hold anything. memory: for
// what `all` leads to afterwards.
template <class C>
void gather_steps(const Schedule& schedule, const CellShape& shape, const CellLayout<C>& at, const Tape<const C>& tape,
                  const InitialRows<C>& initial, C* memory, CellWeightGradients<C>& all) {
  C *const x = memory, *const seen = x + all.depth * shape.input, *const made = seen + all.depth * all.stride;
  C* const grads = made + all.depth * all.stride;
  int64_t k = 0;
  schedule.for_each_step([&](int64_t t, int64_t b, bool anew) {
    const int64_t sample = t * tape.batch + b;
    std::copy_n(all.x + sample * shape.input, shape.input, x + k * shape.input);
    std::copy_n((anew ? initial.row(b) : tape.state(t, b)) + at.features, shape.features(), seen + k * all.stride);
    std::copy_n(tape.state(t + 1, b) + at.features, shape.features(), made + k * all.stride);
    std::copy_n(all.grads + sample * at.grad_size, at.grad_size, grads + k * at.grad_size);
    ++k;
  });
  all.x = x, all.seen = seen, all.made = made, all.grads = grads;
}

at::Tensor empty_link(const MemorySizes& s, const at::TensorOptions& options) {
  return pooled_empty({s.batch, s.writes, s.locations, padded_locations(s.locations, options.dtype().itemsize())}, options);
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>> memory_sequence_cpu(
    std::string_view model, at::ArrayRef<double> options_, const at::Tensor& x,
    const c10::List<std::optional<at::Tensor>>& state, at::TensorList weights, const std::optional<at::Tensor>& lengths,
    const std::optional<at::Tensor>& resets, const std::optional<at::Tensor>& reset_memory, at::IntArrayRef sizes_,
    double clip_value, int64_t link_every, bool keep) {
  MemorySequenceArgs a(model, options_, x, state, weights, reset_memory, sizes_, link_every);
  const MemorySizes& sizes = a.sizes;
  const CellShape shape = cell_shape(sizes, clip_value);
  const int64_t steps = sizes.steps, batch = sizes.batch;
  const at::TensorOptions options = x.options();
  const Schedule schedule(a.kOp, steps, batch, lengths, resets);
  a.x = schedule.ordered(a.x, 1), a.reset_memory = schedule.ordered(a.reset_memory, 0);
  for (at::Tensor& t : a.state) t = schedule.ordered(t, 0);
  const at::Tensor y = pooled_empty({steps, batch, sizes.y_size()}, options);
  if (schedule.has_lengths()) y.zero_();
  std::vector<at::Tensor> final_state, tape_tensors;
  for (const Shape& s : sizes.state_shapes()) final_state.push_back(pooled_empty(s, options));
  at::Tensor link, final_link;  // padded
  if (sizes.linked) {
    at::Tensor& last = final_state[MemorySizes::kLink];
    if (!a.state.empty() && a.state[MemorySizes::kLink].defined()) link = padded_link(a.state[MemorySizes::kLink]);
    final_link = padded_locations(sizes.locations, x.element_size()) == sizes.locations ? last : empty_link(sizes, options);
    if (steps == 0) link.defined() ? final_link.copy_(link) : final_link.zero_();
  }

  with_kernels(memory_kernels(), x.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    const PackedLayout<C> packed_at(shape);
    const int64_t row = at.row_size, link_size = at.access.link_size, interface_size = shape.access.interface_size();
    const SampleTeam team(shape, batch, at.access.n, options);
    const Samples samples(shape, schedule, 1, batch, sizeof(C) * (2 * at.access.memory_size + link_size), team.get());
    if (keep) {
      tape_tensors = {pooled_empty({steps + 1, batch, row}, options),
                      pooled_empty({sizes.links_on_tape(link_every, x.element_size())}, options)};
    }

    const WeightPointers<const C> given(sizes, a.weights);
    const at::Tensor packed_tensor = pooled_empty({packed_at.forward_size}, options);
    C* const packed = data_of<C>(packed_tensor);
    in_threads(samples.threads, [&](int64_t t) { kernels.cell.pack_forward(shape, *given, packed, t, samples.threads); });

    const CellState<const C> before = cell_state<const C>(sizes, a.state);
    const CellState<C> after = cell_state<C>(sizes, final_state);
    const int64_t rows_at_a_time = samples.at_a_time;
    const int64_t slots = keep ? 0 : 2 * rows_at_a_time * row, between = rows_at_a_time * link_size;
    const int64_t work_size = slots + between + AccessLayout<C>::padded(rows_at_a_time * interface_size) +
                              AccessLayout<C>::padded(at.access.scratch_size);
    const at::Tensor work_tensor = pooled_empty({samples.threads, work_size}, options);
    C *const work_data = data_of<C>(work_tensor), *const y_data = data_of<C>(y), *const last_link = data_of<C>(final_link);
    const C *const x_data = data_of<const C>(a.x), *const first_link = data_of<const C>(link);
    const auto tape_data = [&](size_t i) { return keep ? data_of<C>(tape_tensors[i]) : nullptr; };
    const Tape<C> tape{tape_data(0), tape_data(1), batch, row, link_size, link_every};
    const InitialRows<C> initial(kernels, shape, schedule, a.reset_memory, options);

    in_threads(samples.threads, [&](int64_t thread) {
      Work<C> work(work_data + thread * work_size);
      C *const own_rows = work.take(slots), *const own_links = work.take(between);
      C *const interface = work.take(rows_at_a_time * interface_size), *const scratch = work.take(at.access.scratch_size);
      samples.for_each_block(thread, [&](Span block) {
        const int64_t first = block.begin;
        const auto slot = [&](int64_t t) { return keep ? tape.state(t, first) : own_rows + t % 2 * rows_at_a_time * row; };
        const auto link_after = [&](int64_t t) {
          if (t == steps) return last_link + first * link_size;
          return keep && tape.keeps_link(t) ? tape.link(t, first) : own_links;
        };
        kernels.cell.import_state(shape, before, block, false, slot(0), row);
        const C* previous_link = first_link ? first_link + first * link_size : nullptr;
        for (int64_t t = 0; t <= steps; ++t) {
          const Span ending = schedule.ending(block, t);
          if (ending.size() > 0) {
            kernels.cell.export_state(shape, slot(t) + (ending.begin - first) * row, row, after, ending);
            if (t < steps) {
              copy_link(previous_link ? previous_link + (ending.begin - first) * link_size : nullptr,
                        ending.size() * link_size, last_link + ending.begin * link_size);
            }
          }
          if (schedule.active(block, t) == 0) break;
          C* const next_link = link_after(t + 1);
          schedule.for_each_run(block, t, [&](Span run, bool anew) {
            const int64_t skipped = run.begin - first, links = skipped * link_size, sample = t * batch + run.begin;
            kernels.cell.forward(shape, {run.size(), packed, x_data + sample * shape.input,
                                         anew ? initial.row(run.begin) : slot(t) + skipped * row,
                                         anew || !previous_link ? nullptr : previous_link + links, slot(t + 1) + skipped * row,
                                         next_link + links, y_data + sample * shape.y_size(), interface, scratch, team.get()});
          });
          previous_link = next_link;
        }
      });
    });
  });
  if (sizes.linked) final_state[MemorySizes::kLink] = unpadded_link(final_link, sizes.locations);
  for (at::Tensor& t : final_state) t = schedule.restored(t, 0);
  return {schedule.restored(y, 1), std::move(final_state), std::move(tape_tensors)};
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>, at::Tensor> memory_sequence_backward_cpu(
    std::string_view model, at::ArrayRef<double> options_, const std::optional<at::Tensor>& grad_y,
    const c10::List<std::optional<at::Tensor>>& grad_state, const at::Tensor& x, const std::optional<at::Tensor>& link,
    at::TensorList weights, const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& resets,
    const std::optional<at::Tensor>& reset_memory, at::TensorList given_tape, at::IntArrayRef sizes_, double clip_value,
    int64_t link_every, std::array<bool, 4> output_mask) {
  MemorySequenceBackwardArgs a(model, options_, grad_y, grad_state, x, link, weights, reset_memory, sizes_, link_every,
                               output_mask);
  const MemorySizes& sizes = a.sizes;
  const CellShape shape = cell_shape(sizes, clip_value);
  const int64_t steps = sizes.steps, batch = sizes.batch;
  const at::TensorOptions options = x.options();
  const Schedule schedule(a.kOp, steps, batch, lengths, resets);
  a.x = schedule.ordered(a.x, 1), a.grad_y = schedule.ordered(a.grad_y, 1), a.link = schedule.ordered(a.link, 0);
  a.reset_memory = schedule.ordered(a.reset_memory, 0);
  for (at::Tensor& t : a.grad_state) t = schedule.ordered(t, 0);
  const at::Tensor grad_x = pooled_empty(a.wants_x ? a.x.sizes() : at::IntArrayRef{0}, options);
  if (schedule.has_lengths()) grad_x.zero_();
  std::vector<at::Tensor> grad_weights, grad_initial;
  if (a.wants_weights) {
    for (const Shape& s : sizes.weight_shapes()) grad_weights.push_back(pooled_empty(s, options));
  }
  const bool wants_link = sizes.linked && a.wants_state && a.link.defined();
  if (a.wants_state) {
    for (const Shape& s : sizes.state_shapes()) grad_initial.push_back(pooled_empty(s, options));
    if (sizes.linked && !wants_link) grad_initial[MemorySizes::kLink] = at::empty({0}, options);
  }
  at::Tensor grad_reset = pooled_empty({0}, options);
  at::Tensor first_link, of_last_link, of_first_link;  // padded
  if (sizes.linked) {
    if (a.link.defined()) first_link = padded_link(a.link);
    if (a.grad_state[MemorySizes::kLink].defined()) of_last_link = padded_link(a.grad_state[MemorySizes::kLink]);
    if (wants_link) {
      const bool direct = padded_locations(sizes.locations, x.element_size()) == sizes.locations;
      of_first_link = direct ? grad_initial[MemorySizes::kLink] : empty_link(sizes, options);
    }
  }

  with_kernels(memory_kernels(), x.scalar_type(), [&](auto kernel_type, const auto& kernels) {
    using C = typename decltype(kernel_type)::type;
    const CellLayout<C> at(shape);
    const PackedLayout<C> packed_at(shape);
    const int64_t row = at.row_size, link_size = at.access.link_size;
    a.check_tape(given_tape, row);
    const SampleTeam team(shape, batch, at.access.n, options);
    const Samples samples(shape, schedule, 3, batch,
                          sizeof(C) * (2 * at.access.memory_size + (1 + std::min(link_every, steps)) * link_size), team.get());

    const WeightPointers<const C> given(sizes, a.weights);
    const at::Tensor packed_tensor = pooled_empty({packed_at.backward_size}, options);
    C* const packed = data_of<C>(packed_tensor);
    in_threads(samples.threads, [&](int64_t t) { kernels.cell.pack_backward(shape, *given, packed, t, samples.threads); });

    const CellState<const C> after = cell_state<const C>(sizes, a.grad_state);
    const CellState<C> before = cell_state<C>(sizes, grad_initial);
    const int64_t at_a_time = samples.at_a_time,
                  between = std::max<int64_t>(std::min(link_every, steps) - 1, 0) * at_a_time * link_size;
    const int64_t own_grad_link = of_first_link.defined() ? 0 : at_a_time * link_size;
    const int64_t work_size =
        at_a_time * at.state_size + own_grad_link + between + AccessLayout<C>::padded(at.access.scratch_size);
    const at::Tensor work_tensor = pooled_empty({samples.threads, work_size}, options);
    const at::Tensor grads_tensor = pooled_empty({steps, batch, at.grad_size}, options);
    C *const work_data = data_of<C>(work_tensor), *const grads = data_of<C>(grads_tensor),
             *const x_grads = a.wants_x ? data_of<C>(grad_x) : nullptr;
    const C *const y_grads = data_of<const C>(a.grad_y), *const link_0 = data_of<const C>(first_link);
    const C* const link_grads = data_of<const C>(of_last_link);
    C* const link_0_grads = data_of<C>(of_first_link);
    const Tape<const C> tape{
        data_of<const C>(given_tape[0]), data_of<const C>(given_tape[1]), batch, row, link_size, link_every};
    const InitialRows<C> initial(kernels, shape, schedule, a.reset_memory, options);
    at::Tensor of_resets;  // rows like those of states, with the memory alone
    if (a.wants_reset_memory) of_resets = at::zeros({batch, at.state_size}, options);
    C* const reset_grads = data_of<C>(of_resets);

    in_threads(samples.threads, [&](int64_t thread) {
      Work<C> work(work_data + thread * work_size);
      C *const grad_rows = work.take(at_a_time * at.state_size), *const own_link_grads = work.take(own_grad_link);
      C *const own_links = work.take(between), *const scratch = work.take(at.access.scratch_size);
      samples.for_each_block(thread, [&](Span block) {
        const int64_t first = block.begin, links_offset = first * link_size, of_block = block.size() * link_size;
        const auto link_after = [&](int64_t t) -> const C* {
          if (t == 0) return link_0 ? link_0 + links_offset : nullptr;
          if (tape.keeps_link(t)) return tape.link(t, first);
          return own_links + (t % link_every - 1) * at_a_time * link_size;
        };
        // The links after the steps kept + 1 .. t, of which the one after `kept` is there.
        const auto remake_links = [&](int64_t kept, int64_t t) {
          for (; kept < t; ++kept) {
            const C* const previous = link_after(kept);
            C* const next = own_links + kept % link_every * at_a_time * link_size;
            schedule.for_each_run(block, kept, [&](Span run, bool anew) {
              const int64_t links = (run.begin - first) * link_size;
              kernels.cell.relink(shape, run.size(), anew ? initial.row(run.begin) : tape.state(kept, run.begin),
                                  anew || !previous ? nullptr : previous + links, tape.state(kept + 1, run.begin),
                                  next + links, team.get());
            });
          }
        };
        C* const grad_link = link_0_grads ? link_0_grads + links_offset : own_link_grads;
        if (link_grads) {
          std::copy_n(link_grads + links_offset, of_block, grad_link);
        } else if (link_size > 0) {
          std::fill_n(grad_link, of_block, C(0));
        }
        kernels.cell.import_state(shape, after, block, true, grad_rows, at.state_size);
        const int64_t last = schedule.length(first);
        for (int64_t t = last; t > 0; --t) {
          const int64_t kept = (t - 1) / link_every * link_every;
          if (link_size > 0 && (t == last || tape.keeps_link(t))) remake_links(kept, t - 1);
          const C* const previous_link = link_size > 0 ? link_after(t - 1) : nullptr;
          schedule.for_each_run(block, t - 1, [&](Span run, bool anew) {
            const int64_t sample = (t - 1) * batch + run.begin, skipped = run.begin - first, links = skipped * link_size;
            C* const grad_state = grad_rows + skipped * at.state_size;
            kernels.cell.backward(shape, {run.size(), packed, anew ? initial.row(run.begin) : tape.state(t - 1, run.begin),
                                          anew || !previous_link ? nullptr : previous_link + links, tape.state(t, run.begin),
                                          y_grads ? y_grads + sample * shape.y_size() : nullptr, grad_state, grad_link + links,
                                          grads + sample * at.grad_size, x_grads ? x_grads + sample * shape.input : nullptr,
                                          scratch, team.get(), anew || (t == 1 && !a.wants_state)});
            if (!anew) return;
            for (int64_t i = 0; reset_grads && i < at.access.memory_size; ++i)
              reset_grads[run.begin * at.state_size + at.memory + i] += grad_state[at.memory + i];
            std::fill_n(grad_state, at.state_size, C(0)), std::fill_n(grad_link + links, link_size, C(0));
          });
        }
        if (a.wants_state) kernels.cell.export_state(shape, grad_rows, at.state_size, before, block);
      });
    });

    if (a.wants_reset_memory) {
      grad_reset = pooled_empty(a.reset_memory.sizes(), options);
      kernels.cell.export_state(shape, reset_grads, at.state_size, {data_of<C>(grad_reset)}, {0, batch});
    }
    if (!a.wants_weights) return;
    const WeightPointers<C> wanted(sizes, grad_weights);
    CellWeightGradients<C> all{
        steps * batch, data_of<const C>(a.x), tape.rows + at.features, tape.state(1, 0) + at.features, row, grads, *wanted};
    at::Tensor gathered;
    if (!schedule.is_plain()) {
      all.depth = schedule.total(), all.stride = AccessLayout<C>::padded(shape.features());
      gathered = pooled_empty({all.depth * (shape.input + 2 * all.stride + at.grad_size)}, options);
      gather_steps(schedule, shape, at, tape, initial, data_of<C>(gathered), all);
    }
    const int64_t threads = at::get_num_threads();
    in_threads(threads, [&](int64_t t) { kernels.cell.weight_gradients(shape, all, t, threads); });
  });
  if (wants_link) grad_initial[MemorySizes::kLink] = unpadded_link(of_first_link, sizes.locations);
  for (at::Tensor& t : grad_initial) t = t.size(0) == batch ? schedule.restored(t, 0) : t;
  return {a.wants_x ? schedule.restored(grad_x, 1) : grad_x, std::move(grad_weights), std::move(grad_initial),
          a.wants_reset_memory ? schedule.restored(grad_reset, 0) : grad_reset};
}

int64_t memory_row_size(std::string_view model, at::ArrayRef<double> options, at::IntArrayRef sizes, at::ScalarType dtype) {
  const CellShape shape = cell_shape(MemoryStepSizes("memory_row_size", model, options, sizes), 0);
  return dtype == at::kFloat ? CellLayout<float>(shape).row_size : CellLayout<double>(shape).row_size;
}

}  // namespace

TORCH_LIBRARY_IMPL(routing_ext, CompositeExplicitAutograd, m) { m.impl("memory_row_size", memory_row_size); }
TORCH_LIBRARY_IMPL(routing_ext, CPU, m) {
  m.impl("memory_sequence", memory_sequence_cpu);
  m.impl("memory_sequence_backward", memory_sequence_backward_cpu);
}

}  // namespace routing_ext::cpu
