"""What holds of every task of sequences."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from routing_ext.tasks import SEQUENCE_TASKS, GraphTask, SequenceTask

TASKS = [task() for task in SEQUENCE_TASKS.values()]
LESSONS = [lesson for task in TASKS if isinstance(task, GraphTask) for lesson in task.lessons]


def name_of(task: SequenceTask) -> str:
    return type(task).__name__


@pytest.mark.parametrize("task", TASKS, ids=name_of)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_have_the_asked_sizes(task: SequenceTask, batch_size: int) -> None:
    batch = task.batch(batch_size, torch.Generator().manual_seed(batch_size))
    steps = len(batch.input)
    assert batch.input.shape == (steps, batch_size, task.input_dim)
    assert batch.target.shape == (steps, batch_size, task.output_dim)
    assert batch.mask.shape == (steps, batch_size, 1)
    assert all(t.dtype == torch.float32 for t in batch)
    assert ((batch.mask == 0) | (batch.mask == 1)).all()
    assert (batch.mask.sum(0) > 0).all()
    assert (batch.target[(batch.mask == 0).expand_as(batch.target)] == 0).all()
    assert (batch.input[-1] != 0).any() | (batch.mask[-1] != 0).any(), "no step is superfluous"


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_a_generator_determines_the_batch(task: SequenceTask) -> None:
    first, second = (task.batch(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    torch.manual_seed(3)
    assert all(a.equal(b) for a, b in zip(first, task.batch(5), strict=True))
    assert not all(a.equal(b) for a, b in zip(first, task.batch(5), strict=True))


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_the_default_dtype_is_that_of_the_batch(task: SequenceTask) -> None:
    single = task.batch(3, torch.Generator().manual_seed(0)).to(torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        double = task.batch(3, torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert type(double) is type(single)
    assert all(t.dtype == torch.float64 for t in double)
    assert double.target.shape[2] == single.target.shape[2]


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_right_answers_cost_nothing_and_guesses_are_wrong(task: SequenceTask) -> None:
    batch = task.batch(5, torch.Generator().manual_seed(0))
    assert batch.bits_per_sequence(batch.target) == pytest.approx(0, abs=1e-6)
    assert batch.loss(batch.target) == pytest.approx(0, abs=1e-6)
    assert batch.solved(batch.target).tolist() == [True] * 5
    spoiled = batch.target.clone()
    step = int(batch.mask[:, 2, 0].argmax())
    spoiled[step, 2] = 1 - spoiled[step, 2]
    assert batch.solved(spoiled).tolist() == [True, True, False, True, True]
    assert 0 < int(batch.wrong_bits(spoiled).sum()) <= int(batch.num_counted)
    assert batch.wrong_bits(spoiled).shape == batch.target.shape


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_harder_problems_are_larger_ones_for_the_same_network(task: SequenceTask) -> None:
    harder = task.harder()
    steps = []
    for problem in harder.values():
        assert type(problem) is type(task)
        assert (problem.input_dim, problem.output_dim) == (task.input_dim, task.output_dim)
        steps.append(len(problem.batch(4, torch.Generator().manual_seed(0)).input))
    assert len(harder) >= 3
    assert steps[0] == min(steps) < max(steps)
    assert len(task.batch(4, torch.Generator().manual_seed(0)).input) <= max(steps)


@pytest.mark.parametrize("task", LESSONS, ids=str)
def test_lessons_lead_to_their_task(task: GraphTask) -> None:
    *easier, last = task.lessons
    assert last == task
    for lesson in easier:
        assert lesson != task
        assert all(getattr(lesson, f"max_{name}") <= getattr(task, f"max_{name}") for name in ("nodes", "degree"))
        assert lesson.max_path_length <= task.max_path_length
    assert 0 < task.threshold < 1
    assert task.harder()


def test_the_published_curricula_are_whole() -> None:
    traversal, shortest = (SEQUENCE_TASKS[f"graph-{name}"]().lessons for name in ("traversal", "shortest-path"))
    assert len(traversal) == 14
    assert len(shortest) == 15
    assert dataclasses.astuple(traversal[0]) == (3, 10, 2, 4, 1, 1)
    assert dataclasses.astuple(shortest[0]) == (5, 10, 1, 2, 2, 2, 10)


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_a_batch_has_a_sequence(task: SequenceTask) -> None:
    with pytest.raises(ValueError, match=rf"{name_of(task)}\.batch: batch_size must be at least 1, got 0"):
        task.batch(0)
