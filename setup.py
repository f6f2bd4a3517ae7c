"""Compiles csrc/ into the one extension module routing_ext._C, with one ninja file.

Environment variables:
  ROUTING_EXT_CUDA      auto (default: where nvcc is found), 0, or 1 (fails without nvcc)
  TORCH_CUDA_ARCH_LIST  architectures of the CUDA kernels, default "8.0;9.0+PTX"
  CUDA_HOME, CXX        the CUDA toolkit and the C++ compiler, where they are not on the path
  MAX_JOBS              how many compilers run at once, default one a core
  ROUTING_EXT_DEBUG     1: -O0 -g
  ROUTING_EXT_SANITIZE  1: the host code under AddressSanitizer and UBSan
"""

import fcntl
import filecmp
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NAME = "routing_ext._C"
TORCH_FLOOR = (2, 11)
DEFAULT_CUDA_ARCHS = "8.0;9.0+PTX"

# Compiled once for each instruction set; which one runs is chosen at run time. Each set is what the name says and no more.
ISA_FLAGS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]


def globbed(*patterns):
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in (ROOT / "csrc").glob(pattern))


GLUE = globbed("*.cpp", "common/*.cpp", "cpu/*.cpp")
SIMD = globbed("cpu/simd/*.cpp")
CUDA_GLUE = globbed("cuda/*.cpp")
CUDA_KERNELS = globbed("cuda/*.cu")


def is_set(variable):
    return os.environ.get(variable, "0") not in ("", "0")


def import_torch():
    try:
        import torch
    except ImportError:
        sys.exit(
            "routing_ext compiles against the torch of this environment, and there is none. Install torch first, then run\n"
            "  pip install --no-build-isolation ."
        )
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < TORCH_FLOOR:
        sys.exit(f"routing_ext needs torch>={'.'.join(map(str, TORCH_FLOOR))}, this environment has torch {torch.__version__}")
    return torch


def find_ninja():
    try:
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    except ImportError:
        return shutil.which("ninja") or sys.exit("routing_ext is built with ninja, which was not found: pip install ninja")


def find_compiler():
    named = os.environ.get("CXX")
    found = next(filter(shutil.which, [named] if named else ["g++", "c++", "clang++"]), None)
    return found or sys.exit(f"routing_ext needs a C++20 compiler, and {named or 'g++'} was not found (CXX names another)")


def find_cuda():
    """(folder of the CUDA toolkit, its version), or None. Does not ask torch, whose CPU build denies that there is one."""
    mode = os.environ.get("ROUTING_EXT_CUDA") or "auto"
    if mode not in ("auto", "0", "1"):
        sys.exit(f"ROUTING_EXT_CUDA must be auto, 0 or 1, got {mode!r}")
    if mode == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which(f"{home}/bin/nvcc" if home else "nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return sys.exit("ROUTING_EXT_CUDA=1, but nvcc was not found (CUDA_HOME, PATH, /usr/local/cuda)") if mode == "1" else None
    # The nvcc on the path may be a wrapper that lies elsewhere; nvcc itself knows its toolkit.
    plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True).stderr
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return Path(re.search(r"TOP=(.*)", plan)[1].strip()).resolve(), re.search(r"release ([\d.]+)", version)[1]


def cuda_archs():
    archs = re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or DEFAULT_CUDA_ARCHS)
    if bad := [arch for arch in archs if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch)]:
        sys.exit(f"TORCH_CUDA_ARCH_LIST must be like {DEFAULT_CUDA_ARCHS!r}, got {bad[0]!r}")
    return archs


def gencode(arch):
    number = arch.removesuffix("+PTX").replace(".", "")
    codes = [f"sm_{number}"] + ([f"compute_{number}"] if arch.endswith("+PTX") else [])
    return [f"-gencode=arch=compute_{number},code={code}" for code in codes]


class Build:
    """The configuration, and the ninja file that follows from it. Paths in it are relative to ROOT, where ninja runs."""

    def __init__(self):
        self.torch = import_torch()
        self.cxx = find_compiler()
        self.cuda = find_cuda()
        self.archs = cuda_archs() if self.cuda else []
        self.debug, self.sanitize = is_set("ROUTING_EXT_DEBUG"), is_set("ROUTING_EXT_SANITIZE")
        # clang's OpenMP would be a second runtime beside torch's: without it, at::parallel_for runs on one thread.
        self.openmp = b"clang" not in subprocess.check_output([self.cxx, "--version"])
        # One folder for each configuration, so that switching between them compiles nothing again.
        names = [f"torch{self.torch.__version__}", sysconfig.get_config_var("SOABI")]
        names += ["debug"] * self.debug + ["sanitize"] * self.sanitize + ["nocuda"] * (self.cuda is None)
        self.folder = Path("build", "ninja", "-".join(names))
        self.library = self.folder / "_C.so"

    def describe(self):
        compiler = subprocess.check_output([self.cxx, "--version"], text=True).splitlines()[0]
        cuda = f"{self.cuda[1]} in {self.cuda[0]}, for {';'.join(self.archs)}" if self.cuda else "no"
        options = [name for name in ("debug", "sanitize") if getattr(self, name)]
        return (
            f"routing_ext: torch {self.torch.__version__}; {compiler}; OpenMP: {'yes' if self.openmp else 'no'}; "
            f"CPU: {', '.join(ISA_FLAGS)}; CUDA: {cuda}; {', '.join(options) or 'optimised'}; in {self.folder}"
        )

    def host_flags(self):
        flags = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", *(["-O0", "-g"] if self.debug else ["-O3"])]
        if self.sanitize:
            # torch's classes cross the border of the library, where `vptr` cannot tell their types.
            flags += ["-g1", "-fno-omit-frame-pointer", *self.sanitizer_flags(), "-fno-sanitize-recover=all"]
        return flags

    def sanitizer_flags(self):
        return ["-fsanitize=address,undefined", "-fno-sanitize=vptr"] if self.sanitize else []

    def glue_flags(self):
        from torch.utils.cpp_extension import include_paths

        flags = [*self.host_flags(), f"-D_GLIBCXX_USE_CXX11_ABI={int(self.torch._C._GLIBCXX_USE_CXX11_ABI)}"]
        flags += ["-fopenmp"] if self.openmp else []
        # As system headers: no warnings from them, and no dependency file lists them. They change with the torch that names
        # the folder.
        return flags + [word for path in include_paths() for word in ("-isystem", path)]

    def module_flags(self):
        """What build_info() tells: for csrc/module.cpp alone, so that a change compiles nothing else."""
        told = {"VERSION": package_version(), "TORCH": self.torch.__version__}
        if self.cuda:
            told |= {"CUDA": self.cuda[1], "CUDA_ARCHS": ";".join(self.archs)}
        flags = [f'-DROUTING_EXT_BUILT_{name}="{value}"' for name, value in told.items()]
        return [*flags, *(["-DROUTING_EXT_BUILT_DEBUG"] if self.debug else []), "-isystem", sysconfig.get_path("include")]

    def simd_flags(self, isa):
        flags = [*self.host_flags(), "-fno-math-errno", "-fno-trapping-math", f"-DROUTING_EXT_ISA={isa}"]
        return flags + ISA_FLAGS[isa]

    def nvcc_flags(self):
        host = "-fPIC,-fvisibility=hidden,-Wall" + (",-fno-omit-frame-pointer" if self.sanitize else "")
        flags = ["-std=c++17", "-lineinfo", *(["-O0", "-g"] if self.debug else ["-O3"]), "-ccbin", self.cxx, "-Xcompiler", host]
        return flags + [flag for arch in self.archs for flag in gencode(arch)]

    def link_flags(self):
        folders = [Path(self.torch.__file__).parent / "lib"]
        libraries = ["-ltorch", "-ltorch_cpu", "-lc10"]
        # No OpenMP library: its symbols are found in the one that torch was linked with, so there is never a second.
        if self.cuda:
            # A library that torch loads for all might have the names of the static CUDA runtime: keep ours to ourselves.
            folders.append(next(f for f in (self.cuda[0] / "lib64", self.cuda[0] / "lib") if (f / "libcudart_static.a").exists()))
            libraries += ["-lcudart_static", "-lrt", "-ldl", "-lpthread", "-Wl,--exclude-libs,ALL"]
        return ["-shared", *self.sanitizer_flags(), *(f"-L{folder}" for folder in folders), *libraries]

    def ninja_file(self):
        def quoted(words):
            return shlex.join(words).replace("$", "$$")

        glue = self.glue_flags()
        lines = [
            "ninja_required_version = 1.5",
            f"builddir = {self.folder}",
            f"glue_flags = {quoted(glue)}",
            *(f"{isa}_flags = {quoted(self.simd_flags(isa))}" for isa in ISA_FLAGS),
            "rule cxx",
            f"  command = {quoted([self.cxx])} -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $out",
            "rule link",
            f"  command = {quoted([self.cxx])} $in {quoted(self.link_flags())} -o $out",
            "  description = $out",
        ]
        objects = []

        def compiled(rule, source, flags, suffix=""):
            objects.append(f"{self.folder}/{source.removeprefix('csrc/')}{suffix}.o")
            lines.extend([f"build {objects[-1]}: {rule} {source}", f"  flags = {flags}"])

        for source in GLUE:
            compiled("cxx", source, "$glue_flags" + (" " + quoted(self.module_flags()) if source == "csrc/module.cpp" else ""))
        for isa in ISA_FLAGS:
            for source in SIMD:
                compiled("cxx", source, f"${isa}_flags", f".{isa}")
        if self.cuda:
            lines += [
                f"nvcc_flags = {quoted(self.nvcc_flags())}",
                "rule nvcc",
                f"  command = {quoted([str(self.cuda[0] / 'bin' / 'nvcc')])} -MMD -MF $out.d $flags -c $in -o $out",
                "  depfile = $out.d",
                "  deps = gcc",
                "  description = $out",
            ]
            for source in CUDA_GLUE:
                compiled("cxx", source, "$glue_flags " + quoted(["-isystem", str(self.cuda[0] / "include")]))
            for source in CUDA_KERNELS:
                compiled("nvcc", source, "$nvcc_flags")
        return "\n".join([*lines, f"build {self.library}: link {' '.join(objects)}", f"default {self.library}", ""])

    def run(self):
        print(self.describe(), flush=True)
        (ROOT / self.folder).mkdir(parents=True, exist_ok=True)
        with open(ROOT / self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would spoil each other's objects
            path, text = ROOT / self.folder / "build.ninja", self.ninja_file()
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
            jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
            done = subprocess.run([find_ninja(), "-f", str(self.folder / "build.ninja"), *jobs], cwd=ROOT)
        if done.returncode != 0:
            sys.exit("routing_ext: the extension did not compile; the first error is above")


def package_version():
    return re.search(r'__version__ = "(.+)"', (ROOT / "routing_ext" / "_version.py").read_text())[1]


class BuildExt(build_ext):
    def build_extension(self, ext):
        build = Build()
        build.run()
        target = Path(self.get_ext_fullpath(ext.name))
        if not target.exists() or not filecmp.cmp(ROOT / build.library, target, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            shutil.copyfile(ROOT / build.library, partial)
            partial.replace(target)  # a process that runs keeps the file it has loaded


setup(
    ext_modules=[Extension(NAME, sources=[*GLUE, *SIMD, *CUDA_GLUE, *CUDA_KERNELS])],
    cmdclass={"build_ext": BuildExt},
)
