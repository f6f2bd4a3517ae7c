"""Compiles csrc/ into the one extension module routing_ext._C, with one ninja file.

Environment variables:
  ROUTING_EXT_CUDA      auto (default: where nvcc is found), 0, or 1 (fails without nvcc)
  TORCH_CUDA_ARCH_LIST  architectures of the CUDA kernels, default "8.0;9.0+PTX", and "7.5" if there is such a GPU
  CUDA_HOME, CXX        the CUDA toolkit and the C++ compiler, where they are not on the path
  MAX_JOBS              how many compilers run at once, default about one a core
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
from functools import cached_property
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_FLOOR = (2, 11)
DEFAULT_CUDA_ARCHS = "8.0;9.0+PTX"
OLDEST_GPU = (7, 5)  # older than what the default is for

# csrc/cpu/simd is compiled once for each of these, and nothing else with flags of an instruction set.
ISA_FLAGS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]


def globbed(*patterns):
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))


SIMD = globbed("cpu/simd/*.cpp")
GLUE = globbed("*.cpp", "autograd/*.cpp", "common/*.cpp", "cpu/*.cpp", "python/*.cpp")
CUDA_GLUE = globbed("cuda/*.cpp", "cuda/memory/*.cpp")
CUDA_KERNELS = globbed("cuda/*.cu", "cuda/memory/*.cu")


def switched_on(variable):
    return os.environ.get(variable, "") not in ("", "0")


def package_version():
    return re.search(r'"(.+)"', (ROOT / "routing_ext" / "_version.py").read_text())[1]


def import_torch():
    try:
        import torch
    except ImportError:
        sys.exit(
            "routing_ext is compiled against the torch of this environment, and there is none: install torch, then run\n"
            "  pip install --no-build-isolation ."
        )
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < TORCH_FLOOR:
        sys.exit(f"routing_ext needs torch>={'.'.join(map(str, TORCH_FLOOR))}, this environment has torch {torch.__version__}")
    return torch


def find_ninja():
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja") or sys.exit("routing_ext is built with ninja, which was not found: pip install ninja")
    return str(Path(ninja.BIN_DIR, "ninja"))


def find_cxx():
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    found = next(filter(shutil.which, candidates), None)
    return found or sys.exit(f"routing_ext needs a C++20 compiler; not found: {', '.join(candidates)} (CXX names another)")


def find_cuda():
    """(folder of the CUDA toolkit, its version), or None. Does not ask torch, whose CPU build denies that there is one."""
    mode = os.environ.get("ROUTING_EXT_CUDA") or "auto"
    if mode not in ("auto", "0", "1"):
        sys.exit(f"ROUTING_EXT_CUDA must be auto, 0 or 1, got {mode!r}")
    home = os.environ.get("CUDA_HOME")
    candidates = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next(filter(None, map(shutil.which, candidates)), None)
    if mode == "1" and nvcc is None:
        sys.exit(f"ROUTING_EXT_CUDA=1, but nvcc was not found: {', '.join(candidates)} (CUDA_HOME names the toolkit)")
    if mode == "0" or nvcc is None:
        return None
    # The nvcc on the path may be a wrapper that lies elsewhere; nvcc itself knows its toolkit.
    plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True).stderr
    version = subprocess.check_output([nvcc, "--version"], text=True)
    return Path(re.search(r"TOP=(.*)", plan)[1].strip()).resolve(), re.search(r"release ([\d.]+)", version)[1]


def cuda_archs(torch):
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    archs = re.split(r"[;, ]+", given or DEFAULT_CUDA_ARCHS)
    gpus = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if not given and OLDEST_GPU in gpus:
        archs.insert(0, ".".join(map(str, OLDEST_GPU)))
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            sys.exit(f"TORCH_CUDA_ARCH_LIST must be like {DEFAULT_CUDA_ARCHS!r}, got {arch!r}")
    return archs


def gencode(arch):
    number = arch.removesuffix("+PTX").replace(".", "")
    codes = [f"sm_{number}", *([f"compute_{number}"] if arch.endswith("+PTX") else [])]
    return [f"-gencode=arch=compute_{number},code={code}" for code in codes]


class Build:
    """One configuration, and the ninja file that follows from it. Paths are relative to ROOT, where ninja runs."""

    def __init__(self):
        self.torch = import_torch()
        self.cxx = find_cxx()
        self.compiler = subprocess.check_output([self.cxx, "--version"], text=True).splitlines()[0]
        # clang's OpenMP would be a second runtime beside torch's: without OpenMP, at::parallel_for runs on one thread.
        self.openmp = "clang" not in self.compiler
        self.cuda, self.cuda_version = find_cuda() or (None, None)
        self.archs = cuda_archs(self.torch) if self.cuda else []
        self.debug, self.sanitize = switched_on("ROUTING_EXT_DEBUG"), switched_on("ROUTING_EXT_SANITIZE")
        self.options = [name for name in ("debug", "sanitize") if getattr(self, name)]
        # A folder for each configuration, so that going back to another compiles nothing again.
        name = "-".join([f"torch{self.torch.__version__}", sysconfig.get_config_var("SOABI"), *self.options])
        self.folder = Path("build", "ninja", name if self.cuda else f"{name}-nocuda")
        self.library = self.folder / "_C.so"

    def __str__(self):
        cuda = f"{self.cuda_version} in {self.cuda} for {';'.join(self.archs)}" if self.cuda else "none"
        return (
            f"routing_ext {package_version()}: torch {self.torch.__version__} | {self.compiler} | "
            f"OpenMP {'yes' if self.openmp else 'no'} | CPU kernels {', '.join(ISA_FLAGS)} | CUDA {cuda} | "
            f"{', '.join(self.options) or 'optimised'} | {self.folder}"
        )

    @cached_property
    def sanitizers(self):
        # Not `vptr`: it cannot know the types of objects that torch made.
        return ["-fsanitize=address,undefined", "-fno-sanitize=vptr"] if self.sanitize else []

    @cached_property
    def host_flags(self):
        # Not -O3 under the sanitizers, which make it take ten times as long.
        level = ["-O0", "-g"] if self.debug else ["-O1", "-g1"] if self.sanitize else ["-O3"]
        flags = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", *level]
        return flags + [*self.sanitizers, *(["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] * self.sanitize)]

    @cached_property
    def glue_flags(self):
        from torch.utils.cpp_extension import include_paths

        # System headers: no warnings from them, and none in dependency files. They change with the torch that names `folder`.
        torch_headers = [word for path in include_paths() for word in ("-isystem", path)]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(self.torch._C._GLIBCXX_USE_CXX11_ABI)}"
        return [*self.host_flags, abi, *(["-fopenmp"] if self.openmp else []), *torch_headers]

    def flags_of_glue(self, source):
        python = ["-isystem", sysconfig.get_path("include")]
        if source == "csrc/module.cpp":
            return [*self.glue_flags, *self.module_flags, *python]
        return [*self.glue_flags, *(python if source.startswith("csrc/python/") else [])]

    @cached_property
    def module_flags(self):
        """What build_info() tells. For csrc/module.cpp alone, so that a new version compiles nothing else."""
        told = {"VERSION": package_version(), "TORCH": self.torch.__version__, "OPTIONS": ",".join(self.options)}
        if self.cuda:
            told |= {"CUDA": self.cuda_version, "CUDA_ARCHS": ";".join(self.archs)}
        return [f'-DROUTING_EXT_BUILT_{name}="{value}"' for name, value in told.items()]

    def simd_flags(self, isa):
        return [*self.host_flags, "-fno-math-errno", "-fno-trapping-math", *ISA_FLAGS[isa], f"-DROUTING_EXT_ISA={isa}"]

    @cached_property
    def nvcc_flags(self):
        flags = ["-std=c++17", "-lineinfo", *(["-O0", "-g"] if self.debug else ["-O3"]), "-ccbin", self.cxx]
        return [*flags, "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", *(flag for arch in self.archs for flag in gencode(arch))]

    @cached_property
    def link_flags(self):
        # No OpenMP library: its functions are found in the one that torch is linked with, so there is never a second.
        flags = [
            "-shared",
            *self.sanitizers,
            f"-L{Path(self.torch.__file__).parent / 'lib'}",
            "-ltorch",
            "-ltorch_cpu",
            "-ltorch_python",
            "-lc10",
        ]
        if not self.cuda:
            return flags
        # A CUDA runtime that torch loads has the same names as the static one here: hidden, the latter calls none but itself.
        static = ["-lcudart_static", "-lrt", "-ldl", "-lpthread", "-Wl,--exclude-libs,ALL"]
        return [*flags, *(f"-L{self.cuda / folder}" for folder in ("lib64", "lib")), *static]

    def ninja_file(self):
        def quoted(words):
            return shlex.join(map(str, words)).replace("$", "$$")

        objects = []

        def compiled(rule, source, flags, suffix=""):
            objects.append(f"{self.folder}/{source.removeprefix('csrc/')}{suffix}.o")
            return [f"build {objects[-1]}: {rule} {source}", f"  flags = {quoted(flags)}"]

        def compiler(rule, program):
            command = f"{quoted([program])} -MMD -MF $out.d $flags -c $in -o $out"
            return [f"rule {rule}", f"  command = {command}", "  depfile = $out.d", "  deps = gcc", "  description = $out"]

        lines = ["ninja_required_version = 1.5", f"builddir = {self.folder}", *compiler("cxx", self.cxx)]
        # What takes longest comes first.
        for isa in reversed(ISA_FLAGS):
            for source in SIMD:
                lines += compiled("cxx", source, self.simd_flags(isa), f".{isa}")
        if self.cuda:
            lines += compiler("nvcc", self.cuda / "bin" / "nvcc")
            for source in CUDA_KERNELS:
                lines += compiled("nvcc", source, self.nvcc_flags)
            for source in CUDA_GLUE:
                lines += compiled("cxx", source, [*self.glue_flags, "-isystem", self.cuda / "include"])
        for source in GLUE:
            lines += compiled("cxx", source, self.flags_of_glue(source))
        lines += [
            "rule link",
            f"  command = {quoted([self.cxx])} $in {quoted(self.link_flags)} -o $out",
            "  description = $out",
        ]
        return "\n".join([*lines, f"build {self.library}: link {' '.join(objects)}", ""])

    def run(self):
        print(self, flush=True)
        ninja, folder = find_ninja(), ROOT / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would spoil each other's objects
            path, text = folder / "build.ninja", self.ninja_file()
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
            jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
            if subprocess.run([ninja, "-f", self.folder / "build.ninja", *jobs], cwd=ROOT).returncode != 0:
                sys.exit("routing_ext: the extension did not compile; the first error is above")


class BuildExt(build_ext):
    def build_extension(self, ext):
        build = Build()
        build.run()
        target = Path(self.get_ext_fullpath(ext.name))
        if not target.exists() or not filecmp.cmp(ROOT / build.library, target, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / build.library, target.with_suffix(".partial"))
            target.with_suffix(".partial").replace(target)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("routing_ext._C", sources=[*SIMD, *GLUE, *CUDA_GLUE, *CUDA_KERNELS])],
        cmdclass={"build_ext": BuildExt},
    )
