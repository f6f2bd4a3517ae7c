"""The routed networks of Rosenbaum et al. (2018) for several image classification tasks at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..routing import CollaborationReward, Decision, Initialization, PassThrough, PerTaskAssignment, Selection, Trajectory

Architecture = Literal["per-task", "dispatched", "single"]

CHANNELS = 32  # of the trunk
WIDTH = 48  # of the routed layers


class MultiTaskNetwork(nn.Module):
    """A convolutional trunk, then three layers of modules. In each layer an agent chooses the module of each image.

    Which agent an image asks is the architecture:

    - ``"per-task"``: the one of its task. Each has a table, so all images of a task have the same distribution of routes.
    - ``"dispatched"``: the same agents, but a decision made before, by a network, says which one is asked.
    - ``"single"``: the same one for all, a network.

    Networks see the image, as the layer before leaves it, and its task.

    With :class:`~routing_ext.routing.PerTaskAssignment` for `decision`, module t is task t's own in each layer: no routing.

    Args:
        image_shape: ``(C, H, W)``.
        num_classes: outputs.
        num_tasks: T, how many tasks, and how many agents of a layer there are, unless there is one.
        decision: the class of the decisions.
        architecture: see above.
        num_modules: K, of each layer, by default T.
        reward_ratio: of :class:`~routing_ext.routing.CollaborationReward`, for choosing what others choose.

    Raises:
        ValueError: an unknown architecture, or images of less than 4 pixels a side.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_tasks: int,
        decision: type[Decision],
        architecture: Architecture = "per-task",
        num_modules: int | None = None,
        reward_ratio: float = 0.3,
    ) -> None:
        super().__init__()
        if architecture not in get_args(Architecture):
            raise ValueError(f"MultiTaskNetwork: architecture must be one of {get_args(Architecture)}, got {architecture!r}")
        num_modules = num_tasks if num_modules is None else num_modules
        self.num_tasks = num_tasks
        self.trunk, features = convolutional_trunk(image_shape)
        self.initialization = Initialization()
        self.dispatcher: Decision
        num_agents, storage = num_tasks, "tabular"
        if architecture == "per-task":
            self.dispatcher = PerTaskAssignment()
        elif architecture == "dispatched":
            self.dispatcher = decision(num_agents, features + num_tasks)
        else:
            self.dispatcher = PassThrough()
            num_agents, storage = 1, "approx"
        self.decisions, self.selections = nn.ModuleList(), nn.ModuleList()
        for d, o in pairwise((features, WIDTH, WIDTH)):
            self.selections.append(Selection(*(nn.Sequential(nn.Linear(d, o), nn.ReLU()) for _ in range(num_modules))))
        self.selections.append(Selection(*(nn.Linear(WIDTH, num_classes) for _ in range(num_modules))))
        for d in (features, WIDTH, WIDTH):
            reward = CollaborationReward(reward_ratio, num_modules)
            self.decisions.append(
                decision(num_modules, d + num_tasks, num_agents, policy_storage_type=storage, additional_reward_func=reward)
            )

    def forward(self, images: Tensor, tasks: Tensor) -> tuple[Tensor, Trajectory]:
        """``(logits, trajectory)``.

        Args:
            images: ``[B, C, H, W]``, best in channels_last.
            tasks: int64 ``[B]``, in ``[0, T)``.

        Returns:
            ``logits [B, num_classes]``, and the decisions, for :class:`~routing_ext.routing.Loss`.
        """
        ys, meta, _ = self.initialization(self.trunk(images), tasks)
        ys, meta, agents = self._decide(self.dispatcher, ys, meta, None)
        for decision, selection in zip(self.decisions, self.selections, strict=True):
            ys, meta, actions = self._decide(decision, ys, meta, agents)
            ys, meta, _ = selection(ys, meta, actions)
        return ys, meta

    def _decide(
        self, decision: nn.Module, ys: Tensor, meta: Trajectory, agents: Tensor | None
    ) -> tuple[Tensor, Trajectory, Tensor]:
        xs = ys
        if not isinstance(decision, PerTaskAssignment | PassThrough):
            xs = torch.cat([ys, nn.functional.one_hot(meta.task_tensor(ys.device), self.num_tasks).to(ys.dtype)], 1)
        result: tuple[Tensor, Trajectory, Tensor] = decision(xs, meta, agents, update_target=ys)
        return result

    def parameter_groups(self, learning_rate: float, decision_learning_rate: float) -> list[dict[str, Any]]:
        """For an optimiser: trunk and modules with the one learning rate, decisions with the other."""
        modules = [*self.trunk.parameters(), *self.selections.parameters()]
        decisions = [*self.dispatcher.parameters(), *self.decisions.parameters()]
        return [{"params": modules, "lr": learning_rate}, {"params": decisions, "lr": decision_learning_rate}]


def convolutional_trunk(image_shape: tuple[int, int, int]) -> tuple[nn.Sequential, int]:
    """``(trunk, features)``: blocks of convolution, ReLU and pooling while at least 2 x 2 pixels remain, then batch norm.

    For 32 x 32 pixels four blocks and 128 features, for 28 x 28 three and 288, for 8 x 8 two and 128. In channels_last.

    Raises:
        ValueError: less than 4 pixels a side.
    """
    channels, height, width = image_shape
    if min(height, width) < 4:
        raise ValueError(f"convolutional_trunk: image_shape must have at least 4 pixels a side, got {image_shape}")
    layers: list[nn.Module] = []
    while min(height, width) >= 4:
        layers += [nn.Conv2d(channels, CHANNELS, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels, height, width = CHANNELS, height // 2, width // 2
    trunk = nn.Sequential(*layers, nn.BatchNorm2d(CHANNELS), nn.Flatten())
    trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return trunk, CHANNELS * height * width
