"""compat.enable("dnc"): code written for the package `dnc` gets our classes."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from routing_ext import compat
from routing_ext.memory import dnc_package


@pytest.fixture(autouse=True)
def _nothing_imported() -> Iterator[None]:
    def clear() -> None:
        compat.disable()
        for name in [name for name in sys.modules if name.partition(".")[0] == "dnc"]:
            del sys.modules[name]

    clear()
    yield
    clear()


def test_its_import_leads_to_ours() -> None:
    compat.enable("dnc")
    from dnc import DNC, Memory

    assert (DNC, Memory) == (dnc_package.DNC, dnc_package.Memory)
    assert importlib.import_module("dnc.dnc").DNC is DNC
    assert importlib.import_module("dnc.memory").Memory is Memory


def test_the_example_of_its_readme() -> None:
    compat.enable("dnc")
    from dnc import DNC

    rnn = DNC(input_size=64, hidden_size=128, rnn_type="lstm", num_layers=2, nr_cells=10, cell_size=8, read_heads=4)
    hidden = (None, None, None)
    output, hidden = rnn(torch.randn(10, 4, 64), hidden, reset_experience=True)
    assert output.shape == (10, 4, 64)
    assert hidden[1][0]["memory"].shape == (10, 10, 8)


def test_what_it_has_besides_comes_from_the_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "__init__.py": "raise AssertionError('its own code')",
        "dnc.py": "raise AssertionError('its own code')",
        "sdnc.py": """
            from .dnc import DNC
            class SDNC(DNC):
                pass
        """,
    }
    (tmp_path / "dnc").mkdir()
    for name, text in files.items():
        (tmp_path / "dnc" / name).write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    compat.enable("dnc")
    sdnc = importlib.import_module("dnc.sdnc").SDNC
    assert issubclass(sdnc, dnc_package.DNC)
    compat.disable("dnc")
    with pytest.raises(AssertionError, match="its own code"):
        importlib.import_module("dnc")
