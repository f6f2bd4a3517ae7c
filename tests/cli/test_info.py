"""routing-ext info."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch

import routing_ext
from routing_ext import cli


def test_it_names_versions_build_and_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    build = routing_ext.build_info()
    assert rows["routing_ext"] == routing_ext.__version__
    assert torch.__version__ in rows["torch"]
    assert rows["CPU"].startswith(f"kernels   {build['isa']} ")
    assert build["compiler"] in rows["compiled"]
    assert f"matplotlib {__import__('matplotlib').__version__}" in rows["packages"]


def test_packages_that_are_missing_are_named() -> None:
    from routing_ext.cli.info import version

    assert version("no-such-package-here") == "missing"


def test_a_reader_that_leaves_early() -> None:
    """As in ``routing-ext info | head -1``."""
    command = [sys.executable, "-m", "routing_ext", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait() == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


def test_it_has_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--fast"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
