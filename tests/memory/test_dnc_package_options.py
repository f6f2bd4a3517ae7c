"""What the package `dnc` computed, by our operators with its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from plain_dnc_package import FIELDS, initial_state, plain_network
from test_dnc_package_golden import FILES, PackageCase
from torch import Tensor, nn

from routing_ext import ops, reference
from routing_ext.memory import DncState

OPTIONS = {"usage": "package", "cosine": "plain"}
# Of the package's interface, the places of our parts: write key, strength, gates, erase and add come behind the read keys.
OURS = (2, 3, 7, 8, 4, 5, 0, 1, 6, 9)


def parts(meta: Mapping[str, Any]) -> list[int]:
    r, w = meta["read_heads"], meta["cell_size"]
    return [r * w, r, w, 1, w, w, r, 1, 1, 3 * r]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> PackageCase:
    return PackageCase(request.param)


@pytest.mark.parametrize("access", [ops.dnc_access, reference.dnc_access], ids=["ops", "reference"])
def test_step_by_step(case: PackageCase, access: Callable[..., DncState], monkeypatch: pytest.MonkeyPatch) -> None:
    def step(interface: Tensor, state: DncState) -> DncState:
        given = interface.split(parts(case.meta), 1)
        return access(torch.cat([given[i] for i in OURS], 1), state, **OPTIONS)

    monkeypatch.setattr("plain_dnc_package.dnc_package_access", step)
    parameters = {name: p.requires_grad_() for name, p in case.starting_with("param.").items()}
    x, memories = case["x"].requires_grad_(), 1 if case.meta["share_memory_between_layers"] else case.meta["num_layers"]
    initial = [initial_state(case.meta, case.meta["B"], x.dtype)] * memories
    y, _, states = plain_network(case.meta, parameters, x, case.controllers(), initial)
    check(case, y.transpose(0, 1), states, x, parameters)


@pytest.mark.parametrize("sequence", [ops.dnc_sequence, reference.dnc_sequence], ids=["ops", "reference"])
def test_sequence(case: PackageCase, sequence: Callable[..., tuple[Tensor, DncState]]) -> None:
    """One LSTM. What it hears besides x does not change, so it is a part of x, and the weights of what was read are zero."""
    m = case.meta
    if (m["rnn_type"], m["num_layers"], m["num_hidden_layers"]) != ("lstm", 1, 1):
        pytest.skip("another controller")
    parameters = {name: p.requires_grad_() for name, p in case.starting_with("param.").items()}
    w_ih, w_hh, b_ih, b_hh, interface_weight, interface_bias, *output = parameters.values()
    reads = m["read_heads"] * m["cell_size"]
    of_parts = list(zip(interface_weight.split(parts(m)), interface_bias.split(parts(m)), strict=True))
    weights = [nn.functional.pad(w_ih, (0, reads)), w_hh, b_ih, b_hh, *(t for i in OURS for t in of_parts[i]), *output]
    x = case["x"].requires_grad_()
    heard = torch.cat([x.transpose(0, 1), torch.zeros(m["T"], m["B"], reads)], 2)
    hidden, cell = (t[0] for t in case.controllers()[0])
    state = initial_state(m, m["B"], x.dtype)._replace(hidden=hidden, cell=cell)
    y, state = sequence(heard, weights, state, output="linear", **OPTIONS)
    check(case, y, [state], x, parameters)


def check(case: PackageCase, y: Tensor, states: list[DncState], x: Tensor, parameters: Mapping[str, Tensor]) -> None:
    case.assert_close(y, case["y"])
    case.assert_close(states[-1].read_vectors.flatten(1), case["read_vectors"])
    case.assert_states_close([{theirs: getattr(s, ours) for theirs, ours in FIELDS.items()} for s in states])
    found = torch.autograd.grad((y * case["w"]).sum(), [x, *parameters.values()])
    for value, name in zip(found, ["grad_x", *(f"grad.{name}" for name in parameters)], strict=True):
        case.assert_gradient_close(value, case[name])
