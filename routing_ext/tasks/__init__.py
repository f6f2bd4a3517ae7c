"""Tasks to train on: data, made ready in memory, and the networks published for them. Nothing is downloaded."""

from .bundled import digits, mnist5k
from .cifar100 import cifar100
from .copy import Copy, copy_batch
from .idx import fashion_mnist, mnist, read_idx
from .load_images import load_images
from .multi_task_images import Batch, MultiTaskImages, one_vs_rest, stratified_split
from .multitask_networks import MultiTaskNetwork
from .repeat_copy import RepeatCopy, repeat_copy_batch
from .sequence_batch import SequenceBatch
from .words import WordTask

__all__ = [
    "Batch",
    "Copy",
    "MultiTaskImages",
    "MultiTaskNetwork",
    "RepeatCopy",
    "SequenceBatch",
    "WordTask",
    "cifar100",
    "copy_batch",
    "digits",
    "fashion_mnist",
    "load_images",
    "mnist",
    "mnist5k",
    "one_vs_rest",
    "read_idx",
    "repeat_copy_batch",
    "stratified_split",
]
