"""Checkpoints that survive whatever happens while they are written."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError

VERSION = 1


class Checkpoints:
    """The checkpoints in a folder: the last few, ``step-00000500.pt``, and the best one, ``best.pt``.

    A checkpoint is written to another file, synchronised to the disk and renamed, so under its name it is always whole; the
    ones before it are removed only then. It is a dictionary of tensors, numbers, strings, lists and dictionaries, written by
    :func:`torch.save`, with an entry ``"version"``.

    Args:
        folder: made when the first one is written.
        keep: how many of the last are kept.
    """

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        self.folder = Path(folder)
        self.keep = keep

    @property
    def best(self) -> Path:
        """The best one, which may not be there."""
        return self.folder / "best.pt"

    def path(self, step: int) -> Path:
        """Of the one after `step` steps."""
        return self.folder / f"step-{step:08}.pt"

    def last(self) -> list[Path]:
        """Those that are there, the best apart, latest first."""
        found = self.folder.glob("step-*.pt") if self.folder.is_dir() else ()
        return sorted((path for path in found if re.fullmatch(r"step-\d+\.pt", path.name)), key=self._step, reverse=True)

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Writes one of the last, then removes those that are too many.

        Args:
            state: see above; the version is added.
            step: training steps done.

        Raises:
            CheckpointError: it cannot be written; those before are as they were.
        """
        path = self._write(self.path(step), state)
        for old in self.last()[self.keep :]:
            with contextlib.suppress(OSError):
                old.unlink()
        return path

    def save_best(self, state: dict[str, Any]) -> Path:
        """Writes the best one.

        Args:
            state: as of :meth:`save`.

        Raises:
            CheckpointError: it cannot be written; the one before is as it was.
        """
        return self._write(self.best, state)

    def load_last(self, warn: Callable[[str], None] = warnings.warn) -> dict[str, Any] | None:
        """The latest that can be read, or None if there is none at all.

        Args:
            warn: called with a sentence for each that is damaged and passed over.

        Raises:
            CheckpointError: there are some, and none can be read, or one is of an unknown version.
        """
        paths = self.last()
        damages = []
        for path in paths:
            try:
                state = load_checkpoint(path)
            except _Damaged as damage:
                damages.append(str(damage))
                continue
            for text in damages:
                warn(f"{text}; going on from {path.name}")
            return state
        if damages:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read: {'; '.join(damages)}")
        return None

    def _write(self, path: Path, state: dict[str, Any]) -> Path:
        # torch's own writer may end the process where a disk is full, so it writes to memory.
        content = io.BytesIO()
        torch.save({"version": VERSION, **state}, content)
        part = path.with_name(f".{path.name}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            before = next((p.name for p in self.last()), None)
            kept = f"; {before} is the last one" if before else ""
            reason = error.strerror or str(error)
            raise CheckpointError(f"cannot write {path} ({reason}){kept}: free some space or rights, then resume") from None
        return path

    @staticmethod
    def _step(path: Path) -> int:
        return int(path.stem.partition("-")[2])


class _Damaged(CheckpointError):
    pass


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint on the CPU, checked: every byte against its sum, and the version.

    Args:
        path: of the file.

    Raises:
        CheckpointError: it is missing, damaged, or of a version that this program does not know.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the sums
            wrong = archive.testzip()
        if wrong is not None:
            raise _Damaged(f"the checkpoint {path} is damaged (wrong sum of {wrong})")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except PermissionError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except _Damaged:
        raise
    except Exception as error:  # a damaged archive can raise anything
        reason = " ".join(str(error).split())[:200]
        raise _Damaged(f"the checkpoint {path} is damaged ({type(error).__name__}: {reason})") from None
    version = state.get("version") if isinstance(state, dict) else None
    if version != VERSION:
        raise CheckpointError(
            f"the checkpoint {path} must be of version {VERSION}, got {version}: read it with the program that wrote it"
        )
    return state
