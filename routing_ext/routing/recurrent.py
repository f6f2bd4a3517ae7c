"""Recurrent cells whose weights are chosen for each sample, at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decision import Decision
from .rewards import PerActionBaseReward
from .selection import Selection


class RoutingRNNCellBase(nn.Module):
    """What the cells share: two maps to the gates' inputs, from the sample (i2h) and from the hidden state (h2h).

    At least one of them is routed: `depth_routing` decisions, each followed by the linear module that it chose, with `nonlin`
    between them. The other is one ``nn.Linear``.

    With `recurrent`, one layer makes all decisions of a map, among the same `num_selections` modules, which keep the width of
    what they get. Action 0 is *stop*: the sample stays as it is and decides no more; action k is module k - 1. A last
    ``nn.Linear``, which all samples share, makes the gates' inputs.

    Args:
        in_features: of a sample.
        hidden_size: H, of the hidden state.
        num_selections: how many modules there are to choose from.
        depth_routing: how many decisions a routed map makes; with `recurrent`, at most.
        routing_agent: the class of the decision layers.
        route_i2h, route_h2h: which maps are routed.
        recurrent: see above.
        nonlin: see above.
        num_agents, exploration, policy_storage_type, detach, approx_hidden_dims: of :class:`Decision`.
        additional_reward_func: the per-action reward, which all the cell's decisions then share.
        kwargs: more arguments of `routing_agent`.

    Raises:
        ValueError: nothing is routed, or there is no module or no decision.
        TypeError: `routing_agent` is not a class of decision layers.
    """

    _blocks: int  # of H rows, in the gates' inputs

    def __init__(
        self,
        in_features: int,
        hidden_size: int,
        num_selections: int,
        depth_routing: int,
        routing_agent: type[Decision],
        route_i2h: bool = False,
        route_h2h: bool = True,
        recurrent: bool = False,
        nonlin: Callable[[Tensor], Tensor] = F.relu,
        num_agents: int = 1,
        exploration: float = 0.1,
        policy_storage_type: str | int = "approx",
        detach: bool = True,
        approx_hidden_dims: Sequence[int] = (),
        additional_reward_func: PerActionBaseReward | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not (isinstance(routing_agent, type) and issubclass(routing_agent, Decision)):
            raise TypeError(f"{name}: routing_agent must be a subclass of Decision, got {routing_agent!r}")
        if not (route_i2h or route_h2h):
            raise ValueError(
                f"{name}: route_i2h or route_h2h must be true, got neither; without routing, use torch's own cells"
            )
        if num_selections < 1 or depth_routing < 1:
            raise ValueError(
                f"{name}: num_selections and depth_routing must be at least 1, got {num_selections} and {depth_routing}"
            )
        self.in_features = in_features
        self.hidden_size = hidden_size
        self.routing_width = num_selections
        self.routing_depth = depth_routing
        self.recurrent = recurrent
        self.nonlin = nonlin
        agent_args = {
            "num_agents": num_agents,
            "exploration": exploration,
            "policy_storage_type": policy_storage_type,
            "detach": detach,
            "approx_hidden_dims": approx_hidden_dims,
            "additional_reward_func": additional_reward_func,
            **kwargs,
        }
        sides = {"i2h": (in_features, route_i2h), "h2h": (hidden_size, route_h2h)}
        # i2h first: in this order the reference draws its parameters.
        for side, (width, is_routed) in sides.items():
            if is_routed:
                self._add_routing(side, width, routing_agent, agent_args)
            else:
                self.add_module(f"linear_{side}", nn.Linear(width, self._blocks * hidden_size))
        self.reset_parameters()

    def _add_routing(self, side: str, width: int, routing_agent: type[Decision], agent_args: dict[str, Any]) -> None:
        outputs = self._blocks * self.hidden_size
        widths = [width, width] if self.recurrent else [width] + [outputs] * self.routing_depth
        num_actions = self.routing_width + 1 if self.recurrent else self.routing_width
        routers = [routing_agent(num_selections=num_actions, in_features=w, **agent_args) for w in widths[:-1]]
        self.add_module(f"router_{side}", nn.ModuleList(routers))
        selections = [
            Selection(*[nn.Linear(ins, outs) for _ in range(self.routing_width)])
            for ins, outs in zip(widths[:-1], widths[1:], strict=True)
        ]
        self.add_module(f"selection_{side}", nn.ModuleList(selections))
        if self.recurrent:
            self.add_module(f"projection_{side}", nn.Linear(width, outputs))

    def reset_parameters(self) -> None:
        """Draws all parameters, those of the decisions too, from U(-1, 1) / sqrt(H)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound)

    def _zeros(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.size(0), self.hidden_size)

    def _active(self, x: Tensor, states: Sequence[Tensor], mask: Tensor | None) -> Tensor | None:
        """The mask as bool ``[B]``, after a look at all arguments."""
        name, batch = type(self).__name__, x.size(0)
        if x.shape != (batch, self.in_features):
            raise ValueError(f"{name}: x must be [B, {self.in_features}], got {list(x.shape)}")
        for state in states:
            if state.shape != (batch, self.hidden_size):
                raise ValueError(f"{name}: hidden must be [{batch}, {self.hidden_size}], got {list(state.shape)}")
        if mask is None:
            return None
        if mask.numel() != batch:
            raise ValueError(f"{name}: mask must have {batch} elements, one a sample, got {mask.numel()}")
        return mask.reshape(-1).bool()

    def _inputs(self, side: str, xs: Tensor, metas: Any, task_actions: Tensor | None, mask: Tensor | None) -> Tensor:
        """The gates' inputs ``[B, blocks * H]`` from one side; rows of inactive samples have no meaning. One is active."""
        modules = self._modules
        if f"linear_{side}" in modules:
            return cast(Tensor, modules[f"linear_{side}"](xs))  # type: ignore[misc]
        routers, selections = cast(nn.ModuleList, modules[f"router_{side}"]), cast(nn.ModuleList, modules[f"selection_{side}"])
        for i in range(self.routing_depth):
            is_last = i == self.routing_depth - 1
            layer = 0 if self.recurrent else i
            xs, metas, actions = routers[layer](xs, metas, prior_actions=task_actions, mask=mask)
            if not self.recurrent:
                xs, metas, _ = selections[layer](xs, metas, actions, mask=mask)
                xs = xs if is_last else self.nonlin(xs)
                continue
            goes_on = actions != 0
            mask = goes_on if mask is None else mask & goes_on
            if not bool(mask.any()):
                break
            ys, metas, _ = selections[layer](xs, metas, actions - 1, mask=mask)
            xs = torch.where(mask.unsqueeze(1), ys if is_last else self.nonlin(ys), xs)
        return cast(Tensor, modules[f"projection_{side}"](xs)) if self.recurrent else xs  # type: ignore[misc]


def _kept(mask: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if mask is None else torch.where(mask.unsqueeze(1), new, old)


class RoutingLSTMCell(RoutingRNNCellBase):
    """An LSTM cell with routed weights; a drop-in for ``PytorchRouting.PreFabs.RoutingLSTMCell``.

    The blocks of its weights are in the reference's order: input, forget, output gate, candidate. (``nn.LSTMCell`` has the
    output gate last.) See :class:`RoutingRNNCellBase` for the arguments.
    """

    _blocks = 4

    def forward(
        self,
        x: Tensor,
        hidden: tuple[Tensor, Tensor] | None,
        metas: Any,
        task_actions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Tensor], Any]:
        """One step.

        Args:
            x: ``[B, in_features]``.
            hidden: ``(h, c)``, each ``[B, H]``; None for zeros.
            metas: the meta information of :class:`Initialization`.
            task_actions: int64 ``[B]``, the agent of each sample, if there are several.
            mask: bool (or uint8) ``[B]``, false for samples that skip this step: they decide nothing and keep h and c.

        Returns:
            ``((h, c), metas)``.

        Raises:
            ValueError: an argument has another shape.
        """
        h, c = (self._zeros(x), self._zeros(x)) if hidden is None else hidden
        mask = self._active(x, (h, c), mask)
        if mask is not None and not bool(mask.any()):
            return (h, c), metas
        i2h = self._inputs("i2h", x, metas, task_actions, mask)
        h2h = self._inputs("h2h", h, metas, task_actions, mask)
        gates, candidate = (i2h + h2h).split([3 * self.hidden_size, self.hidden_size], 1)
        take, keep, give = gates.sigmoid().chunk(3, 1)
        new_c = keep * c + take * candidate.tanh()
        return (_kept(mask, give * new_c.tanh(), h), _kept(mask, new_c, c)), metas


class RoutingGRUCell(RoutingRNNCellBase):
    """A GRU cell with routed weights, whose blocks are in the order of ``nn.GRUCell``: reset, update gate, candidate.

    See :class:`RoutingRNNCellBase` for the arguments. The reference has the name, but not the cell.
    """

    _blocks = 3

    def forward(
        self,
        x: Tensor,
        hidden: Tensor | None,
        metas: Any,
        task_actions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """One step: ``(h [B, H], metas)``. The arguments are those of :class:`RoutingLSTMCell`, `hidden` is ``h [B, H]``."""
        h = self._zeros(x) if hidden is None else hidden
        mask = self._active(x, (h,), mask)
        if mask is not None and not bool(mask.any()):
            return h, metas
        i2h = self._inputs("i2h", x, metas, task_actions, mask)
        h2h = self._inputs("h2h", h, metas, task_actions, mask)
        both, own = 2 * self.hidden_size, self.hidden_size
        reset, update = (i2h[:, :both] + h2h[:, :both]).sigmoid().chunk(2, 1)
        candidate = torch.addcmul(i2h[:, -own:], reset, h2h[:, -own:]).tanh()
        return _kept(mask, candidate + update * (h - candidate), h), metas
