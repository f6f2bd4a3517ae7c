"""What the published reference computed: the same decisions, losses and gradients, from the same random numbers."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from networks import Routed, assert_close, assert_gradients_close, parameter_gradients
from torch import Tensor, nn

from routing_ext import routing
from routing_ext.routing import Loss, SampleMetaInformation, Trajectory, replay

FILES = sorted((pathlib.Path(__file__).parent.parent / "golden" / "routing").glob("*.npz"))
TOLERANCE = 2e-4
LAYERS = range(3)

REWARDS = {
    "none": lambda size: routing.PerActionBaseReward(),
    "collab": lambda size: routing.CollaborationReward(0.3, size),
    "runavg": lambda size: routing.RunningAverageCollaborationReward(0.3, size),
    "manual": lambda size: routing.ManualReward([0.1 * i - 0.2 for i in range(size)], size),
}


class Case:
    def __init__(self, path: pathlib.Path) -> None:
        with np.load(path) as archive:
            self.meta: dict[str, Any] = json.loads(str(archive["meta"]))
            self._arrays = {name: archive[name] for name in archive.files if name != "meta"}

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name].copy())

    def starting_with(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): self[name] for name in self._arrays if name.startswith(prefix)}

    def layers(self, name: str) -> list[Tensor]:
        return [self[f"{name}.{i}"] for i in LAYERS]

    def network(self) -> Routed:
        meta = self.meta
        of_egreedy = {"reference_broadcast": True} if meta["algo"].startswith("EGreedy") else {}
        network = Routed(
            meta["algo"],
            [meta["K"]] * 3,
            meta["dims"],
            meta["agents"],
            REWARDS[meta["reward"]],
            policy_storage_type=meta["storage"],
            approx_hidden_dims=tuple(meta["hidden"]),
            **of_egreedy,
        )
        network.load_state_dict(self.starting_with("param."), strict=True)
        return network

    def loss(self) -> Loss:
        return Loss(
            nn.CrossEntropyLoss() if self.meta["loss"] == "ce" else nn.MSELoss(),
            routing.NegLossReward() if self.meta["final"] == "neg" else routing.CorrectClassifiedReward(),
            normalize_per_action_rewards=self.meta["normalize_per_action_rewards"],
        )


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_all_cases_are_here() -> None:
    assert len(FILES) == 74


def test_draws(case: Case) -> None:
    network = case.network()
    torch.set_rng_state(case["rng_before"])
    ys, mxs, actions = network(case["x"], case["tasks"])
    for mine, theirs in zip(actions, case.layers("actions"), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(torch.get_rng_state(), case["rng_after"])
    assert_close(ys, case["y"], TOLERANCE)
    for step, theirs in zip(mxs.batch_steps, case.layers("is_exploratory"), strict=True):
        assert torch.equal(step.is_exploratory, theirs.bool())


@pytest.mark.parametrize("kind", [Trajectory, list])
def test_replay(case: Case, kind: type) -> None:
    """With the batch's trajectory, and with the reference's list of objects."""
    network, loss, x = case.network(), case.loss(), case["x"].requires_grad_()
    mxs = [SampleMetaInformation(task) for task in case["tasks"].tolist()] if kind is list else None
    torch.set_rng_state(case["rng_before"])  # for what is drawn besides the actions
    with replay(case.layers("actions")):
        ys, mxs, actions = network(x, case["tasks"], mxs=mxs)
    for mine, theirs in zip(actions, case.layers("actions"), strict=True):
        assert torch.equal(mine, theirs)
    assert_close(ys, case["y"], TOLERANCE)
    for i, theirs in enumerate(case.layers("states")):
        assert_close(torch.cat([mx.steps[i]["states"] for mx in mxs]), theirs, TOLERANCE)

    module_loss, routing_loss = loss(ys, mxs, case["target"], reduce=False)
    assert_close(module_loss, case["module_loss"], TOLERANCE)
    assert_close(routing_loss, case["routing_loss"], TOLERANCE)

    (module_loss.mean() + routing_loss.mean()).backward()
    gradients = parameter_gradients(network)
    expected = case.starting_with("grad.")
    assert {name for name, g in gradients.items() if g is None} == set(case.meta["grad_none"])
    assert_gradients_close(gradients, {name: expected.get(name) for name in gradients}, TOLERANCE)
    assert x.grad is not None
    assert_close(x.grad, case["grad_x"], TOLERANCE)


def test_evaluation(case: Case) -> None:
    network = case.network().eval()
    with torch.no_grad():
        ys, _, actions = network(case["x"], case["tasks"])
    for mine, theirs in zip(actions, case.layers("eval_actions"), strict=True):
        assert torch.equal(mine, theirs)
    assert_close(ys, case["eval_y"], TOLERANCE)
