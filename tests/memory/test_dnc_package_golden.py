"""What the published package `dnc` computed: outputs, all gradients, and the state after the last step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import FOLDER, Case
from plain_dnc_package import FIELDS, initial_state, plain_network
from torch import Tensor

from routing_ext.memory.dnc_package import DNC

FILES = sorted((FOLDER / "dnc_package").glob("*.npz"))
# Of the state of one sample.
LOCATION_DIMENSIONS = {
    "memory": [0],
    "link_matrix": [1, 2],
    "precedence": [1],
    "read_weights": [1],
    "write_weights": [1],
    "usage_vector": [0],
}


class PackageCase(Case):
    def network(self) -> DNC:
        network = DNC(**{name: value for name, value in self.meta.items() if name not in ("B", "T")})
        network.load_state_dict(self.starting_with("param."), strict=True)
        return network

    def controllers(self) -> list[Any]:
        """Of each layer. The recorded list has two tensors a layer, of which a GRU and an RNN use the first."""
        tensors = list(self.starting_with("hidden.").values())
        layers = self.meta["num_layers"]
        each = [tensors[i * len(tensors) // layers :][: len(tensors) // layers] for i in range(layers)]
        return [tuple(ts) if self.meta["rnn_type"] == "lstm" else ts[0] for ts in each]

    def assert_states_close(self, states: list[dict[str, Tensor]]) -> None:
        for i, state in enumerate(states):
            expected = self.starting_with(f"memory_state.{i}.")
            for sample in range(self.meta["B"]):
                mine, theirs = ({name: t[name][sample].detach() for name in expected} for t in (state, expected))
                self.assert_same_up_to_order(mine, theirs, LOCATION_DIMENSIONS)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> PackageCase:
    return PackageCase(request.param)


def test_all_cases_are_here() -> None:
    assert len(FILES) == 4


def test_definition(case: PackageCase) -> None:
    parameters = {name: p.requires_grad_() for name, p in case.starting_with("param.").items()}
    x, memories = case["x"].requires_grad_(), 1 if case.meta["share_memory_between_layers"] else case.meta["num_layers"]
    initial = [initial_state(case.meta, case.meta["B"], x.dtype)] * memories
    y, _, states = plain_network(case.meta, parameters, x, case.controllers(), initial)
    case.assert_close(y.transpose(0, 1), case["y"])
    case.assert_close(states[-1].read_vectors.flatten(1), case["read_vectors"])
    case.assert_states_close([{theirs: getattr(s, ours) for theirs, ours in FIELDS.items()} for s in states])
    found = torch.autograd.grad((y.transpose(0, 1) * case["w"]).sum(), [x, *parameters.values()])
    for value, name in zip(found, ["grad_x", *(f"grad.{name}" for name in parameters)], strict=True):
        case.assert_gradient_close(value, case[name])


def test_parameters_have_the_names_and_the_order_of_the_package(case: PackageCase) -> None:
    assert list(case.network().state_dict()) == list(case.starting_with("param."))


@pytest.mark.parametrize("debug", [False, True])
def test_layer(case: PackageCase, debug: bool) -> None:
    """Where the package returns outputs time-first in spite of batch_first, ours are batch-first."""
    network, x = case.network(), case["x"].requires_grad_()
    network.debug = debug
    y, (_, memories, read_vectors), *_ = network(x, (case.controllers(), None, None))
    case.assert_close(y.transpose(0, 1), case["y"])
    case.assert_close(read_vectors, case["read_vectors"])
    case.assert_states_close(memories)
    (y.transpose(0, 1) * case["w"]).sum().backward()
    case.assert_gradient_close(x.grad, case["grad_x"])
    for name, expected in case.starting_with("grad.").items():
        case.assert_gradient_close(network.get_parameter(name).grad, expected)
