"""examples/dnc_repeat_copy.py, as a user runs it."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "dnc_repeat_copy.py"


def command(out: Path, *args: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--out", str(out), *args]


def run(out: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, *args), cwd=out.parent, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )


def numbers(stdout: str) -> dict[str, float]:
    """The first number of each row of the tables."""
    rows = re.findall(r"^([a-z][\w ,:-]*?)  +([\d.,]+)", stdout, re.MULTILINE)
    return {name: float(number.replace(",", "")) for name, number in rows}


def test_it_ends_with_tables_and_a_figure(tmp_path: Path) -> None:
    out = tmp_path / "dnc.png"
    done = run(out, "--preset", "reference", "--steps", "30")
    assert done.returncode == 0, done.stderr
    table = numbers(done.stdout)
    assert 0.01 < table["training loss, as in pytorch-dnc"] < 0.02
    assert 10 < table["new sequences: bits a sequence"] < 25
    rows = re.findall(r"^(routing_ext|plain PyTorch) +([\d,]+) \(([\d,]+) to ([\d,]+)\)$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == ["routing_ext", "plain PyTorch"]
    for _, *rate in rows:
        median, low, high = (int(number.replace(",", "")) for number in rate)
        assert 0 < low <= median <= high
    assert "100%" in done.stderr
    assert "sequences/s, loss 0.01" in done.stderr

    import matplotlib.image

    picture = matplotlib.image.imread(out)[..., :3]
    assert min(picture.shape[:2]) > 1000
    # Not blank anywhere: neither the upper panels, nor those of the memory, nor curves and bars.
    left, right = np.split(picture, [picture.shape[1] * 7 // 10], axis=1)
    for part in (*np.array_split(left, 2), *np.array_split(right, 2)):
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 100


@pytest.mark.slow
def test_the_task_is_solved(tmp_path: Path) -> None:
    table = numbers(run(tmp_path / "dnc.png", "--seed", "3").stdout)
    assert table["new sequences: bits a sequence"] < 0.1
    assert table["new sequences without an error"] > 990


@pytest.mark.slow
def test_a_seed_determines_the_run(tmp_path: Path) -> None:
    first, second = (numbers(run(tmp_path / "dnc.png", "--steps", "100", "--seed", "5").stdout) for _ in range(2))
    for name in ("training loss, as in pytorch-dnc", "new sequences: bits a sequence", "new sequences without an error"):
        assert first[name] == second[name]


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "tqdm.py").write_text("raise ModuleNotFoundError(\"No module named 'tqdm'\", name='tqdm')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run(tmp_path / "dnc.png", "--steps", "1", PYTHONPATH=path)
    assert done.returncode == 1
    assert "dnc_repeat_copy.py: the package tqdm is missing. Install it with `python -m pip install tqdm`." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--steps", "0"), "argument --steps: must be at least 1, got 0"),
        (("--lr", "-1"), "argument --lr: must be above 0, got -1"),
        (("--preset", "fast"), "argument --preset: invalid choice: 'fast'"),
        (("--out", "no/such/folder/dnc.png"), "argument --out: the folder no/such/folder does not exist"),
    ],
)
def test_wrong_arguments_are_named(
    args: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", ["dnc_repeat_copy.py", *args])
    script = importlib.import_module("dnc_repeat_copy")
    with pytest.raises(SystemExit):
        script.parse_args()
    assert message in capsys.readouterr().err


def test_interrupting_says_what_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "dnc.png"
    process = subprocess.Popen(command(out, "--steps", "1000000"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert "repeat-copy" in process.stderr.read(len("\rrepeat-copy"))  # the progress bar: it trains
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Nothing of this run is kept" in rest
    assert "Traceback" not in rest
    assert not out.exists()
