"""Options, and the fixture ``compare`` that measures a case's sides in turns and keeps the figures."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pytest
import torch

from benchmarks import results
from benchmarks.machine import describe_machine, machine_slug
from benchmarks.measure import NOISY, Kind, NoiseCheck, Side, Times, check_agreement, idle_gradients, measure
from benchmarks.rates import Rates, Work, measure_rates
from benchmarks.workloads import Case

Compare = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("routing_ext benchmarks")
    group.addoption(
        "--tiny", action="store_true", help="small inputs and few rounds: whether the benchmarks work, not how fast"
    )
    group.addoption("--threads", type=int, default=1, help="of torch, default 1")
    group.addoption("--budget", type=float, default=5.0, help="seconds for each row, default 5")
    group.addoption("--with-compile", action="store_true", help="torch.compile'd forms, too, where a case asks for them")
    group.addoption("--reference", metavar="DIR", help="a checkout of PytorchRouting, to measure it beside ours")
    group.addoption("--reference-dnc", metavar="DIR", help="a checkout of pytorch-dnc, to measure it beside ours")
    group.addoption("--reference-dnc-package", metavar="DIR", help="a checkout of the package dnc, to measure it beside ours")
    group.addoption("--save-results", action="store_true", help="write the rows to benchmarks/results/<machine>.json")


def cases_of(module: Any, tiny: bool) -> Sequence[Case]:
    """A bench module lists its cases as CASES, and small ones for CI as TINY."""
    return module.TINY if tiny else module.CASES  # type: ignore[no-any-return]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = cases_of(metafunc.module, metafunc.config.getoption("tiny"))
    marks = {True: [pytest.mark.headline], False: []}
    metafunc.parametrize("case", [pytest.param(case, id=case.id, marks=marks[case.headline]) for case in cases])


class Recorder:
    """What a whole run shares."""

    def __init__(self, config: pytest.Config) -> None:
        self.tiny: bool = config.getoption("tiny")
        self.threads: int = config.getoption("threads")
        self.budget: float = 0.0 if self.tiny else config.getoption("budget")
        self.rounds = (2, 2) if self.tiny else (5, 2000)
        self.rows: list[results.Row] = []
        self.noise = NoiseCheck(self.threads)
        self.rates = Rates(self.threads)

    def rates_for(self, work: Work) -> Rates:
        if work.dtype not in self.rates.gflops:
            new = measure_rates(self.threads, [work.dtype], budget=0.01 if self.tiny else 0.3)
            self.rates = Rates(self.threads, {**self.rates.gflops, **new.gflops}, self.rates.bandwidth or new.bandwidth)
        return self.rates

    def measure(self, sides: Sequence[Side]) -> tuple[dict[str, Times], float]:
        """The times, and how much the machine was disturbed; once again if it was too much, and the quieter of the two."""
        attempts = []
        for _ in range(1 if self.tiny else 2):
            before = self.noise()
            wall, cpu = time.perf_counter(), time.thread_time()
            times = measure(sides, self.budget, *self.rounds)
            waited = 1 - (time.thread_time() - cpu) / (time.perf_counter() - wall)
            attempts.append((times, max(before, self.noise(), waited)))
            if attempts[-1][1] < NOISY:
                break
        return min(attempts, key=lambda attempt: attempt[1])

    def describe(self) -> str:
        lines = [f"{self.threads} thread(s)"]
        for dtype, by_whom in self.rates.gflops.items():
            lines.append(f"  {dtype} GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in by_whom.items()))
        lines.append(
            "  copy, GB/s: " + ", ".join(f"{size >> 10} KiB {rate:.0f}" for size, rate in self.rates.bandwidth.items())
        )
        for row in self.rows:
            ours = next(iter(row["sides"].values()))
            against = ", ".join(f"{s['ratio'][0]:.2f}x {name}" for name, s in row["sides"].items() if "ratio" in s)
            floor = f", {row['floor_us'] / ours['us'][1]:.0%} of the floor" if "floor_us" in row else ""
            noisy = f"  NOISY ({row['noise']:.0%})" if row["noise"] >= NOISY else ""
            lines.append(f"  {row['bench']}[{row['id']}] {ours['us'][1]:.1f} us{floor}: {against}{noisy}")
        return "\n".join(lines)


@pytest.fixture(scope="session")
def recorder(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    torch.set_num_threads(request.config.getoption("threads"))
    recorder = Recorder(request.config)
    yield recorder
    if recorder.tiny or not recorder.rows:
        return
    print("\n" + recorder.describe())
    if request.config.getoption("save_results"):
        path = results.merge(machine_slug(), describe_machine(), recorder.rates.as_json(), recorder.rows)
        print(f"  written to {path}")


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any, case: Case, recorder: Recorder) -> Iterator[Compare]:
    """``compare(sides, work)``: checks that all sides agree, then measures them; the first is ours."""
    bench = request.function.__name__.removeprefix("bench_")

    def compare(sides: Sequence[Side], work: Work | None = None, **info: object) -> None:
        check_agreement(sides)
        idle = idle_gradients(sides[0])
        zero_gradients = [s.name for s in sides if idle and s.parameters and s.results and not idle_gradients(s)]
        if benchmark.disabled:
            return
        times, noise = recorder.measure(sides)
        row: results.Row = {
            "bench": bench,
            "id": case.id,
            "position": cases_of(request.module, recorder.tiny).index(case),
            "threads": recorder.threads,
            "date": datetime.date.today().isoformat(),
            "headline": case.headline,
            "case": asdict(case),
            **info,
            "noise": round(noise, 3),
        }
        if work is not None:
            floor, row["floor_of"] = work.floor(recorder.rates_for(work))
            row["floor_us"] = _figures(floor * 1e6)[0]
        ours = times[sides[0].name]
        row["sides"] = {}
        for side in sides:
            figures: dict[str, Any] = {"kind": side.kind.value}
            figures["us"] = _figures(*(1e6 * t for t in times[side.name].quartiles()))
            figures["rounds"] = len(times[side.name].rounds)
            if side.kind in (Kind.REFERENCE, Kind.TORCH):
                ratio, q1, q3 = times[side.name].ratio_to(ours)
                figures["ratio"] = _figures(ratio, q1, q3)
            if side.name in zero_gradients:
                figures["zero_gradients"] = True
            row["sides"][side.name] = figures
            _hand_over(benchmark, f"{request.node.nodeid}::{side.name}", times[side.name], figures)
        recorder.rows.append(row)

    yield compare
    torch.set_grad_enabled(True)


def _figures(*values: float) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


def _hand_over(benchmark: Any, fullname: str, times: Times, extra_info: dict[str, Any]) -> None:
    """An entry in pytest-benchmark's tables and JSON. It times one function a test by itself; these were timed in turns."""
    _, test, side = fullname.split("::")
    benchmark.name, benchmark.fullname, benchmark.group, benchmark.extra_info = side, fullname, test, extra_info
    benchmark._mode = "compare(...)"
    stats = benchmark._make_stats(iterations=1)
    for seconds in times.rounds.values():
        stats.update(seconds)
