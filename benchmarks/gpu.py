"""The proof on a GPU, and the measurements there: `make gpu`. docs/gpu.md says what each stage shows.

python -m benchmarks.gpu [--check] [--stages sanitizers,probe,tests,benchmarks] [--tiny]

Results go to benchmarks/results/<gpu>.json, each stage's as soon as it is over.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("sanitizers", "probe", "tests", "benchmarks")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Small cases: the kernels' own tests, and the operators of decisions. Not what compiles, or repeats a call hundreds of times.
SANITIZED = ("tests/emulated/kernels", "tests/ops/test_policy_gradients.py", "tests/ops/test_move_rows.py")
QUICK = ("-m", "not slow", "-k", "not gradcheck and not opcheck and not compile and not gradients")
FOUND_BY_SANITIZER = 99


def why_not() -> str | None:
    """Why this machine cannot prove anything; None if it can."""
    if not torch.cuda.is_available():
        return f"no GPU that torch {torch.__version__} can use"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} has compute capability below 8.0"
    if nvcc() is None:
        return "nvcc not found (CUDA_HOME names the toolkit)"
    return None


def _tool(name: str) -> str | None:
    home = os.environ.get("CUDA_HOME")
    folders = [f"{home}/bin"] if home else ["/usr/local/cuda/bin"]
    return shutil.which(name) or next(filter(None, (shutil.which(f"{folder}/{name}") for folder in folders)), None)


def nvcc() -> str | None:
    return _tool("nvcc")


def sanitizer() -> str | None:
    return _tool("compute-sanitizer")


def slug() -> str:
    """A file name for this kind of GPU: ``nvidia-h100-80gb-hbm3``."""
    return "-".join(re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower()))


def describe() -> dict[str, Any]:
    import routing_ext

    device = torch.cuda.get_device_properties(0)
    return {
        "name": device.name,
        "compute_capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gib": round(device.total_memory / 2**30),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "build": dict(routing_ext.build_info()),
    }


def keep(**parts: Any) -> None:
    """Puts them into the GPU's file of results."""
    path = ROOT / "benchmarks" / "results" / f"{slug()}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results |= {"gpu": describe(), "date": datetime.date.today().isoformat(), **parts}
    rows = ",\n".join("  " + json.dumps(row) for row in results.pop("rows", []))
    path.write_text(json.dumps(results, indent=1).removesuffix("\n}") + f',\n "rows": [\n{rows}\n ]\n}}\n')
    print(f"  kept in {path.relative_to(ROOT)}", flush=True)


def run(*command: str, **environment: str) -> int:
    print(f"$ {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode


# ---- stages -----------------------------------------------------------------------------------------------------------------


def sanitizer_command(tool: str, program: str, help_text: str) -> list[str]:
    """Initcheck looks at our kernels alone: torch's read memory that nobody set, on purpose."""
    options = ["--tool", tool, "--error-exitcode", str(FOUND_BY_SANITIZER), "--target-processes", "application-only"]
    if tool == "initcheck":
        name = "--kernel-name" if "--kernel-name " in help_text else "--kernel-regex"
        options += [name, "kns=routing_ext"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--device", "cuda", *QUICK, *SANITIZED]
    return [program, *options, *pytest]


def sanitizers(tiny: bool) -> None:
    program = sanitizer()
    if program is None:
        sys.exit("make gpu: compute-sanitizer not found (CUDA_HOME names the toolkit)")
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    # Each tensor an allocation of its own, else memcheck would see the allocator's large blocks only.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    codes = {tool: run(*sanitizer_command(tool, program, help_text), **environment) for tool in TOOLS}
    keep(sanitizers=codes)
    if any(codes.values()):
        sys.exit(f"make gpu: the sanitizers found something: {codes}")


def probe(tiny: bool) -> None:
    compiler = nvcc()
    assert compiler is not None
    program = ROOT / "build" / "gpu_probe"
    program.parent.mkdir(exist_ok=True)
    if run(compiler, "-std=c++17", "-O3", "-arch=native", "benchmarks/gpu_probe.cu", "-o", str(program)) != 0:
        sys.exit("make gpu: the probe does not compile")
    done = subprocess.run([program], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"make gpu: the probe failed: {done.stderr}")
    print(done.stdout)
    keep(probe=json.loads(done.stdout))


def tests(tiny: bool) -> None:
    code = run(sys.executable, "-m", "pytest", "-q", "--device", "cuda")
    keep(tests=code)
    if code != 0:
        sys.exit("make gpu: tests failed")


def benchmarks(tiny: bool) -> None:
    from benchmarks.gpu_rows import Timer, all_rows, ceilings

    timer = Timer("cuda", 0.05 if tiny else 0.5)
    of_device, rows = ceilings(timer, tiny), []
    print(f"  {of_device}")
    for row in all_rows(timer, tiny):
        if "gflop_s" in row:
            row["of_ceiling"] = round(
                max(row["gflop_s"] / of_device[f"gflop_s_{row['case']['dtype']}"], row["gb_s"] / of_device["copy_gb_s"]), 3
            )
        rows.append(row)
    keep(ceilings=of_device, rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="The proof on a GPU, and the measurements there"
    )
    parser.add_argument("--check", action="store_true", help="only tell whether this machine can")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of %(default)s")
    parser.add_argument("--tiny", action="store_true", help="benchmarks on small inputs: whether they work")
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        sys.exit(f"make gpu: {reason}")
    if options.check:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
        return
    import routing_ext

    if routing_ext.build_info()["cuda"] is None:
        sys.exit("make gpu: routing_ext was built without CUDA kernels (ROUTING_EXT_CUDA=1 make build)")
    wanted = options.stages.split(",")
    if not set(wanted) <= set(STAGES):
        sys.exit(f"make gpu: stages must be among {', '.join(STAGES)}, got {options.stages}")
    for stage in STAGES:
        if stage in wanted:
            print(f"== {stage}", flush=True)
            {"sanitizers": sanitizers, "probe": probe, "tests": tests, "benchmarks": benchmarks}[stage](options.tiny)


if __name__ == "__main__":
    main()
