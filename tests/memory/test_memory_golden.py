"""What the published reference computed: outputs, the state after each step, and all gradients."""

from __future__ import annotations

import pytest
import torch
from circuits import Run
from golden import FOLDER, Case

from routing_ext.memory import Circuit, DNCCircuit, NTMCircuit

FILES = sorted((FOLDER / "pytorch_dnc").glob("*.npz"))
SIZES = "batch_size input_dim output_dim hidden_dim num_write_heads num_read_heads mem_hei mem_wid clip_value".split()
# Of the states of all steps of one sample.
LOCATION_DIMENSIONS = {
    "memory": [1],
    "usage": [1],
    "precedence": [2],
    "write_weights": [2],
    "read_weights": [2],
    "link": [2, 3],
}


class CircuitCase(Case):
    def circuit(self) -> Circuit:
        kind = {"dnc": DNCCircuit, "ntm": NTMCircuit}[self.meta["kind"]]
        circuit = kind(**{name: self.meta[name] for name in SIZES}).to(self.dtype)
        circuit.load_state_dict(self.starting_with("param."), strict=True)
        return circuit


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> CircuitCase:
    return CircuitCase(request.param)


def test_all_cases_are_here() -> None:
    assert len(FILES) == 14


def test_parameters_have_the_names_and_the_order_of_the_reference(case: CircuitCase) -> None:
    assert list(case.circuit().state_dict()) == list(case.starting_with("param."))


def test_outputs_and_gradients(case: CircuitCase, run: Run) -> None:
    circuit, x = case.circuit(), case["x"].requires_grad_()
    y = run(circuit, x)
    case.assert_close(y, case["y"])
    (y * case["w"]).sum().backward()
    case.assert_gradient_close(x.grad, case["grad_x"])
    for name, expected in case.starting_with("grad.").items():
        case.assert_gradient_close(circuit.get_parameter(name).grad, expected)


def test_states(case: CircuitCase) -> None:
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
        case.assert_same_up_to_order(mine, theirs, LOCATION_DIMENSIONS)
