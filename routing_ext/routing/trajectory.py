"""The record of a batch's decisions: tensors for all samples, that behave as the reference's list of one object a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

STATE_CHANNELS = 5  # of the states that the reference stores

# The names of a step's values that the loss reads.
_READ_BY_LOSS = ("actions", "states", "add_rewards", "loss_funcs", "reward_func")


def padded(states: Tensor) -> Tensor:
    """``[n, K, C] -> [n, K, 5]``, with zeros, as the reference stores them."""
    missing = STATE_CHANNELS - states.size(2)
    return torch.nn.functional.pad(states, (0, missing)) if missing > 0 else states


# These are dataclasses because DistributedDataParallel, which looks for the parameters that took part, follows the fields of
# such. So it finds the states that the loss will use.
@dataclass(eq=False)
class States:
    """What a layer stored of N decisions, as rows that several of them may share.

    Attributes:
        rows: ``[n, K, C]``, or ``[n, K]`` for min(K, 5) equal channels, which is how the reference stores a single one.
        row_of: int64 ``[N]``, the row of each decision; None: there are N, in order.
    """

    rows: Tensor
    row_of: Tensor | None = None
    _whole: Tensor | None = field(default=None, init=False)

    @property
    def num_selections(self) -> int:
        """K."""
        return self.rows.size(1)

    def _of_decisions(self, values: Tensor) -> Tensor:
        return values if self.row_of is None else values.index_select(0, self.row_of)

    def whole(self) -> Tensor:
        """``[N, K, C]``."""
        if self._whole is None:
            states = self._of_decisions(self.rows)
            if states.dim() == 2:
                states = states.unsqueeze(2).expand(-1, -1, min(states.size(1), STATE_CHANNELS))
            self._whole = states
        return self._whole

    def channel(self, c: int) -> Tensor:
        """``[n, K]``, of the rows."""
        return self.rows[:, :, c] if self.rows.dim() == 3 else self.rows

    def taken(self, actions: Tensor) -> Tensor:
        """``[N, C]`` at the actions ``[N]``; one channel if all are equal."""
        row_of = torch.arange(actions.size(0), device=actions.device) if self.row_of is None else self.row_of
        position = torch.add(actions, row_of, alpha=self.num_selections)
        return self.rows.reshape(-1, 1 if self.rows.dim() == 2 else self.rows.size(2)).index_select(0, position)

    def best(self, c: int) -> Tensor:
        """``[N]``: the largest value of channel c; no gradient."""
        return self._of_decisions(self.channel(c).detach().amax(1))

    def mode(self) -> Tensor:
        """int64 ``[N]``: the action with the largest value of the first channel."""
        return self._of_decisions(self.channel(0).detach().max(1)[1])

    def first(self, c: int) -> Tensor:
        """``[N]``: the value of channel c at action 0, for what does not depend on the action."""
        return self._of_decisions(self.channel(c)[:, 0])

    def select(self, index: Tensor) -> States:
        """Of the decisions `index`."""
        return States(self.rows.index_select(0, index)) if self.row_of is None else States(self.rows, self.row_of[index])


class SampleMetaInformation:
    """What is known of one sample's way through the network, as the reference keeps it.

    Attributes:
        task: of the sample, or None.
        steps: one dict for each decision: actions, is_exploratory, states, loss_funcs, reward_func, and what users append.
    """

    def __init__(self, task: Any = None) -> None:
        self.task = task
        self.steps: list[dict[str, Any]] = []

    def append(self, attr_name: str, obj: Any, new_step: bool = False) -> None:
        """Adds a value to the last step, or to a new one.

        Raises:
            ValueError: there is no step yet, and ``new_step`` is false.
        """
        if new_step:
            self.steps.append({})
        elif not self.steps:
            raise ValueError(f"SampleMetaInformation.append: {attr_name!r} needs a step: make the first with new_step=True")
        self.steps[-1][attr_name] = obj

    def finalize(self) -> None:
        """Turns the steps into attributes: for each name a list with its value in each step, None where a step has none."""
        names = dict.fromkeys(name for step in self.steps for name in step)
        for name in names:
            setattr(self, name, [step.get(name) for step in self.steps])


@dataclass(eq=False)
class Step:
    """One decision for all samples of a batch.

    Attributes:
        decision: the layer.
        actions: int64 ``[B]``, 0 where inactive.
        stored: the states.
        mask: bool ``[B]``, false where a sample made no decision here; None: all did.
        reward_func: its per-action reward.
        deciding: int64 ``[n]``, where the mask is true, ascending; None: all.
    """

    decision: Any
    actions: Tensor
    _is_exploratory: Tensor | None  # False where inactive; None: whether the action is the most likely one.
    stored: States
    mask: Tensor | None
    reward_func: Any
    deciding: Tensor | None = None
    _active: list[bool] | None = field(default=None, init=False)
    _padded: Tensor | None = field(default=None, init=False)

    @property
    def states(self) -> Tensor:
        """``[B, K, C]`` with at most 5 channels; the reference pads to 5."""
        return self.stored.whole()

    @property
    def is_exploratory(self) -> Tensor:
        """bool ``[B]``."""
        if self._is_exploratory is None:
            is_mode = self.stored.mode() == self.actions
            self._is_exploratory = is_mode if self.mask is None else is_mode & self.mask
        return self._is_exploratory

    def is_active(self, i: int) -> bool:
        """Whether sample i made a decision here."""
        if self.mask is None:
            return True
        if self._active is None:
            self._active = self.mask.tolist()
        return self._active[i]

    def padded_states(self) -> Tensor:
        """``[B, K, 5]``."""
        if self._padded is None:
            self._padded = padded(self.states)
        return self._padded

    def of_sample(self, i: int) -> dict[str, Any]:
        """The step as sample i's :class:`SampleMetaInformation` has it."""
        return {
            "actions": self.actions[i],
            "is_exploratory": self.is_exploratory[i].to(torch.uint8),
            "states": self.padded_states()[i : i + 1],
            "loss_funcs": self.decision._loss,
            "reward_func": self.reward_func,
        }


class SampleView(SampleMetaInformation):
    """One sample of a :class:`Trajectory`. Its steps are made when they are asked for, and are the user's from then on."""

    def __init__(self, trajectory: Trajectory, index: int) -> None:
        self.trajectory = trajectory
        self.index = index
        self._steps: list[dict[str, Any]] = []
        self._steps_seen = 0  # of the trajectory's steps
        self._as_made: list[dict[str, Any]] = []  # copies of the steps

    @property
    def task(self) -> Any:
        return self.trajectory.task_of(self.index)

    @task.setter
    def task(self, task: Any) -> None:
        self.trajectory.set_task(self.index, task)

    @property
    def steps(self) -> list[dict[str, Any]]:
        for step in self.trajectory.batch_steps[self._steps_seen :]:
            if step.is_active(self.index):
                self._steps.append(step.of_sample(self.index))
                self._as_made.append(dict(self._steps[-1]))
        self._steps_seen = len(self.trajectory.batch_steps)
        return self._steps

    @steps.setter
    def steps(self, steps: list[dict[str, Any]]) -> None:
        self._as_made = [dict(step) for step in self.steps]
        self._steps = steps

    def is_edited(self) -> bool:
        """Whether the loss would find something else in the steps than the decisions have left there."""
        if len(self._steps) != len(self._as_made):
            return True
        pairs = zip(self._steps, self._as_made, strict=True)
        return any(step.get(name) is not made.get(name) for step, made in pairs for name in _READ_BY_LOSS)

    def __getattr__(self, name: str) -> Any:
        # What the reference's loss leaves in each sample.
        trajectory = self.__dict__.get("trajectory")
        if trajectory is not None and trajectory.final_rewards is not None:
            if name == "final_reward":
                return trajectory.final_rewards[self.index]
            if any(name in step for step in self.steps):
                return [step.get(name) for step in self.steps]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@dataclass(eq=False, repr=False)
class Trajectory(Sequence[SampleView]):
    """The meta information of a batch: a sequence of :class:`SampleView`, kept as tensors.

    Attributes:
        batch_size: B.
        tasks: the samples' tasks, a tensor or a sequence, or None.
        batch_steps: a :class:`Step` for each decision so far.
        final_rewards: ``[B]``, the last loss's, NaN for samples that it did not have; None before.
    """

    batch_size: int
    tasks: Tensor | Sequence[Any] | None = None
    batch_steps: list[Step] = field(default_factory=list, init=False)
    final_rewards: Tensor | None = field(default=None, init=False)
    agents_plan: Any = field(default=None, init=False)  # of the last decision
    _views: dict[int, SampleView] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        given = self.batch_size if self.tasks is None else len(self.tasks)
        if given != self.batch_size:
            raise ValueError(f"Initialization: tasks must have one element for each of {self.batch_size} samples, got {given}")

    def __len__(self) -> int:
        return self.batch_size

    @overload
    def __getitem__(self, index: int) -> SampleView: ...
    @overload
    def __getitem__(self, index: slice) -> list[SampleView]: ...
    def __getitem__(self, index: int | slice) -> SampleView | list[SampleView]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.batch_size))]
        i = range(self.batch_size)[index]
        if i not in self._views:
            self._views[i] = SampleView(self, i)
        return self._views[i]

    def __iter__(self) -> Iterator[SampleView]:
        return (self[i] for i in range(self.batch_size))

    def __add__(self, others: Iterable[Any]) -> list[Any]:
        return [*self, *others]

    def __radd__(self, others: Iterable[Any]) -> list[Any]:
        return [*others, *self]

    def is_edited(self) -> bool:
        """Whether the steps of a sample are no longer those of the batch."""
        return any(view.is_edited() for view in self._views.values())

    def task_of(self, i: int) -> Any:
        """Of sample i, or None."""
        return None if self.tasks is None else self.tasks[i]

    def set_task(self, i: int, task: Any) -> None:
        """Gives sample i another task."""
        tasks = [None] * self.batch_size if self.tasks is None else list(self.tasks)
        tasks[i] = task
        self.tasks = tasks

    def task_tensor(self, device: torch.device) -> Tensor:
        """int64 ``[B]``.

        Raises:
            ValueError: a sample has no task.
        """
        tasks = self.tasks
        if isinstance(tasks, Tensor):
            return tasks.reshape(-1).to(device=device, dtype=torch.int64)
        if tasks is None or any(t is None for t in tasks):
            raise ValueError("PerTaskAssignment: mxs must have a task for each sample: pass tasks to Initialization")
        return torch.tensor([int(t) for t in tasks], dtype=torch.int64, device=device)


def batch_of(mxs: Iterable[Any]) -> tuple[Trajectory, Tensor | None] | None:
    """The trajectory that all of `mxs` belong to, and which of its samples they are (None: all, in order).

    None if they are objects of another kind, of several trajectories, or were edited one by one.
    """
    if isinstance(mxs, Trajectory):
        return None if mxs.is_edited() else (mxs, None)
    items = list(mxs)
    if not items or not all(type(m) is SampleView and m.trajectory is items[0].trajectory for m in items):
        return None
    trajectory = items[0].trajectory
    return None if trajectory.is_edited() else (trajectory, torch.tensor([m.index for m in items]))
