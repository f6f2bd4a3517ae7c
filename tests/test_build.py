"""The build: what is compiled how, what the extension tells of itself, and that a wheel works elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import routing_ext
from routing_ext import _C

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "routing_ext"
INFO = routing_ext.build_info()
EXTENSION = Path(_C.__file__)


def load_setup() -> ModuleType:
    """setup.py without running it."""
    spec = importlib.util.spec_from_file_location("routing_ext_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = load_setup()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUTING_EXT_DEBUG", "ROUTING_EXT_SANITIZE", "ROUTING_EXT_ISA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def python(code: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", code, cwd=cwd, **environment)


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- build_info ------------------------------------------------------------------------------------------------------


def test_build_info() -> None:
    assert INFO["version"] == routing_ext.__version__
    assert INFO["torch"] == torch.__version__
    assert INFO["isa"] in setup.ISA_FLAGS
    assert re.search(r"(GCC|Clang) \d+\.", INFO["compiler"])
    assert (INFO["cuda"] is None) == (INFO["cuda_archs"] is None)
    routing_ext.build_info()["isa"] = "changed"
    assert routing_ext.build_info() == INFO


def test_cuda_is_compiled_where_it_is_asked_for() -> None:
    if os.environ.get("ROUTING_EXT_CUDA") == "1":
        assert INFO["cuda"] is not None


# ---- instruction sets ------------------------------------------------------------------------------------------------

TELL_ISA = "import routing_ext; print(routing_ext.build_info()['isa'])"
OTHER_ISAS = [isa for isa in setup.ISA_FLAGS if isa != INFO["isa"]]


def runs_here(isa: str) -> bool:
    done = python(TELL_ISA, ROUTING_EXT_ISA=isa)
    if done.returncode == 0:
        assert done.stdout.strip() == isa
        return True
    assert "ImportError: routing_ext: ROUTING_EXT_ISA must be one of" in done.stderr
    return False


def test_unknown_isa_is_an_error_at_import() -> None:
    done = python(TELL_ISA, ROUTING_EXT_ISA="sse9")
    assert done.returncode != 0
    message = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"ImportError: routing_ext: ROUTING_EXT_ISA must be one of .*baseline on this machine, got sse9", message
    )
    assert INFO["isa"] in message


@pytest.mark.slow
@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_kernels_of_other_instruction_sets(isa: str) -> None:
    """The operators with SIMD kernels, tested again on those that this process does not use."""
    if not runs_here(isa):
        pytest.skip(f"this machine has no {isa}")
    files = ["test_grouped_linear.py", "test_memory_ops.py", "test_memory_sequence.py"]
    tests = [
        *(f"tests/ops/{file}" for file in files),
        "tests/memory/test_memory_golden.py",
        "-k",
        "not compile and not opcheck",
    ]
    succeed(run(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests, ROUTING_EXT_ISA=isa))


def simd_objects() -> list[Path]:
    build = setup.Build()
    objects = [
        ROOT / build.folder / f"{source.removeprefix('csrc/')}.{isa}.o" for source in setup.SIMD for isa in setup.ISA_FLAGS
    ]
    if not all(o.exists() for o in objects):
        pytest.skip("not compiled in this checkout")
    return objects


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_simd_objects_share_no_code() -> None:
    """A linker keeps one copy of a weak symbol: the AVX-512 one would break older machines."""
    for obj in simd_objects():
        isa = obj.suffixes[-2].removeprefix(".")
        symbols = [line.split()[-2:] for line in succeed(run("nm", "--defined-only", obj)).splitlines()]
        visible = [name for kind, name in symbols if kind not in "tbdrn"]
        assert visible, obj
        assert all(re.fullmatch(rf"_ZN11routing_ext3cpu\d+\w*kernels_{isa}E", name) for name in visible), visible


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs a compiler for arm64")
@pytest.mark.parametrize("source", [*setup.SIMD, "csrc/cpu/isa.cpp", "csrc/cpu/scratch.cpp"])
def test_compiles_for_arm64(source: str, tmp_path: Path) -> None:
    flags = [flag for flag in setup.Build().simd_flags("baseline") if flag != "-O3"]
    succeed(run("aarch64-linux-gnu-g++", *flags, "-Werror", "-c", source, "-o", tmp_path / "arm64.o"))


@pytest.mark.skipif(INFO["cuda"] is None, reason="needs nvcc")
@pytest.mark.parametrize("source", setup.CUDA_KERNELS)
def test_compiles_for_the_oldest_gpu(source: str, tmp_path: Path) -> None:
    nvcc = setup.find_cuda()[0] / "bin" / "nvcc"
    succeed(run(nvcc, "-std=c++17", "-O0", "-arch=compute_75", "-Werror=all-warnings", "-ptx", source, "-o", tmp_path / "ptx"))


# ---- the library -----------------------------------------------------------------------------------------------------


def test_one_openmp_runtime() -> None:
    code = "import torch, routing_ext; print(open('/proc/self/maps').read())"
    loaded = set(re.findall(r"\S*lib(?:g|i)?omp\S*\.so\S*", succeed(python(code))))
    assert len(loaded) == 1, loaded


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_cuda_runtime_stays_inside() -> None:
    symbols = succeed(run("nm", "--dynamic", "--defined-only", EXTENSION))
    assert "PyInit__C" in symbols
    assert not re.search(r" (?:__)?cuda\w+$", symbols, re.MULTILINE)
    assert "libcudart" not in symbols


# ---- a wrong extension -----------------------------------------------------------------------------------------------

REMEDIES = ("make build", "pip install --no-build-isolation .")


def copied_package(folder: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, folder / "routing_ext", ignore=shutil.ignore_patterns("__pycache__")))


def python_beside(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`code` with the package that lies in `folder`, and no other: -S keeps an editable installation away."""
    paths = [str(folder), *site.getsitepackages(), site.getusersitepackages()]
    return run(sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {paths}; {code}", cwd=folder)


def import_error(code: str, folder: Path) -> str:
    done = python_beside(code, folder)
    assert done.returncode != 0, done.stdout
    message = done.stderr.partition("\nImportError: ")[2]
    assert all(remedy in message for remedy in REMEDIES), done.stderr
    return message


def test_missing_extension(tmp_path: Path) -> None:
    (copied_package(tmp_path) / EXTENSION.name).unlink()
    assert "cannot load the compiled extension" in import_error("import routing_ext", tmp_path)


def test_broken_extension(tmp_path: Path) -> None:
    (copied_package(tmp_path) / EXTENSION.name).write_bytes(b"not a library")
    assert "cannot load the compiled extension" in import_error("import routing_ext", tmp_path)


def test_other_torch(tmp_path: Path) -> None:
    copied_package(tmp_path)
    message = import_error("import torch; torch.__version__ = '2.99.0'; import routing_ext", tmp_path)
    assert f"this is torch 2.99.0, the extension was compiled for torch {torch.__version__}" in message


def test_patch_release_of_torch(tmp_path: Path) -> None:
    copied_package(tmp_path)
    other = ".".join([*torch.__version__.split(".")[:2], "99"])
    succeed(python_beside(f"import torch; torch.__version__ = '{other}'; import routing_ext", tmp_path))


def test_other_version(tmp_path: Path) -> None:
    (copied_package(tmp_path) / "_version.py").write_text('__version__ = "99.0"\n')
    message = import_error("import routing_ext", tmp_path)
    assert f"this is version 99.0, its extension was compiled as {INFO['version']}" in message


# ---- setup.py --------------------------------------------------------------------------------------------------------


def commands(build: Any) -> dict[str, str]:
    """The flags of each object that ninja makes."""
    edge = rf"^build {re.escape(str(build.folder))}/(\S+\.o): .*\n  flags = (.*)"
    return dict(re.findall(edge, build.ninja_file(), re.MULTILINE))


def test_flags() -> None:
    flags = commands(setup.Build())
    assert {f"{source.removeprefix('csrc/')}.{isa}.o" for source in setup.SIMD for isa in setup.ISA_FLAGS} <= flags.keys()
    for obj, words in flags.items():
        assert not re.search(r"-march|-mtune=native|-ffast-math|-Ofast", words), obj
        assert ("-mavx" in words) == obj.endswith((".avx2.o", ".avx512.o")), obj
        # No torch where there must be none, and only the small module depends on versions.
        assert ("torch/include" in words) == (obj.endswith(".cpp.o")), obj
        assert ("ROUTING_EXT_BUILT" in words) == (obj == "module.cpp.o"), obj
    assert any(obj.endswith(".cu.o") for obj in flags) == (setup.Build().cuda is not None)


def test_debug_and_sanitize(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {setup.Build().folder}
    monkeypatch.setenv("ROUTING_EXT_DEBUG", "1")
    folders.add(setup.Build().folder)
    assert all("-O0 -g" in words and "-O3" not in words for words in commands(setup.Build()).values())
    monkeypatch.setenv("ROUTING_EXT_SANITIZE", "1")
    folders.add(setup.Build().folder)
    for obj, words in commands(setup.Build()).items():
        assert ("-fsanitize=address,undefined" in words) == (".cu" not in obj), obj
    assert len(folders) == 3


def test_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTING_EXT_CUDA", "0")
    text = setup.Build().ninja_file()
    assert "cuda" not in text.replace("nocuda", "")
    assert "| CUDA none |" in str(setup.Build())


def test_cuda_without_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("ROUTING_EXT_CUDA", "auto")
    assert setup.find_cuda() is None
    monkeypatch.setenv("ROUTING_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match=f"ROUTING_EXT_CUDA=1, but nvcc was not found: {tmp_path}/bin/nvcc"):
        setup.find_cuda()
    monkeypatch.setenv("ROUTING_EXT_CUDA", "yes")
    with pytest.raises(SystemExit, match="ROUTING_EXT_CUDA must be auto, 0 or 1, got 'yes'"):
        setup.find_cuda()


def test_cuda_archs(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(gpus: list[tuple[int, int]]) -> list[str]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_capability", gpus.__getitem__)
        archs: list[str] = setup.cuda_archs(torch)
        return archs

    assert chosen([]) == chosen([(8, 6), (13, 0)]) == ["8.0", "9.0+PTX"]
    assert chosen([(9, 0), (7, 5)]) == ["7.5", "8.0", "9.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6 9.0a;12.0+PTX")
    assert [flag for arch in chosen([(9, 0)]) for flag in setup.gencode(arch)] == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Volta")
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST must be like '8.0;9.0\+PTX', got 'Volta'"):
        chosen([])


def test_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    with pytest.raises(SystemExit, match=r"routing_ext needs torch>=2.11, this environment has torch 2.10.1\+cpu"):
        setup.import_torch()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match=r"needs a C\+\+20 compiler; not found: no-such-compiler"):
        setup.find_cxx()


def copied_objects(folder: Path) -> Path:
    """What this build compiled, with its times. Returns where it lies below `folder`."""
    objects: Path = setup.Build().folder
    if not (ROOT / objects / "build.ninja").exists():
        pytest.skip("not compiled in this checkout")
    shutil.copytree(ROOT / objects, folder / objects)
    return objects


def test_incremental(tmp_path: Path) -> None:
    """In a copy: nothing to do at first, and a touched source compiles one object."""
    ninja_file = copied_objects(tmp_path) / "build.ninja"
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")

    def would_run() -> list[str]:
        output = succeed(run(setup.find_ninja(), "-n", "-f", ninja_file, cwd=tmp_path))
        return [Path(name).name for name in re.findall(r"^\[\d+/\d+\] (\S+)", output, re.MULTILINE)]

    assert would_run() == [], "not up to date: run `make build`"
    for source in [*(setup.CUDA_KERNELS[:1] if INFO["cuda"] else []), "csrc/cpu/isa.cpp"]:
        before = os.stat(tmp_path / source)
        (tmp_path / source).touch()
        assert would_run() == [Path(source).name + ".o", "_C.so"]
        os.utime(tmp_path / source, ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "csrc" / "cpu" / "simd" / "vec.h").touch()
    simd = [f"{Path(source).name}.{isa}.o" for source in setup.SIMD for isa in setup.ISA_FLAGS]
    assert sorted(would_run()) == sorted([*simd, "_C.so"])


# ---- sdist and wheel -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wheel_from_sdist_works_elsewhere(tmp_path: Path) -> None:
    """The sdist has all that a wheel needs, and the wheel all that a user needs."""
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path)
    # A copy of the tracked files, so that what setuptools leaves behind does not land in the checkout, nor reach the sdist.
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    checkout = tmp_path / "checkout"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    succeed(run(*build, "--sdist", checkout))
    shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path / "sdist")
    source = next((tmp_path / "sdist").iterdir())

    # With the objects that exist: ninja compiles again what they do not match, and misses a header that is not there.
    copied_objects(source)
    succeed(run(*build, "--wheel", source))
    wheel = next(tmp_path.glob("*.whl"))
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.fullmatch(rf"routing_ext-{re.escape(routing_ext.__version__)}-{tag}-{tag}-linux_\w+\.whl", wheel.name)

    # An environment of its own that sees this one's torch, but not this checkout.
    elsewhere = tmp_path / "elsewhere"
    succeed(run(sys.executable, "-m", "venv", "--without-pip", elsewhere))
    its_python = elsewhere / "bin" / "python"
    its_packages = Path(succeed(run(its_python, "-c", "import site; print(site.getsitepackages()[0])")).strip())
    (its_packages / "torch_of_the_tests.pth").write_text("\n".join([*site.getsitepackages(), site.getusersitepackages()]))
    succeed(run(sys.executable, "-m", "pip", "--python", its_python, "install", "--no-deps", "--no-index", wheel))
    output = succeed(run(its_python, "-I", ROOT / "tests" / "smoke.py", ROOT, checkout, source, cwd=tmp_path))
    assert f"routing_ext {routing_ext.__version__} in {its_packages.resolve()}" in output
