"""For programs that print what became of a launch in several thread orders (outcome.h): whether a planted bug was found."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import emulated_build

RIGHT = "right"  # a bug that the emulation cannot see, or none
WRONG = "wrong"  # or the program dies: what it should compare may be anything
REFUSED = "refused"  # the launch fails
SANITIZER = "sanitizer"  # AddressSanitizer or UBSan ends the program


def check(program: pathlib.Path, arguments: list[str], found: str, pattern: str = "") -> None:
    """Asserts how a bug is found, in at least one order. `REFUSED` and `SANITIZER` have messages that `pattern` matches."""
    sanitizer = {k: v for k, v in emulated_build.sanitizer_environment().items() if k != "LD_PRELOAD"}
    done = subprocess.run([program, *arguments], capture_output=True, text=True, env={**os.environ, **sanitizer})
    if found == SANITIZER:
        assert done.returncode != 0, done.stdout
        assert re.search(pattern, done.stderr), done.stderr
        return
    if found == WRONG and done.returncode < 0:
        return
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.splitlines()
    assert len(outcomes) == 5, done.stdout
    kinds = {outcome.partition(" ")[0] for outcome in outcomes}
    if found == RIGHT:
        assert kinds == {RIGHT}, outcomes
    else:
        assert found in kinds, outcomes
        assert found != REFUSED or all(re.search(pattern, o) for o in outcomes if o.startswith(REFUSED)), outcomes
