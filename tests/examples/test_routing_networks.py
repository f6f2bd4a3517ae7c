"""examples/routing_networks.py, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "routing_networks.py"


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *args]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)


def test_digits_are_learned_and_reproducible() -> None:
    args = "--data", "digits", "--epochs", "5", "--algorithm", "PerTaskAssignment", "--seed", "3"
    first, second = (run(*args) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "images/s" in first.stderr
    epochs = re.findall(r"^ +(\d) +[\d.]+ +[-\d.]+ +[\d.]+% +([\d.]+)% +[\d,]+$", first.stdout, re.MULTILINE)
    assert [epoch for epoch, _ in epochs] == ["1", "2", "3", "4", "5"]
    table = dict(re.findall(r"^  (\w+) +([\d.]+)%$", first.stdout, re.MULTILINE))
    assert list(table) == [*"0123456789", "mean"]
    assert table["mean"] == epochs[-1][1]
    assert float(table["mean"]) > 90
    assert first.stdout.endswith("modules used by the test images, layer by layer: 10, 10, 10 of 10\n")
    # All but the speed.
    assert re.sub(r" *[\d,]+$", "", first.stdout, flags=re.M) == re.sub(r" *[\d,]+$", "", second.stdout, flags=re.M)


@pytest.mark.parametrize("architecture", ["per-task", "dispatched", "single"])
def test_architectures_run(architecture: str) -> None:
    done = run("--data", "digits", "--epochs", "1", "--architecture", architecture, "--modules", "4")
    assert done.returncode == 0, done.stderr
    used = re.search(r"layer by layer: (\d), (\d), (\d) of 4\n$", done.stdout)
    assert used is not None
    assert all(1 <= int(count) <= 4 for count in used.groups())


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--data", "cifar100", "nowhere"), 1, "routing_networks.py: cifar100: nowhere must hold train and test"),
        (("--data", "mnist"), 1, "folder must be given for mnist"),
        (("--data", "mnist", "a", "b"), 2, "argument --data: expected a name and at most one folder"),
        (("--epochs", "0"), 2, "argument --epochs: must be at least 1, got 0"),
        (("--algorithm", "Nothing"), 2, "argument --algorithm: invalid choice"),
        (("--device", "nowhere"), 2, "argument --device: "),
    ],
)
def test_wrong_arguments_are_named(args: tuple[str, ...], code: int, message: str) -> None:
    done = run(*args)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
