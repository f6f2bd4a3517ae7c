"""Builds csrc/cuda with g++ and the CUDA emulation into a library whose kernels take the place of the CPU kernels.

    import routing_ext
    import emulated_build
    emulation = emulated_build.load()   # from here on torch.ops.routing_ext runs the CUDA kernels, emulated, on CPU tensors

Use it in a process of its own: a library cannot be unloaded. Objects are kept in build/emulated and compiled again when a file
that they include, or the flags, have changed.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import hashlib
import os
import pathlib
import shlex
import subprocess

import torch
from torch.utils import cpp_extension

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "emulated"
EMULATION = ROOT / "tests" / "cuda_emu"

FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-DROUTING_EXT_EMULATED", f"-I{EMULATION}"]
SANITIZER_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


class Emulation:
    """The emulation inside a loaded library."""

    def __init__(self, path: pathlib.Path):
        self._library = ctypes.CDLL(str(path))
        self._library.emulated_set_order.argtypes = [ctypes.c_int64]
        self._library.emulated_message.restype = ctypes.c_char_p

    def set_order(self, order: int) -> None:
        """In what order threads run: 0 ascending, -1 descending, any other number is the seed of a random order."""
        self._library.emulated_set_order(order)

    def message(self) -> str:
        """What was wrong with the last launch that failed."""
        return self._library.emulated_message().decode()


def sources() -> list[pathlib.Path]:
    folder = ROOT / "csrc" / "cuda"
    return [*sorted(folder.glob("*.cpp")), *sorted(folder.glob("*.cu")), EMULATION / "emulated_api.cpp"]


def _flags(sanitize: bool) -> list[str]:
    flags = [*FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    # As system headers: they are large, and change with torch only, whose version is among the flags.
    flags += [word for path in cpp_extension.include_paths() for word in ("-isystem", path)]
    flags += [f'-DROUTING_EXT_EMULATED_TORCH="{torch.__version__}"']
    return flags + (SANITIZER_FLAGS if sanitize else [])


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


def _compile(compiler: str, source: pathlib.Path, flags: list[str], folder: pathlib.Path) -> pathlib.Path:
    target, depfile = folder / f"{source.name}.o", folder / f"{source.name}.d"
    if not _is_fresh(target, depfile):
        partial = target.with_suffix(f".{os.getpid()}.o")  # a build that is cut off, or runs twice, leaves no broken object
        _run([compiler, *flags, "-MMD", "-MF", str(depfile), "-x", "c++", "-c", str(source), "-o", str(partial)])
        partial.rename(target)
    return target


def build(sanitize: bool = False) -> pathlib.Path:
    """The path of the library, built if it has to be."""
    compiler = os.environ.get("CXX", "g++")
    flags = _flags(sanitize)
    folder = BUILD / hashlib.sha256(shlex.join([compiler, *flags]).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(lambda source: _compile(compiler, source, flags, folder), sources()))
    library = folder / "emulated_ops.so"
    if not library.exists() or library.stat().st_mtime_ns < max(o.stat().st_mtime_ns for o in objects):
        folders = cpp_extension.library_paths()
        paths = [flag for path in folders for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
        partial = library.with_suffix(f".{os.getpid()}.so")
        link_flags = SANITIZER_FLAGS if sanitize else []
        _run([compiler, "-shared", *link_flags, *map(str, objects), *paths, "-ltorch_cpu", "-lc10", "-o", str(partial)])
        partial.rename(library)
    return library


def load(sanitize: bool = False) -> Emulation:
    """Replaces the CPU kernels of this process. With `sanitize`, libasan.so has to be in LD_PRELOAD."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("routing_ext::dispatch_plan", "CPU"):
        raise RuntimeError("import routing_ext before emulated_build.load(), else its kernels would replace the emulated ones")
    path = build(sanitize)
    torch.ops.load_library(str(path))
    return Emulation(path)
