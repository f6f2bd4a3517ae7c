"""Associative recall and priority sort, against sequences written out by hand, and read back from random batches."""

from __future__ import annotations

import pytest
import torch

from routing_ext.tasks import AssociativeRecall, PrioritySort, associative_recall_batch, priority_sort_batch


def test_associative_recall_by_hand() -> None:
    """Two items of two words of two bits; and three, of which the second is asked for."""
    items = torch.tensor(
        [
            [[[1, 0], [0, 1]], [[1, 1], [0, 1]]],
            [[[0, 1], [1, 0]], [[0, 0], [1, 1]]],
            [[[1, 1], [0, 0]], [[1, 1], [1, 0]]],
        ]
    ).float()
    batch = associative_recall_batch(items, torch.tensor([2, 3]), torch.tensor([0, 1]))
    short = [
        *([0, 0, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]),  # items: a mark, two words
        *([0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]),
        *([0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]),  # the first once more
        *([[0, 0, 0, 0]] * 5),
    ]
    long = [
        *([0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]),
        *([0, 0, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]),
        *([0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]),
        *([0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]),
        *([[0, 0, 0, 0]] * 2),
    ]
    assert batch.input.tolist() == torch.tensor([short, long]).float().transpose(0, 1).tolist()
    assert batch.mask[..., 0].nonzero().tolist() == [[10, 0], [11, 0], [13, 1], [14, 1]]
    assert batch.target[10:12, 0].tolist() == items[1, :, 0].tolist()
    assert batch.target[13:15, 1].tolist() == items[2, :, 1].tolist()


@pytest.mark.parametrize("task", [AssociativeRecall(), AssociativeRecall(9, 1, 2, 9), AssociativeRecall(8, 5, 3, 3)])
def test_recalled_is_the_item_after_the_one_asked_for(task: AssociativeRecall) -> None:
    batch, size = task.batch(300, torch.Generator().manual_seed(0)), task.words_per_item
    numbers, places = set(), set()
    for b in range(300):
        rows = batch.input[:, b].long().tolist()
        marks = [t for t, row in enumerate(rows) if row[-2]]
        begin, end = (t for t, row in enumerate(rows) if row[-1])
        items = [rows[t + 1 : t + 1 + size] for t in marks]
        asked = rows[begin + 1 : end]
        assert len(asked) == size
        assert end - begin == size + 1
        answer = batch.target[end + 1 : end + 1 + size, b].long().tolist()
        followers = [after for item, after in zip(items, items[1:], strict=False) if item == asked]
        assert answer in [[row[:-2] for row in item] for item in followers]
        assert batch.mask[:, b, 0].nonzero().view(-1).tolist() == list(range(end + 1, end + 1 + size))
        numbers.add(len(items))
        places.add((len(items), items.index(asked)))
    assert numbers == set(range(task.min_num_items, task.max_num_items + 1))
    assert {(n, n - 2) for n in numbers} | {(n, 0) for n in numbers} <= places


def test_priority_sort_by_hand() -> None:
    words = torch.tensor([[[1, 0]], [[0, 1]], [[1, 1]], [[0, 0]]]).float()
    batch = priority_sort_batch(words, torch.tensor([[0.1], [0.9], [-0.5], [0.1]]), 3)
    assert batch.input[:, 0].tolist() == [
        *([1, 0, pytest.approx(0.1), 0], [0, 1, pytest.approx(0.9), 0]),
        *([1, 1, -0.5, 0], [0, 0, pytest.approx(0.1), 0], [0, 0, 0, 1]),
        *([[0, 0, 0, 0]] * 3),
    ]
    assert batch.target[:, 0].tolist() == [*([[0, 0]] * 5), [0, 1], [1, 0], [0, 0]]
    assert batch.mask.view(-1).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_equal_priorities_keep_their_order() -> None:
    words = torch.arange(200.0).view(200, 1, 1)
    batch = priority_sort_batch(words, torch.tensor([0.5, -0.5]).repeat(100).unsqueeze(1), 200)
    assert batch.target[201:].flatten().tolist() == [*range(0, 200, 2), *range(1, 200, 2)]


@pytest.mark.parametrize("task", [PrioritySort(), PrioritySort(3, 1, 1), PrioritySort(5, 7, 7)])
def test_sorted_are_the_words_of_the_highest_priorities(task: PrioritySort) -> None:
    batch = task.batch(50, torch.Generator().manual_seed(0))
    n, length = task.num_words, task.len_word
    assert len(batch.input) == n + 1 + task.num_sorted
    assert batch.input[:n, :, length].abs().max() <= 1
    for b in range(50):
        shown = [(row[length], row[:length]) for row in batch.input[:n, b].tolist()]
        best = [word for _, word in sorted(shown, key=lambda pair: -pair[0])][: task.num_sorted]
        assert batch.target[n + 1 :, b].tolist() == best
    assert batch.input[n].nonzero()[:, 1].unique().tolist() == [length + 1]
    assert batch.mask[:, :, 0].sum(0).tolist() == [task.num_sorted] * 50


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AssociativeRecall(len_word=0), "AssociativeRecall: len_word must be at least 1, got 0"),
        (lambda: AssociativeRecall(words_per_item=0), "AssociativeRecall: words_per_item must be at least 1, got 0"),
        (lambda: AssociativeRecall(min_num_items=1), "must hold 2 <= min_num_items <= max_num_items, got 1 and 6"),
        (lambda: AssociativeRecall(max_num_items=1), "must hold 2 <= min_num_items <= max_num_items, got 2 and 1"),
        (lambda: PrioritySort(len_word=0), "PrioritySort: len_word must be at least 1, got 0"),
        (lambda: PrioritySort(num_words=15), "PrioritySort: must hold 1 <= num_sorted <= num_words, got 16 and 15"),
        (lambda: PrioritySort(num_sorted=0), "PrioritySort: must hold 1 <= num_sorted <= num_words, got 0 and 20"),
    ],
)
def test_errors_name_argument_and_value(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
