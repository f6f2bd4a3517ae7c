"""Runs op tests again, circuits and kernels/, on emulated CUDA kernels, in several thread orders, in processes of their own;
those of sequences once more by steps, where by default they are one launch.

With --sanitize: once, under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

import emulated_build
import pytest

TESTS = pathlib.Path(__file__).parent.parent
SUITES = ["ops", "emulated/kernels", "memory/test_circuits.py"]
ORDERS = [0, -1, 1]
# In a thread order other than the first: without what is slow or calls an operator hundreds of times, without what looks at
# the operators' Python side, and without the many ways of lengths and resets, for whose sake no thread waits for another.
QUICK = ["-m", "not slow", "-k", "not compile and not opcheck and not gradcheck and not lengths_and_resets"]

Run = subprocess.CompletedProcess[str]


def run(order: int, *options: str, sanitize: bool = False) -> Run:
    suites = [str(TESTS / suite) for suite in SUITES]
    return run_pytest(*suites, "--emulated-cuda", str(order), *options, sanitize=sanitize)


def run_pytest(*arguments: str, sanitize: bool = False, **variables: str) -> Run:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    environment |= emulated_build.sanitizer_environment() if sanitize else {}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    done.stdout += done.stderr
    return done


def check(done: Run) -> None:
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert passed is not None
    assert int(passed[1]) > 0


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> dict[int, concurrent.futures.Future[Run]]:
    """All orders at once, `jobs` at a time."""
    if request.config.getoption("--sanitize"):
        pytest.skip("only what --sanitize is for")
    emulated_build.build_library()
    with concurrent.futures.ThreadPoolExecutor(emulated_build.jobs()) as pool:
        return {order: pool.submit(run, order, *(QUICK if order != ORDERS[0] else [])) for order in ORDERS}


@pytest.mark.parametrize("order", ORDERS)
def test_ops_in_order(order: int, runs: dict[int, concurrent.futures.Future[Run]]) -> None:
    check(runs[order].result())


def test_sequences_by_steps(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--sanitize"):
        pytest.skip("only what --sanitize is for")
    suite = str(TESTS / "ops/test_memory_sequence.py")
    check(run_pytest(suite, "--emulated-cuda", "0", *QUICK, ROUTING_EXT_SEQUENCE="steps"))


def test_layers_on_the_pretended_device(request: pytest.FixtureRequest) -> None:
    """Layers of both kinds with tensors that are on CUDA, as far as Python and autograd can tell."""
    if request.config.getoption("--sanitize"):
        pytest.skip("only what --sanitize is for")
    suites = ["routing/test_devices.py", "routing/test_choices.py", "memory/test_memory_devices.py"]
    check(run_pytest(*(str(TESTS / suite) for suite in suites), "--pretended-cuda", "--device", "cuda", "-k", "not compile"))


def test_ops_sanitized(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--sanitize"):
        pytest.skip("only with --sanitize (make sanitize)")
    emulated_build.build_library(sanitize=True)
    check(run(2, *QUICK, sanitize=True))
