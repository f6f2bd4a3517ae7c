"""The base of all decision layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops import DispatchPlan, dispatch_plan, gather_rows, scatter_rows
from .apply_modules import apply_modules
from .policies import ApproxPolicyStorage, TabularPolicyStorage
from .rewards import PerActionBaseReward, register_all
from .sampling import Draws, next_replayed
from .trajectory import STATE_CHANNELS, Step, Trajectory


class Choice(NamedTuple):
    """What a decision layer decided.

    ``ys [B, ...]``: the batch to return; ``actions``: int64 ``[B]``; ``is_exploratory``: bool ``[B]``; ``states``:
    ``[B, K, C]``, with C up to 5.
    """

    ys: Tensor
    actions: Tensor
    is_exploratory: Tensor
    states: Tensor


class Experience(NamedTuple):
    """N decisions of one layer, and what followed: the arguments of ``_loss``.

    Attributes:
        is_terminal: bool ``[N]``, whether it was its sample's last, or the next one has another number of actions.
        state, next_state: ``[N, K, C]``, what the layer stored; a terminal decision's next state is its own.
        action, next_action: int64 ``[N]``.
        reward, cum_return, final_reward: ``[N]``.
    """

    is_terminal: Tensor
    state: Tensor
    next_state: Tensor
    action: Tensor
    next_action: Tensor
    reward: Tensor
    cum_return: Tensor
    final_reward: Tensor


class Agents:
    """The agents of one decision call and their samples.

    Attributes:
        xs: ``[B, ...]``, what they see.
        ys: ``[B, ...]``, the batch that the layer returns.
        plan: which sample asks which agent.
        draws: the random numbers.
        replayed: int64 ``[B]``, the actions to take instead of drawn ones, or None.
    """

    def __init__(self, xs: Tensor, ys: Tensor, plan: DispatchPlan, mask: Tensor | None) -> None:
        self.xs = xs
        self.ys = ys
        self.plan = plan
        self.replayed: Tensor | None = None
        offsets = plan.host_offsets()
        self.num_deciding = offsets[-1]
        all_in_order = mask is None and plan.num_modules == 1
        self.order = None if all_in_order else plan.order[: offsets[-1]]
        sizes = [offsets[k + 1] - offsets[k] for k in plan.selected()]
        self.draws = Draws(xs.size(0), self.order, sizes, xs.device)

    def evaluate(self, storages: nn.ModuleList, xs: Tensor | None = None) -> Tensor:
        """``[B, width]``: each sample's values by its agent's storage; undefined where no decision is made."""
        xs = self.xs if xs is None else xs
        asked = [storages[k] for k in self.plan.selected()]
        tables: list[Tensor] = [s._approx for s in asked if type(s) is TabularPolicyStorage]
        if len(tables) == len(asked):
            return tables[0].expand(xs.size(0), -1) if len(tables) == 1 else torch.cat(tables)[self._rank_of_agent()]
        modules: list[nn.Module] = list(storages)
        detaches = {s._detach if type(s) is ApproxPolicyStorage else None for s in asked}
        if detaches in ({True}, {False}):
            xs = xs.detach() if True in detaches else xs
            modules = [getattr(s, "_approx", s) for s in storages]
        values = apply_modules(xs, self.plan, modules)
        assert values is not None
        # Of low precision under autocast: too coarse for probabilities.
        return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values

    def _rank_of_agent(self) -> Tensor:
        """int64 ``[B]``: which of the agents that have samples is asked; undefined where no decision is made."""
        counts = self.plan.offsets.diff()
        ranks = (counts > 0).cumsum(0) - 1
        assert self.order is not None
        of_deciding = torch.repeat_interleave(ranks, counts, output_size=self.num_deciding)
        return scatter_rows(of_deciding, self.order, self.xs.size(0))


class Decision(nn.Module):
    """Decides for each sample which module comes next; the base class, open to subclasses.

    A subclass either has ``_forward(xs, agent)``, as in the reference: called for each agent that has samples, with these, in
    the order of the agents, it returns ``(xs, actions, is_exploratory, states)``. Or it has ``_decide(agents)``, called once
    for the whole batch. And ``_loss`` with the reference's arguments, or ``_losses``: called once with all decisions of the
    layer.

    Args:
        num_selections: K, how many actions there are.
        in_features: of a sample, for the networks of the agents.
        num_agents: how many agents there are; ``prior_actions`` say which one decides.
        exploration: in [0, 1]; what it means depends on the algorithm.
        policy_storage_type: ``"approx"`` (or 0), a network; ``"tabular"`` (or 1), a table.
        detach: keep the agents' gradients from the samples.
        approx_hidden_dims: hidden widths of the agents' networks.
        policy_net (approx_module): a network of which each agent gets a copy, instead.
        additional_reward_func: the per-action reward; by default an object of its own without reward.
        additional_reward_class, additional_reward_args: its class and arguments, instead.
        set_pg_temp: let ``set_exploration`` set the softmax temperature of policy gradients.
    """

    def __init__(
        self,
        num_selections: int,
        in_features: int | Sequence[int] | None,
        num_agents: int = 1,
        exploration: float = 0.1,
        policy_storage_type: str | int = "approx",
        detach: bool = True,
        approx_hidden_dims: Sequence[int] = (),
        policy_net: nn.Module | None = None,
        additional_reward_func: PerActionBaseReward | None = None,
        set_pg_temp: bool = False,
        *,
        approx_module: nn.Module | None = None,
        additional_reward_class: type[PerActionBaseReward] | None = None,
        additional_reward_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._in_features = in_features
        self._num_selections = num_selections
        self._num_agents = num_agents
        self._exploration = exploration
        self._detach = detach
        self._pol_type = policy_storage_type
        self._pol_hidden_dims = approx_hidden_dims
        self._policy = self._construct_policy_storage(
            num_selections, policy_storage_type, policy_net if policy_net is not None else approx_module, approx_hidden_dims
        )
        if additional_reward_func is None:
            reward_class = additional_reward_class or PerActionBaseReward
            additional_reward_func = reward_class(**(additional_reward_args or {}))
        self.additional_reward_func = additional_reward_func
        self._dist_dim = 1
        self._set_pg_temp = set_pg_temp
        self._pg_temperature = 1.0

    def set_exploration(self, exploration: float) -> None:
        """Sets it, in [0, 1]."""
        self._exploration = exploration

    def _construct_policy_storage(
        self,
        out_dim: int,
        policy_storage_type: str | int,
        approx_module: nn.Module | None,
        approx_hidden_dims: Sequence[int],
        in_dim: int | Sequence[int] | None = None,
    ) -> nn.ModuleList:
        in_dim = self._in_features if in_dim is None else in_dim
        agents = range(self._num_agents)
        if approx_module is not None:
            return nn.ModuleList(ApproxPolicyStorage(copy.deepcopy(approx_module), detach=self._detach) for _ in agents)
        if policy_storage_type in ("approx", 0):
            return nn.ModuleList(
                ApproxPolicyStorage(None, in_dim, out_dim, approx_hidden_dims, detach=self._detach) for _ in agents
            )
        if policy_storage_type in ("tabular", 1):
            return nn.ModuleList(TabularPolicyStorage(num_selections=out_dim) for _ in agents)
        raise ValueError(f"{type(self).__name__}: policy_storage_type must be approx or tabular, got {policy_storage_type!r}")

    @staticmethod
    def _eval_stochastic_are_exp(actions: Tensor, dist: Tensor) -> Tensor:
        """bool ``[B]``: whether the action is the most likely one (sic, as in the reference)."""
        values = dist[:, :, 0] if dist.dim() == 3 else dist
        return values.max(1)[1] == actions.view(-1)

    def _loss(
        self,
        is_terminal: Tensor,
        state: Tensor,
        next_state: Tensor,
        action: Tensor,
        next_action: Tensor,
        reward: Tensor,
        cum_return: Tensor,
        final_reward: Tensor,
    ) -> Tensor:
        """The losses ``[N]`` of N decisions, see :class:`Experience`. The door that the reference's subclasses use."""
        made = Experience(is_terminal.bool(), state, next_state, action, next_action, reward, cum_return, final_reward)
        return self._losses(made)

    def _losses(self, made: Experience) -> Tensor:
        """The losses ``[N]`` of N decisions."""
        raise NotImplementedError(f"{type(self).__name__} has neither _loss nor _losses")

    def _decide(self, agents: Agents) -> Choice:
        """The choices of the whole batch. Rows of samples that make no decision are ignored."""
        raise NotImplementedError(f"{type(self).__name__} has neither _forward nor _decide")

    def _forward(self, xs: Tensor, agent: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(xs, actions, is_exploratory, states)`` of samples that all ask one agent."""
        prior_actions = torch.full((xs.size(0),), int(agent), dtype=torch.int64, device=xs.device)
        choice = self._decide(Agents(xs, xs, dispatch_plan(prior_actions, self._num_agents), None))
        return choice.ys, choice.actions, choice.is_exploratory, choice.states

    def _ask_each(self, agents: Agents) -> Choice:
        """By ``_forward`` of each agent that has samples, in their order."""
        order, offsets = agents.plan.order[: agents.num_deciding], agents.plan.host_offsets()
        rows = gather_rows(agents.xs, order)
        seen = [rows[offsets[k] : offsets[k + 1]] for k in agents.plan.selected()]
        replies = [self._forward(x, k) for x, k in zip(seen, agents.plan.selected(), strict=True)]
        ys, actions, is_exploratory, states = (
            scatter_rows(torch.cat(column), order, agents.xs.size(0))
            for column in zip(*((y, a.view(-1), e.view(-1).bool(), as_stored(s)) for y, a, e, s in replies), strict=True)
        )
        if all(reply[0] is x for reply, x in zip(replies, seen, strict=True)):
            ys = agents.ys
        if agents.replayed is not None:
            actions = agents.replayed
        return Choice(ys, actions, is_exploratory, states)

    def forward(
        self,
        xs: Tensor,
        mxs: Any,
        prior_actions: Tensor | None = None,
        mask: Tensor | None = None,
        update_target: Tensor | None = None,
    ) -> tuple[Tensor, Any, Tensor]:
        """Decides, and records it in the samples' meta information.

        Args:
            xs: ``[B, ...]``, what the agents see.
            mxs: the meta information of :class:`Initialization`.
            prior_actions: int64 ``[B]``, the agent of each sample; not needed (and not looked at) where there is only one.
            mask: bool (or uint8) ``[B]``, false for samples that make no decision: their action is 0.
            update_target: the batch to return in place of `xs`, with the gradient of the choice where it has one.

        Returns:
            ``(xs or update_target, mxs, actions [B])``. Where nothing changes it, the batch is the same tensor, not a copy.

        Raises:
            ValueError: prior actions are missing, an argument is not of the batch's length, or no sample is active.
            RuntimeError: an agent is out of range.
        """
        name, batch = type(self).__name__, xs.size(0)
        if len(mxs) != batch:
            raise ValueError(f"{name}: mxs must have one element for each of {batch} samples, got {len(mxs)}")
        if self._num_agents == 1:
            prior_actions = torch.zeros(batch, dtype=torch.int64, device=xs.device)
        elif prior_actions is None or len(prior_actions) == 0:
            raise ValueError(f"{name}: prior_actions must say which of the {self._num_agents} agents decides, got none")
        prior_actions = prior_actions.reshape(-1).long()
        if prior_actions.numel() != batch:
            raise ValueError(f"{name}: prior_actions must have {batch} elements, one a sample, got {prior_actions.numel()}")
        if mask is not None:
            mask = mask.reshape(-1).bool()
        plan = dispatch_plan(prior_actions, self._num_agents, mask)
        if plan.host_offsets()[-1] == 0:
            raise ValueError(f"{name}: mask must leave at least one sample active, got none")
        agents = Agents(xs, xs if update_target is None else update_target, plan, mask)
        agents.replayed = next_replayed(prior_actions, self._num_selections)
        by_agent = type(self)._forward is not Decision._forward
        choice = self._ask_each(agents) if by_agent else self._decide(agents)
        ys, actions, is_exploratory, states = choice
        if mask is not None:
            actions, is_exploratory = actions.where(mask, 0), is_exploratory & mask
            if ys is not agents.ys:
                ys = torch.where(mask.view(-1, *[1] * (ys.dim() - 1)), ys, agents.ys)
        _record(mxs, Step(self, actions, is_exploratory, states, mask, self.additional_reward_func))
        return ys, mxs, actions


def as_stored(states: Tensor) -> Tensor:
    """What the reference stores of an agent's states ``[n, K]`` or ``[n, K, C]``: of the former, min(K, 5) equal channels."""
    if states.dim() == 3:
        return states
    channels = min(states.size(1), STATE_CHANNELS)
    return states.unsqueeze(2).expand(-1, -1, channels)


def _record(mxs: Any, step: Step) -> None:
    if isinstance(mxs, Trajectory):
        mxs.batch_steps.append(step)
        if step.mask is None:
            register_all(step.reward_func, step.states, step.actions)
        else:
            register_all(step.reward_func, step.states[step.mask], step.actions[step.mask])
        return
    for i, mx in enumerate(mxs):
        if step.is_active(i):
            values = step.of_sample(i)
            mx.append("actions", values.pop("actions"), new_step=True)
            for name, value in values.items():
                mx.append(name, value)
            step.reward_func.register(step.padded_states()[i : i + 1], step.actions[i])
