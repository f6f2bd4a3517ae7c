"""The study of learning: that it runs, is reproducible, and what is made of its results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import learn_routing
from benchmarks.figures import learning_routing as figure
from benchmarks.machine import describe_machine
from benchmarks.routed_networks import our_layers
from benchmarks.tables import learning


@pytest.mark.slow
def test_the_same_seed_gives_the_same_curve(tmp_path: Path) -> None:
    rows = learn_routing.run({"ours": our_layers(), "reference": our_layers()}, seeds=1, epochs=1)
    assert [row["method"] for row in rows] == [method for method in learn_routing.METHODS for _ in range(2)]
    for ours, again in zip(rows[::2], rows[1::2], strict=True):
        assert ours["accuracy"] == again["accuracy"]
        assert again["same_choices"] == again["steps"][-1] == 250
        assert ours["accuracy"][0] < 0.6 < 0.7 < ours["accuracy"][-1]
        assert ours["seconds"] == sorted(ours["seconds"])

    study = {"machine": describe_machine(), "date": "2026-01-01", "rows": rows}
    table = learning.learning_routing("learning-routing", study).splitlines()
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    assert sum("in all 250 steps" in line for line in table) == len(learn_routing.METHODS)
    figure.draw(tmp_path / "figure.png", study, "a digest")
    assert b"a digest" in (tmp_path / "figure.png").read_bytes()
