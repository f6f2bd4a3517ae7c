"""Whether memory networks learn here as they do in the reference, how long it takes, and how far it reaches, over seeds.

    python -m benchmarks.learn_memory --reference-dnc DIR

- repeat-copy: the 500 steps that pytorch-dnc shows in its log, with its numbers, by its agent and by ours, by turns.
- copy: an NTM with the reference's numbers, until it copies, and then copies of more words than it was trained on.
- free gates: a DNC on repeat-copy with and without them, that is, with and without de-allocation, and then more repeats.

Writes ``benchmarks/results/learning-memory.json``; ``python -m benchmarks.make_readme`` makes tables and figure of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks import results
from benchmarks.machine import describe_machine
from benchmarks.reference_agent import train_reference
from routing_ext.memory import DNCCircuit
from routing_ext.tasks import Copy, RepeatCopy, SequenceTask
from routing_ext.training import PRESETS, SequenceProblem, TrainConfig, Trainer, default_setup
from routing_ext.training.watch import Kind, Sink

SOLVED = 0.01  # bits for each bit that counts
CURVE = 20  # points
TEST_SEQUENCES = 100


class Settings(NamedTuple):
    seeds: int = 5
    repeat_copy_steps: int = 500
    copy_steps: int = 60_000
    copy_evaluate_every: int = 500
    free_gates_steps: int = 8000


SETTINGS = Settings()
FREE_GATES_TASK = RepeatCopy(max_num_words=4, max_repeats=4)  # at the preset's sizes, nothing but these is learned


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


class Recorder(Sink):
    """Keeps what it is told, and when: in seconds of training, without those of evaluations."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.evaluations: list[tuple[int, float, Mapping[str, float]]] = []  # steps, seconds, values
        self._begin = time.perf_counter()

    def report(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter() - self._begin
        if kind == "train":
            self.steps.append(step)
            self.losses.append(values["loss"])
            self.seconds.append(now)
        else:
            self.evaluations.append((step, now - values["took"], values))
            self._begin += values["took"]


def train(problem: SequenceProblem, config: TrainConfig) -> tuple[nn.Module, Recorder, float]:
    """The trained network, what was reported, and which part of the time the process had to wait for a core."""
    trainer = Trainer(problem, config)
    recorder = Recorder()
    trainer.sinks = [recorder]
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit()
    waited = 1 - (time.process_time() - cpu) / (time.perf_counter() - wall)
    return trainer.network, recorder, round(max(0.0, waited), 3)


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


def repeat_copy(settings: Settings, reference: Path | None) -> Iterator[results.Row]:
    problem, preset = PRESETS["dnc-repeat-copy"]
    assert isinstance(problem, SequenceProblem)
    steps = settings.repeat_copy_steps
    every = max(1, steps // CURVE)
    preset = dataclasses.replace(preset, steps=steps, evaluate_every=steps, report_every=every, threads=1)
    for seed in range(settings.seeds):
        config = dataclasses.replace(preset, seed=seed)
        _, recorder, waited = train(problem, config)
        ((_, _, evaluation),) = recorder.evaluations
        counts = [after - before for before, after in zip([0, *recorder.steps], recorder.steps, strict=False)]
        yield {
            "part": "repeat-copy",
            "side": "ours",
            "seed": seed,
            "train_loss": sum(n * loss for n, loss in zip(counts, recorder.losses, strict=True)) / steps,
            "evaluation_loss": evaluation["loss"],
            "seconds": recorder.seconds[-1],
            "evaluation_seconds": evaluation["took"],
            "waited": waited,
            "steps": recorder.steps,
            "losses": recorder.losses,
        }
        if reference is not None:
            wall, cpu = time.perf_counter(), time.process_time()
            theirs = train_reference(reference, problem, config)
            waited = 1 - (time.process_time() - cpu) / (time.perf_counter() - wall)
            parts = torch.tensor(theirs.losses).split(every)
            yield {
                "part": "repeat-copy",
                "side": "reference",
                "seed": seed,
                "train_loss": sum(theirs.losses) / steps,
                "evaluation_loss": theirs.evaluation_loss,
                "seconds": theirs.seconds,
                "evaluation_seconds": theirs.evaluation_seconds,
                "waited": round(max(0.0, waited), 3),
                "steps": [min((i + 1) * every, steps) for i in range(len(parts))],
                "losses": [float(part.mean()) for part in parts],
            }


def copy(settings: Settings) -> Iterator[results.Row]:
    problem, preset = PRESETS["ntm-copy"]
    assert isinstance(problem, SequenceProblem)
    every = settings.copy_evaluate_every
    preset = dataclasses.replace(
        preset, steps=settings.copy_steps, evaluate_every=every, report_every=every, evaluation_batches=10, threads=1
    )
    for seed in range(settings.seeds):
        network, recorder, waited = train(problem, dataclasses.replace(preset, seed=seed))
        costs = [values["bits_per_bit"] for _, _, values in recorder.evaluations]
        solved = next((i for i, cost in enumerate(costs) if cost < SOLVED), None)
        sequences = [step * preset.batch_size for step, _, _ in recorder.evaluations]
        yield {
            "part": "copy",
            "seed": seed,
            "sequences": sequences,
            "bits_per_bit": costs,
            "solved_after": None if solved is None else sequences[solved],
            "solved_seconds": None if solved is None else recorder.evaluations[solved][1],
            "seconds": recorder.seconds[-1],
            "waited": waited,
            "tests": tests(network, problem.task),
        }


def free_gates(settings: Settings) -> Iterator[results.Row]:
    problem, preset = default_setup("repeat-copy")
    assert isinstance(problem, SequenceProblem)
    problem = dataclasses.replace(problem, task=FREE_GATES_TASK)
    steps = settings.free_gates_steps
    preset = dataclasses.replace(preset, steps=steps, evaluate_every=steps, report_every=max(1, steps // CURVE), threads=1)
    variants = {
        "free gates": problem,
        "no free gates": WithoutFreeGates(problem.task, problem.circuit),
    }
    for seed in range(settings.seeds):
        for variant, variant_problem in variants.items():
            network, recorder, waited = train(variant_problem, dataclasses.replace(preset, seed=seed))
            yield {
                "part": "free gates",
                "variant": variant,
                "seed": seed,
                "evaluation": dict(recorder.evaluations[-1][2]),
                "seconds": recorder.seconds[-1],
                "waited": waited,
                "tests": tests(network, problem.task),
            }


def run(settings: Settings, reference: Path | None) -> Iterator[results.Row]:
    yield from repeat_copy(settings, reference)
    yield from copy(settings)
    yield from free_gates(settings)


def study(settings: Settings, rows: list[results.Row]) -> results.Results:
    """With the sizes that the networks were trained on, which the figure shows."""
    copied = Copy()
    trained = {
        "copy": (copied.min_num_words, copied.max_num_words),
        "free gates": (FREE_GATES_TASK.min_repeats, FREE_GATES_TASK.max_repeats),
    }
    about = {"machine": describe_machine(), "date": datetime.date.today().isoformat(), "settings": settings._asdict()}
    return {**about, "trained": trained, "rows": rows}


def describe(row: results.Row) -> str:
    name = f"{row['part']:12}{row.get('side') or row.get('variant') or '':14}seed {row['seed']}: "
    if row["part"] == "repeat-copy":
        return name + f"loss {row['train_loss']:.5f}, then {row['evaluation_loss']:.5f}, in {row['seconds']:.2f} s"
    *_, hardest = row["tests"]
    solved = f"solved after {row['solved_after']}, " if "solved_after" in row else ""
    return name + f"{solved}{row['seconds']:.1f} s; {hardest['name']}: {100 * hardest['wrong_bits']:.1f} % of the bits wrong"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--reference-dnc", type=Path, help="a checkout of pytorch-dnc; by default, ours alone")
    for name, value in SETTINGS._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=" ")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "learning-memory.json", help="where the results go")
    args = parser.parse_args()
    settings = Settings(**{name: getattr(args, name) for name in SETTINGS._fields})
    torch.set_num_threads(1)
    rows = []
    for row in run(settings, args.reference_dnc):
        rows.append(row)
        print(describe(row), flush=True)
    args.out.write_text(json.dumps(study(settings, rows)) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
