"""What the package ``dnc`` computed, by our operators: outputs, the memory's last state, and all gradients."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from locations import same_locations
from torch import Tensor, nn
from torch.func import functional_call  # type: ignore[attr-defined]

from routing_ext import ops, reference
from routing_ext.memory import DncState

FILES = sorted((pathlib.Path(__file__).parent.parent / "golden" / "dnc_package").glob("*.npz"))
OPTIONS = {"usage": "package", "cosine": "plain"}
FIELDS = {
    "memory": "memory",
    "usage": "usage_vector",
    "precedence": "precedence",
    "link": "link_matrix",
    "write_weights": "write_weights",
    "read_weights": "read_weights",
}
# The parts of the interface: their names there, the order in which its one linear map has them, and ours.
PARTS = (
    "read_keys read_strengths write_key write_strength erase_vector write_vector free_gates allocation_gate write_gate".split()
)
PARTS += ["read_modes"]
OURS = "write_key write_strength allocation_gate write_gate erase_vector write_vector read_keys read_strengths".split()
OURS += ["free_gates", "read_modes"]


class Case:
    def __init__(self, path: pathlib.Path) -> None:
        with np.load(path) as archive:
            self.meta: dict[str, Any] = json.loads(str(archive["meta"]))
            self._arrays = {name: archive[name] for name in archive.files if name != "meta"}
        self.parameters = {
            name.removeprefix("param."): self[name].requires_grad_() for name in self._arrays if name.startswith("param.")
        }

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name].copy())

    def of(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.parameters.items() if name.startswith(prefix)}

    @property
    def memories(self) -> list[str]:
        return ["shared"] if self.meta["share_memory_between_layers"] else [str(i) for i in range(self.meta["num_layers"])]

    def interface(self, memory: str) -> list[Tensor]:
        """Weight and bias of each part, in our order."""
        r, w = self.meta["read_heads"], self.meta["cell_size"]
        given = self.of(f"rnn_layer_memory_{memory}.")
        if self.meta["independent_linears"]:
            parts = {part: (given[f"{part}_transform.weight"], given[f"{part}_transform.bias"]) for part in PARTS}
        else:
            sizes = [r * w, r, w, 1, w, w, r, 1, 1, 3 * r]
            split = (given[f"interface_weights.{kind}"].split(sizes) for kind in ("weight", "bias"))
            parts = dict(zip(PARTS, zip(*split, strict=True), strict=True))
        return [t for part in OURS for t in parts[part]]

    def state(self, hidden: Tensor, cell: Tensor) -> DncState:
        """The first one: zeros, but for the controller."""
        m, b = self.meta, self.meta["B"]
        n, w, r = m["nr_cells"], m["cell_size"], m["read_heads"]
        shapes = [(b, n, w), (b, n), (b, 1, n), (b, 1, n, n), (b, 1, n), (b, r, n)]
        return DncState(*(torch.zeros(shape) for shape in shapes), hidden, cell, torch.zeros(b, r, w))

    def check(self, y: Tensor, states: list[DncState], x: Tensor) -> None:
        torch.testing.assert_close(y, self["y"], rtol=1e-5, atol=1e-5)
        for i, state in enumerate(states):
            expected = {ours: self[f"memory_state.{i}.{theirs}"] for ours, theirs in FIELDS.items()}
            for sample in range(self.meta["B"]):
                mine = {name: getattr(state, name)[sample].detach().unsqueeze(0) for name in FIELDS}
                theirs = {name: t[sample].unsqueeze(0) for name, t in expected.items()}
                torch.testing.assert_close(same_locations(mine, theirs), theirs, rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad((y * self["w"]).sum(), [x, *self.parameters.values()])
        for name, found in zip(["grad_x", *(f"grad.{name}" for name in self.parameters)], grads, strict=True):
            scale = max(1.0, float(self[name].abs().max()))
            torch.testing.assert_close(found / scale, self[name] / scale, rtol=0, atol=1e-5)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_there_are_cases() -> None:
    assert FILES


@pytest.mark.parametrize("access", [ops.dnc_access, reference.dnc_access], ids=["ops", "reference"])
def test_step_by_step(case: Case, access: Callable[..., DncState]) -> None:
    """Its controllers hear the read vectors of before the sequence, at all steps; other layers those of the layer before."""
    m = case.meta
    kind: Any = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[m["rnn_type"]]
    given = [(case[f"hidden.{2 * i}"], case[f"hidden.{2 * i + 1}"]) for i in range(m["num_layers"])]
    hidden: list[Any] = [pair if kind is nn.LSTM else pair[0] for pair in given]
    widths = [m["input_size"]] + [m["hidden_size"]] * (m["num_layers"] - 1)
    reads = m["read_heads"] * m["cell_size"]
    layers = [kind(n + reads, m["hidden_size"], m["num_hidden_layers"], batch_first=True) for n in widths]
    linears = [[torch.cat(case.interface(memory)[i::2]) for i in (0, 1)] for memory in case.memories]
    nothing = torch.zeros(m["B"], 1)
    states = [case.state(nothing, nothing) for _ in case.memories]
    x = case["x"].requires_grad_()
    ys = []
    for x_t in x.unbind(1):
        heard = torch.cat([x_t, torch.zeros(m["B"], reads)], 1)
        for i, layer in enumerate(layers):
            weights = case.of(f"{m['rnn_type']}_layer_{i}.")
            out, hidden[i] = functional_call(layer, weights, (heard.unsqueeze(1), hidden[i]))
            out, own = out.squeeze(1).clamp(-20, 20), min(i, len(states) - 1)
            states[own] = access(nn.functional.linear(out, *linears[own]), states[own], **OPTIONS)
            heard = torch.cat([out, states[own].read_vectors.flatten(1)], 1)
        ys.append(nn.functional.linear(heard, *case.of("output.").values()))
    torch.testing.assert_close(states[-1].read_vectors.flatten(1), case["read_vectors"], rtol=1e-5, atol=1e-5)
    case.check(torch.stack(ys), states, x)


@pytest.mark.parametrize("sequence", [ops.dnc_sequence, reference.dnc_sequence], ids=["ops", "reference"])
def test_sequence(case: Case, sequence: Callable[..., tuple[Tensor, DncState]]) -> None:
    """One LSTM. What it hears besides x does not change, so it is a part of x, and the weights of what was read are zero."""
    m = case.meta
    if (m["rnn_type"], m["num_layers"], m["num_hidden_layers"]) != ("lstm", 1, 1):
        pytest.skip("another controller")
    x = case["x"].requires_grad_()
    reads = m["read_heads"] * m["cell_size"]
    w_ih, *others = case.of("lstm_layer_0.").values()
    lstm = [nn.functional.pad(w_ih, (0, reads)), *others]
    weights = [*lstm, *case.interface("shared"), *case.of("output.").values()]
    heard = torch.cat([x.transpose(0, 1), torch.zeros(m["T"], m["B"], reads)], 2)
    y, state = sequence(heard, weights, case.state(case["hidden.0"][0], case["hidden.1"][0]), output="linear", **OPTIONS)
    case.check(y, [state], x)
