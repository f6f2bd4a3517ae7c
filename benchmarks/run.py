"""The full run: everything with one thread, the headline rows with two, and what is made of the results.

python -m benchmarks.run [options of pytest, such as --reference-dnc DIR or -k memory]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.machine import describe_machine

ROOT = Path(__file__).parent.parent
PYTEST = (sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "--benchmark-quiet", "-q", "-s", "--save-results")


def main() -> None:
    command = [*PYTEST, "--with-compile", *sys.argv[1:]]
    runs: list[tuple[list[str], dict[str, str]]] = [(command, {})]
    if describe_machine()["cores"] > 1:
        # Unpinned, a second thread may be moved, or share a core, while the first waits for it.
        pinned = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
        runs.append(([*command, "--threads", "2", "-m", "headline"], pinned))
    for command, environment in runs:
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment})
        if done.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            sys.exit(done.returncode)
    subprocess.run([sys.executable, "-m", "benchmarks.make_readme"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
