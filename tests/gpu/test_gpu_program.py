"""`make gpu`, as far as it can be tried without a GPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@without_gpu
@pytest.mark.parametrize("options", [[], ["--check"], ["--stages", "probe"]], ids=str)
def test_stops_with_one_line(options: list[str]) -> None:
    done = run(sys.executable, "-m", "benchmarks.gpu", *options)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(rf"make gpu: no GPU that torch {re.escape(torch.__version__)} can use\n", done.stderr)


@without_gpu
def test_tests_of_cuda_stop_with_one_line() -> None:
    done = run(sys.executable, "-m", "pytest", "-q", "--device", "cuda", "tests/ops/test_move_rows.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--device cuda: no GPU that torch {torch.__version__} can use" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_checks_first_builds_then_runs(tmp_path: Path) -> None:
    done = run("make", "-n", "gpu", "VENV=", f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr
    places = [done.stdout.find(text) for text in ("benchmarks.gpu --check", "setup.py", "benchmarks.gpu\n")]
    assert -1 not in places
    assert places == sorted(places)


def test_sanitizers_command() -> None:
    from benchmarks.gpu import FOUND_BY_SANITIZER, QUICK, SANITIZED, TOOLS, sanitizer_command

    assert TOOLS == ("memcheck", "racecheck", "initcheck", "synccheck")
    for tool in TOOLS:
        command = sanitizer_command(tool, "compute-sanitizer", "--kernel-name arg  Filter")
        assert command[:3] == ["compute-sanitizer", "--tool", tool]
        assert str(FOUND_BY_SANITIZER) in command
        assert ("kns=routing_ext" in command) == (tool == "initcheck")
    assert all((ROOT / path).exists() for path in SANITIZED)
    collected = run(sys.executable, "-m", "pytest", "-q", "--collect-only", "--emulated-cuda", "0", *QUICK, *SANITIZED)
    assert re.search(r"[1-9]\d+/\d+ tests collected", collected.stdout), collected.stdout + collected.stderr


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_probe_compiles(arch: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    flags = ["-std=c++17", "-O1", f"-arch={arch}", "-Xcompiler=-Wall,-Werror", "-Werror=all-warnings"]
    done = run(nvcc, *flags, "-c", "benchmarks/gpu_probe.cu", "-o", str(tmp_path / "probe.o"))
    assert done.returncode == 0, done.stderr


def test_rows_work(capsys: pytest.CaptureFixture[str]) -> None:
    """On the CPU, where they take no time worth to store."""
    from benchmarks.gpu_rows import Timer, all_rows, ceilings

    timer = Timer("cpu", 0.0)
    found = ceilings(timer, tiny=True)
    rows = list(all_rows(timer, tiny=True))
    benches = {"dispatch_plan", "gather_rows", "scatter_rows", "selection", "routing_step", "dnc_sequence"}
    assert {row["bench"] for row in rows} == benches
    assert all(len(side["us"]) == 3 for row in rows for side in row["sides"].values())
    assert {f"gflop_s_{row['case']['dtype']}" for row in rows if "gflop_s" in row} <= found.keys()
    json.dumps(rows)
