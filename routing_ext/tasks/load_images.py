"""The sets of images by their names, for command lines."""

from __future__ import annotations

from pathlib import Path

from .bundled import digits, mnist5k
from .cifar100 import cifar100
from .idx import fashion_mnist, mnist
from .multi_task_images import MultiTaskImages

_BUNDLED = {"digits": digits, "mnist5k": mnist5k}
_ONE_VS_REST = {"mnist": mnist, "fashion": fashion_mnist}
BUNDLED = tuple(_BUNDLED)
FROM_FILES = (*_ONE_VS_REST, "cifar100")


def load_images(name: str, folder: str | Path | None = None, seed: int = 0) -> tuple[MultiTaskImages, MultiTaskImages]:
    """``(train, test)`` of the set that is called so.

    Args:
        name: ``"digits"``, ``"mnist5k"``, ``"mnist"``, ``"fashion"`` or ``"cifar100"``.
        folder: of the files, for the last three.
        seed: of what the set's loader draws.

    Raises:
        ValueError: an unknown name, a folder that is missing or not needed, or a damaged file.
        FileNotFoundError: a file is missing.
        ModuleNotFoundError: the package with the images is not installed.
    """
    if name in _BUNDLED:
        if folder is not None:
            raise ValueError(f"load_images: folder must not be given for {name}, which comes with a package, got {folder}")
        return _BUNDLED[name](seed=seed)
    if name not in FROM_FILES:
        raise ValueError(f"load_images: name must be one of {', '.join(BUNDLED + FROM_FILES)}, got {name!r}")
    if folder is None:
        raise ValueError(f"load_images: folder must be given for {name}, which is read from your files")
    return cifar100(folder) if name == "cifar100" else _ONE_VS_REST[name](folder, seed=seed)
