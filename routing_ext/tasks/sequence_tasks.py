"""The tasks of sequences by their names."""

from __future__ import annotations

from .associative_recall import AssociativeRecall
from .copy import Copy
from .graph_shortest_path import GraphShortestPath
from .graph_traversal import GraphTraversal
from .priority_sort import PrioritySort
from .repeat_copy import RepeatCopy
from .sequence_task import SequenceTask

SEQUENCE_TASKS: dict[str, type[SequenceTask]] = {
    "copy": Copy,
    "repeat-copy": RepeatCopy,
    "associative-recall": AssociativeRecall,
    "priority-sort": PrioritySort,
    "graph-traversal": GraphTraversal,
    "graph-shortest-path": GraphShortestPath,
}
"""The tasks of sequences, by the names that the command line gives them."""
