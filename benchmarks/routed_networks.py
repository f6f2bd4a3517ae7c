"""Routed networks like those of the published examples, in layers of ours, of the reference, or of plain PyTorch."""

from __future__ import annotations

import copy
import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder, SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from routing_ext import reference, routing
from routing_ext.routing import Decision, NegLossReward, PerTaskAssignment, SampleMetaInformation

WIDTHS = (128, 48, 48, 5)
"""Features of the input and of what each of the three routed layers returns."""


class LinearWithRelu(nn.Linear):
    """As the reference's examples have it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(nn.Linear.forward(self, input))


class RoutedNetwork(nn.Module):
    """Three decisions and selections, ``x [B, 128] -> (ys [B, 5], meta)``.

    Args:
        layers: what it is made of, for example :func:`our_layers`.
        algorithm: name of the decisions' class.
        architecture: who decides: ``"per task"``, an agent of the sample's task (the reference's RoutedAllFC);
            ``"dispatched"``, an agent that another decision chooses; ``"single"``, one agent for each decision, a network.
        num_modules: of each selection.
        num_agents: of each decision, where there are several.
        widths: features of the input and of what each routed layer returns.
        options: of the decisions.
    """

    def __init__(
        self,
        layers: SimpleNamespace,
        algorithm: str,
        architecture: str = "per task",
        num_modules: int = 20,
        num_agents: int = 20,
        widths: Sequence[int] = WIDTHS,
        **options: Any,
    ) -> None:
        super().__init__()

        def decision(num_selections: int, in_features: int, agents: int) -> nn.Module:
            reward = layers.CollaborationReward(reward_ratio=0.3, num_actions=num_selections)
            storage = "approx" if architecture == "single" else "tabular"
            made: nn.Module = getattr(layers, algorithm)(
                num_selections,
                in_features,
                num_agents=agents,
                policy_storage_type=storage,
                additional_reward_func=reward,
                **options,
            )
            return made

        self.initialization = layers.Initialization()
        self.assignment: nn.Module | None = None
        if architecture != "single":
            dispatched = architecture == "dispatched"
            self.assignment = decision(num_agents, widths[0], 1) if dispatched else layers.PerTaskAssignment()
        agents = 1 if architecture == "single" else num_agents
        self.decisions = nn.ModuleList(decision(num_modules, d, agents) for d in widths[:-1])
        self.selections = nn.ModuleList(
            layers.selection(num_modules, d, o, i < len(widths) - 2) for i, (d, o) in enumerate(pairwise(widths))
        )
        self.loss = layers.Loss(nn.MSELoss(), layers.NegLossReward())

    def forward(self, x: Tensor, tasks: Tensor) -> tuple[Tensor, Any]:
        ys, meta, agents = self.initialization(x, tasks=tasks)
        if self.assignment is not None:
            ys, meta, agents = self.assignment(ys, meta, agents)
        for decision, selection in zip(self.decisions, self.selections, strict=True):
            ys, meta, actions = decision(ys, meta, agents)
            ys = selection(ys, actions) if isinstance(selection, routing.LinearBank) else selection(ys, meta, actions)[0]
        return ys, meta

    def forget(self) -> None:
        """The histories of the rewards."""
        for module in self.modules():
            if hasattr(module, "additional_reward_func"):
                module.additional_reward_func.clear()


def trunk(in_channels: int = 3) -> nn.Sequential:
    """The convolutions of the reference's examples: ``[B, 3, 32, 32] -> [B, 128]``."""
    blocks: list[nn.Module] = []
    for channels in (in_channels, 32, 32, 32):
        blocks += [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.BatchNorm2d(32), nn.Flatten())


def _modules(selection: type[nn.Module]) -> Callable[[int, int, int, bool], nn.Module]:
    def make(num_modules: int, in_features: int, out_features: int, relu: bool) -> nn.Module:
        linear = LinearWithRelu if relu else nn.Linear
        return selection(*[linear(in_features, out_features) for _ in range(num_modules)])

    return make


def our_layers() -> SimpleNamespace:
    names = {name: getattr(routing, name) for name in routing.__all__}
    return SimpleNamespace(**names, selection=_modules(routing.Selection))


def with_banks(network: RoutedNetwork) -> RoutedNetwork:
    """A copy with LinearBank in place of Selection."""
    twin = copy.deepcopy(network)
    for i, selection in enumerate(twin.selections):
        twin.selections[i] = routing.LinearBank.from_modules(list(selection._submodules))  # type: ignore[arg-type]
    return twin


def gradients_of(network: RoutedNetwork) -> list[Tensor]:
    """Of all modules' weights, of their biases, and of the decisions, each in one vector; zero where there is none."""
    linear = [list(getattr(selection, "_submodules", [selection])) for selection in network.selections]
    groups = [[m.weight for ms in linear for m in ms], [m.bias for ms in linear for m in ms]]
    deciding = [network.assignment, network.decisions]
    groups.append([p for d in deciding if d is not None for p in d.parameters()])
    return [torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group]) for group in groups]


# ---- the reference -----------------------------------------------------------------------------------------------------


class _BoolMasks(SourceFileLoader):
    """Reads the reference's uint8 masks as bool, the only dtype that a current PyTorch indexes with."""

    def get_data(self, path: str) -> bytes:
        return super().get_data(path).replace(b"torch.uint8", b"torch.bool").replace(b".byte()", b".bool()")

    def path_stats(self, path: str) -> Any:
        raise OSError("no cached bytecode: it would be that of the unchanged source")


class _Finder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "PytorchRouting":
            return None
        spec = PathFinder.find_spec(name, [str(self._folder)] if path is None else path)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            spec.loader = _BoolMasks(name, spec.origin)
        return spec


def reference_layers(folder: str | Path) -> SimpleNamespace:
    """Those of a checkout of PytorchRouting.

    Raises:
        FileNotFoundError: there is none.
    """
    if not (Path(folder) / "PytorchRouting").is_dir():
        raise FileNotFoundError(f"--reference: must be a checkout of PytorchRouting, found no folder of this name in {folder}")
    finder: Any = _Finder(Path(folder))
    sys.meta_path.insert(0, finder)
    try:
        core, decisions, final, per_action = (
            importlib.import_module(f"PytorchRouting.{name}")
            for name in ("CoreLayers", "DecisionLayers", "RewardFunctions.Final", "RewardFunctions.PerAction")
        )
    finally:
        sys.meta_path.remove(finder)
    found = {name: value for m in (decisions, per_action, final, core) for name, value in vars(m).items() if name[0] != "_"}
    return SimpleNamespace(**found, selection=_modules(core.Selection))


# ---- plain PyTorch -----------------------------------------------------------------------------------------------------


class _ListInitialization(nn.Module):
    def forward(self, xs: Tensor, tasks: Sequence[Any]) -> tuple[Tensor, list[SampleMetaInformation], None]:
        return xs, [SampleMetaInformation(task) for task in tasks], None


class _AskedEach(Decision):
    """To put before a decision class: each agent is asked on its own, and each sample keeps a record of its own."""

    def forward(
        self, xs: Tensor, mxs: Any, prior_actions: Tensor | None = None, mask: Any = None, update_target: Any = None
    ) -> tuple[Tensor, Any, Tensor]:
        batch, width = xs.size(0), self._num_selections
        if prior_actions is None or self._num_agents == 1:
            prior_actions = torch.zeros(batch, dtype=torch.int64)
        ys, actions = xs.clone(), torch.zeros(batch, dtype=torch.int64)
        is_exploratory, states = torch.zeros(batch, dtype=torch.bool), torch.zeros(batch, width, 5)
        for agent in range(int(prior_actions.max()) + 1):
            if agent not in prior_actions:
                continue
            rows = prior_actions == agent
            ys[rows], actions[rows], is_exploratory[rows], its_states = self._forward(xs[rows], agent)
            states[rows, :, : its_states.size(2)] = its_states
        for mx, action, explored, state in zip(mxs, actions, is_exploratory, states.split(1), strict=True):
            mx.append("actions", action, new_step=True)
            mx.append("is_exploratory", explored)
            mx.append("states", state)
            mx.append("loss_funcs", self._loss)
            mx.append("reward_func", self.additional_reward_func)
            self.additional_reward_func.register(state, action)
        return ys, mxs, actions


class _LossOfEach(nn.Module):
    """Rewards and returns sample by sample."""

    def __init__(self, loss_func: Any, reward_func: Any) -> None:
        super().__init__()
        loss_func.reduction = "none"
        self._loss_func, self._reward_func = loss_func, reward_func

    def forward(self, ysest: Tensor, mys: Sequence[SampleMetaInformation], ystrue: Tensor) -> tuple[Tensor, Tensor]:
        losses = self._loss_func(ysest, ystrue).sum(1)
        columns: dict[Any, list[tuple[Any, ...]]] = defaultdict(list)
        for i, (mx, loss) in enumerate(zip(mys, losses.split(1), strict=True)):
            final = self._reward_func(loss, ysest[i : i + 1], ystrue[i : i + 1]).reshape(1)
            for step, values in zip(mx.steps, _followed(mx.steps, final), strict=True):
                columns[step["loss_funcs"]].append((torch.tensor([i]), *values))
        routing_losses = torch.zeros(len(mys))
        for loss_func, rows in columns.items():
            index, *rest = (torch.cat(column) for column in zip(*rows, strict=True))
            routing_losses = routing_losses.index_add(0, index, loss_func(*rest))
        return losses.mean(), routing_losses.mean()


def _followed(steps: Sequence[dict[str, Any]], final: Tensor) -> list[tuple[Tensor, ...]]:
    """A sample's decisions and what followed them, as a decision's ``_loss`` takes them."""
    own = [s["reward_func"].get_reward(s["states"], s["actions"]).reshape(1) / len(steps) * final.abs() for s in steps]
    own[-1] = own[-1] + final
    cum_return, made = torch.zeros(1), []
    for j in reversed(range(len(steps))):
        cum_return = own[j] + cum_return
        step = steps[j]
        is_terminal = j == len(steps) - 1 or steps[j + 1]["states"].shape != step["states"].shape
        later = {"states": step["states"], "actions": torch.zeros_like(step["actions"])} if is_terminal else steps[j + 1]
        action, next_action = step["actions"].reshape(1), later["actions"].reshape(1)
        terminal = torch.tensor([is_terminal])
        made.append((terminal, step["states"], later["states"], action, next_action, own[j], cum_return, final))
    return made[::-1]


class _PlainLayers(SimpleNamespace):
    def __getattr__(self, algorithm: str) -> type[Decision]:
        return type(f"Plain{algorithm}", (_AskedEach, getattr(routing, algorithm)), {})


def plain_layers() -> SimpleNamespace:
    """Per-sample Python in the manner of the reference, with our formulas."""
    return _PlainLayers(
        Initialization=_ListInitialization,
        PerTaskAssignment=PerTaskAssignment,
        Loss=_LossOfEach,
        NegLossReward=NegLossReward,
        CollaborationReward=routing.CollaborationReward,
        selection=_modules(reference.Selection),
    )
