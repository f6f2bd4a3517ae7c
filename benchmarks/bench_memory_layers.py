"""Training on whole sequences: the layers, beside the package dnc and our circuit; options and mixed lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import Kind, Side
from benchmarks.memory_peers import (
    MemoryCase,
    Training,
    memory_work,
    our_circuit,
    package_applied,
    package_network,
    plain_package,
    published_package,
    unrolled,
)
from routing_ext.memory import DNC, NTM

# What each option costs: arguments of DNC; a controller and resets are made for the case.
OPTIONS: dict[str, dict[str, Any]] = {
    "masked lookup": {"mask_min": 0.1},
    "erasing what is freed": {"erase_freed": True},
    "sharpened link": {"sharpen_link": True},
    "all three": {"mask_min": 0.1, "erase_freed": True, "sharpen_link": True},
    "no link": {"link": False},
    "allocation by softmax": {"allocation": "softmax"},
    "learned memory": {"initial_memory": "learned"},
    "random memory": {"initial_memory": "random"},
    "bypass dropout": {"bypass_dropout": 0.1},
    "normalised interface": {"layer_norm": True},
    "own controller": {},
    "resets": {},
}


@dataclass(frozen=True)
class LayerCase(MemoryCase):
    """`part`: of the table."""

    O: int = 6  # noqa: E741  (of the package: as the input)
    part: str = "sizes"
    option: str = ""

    @property
    def id(self) -> str:
        return "-".join(part for part in (self.part, self.option.replace(" ", "_"), super().id) if part)


def cases(**sizes: dict[str, int]) -> list[LayerCase]:
    """Rows of sizes S, M and L; of options at M; of lengths at all."""
    of_sizes = [LayerCase(name, "dnc", **size) for name, size in sizes.items()]
    of_options = [LayerCase("M", "dnc", **sizes["M"], part="options", option=option) for option in OPTIONS]
    of_lengths = [LayerCase(name, "dnc", **size, part="lengths") for name, size in sizes.items()]
    return [*of_sizes, *of_options, *of_lengths, LayerCase("M", "ntm", **sizes["M"], part="lengths")]


CASES = cases(
    S={"B": 16, "H": 64, "R": 4, "N": 16, "W": 16, "T": 9},
    M={"B": 16, "H": 100, "R": 4, "N": 128, "W": 32, "T": 32},
    L={"B": 8, "H": 256, "R": 4, "N": 512, "W": 64, "T": 16},
)
TINY = cases(M={"B": 3, "H": 8, "R": 2, "N": 9, "W": 5, "T": 4})


def layer(case: LayerCase, **options: Any) -> Any:
    kind = DNC if case.model == "dnc" else NTM
    return kind(case.I, case.H, memory_size=case.N, word_size=case.W, read_heads=case.R, output_size=case.O, **options)


def of_sizes(case: LayerCase, training: Training, checkout: str | None) -> list[Side]:
    network, native, circuit = package_network(case), layer(case), our_circuit(case)
    sides = [
        training.side("dnc_package", Kind.OURS, package_applied(network), network),
        training.side("plain PyTorch", Kind.TORCH, plain_package(network), network),
        training.side("DNC", Kind.OURS, lambda x: native(x)[0], native),
        training.side("unroll", Kind.OURS, unrolled(circuit), circuit),
    ]
    if checkout:
        published = published_package(checkout, case, like=network)
        sides.append(training.side("reference", Kind.REFERENCE, package_applied(published), published))
    return [side if side.kind != Kind.OURS or side.name == "dnc_package" else another(side) for side in sides]


def of_options(case: LayerCase, training: Training, checkout: str | None) -> list[Side]:
    options, arguments = dict(OPTIONS[case.option]), {}
    if case.option == "own controller":
        options["controller"] = nn.LSTMCell(case.I + case.R * case.W, case.H)
    if case.option == "resets":
        arguments["resets"] = torch.rand(case.T, case.B) < 1 / 16
    changed, usual = layer(case, **options), layer(case)
    return [
        another(training.side("with", Kind.OURS, lambda x: changed(x, **arguments)[0], changed)),
        another(training.side("without", Kind.OURS, lambda x: usual(x)[0], usual)),
    ]


def of_lengths(case: LayerCase, training: Training, checkout: str | None) -> list[Side]:
    """From a few steps to all, beside as many steps in samples that are all alike, and beside all with their padding."""
    network = layer(case)
    lengths = torch.arange(1, case.B + 1).mul(case.T).div(case.B, rounding_mode="floor").clamp(min=1)
    mean = int(lengths.sum()) / case.B
    alike = torch.full((case.B,), int(mean)).add_(torch.arange(case.B) < int(lengths.sum()) - case.B * int(mean))

    def applied(lengths: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: network(x if lengths is None else x[: int(lengths.max())], lengths=lengths)[0]

    return [
        another(training.side("mixed", Kind.OURS, applied(lengths), network)),
        another(training.side("as many steps", Kind.OURS, applied(alike), network)),
        another(training.side("all steps", Kind.OURS, applied(None), network)),
    ]


def another(side: Side) -> Side:
    """It computes something else than the row's first side."""
    side.results = None
    return side


PARTS = {"sizes": of_sizes, "options": of_options, "lengths": of_lengths}


def bench_memory_layers(case: LayerCase, compare: Callable[..., None], request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    training = Training(case, F.mse_loss)
    sides = PARTS[case.part](case, training, request.config.getoption("reference_dnc_package"))
    compare(sides, memory_work(case) if case.part == "sizes" else None)
