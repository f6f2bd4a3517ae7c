"""CIFAR-100 as 20 tasks, from the user's files."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .multi_task_images import MultiTaskImages

SUPERCLASSES = {
    "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit and vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household electrical devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large man-made outdoor things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large natural outdoor scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large omnivores and herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium-sized mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles 1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles 2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
# Fine labels number the classes in alphabetical order, coarse labels the superclasses.
_PLACES = sorted((name, task, label) for task, names in enumerate(SUPERCLASSES.values()) for label, name in enumerate(names))
TASK_OF_FINE = torch.tensor([task for _, task, _ in _PLACES])  # [100]
LABEL_OF_FINE = torch.tensor([label for _, _, label in _PLACES])  # [100]

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


def cifar100(folder: str | Path) -> tuple[MultiTaskImages, MultiTaskImages]:
    """``(train, test)``: CIFAR-100 (Krizhevsky, 2009), each superclass a task: 20 tasks of five labels each.

    The label is the place of the class in its superclass, in alphabetical order. (PytorchRouting takes the fine label modulo
    5, which gives one label to several classes of a superclass.) Pixels become [0, 1]; PytorchRouting leaves them as bytes,
    as does ``dataclasses.replace(train, scale=1.0)``.

    Args:
        folder: the unpacked archive in either form, ``cifar-100-python`` with ``train`` and ``test``, or
            ``cifar-100-binary`` with ``train.bin`` and ``test.bin``; or the folder around it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    found: list[str] = []
    for place in (Path(folder), Path(folder, "cifar-100-python"), Path(folder, "cifar-100-binary")):
        for suffix, read in ((".bin", _read_binary), ("", _read_pickle)):
            paths = [path for part in ("train", "test") if (path := place / f"{part}{suffix}").is_file()]
            if len(paths) == 2:
                train, test = (_twenty_tasks(path, *read(path)) for path in paths)
                return train, test
            found += map(str, paths)
    raise FileNotFoundError(
        f"cifar100: {folder} must hold train and test, of the CIFAR-100 python version (cifar-100-python.tar.gz, unpacked), "
        "or train.bin and test.bin, of the CIFAR-100 binary version (cifar-100-binary.tar.gz, unpacked), "
        f"got {'only ' + ', '.join(found) if found else 'none of them'}"
    )


def _twenty_tasks(path: Path, images: Tensor, coarse: Tensor, fine: Tensor) -> MultiTaskImages:
    """Of ``images [N, 3, 32, 32]`` and int64 labels ``[N]``, as the file has them."""
    if len(fine) and not 0 <= int(fine.min()) <= int(fine.max()) < len(TASK_OF_FINE):
        raise ValueError(f"cifar100: fine labels in {path} must be in [0, 100), got {int(fine.min())} to {int(fine.max())}")
    tasks = TASK_OF_FINE[fine]
    wrong = (tasks != coarse).nonzero().view(-1)
    if len(wrong):
        i = int(wrong[0])
        expected, got = f"{int(tasks[i])}, the superclass of fine label {int(fine[i])}", int(coarse[i])
        raise ValueError(f"cifar100: the coarse label of image {i} in {path} must be {expected}, got {got}")
    return MultiTaskImages(images, torch.arange(len(fine)), LABEL_OF_FINE[fine], tasks, 5, tuple(SUPERCLASSES))


def _read_binary(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """``(images, coarse, fine)``. An image is a coarse label, a fine label and 3072 pixels, a byte each."""
    data = bytearray(path.read_bytes())
    size = 2 + PIXELS
    if not data or len(data) % size:
        raise ValueError(f"cifar100: {path} must have {size} bytes an image, got {len(data)} bytes, which is no multiple")
    rows = torch.frombuffer(data, dtype=torch.uint8).view(-1, size)
    return rows[:, 2:].reshape(-1, *SHAPE), rows[:, 0].long(), rows[:, 1].long()


def _read_pickle(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """``(images, coarse, fine)``, of a dict with an array ``[N, 3072]`` and two lists."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        # Bytes as published; text where Python 3 has saved it again.
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, coarse, fine = (content[key] for key in ("data", "coarse_labels", "fine_labels"))
        images = torch.from_numpy(pixels).view(-1, *SHAPE)
        labels = torch.tensor([coarse, fine], dtype=torch.int64)
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"cifar100: {path} is damaged, or not of the CIFAR-100 python version: {reason}") from None
    if images.dtype != torch.uint8 or labels.shape != (2, len(images)):
        got = f"{images.dtype} {list(images.shape)} and labels {list(labels.shape)}"
        raise ValueError(f"cifar100: {path} must have uint8 images [N, 3, 32, 32] and 2 labels for each, got {got}")
    return images, labels[0], labels[1]


class _ArrayUnpickler(pickle.Unpickler):
    """Makes containers and numpy arrays only: a pickle could otherwise call any function."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy

        # Their modules have other names in numpy 2.
        reconstruct, from_buffer = (numpy.empty(0).__reduce_ex__(protocol)[0] for protocol in (2, 5))
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy.core.numeric", "_frombuffer"): from_buffer,
            ("numpy._core.numeric", "_frombuffer"): from_buffer,
            ("_codecs", "encode"): codecs.encode,  # of bytes, where Python 3 writes for Python 2
            ("numpy", "ndarray"): numpy.ndarray,
            ("numpy", "dtype"): numpy.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of this set does")
        return allowed[module, name]
