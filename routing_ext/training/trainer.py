"""The training loop."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batches, batch_seed
from .checkpoints import load_checkpoint
from .config import TrainConfig
from .errors import CheckpointError, ConfigError, Diverged, Interrupted, RunError
from .flat_parameters import FlatParameters
from .means import Means
from .problems import Problem
from .replicas import ALONE, Replicas
from .run import Run
from .watch import Kind, Sink

MEASURE_EVERY = 10  # steps; the loss is measured in each
REVIEWED = 0.1  # share of the batches that are of lessons learned before, as in Graves et al. (2016)


class Trainer:
    """Trains a network on a problem.

    :meth:`fit` trains up to the last step. Where there is a run, it writes checkpoints, begins with the last one, and ends
    with the same weights, bit for bit, however often training was interrupted, by whatever, and begun again.

    Args:
        problem: what is trained.
        config: how.
        run: where checkpoints go; without one, nothing is written.
        sinks: told of what happens; assignable until training begins, since some ask for the step at which it will.
        replicas: the processes that train together.

    Attributes:
        network: what is trained.
        optimizer: which trains it.
        step: training steps done.

    Raises:
        ConfigError: there is no such device, or the weights to begin with do not fit.
        CheckpointError: the run has checkpoints, and none can be read.
    """

    def __init__(
        self,
        problem: Problem,
        config: TrainConfig,
        run: Run | None = None,
        sinks: Sequence[Sink] = (),
        replicas: Replicas = ALONE,
    ) -> None:
        self.problem = problem
        self.config = config
        self.run = run
        self.sinks = sinks
        self.replicas = replicas
        self.device = usable_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.network = problem.network().to(self.device, config.torch_dtype)
        if config.init is not None:
            load_weights(self.network, config.init)
        groups = problem.parameter_groups(self.network, config.lr)
        self._flat = [FlatParameters(group["params"]) for group in groups] if problem.uses_all_parameters else []
        for group, flat in zip(groups, self._flat, strict=False):
            group["params"] = [flat.flat]
        self._parameters = [p for group in groups for p in group["params"]]
        self._lrs = [group["lr"] for group in groups]
        self.optimizer = make_optimizer(groups, config)
        if replicas.rank:
            torch.manual_seed(batch_seed(config.seed, "replica", replicas.rank))
        self.step = 0
        self._lesson = 0
        self._best = math.inf
        self._first_loss: float | None = None  # mean of the first report
        self._means = Means()  # since the last report
        self._unchecked: list[tuple[int, Tensor]] = []  # the last losses, by step
        self._signal: signal.Signals | None = None
        self._notes: list[str] = []  # from before training
        if run is not None:
            state = run.checkpoints.load_last(self._notes.append)
            if state is not None:
                self._load(state)

    def fit(self) -> dict[str, float]:
        """Trains up to the last step.

        Returns:
            The last evaluation.

        Raises:
            Interrupted: by SIGINT, SIGTERM or SIGHUP; the checkpoint is written before.
            Diverged: the loss is not finite, or explodes; checkpoints are those from before.
            CheckpointError: a checkpoint cannot be written; those before are as they were.
            RunError: something else cannot be written.
        """
        lessons = self.problem.lessons or [self.problem]
        values: dict[str, float] = {}
        try:
            while self._notes:
                self._message(self._notes.pop(0))
            with self._signals_noted():
                while self.step < self.config.steps:
                    make = partial(self._batch, lessons[: self._lesson + 1])
                    with Batches(make, self.config.seed, self.step, self.config.steps) as batches:
                        values = self._learn(lessons[self._lesson], len(lessons), batches)
        except OSError as error:
            raise RunError(f"{error.strerror or error} at step {self.step}; {self._kept()}: make room, then resume") from None
        return values or self._evaluate()

    # ---- steps -----------------------------------------------------------------------------------------------------------

    def _learn(self, lesson: Problem, lessons: int, batches: Batches) -> dict[str, float]:
        """Up to the end of the lesson, or of training."""
        config, start, counted = self.config, time.perf_counter(), self.step
        values: dict[str, float] = {}
        self.network.train()
        while self.step < config.steps:
            stop = self._take_step(lesson, batches)
            at_end = self.step == config.steps
            learned = False
            if at_end or self.step % config.report_every == 0:
                speed = (self.step - counted) * config.batch_size / (time.perf_counter() - start)
                means = self._report(batches, speed, lessons)
                learned = self._lesson < lessons - 1 and 1 - means.get("wrong", 1.0) >= self.problem.threshold
                start, counted = time.perf_counter(), self.step
            if learned:
                self._lesson += 1
                self._first_loss = None
                self._message(f"Lesson {self._lesson} of {lessons} learned @ Step: {self.step}")
            if at_end or self.step % config.evaluate_every == 0:
                values, begin = self._evaluate(), time.perf_counter()
                self.network.train()
                start += time.perf_counter() - begin
            if at_end or stop is not None or self.step % config.checkpoint_every == 0:
                self._save(batches)
            if stop is not None:
                raise self._interrupted(stop)
            if learned:
                break
        return values

    def _take_step(self, lesson: Problem, batches: Batches) -> signal.Signals | None:
        """Returns the signal on which to stop, if any of the processes got one."""
        scale = self.config.lr_scale(self.step)
        for group, lr in zip(self.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * scale
        batch = batches.next()
        try:
            outcome = lesson.outcome(self.network, batch, self.replicas)
        except RuntimeError:
            if self._weights_are_finite():
                raise
            raise self._diverged("the weights are not finite any more", self.step - 1, batches) from None
        self._unchecked.append((self.step, outcome.value))
        if self.device.type == "cpu":  # elsewhere it would wait for the device
            self._check_losses(batches)
        outcome.loss.backward()
        for flat in self._flat:
            flat.collect_gradients()
        stop = self._signal
        if self.replicas.add_up(self._parameters, stop is not None) and stop is None:
            stop = signal.SIGTERM  # another process got it
        self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._means.add({"loss": outcome.value})
        if self.step % MEASURE_EVERY == 0:
            self._means.add(outcome.measure())
        self.step += 1
        for sink in self.sinks:
            sink.advance(self.step)
        return stop

    def _batch(self, lessons: Sequence[Problem], generator: torch.Generator) -> Any:
        """Of the last of the lessons, or now and then of another one."""
        *before, lesson = lessons
        if before and float(torch.rand((), generator=generator)) < REVIEWED:
            lesson = before[int(torch.randint(len(before), (), generator=generator))]
        batch = lesson.batch(self.config.batch_size, generator)
        return batch.to(self.device, self.config.torch_dtype, non_blocking=True)

    def _clip(self) -> None:
        if self.config.clip_grad_value is not None:
            nn.utils.clip_grad_value_(self._parameters, self.config.clip_grad_value, foreach=True)
        if self.config.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.config.clip_grad_norm, foreach=True)

    # ---- reports ---------------------------------------------------------------------------------------------------------

    def _report(self, batches: Batches, sequences_per_second: float, lessons: int) -> dict[str, float]:
        """The means since the last report, which all sinks get."""
        self._check_losses(batches)
        means = self._means.take()
        if self._first_loss is None:
            self._first_loss = means["loss"]
        elif means["loss"] > self.config.max_loss_rise * self._first_loss:
            raise self._diverged(f"the loss rose from {self._first_loss:.4g} to {means['loss']:.4g}", self.step - 1, batches)
        more = {"lr": self.optimizer.param_groups[0]["lr"], "sequences_per_second": sequences_per_second}
        if lessons > 1:
            more["lesson"] = float(self._lesson)
        self._tell("train", {**means, **more})
        return means

    def _evaluate(self) -> dict[str, float]:
        if self.replicas.rank:
            return {}
        begin = time.perf_counter()
        self.network.eval()
        generator = torch.Generator().manual_seed(batch_seed(self.config.seed, "evaluation", 0))
        values = self.problem.evaluate(self.network, self.config.batch_size, generator, self.config.evaluation_batches)
        self._tell("evaluation", {**values, "took": time.perf_counter() - begin})
        if values["loss"] < self._best:
            self._best = values["loss"]
            if self.run is not None:
                self.run.checkpoints.save_best({"step": self.step, "model": self.network.state_dict(), "evaluation": values})
        return values

    def _tell(self, kind: Kind, values: dict[str, float]) -> None:
        for sink in self.sinks:
            sink.report(kind, self.step, values)

    def _message(self, text: str) -> None:
        for sink in self.sinks:
            sink.message(text)

    # ---- what may go wrong -----------------------------------------------------------------------------------------------

    def _check_losses(self, batches: Batches) -> None:
        """Raises if one since the last check is not finite."""
        losses, self._unchecked = self._unchecked, []
        for step, loss in losses:
            if not math.isfinite(float(loss)):
                raise self._diverged(f"the loss is {loss}", step, batches)

    def _weights_are_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self._parameters)

    def _diverged(self, what: str, step: int, batches: Batches) -> Diverged:
        where = f"at step {step + 1} (seed of its batch: {batches.seed_of(step)}); {self._kept()}"
        clip = f"--clip-grad-norm 10 (now {self.config.clip_grad_norm})"
        return Diverged(f"{what} {where}. Try a smaller --lr (now {self.config.lr:g}), {clip} or --dtype float64")

    def _kept(self) -> str:
        last = self.run.checkpoints.last() if self.run is not None else []
        return f"the last checkpoint is {last[0]}" if last else "there is no checkpoint yet"

    @contextlib.contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP end training after the step under way; a second SIGINT ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = signal.Signals(number)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        noted = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
            noted.append(signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in noted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted(self, stop: signal.Signals) -> Interrupted:
        where = f"; go on with: routing-ext train --resume {self.run.path}" if self.run is not None else ""
        done = f"stopped by {stop.name} after step {self.step} of {self.config.steps}"
        return Interrupted(f"{done}{', all is saved' if self.run is not None else ''}{where}", stop, self.step)

    # ---- checkpoints -----------------------------------------------------------------------------------------------------

    def _save(self, batches: Batches) -> None:
        self._check_losses(batches)
        if not self._weights_are_finite():
            raise self._diverged("the weights are not finite any more", self.step - 1, batches)
        if self.run is None:
            return
        random = torch.stack(self.replicas.collect(torch.get_rng_state()))
        random_cuda = torch.stack(self.replicas.collect(torch.cuda.get_rng_state(self.device))) if self._on_cuda else None
        if self.replicas.rank == 0:
            state = {
                "step": self.step,
                "model": self.network.state_dict(),
                "memory": self.problem.memory(self.network),
                "optimizer": self.optimizer.state_dict()["state"],
                "random": random,
                "random_cuda": random_cuda,
                "lesson": self._lesson,
                "best": self._best,
                "first_loss": self._first_loss,
                "means": self._means.state_dict(),
            }
            path = self.run.checkpoints.save(state, self.step)
            for sink in self.sinks:
                sink.saved(self.step, path)
        self.replicas.collect(torch.zeros(1))  # none leaves before it is written

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def _load(self, state: dict[str, Any]) -> None:
        try:
            self.network.load_state_dict(state["model"])
            self.problem.restore_memory(self.network, state["memory"])
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
            self.step, self._lesson, self._best = state["step"], state["lesson"], state["best"]
            self._first_loss = state["first_loss"]
            self._means.load_state_dict(state["means"], self.device)
            if self.replicas.rank < len(state["random"]):
                torch.set_rng_state(state["random"][self.replicas.rank])
                if self._on_cuda and state["random_cuda"] is not None:
                    torch.cuda.set_rng_state(state["random_cuda"][self.replicas.rank], self.device)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"the checkpoint does not fit the run's configuration: {reason}") from None


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that is asked for, in the form that takes fewest calls.

    Args:
        groups: of parameters, with their learning rates.
        config: see there.
    """
    if config.optimizer == "rmsprop":
        common = {"weight_decay": config.weight_decay, "momentum": config.momentum}
        return torch.optim.RMSprop(groups, alpha=config.alpha, eps=config.eps, foreach=True, **common)  # type: ignore[arg-type]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)
    made = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return made(groups, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True)


def usable_device(name: str) -> torch.device:
    """The device that is called so.

    Raises:
        ConfigError: there is none.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name} cannot be used: {str(error).splitlines()[0]}") from None


def load_weights(network: nn.Module, path: Path) -> None:
    """Into a network: of a checkpoint, or a state_dict as pytorch-dnc saves it.

    Args:
        network: gets the weights.
        path: of the file.

    Raises:
        ConfigError: they do not fit, or the file cannot be read.
    """
    try:
        try:
            weights = load_checkpoint(path)["model"]
        except CheckpointError:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a damaged file can raise anything
        raise ConfigError(f"the weights of {path} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
