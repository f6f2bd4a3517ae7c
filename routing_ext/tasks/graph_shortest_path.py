"""Shortest paths: read a graph, and say the shortest path from one node to another."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from .digit_batch import BLANK, DigitBatch
from .graphs import Graphs, GraphTask, question_batch


@dataclasses.dataclass(frozen=True)
class GraphShortestPath(GraphTask):
    """The shortest path task of the DNC (Graves et al., 2016) as supervised learning, with the sizes of its last lesson.

    The query is one triple: the first node and the last, with the edge left open. After some steps for planning, the answer
    is the triples of the path; during the answer the triple of the step before is read. Steps of a sequence are described at
    :func:`question_batch`.

    In the publication, the triple that is read is the one that was gone, which is the network's own choice among the edges
    from its node or, with probability 0.8, that of a planner; the target is the first triple of a shortest path from there,
    and any shortest path solves the problem. Here the triple that is read is always the target's, the network may say any
    triple, and only nodes between which there is one shortest path and no other are asked for. So there is one right answer,
    and a network that is right at each step would be so when it reads its own triples.

    Attributes:
        min_nodes, max_nodes, min_degree, max_degree, min_path_length, max_path_length, threshold: see :class:`GraphTask`.
        planning_steps: between query and answer.
    """

    min_nodes: int = 20
    max_nodes: int = 25
    min_degree: int = 2
    max_degree: int = 6
    min_path_length: int = 2
    max_path_length: int = 5
    planning_steps: int = 10

    threshold: ClassVar[float] = 0.8
    # Extended Data Table 5: nodes, degrees, path lengths; least and most of each. Lessons 10 and 11 are printed alike.
    _CURRICULUM: ClassVar[tuple[tuple[int, ...], ...]] = (
        (5, 10, 1, 2, 2, 2),
        (5, 20, 1, 2, 2, 2),
        (10, 20, 1, 2, 2, 2),
        (10, 20, 1, 2, 2, 3),
        (10, 20, 1, 3, 2, 3),
        (10, 20, 2, 3, 2, 3),
        (10, 20, 2, 3, 2, 4),
        (10, 20, 2, 4, 2, 4),
        (10, 25, 2, 4, 2, 4),
        (10, 25, 2, 4, 2, 5),
        (10, 25, 2, 4, 2, 5),
        (15, 25, 2, 4, 2, 5),
        (15, 25, 2, 5, 2, 5),
        (20, 25, 2, 5, 2, 5),
        (20, 25, 2, 6, 2, 5),
    )
    _ATTEMPTS: ClassVar[int] = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_size("planning_steps", least=0)
        if self.max_nodes <= self.max_path_length:
            sizes = f"{self.max_nodes} nodes and a path of {self.max_path_length}"
            raise ValueError(f"GraphShortestPath: must hold max_nodes > max_path_length, got {sizes}")

    def batch(self, batch_size: int, generator: torch.Generator | None = None) -> DigitBatch:
        """Random sequences. Graphs without a path of the length that was drawn for them are drawn again.

        Args:
            batch_size: B.
            generator: on the CPU; by default, torch's.

        Raises:
            ValueError: `batch_size` is below 1, or next to no graph of these sizes has such a path.
        """
        self._check_batch_size(batch_size)
        lengths = self._draw("path_length", batch_size, generator)
        graphs, node, to_last = self._draw_questions(lengths, generator)
        rows, triples = torch.arange(batch_size), []
        for step in range(int(lengths.max())):
            left = (lengths - step).unsqueeze(1)
            is_nearer = to_last.gather(1, graphs.neighbours[rows, node]) == left - 1  # [B,K]
            node, triple = graphs.follow(node, (is_nearer & graphs.is_edge[rows, node]).int().argmax(1))
            triples.append(triple)
        path = torch.stack(triples, 1)
        query = path[rows, lengths - 1].unsqueeze(1)
        query[:, 0, 0], query[:, 0, 1] = path[:, 0, 0], BLANK
        return question_batch(
            graphs,
            query,
            torch.ones_like(lengths),
            path,
            lengths,
            planning_steps=self.planning_steps,
            teacher=True,
            generator=generator,
        )

    def _draw_questions(self, lengths: Tensor, generator: torch.Generator | None) -> tuple[Graphs, Tensor, Tensor]:
        """Graphs, the first node ``[B]`` of a shortest path of the given lengths ``[B]``, distances to its last ``[B,N]``."""
        drawn: list[Tensor] = []
        rows = torch.arange(len(lengths))
        for _ in range(self._ATTEMPTS):
            graphs = self._draw_graphs(len(rows), generator)
            first, to_last, found = _draw_ends(graphs, lengths[rows], generator)
            again = [*graphs, first, to_last]
            drawn = [old.index_copy(0, rows, new) for old, new in zip(drawn or again, again, strict=True)]
            rows = rows[~found]
            if not len(rows):
                *fields, first, to_last = drawn
                return Graphs(*fields), first, to_last
        raise ValueError(
            f"GraphShortestPath.batch: graphs with one shortest path of {int(lengths[rows[0]])} are too rare: "
            f"none in {self._ATTEMPTS} of {self.min_nodes} to {self.max_nodes} nodes"
        )


def _draw_ends(graphs: Graphs, lengths: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """A random pair of nodes ``lengths [B]`` apart, if there is one with a single shortest path.

    Returns:
        ``(first [B], to_last [B,N], found [B])``: the first node, the distance of each node to the last one, which is
        meaningless where it is longer than the longest path, and whether there is a pair.
    """
    adjacency = graphs.adjacency.float()
    batch, nodes, _ = adjacency.shape
    longest = int(lengths.max())
    walks = torch.eye(nodes, dtype=adjacency.dtype).expand_as(adjacency)  # how many of some length; 2 stands for more
    distance = torch.where(walks > 0, 0, longest + 1)
    is_single = torch.zeros_like(distance, dtype=torch.bool)
    for length in range(1, longest + 1):
        walks = (walks @ adjacency).clamp(max=2)
        is_new = (walks > 0) & (distance > longest)
        distance = distance.masked_fill(is_new, length)
        is_single |= is_new & (walks == 1)
    asked = (is_single & (distance == lengths.view(-1, 1, 1))).flatten(1)
    chosen = torch.rand(asked.shape, generator=generator).masked_fill(~asked, -1).max(1)
    to_last = distance[torch.arange(batch), :, chosen.indices % nodes]
    return chosen.indices // nodes, to_last, chosen.values >= 0
