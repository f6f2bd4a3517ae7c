"""Graph traversal: read a graph, and say which nodes a path leads through, of which the edges are given."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from .digit_batch import BLANK, DigitBatch
from .graphs import GraphTask, question_batch


@dataclasses.dataclass(frozen=True)
class GraphTraversal(GraphTask):
    """The traversal task of the DNC (Graves et al., 2016), with the sizes of its last lesson.

    The path is a random walk from a random node. The first triple of the query is the first node and its edge, with the next
    node left open; in each of the others only the edge is given. The answer is the complete triples. Steps of a sequence are
    described at :func:`question_batch`; nothing is read during the answer, and there is no planning.

    Attributes:
        min_nodes, max_nodes, min_degree, max_degree, min_path_length, max_path_length, threshold: see :class:`GraphTask`.
    """

    min_nodes: int = 10
    max_nodes: int = 40
    min_degree: int = 2
    max_degree: int = 6
    min_path_length: int = 1
    max_path_length: int = 20

    threshold: ClassVar[float] = 0.9
    # Extended Data Table 3: nodes, degrees, path lengths; least and most of each.
    _CURRICULUM: ClassVar[tuple[tuple[int, ...], ...]] = (
        (3, 10, 2, 4, 1, 1),
        (3, 10, 2, 4, 1, 2),
        (5, 10, 2, 4, 1, 3),
        (5, 10, 2, 4, 1, 4),
        (10, 15, 2, 4, 1, 4),
        (10, 15, 2, 4, 1, 5),
        (10, 20, 2, 4, 1, 5),
        (10, 20, 2, 4, 1, 6),
        (10, 30, 2, 4, 1, 6),
        (10, 30, 2, 4, 1, 7),
        (10, 30, 2, 4, 1, 8),
        (10, 30, 2, 4, 1, 9),
        (10, 40, 2, 6, 1, 10),
        (10, 40, 2, 6, 1, 20),
    )

    def batch(self, batch_size: int, generator: torch.Generator | None = None) -> DigitBatch:
        """Random sequences.

        Args:
            batch_size: B.
            generator: on the CPU; by default, torch's.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        self._check_batch_size(batch_size)
        graphs = self._draw_graphs(batch_size, generator)
        lengths = self._draw("path_length", batch_size, generator)
        choices = torch.rand(int(lengths.max()) + 1, batch_size, generator=generator, dtype=torch.float64)
        node, triples = (choices[0] * graphs.num_nodes).long(), []
        for choice in choices[1:]:
            degree = graphs.degrees.gather(1, node.unsqueeze(1)).squeeze(1)
            node, triple = graphs.follow(node, (choice * degree).long())
            triples.append(triple)
        path = torch.stack(triples, 1)
        query = path.clone()
        query[:, :, 2] = BLANK
        query[:, 1:, 0] = BLANK
        return question_batch(graphs, query, lengths, path, lengths, generator=generator)
