"""Random graphs, and questions about them, as Graves et al. (2016, Methods) put them to networks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from .digit_batch import BLANK, NUM_LABELS, TRIPLE_DIM, DigitBatch, encode_triples
from .sequence_task import SequenceTask

GraphTaskType = TypeVar("GraphTaskType", bound="GraphTask")

END = (0, 0, 0)  # no graph has this triple: no edge leads back to its own node


class Graphs(NamedTuple):
    """B directed graphs of up to N nodes, with up to K edges from each. What is beyond a graph's own sizes has no meaning.

    Attributes:
        num_nodes: int64 ``[B]``.
        degrees: int64 ``[B,N]``, edges from each node; 0 beyond `num_nodes`.
        neighbours: int64 ``[B,N,K]``, the node that each edge leads to.
        node_labels: int64 ``[B,N]``, from 0 to 999, each once in a graph.
        edge_labels: int64 ``[B,N,K]``, from 0 to 999, each once at a node.
    """

    num_nodes: Tensor
    degrees: Tensor
    neighbours: Tensor
    node_labels: Tensor
    edge_labels: Tensor

    @property
    def is_edge(self) -> Tensor:
        """Bool ``[B,N,K]``: which edges there are."""
        return torch.arange(self.neighbours.size(2)) < self.degrees.unsqueeze(2)

    @property
    def adjacency(self) -> Tensor:
        """Bool ``[B,N,N]``: ``[b,i,j]``, whether an edge leads from i to j."""
        batch, nodes, _ = self.neighbours.shape
        found = torch.zeros(batch, nodes, nodes, dtype=torch.int64)
        return found.scatter_add_(2, self.neighbours, self.is_edge.long()) > 0

    def triples(self) -> Tensor:
        """Int64 ``[B,N,K,3]``: label of the node, of the edge, and of the node that it leads to."""
        sources = self.node_labels.unsqueeze(2).expand_as(self.neighbours)
        destinations = self.node_labels.gather(1, self.neighbours.flatten(1)).view_as(self.neighbours)
        return torch.stack([sources, self.edge_labels, destinations], -1)

    def follow(self, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Where edges lead to.

        Args:
            nodes: int64 ``[B]``.
            edges: int64 ``[B]``, which of each node's edges.

        Returns:
            ``(next nodes [B], triples [B,3])``.
        """
        rows = torch.arange(len(nodes))
        after = self.neighbours[rows, nodes, edges]
        labels = self.node_labels[rows, nodes], self.edge_labels[rows, nodes, edges], self.node_labels[rows, after]
        return after, torch.stack(labels, -1)


def random_graphs(
    num_nodes: Tensor, most: int, min_degree: int, max_degree: int, generator: torch.Generator | None = None
) -> Graphs:
    """Graphs of nearest neighbours, as published.

    The nodes are points, uniform in a square. Edges lead from a node to its k nearest ones, k being equally likely from
    `min_degree` to `max_degree`, but as many as there are at most. The labels of n nodes are n numbers out of 0 to 999, each
    once; those of a node's edges are k out of another n numbers.

    Args:
        num_nodes: int64 ``[B]``, each n, from 2 to `most`.
        most: N, up to 1000.
        min_degree: from 1.
        max_degree: from `min_degree`.
        generator: of all random numbers, on the CPU; by default, torch's.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(num_nodes), *shape, generator=generator)

    is_node = torch.arange(most) < num_nodes.unsqueeze(1)  # [B,N]
    others = (num_nodes - 1).unsqueeze(1)
    low, high = others.clamp(max=min_degree), others.clamp(max=max_degree)
    degrees = (low + (uniform(most) * (high - low + 1)).long()).clamp(max=high) * is_node

    points = uniform(most, 2)
    distances = (points.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1)
    distances = distances.masked_fill(~is_node.unsqueeze(1) | torch.eye(most, dtype=torch.bool), torch.inf)
    most_edges = min(max_degree, most - 1)
    neighbours = distances.topk(most_edges, largest=False).indices  # [B,N,K], the nearest first

    node_labels = uniform(NUM_LABELS).topk(most).indices  # random numbers, in random order
    pool = uniform(NUM_LABELS).topk(most).indices
    chosen = uniform(most, most).masked_fill(~is_node.unsqueeze(1), -1).topk(most_edges).indices  # [B,N,K]
    edge_labels = pool.gather(1, chosen.flatten(1)).view_as(chosen)
    return Graphs(num_nodes, degrees, neighbours, node_labels, edge_labels)


def question_batch(
    graphs: Graphs,
    query: Tensor,
    num_queries: Tensor,
    path: Tensor,
    num_steps: Tensor,
    *,
    planning_steps: int = 0,
    teacher: bool = False,
    generator: torch.Generator | None = None,
) -> DigitBatch:
    """The sequences of given questions, a triple a step. See :func:`encode_triples` for the elements 0 to 89 of the input.

    - Description: the triples of the graph, in random order.
    - Query: Q triples, in which labels may be left open.
    - Planning: `planning_steps` steps without a triple.
    - Answer: P + 1 steps, at which the mask is 1. The target is the P triples of the path, and 000 000 000 for its end. In
      the input there are no triples, or with a `teacher` those of the step before, from the second step on.

    Input element 90 is 1 at the first step of the query, of the planning and of the answer, element 91 during the answer.
    After that there are zeros up to the longest sequence of the batch.

    Args:
        graphs: B of them.
        query: int64 ``[B,Qmax,3]``, labels, -1 for one left open; a sequence has the first Q.
        num_queries: int64 ``[B]``, each Q, from 1.
        path: int64 ``[B,Pmax,3]``, labels, of which a sequence has the first P.
        num_steps: int64 ``[B]``, each P, from 1.
        planning_steps: from 0.
        teacher: see above.
        generator: of the order of the triples, on the CPU; by default, torch's.

    Returns:
        A batch with I = 92 and O = 90.
    """
    description, num_edges = _shuffled(graphs, generator)
    end_of_path = path.new_tensor(END).expand(len(path), 1, 3)
    answer = torch.where(
        (torch.arange(path.size(1) + 1) < num_steps.unsqueeze(1)).unsqueeze(2), torch.cat([path, end_of_path], 1), 0
    )

    begin_query = num_edges
    begin_planning = begin_query + num_queries
    begin_answer = begin_planning + planning_steps
    end = begin_answer + num_steps + 1
    step = torch.arange(int(end.max())).unsqueeze(1)  # [T,1]
    is_answer = (step >= begin_answer) & (step < end)

    given = torch.full((*is_answer.shape, 3), BLANK)
    for table, begin, stop in (
        (description, 0 * begin_query, begin_query),
        (query, begin_query, begin_planning),
        *([(answer, begin_answer + 1, end)] if teacher else []),
    ):
        given = _put(given, table, step, begin, stop)
    wanted = _put(torch.full_like(given, BLANK), answer, step, begin_answer, end)
    is_begin = (step == begin_query) | (step == begin_answer) | ((step == begin_planning) & (planning_steps > 0))

    triples, target = encode_triples(given), encode_triples(wanted)
    flags = torch.stack([is_begin, is_answer], -1).to(triples.dtype)
    return DigitBatch(torch.cat([triples, flags], -1), target, flags[..., 1:].contiguous())


def _shuffled(graphs: Graphs, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """``(triples [B,Emax,3], number [B])``: those of each graph in random order, and arbitrary ones after them."""
    is_edge = graphs.is_edge.flatten(1)
    keys = torch.rand(is_edge.shape, generator=generator).masked_fill(~is_edge, -1)
    num_edges = is_edge.sum(1)
    order = keys.topk(int(num_edges.max())).indices
    return graphs.triples().flatten(1, 2).gather(1, order.unsqueeze(2).expand(-1, -1, 3)), num_edges


def _put(labels: Tensor, table: Tensor, step: Tensor, begin: Tensor, stop: Tensor) -> Tensor:
    """``labels [T,B,3]``, with the rows of ``table [B,S,3]`` at the steps from ``begin [B]`` to before ``stop [B]``."""
    index = (step - begin).clamp(0, table.size(1) - 1)  # [T,B]
    rows = table.transpose(0, 1).gather(0, index.unsqueeze(2).expand(-1, -1, 3))
    return torch.where(((step >= begin) & (step < stop)).unsqueeze(2), rows, labels)


@dataclasses.dataclass(frozen=True)
class GraphTask(SequenceTask):
    """Questions about random graphs; :func:`random_graphs` says which graphs, :func:`question_batch` in which form.

    Attributes:
        min_nodes, max_nodes: of a graph, equally likely from the one to the other.
        min_degree, max_degree: edges from a node, likewise, but not more than there are other nodes.
        min_path_length, max_path_length: P, triples of an answer, likewise.
        threshold: the share of answers without an error at which a lesson counts as learned.

    Raises:
        ValueError: a number out of range, or a maximum below its minimum.
    """

    min_nodes: int
    max_nodes: int
    min_degree: int
    max_degree: int
    min_path_length: int
    max_path_length: int

    threshold: ClassVar[float]
    _CURRICULUM: ClassVar[tuple[tuple[int, ...], ...]]

    def __post_init__(self) -> None:
        self._check_range("nodes", least=2)
        self._check_range("degree")
        self._check_range("path_length")
        if self.max_nodes > NUM_LABELS:
            raise ValueError(f"{type(self).__name__}: max_nodes must be at most {NUM_LABELS}, got {self.max_nodes}")

    @property
    def input_dim(self) -> int:
        """I: nine digits, and the two marks of the phases."""
        return TRIPLE_DIM + 2

    @property
    def output_dim(self) -> int:
        """O: nine digits."""
        return TRIPLE_DIM

    @property
    def lessons(self: GraphTaskType) -> tuple[GraphTaskType, ...]:
        """The way to this task: the published lessons that exceed none of its maxima, in their order, and then itself."""
        names = [field.name for field in dataclasses.fields(GraphTask)]
        lessons = [dataclasses.replace(self, **dict(zip(names, sizes, strict=True))) for sizes in self._CURRICULUM]
        maxima = [name for name in names if name.startswith("max")]
        easier = [t for t in lessons if t != self and all(getattr(t, name) <= getattr(self, name) for name in maxima)]
        return (*easier, self)

    def harder(self: GraphTaskType) -> dict[str, GraphTaskType]:
        """Up to twice as many nodes, but no more than there are labels, and longer paths in the largest graphs."""
        length = self.max_path_length
        *more, most = (min(halves * self.max_nodes // 2, NUM_LABELS) for halves in (2, 3, 4))
        sizes = [*((nodes, length) for nodes in more), (most, length), (most, length + (length + 1) // 2)]
        return {
            f"{n} nodes, path of {p}": dataclasses.replace(
                self, min_nodes=n, max_nodes=n, min_path_length=p, max_path_length=p
            )
            for n, p in sizes
        }

    def _draw_graphs(self, batch_size: int, generator: torch.Generator | None) -> Graphs:
        num_nodes = self._draw("nodes", batch_size, generator)
        return random_graphs(num_nodes, self.max_nodes, self.min_degree, self.max_degree, generator)
