"""The documentation says what is true: its code runs, what it names exists, and it leaves out nothing public."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
import traceback
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import routing_ext

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    first_line: int
    code: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(m["language"], text.count("\n", 0, m.start("code")) + 1, textwrap.dedent(m["code"]))
        for m in FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without its code; lines keep their numbers."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r"`[^`\n]+`", blank, FENCE.sub(blank, page.read_text()))


def pages_with(*languages: str) -> list[Path]:
    return [page for page in PAGES if any(b.language in languages for b in blocks(page))]


# ---- code -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, with common names."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python":
            continue
        # Empty lines before the code, so that errors name the line of the page.
        source = "\n" * (block.first_line - 1) + block.code
        try:
            exec(compile(source, str(page), "exec", dont_inherit=True), names)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            line = [f.lineno for f in frames if f.filename == str(page)] or [getattr(error, "lineno", block.first_line)]
            pytest.fail(f"{name_of(page)}:{line[-1]}: {type(error).__name__}: {error}")


def build_variables() -> set[str]:
    """The environment variables that the docstring of setup.py lists."""
    docstring = ast.get_docstring(ast.parse((ROOT / "setup.py").read_text())) or ""
    rows = re.findall(r"^ +([A-Z][A-Z_]+(?:, [A-Z_]+)*) {2}", docstring, re.MULTILINE)
    return {name for row in rows for name in row.split(", ")}


def runtime_variables() -> set[str]:
    sources = [p for suffix in ("cpp", "h") for p in (ROOT / "csrc").rglob(f"*.{suffix}")]
    return {name for p in sources for name in re.findall(r'getenv\("(\w+)"\)', p.read_text())}


def make_targets() -> set[str]:
    rules = re.findall(r"^([a-zA-Z][\w ./-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target for rule in rules for target in rule.split()}


def make_variables() -> set[str]:
    return set(re.findall(r"^(?:export )?(\w+) *[?:]?=", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", pages_with("console"), ids=name_of)
def test_commands_exist(page: Path) -> None:
    """Targets and variables of make, environment variables, files, and options of the tests."""
    options = (ROOT / "tests" / "conftest.py").read_text()
    for block in blocks(page):
        if block.language != "console":
            continue
        for number, line in enumerate(block.code.splitlines(), block.first_line):
            if not line.startswith("$ "):
                continue  # output
            where = f"{name_of(page)}:{number}: {line}"
            words = line[2:].split()
            assigned = {word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)}
            program, *arguments = [word for word in words if not re.match(r"[A-Z_]+=", word)]
            assert assigned <= build_variables() | runtime_variables() | make_variables(), where
            if program == "make":
                assert set(arguments) <= make_targets(), where
            if Path(program).name == "pytest":
                assert all(word in options for word in arguments if word.startswith("--")), where
                assert all((ROOT / word.partition("::")[0]).exists() for word in arguments if "/" in word), where


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_environment_variables_are_listed(page: str) -> None:
    rows = [line.split("|")[1] for line in (ROOT / page).read_text().splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([A-Z][A-Z_]+)`", row)}
    assert listed == build_variables() | runtime_variables()


# ---- what pages name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_the_text_names_exists(page: Path) -> None:
    """In code within the text: `make target`, `folder/file` (<op> stands for any operator) and `routing_ext.name`."""
    text = FENCE.sub("", page.read_text())
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= make_targets()
    for path in re.findall(r"`((?:benchmarks|csrc|docs|routing_ext|tests)/[\w./<>*-]+)`", text):
        assert "csrc/math/" in path or any(ROOT.glob(path.replace("<op>", "*"))), path
    for path in re.findall(r"`routing_ext\.([\w.]+)(?:\(\))?`", text):
        obj: object = routing_ext
        for name in path.split("."):
            obj = getattr(obj, name)


def test_diagrams_name_what_exists() -> None:
    """Files and identifiers in the drawings."""
    files = [p for folder in ("csrc", "routing_ext") for p in (ROOT / folder).rglob("*.*") if p.suffix != ".so"]
    source = "\n".join(p.read_text() for p in files if "__pycache__" not in p.parts)
    for page in pages_with("text"):
        for block in blocks(page):
            if block.language == "text":
                paths = set(re.findall(r"\b(?:csrc|routing_ext)/[\w/]+\.\w+", block.code))
                assert all((ROOT / path).exists() for path in paths), name_of(page)
                names = set(re.findall(r"\b(?:[a-z]\w*_\w+|[A-Z][a-z]+[A-Z]\w+)\b", block.code))
                assert not {name for name in names if not re.search(rf"\b{name}\b", source)}, name_of(page)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    text = prose(page)
    for m in re.finditer(r"\]\((?!https?:)([^)\s]*)\)", text):
        path, _, anchor = m[1].partition("#")
        target = (page.parent / path).resolve() if path else page
        line = text.count("\n", 0, m.start()) + 1
        assert target.exists(), f"{name_of(page)}:{line}: {m[1]}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}:{line}: {m[1]} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_benchmark_markers_pair(page: Path) -> None:
    markers = re.findall(r"^<!-- (?:benchmark:\w+|/benchmark) -->$", page.read_text(), re.MULTILINE)
    assert len(markers) == len(re.findall(r"^<!-- /?benchmark", page.read_text(), re.MULTILINE))
    assert [m.startswith("<!-- /") for m in markers] == [False, True] * (len(markers) // 2)


def test_navigation_lists_every_page() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


# ---- API --------------------------------------------------------------------------------------------------------------------


def public(module: ModuleType) -> dict[str, object]:
    return {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}


def documented() -> list[object]:
    """What the API pages show."""
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    return [
        getattr(importlib.import_module(module), name)
        for module, name in re.findall(r"^::: ([\w.]+)\.(\w+)$", text, re.MULTILINE)
    ]


OPERATORS, LAYERS = public(routing_ext.ops), {**public(routing_ext.routing), **public(routing_ext.memory)}
PUBLIC = {
    **OPERATORS,
    **LAYERS,
    **public(routing_ext.tasks),
    **public(routing_ext.training),
    **public(routing_ext.reference),
    "routing_ext.build_info": routing_ext.build_info,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    assert inspect.getdoc(PUBLIC[name])
    assert any(PUBLIC[name] is shown for shown in documented()), f"{name} is missing in docs/api"


@pytest.mark.parametrize("name", [name for name in {**OPERATORS, **LAYERS} if inspect.isclass(PUBLIC[name])])
def test_public_members_are_documented(name: str) -> None:
    for member, value in vars(PUBLIC[name]).items():
        if not member.startswith("_") and (callable(value) or isinstance(value, property | classmethod)):
            assert inspect.getdoc(getattr(PUBLIC[name], member)), member


@pytest.mark.parametrize("name", [name for name in OPERATORS if inspect.isfunction(OPERATORS[name])])
def test_operators_explain_arguments_result_and_errors(name: str) -> None:
    text = inspect.getdoc(OPERATORS[name]) or ""
    for argument in inspect.signature(OPERATORS[name]).parameters:  # type: ignore[arg-type]
        assert re.search(rf"^    {argument}: ", text, re.MULTILINE), argument
    assert {"Returns:", "Raises:"} <= set(text.splitlines())


@pytest.mark.parametrize("layer", routing_ext.routing.__all__ + routing_ext.memory.__all__)
def test_differences_from_the_reference_are_listed(layer: str) -> None:
    assert f"`{layer}`" in (DOCS / "differences.md").read_text()
