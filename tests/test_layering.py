"""Which folder may name what: includes and imports go downward only. Reads sources, imports nothing of them."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "routing_ext"

# ---- csrc ------------------------------------------------------------------------------------------------------------

# The layers, and whose headers each may include besides its own. The first pattern that fits is a file's layer.
LAYERS = {
    "host and device": (r"common/host_device\.h", set()),
    "maths": (r"math/.*", {"host and device"}),
    "SIMD kernels": (r"cpu/simd/.*", {"maths", "host and device", "CPU kernel interface"}),
    "CPU kernel interface": (r"cpu/(isa|scratch|kernel_tables|\w+_kernels)\.(h|cpp)", {"maths"}),
    "CUDA kernels": (r"cuda/.*\.cuh?", {"maths", "host and device"}),
    "common glue": (r"common/.*", {"maths", "host and device"}),
    "CPU glue": (r"cpu/.*", {"maths", "host and device", "CPU kernel interface", "common glue"}),
    "CUDA glue": (r"cuda/.*", {"maths", "host and device", "CUDA kernels", "common glue"}),
    "differentiable doors": (r"autograd/.*", {"common glue"}),
    "Python objects": (r"python/.*", {"common glue"}),
    "module": (r"module\.cpp", {"CPU kernel interface", "Python objects"}),
    "schema": (r"schema\.cpp", set()),
}
TORCH_FREE = {"host and device", "maths", "SIMD kernels", "CPU kernel interface", "CUDA kernels"}
SOURCES = sorted(path for path in CSRC.rglob("*") if path.is_file())
COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def layer(path: Path) -> str:
    name = path.relative_to(CSRC).as_posix()
    found = next((layer for layer, (pattern, _) in LAYERS.items() if re.fullmatch(pattern, name)), None)
    assert found is not None, f"csrc/{name} is in no layer of this test"
    return found


def code(path: Path) -> str:
    return COMMENT_OR_STRING.sub("", path.read_text())


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_includes_go_downward(path: Path) -> None:
    own = layer(path)
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
        included = (path.parent / name).resolve()
        assert included.is_file(), f'{ids(path)} includes "{name}": a file of csrc/ is named by its path from the includer'
        assert layer(included) in {own} | LAYERS[own][1], f"{own} must not include {layer(included)}: {ids(path)}, {name}"


@pytest.mark.parametrize("path", [path for path in SOURCES if layer(path) in TORCH_FREE], ids=ids)
def test_kernels_name_no_torch(path: Path) -> None:
    text = code(path) + "\n".join(re.findall(r"#\s*include\s*[<\"].*[>\"]", path.read_text()))
    assert re.findall(r"\b(?:torch|ATen|at::|aten|c10)\w*", text) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if layer(path) == "CUDA kernels"], ids=ids)
def test_cuda_kernels_neither_allocate_nor_wait(path: Path) -> None:
    forbidden = r"<<<|\b(?:cuda(?:Malloc|Free|Memcpy|\w+Synchronize)\w*|malloc|free|new|printf|assert|exit|abort)\b"
    assert re.findall(forbidden, code(path)) == []


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_includes_compile_fast(path: Path) -> None:
    """The header of each operator of torch, not of all of them; pybind11 in one small file."""
    slow = r"<torch/(?:all|extension|torch)\.h>|<ATen/(?:ATen|Functions)\.h>" + (
        "" if layer(path) == "module" else "|<pybind11/.*>"
    )
    assert re.findall(slow, path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_columns(path: Path) -> None:
    """clang-format breaks code at 127 columns, but leaves comments alone."""
    assert [number for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 127] == []


# ---- routing_ext -----------------------------------------------------------------------------------------------------

# Each part of the package, and the parts that it may import besides itself. The package itself may import all.
IMPORTS: dict[str, set[str]] = {
    "_version": set(),
    "_extension": {"_C", "_version"},
    "_states": set(),
    "_memory_options": set(),
    "reference": {"_memory_options", "_states"},
    "ops": {"_C", "_memory_options", "_states"},
    "routing": {"_C", "ops"},
    "memory": {"_C", "_memory_options", "_states", "ops"},
    "tasks": {"routing"},
    "compat": {"memory", "routing"},
    "training": {"_extension", "_version", "memory", "routing", "tasks"},
    "cli": {"_extension", "_version", "memory", "reference", "routing", "tasks", "training"},
    "__main__": {"cli"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """`routing_ext.ops.move_rows` is in `ops`."""
    return (module.split(".") + [""])[1]


def imported(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports, by their full names."""
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base == PACKAGE.name:
                yield from (f"{base}.{alias.name}" for alias in node.names)
            elif base.split(".")[0] == PACKAGE.name:
                yield base


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_imports_go_downward(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    own = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert own in IMPORTS, f"routing_ext.{own} is no part that this test knows"
    for module in imported(path):
        assert part(module) in {own} | IMPORTS[own], f"routing_ext.{own} must not import {module}"


# ---- everything ------------------------------------------------------------------------------------------------------


def test_no_file_names_a_folder_of_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        found += [(name, m.decode()) for m in re.findall(rb"(?<![\w.~})/])/(?:home|root|work|Users|tmp|mnt)/[\w.]+", data)]
    assert found == []
