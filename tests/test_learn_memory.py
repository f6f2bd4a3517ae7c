"""The study of memory networks: that it runs, is reproducible, and what is made of its results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import learn_memory, learn_memory_figure, make_readme, results

TINY = learn_memory.Settings(seeds=2, repeat_copy_steps=20, copy_steps=4, copy_evaluate_every=2, free_gates_steps=20)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return list(learn_memory.run(TINY, reference=None))


def test_each_part_has_a_row_for_each_seed(rows: list[dict[str, object]]) -> None:
    parts = [(row["part"], row["seed"]) for row in rows]
    expected = [("repeat-copy", 1), ("copy", 1), ("free gates", 2)]
    assert parts == [(part, seed) for part, variants in expected for seed in range(2) for _ in range(variants)]


def test_the_same_seed_gives_the_same_losses(rows: list[dict[str, object]]) -> None:
    again = list(learn_memory.repeat_copy(TINY._replace(seeds=1), reference=None))
    assert again[0]["losses"] == rows[0]["losses"] != rows[1]["losses"]
    assert again[0]["evaluation_loss"] == rows[0]["evaluation_loss"]
    assert 0.01 < again[0]["train_loss"] < 0.03


def test_free_gates_stay_shut() -> None:
    problem, _ = learn_memory.default_setup("repeat-copy")
    network = learn_memory.WithoutFreeGates(problem.task, problem.circuit).network()
    batch = problem.task.batch(4)
    _, state = network.unroll(batch.input)
    assert (network.accessor.read_heads.hid_2_free_gate.bias == -40).all()
    assert state.usage.min() >= 0
    _, shorter = network.unroll(batch.input[:-1])
    assert (state.usage >= shorter.usage - 1e-6).all(), "usage only grows"


def test_tables_and_figure(rows: list[dict[str, object]], tmp_path: Path) -> None:
    reference = [{**row, "side": "reference"} for row in rows if row["part"] == "repeat-copy"]
    study = learn_memory.study(TINY, [*rows, *reference])
    text = make_readme.learning_memory("learning-memory", study)
    for table in text.split("\n\n"):
        lines = table.splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1
    assert "training loss, reference" in text
    assert "no free gates, wrong bits" in text
    assert "60 words" in text
    learn_memory_figure.draw(tmp_path / "figure.png", study, "a digest")
    assert b"a digest" in (tmp_path / "figure.png").read_bytes()
    assert make_readme.learning_memory("learning-memory", learn_memory.study(TINY, rows))


def test_every_stored_study_is_drawn() -> None:
    assert results.load_studies().keys() <= make_readme.STUDIES.keys()
