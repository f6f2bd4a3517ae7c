"""The training loop: that it learns, goes on bit for bit, and stops where it must, with all that was saved."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONFIG, PROBLEM, config, same, weights
from torch import Tensor, nn

from routing_ext.tasks import Copy, RepeatCopy, SequenceBatch
from routing_ext.training import (
    CheckpointError,
    CircuitConfig,
    ConfigError,
    Diverged,
    Interrupted,
    Outcome,
    Problem,
    Replicas,
    RoutingProblem,
    Run,
    RunError,
    SequenceProblem,
    TrainConfig,
    Trainer,
)
from routing_ext.training.watch import Kind, Sink


class Record(Sink):
    """Keeps what it is told, and does something after a step."""

    def __init__(self, at: int = -1, do: Any = None) -> None:
        self.reports: list[tuple[str, int, dict[str, float]]] = []
        self.steps: list[int] = []
        self.saves: list[int] = []
        self.messages: list[str] = []
        self._at, self._do = at, do

    def advance(self, step: int) -> None:
        self.steps.append(step)
        if step == self._at:
            self._do()

    def report(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        timing = ("sequences_per_second", "took")
        self.reports.append((kind, step, {name: value for name, value in values.items() if name not in timing}))

    def saved(self, step: int, path: Path) -> None:
        self.saves.append(step)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Stop(Exception):
    pass


def stop() -> None:
    raise Stop


def trained(problem: Problem, config: TrainConfig) -> tuple[dict[str, Tensor], Record]:
    record = Record()
    trainer = Trainer(problem, config, sinks=[record])
    trainer.fit()
    return weights(trainer.network), record


@dataclasses.dataclass(frozen=True)
class Lessons(RepeatCopy):
    """Three lessons, learned at once."""

    threshold = -1.0

    @property
    def lessons(self) -> tuple[RepeatCopy, ...]:
        return tuple(RepeatCopy(max_num_words=n, max_repeats=n) for n in (1, 2, 3))


PROBLEMS: dict[str, tuple[Problem, TrainConfig]] = {
    "dnc": (PROBLEM, CONFIG),
    "ntm, adam": (
        SequenceProblem(Copy(), CircuitConfig("ntm", hidden_dim=8, num_read_heads=1, mem_hei=4, mem_wid=4)),
        config(optimizer="adam", clip_grad_norm=0.1),
    ),
    "lstm, sgd, float64": (
        SequenceProblem(RepeatCopy(), CircuitConfig("lstm", hidden_dim=8)),
        config(optimizer="sgd", momentum=0.9, clip_grad_value=1e-3, dtype="float64"),
    ),
    "lessons": (dataclasses.replace(PROBLEM, task=Lessons()), CONFIG),
    "multitask": (RoutingProblem("digits"), config(optimizer="adamw", evaluate_every=20)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_resuming_is_bit_for_bit(name: str, tmp_path: Path) -> None:
    problem, how = PROBLEMS[name]
    expected, record = trained(problem, how)
    reports: dict[tuple[str, int], dict[str, float]] = {}
    run = Run.create(tmp_path / "run", problem, how) if name != "lessons" else Run(tmp_path / "run", problem, how)
    for at in (3, 9, 13, 27, 38):
        resumed = Record(at, stop)
        with pytest.raises(Stop):
            Trainer(problem, how, run, [resumed]).fit()
        reports |= {(kind, step): values for kind, step, values in resumed.reports}
    trainer = Trainer(problem, how, run, [last := Record()])
    assert last.steps == []
    assert trainer.step == 35
    trainer.fit()
    reports |= {(kind, step): values for kind, step, values in last.reports}
    assert same(weights(trainer.network), expected)
    assert reports == {(kind, step): values for kind, step, values in record.reports}


def test_reports_evaluations_and_checkpoints_come_when_they_are_asked_for(tmp_path: Path) -> None:
    record = Record()
    run = Run.create(tmp_path / "run", PROBLEM, CONFIG)
    values = Trainer(PROBLEM, CONFIG, run, [record]).fit()
    assert record.steps == list(range(1, 41))
    assert [step for kind, step, _ in record.reports if kind == "train"] == [7, 14, 21, 28, 35, 40]
    assert [step for kind, step, _ in record.reports if kind == "evaluation"] == [10, 20, 30, 40]
    assert record.saves == list(range(5, 41, 5))
    assert values.keys() == {"loss", "bits", "bits_per_bit", "wrong"}
    assert [path.name for path in run.checkpoints.last()] == [f"step-000000{step}.pt" for step in (40, 35, 30)]
    assert same(weights(run.load_network("last")), weights(Trainer(PROBLEM, CONFIG, run).network))
    assert not run.load_network().training
    losses = [values["loss"] for kind, _, values in record.reports if kind == "evaluation"]
    assert torch.load(run.checkpoints.best, weights_only=True)["step"] == 10 * (1 + losses.index(min(losses)))


def test_reported_means_are_those_of_the_steps() -> None:
    losses: list[float] = []

    class Spy(SequenceProblem):
        def outcome(self, network: nn.Module, batch: SequenceBatch, replicas: Replicas = Replicas()) -> Outcome:
            outcome = super().outcome(network, batch, replicas)
            if torch.is_grad_enabled():
                losses.append(float(outcome.value))
            return outcome

    _, record = trained(Spy(PROBLEM.task, PROBLEM.circuit), CONFIG)
    reported = [values["loss"] for kind, _, values in record.reports if kind == "train"]
    expected = [sum(losses[begin : begin + 7]) / len(losses[begin : begin + 7]) for begin in range(0, 40, 7)]
    assert reported == pytest.approx(expected, rel=1e-5)


def test_lessons_are_learned_in_their_order() -> None:
    _, record = trained(dataclasses.replace(PROBLEM, task=Lessons()), CONFIG)
    assert [values["lesson"] for kind, _, values in record.reports if kind == "train"] == [0, 1, 2, 2, 2, 2]
    assert record.messages == ["Lesson 1 of 3 learned @ Step: 7", "Lesson 2 of 3 learned @ Step: 14"]
    _, alone = trained(dataclasses.replace(PROBLEM, task=Lessons(), curriculum=False), CONFIG)
    assert not any("lesson" in values for _, _, values in alone.reports)


def test_it_learns() -> None:
    problem = SequenceProblem(Copy(len_word=2, min_num_words=1, max_num_words=2), CircuitConfig("lstm", hidden_dim=32))
    trainer = Trainer(problem, TrainConfig(steps=400, lr=1e-2, optimizer="adam", eps=1e-8, threads=1))
    assert trainer.fit()["bits_per_bit"] < 0.1


def test_the_optimiser_is_that_of_torch_whether_parameters_are_one_tensor_or_not() -> None:
    """Against a loop that anybody would write."""
    problem, how = PROBLEM, config(steps=10, clip_grad_norm=0.05, schedule="constant")
    got, _ = trained(problem, how)
    torch.manual_seed(how.seed)
    network = problem.network()
    optimizer = torch.optim.RMSprop(network.parameters(), lr=how.lr, alpha=how.alpha, eps=how.eps)
    from routing_ext.training import batch_seed

    for step in range(10):
        batch = problem.task.batch(how.batch_size, torch.Generator().manual_seed(batch_seed(how.seed, "train", step)))
        optimizer.zero_grad()
        batch.loss(network.unroll(batch.input)[0]).backward()  # type: ignore[operator]
        nn.utils.clip_grad_norm_(network.parameters(), 0.05)
        optimizer.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


# ---- what may go wrong ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spoiled(SequenceProblem):
    """From some call on, what it computes is spoiled."""

    what: str = "loss"
    at: int = 12
    calls: list[int] = dataclasses.field(default_factory=list)

    def outcome(self, network: nn.Module, batch: SequenceBatch, replicas: Replicas = Replicas()) -> Outcome:
        outcome = super().outcome(network, batch, replicas)
        if not torch.is_grad_enabled():
            return outcome
        self.calls.append(1)
        factor = 1.0
        if len(self.calls) > self.at:
            factor = {"loss": math.nan, "gradient": 1.0, "explosion": 1000.0}[self.what]
            if self.what == "gradient":
                outcome.loss.register_hook(lambda g: g * math.nan)
        return outcome._replace(loss=outcome.loss * factor, value=outcome.value * factor)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loss", r"the loss is nan at step 13 \(seed of its batch: (\d+)\)"),
        ("gradient", r"the weights are not finite any more at step 13 \(seed of its batch: (\d+)\)"),
        ("explosion", r"the loss rose from .* to .* at step 14 \(seed of its batch: (\d+)\)"),
    ],
)
def test_a_training_that_diverges_says_where_and_what_to_try(what: str, message: str, tmp_path: Path) -> None:
    problem = Spoiled(PROBLEM.task, PROBLEM.circuit, what=what)
    run = Run(tmp_path / "run", problem, CONFIG)
    with pytest.raises(Diverged, match=message + r"; the last checkpoint is .*00010\.pt\. Try a smaller --lr \(now 0\.01\)"):
        Trainer(problem, CONFIG, run).fit()
    state = run.checkpoints.load_last()
    assert state is not None
    assert state["step"] == 10
    assert all(bool(value.isfinite().all()) for value in state["model"].values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_leave(number: signal.Signals, tmp_path: Path) -> None:
    expected, _ = trained(PROBLEM, CONFIG)
    run = Run.create(tmp_path / "run", PROBLEM, CONFIG)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        Interrupted, match=rf"stopped by {number.name} after step 13 of 40, all is saved; .*--resume"
    ) as caught:
        Trainer(PROBLEM, CONFIG, run, [Record(12, lambda: os.kill(os.getpid(), number))]).fit()
    assert (caught.value.signal, caught.value.step) == (number, 13)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    trainer = Trainer(PROBLEM, CONFIG, run)
    assert trainer.step == 13
    trainer.fit()
    assert same(weights(trainer.network), expected)


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_used(tmp_path: Path) -> None:
    expected, _ = trained(PROBLEM, CONFIG)
    run = Run.create(tmp_path / "run", PROBLEM, CONFIG)
    with pytest.raises(Stop):
        Trainer(PROBLEM, CONFIG, run, [Record(18, stop)]).fit()
    run.checkpoints.path(15).write_bytes(b"rubbish")
    trainer = Trainer(PROBLEM, CONFIG, run, [record := Record()])
    assert trainer.step == 10
    trainer.fit()
    assert "00015.pt is damaged" in record.messages[0]
    assert same(weights(trainer.network), expected)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", PROBLEM, CONFIG)
    Trainer(PROBLEM, config(steps=5), run).fit()
    other = dataclasses.replace(PROBLEM, circuit=dataclasses.replace(PROBLEM.circuit, hidden_dim=9))
    with pytest.raises(CheckpointError, match="does not fit the run's configuration: .*size mismatch"):
        Trainer(other, CONFIG, run)


def test_training_begins_with_given_weights(tmp_path: Path) -> None:
    trainer = Trainer(PROBLEM, config(seed=5))
    torch.save(trainer.network.state_dict(), tmp_path / "weights.pth")
    assert same(weights(Trainer(PROBLEM, config(init=tmp_path / "weights.pth")).network), weights(trainer.network))
    (tmp_path / "rubbish.pth").write_bytes(b"rubbish")
    for name in ("rubbish.pth", "nowhere.pth"):
        with pytest.raises(ConfigError, match=name):
            Trainer(PROBLEM, config(init=tmp_path / name))


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="device cuda:77 cannot be used"):
        Trainer(PROBLEM, config(device="cuda:77"))


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run"):
        Run.open(tmp_path)
    run = Run.create(tmp_path / "run", PROBLEM, CONFIG)
    with pytest.raises(RunError, match=r"is not empty: .*--resume"):
        Run.create(run.path, PROBLEM, CONFIG)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        run.load_network()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to"):
        Run.create(tmp_path / "file" / "run", PROBLEM, CONFIG)


def test_lines_of_metrics(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", PROBLEM, CONFIG)
    assert run.metrics() == []
    run.metrics_file.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert run.metrics() == [{"step": 1}, {"step": 2}]
    run.metrics_file.write_text('{"step": 1}\n{"ste\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2"):
        run.metrics()
