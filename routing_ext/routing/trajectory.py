"""The record of a batch's decisions: tensors for all samples, that behave as the reference's list of one object a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


class Step:
    """One decision for all samples of a batch.

    Attributes:
        actions: int64 ``[B]``, 0 where inactive.
        is_exploratory: bool ``[B]``.
        states: ``[B, K, C]`` with at most 5 channels; the reference pads to 5.
        mask: bool ``[B]``, false where a sample made no decision here; None: all did.
        decision: the layer.
        reward_func: its per-action reward.
    """

    def __init__(
        self, decision: Any, actions: Tensor, is_exploratory: Tensor, states: Tensor, mask: Tensor | None, reward_func: Any
    ) -> None:
        self.decision = decision
        self.actions = actions
        self.is_exploratory = is_exploratory
        self.states = states
        self.mask = mask
        self.reward_func = reward_func
        self._active: list[bool] | None = None
        self._padded: Tensor | None = None

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


class Trajectory(Sequence[SampleView]):
    """The meta information of a batch: a sequence of :class:`SampleView`, kept as tensors.

    Attributes:
        batch_steps: a :class:`Step` for each decision so far.
        tasks: the samples' tasks, a tensor or a sequence, or None.
        final_rewards: ``[B]``, the last loss's, NaN for samples that it did not have; None before.
    """

    def __init__(self, batch_size: int, tasks: Tensor | Sequence[Any] | None = None) -> None:
        if tasks is not None and len(tasks) != batch_size:
            raise ValueError(f"Initialization: tasks must have one element for each of {batch_size} samples, got {len(tasks)}")
        self.batch_size = batch_size
        self.tasks = tasks
        self.batch_steps: list[Step] = []
        self.final_rewards: Tensor | None = None
        self._views: dict[int, SampleView] = {}

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
