"""Copy and repeat-copy, against each sequence written out row by row from the specification of the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from routing_ext.tasks.copy import Copy, copy_batch
from routing_ext.tasks.repeat_copy import RepeatCopy, repeat_copy_batch
from routing_ext.tasks.sequence_batch import SequenceBatch

Rows = list[list[float]]


def copy_rows(words: Rows) -> tuple[Rows, Rows, Rows]:
    """Input, target and mask of one sequence, without the zeros after it."""
    n, nothing = len(words), [0.0] * len(words[0])
    return (
        [[*nothing, 1, 0], *([*word, 0, 0] for word in words), [*nothing, 0, 1], *[[*nothing, 0, 0]] * n],
        [*[nothing] * (n + 2), *words],
        [*[[0.0]] * (n + 2), *[[1.0]] * n],
    )


def repeat_copy_rows(words: Rows, repeats: int, norm: float) -> tuple[Rows, Rows, Rows]:
    n, nothing = len(words), [0.0] * len(words[0])
    answer = [[*word, 0] for word in words * repeats]
    return (
        [
            [*nothing, 1, 0],
            *([*word, 0, 0] for word in words),
            [*nothing, 0, repeats / norm],
            *[[*nothing, 0, 0]] * (n * repeats + 1),
        ],
        [*[[*nothing, 0]] * (n + 2), *answer, [*nothing, 1]],
        [*[[0.0]] * (n + 2), *[[1.0]] * (n * repeats + 1)],
    )


def stacked(samples: list[tuple[Rows, Rows, Rows]], steps: int) -> SequenceBatch:
    """Samples one beside the other, with zeros after those that end early."""
    fields = []
    for rows_of in zip(*samples, strict=True):
        field = torch.zeros(steps, len(samples), len(rows_of[0][0]))
        for b, rows in enumerate(rows_of):
            field[: len(rows), b] = torch.tensor(rows)
        fields.append(field)
    return SequenceBatch(*fields)


def assert_same(batch: SequenceBatch, expected: SequenceBatch) -> None:
    for name, value, wanted in zip(SequenceBatch._fields, batch, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("length", "most"), [(1, 1), (4, 2), (8, 10), (3, 7)])
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_copy_is_as_specified(length: int, most: int, batch: int) -> None:
    words = torch.randint(2, (most, batch, length)).float()
    num_words = torch.randint(1, most + 1, (batch,))
    samples = [copy_rows(words[: num_words[b], b].tolist()) for b in range(batch)]
    assert_same(copy_batch(words, num_words), stacked(samples, 2 * int(num_words.max()) + 2))


@pytest.mark.parametrize(
    ("length", "most", "most_repeats", "norm"), [(1, 1, 1, 10.0), (4, 2, 2, 10.0), (6, 5, 4, 1.0), (3, 7, 9, 3.0)]
)
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_repeat_copy_is_as_specified(length: int, most: int, most_repeats: int, norm: float, batch: int) -> None:
    words = torch.randint(2, (most, batch, length)).float()
    num_words, repeats = torch.randint(1, most + 1, (batch,)), torch.randint(1, most_repeats + 1, (batch,))
    samples = [repeat_copy_rows(words[: num_words[b], b].tolist(), int(repeats[b]), norm) for b in range(batch)]
    steps = int(num_words.max()) * (int(repeats.max()) + 1) + 3
    assert_same(repeat_copy_batch(words, num_words, repeats, norm), stacked(samples, steps))


def test_nothing_to_say_is_an_end_mark_alone() -> None:
    batch = repeat_copy_batch(torch.ones(2, 2, 3), torch.tensor([0, 2]), torch.tensor([1, 0]))
    assert batch.target[:, 0].nonzero().tolist() == [[2, 3]]
    assert batch.target[:, 1].nonzero().tolist() == [[4, 3]]
    assert batch.mask.sum() == 2


@pytest.mark.parametrize("task", [Copy(), RepeatCopy(), Copy(1, 1, 1), RepeatCopy(5, 2, 6, 3, 4, 1.0)])
def test_random_batches_have_the_asked_sizes(task: Copy | RepeatCopy) -> None:
    batch = task.batch(400)
    assert batch.input.shape == (len(batch.input), 400, task.input_dim)
    assert batch.target.shape == (len(batch.input), 400, task.output_dim)
    assert batch.mask.shape == (len(batch.input), 400, 1)
    assert all(t.dtype == torch.float32 for t in batch)
    is_mark = batch.input[..., task.len_word :] > 0
    num_words = is_mark[..., 1].float().argmax(0) - 1
    assert set(num_words.tolist()) == set(range(task.min_num_words, task.max_num_words + 1))
    is_word = ~is_mark.any(-1) & (torch.arange(len(batch.input))[:, None] <= num_words)
    assert batch.input[..., : task.len_word][is_word].mean() == pytest.approx(0.5, abs=0.1)
    if isinstance(task, RepeatCopy):
        repeats = (batch.input[..., -1].sum(0) * task.max_repeats_norm).round()
        assert set(repeats.tolist()) == set(range(task.min_repeats, task.max_repeats + 1))


@pytest.mark.parametrize("task", [Copy(), RepeatCopy()])
def test_a_generator_determines_the_batch(task: Copy | RepeatCopy) -> None:
    first, second = (task.batch(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert_same(first, second)
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(first, task.batch(5), strict=True))


def random_answer() -> tuple[SequenceBatch, Tensor]:
    batch = RepeatCopy(min_num_words=1, max_num_words=4).batch(6, torch.Generator().manual_seed(0)).to(torch.float64)
    return batch, torch.rand(batch.target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_losses_are_sums_over_what_counts() -> None:
    batch, output = random_answer()
    nats, wrong = 0.0, 0
    steps, sequences, bits = output.shape
    for t in range(steps):
        for b in range(sequences):
            for o in range(bits):
                if batch.mask[t, b, 0]:
                    p, is_one = float(output[t, b, o]), bool(batch.target[t, b, o])
                    nats -= math.log(p if is_one else 1 - p)
                    wrong += (p > 0.5) != is_one
    assert float(batch.loss(output)) == pytest.approx(nats / output.numel() / sequences, rel=1e-12)
    assert float(batch.bits_per_sequence(output)) == pytest.approx(nats / math.log(2) / sequences, rel=1e-12)
    assert int(batch.wrong_bits(output).sum()) == wrong > 0


def test_the_loss_is_that_of_the_reference() -> None:
    """Its call: the mean over all elements with the mask as weight, of sequences one after the other, over the batch."""
    batch, output = random_answer()
    flat = [t.transpose(0, 1).reshape(1, -1) for t in (output, batch.target, batch.mask.expand_as(output))]
    expected = torch.nn.functional.binary_cross_entropy(flat[0], flat[1], weight=flat[2]) / output.size(1)
    torch.testing.assert_close(batch.loss(output), expected)


def test_guessing_costs_a_bit_for_each_that_counts() -> None:
    batch, output = random_answer()
    guess = torch.full_like(output, 0.5)
    assert float(batch.bits_per_sequence(guess)) == pytest.approx(float(batch.mask.sum()) * output.size(2) / output.size(1))
    assert batch.bits_per_sequence(batch.target) == 0
    assert not batch.wrong_bits(batch.target).any()


def test_what_does_not_count_has_no_gradient() -> None:
    batch, output = random_answer()
    batch.loss(output.requires_grad_()).backward()
    assert output.grad is not None
    assert ((output.grad != 0) == (batch.mask > 0)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copy(len_word=0), "Copy: len_word must be at least 1, got 0"),
        (lambda: Copy(min_num_words=0), "Copy: must hold 1 <= min_num_words <= max_num_words, got 0 and 10"),
        (lambda: RepeatCopy(max_repeats=0), "RepeatCopy: must hold 1 <= min_repeats <= max_repeats, got 1 and 0"),
        (lambda: RepeatCopy().batch(0), r"RepeatCopy\.batch: batch_size must be at least 1, got 0"),
        (lambda: Copy().batch(2).loss(torch.zeros(1)), r"SequenceBatch: output must be \[\d+, 2, 8\], got \[1\]"),
    ],
)
def test_errors_name_argument_and_value(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
