"""Configurations: what they refuse, and that files hold all of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from routing_ext import routing, tasks
from routing_ext.memory import DNCCircuit
from routing_ext.routing import Decision
from routing_ext.training import (
    PRESETS,
    CircuitConfig,
    ConfigError,
    RoutingProblem,
    SequenceProblem,
    TrainConfig,
    default_setup,
    from_options,
    read_config,
    to_options,
    write_config,
)
from routing_ext.training.presets import TASKS
from routing_ext.training.problems import Algorithm

SETUPS = {**{name: default_setup(name) for name in TASKS}, **PRESETS}


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_file_holds_everything(name: str, suffix: str, tmp_path: Path) -> None:
    problem, config = SETUPS[name]
    config = dataclasses.replace(config, lr=1e-5, clip_grad_norm=2.0, lr_drops=(3, 5), init=Path("a.pth"), seed=7)
    write_config(tmp_path / f"config{suffix}", problem, config)
    assert read_config(tmp_path / f"config{suffix}") == (problem, config)


def test_a_file_may_name_a_few_options_only(tmp_path: Path) -> None:
    path = tmp_path / "few.yaml"
    path.write_text("task: copy\nmax_num_words: 20\nlr: 1e-3\nhidden_dim: 50\n")
    problem, config = read_config(path)
    default, default_config = default_setup("copy")
    assert isinstance(problem, SequenceProblem)
    assert isinstance(default, SequenceProblem)
    assert problem.task == tasks.Copy(max_num_words=20)
    assert problem.circuit == dataclasses.replace(default.circuit, hidden_dim=50)
    assert config == dataclasses.replace(default_config, lr=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must name a task"),
        ({"task": "juggling"}, "task must be one of copy, .*, got 'juggling'"),
        ({"task": "copy", "stepz": 3}, "unknown option stepz"),
        ({"task": "copy", "steps": 0}, "steps must be at least 1, got 0"),
        ({"task": "copy", "steps": "many"}, "steps must be int, got 'many'"),
        ({"task": "copy", "steps": True}, "steps must be int, got True"),
        ({"task": "copy", "lr": "much"}, "lr must be float, got 'much'"),
        ({"task": "copy", "circuit": "gru"}, "circuit must be one of ntm, dnc, lstm, got 'gru'"),
        ({"task": "copy", "betas": [0.9]}, r"betas must be .*, got \[0.9\]"),
        ({"task": "copy", "min_num_words": 30}, "1 <= min_num_words <= max_num_words, got 30 and 10"),
        ({"task": "multitask", "num_modules": 0}, "num_modules must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_options(options)


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "{"])
def test_files_that_hold_no_options(content: str, tmp_path: Path) -> None:
    for suffix in (".yaml", ".json"):
        path = tmp_path / f"bad{suffix}"
        path.write_text(content)
        with pytest.raises(ConfigError, match=f"bad{suffix}"):
            read_config(path)
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere"):
        read_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", 0), ("threads", 0), ("lr", 0.0), ("lr", float("nan")), ("momentum", -1), ("alpha", 1.0), ("betas", (0.9, 1.0))],
)
def test_numbers_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be"):
        TrainConfig(**{option: value})


def test_schedules() -> None:
    def scales(**options: Any) -> list[float]:
        config = TrainConfig(steps=8, **options)
        return [round(config.lr_scale(step), 3) for step in range(8)]

    assert scales() == [1.0] * 8
    assert scales(schedule="linear") == [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert scales(schedule="linear", warmup_steps=4) == [0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25]
    assert scales(schedule="cosine")[4] == 0.5
    assert scales(schedule="drops", lr_drops=(2, 5), lr_drop_factor=0.1) == [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]


def test_presets_are_the_numbers_of_pytorch_dnc() -> None:
    for (problem, config), circuit, task in (
        (PRESETS["ntm-copy"], ("ntm", 100, 1, 1, 128, 20), (8, 5, 10)),
        (PRESETS["dnc-repeat-copy"], ("dnc", 64, 1, 4, 16, 16), (4, 1, 2, 1, 2, 10.0)),
    ):
        assert isinstance(problem, SequenceProblem)
        assert dataclasses.astuple(problem.circuit)[:6] == circuit
        assert dataclasses.astuple(problem.task) == task
        assert (problem.circuit.clip_value, problem.circuit.num_allowed_shifts) == (20.0, 3)
        assert (config.optimizer, config.lr, config.eps, config.alpha) == ("rmsprop", 1e-4, 1e-10, 0.9)
        assert (config.steps, config.batch_size, config.schedule) == (100_000, 16, "constant")
        assert (config.evaluate_every, config.evaluation_batches, config.report_every) == (500, 50, 500)


def test_every_algorithm_can_be_asked_for() -> None:
    made = {name for name in routing.__all__ if isinstance(getattr(routing, name), type)}
    decisions = {name for name in made if issubclass(getattr(routing, name), Decision)} - {"Decision", "PassThrough"}
    assert set(get_args(Algorithm)) == decisions


def test_the_lstm_has_the_same_doors() -> None:
    network = CircuitConfig("lstm", hidden_dim=5).network(6, 4)
    x = torch.rand(7, 3, 6)
    y, _ = network.unroll(x)
    first, state = network.unroll(x[:3])
    rest, _ = network.unroll(x[3:], state)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat([first, rest]), y)
    assert y.shape == (7, 3, 4)
    assert bool(((y > 0) & (y < 1)).all())


def test_options_are_plain() -> None:
    problem = RoutingProblem(folder=Path("somewhere"))
    options = to_options(problem, TrainConfig(lr_drops=(1, 2)))
    assert json.loads(json.dumps(options)) == options
    assert next(iter(options)) == "task"


def test_options_of_a_circuit_reach_the_network() -> None:
    options = {"usage": "paper", "allocation": "softmax", "temperature": 0.2, "erase_freed": True}
    network = CircuitConfig("dnc", hidden_dim=5, **options).network(6, 4)  # type: ignore[arg-type]
    assert isinstance(network, DNCCircuit)
    assert {name: getattr(network.options, name) for name in options} == options
