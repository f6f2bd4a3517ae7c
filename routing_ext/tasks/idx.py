"""MNIST and Fashion-MNIST, from the user's files in the IDX format (LeCun's page of MNIST describes it)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from .bundled import DIGITS
from .multi_task_images import MultiTaskImages, one_vs_rest

GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_UBYTE = 8  # the code of the element type


def mnist(folder: str | Path, balanced: bool = True, seed: int = 0) -> tuple[MultiTaskImages, MultiTaskImages]:
    """``(train, test)``: MNIST (LeCun et al., 1998) as ten tasks "is it the digit t?", see :func:`one_vs_rest`.

    Args:
        folder: has the four files of the set, ``train-images-idx3-ubyte`` and so on, compressed (``.gz``) or not.
        balanced: as many no as yes in each task.
        seed: of the images that are a task's no.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    return _ten_tasks("mnist", "MNIST", Path(folder), DIGITS, balanced, seed)


def fashion_mnist(folder: str | Path, balanced: bool = True, seed: int = 0) -> tuple[MultiTaskImages, MultiTaskImages]:
    """``(train, test)``: Fashion-MNIST (Xiao et al., 2017), likewise: its files have the names of MNIST's.

    Args:
        folder: has the four files.
        balanced: as many no as yes in each task.
        seed: of the images that are a task's no.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    return _ten_tasks("fashion_mnist", "Fashion-MNIST", Path(folder), GARMENTS, balanced, seed)


def read_idx(path: str | Path) -> Tensor:
    """The array of bytes in an IDX file, uint8 of any shape; decompressed if the name ends with ``.gz``.

    Raises:
        ValueError: the file is damaged, or has elements of another type.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0":
                raise ValueError(f"read_idx: {path} must begin with two zero bytes, type and rank, got {magic.hex(' ')}")
            if magic[2] != _UBYTE:
                raise ValueError(f"read_idx: {path} must have elements of type 08 (unsigned bytes), got {magic[2]:02x}")
            sizes = file.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise ValueError(f"read_idx: {path} must have a header of {4 + 4 * magic[3]} bytes, got {4 + len(sizes)}")
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            expected = math.prod(shape)
            data = bytearray(file.read(expected + 1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"read_idx: {path} is not a whole gzip file: {error}") from None
    if len(data) != expected:
        got = "more" if len(data) > expected else f"{len(data)}"
        raise ValueError(f"read_idx: {path} must have {expected} bytes of shape {shape} after its header, got {got}")
    return torch.frombuffer(data, dtype=torch.uint8).view(shape) if data else torch.empty(shape, dtype=torch.uint8)


def _ten_tasks(
    loader: str, title: str, folder: Path, names: tuple[str, ...], balanced: bool, seed: int
) -> tuple[MultiTaskImages, MultiTaskImages]:
    parts = []
    for part in ("train", "t10k"):
        paths = [_find(loader, title, folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        images, classes = map(read_idx, paths)
        if images.dim() != 3:
            raise ValueError(f"{loader}: {paths[0]} must hold images [M, H, W], got {list(images.shape)}")
        if classes.shape != images.shape[:1]:
            expected, got = len(images), list(classes.shape)
            raise ValueError(f"{loader}: {paths[1]} must hold a class for each of {expected} images, got {got}")
        if len(classes) and int(classes.max()) >= len(names):
            raise ValueError(f"{loader}: {paths[1]} must hold classes below {len(names)}, got {int(classes.max())}")
        parts.append(one_vs_rest(images.unsqueeze(1), classes.long(), names, balanced, seed))
    return parts[0], parts[1]


def _find(loader: str, title: str, folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    expected = f"{name} or {name}.gz, one of the four files in which {title} is published"
    raise FileNotFoundError(f"{loader}: {folder} must hold {expected}, got neither")
