"""Times several implementations of one thing in turns, in one process: a disturbance or a cold cache meets all alike."""

from __future__ import annotations

import bisect
import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor


class Kind(str, Enum):
    OURS = "ours"
    KERNELS = "kernels"  # our raw operators, without Python layers and autograd
    REFERENCE = "reference"  # the plain-Python loop
    TORCH = "torch"  # another way to compute the same in PyTorch
    BOUND = "bound"  # a part of the work that nothing of this form can avoid


@dataclass
class Side:
    """One implementation. ``call`` is timed, ``prepare`` runs before each call and is not."""

    name: str
    kind: Kind
    call: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    results: Callable[[object], Sequence[Tensor]] | None = None
    """What ``call`` computed, of its return value: what all sides must agree on. None: the side computes only a part of it."""
    parameters: Sequence[Tensor] = ()
    """Whose gradients ``call`` leaves behind."""


@dataclass
class Times:
    """Seconds of single calls, by round."""

    rounds: dict[int, float] = field(default_factory=dict)

    def quartiles(self) -> tuple[float, float, float]:
        return quartiles(list(self.rounds.values()))

    def ratio_to(self, other: Times) -> tuple[float, float, float]:
        """How many times longer than the other: median and quartiles over the rounds of whichever ran more rarely.

        Each of them is compared with the median of those rounds of the one that ran more often to which it is the nearest.
        """
        rarer, often = sorted((self.rounds, other.rounds), key=len)
        nearest = _by_nearest(list(rarer), often)
        ratios = [rarer[r] / statistics.median(times) for r, times in nearest.items()]
        q1, median, q3 = quartiles(ratios if rarer is self.rounds else [1 / ratio for ratio in ratios])
        return median, q1, q3


def _by_nearest(rounds: Sequence[int], times: dict[int, float]) -> dict[int, list[float]]:
    """The times, by the nearest of `rounds`; both ascend."""
    ends = [(a + b) / 2 for a, b in itertools.pairwise(rounds)]
    found: dict[int, list[float]] = {}
    for r, seconds in times.items():
        found.setdefault(rounds[bisect.bisect_left(ends, r)], []).append(seconds)
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, median, q3


def measure(sides: Sequence[Side], budget: float, min_rounds: int, max_rounds: int) -> dict[str, Times]:
    """Each side's times, by name.

    In each round every side runs once, in random order. A side so slow that it would use up more than its share of ``budget``
    (seconds) takes part in some of the rounds only, spread evenly and at least ``min_rounds``.
    """
    order = random.Random(0)
    times = {side.name: Times() for side in sides}
    with _without_garbage_collection():
        share = budget / len(sides)
        wanted = [min(max(int(share / _time(side)), min_rounds), max_rounds) for side in sides]
        rounds = max(wanted)
        for r in range(rounds):
            due = [s for s, n in zip(sides, wanted, strict=True) if (r + 1) * n // rounds > r * n // rounds]
            order.shuffle(due)
            for side in due:
                times[side.name].rounds[r] = _time(side)
    return times


def _time(side: Side) -> float:
    side.prepare()
    begin = time.perf_counter_ns()
    result = side.call()
    end = time.perf_counter_ns()
    del result
    return (end - begin) * 1e-9


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def fastest(call: Callable[[], object], budget: float = 0.3, min_calls: int = 10) -> float:
    """Seconds of the fastest call: what the machine can do."""
    call()
    best, end, calls = float("inf"), time.perf_counter() + budget, 0
    while calls < min_calls or time.perf_counter() < end:
        best = min(best, _time(Side("", Kind.BOUND, call)))
        calls += 1
    return best


class Disagreement(AssertionError):
    pass


TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def check_agreement(sides: Sequence[Side]) -> None:
    """Fails unless all sides compute what the first does: a benchmark of something else is worth nothing.

    Errors are relative to the largest element of each result.
    """
    expected: Sequence[Tensor] | None = None
    for side in sides:
        if side.results is None:
            continue
        side.prepare()
        side.call()  # a first call may differ: the reference's asks a module for the shape of its output
        side.prepare()
        results = side.results(side.call())
        if expected is None:
            expected = [r.detach().clone() for r in results]
        for i, (actual, wanted) in enumerate(zip(results, expected, strict=True)):
            if actual.shape != wanted.shape or actual.dtype != wanted.dtype:
                raise Disagreement(
                    f"{side.name}: result {i} is {list(actual.shape)}, {actual.dtype}; "
                    f"{sides[0].name} has {list(wanted.shape)}, {wanted.dtype}"
                )
            if wanted.numel() == 0:
                continue
            error = float((actual.detach().double() - wanted.double()).abs().max())
            allowed = TOLERANCE.get(wanted.dtype, 0.0) * max(1.0, float(wanted.double().abs().max()))
            if not error <= allowed:  # NaN is an error, too
                raise Disagreement(
                    f"{side.name}: result {i} differs from {sides[0].name}'s by {error:.3g} (allowed {allowed:.3g})"
                )


def idle_gradients(side: Side) -> int:
    """How many parameters the last call left without a gradient."""
    return sum(p.grad is None for p in side.parameters)


class NoiseCheck:
    """Tells whether something else uses the machine: a fixed piece of work, and an empty parallel region, last longer then."""

    def __init__(self, threads: int) -> None:
        # 2.5 times at::internal::GRAIN_SIZE, so that torch opens a parallel region for next to no work.
        self._region = torch.zeros(81920) if threads > 1 else None
        self._quiet = float("inf")
        self()

    def __call__(self) -> float:
        """The share of disturbed calls, between 0 and 1."""
        spins = [_time(Side("", Kind.BOUND, _spin)) for _ in range(40)]
        self._quiet = min(self._quiet, *spins)
        share = sum(t > 1.25 * self._quiet for t in spins) / len(spins)
        if self._region is not None:
            regions = [_time(Side("", Kind.BOUND, self._region.neg_)) for _ in range(200)]
            share = max(share, sum(t > 1e-3 for t in regions) / len(regions))
        return share


NOISY = 0.1
"""A row is flagged if so many calls were disturbed before or after it, or if it waited for a core for so much of its time."""


def _spin() -> int:
    total = 0
    for i in range(10000):
        total += i
    return total
