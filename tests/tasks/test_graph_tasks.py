"""Graph tasks: what random batches say, read back step by step, with paths found by an independent search."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import NamedTuple

import pytest
import torch

from routing_ext.tasks import (
    DigitBatch,
    Graphs,
    GraphShortestPath,
    GraphTask,
    GraphTraversal,
    decode_triples,
    encode_triples,
    question_batch,
    random_graphs,
)

Triple = tuple[int, int, int]
BLANK, END = -1, (0, 0, 0)
EMPTY = (BLANK, BLANK, BLANK)


class Read(NamedTuple):
    """One sequence: the triples read in each phase, and those to be answered, its end included."""

    description: list[Triple]
    query: list[Triple]
    planning: list[Triple]
    read: list[Triple]
    answer: list[Triple]


def read(batch: DigitBatch, b: int, planning: bool) -> Read:
    given = [tuple(t) for t in decode_triples(batch.input[:, b, :90]).tolist()]
    begins = batch.input[:, b, 90].nonzero().view(-1).tolist()
    steps = batch.mask[:, b, 0].nonzero().view(-1).tolist()
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    assert batch.input[:, b, 91].equal(batch.mask[:, b, 0])
    assert begins[-1] == steps[0]
    assert len(begins) == 2 + planning
    assert (batch.input[steps[-1] + 1 :, b] == 0).all()
    answer = [tuple(t) for t in decode_triples(batch.target[steps, b]).tolist()]
    query, *_ = begins
    return Read(
        given[:query],
        given[query : begins[1]],
        given[begins[1] : steps[0]] if planning else [],
        given[steps[0] : steps[-1] + 1],
        answer,
    )


def check_graph(triples: list[Triple], task: GraphTask) -> dict[int, dict[int, int]]:
    """The edges of each node, by label, of a graph that is as the task says."""
    edges: dict[int, dict[int, int]] = {}
    for source, edge, destination in triples:
        assert source != destination
        assert edge not in edges.setdefault(source, {}), "a node's edges have different labels"
        edges[source][edge] = destination
    assert all(0 <= label <= 999 for triple in triples for label in triple)
    nodes = {label for source, _, destination in triples for label in (source, destination)}
    assert nodes == set(edges), "an edge leads from every node"
    assert task.min_nodes <= len(nodes) <= task.max_nodes
    for leads_to in edges.values():
        assert len(set(leads_to.values())) == len(leads_to), "they lead to different nodes"
        others = len(nodes) - 1
        assert min(task.min_degree, others) <= len(leads_to) <= min(task.max_degree, others)
    assert len({edge for leads_to in edges.values() for edge in leads_to}) <= len(nodes)
    return edges


def shortest_paths(edges: dict[int, dict[int, int]], first: int, last: int) -> list[list[Triple]]:
    """All of them, breadth first."""
    found: list[list[Triple]] = []
    paths: deque[tuple[int, list[Triple]]] = deque([(first, [])])
    while paths:
        node, path = paths.popleft()
        if found and len(path) >= len(found[0]):
            break
        for edge, after in edges[node].items():
            longer = [*path, (node, edge, after)]
            if after == last:
                found.append(longer)
            elif len(longer) < len(edges):
                paths.append((after, longer))
    shortest = min(map(len, found))
    return [path for path in found if len(path) == shortest]


@pytest.mark.parametrize(
    "task", [GraphTraversal(3, 10, 2, 4, 1, 4), GraphTraversal(2, 2, 1, 3, 5, 5), GraphTraversal(max_nodes=15)]
)
@pytest.mark.parametrize("batch_size", [1, 30])
def test_traversal_follows_the_edges_of_the_query(task: GraphTraversal, batch_size: int) -> None:
    batch = task.batch(batch_size, torch.Generator().manual_seed(0))
    assert len(batch.input) == int(batch.mask.view(-1, batch_size).nonzero()[:, 0].max()) + 1
    for b in range(batch_size):
        description, query, _, given, answer = read(batch, b, planning=False)
        edges = check_graph(description, task)
        assert set(given) == {EMPTY}
        *path, end = answer
        assert end == END
        assert task.min_path_length <= len(path) == len(query) <= task.max_path_length
        (node, edge, open_end), *others = query
        assert open_end == BLANK
        assert all(source == destination == BLANK for source, _, destination in others)
        followed = []
        for label in [edge, *(label for _, label, _ in others)]:
            followed.append((node, label, edges[node][label]))
            node = edges[node][label]
        assert path == followed


@pytest.mark.parametrize(
    "task",
    [
        GraphShortestPath(5, 10, 1, 2, 2, 2),
        GraphShortestPath(10, 20, 2, 4, 1, 4, planning_steps=0),
        GraphShortestPath(20, 25, 2, 6, 2, 5),
        GraphShortestPath(3, 3, 1, 1, 2, 2, planning_steps=1),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 30])
def test_the_answer_is_the_one_shortest_path(task: GraphShortestPath, batch_size: int) -> None:
    batch = task.batch(batch_size, torch.Generator().manual_seed(0))
    lengths = set()
    for b in range(batch_size):
        description, query, planning, given, answer = read(batch, b, planning=task.planning_steps > 0)
        edges = check_graph(description, task)
        ((first, edge, last),) = query
        assert edge == BLANK
        assert planning == [EMPTY] * task.planning_steps
        assert given == [EMPTY, *answer[:-1]], "what is read is the answer of the step before"
        *path, end = answer
        assert end == END
        assert shortest_paths(edges, first, last) == [path]
        assert task.min_path_length <= len(path) <= task.max_path_length
        lengths.add(len(path))
    assert batch_size == 1 or lengths == set(range(task.min_path_length, task.max_path_length + 1))


def test_lengths_are_equally_likely() -> None:
    """Also where graphs that have no path of the drawn length are drawn again."""
    batch = GraphShortestPath(5, 20, 1, 3, 1, 4).batch(800, torch.Generator().manual_seed(0))
    counts = Counter((batch.mask.sum(0).view(-1).int() - 1).tolist())
    assert sorted(counts) == [1, 2, 3, 4]
    assert all(150 <= count <= 250 for count in counts.values())


def test_triples_and_walks_are_in_random_order() -> None:
    """In graphs of three nodes with all six edges. Who always took the nearest node would soon go to and fro."""
    batch = GraphTraversal(3, 3, 2, 2, 5, 5).batch(600, torch.Generator().manual_seed(0))
    places, visited, grouped = Counter[int](), Counter[int](), 0
    for b in range(600):
        description, _, _, _, answer = read(batch, b, planning=False)
        assert len(description) == 6
        places[description.index(answer[0])] += 1
        sources = [source for source, _, _ in description]
        grouped += sources[::2] == sources[1::2]
        visited[len({node for _, _, node in answer[1:-1]})] += 1
    assert set(places) == set(range(6))
    assert all(70 < count < 130 for count in places.values())
    assert grouped < 80, "40 are expected"
    assert visited[3] > 300


def test_edges_lead_to_the_nearest_points() -> None:
    """The points are the second numbers that are drawn."""
    num_nodes = torch.tensor([3, 2, 30])
    graphs = random_graphs(num_nodes, 30, 1, 4, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    torch.rand(3, 30, generator=generator)
    points = torch.rand(3, 30, 2, generator=generator).tolist()
    for b, n in enumerate(num_nodes.tolist()):
        assert graphs.degrees[b, n:].tolist() == [0] * (30 - n)
        for i in range(n):
            others = sorted((j for j in range(n) if j != i), key=lambda j: math.dist(points[b][i], points[b][j]))
            degree = int(graphs.degrees[b, i])
            assert degree >= 1
            assert graphs.neighbours[b, i, :degree].tolist() == others[:degree]
            assert graphs.adjacency[b, i].nonzero().view(-1).tolist() == sorted(others[:degree])
    assert set(graphs.degrees[2].tolist()) == {1, 2, 3, 4}


def test_degrees_and_labels_are_equally_likely() -> None:
    graphs = random_graphs(torch.full((400,), 20), 20, 2, 5, torch.Generator().manual_seed(0))
    counts = graphs.degrees.flatten().bincount(minlength=6).tolist()
    assert counts[:2] == [0, 0]
    assert all(1800 < count < 2200 for count in counts[2:])
    for labels in (graphs.node_labels, graphs.edge_labels[graphs.is_edge]):
        assert labels.double().mean() == pytest.approx(499.5, abs=15)
        assert labels.min() >= 0
        assert labels.max() <= 999
    assert all(len(set(labels)) == 20 for labels in graphs.node_labels.tolist())
    shared = (graphs.edge_labels[:, 0, :1] == graphs.node_labels).any(1)
    assert shared.sum() < 30, "labels of edges have nothing to do with those of nodes"


def test_a_question_by_hand() -> None:
    """A line of three nodes, 7 - 250 - 999, with edges 1 and 2 to the right, 3 and 4 to the left."""
    graphs = Graphs(
        num_nodes=torch.tensor([3]),
        degrees=torch.tensor([[1, 2, 1]]),
        neighbours=torch.tensor([[[1, 0], [2, 0], [1, 0]]]),
        node_labels=torch.tensor([[7, 250, 999]]),
        edge_labels=torch.tensor([[[1, 8], [2, 3], [4, 8]]]),
    )
    assert graphs.adjacency[0].tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    path = torch.tensor([[[7, 1, 250], [250, 2, 999]]])
    batch = question_batch(
        graphs,
        torch.tensor([[[7, BLANK, 999]]]),
        torch.tensor([1]),
        path,
        torch.tensor([2]),
        planning_steps=2,
        teacher=True,
    )
    assert batch.input.shape == (10, 1, 92)
    given = decode_triples(batch.input[:, 0, :90]).tolist()
    assert sorted(given[:4]) == [[7, 1, 250], [250, 2, 999], [250, 3, 7], [999, 4, 250]]
    assert given[4:] == [[7, BLANK, 999], [*EMPTY], [*EMPTY], [*EMPTY], [7, 1, 250], [250, 2, 999]]
    assert batch.input[:, 0, 90].tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 0, 0]
    assert batch.input[:, 0, 91].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert batch.target[7:, 0].equal(encode_triples(torch.tensor([*path[0].tolist(), [0, 0, 0]])))
    assert (batch.target[:7] == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GraphTraversal(min_nodes=1), "GraphTraversal: must hold 2 <= min_nodes <= max_nodes, got 1 and 40"),
        (lambda: GraphTraversal(min_degree=0), "must hold 1 <= min_degree <= max_degree, got 0 and 6"),
        (lambda: GraphTraversal(max_path_length=0), "must hold 1 <= min_path_length <= max_path_length, got 1 and 0"),
        (lambda: GraphTraversal(max_nodes=1001), "GraphTraversal: max_nodes must be at most 1000, got 1001"),
        (lambda: GraphShortestPath(planning_steps=-1), "GraphShortestPath: planning_steps must be at least 0, got -1"),
        (lambda: GraphShortestPath(2, 5), "must hold max_nodes > max_path_length, got 5 nodes and a path of 5"),
        (lambda: GraphShortestPath(3, 3, 2, 2, 2, 2).batch(2), "with one shortest path of 2 are too rare: none in"),
    ],
)
def test_errors_name_argument_and_value(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
