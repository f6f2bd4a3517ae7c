"""What is trained: a network, batches for it, and what its answers cost."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .. import routing
from ..routing import (
    CorrectClassifiedReward,
    Loss,
    NegLossReward,
    PerActionBaseReward,
    RunningAverageCollaborationReward,
)
from ..tasks import Batch, MultiTaskImages, MultiTaskNetwork, SequenceBatch, SequenceTask, load_images
from ..tasks.multitask_networks import Architecture
from .circuits import CircuitConfig
from .errors import ConfigError
from .replicas import ALONE, Replicas

Algorithm = Literal[
    "AAC",
    "ActorCritic",
    "AdvantageLearning",
    "BootstrapAAC",
    "BootstrapAdvantageLearning",
    "EGreedyAAC",
    "EGreedyREINFORCE",
    "GumbelSoftmax",
    "PerTaskAssignment",
    "QLearning",
    "REINFORCE",
    "REINFORCEBl1",
    "REINFORCEBl2",
    "RELAX",
    "SARSA",
    "SurpriseLearning",
    "WPL",
]
Images = Literal["digits", "mnist5k", "mnist", "fashion", "cifar100"]


class Outcome(NamedTuple):
    """Of one batch.

    Attributes:
        loss: what is minimised, a scalar.
        value: what is reported of it in every step, a scalar without gradient.
        measure: computes what else is reported, scalars by their names. It is called in some of the steps.
    """

    loss: Tensor
    value: Tensor
    measure: Callable[[], dict[str, Tensor]]


class Problem(abc.ABC):
    """What a :class:`Trainer` trains: :class:`SequenceProblem`, :class:`RoutingProblem`, or a class of yours."""

    @property
    def lessons(self) -> Sequence[Problem]:
        """Problems for the same network, from easy to hard, in the order in which they are learned. None: this one alone."""
        return ()

    @property
    def threshold(self) -> float:
        """Share of sequences without an error at which a lesson is learned."""
        return 1.0

    @property
    def uses_all_parameters(self) -> bool:
        """Whether each parameter gets a gradient in every step. The optimiser then treats them as one tensor."""
        return False

    @abc.abstractmethod
    def network(self) -> nn.Module:
        """A new network, of random weights."""

    def parameter_groups(self, network: nn.Module, lr: float) -> list[dict[str, Any]]:
        """For the optimiser; by default all in one group.

        Args:
            network: of this problem.
            lr: learning rate.
        """
        return [{"params": list(network.parameters()), "lr": lr}]

    def memory(self, network: nn.Module) -> dict[str, Any]:
        """What a checkpoint must hold besides the network's state_dict: by default, nothing.

        Args:
            network: of this problem.
        """
        return {}

    def restore_memory(self, network: nn.Module, memory: dict[str, Any]) -> None:
        """Brings a network back to where it was.

        Args:
            network: of this problem.
            memory: see :meth:`memory`.

        Raises:
            ValueError: there is something in it, and this class does not say what to do with it.
        """
        if memory:
            raise ValueError(f"{type(self).__name__} has memory but no restore_memory")

    @abc.abstractmethod
    def batch(self, batch_size: int, generator: torch.Generator) -> Any:
        """A batch on the CPU, with a method ``to(device, dtype, non_blocking=...)``. Called by another thread.

        Args:
            batch_size: B.
            generator: of all random numbers.
        """

    @abc.abstractmethod
    def outcome(self, network: nn.Module, batch: Any, replicas: Replicas = ALONE) -> Outcome:
        """What the network's answers to a batch are worth.

        Args:
            network: of this problem.
            batch: a whole one.
            replicas: the network is run on its rows, and the loss is such that the processes' gradients add up.
        """

    @abc.abstractmethod
    def evaluate(self, network: nn.Module, batch_size: int, generator: torch.Generator, batches: int = 1) -> dict[str, float]:
        """Means over some batches, one of them ``loss``: the smaller, the better.

        Args:
            network: of this problem, in evaluation mode.
            batch_size: B.
            generator: of all random numbers.
            batches: how many.
        """


@dataclasses.dataclass(frozen=True)
class SequenceProblem(Problem):
    """A task of sequences for a network that reads them step by step.

    Attributes:
        task: one of routing_ext.tasks.SEQUENCE_TASKS, or your own.
        circuit: the network.
        curriculum: whether the task's lessons are learned first, if it has any.
    """

    task: SequenceTask
    circuit: CircuitConfig = dataclasses.field(default_factory=CircuitConfig)
    curriculum: bool = True

    @property
    def lessons(self) -> Sequence[SequenceProblem]:
        tasks = getattr(self.task, "lessons", ()) if self.curriculum else ()
        return [dataclasses.replace(self, task=task, curriculum=False) for task in tasks]

    @property
    def threshold(self) -> float:
        return float(getattr(self.task, "threshold", 1.0))

    def network(self) -> nn.Module:
        return self.circuit.network(self.task.input_dim, self.task.output_dim)

    @property
    def uses_all_parameters(self) -> bool:
        return True

    def batch(self, batch_size: int, generator: torch.Generator) -> SequenceBatch:
        return self.task.batch(batch_size, generator)

    def outcome(self, network: nn.Module, batch: SequenceBatch, replicas: Replicas = ALONE) -> Outcome:
        rows = batch.input.size(1)
        part, _ = network.unroll(batch.input[:, replicas.rows(rows)])  # type: ignore[operator]
        output = replicas.join(part, rows, dim=1)
        loss, output = batch.loss(output), output.detach()

        def measure() -> dict[str, Tensor]:
            wrong = 1 - batch.solved(output).to(output.dtype).mean()
            return {"bits": batch.bits_per_sequence(output), "wrong": wrong}

        return Outcome(loss, loss.detach(), measure)

    @torch.no_grad()
    def evaluate(self, network: nn.Module, batch_size: int, generator: torch.Generator, batches: int = 1) -> dict[str, float]:
        """Means: loss, bits (of a sequence), bits_per_bit (of each bit that counts), wrong (share of the sequences)."""
        weight = next(network.parameters())
        sums, counting = torch.zeros(3, dtype=weight.dtype, device=weight.device), 0.0
        for _ in range(batches):
            batch = self.batch(batch_size, generator).to(weight.device, weight.dtype)
            outcome = self.outcome(network, batch)
            sums += torch.stack([outcome.value, *outcome.measure().values()])
            counting += float(batch.num_counted) / batch_size
        loss, bits, wrong = (sums / batches).tolist()
        return {"loss": loss, "bits": bits, "bits_per_bit": bits * batches / max(counting, 1.0), "wrong": wrong}


@dataclasses.dataclass(frozen=True)
class RoutingProblem(Problem):
    """Several tasks of image classification at once, for a :class:`~routing_ext.tasks.MultiTaskNetwork`.

    Attributes:
        data: digits or mnist5k, which come with Python packages; mnist, fashion or cifar100, which are read from your files.
        folder: of these files.
        algorithm: of the decisions, a class of routing_ext.routing; PerTaskAssignment is the baseline without routing.
        architecture: who decides: per-task, dispatched or single, as MultiTaskNetwork explains.
        num_modules: K, of each layer; None for as many as tasks.
        reward: correct (1 or -1 for a right or wrong answer) or neg-loss.
        reward_ratio: of the reward for choosing what others choose.
        decision_lr: learning rate of the decisions.
        data_seed: of the images that the set's loader draws.

    Raises:
        ValueError: an unknown algorithm, or a number out of range.
    """

    data: Images = "mnist5k"
    folder: Path | None = None
    algorithm: Algorithm = "REINFORCE"
    architecture: Architecture = "per-task"
    num_modules: int | None = None
    reward: Literal["correct", "neg-loss"] = "correct"
    reward_ratio: float = 0.3
    decision_lr: float = 0.2
    data_seed: int = 0

    def __post_init__(self) -> None:
        if self.num_modules is not None and self.num_modules < 1:
            raise ValueError(f"num_modules must be at least 1, got {self.num_modules}")
        if not self.decision_lr > 0:
            raise ValueError(f"decision_lr must be above 0, got {self.decision_lr}")

    @cached_property
    def images(self) -> tuple[MultiTaskImages, MultiTaskImages]:
        """``(train, test)``, read when they are first asked for.

        Raises:
            ConfigError: they cannot be read.
        """
        try:
            return load_images(self.data, self.folder, seed=self.data_seed)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise ConfigError(f"the images cannot be read: {error}; --data names the set, --folder its files") from None

    @cached_property
    def _loss(self) -> Loss:
        return Loss(nn.CrossEntropyLoss(), CorrectClassifiedReward() if self.reward == "correct" else NegLossReward())

    def network(self) -> nn.Module:
        train, _ = self.images
        channels, height, width = train.images.shape[1:]
        decision = getattr(routing, self.algorithm)
        return MultiTaskNetwork(
            (channels, height, width),
            train.num_classes,
            train.num_tasks,
            decision,
            self.architecture,
            self.num_modules,
            self.reward_ratio,
        )

    def parameter_groups(self, network: nn.Module, lr: float) -> list[dict[str, Any]]:
        assert isinstance(network, MultiTaskNetwork)
        return [group for group in network.parameter_groups(lr, self.decision_lr) if group["params"]]

    def memory(self, network: nn.Module) -> dict[str, Any]:
        return {name: getattr(reward, _remembers(reward)) for name, reward in _rewards_of_choices(network)}

    def restore_memory(self, network: nn.Module, memory: dict[str, Any]) -> None:
        for name, reward in _rewards_of_choices(network):
            setattr(reward, _remembers(reward), memory[name])

    def batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        train, _ = self.images
        return train.at(torch.randint(len(train), (batch_size,), generator=generator))

    def outcome(self, network: nn.Module, batch: Batch, replicas: Replicas = ALONE) -> Outcome:
        batch_size = len(batch.labels)
        images, labels, tasks = (t[replicas.rows(batch_size)] for t in batch)
        logits, meta = network(images, tasks)
        module_losses, decision_losses = self._loss(logits, meta, labels, reduce=False)

        def measure() -> dict[str, Tensor]:
            right = (logits.detach().argmax(1) == labels).to(logits.dtype)
            return {"decision_loss": decision_losses.detach().mean(), "accuracy": right.mean()}

        loss = (module_losses + decision_losses).sum() / batch_size
        return Outcome(loss, module_losses.detach().mean(), measure)

    @torch.no_grad()
    def evaluate(self, network: nn.Module, batch_size: int, generator: torch.Generator, batches: int = 1) -> dict[str, float]:
        """On all images of the test set, whatever is asked for: loss, decision_loss, accuracy."""
        weight = next(network.parameters())
        sums, count = torch.zeros(3, dtype=weight.dtype, device=weight.device), 0
        _, test = self.images
        for batch in test.batches(1000):
            outcome = self.outcome(network, batch.to(weight.device, weight.dtype))
            sums += torch.stack([outcome.value, *outcome.measure().values()]) * len(batch.labels)
            count += len(batch.labels)
        return dict(zip(("loss", "decision_loss", "accuracy"), (sums / count).tolist(), strict=True))


def _remembers(reward: PerActionBaseReward) -> str:
    """The attribute in which it does: a tensor, or None."""
    return "_actions" if isinstance(reward, RunningAverageCollaborationReward) else "_latest"


def _rewards_of_choices(network: nn.Module) -> Iterator[tuple[str, PerActionBaseReward]]:
    """They remember the last choices."""
    for name, module in network.named_modules():
        reward = getattr(module, "additional_reward_func", None)
        if isinstance(reward, PerActionBaseReward):
            yield name, reward
