// Which samples take part in which steps of a sequence, and where they begin anew.
//
// The samples are taken in the order of their lengths, the longest first. So of some that lie next to each other, those that
// take part in a step are the first ones.
#pragma once
#include <ATen/ops/argsort.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/memory_masks_args.h"
#include "threads.h"

namespace routing_ext::cpu {

class Schedule {
 public:
  // lengths: int64 [B], resets: bool [T,B]; without them all samples take part in all steps and never begin anew.
  Schedule(const char* op, int64_t steps, int64_t batch, const std::optional<at::Tensor>& lengths,
           const std::optional<at::Tensor>& resets)
      : steps_(steps), batch_(batch), resets_(checked_resets(op, resets, steps, batch, at::kCPU)) {
    const at::Tensor given = checked_lengths(op, lengths, batch, at::kCPU);
    if (!given.defined()) return;
    order_ = at::argsort(given, /*stable=*/true, /*dim=*/0, /*descending=*/true);
    for (int64_t b = 0; b < batch; ++b) {
      lengths_.push_back(given.const_data_ptr<int64_t>()[sample(b)]);
      CHECK_ARG(op, "lengths", lengths_[b] >= 0 && lengths_[b] <= steps, "must be from 0 to ", steps, ", got ", lengths_[b]);
    }
  }

  bool is_plain() const { return lengths_.empty() && !resets_.defined(); }
  bool has_lengths() const { return order_.defined(); }
  bool has_resets() const { return resets_.defined(); }
  int64_t length(int64_t b) const { return has_lengths() ? lengths_[b] : steps_; }
  int64_t total() const {  // steps of all samples
    int64_t sum = 0;
    for (int64_t b = 0; b < batch_; ++b) sum += length(b);
    return sum;
  }

  // With the samples, along `dim`, in the order of the schedule; and back.
  at::Tensor ordered(const at::Tensor& t, int64_t dim) const {
    return has_lengths() && t.defined() ? t.index_select(dim, order_) : t;
  }
  at::Tensor restored(const at::Tensor& t, int64_t dim) const {
    return has_lengths() && t.defined() ? at::empty_like(t).index_copy_(dim, order_, t) : t;
  }

  // The samples of the t-th of `threads` threads: of about as many steps as any other's.
  Span share(int64_t t, int64_t threads) const {
    if (!has_lengths()) return part_of(batch_, t, threads);
    return {boundary(t, threads), boundary(t + 1, threads)};
  }
  // How many of these samples take the step from time t to t + 1: the first ones.
  int64_t active(Span samples, int64_t t) const {
    if (!has_lengths()) return t < steps_ ? samples.size() : 0;
    const auto begin = lengths_.begin() + samples.begin, end = lengths_.begin() + samples.end;
    return std::partition_point(begin, end, [t](int64_t length) { return length > t; }) - begin;
  }
  // Those whose last state is that at time t.
  Span ending(Span samples, int64_t t) const {
    return {samples.begin + active(samples, t), samples.begin + (t == 0 ? samples.size() : active(samples, t - 1))};
  }
  // f(some samples, begin_anew) for those that take the step from time t: many together, but one by one where they begin anew.
  template <class F>
  void for_each_run(Span samples, int64_t t, const F& f) const {
    const int64_t end = samples.begin + active(samples, t);
    int64_t first = samples.begin;
    for (int64_t b = first; resets_.defined() && b < end; ++b) {
      if (!resets_.const_data_ptr<bool>()[t * batch_ + sample(b)]) continue;
      if (first < b) f(Span{first, b}, false);
      f(Span{b, b + 1}, true);
      first = b + 1;
    }
    if (first < end) f(Span{first, end}, false);
  }
  // f(t, sample, begins_anew) for each step of each sample; those of one time together.
  template <class F>
  void for_each_step(const F& f) const {
    for (int64_t t = 0; t < steps_; ++t) {
      for_each_run(Span{0, batch_}, t, [&](Span run, bool anew) {
        for (int64_t b = run.begin; b < run.end; ++b) f(t, b, anew);
      });
    }
  }

 private:
  int64_t sample(int64_t b) const { return has_lengths() ? order_.const_data_ptr<int64_t>()[b] : b; }
  int64_t boundary(int64_t t, int64_t threads) const {
    if (t == threads) return batch_;
    const int64_t before = total() * t / threads;
    int64_t b = 0, sum = 0;
    while (b < batch_ && sum < before) sum += lengths_[b++];
    return b;
  }

  int64_t steps_, batch_;
  at::Tensor order_, resets_;
  std::vector<int64_t> lengths_;  // in order
};

}  // namespace routing_ext::cpu
