"""How to train: the numbers that do not depend on what is trained."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import torch

Optimizer = Literal["rmsprop", "adam", "adamw", "sgd"]
Schedule = Literal["constant", "linear", "cosine", "drops"]
DType = Literal["float32", "float64"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train. Each attribute is an option of ``routing-ext train`` and a line of a run's config.yaml.

    Attributes:
        steps: training steps, a batch each.
        batch_size: B, of all processes together.
        optimizer: rmsprop, adam, adamw or sgd.
        lr: learning rate.
        alpha: of rmsprop: how much of the mean square is kept in a step.
        betas: of adam and adamw.
        eps: of all but sgd: added to the root of the mean square.
        momentum: of rmsprop and sgd.
        weight_decay: of all.
        schedule: of the learning rate after the warm-up: constant; down to 0 in a straight line or a cosine; or drops.
        warmup_steps: in which the learning rate rises from 0 in a straight line.
        lr_drops: steps after which the schedule drops multiplies the learning rate with lr_drop_factor.
        lr_drop_factor: see lr_drops.
        clip_grad_value: each element of the gradients is brought into +- this; None for no limit.
        clip_grad_norm: the gradients are scaled down to this norm of all together; None for no limit.
        max_loss_rise: training stops if the mean loss between two reports is more than this times that of the first report.
        seed: of the weights and the batches.
        device: cpu, cuda or cuda:1, ...
        threads: of the CPU; None for as many as torch takes.
        dtype: float32 or float64.
        report_every: steps from one line of training metrics to the next.
        evaluate_every: steps from one evaluation to the next.
        evaluation_batches: batches of an evaluation, the same in each.
        checkpoint_every: steps from one checkpoint to the next.
        keep_checkpoints: how many of the last checkpoints are kept; the best is kept besides.
        init: a checkpoint, or a state_dict as pytorch-dnc saves it, whose weights training begins with.

    Raises:
        ValueError: a number out of range.
    """

    steps: int = 10_000
    batch_size: int = 16
    optimizer: Optimizer = "rmsprop"
    lr: float = 1e-3
    alpha: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-10
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    lr_drops: tuple[int, ...] = ()
    lr_drop_factor: float = 0.3
    clip_grad_value: float | None = None
    clip_grad_norm: float | None = None
    max_loss_rise: float = 10.0
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    dtype: DType = "float32"
    report_every: int = 100
    evaluate_every: int = 500
    evaluation_batches: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    init: Path | None = None

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "report_every", "evaluate_every", "evaluation_batches", "checkpoint_every")
        for name in (*positive, "keep_checkpoints", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("lr", "eps", "lr_drop_factor", "clip_grad_value", "clip_grad_norm", "max_loss_rise"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("momentum", "weight_decay", "warmup_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name, value in (("alpha", self.alpha), ("betas", self.betas[0]), ("betas", self.betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and batches."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def lr_scale(self, step: int) -> float:
        """What the learning rate is multiplied with in a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.schedule == "linear":
            return 1 - done
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "drops":
            return float(self.lr_drop_factor ** sum(step >= drop for drop in self.lr_drops))
        return 1.0
