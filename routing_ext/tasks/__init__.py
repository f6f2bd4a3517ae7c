"""Tasks to train on: data, made ready in memory, and the networks published for them. Nothing is downloaded."""

from .associative_recall import AssociativeRecall, associative_recall_batch
from .bundled import digits, mnist5k
from .cifar100 import cifar100
from .copy import Copy, copy_batch
from .digit_batch import DigitBatch, decode_triples, encode_triples
from .graph_shortest_path import GraphShortestPath
from .graph_traversal import GraphTraversal
from .graphs import Graphs, GraphTask, question_batch, random_graphs
from .idx import fashion_mnist, mnist, read_idx
from .load_images import load_images
from .multi_task_images import Batch, MultiTaskImages, one_vs_rest, stratified_split
from .multitask_networks import MultiTaskNetwork
from .priority_sort import PrioritySort, priority_sort_batch
from .repeat_copy import RepeatCopy, repeat_copy_batch
from .sequence_batch import SequenceBatch
from .sequence_task import SequenceTask
from .sequence_tasks import SEQUENCE_TASKS
from .words import WordTask

__all__ = [
    "SEQUENCE_TASKS",
    "AssociativeRecall",
    "Batch",
    "Copy",
    "DigitBatch",
    "GraphShortestPath",
    "GraphTask",
    "GraphTraversal",
    "Graphs",
    "MultiTaskImages",
    "MultiTaskNetwork",
    "PrioritySort",
    "RepeatCopy",
    "SequenceBatch",
    "SequenceTask",
    "WordTask",
    "associative_recall_batch",
    "cifar100",
    "copy_batch",
    "decode_triples",
    "digits",
    "encode_triples",
    "fashion_mnist",
    "load_images",
    "mnist",
    "mnist5k",
    "one_vs_rest",
    "priority_sort_batch",
    "question_batch",
    "random_graphs",
    "read_idx",
    "repeat_copy_batch",
    "stratified_split",
]
