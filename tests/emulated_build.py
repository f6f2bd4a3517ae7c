"""Compiles CUDA sources with g++ and the emulation of tests/cuda_emu (docs/cuda-emulation.md).

    import routing_ext
    import emulated_build
    emulation = emulated_build.load()   # from here on torch.ops.routing_ext runs the CUDA kernels, emulated, on CPU tensors

Use `load` in a process of its own: a library cannot be unloaded. Objects are kept in build/emulated and compiled again when a
file that they include, or the flags, have changed.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import hashlib
import os
import pathlib
import shlex
import subprocess
import threading
from collections.abc import Sequence

import torch
from torch.utils import cpp_extension

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "emulated"
EMULATION = ROOT / "tests" / "cuda_emu"
KERNELS = ROOT / "csrc" / "cuda"

FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
FLAGS += [f"-I{folder}" for folder in (EMULATION, KERNELS, KERNELS / "memory")]
SANITIZER_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


class Emulation:
    """The emulation inside a loaded library."""

    def __init__(self, path: pathlib.Path):
        self._library = ctypes.CDLL(str(path))
        self._library.emulated_set_order.argtypes = [ctypes.c_int64]

    def set_order(self, order: int) -> None:
        """In what order threads run: 0 ascending, -1 descending, any other number is the seed of a random order."""
        self._library.emulated_set_order(order)


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _folder(flags: Sequence[str]) -> pathlib.Path:
    """Where objects compiled with these flags are kept."""
    folder = BUILD / hashlib.sha256(shlex.join([_compiler(), *flags]).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_fresh(target: pathlib.Path, depfile: pathlib.Path) -> bool:
    if not target.exists() or not depfile.exists():
        return False
    dependencies = shlex.split(depfile.read_text().replace("\\\n", " ").partition(":")[2])
    built = target.stat().st_mtime_ns
    return all(os.path.exists(d) and os.stat(d).st_mtime_ns < built for d in dependencies)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
    if done.stderr:
        print(done.stderr)


def _partial(target: pathlib.Path) -> pathlib.Path:
    """What is renamed when complete: a build that is cut off, or runs twice, also in two threads, leaves no broken file."""
    return target.with_suffix(f".{os.getpid()}-{threading.get_ident()}{target.suffix}")


def _compile(source: pathlib.Path, flags: Sequence[str], folder: pathlib.Path) -> pathlib.Path:
    target, depfile = folder / f"{source.name}.o", folder / f"{source.name}.d"
    if not _is_fresh(target, depfile):
        partial = _partial(target)
        _run([_compiler(), *flags, "-MMD", "-MF", str(depfile), "-x", "c++", "-c", str(source), "-o", str(partial)])
        partial.rename(target)
    return target


def _compile_all(sources: Sequence[pathlib.Path], flags: Sequence[str], folder: pathlib.Path) -> list[pathlib.Path]:
    with concurrent.futures.ThreadPoolExecutor(jobs()) as pool:
        return list(pool.map(lambda source: _compile(source, flags, folder), sources))


def _link(objects: Sequence[pathlib.Path], target: pathlib.Path, flags: Sequence[str]) -> pathlib.Path:
    if not target.exists() or target.stat().st_mtime_ns < max(o.stat().st_mtime_ns for o in objects):
        partial = _partial(target)
        _run([_compiler(), *map(str, objects), *flags, "-o", str(partial)])
        partial.rename(target)
    return target


def jobs() -> int:
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def build_program(name: str, sources: Sequence[pathlib.Path], sanitize: bool = False) -> pathlib.Path:
    """The path of a program without torch."""
    sanitizer = SANITIZER_FLAGS if sanitize else []
    flags = [*FLAGS, *sanitizer]
    folder = _folder(flags)
    return _link(_compile_all(sources, flags, folder), folder / name, sanitizer)


def build_library(sanitize: bool = False) -> pathlib.Path:
    """The path of the library with csrc/cuda, kernels and glue, registered for CPU tensors."""
    return _build_library("emulated_ops.so", sanitize)


def build_pretended() -> pathlib.Path:
    """The path of the library with csrc/cuda, kernels and glue, registered for the device of tests/pretended_cuda.py."""
    return _build_library("pretended_cuda.so", False, ["-DROUTING_EXT_DISPATCH_KEY=CUDA"], [EMULATION / "pretended_cuda.cpp"])


def _build_library(
    name: str, sanitize: bool, flags_of_glue: Sequence[str] = (), more: Sequence[pathlib.Path] = ()
) -> pathlib.Path:
    sanitizer = SANITIZER_FLAGS if sanitize else []
    flags = [*FLAGS, *sanitizer, "-DROUTING_EXT_EMULATED", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    # As system headers: they are large, and change with torch only, whose version is among the flags.
    flags += [word for path in cpp_extension.include_paths() for word in ("-isystem", path)]
    flags += [f'-DROUTING_EXT_EMULATED_TORCH="{torch.__version__}"']
    folder = _folder(flags)
    kernels = [*sorted(KERNELS.rglob("*.cu")), EMULATION / "emulated_api.cpp"]
    glue, glue_flags = [*sorted(KERNELS.rglob("*.cpp")), *more], [*flags, *flags_of_glue]
    objects = _compile_all(kernels, flags, folder) + _compile_all(glue, glue_flags, _folder(glue_flags))
    link_flags = [flag for path in cpp_extension.library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    link_flags += ["-shared", *sanitizer, "-ltorch_cpu", "-lc10"]
    return _link(objects, folder / name, link_flags)


def load(sanitize: bool = False) -> Emulation:
    """Replaces the CPU kernels of this process, which with `sanitize` has to be started in `sanitizer_environment`."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("routing_ext::dispatch_plan", "CPU"):
        raise RuntimeError("import routing_ext before emulated_build.load(), else its kernels would replace the emulated ones")
    path = build_library(sanitize)
    torch.ops.load_library(str(path))
    return Emulation(path)


def sanitizer_environment() -> dict[str, str]:
    """Variables for a process that loads sanitized code into a Python that is not."""

    def library(name: str) -> str:
        command = [_compiler(), f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    # libstdc++ as well, or the sanitizer would not find the function that throws exceptions, which it wraps.
    preload = " ".join([library("libasan.so"), library("libstdc++.so")])
    # Python leaks by design, and so do the locals of a fiber that a failed launch abandons.
    return {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
