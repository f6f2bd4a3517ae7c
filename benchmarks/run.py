"""The full run: everything with one thread, the headline rows with two, and what is made of the results.

python -m benchmarks.run
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import describe_machine

ROOT = Path(__file__).parent.parent
PYTEST = (sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "--benchmark-quiet", "-q", "-s", "--save-results")


def main() -> None:
    runs: list[tuple[list[str], dict[str, str]]] = [([*PYTEST, "--with-compile"], {})]
    if describe_machine()["cores"] > 1:
        # Unpinned, a second thread may be moved, or share a core, while the first waits for it.
        pinned = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
        runs.append(([*PYTEST, "--threads", "2", "-m", "headline"], pinned))
    for command, environment in runs:
        subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.make_readme"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
