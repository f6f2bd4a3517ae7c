"""The emulation itself: it runs correct kernels correctly, and finds the bugs planted in small ones."""

from __future__ import annotations

import functools
import pathlib
import subprocess

import emulated_build
import pytest
from outcomes import REFUSED, RIGHT, SANITIZER, WRONG, check

FOLDER = pathlib.Path(__file__).parent

PLANTED = {
    "no barrier": (WRONG, ""),
    "no barrier before reuse": (WRONG, ""),
    "no __syncwarp": (WRONG, ""),
    "warps share a cell": (WRONG, ""),
    "shared memory not initialised": (WRONG, ""),
    "shuffle from an absent lane": (WRONG, ""),
    "shared write past the end": (REFUSED, "write outside the 384 bytes"),
    "shared write far past the end": (REFUSED, "write outside the 384 bytes"),
    "shared write before the start": (REFUSED, "write outside the 384 bytes"),
    "too little shared memory": (REFUSED, "takes 388 bytes of dynamic shared memory, launch gave 384"),
    "threads disagree about shared memory": (REFUSED, "disagree about the layout"),
    "barrier in a branch": (REFUSED, r"barrier reached by thread .* has left the kernel"),
    "barrier after an early return": (REFUSED, r"barrier reached by thread .* has left the kernel"),
    "one barrier in two lines": (REFUSED, r"barrier reached by thread .* waits in line"),
    "shuffle in a branch": (REFUSED, "not reached by all lanes"),
    "mask without the caller": (REFUSED, "leaves out the caller"),
    "cluster: two buffers": (RIGHT, ""),
    "cluster: one buffer": (WRONG, ""),
    "cluster: block leaves": (REFUSED, "block that has left the kernel"),
}
PLANTED_SANITIZED = {
    "shared write past the end": "AddressSanitizer: use-after-poison",
    "shared read past the end": "AddressSanitizer: use-after-poison",
    "global write past the end": "AddressSanitizer: heap-buffer-overflow",
    "misaligned access": "runtime error: store to misaligned address",
}


@functools.cache
def program(name: str, sanitize: bool) -> pathlib.Path:
    return emulated_build.build_program(name, [FOLDER / f"{name}.cu"], sanitize)


def test_runs_correct_kernels_and_refuses_what_hardware_refuses() -> None:
    done = subprocess.run([program("self_test", False)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "passed\n")


@pytest.mark.parametrize("bug", PLANTED)
def test_finds_bug(bug: str) -> None:
    check(program("planted", False), [bug], *PLANTED[bug])


@pytest.mark.parametrize("bug", PLANTED_SANITIZED)
def test_finds_bug_with_sanitizer(bug: str) -> None:
    check(program("planted", True), [bug], SANITIZER, PLANTED_SANITIZED[bug])
