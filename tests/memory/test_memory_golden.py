"""What the published reference computed: outputs, the state after each step, and all gradients."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from circuits import Run
from locations import same_locations
from torch import Tensor

from routing_ext.memory import Circuit, DNCCircuit, NTMCircuit

FILES = sorted((pathlib.Path(__file__).parent.parent / "golden" / "pytorch_dnc").glob("*.npz"))
SIZES = "batch_size input_dim output_dim hidden_dim num_write_heads num_read_heads mem_hei mem_wid clip_value".split()


class Case:
    def __init__(self, path: pathlib.Path) -> None:
        with np.load(path) as archive:
            self.meta: dict[str, Any] = json.loads(str(archive["meta"]))
            self._arrays = {name: archive[name] for name in archive.files if name != "meta"}
        self.dtype: torch.dtype = getattr(torch, self.meta["dtype"])
        self.tolerance = 1e-4 if self.dtype is torch.float32 else 1e-9

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name].copy())

    def starting_with(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): self[name] for name in self._arrays if name.startswith(prefix)}

    def circuit(self) -> Circuit:
        kind = {"dnc": DNCCircuit, "ntm": NTMCircuit}[self.meta["kind"]]
        circuit = kind(**{name: self.meta[name] for name in SIZES}).to(self.dtype)
        circuit.load_state_dict(self.starting_with("param."), strict=True)
        return circuit

    def assert_close(self, actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(actual, expected, rtol=self.tolerance, atol=self.tolerance)

    def assert_gradient_close(self, actual: Tensor | None, expected: Tensor) -> None:
        assert actual is not None
        torch.testing.assert_close(
            actual, expected, rtol=self.tolerance, atol=self.tolerance * max(1.0, expected.abs().max().item())
        )


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_all_cases_are_here() -> None:
    assert len(FILES) == 14


def test_parameters_have_the_names_and_the_order_of_the_reference(case: Case) -> None:
    assert list(case.circuit().state_dict()) == list(case.starting_with("param."))


def test_outputs_and_gradients(case: Case, run: Run) -> None:
    circuit, x = case.circuit(), case["x"].requires_grad_()
    y = run(circuit, x)
    case.assert_close(y, case["y"])
    (y * case["w"]).sum().backward()
    case.assert_gradient_close(x.grad, case["grad_x"])
    for name, expected in case.starting_with("grad.").items():
        case.assert_gradient_close(circuit.get_parameter(name).grad, expected)


def test_states(case: Case) -> None:
    """Where locations are equally free, the reference allocates any of them: its locations may have another order."""
    circuit, expected = case.circuit(), case.starting_with("state.")
    steps = []
    for x_t in case["x"]:
        circuit(x_t)
        steps.append(circuit.state)
    actual = {name: torch.stack([getattr(state, name) for state in steps]).detach() for name in expected if name != "link"}
    if "link" in expected:
        actual["link"] = steps[-1].link.detach().unsqueeze(0)
    for sample in range(case.meta["batch_size"]):
        mine, theirs = ({name: t[:, sample] for name, t in states.items()} for states in (actual, expected))
        for name, value in same_locations(mine, theirs).items():
            case.assert_close(value, theirs[name])
