"""A run that is killed, again and again, at random moments, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import OPTIONS, same, weights

from routing_ext.training import Run

KILLS = 20
STEPS = 600
TRAIN = ["train", "repeat-copy", *OPTIONS, "--steps", str(STEPS), "--report-every", "7", "--evaluate-every", "25"]
TRAIN += ["--checkpoint-every", "10", "--no-progress"]


class Forks:
    """Speaks to the process of forks.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, arguments: list[str], kill_after: float | None = None) -> int:
        """The exit status, as of ``os.waitpid``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(arguments), file=self._process.stdin, flush=True)
        child = int(self._answer())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        return int(self._answer())

    def _answer(self) -> str:
        """The next line that is a number; others are what the program prints."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                return line
        raise AssertionError("the process of forks.py has ended")


@pytest.fixture
def forks() -> Iterator[Forks]:
    command = [sys.executable, str(Path(__file__).with_name("forks.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.slow
def test_runs_that_are_killed_twenty_times_end_with_the_same_weights(forks: Forks, tmp_path: Path) -> None:
    began = time.perf_counter()
    assert forks.run([*TRAIN, "--out", str(tmp_path / "whole")]) == 0
    seconds = time.perf_counter() - began
    expected = Run.open(tmp_path / "whole")

    moments, kills, ended, begun_at = random.Random(0), 0, 0, set()
    while kills < KILLS or ended == 0:
        folder = tmp_path / f"killed-{ended}"
        is_run = (folder / "config.yaml").is_file()
        if not is_run and folder.is_dir():
            for path in folder.iterdir():  # killed within its first milliseconds, before it was a run
                path.unlink()
        last = Run.open(folder).checkpoints.last() if is_run else []
        begun_at.add(last[0].name if last else "nothing")
        arguments = ["train", "--resume", str(folder), "--no-progress"] if is_run else [*TRAIN, "--out", str(folder)]
        status = forks.run(arguments, kill_after=moments.uniform(0, seconds / 6) if kills < KILLS else None)
        if os.WIFSIGNALED(status):
            kills += 1
            continue
        assert status == 0
        assert_same(Run.open(folder), expected)
        ended += 1
    assert len(begun_at) > 4, "the moments must fall into the training"


def assert_same(run: Run, expected: Run) -> None:
    for which in ("last", "best"):
        assert same(weights(run.load_network(which)), weights(expected.load_network(which)))  # type: ignore[arg-type]
    timing = ("seconds", "sequences_per_second", "took")
    lines, expected_lines = (
        [{name: value for name, value in line.items() if name not in timing} for line in r.metrics()] for r in (run, expected)
    )
    assert lines == expected_lines
    assert not list(run.path.rglob("*.part"))
