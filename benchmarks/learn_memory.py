"""Whether memory networks learn here as they do in the reference, how long it takes, and how far it reaches, over seeds.

    python -m benchmarks.learn_memory --reference-dnc DIR

- repeat-copy: the 500 steps that pytorch-dnc shows in its log, with its numbers, by its agent and by ours, by turns.
- speed: how long a step of an NTM on copy takes.
- copy: an NTM until it copies, with the reference's numbers and with ours, and then more words than it was trained on.
- de-allocation: a DNC on repeat-copy without it, with that of the reference, and with one that erases what it frees, and then
  more words and more repeats.

Writes ``benchmarks/results/learning-memory.json`` after each training; ``python -m benchmarks.make_readme`` makes tables and
figure of it. What is stored is not measured again, and a training that was stopped goes on from its last checkpoint:
``--again repeat-copy speed`` measures parts anew, these being all whose times are shown. They need a quiet machine; the others
do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks import results
from benchmarks.machine import describe_machine
from benchmarks.reference_agent import train_reference
from routing_ext.memory import DNCCircuit
from routing_ext.tasks import Copy, RepeatCopy, SequenceTask
from routing_ext.training import PRESETS, Interrupted, Run, SequenceProblem, TrainConfig, Trainer, default_setup
from routing_ext.training.watch import JsonLines, Kind, LogFile, Sink

SOLVED = 0.01  # bits for each bit that counts
CURVE = 20  # points
TEST_SEQUENCES = 100
COPY_EVALUATIONS = 10  # batches


class Settings(NamedTuple):
    seeds: int = 5
    repeat_copy_steps: int = 500
    speed_steps: int = 1000
    copy_preset_seeds: int = 3
    copy_preset_steps: int = 50_000
    copy_steps: int = 4000  # as `routing-ext train copy`
    de_allocation_steps: int = 8000


SETTINGS = Settings()
DE_ALLOCATION_TASK = RepeatCopy(max_num_words=4, max_repeats=4)  # at the preset's sizes, nothing but these is learned


@dataclasses.dataclass(frozen=True)
class WithoutFreeGates(SequenceProblem):
    """A DNC whose free gates stay shut: at a bias of -40 they are 4e-18, and so are their gradients."""

    def network(self) -> nn.Module:
        network = super().network()
        assert isinstance(network, DNCCircuit)
        gates = network.accessor.read_heads.hid_2_free_gate
        nn.init.zeros_(gates.weight)
        nn.init.constant_(gates.bias, -40.0)
        return network


class Trained(NamedTuple):
    """A network, what was reported, and for which part of the time the process had to wait for a core.

    Attributes:
        network: that of the best evaluation, as `routing-ext test` has it.
        steps, losses, seconds: of each report: steps until then, the mean loss since the one before, and seconds of training
            without those of evaluations.
        evaluations: of each: steps, seconds of training until then, and values.
        waited: of the last sitting.
    """

    network: nn.Module
    steps: list[int]
    losses: list[float]
    seconds: list[float]
    evaluations: list[tuple[int, float, dict[str, Any]]]
    waited: float


def train(folder: Path, problem: SequenceProblem, config: TrainConfig) -> Trained:
    """Trains in the folder of a run, which goes on if it is of the same training."""
    run = Run(folder, problem, config)
    if not _is_begun(run):
        shutil.rmtree(folder, ignore_errors=True)
        Run.create(folder, problem, config)
    trainer = Trainer(problem, config, run)
    lines = JsonLines(run.metrics_file, trainer.step, config.batch_size)
    trainer.sinks = [LogFile(run.log), lines]
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        if trainer.step < config.steps:
            trainer.fit()
    finally:
        for sink in trainer.sinks:
            sink.close()
    waited = 1 - (time.process_time() - cpu) / (time.perf_counter() - wall)
    evaluating, steps, losses, seconds, evaluations = 0.0, [], [], [], []
    for line in run.metrics():
        if line["kind"] == "train":
            steps.append(line["step"])
            losses.append(line["loss"])
            seconds.append(round(line["seconds"] - evaluating, 3))
        else:
            evaluating += line["took"]
            evaluations.append((line["step"], round(line["seconds"] - evaluating, 3), line))
    return Trained(run.load_network(), steps, losses, seconds, evaluations, round(max(0.0, waited), 3))


def _is_begun(run: Run) -> bool:
    """Whether its folder is of this training."""
    if not (run.path / "config.yaml").is_file():
        return False
    before = Run.open(run.path)
    same_task = (before.problem.task, before.problem.circuit) == (run.problem.task, run.problem.circuit)  # type: ignore[attr-defined]
    return same_task and before.config == run.config


@torch.no_grad()
def test(network: nn.Module, task: SequenceTask) -> dict[str, float]:
    """On new sequences: share of wrong bits, share of sequences with none, and cost of a bit in bits."""
    batch = task.batch(TEST_SEQUENCES, torch.Generator().manual_seed(0))
    output, _ = network.unroll(batch.input)  # type: ignore[operator]
    counted = float(batch.num_counted)
    return {
        "wrong_bits": float(batch.wrong_bits(output).sum()) / counted,
        "solved": float(batch.solved(output).float().mean()),
        "bits_per_bit": float(batch.bits_per_sequence(output)) * TEST_SEQUENCES / counted,
    }


def tests(network: nn.Module, task: SequenceTask) -> list[results.Row]:
    """Of each of the task's harder problems: its name, its sizes, and how well the network does."""
    return [{"name": name, **dataclasses.asdict(t), **test(network, t)} for name, t in task.harder().items()]


# ---- parts --------------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """One training of the study; its row begins with what tells it from the others.

    Attributes:
        key: part, variant (or side), seed, and training steps.
        measure: makes the rest of the row, in the folder of a run.
    """

    key: dict[str, Any]
    measure: Callable[[Path], results.Row]

    @property
    def name(self) -> str:
        """Of the folder."""
        return "-".join(str(self.key[name]).replace(" ", "-") for name in ("part", "variant", "seed"))


def _sequence_problem(setup: tuple[Any, TrainConfig]) -> tuple[SequenceProblem, TrainConfig]:
    problem, config = setup
    assert isinstance(problem, SequenceProblem)
    return problem, dataclasses.replace(config, threads=1)


def repeat_copy(settings: Settings, reference: Path | None) -> Iterator[Job]:
    problem, preset = _sequence_problem(PRESETS["dnc-repeat-copy"])
    steps = settings.repeat_copy_steps
    every = max(1, steps // CURVE)
    preset = dataclasses.replace(preset, steps=steps, evaluate_every=steps, report_every=every)

    def ours(config: TrainConfig, folder: Path) -> results.Row:
        shutil.rmtree(folder, ignore_errors=True)  # of half a training, there is no time
        trained = train(folder, problem, config)
        ((_, _, evaluation),) = trained.evaluations
        counts = [after - before for before, after in zip([0, *trained.steps], trained.steps, strict=False)]
        return {
            "train_loss": sum(n * loss for n, loss in zip(counts, trained.losses, strict=True)) / steps,
            "evaluation_loss": evaluation["loss"],
            "seconds": trained.seconds[-1],
            "evaluation_seconds": evaluation["took"],
            "waited": trained.waited,
            "curve": {"steps": trained.steps, "losses": trained.losses},
        }

    def theirs(config: TrainConfig, folder: Path) -> results.Row:
        assert reference is not None
        wall, cpu = time.perf_counter(), time.process_time()
        trained = train_reference(reference, problem, config)
        waited = 1 - (time.process_time() - cpu) / (time.perf_counter() - wall)
        parts = torch.tensor(trained.losses).split(every)
        return {
            "train_loss": sum(trained.losses) / steps,
            "evaluation_loss": trained.evaluation_loss,
            "seconds": trained.seconds,
            "evaluation_seconds": trained.evaluation_seconds,
            "waited": round(max(0.0, waited), 3),
            "curve": {
                "steps": [min((i + 1) * every, steps) for i in range(len(parts))],
                "losses": [float(part.mean()) for part in parts],
            },
        }

    sides = {"ours": ours, **({"reference": theirs} if reference is not None else {})}
    for seed in range(settings.seeds):
        config = dataclasses.replace(preset, seed=seed)
        for side, measure in sides.items():
            key = {"part": "repeat-copy", "variant": side, "seed": seed, "steps": steps}
            yield Job(key, lambda folder, measure=measure, config=config: measure(config, folder))  # type: ignore[misc]


class Speed(Sink):
    """Milliseconds a step, of each report."""

    def __init__(self, batch_size: int) -> None:
        self.milliseconds: list[float] = []
        self._batch_size = batch_size

    def report(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        if kind == "train":
            self.milliseconds.append(1000 * self._batch_size / values["sequences_per_second"])


def speed(settings: Settings) -> Iterator[Job]:
    problem, preset = _sequence_problem(PRESETS["ntm-copy"])
    steps = settings.speed_steps
    config = dataclasses.replace(preset, steps=steps, report_every=max(1, steps // CURVE), evaluation_batches=1)

    def measure(_: Path) -> results.Row:
        sink = Speed(config.batch_size)
        wall, cpu = time.perf_counter(), time.process_time()
        Trainer(problem, config, sinks=[sink]).fit()
        waited = 1 - (time.process_time() - cpu) / (time.perf_counter() - wall)
        return {"milliseconds": statistics.quantiles(sink.milliseconds, n=4), "waited": round(max(0.0, waited), 3)}

    yield Job({"part": "speed", "variant": "preset ntm-copy", "seed": 0, "steps": steps}, measure)


def copy(settings: Settings) -> Iterator[Job]:
    variants = {
        "preset ntm-copy": (PRESETS["ntm-copy"], settings.copy_preset_seeds, settings.copy_preset_steps),
        "train copy": (default_setup("copy"), settings.seeds, settings.copy_steps),
    }

    def measure(problem: SequenceProblem, config: TrainConfig, folder: Path) -> results.Row:
        trained = train(folder, problem, config)
        costs = [values["bits_per_bit"] for _, _, values in trained.evaluations]
        solved = next((i for i, cost in enumerate(costs) if cost < SOLVED), None)
        sequences = [step * config.batch_size for step, _, _ in trained.evaluations]
        return {
            "sequences": sequences,
            "bits_per_bit": costs,
            "solved_after": None if solved is None else sequences[solved],
            "tests": tests(trained.network, problem.task),
        }

    for variant, (setup, seeds, steps) in variants.items():
        problem, preset = _sequence_problem(setup)
        every = max(1, steps // 100)
        preset = dataclasses.replace(
            preset, steps=steps, evaluate_every=every, report_every=every, evaluation_batches=COPY_EVALUATIONS
        )
        for seed in range(seeds):
            key = {"part": "copy", "variant": variant, "seed": seed, "steps": steps}
            config = dataclasses.replace(preset, seed=seed)
            yield Job(key, lambda folder, problem=problem, config=config: measure(problem, config, folder))  # type: ignore[misc]


def de_allocation(settings: Settings) -> Iterator[Job]:
    problem, preset = _sequence_problem(default_setup("repeat-copy"))
    problem = dataclasses.replace(problem, task=DE_ALLOCATION_TASK)
    steps = settings.de_allocation_steps
    preset = dataclasses.replace(preset, steps=steps, evaluate_every=steps, report_every=max(1, steps // CURVE))
    erasing = dataclasses.replace(problem.circuit, erase_freed=True)
    variants = {
        "without": WithoutFreeGates(problem.task, problem.circuit),
        "as in pytorch-dnc": problem,
        "erasing": dataclasses.replace(problem, circuit=erasing),
    }

    def measure(problem: SequenceProblem, config: TrainConfig, folder: Path) -> results.Row:
        trained = train(folder, problem, config)
        evaluation = {name: trained.evaluations[-1][2][name] for name in ("loss", "bits", "bits_per_bit", "wrong")}
        return {"evaluation": evaluation, "tests": tests(trained.network, problem.task)}

    for seed in range(settings.seeds):
        for variant, variant_problem in variants.items():
            key = {"part": "de-allocation", "variant": variant, "seed": seed, "steps": steps}
            config = dataclasses.replace(preset, seed=seed)
            yield Job(key, lambda folder, problem=variant_problem, config=config: measure(problem, config, folder))  # type: ignore[misc]


def jobs(settings: Settings, reference: Path | None) -> Iterator[Job]:
    """All that is to be measured, in order."""
    yield from repeat_copy(settings, reference)
    yield from speed(settings)
    yield from copy(settings)
    yield from de_allocation(settings)


PARTS = ("repeat-copy", "speed", "copy", "de-allocation")


def run(todo: Iterable[Job], folder: Path, known: Sequence[results.Row] = ()) -> Iterator[results.Row]:
    """The row of each job, measured if it is not known.

    Args:
        todo: the jobs.
        folder: of their runs.
        known: rows from before.
    """
    for job in todo:
        row = next((row for row in known if job.key.items() <= row.items()), None)
        if row is None:
            row = {**job.key, **job.measure(folder / job.name)}
            print(describe(row), flush=True)
        yield row


def study(settings: Settings, rows: list[results.Row]) -> results.Results:
    """With the sizes that the networks were trained on, which the figure shows."""
    copied = Copy()
    trained = {
        "copy": (copied.min_num_words, copied.max_num_words),
        "de-allocation": (DE_ALLOCATION_TASK.min_repeats, DE_ALLOCATION_TASK.max_repeats),
    }
    about = {"machine": describe_machine(), "date": datetime.date.today().isoformat(), "settings": settings._asdict()}
    return {**about, "trained": trained, "rows": rows}


def describe(row: results.Row) -> str:
    name = f"{row['part']:14}{row['variant']:18}seed {row['seed']}: "
    if row["part"] == "repeat-copy":
        return name + f"loss {row['train_loss']:.5f}, then {row['evaluation_loss']:.5f}, in {row['seconds']:.2f} s"
    if row["part"] == "speed":
        return name + f"{row['milliseconds'][1]:.2f} ms a step"
    *_, hardest = row["tests"]
    solved = f"solved after {row['solved_after']}; " if "solved_after" in row else ""
    return name + f"{solved}{hardest['name']}: {100 * hardest['wrong_bits']:.1f} % of the bits wrong"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--reference-dnc", type=Path, help="a checkout of pytorch-dnc; by default, ours alone")
    for name, value in SETTINGS._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=" ")
    parser.add_argument("--again", choices=PARTS, nargs="*", default=[], help="parts to measure anew")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "learning-memory.json", help="where the results go")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning-memory"), help="where the runs go")
    args = parser.parse_args()
    settings = Settings(**{name: getattr(args, name) for name in SETTINGS._fields})
    torch.set_num_threads(1)
    stored = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    known = [row for row in stored if row["part"] not in args.again]
    left = {_identity(row): row for row in stored}
    for part in args.again:
        for folder in args.runs.glob(f"{part}-*"):
            shutil.rmtree(folder)
    rows: list[results.Row] = []
    try:
        for row in run(jobs(settings, args.reference_dnc), args.runs, known):
            rows.append(row)
            left.pop(_identity(row), None)
            _write(args.out, study(settings, [*rows, *left.values()]))
    except Interrupted as stop:
        print(f"stopped after step {stop.step} of a training; the same command goes on", file=sys.stderr)
        return 128 + stop.signal
    print(f"written to {args.out}")
    return 0


def _identity(row: results.Row) -> tuple[str, str, int]:
    return row["part"], row["variant"], row["seed"]


def _write(path: Path, made: results.Results) -> None:
    """Whole or not at all, one line a row."""
    rows = ",\n".join("  " + json.dumps(row) for row in made["rows"])
    head = json.dumps({name: value for name, value in made.items() if name != "rows"}, indent=1)
    part = path.with_suffix(".part")
    part.write_text(head.removesuffix("\n}") + f',\n "rows": [\n{rows}\n ]\n}}\n')
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
