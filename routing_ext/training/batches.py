"""The batches of training, made by another thread."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch


def batch_seed(seed: int, purpose: str, step: int) -> int:
    """The seed of a batch: the same for the same numbers on every machine, and unlike that of any other step or purpose.

    Args:
        seed: of the training.
        purpose: such as ``"train"``.
        step: from 0.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # below 2**63


class _Made(NamedTuple):
    step: int
    batch: Any
    error: BaseException | None


class Batches:
    """The batches of the steps from `start` on, made ahead by a thread. A context manager: leaving it ends the thread.

    What is in a batch depends on its step and the seed only, so training that begins again gets the same batches.

    Args:
        make: makes a batch with the given generator.
        seed: of the training.
        start: the first step, from 0.
        stop: the step after the last one.
        ahead: how many batches may wait.
    """

    def __init__(
        self, make: Callable[[torch.Generator], Any], seed: int, start: int = 0, stop: int | None = None, ahead: int = 4
    ) -> None:
        self.seed = seed
        self._make = make
        self._ready: SimpleQueue[_Made] = SimpleQueue()
        self._room: SimpleQueue[bool] = SimpleQueue()  # True for each batch that may be made, False for the end
        for _ in range(ahead):
            self._room.put(True)
        self._thread = threading.Thread(target=self._work, args=(start, stop), name="batches", daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """The batch of the next step; errors of making it are raised here."""
        made = self._ready.get()
        self._room.put(True)
        if made.error is not None:
            raise made.error
        return made.batch

    def seed_of(self, step: int) -> int:
        """The seed of a step's batch: ``make(torch.Generator().manual_seed(seed))`` makes it again."""
        return batch_seed(self.seed, "train", step)

    def _work(self, step: int, stop: int | None) -> None:
        generator = torch.Generator()
        while (stop is None or step < stop) and self._room.get():
            try:
                made = _Made(step, self._make(generator.manual_seed(self.seed_of(step))), None)
            except BaseException as error:
                made = _Made(step, None, error)
            self._ready.put(made)
            if made.error is not None:
                return
            step += 1

    def close(self) -> None:
        """Ends the thread, which first finishes the batch that it is making."""
        while not self._room.empty():
            self._room.get()
        self._room.put(False)
        self._thread.join()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
