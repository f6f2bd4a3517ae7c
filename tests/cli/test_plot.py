"""routing-ext plot."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from routing_ext import cli

SIZES = "--hidden-dim 8 --num-read-heads 1 --mem-hei 6 --mem-wid 4 --report-every 2 --evaluation-batches 1 --threads 1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs."""
    path = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        options = [*SIZES.split(), "--steps", "6", "--no-progress", "--seed", seed, "--out", str(path / f"run-{seed}")]
        assert cli.main(["train", "repeat-copy", *options]) == 0
    return path


def test_one_run_has_its_picture_inside(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", str(trained / "run-0")]) == 0
    out = trained / "run-0" / "figures" / "curves.png"
    assert f"Figure: {out}" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert min(picture.size) > 400


def test_several_runs(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    assert cli.main(["plot", "run-0", "run-1"]) == 0
    assert Path("curves.png").stat().st_size > 1000
    assert cli.main(["plot", "run-0", "run-1", "--out", "curves.svg"]) == 0
    assert "<svg" in Path("curves.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give at least one run"),
        (["nowhere"], 1, "nowhere is no run"),
        (["run-0", "--out", "no/folder/x.png"], 1, "cannot write no/folder/x.png: No such file or directory; give another"),
        (["run-0", "--out", "x.docx"], 1, "cannot write x.docx"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    assert cli.main(["plot", *arguments]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_run_that_has_not_reported_yet(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text((trained / "run-0" / "config.yaml").read_text())
    assert cli.main(["plot", str(tmp_path)]) == 1
    assert "has no reports yet: train it first (routing-ext train --resume" in capsys.readouterr().err
