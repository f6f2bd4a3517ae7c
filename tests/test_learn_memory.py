"""The study of memory networks: that it runs, goes on where it was stopped, and what is made of its results."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import learn_memory, make_readme, results
from benchmarks.figures import learning_memory as figure
from benchmarks.tables import learning
from routing_ext.training import Trainer

TINY = learn_memory.Settings(
    seeds=2,
    repeat_copy_steps=20,
    speed_steps=40,
    copy_preset_seeds=1,
    copy_preset_steps=4,
    copy_steps=4,
    de_allocation_steps=20,
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return list(learn_memory.run(learn_memory.jobs(TINY, reference=None), tmp_path_factory.mktemp("runs")))


def test_each_part_has_its_rows(rows: list[dict[str, Any]]) -> None:
    made = [(row["part"], row["variant"], row["seed"]) for row in rows]
    expected = [("repeat-copy", "ours", seed) for seed in range(2)]
    expected += [("speed", "preset ntm-copy", 0), ("copy", "preset ntm-copy", 0)]
    expected += [("copy", "train copy", seed) for seed in range(2)]
    variants = ("without", "as in pytorch-dnc", "erasing")
    expected += [("de-allocation", variant, seed) for seed in range(2) for variant in variants]
    assert made == expected


def test_the_same_seed_gives_the_same_losses(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    again = next(learn_memory.run(learn_memory.repeat_copy(TINY, reference=None), tmp_path))
    assert again["curve"] == rows[0]["curve"] != rows[1]["curve"]
    assert again["evaluation_loss"] == rows[0]["evaluation_loss"]
    assert 0.01 < again["train_loss"] < 0.03


def test_what_is_known_is_not_measured_again(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    longer = TINY._replace(copy_steps=5)
    found = list(learn_memory.run(learn_memory.copy(longer), tmp_path, known=rows))
    assert [row["steps"] for row in found] == [4, 5, 5]
    assert found[0] is rows[3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy-train-copy-0", "copy-train-copy-1"]


def test_it_stops_and_goes_on(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY._asdict().items()]
    command = ["learn_memory", *options, "--out", str(out), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", command)
    fit, trainings = Trainer.fit, []

    def interrupted(trainer: Trainer) -> dict[str, float]:
        trainings.append(trainer.step)
        if len(trainings) == 5:
            trainer._signal = signal.SIGTERM  # as if it came in the first step
        return fit(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", interrupted)
        assert learn_memory.main() == 128 + signal.SIGTERM
    assert "stopped after step 1 of a training" in capsys.readouterr().err
    assert len(results_of(out)) == 4

    trainings.clear()
    monkeypatch.setattr(Trainer, "fit", lambda trainer: (trainings.append(trainer.step), fit(trainer))[1])
    assert learn_memory.main() == 0
    assert trainings == [1] + [0] * (len(rows) - 5), "goes on within a training"
    timing = ("seconds", "evaluation_seconds", "waited", "milliseconds")
    made = [[{k: v for k, v in row.items() if k not in timing} for row in part] for part in (rows, results_of(out))]
    assert made[0] == made[1]

    trainings.clear()
    monkeypatch.setattr(sys, "argv", [*command, "--again", "repeat-copy"])
    assert learn_memory.main() == 0
    assert trainings == [0, 0]
    assert len(results_of(out)) == len(rows)


def results_of(path: Path) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return made


def test_free_gates_stay_shut() -> None:
    problem, _ = learn_memory.default_setup("repeat-copy")
    network = learn_memory.WithoutFreeGates(problem.task, problem.circuit).network()  # type: ignore[attr-defined]
    batch = problem.task.batch(4)  # type: ignore[attr-defined]
    _, state = network.unroll(batch.input)  # type: ignore[operator]
    assert (network.accessor.read_heads.hid_2_free_gate.bias == -40).all()  # type: ignore[union-attr]
    assert state.usage.min() >= 0
    _, shorter = network.unroll(batch.input[:-1])  # type: ignore[operator]
    assert (state.usage >= shorter.usage - 1e-6).all(), "usage only grows"


def test_tables_and_figure(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    reference = [{**row, "variant": "reference"} for row in rows if row["part"] == "repeat-copy"]
    study = learn_memory.study(TINY, [*rows, *reference])
    text = learning.learning_memory("learning-memory", study)
    for table in text.split("\n\n"):
        lines = table.splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1
    assert "training loss, reference" in text
    assert "without, wrong bits" in text
    assert "60 words" in text
    figure.draw(tmp_path / "figure.png", study, "a digest")
    assert b"a digest" in (tmp_path / "figure.png").read_bytes()
    assert learning.learning_memory("learning-memory", learn_memory.study(TINY, rows))
    for some in (rows[:1], rows[2:3], rows[3:4]):  # the study is not done yet
        made = learn_memory.study(TINY, some)
        assert learning.learning_memory("learning-memory", made)
        figure.draw(tmp_path / "figure.png", made, "")


def test_every_stored_study_is_drawn() -> None:
    assert results.load_studies().keys() <= make_readme.STUDIES.keys()
