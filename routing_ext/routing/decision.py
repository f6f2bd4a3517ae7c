"""The base of all decision layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .._C import parameters_of
from ..ops import dispatch_plan, gather_rows, scatter_rows
from ..ops.dispatch_plan import rank_of_module
from ..ops.policy_gradients import handles, taken
from .apply_modules import apply_modules
from .linear_stages import calls_forward_alone
from .policies import ApproxPolicyStorage, TabularPolicyStorage
from .rewards import PerActionBaseReward, is_users, register_all
from .sampling import Draws, next_replayed
from .trajectory import States, Step, Trajectory


class Choice(NamedTuple):
    """What a decision layer decided.

    ``ys [B, ...]``: the batch to return; ``actions``: int64 ``[B]``; ``is_exploratory``: bool ``[B]``, or None for whether the
    action is the most likely one; ``states``: one row for each row of :meth:`Agents.rows`, ``[n, K, C]`` with C up to 5, or
    ``[n, K]``, which stands for equal channels.
    """

    ys: Tensor
    actions: Tensor
    is_exploratory: Tensor | None
    states: Tensor


class Followed(NamedTuple):
    """Decisions of one step, and what followed: a part of an :class:`Experience`. None is what all samples have."""

    is_terminal: Tensor | bool
    state: States
    next_state: States
    action: Tensor
    next_action: Tensor | None  # None: 0
    reward: Tensor
    cum_return: Tensor
    final_reward: Tensor


class Experience:
    """N decisions, and what followed: what ``_losses`` learns from. Each column is made when it is asked for.

    Args:
        parts: the decisions, step by step.
    """

    def __init__(self, parts: Sequence[Followed]) -> None:
        self._parts = parts

    def _joined(self, columns: Iterable[Tensor]) -> Tensor:
        columns = list(columns)
        return columns[0] if len(columns) == 1 else torch.cat(columns)

    @cached_property
    def is_terminal(self) -> Tensor:
        """bool ``[N]``, whether it was its sample's last, or the next one has another number of actions."""
        known = ((p.is_terminal, p.action) for p in self._parts)
        return self._joined(t if isinstance(t, Tensor) else torch.full_like(a, t, dtype=torch.bool) for t, a in known)

    @property
    def state(self) -> Tensor:
        """``[N, K, C]``, what the layer stored."""
        return self._joined(p.state.whole() for p in self._parts)

    @property
    def next_state(self) -> Tensor:
        """``[N, K, C]``; a terminal decision's is its own."""
        return self._joined(p.next_state.whole() for p in self._parts)

    @cached_property
    def action(self) -> Tensor:
        """int64 ``[N]``."""
        return self._joined(p.action for p in self._parts)

    @property
    def next_action(self) -> Tensor:
        """int64 ``[N]``, 0 after a terminal decision."""
        return self._joined(torch.zeros_like(p.action) if p.next_action is None else p.next_action for p in self._parts)

    @property
    def reward(self) -> Tensor:
        """``[N]``."""
        return self._joined(p.reward for p in self._parts)

    @cached_property
    def cum_return(self) -> Tensor:
        """``[N]``."""
        return self._joined(p.cum_return for p in self._parts)

    @property
    def final_reward(self) -> Tensor:
        """``[N]``."""
        return self._joined(p.final_reward for p in self._parts)

    def for_operators(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]] | None:
        """``(rows, row_of, actions)``, step by step, of the decisions, as the operators take them; None if they do not."""
        rows = [p.state.rows for p in self._parts]
        shared = [p.state.row_of for p in self._parts if p.state.row_of is not None]
        if len(shared) not in (0, len(rows)) or not handles(rows) or any(r.shape[2:] != rows[0].shape[2:] for r in rows):
            return None
        return rows, shared, [p.action for p in self._parts]

    @property
    def cum_returns(self) -> list[Tensor]:
        """:attr:`cum_return`, step by step."""
        return [p.cum_return for p in self._parts]

    @cached_property
    def _taken(self) -> Sequence[Tensor]:
        arguments = self.for_operators()
        if arguments is not None:
            return taken(*arguments)
        return self._joined(p.state.taken(p.action) for p in self._parts).unbind(1)

    def taken(self, c: int) -> Tensor:
        """``[N]``: channel c of the state at the action."""
        return self._taken[c]

    def taken_next(self, c: int) -> Tensor:
        """``[N]``: channel c of the state at the next action."""
        return self._joined(
            p.state.taken(torch.zeros_like(p.action) if p.next_action is None else p.next_action)[:, c] for p in self._parts
        )

    def first(self, c: int) -> Tensor:
        """``[N]``: channel c of the state at action 0."""
        return self._joined(p.state.first(c) for p in self._parts)

    def first_next(self, c: int) -> Tensor:
        """``[N]``: channel c of the next state at action 0."""
        return self._joined(p.next_state.first(c) for p in self._parts)

    def best_next(self, c: int) -> Tensor:
        """``[N]``: the largest value of channel c of the next state; no gradient."""
        return self._joined(p.next_state.best(c) for p in self._parts)

    def columns(self) -> tuple[Tensor, ...]:
        """The arguments of ``_loss``."""
        final = self.final_reward
        state, next_state, action, next_action = self.state, self.next_state, self.action, self.next_action
        return self.is_terminal, state, next_state, action, next_action, self.reward, self.cum_return, final


Losses = TypeVar("Losses", bound=Callable[..., Tensor])


def row_by_row(losses: Losses) -> Losses:
    """Marks a ``_losses`` that treats each decision by itself, and looks at nothing of the layer but its number of actions.

    Decisions of several layers may then come in one call.
    """
    losses.is_row_by_row = True  # type: ignore[attr-defined]
    return losses


class AgentsPlan:
    """Which sample asks which agent.

    Attributes:
        plan: the same as a :class:`~routing_ext.ops.DispatchPlan`.
        order: the samples that decide, sorted by agent; None: all, in batch order.
        sizes: how many of them each agent has that has any.
    """

    def __init__(self, prior_actions: Tensor, num_agents: int, mask: Tensor | None) -> None:
        self.plan = dispatch_plan(prior_actions, num_agents, mask)
        if num_agents == 1 and mask is None:
            self.plan.tell_host([0, prior_actions.size(0)])
        offsets = self.plan.host_offsets()
        self.num_deciding = offsets[-1]
        self.order: Tensor | None = self.plan.order
        if mask is not None:
            self.order = self.plan.order[: offsets[-1]]
        elif num_agents == 1:
            self.order = None
        self.selected = self.plan.selected()
        self.sizes = [offsets[k + 1] - offsets[k] for k in self.selected]
        self._prior_actions = prior_actions
        self._mask = mask

    def deciding(self) -> Tensor | None:
        """int64 ``[n]``: the samples that decide, ascending; None: all."""
        if self._mask is None:
            return None
        if self.plan.num_modules == 1:
            return self.order
        return dispatch_plan(torch.zeros_like(self.plan.order), 1, self._mask).order[: self.num_deciding]

    @cached_property
    def rank_of_agent(self) -> Tensor:
        """int64 ``[B]``: which of the agents that have samples is asked; undefined where no decision is made."""
        return rank_of_module(self._prior_actions, self.plan)


class Agents:
    """The agents of one decision call and their samples.

    Attributes:
        xs: ``[B, ...]``, what they see.
        ys: ``[B, ...]``, the batch that the layer returns.
        plan: which sample asks which agent.
        draws: the random numbers.
        replayed: int64 ``[B]``, the actions to take instead of drawn ones, or None.
        row_of: int64 ``[B]``, which of the :meth:`rows` is a sample's; None: the samples have one each, in order.
    """

    def __init__(self, xs: Tensor, ys: Tensor, asked: AgentsPlan) -> None:
        self.xs = xs
        self.ys = ys
        self.plan = asked.plan
        self.replayed: Tensor | None = None
        self.row_of: Tensor | None = None
        self._asked = asked
        self.draws = Draws(xs.size(0), asked.order, asked.sizes, xs.device)

    def rows(self, *storages: nn.ModuleList) -> list[Tensor]:
        """``[n, width]`` for each of the storages: the values of all samples, or, where these are tables, of all agents.

        What is computed of them row by row is right for the samples, too, by :meth:`of_samples`.
        """
        return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in self.parts(*storages)]

    def parts(self, *storages: nn.ModuleList) -> list[list[Tensor]]:
        """:meth:`rows`, before they are put together; those of a storage are alike in shape, dtype and device."""
        tables = [self._tables(s) for s in storages]
        if any(t is None for t in tables):
            return [[self.evaluate(s)] for s in storages]
        self.row_of = self._asked.rank_of_agent
        return [t for t in tables if t is not None]

    def of_samples(self, rows: Tensor) -> Tensor:
        """``[B, ...]``: the samples' rows of ``rows [n, ...]``; undefined where no decision is made."""
        return rows if self.row_of is None else rows.index_select(0, self.row_of)

    def evaluate(self, storages: nn.ModuleList, xs: Tensor | None = None) -> Tensor:
        """``[B, width]``: each sample's values by its agent's storage; undefined where no decision is made."""
        xs = self.xs if xs is None else xs
        tables = self._tables(storages)
        if tables is not None:
            if len(tables) == 1:
                return tables[0].expand(xs.size(0), -1)
            return torch.cat(tables).index_select(0, self._asked.rank_of_agent)
        modules: list[nn.Module] = list(storages)
        asked = [modules[k] for k in self._asked.selected]
        detaches = {s._detach if type(s) is ApproxPolicyStorage and calls_forward_alone(s) else None for s in asked}
        if detaches in ({True}, {False}) and not _has_any_global_hook():
            xs = xs.detach() if True in detaches else xs
            modules = [getattr(s, "_approx", s) for s in modules]
        values = apply_modules(xs, self.plan, modules)
        assert values is not None
        # Of low precision under autocast: too coarse for probabilities.
        return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values

    def _tables(self, storages: nn.ModuleList) -> list[Tensor] | None:
        """``[1, width]`` of each agent that has samples, if all of these have tables."""
        of_agents: list[nn.Module] = list(storages._modules.values())
        asked = of_agents if len(self._asked.sizes) == len(of_agents) else [of_agents[k] for k in self._asked.selected]
        found = None if _has_any_global_hook() else parameters_of(asked, TabularPolicyStorage, ("_approx",))
        return None if found is None else found[0]


class Decision(nn.Module):
    """Decides for each sample which module comes next; the base class, open to subclasses.

    A subclass either has ``_forward(xs, agent)``, as in the reference: called for each agent that has samples, with these, in
    the order of the agents, it returns ``(xs, actions, is_exploratory, states)``; ``agent`` is an int64 tensor ``[]``. Or it
    has ``_decide(agents)``, called once for the whole batch. And ``_loss`` with the reference's arguments, or ``_losses``:
    called once with all decisions of the layer.

    Args:
        num_selections: K, how many actions there are.
        in_features: of a sample, for the networks of the agents.
        num_agents: how many agents there are; ``prior_actions`` say which one decides.
        exploration: in [0, 1]; what it means depends on the algorithm.
        policy_storage_type: ``"approx"`` (or 0), a network; ``"tabular"`` (or 1), a table.
        detach: keep the agents' gradients from the samples.
        approx_hidden_dims: hidden widths of the agents' networks.
        policy_net (approx_module): a network of which each agent gets a copy, instead.
        additional_reward_func (additional_reward_function): the per-action reward; by default an object of its own without
            reward.
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
        additional_reward_function: PerActionBaseReward | None = None,
        additional_reward_class: type[PerActionBaseReward] | None = None,
        additional_reward_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if num_selections < 1:
            raise ValueError(f"{type(self).__name__}: num_selections must be at least 1, got {num_selections}")
        if kwargs:
            warnings.warn(f"{type(self).__name__} ignores {', '.join(kwargs)}: it has no such arguments", stacklevel=2)
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
        additional_reward_func = additional_reward_function if additional_reward_func is None else additional_reward_func
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
        states, next_states = States(state), States(next_state)
        made = Followed(is_terminal.bool(), states, next_states, action, next_action, reward, cum_return, final_reward)
        return self._losses(Experience([made]))

    def _losses(self, made: Experience) -> Tensor:
        """The losses ``[N]`` of N decisions."""
        raise NotImplementedError(f"{type(self).__name__} has neither _loss nor _losses")

    def _decide(self, agents: Agents) -> Choice:
        """The choices of the whole batch. Rows of samples that make no decision are ignored."""
        raise NotImplementedError(f"{type(self).__name__} has neither _forward nor _decide")

    def _forward(self, xs: Tensor, agent: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(xs, actions, is_exploratory, states)`` of samples that all ask one agent."""
        prior_actions = torch.full((xs.size(0),), int(agent), dtype=torch.int64, device=xs.device)
        agents = Agents(xs, xs, AgentsPlan(prior_actions, self._num_agents, None))
        choice = self._decide(agents)
        step = Step(self, choice.actions, choice.is_exploratory, States(choice.states, agents.row_of), None, None)
        return choice.ys, choice.actions, step.is_exploratory, step.states

    def _ask_each(self, agents: Agents) -> Choice:
        """By ``_forward`` of each agent that has samples, in their order."""
        offsets = agents.plan.host_offsets()
        order = agents.plan.order[: offsets[-1]]
        rows = gather_rows(agents.xs, order)
        seen = [rows[offsets[k] : offsets[k + 1]] for k in agents.plan.selected()]
        replies = [self._forward(x, torch.tensor(k)) for x, k in zip(seen, agents.plan.selected(), strict=True)]
        ys, actions, is_exploratory, states = (
            scatter_rows(torch.cat(column), order, agents.xs.size(0))
            for column in zip(*((y, a.view(-1), e.view(-1).bool(), States(s).whole()) for y, a, e, s in replies), strict=True)
        )
        if all(reply[0] is x for reply, x in zip(replies, seen, strict=True)):
            ys = agents.ys
        if agents.replayed is not None:
            actions = agents.replayed
        return Choice(ys, actions, is_exploratory, states)

    def _plan_agents(self, xs: Tensor, mxs: Any, prior_actions: Tensor | None, mask: Tensor | None) -> AgentsPlan:
        """The plan of the agents, after a look at the arguments."""
        name, batch = type(self).__name__, xs.size(0)
        if len(mxs) != batch:
            raise ValueError(f"{name}: mxs must have one element for each of {batch} samples, got {len(mxs)}")
        if self._num_agents == 1:
            prior_actions = torch.zeros(batch, dtype=torch.int64, device=xs.device)
        elif prior_actions is None or (batch and len(prior_actions) == 0):
            raise ValueError(f"{name}: prior_actions must say which of the {self._num_agents} agents decides, got none")
        elif prior_actions.numel() != batch:
            raise ValueError(f"{name}: prior_actions must have {batch} elements, one a sample, got {prior_actions.numel()}")
        try:
            return _plan_of(mxs, prior_actions, self._num_agents, mask)
        except (IndexError, RuntimeError) as error:
            if "dispatch_plan: actions" not in str(error):
                raise
            raise type(error)(str(error).replace("dispatch_plan: actions", f"{name}: prior_actions")) from None

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
            mask: bool (or uint8) ``[B]``, false for samples that make no decision: their action is 0. It may be false for all.
            update_target: the batch to return in place of `xs`, with the gradient of the choice where it has one.

        Returns:
            ``(xs or update_target, mxs, actions [B])``. Where nothing changes it, the batch is the same tensor, not a copy.

        Raises:
            ValueError: prior actions are missing, or an argument is not of the batch's length.
            RuntimeError: an agent is out of range.
        """
        batch = xs.size(0)
        mask = None if mask is None else mask.reshape(-1).bool()
        asked = self._plan_agents(xs, mxs, prior_actions, mask)
        agents = Agents(xs, xs if update_target is None else update_target, asked)
        agents.replayed = next_replayed(batch, xs.device, self._num_selections)
        if asked.num_deciding == 0:
            return agents.ys, mxs, torch.zeros(batch, dtype=torch.int64, device=xs.device)
        by_agent = type(self)._forward is not Decision._forward
        choice = self._ask_each(agents) if by_agent else self._decide(agents)
        ys, actions, is_exploratory, states = choice
        if mask is not None:
            actions = actions.where(mask, 0)
            is_exploratory = None if is_exploratory is None else is_exploratory & mask
            if ys is not agents.ys:
                ys = torch.where(mask.view(-1, *[1] * (ys.dim() - 1)), ys, agents.ys)
        stored, deciding = States(states, agents.row_of), asked.deciding()
        _record(mxs, Step(self, actions, is_exploratory, stored, mask, self.additional_reward_func, deciding))
        return ys, mxs, actions


def _plan_of(mxs: Any, prior_actions: Tensor, num_agents: int, mask: Tensor | None) -> AgentsPlan:
    """The plan, made once for all decisions that the same prior actions choose the agents of."""
    reusable = mask is None and isinstance(mxs, Trajectory) and not prior_actions.is_inference()
    if reusable and mxs.agents_plan is not None:
        plan: AgentsPlan
        known, version, agents, plan = mxs.agents_plan
        if known is prior_actions and version == prior_actions._version and agents == num_agents:
            return plan
    plan = AgentsPlan(prior_actions.reshape(-1).long(), num_agents, mask)
    if reusable:
        mxs.agents_plan = prior_actions, prior_actions._version, num_agents, plan
    return plan


def _record(mxs: Any, step: Step) -> None:
    if isinstance(mxs, Trajectory):
        mxs.batch_steps.append(step)
        whole, deciding = is_users(step.reward_func), step.deciding
        states, actions = step.states if whole else step.stored.rows, step.actions
        if deciding is not None:
            states, actions = states[deciding] if whole else states, actions[deciding]
        register_all(step.reward_func, states, actions)
        return
    for i, mx in enumerate(mxs):
        if step.is_active(i):
            values = step.of_sample(i)
            mx.append("actions", values.pop("actions"), new_step=True)
            for name, value in values.items():
                mx.append(name, value)
            step.reward_func.register(step.padded_states()[i : i + 1], step.actions[i])
