"""Digits: how labels are written, and what answers cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from routing_ext.tasks import DigitBatch, decode_triples, encode_triples


def test_triples_are_nine_digits() -> None:
    labels = torch.tensor([[7, 250, 999], [0, -1, 40]])
    encoded = encode_triples(labels)
    assert encoded.shape == (2, 90)
    ones = [place % 10 for place in encoded[0].nonzero().view(-1).tolist()]
    assert ones == [0, 0, 7, 2, 5, 0, 9, 9, 9]
    assert (encoded[1, 30:60] == 0).all()
    assert decode_triples(encoded).equal(labels)
    assert encode_triples(labels, torch.float64).dtype == torch.float64


def test_every_label_has_its_own_vector() -> None:
    labels = torch.arange(1000)
    triples = torch.stack([labels, labels.flip(0), labels.roll(1)], 1)
    encoded = encode_triples(triples)
    assert decode_triples(encoded).equal(triples)
    assert (encoded.view(-1, 9, 10).sum(-1) == 1).all()


def questions(dtype: torch.dtype = torch.float64) -> tuple[DigitBatch, Tensor]:
    """Three steps of two sequences, of which two and one count; and logits."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1000, (3, 2, 3), generator=generator)
    mask = torch.tensor([[0, 0], [1, 0], [1, 1]]).unsqueeze(-1).to(dtype)
    batch = DigitBatch(torch.zeros(3, 2, 5, dtype=dtype), encode_triples(labels, dtype), mask)
    return batch, 3 * torch.randn(3, 2, 90, dtype=dtype, generator=generator)


def test_losses_are_those_of_nine_softmaxes() -> None:
    batch, logits = questions()
    nats, wrong, unsolved = 0.0, 0, set()
    for t, b, _ in batch.mask.nonzero().tolist():
        for d in range(9):
            digit = logits[t, b, 10 * d : 10 * d + 10].tolist()
            right = int(batch.target[t, b, 10 * d : 10 * d + 10].argmax())
            nats -= math.log(math.exp(digit[right]) / sum(map(math.exp, digit)))
            if max(digit) > digit[right]:
                wrong += 1
                unsolved.add(b)
                assert batch.wrong_bits(logits.sigmoid())[t, b, 10 * d + right]
    output = logits.sigmoid()
    assert float(batch.loss(output)) == pytest.approx(nats / 2, rel=1e-12)
    assert float(batch.bits_per_sequence(output)) == pytest.approx(nats / 2 / math.log(2), rel=1e-12)
    assert int(batch.wrong_bits(output).sum()) == wrong > 0
    assert batch.solved(output).tolist() == [b not in unsolved for b in range(2)]
    assert batch.num_counted == 27


def test_gradients_are_those_of_nine_softmaxes() -> None:
    batch, logits = questions()
    logits.requires_grad_()
    batch.loss(logits.sigmoid()).backward()
    probabilities = logits.detach().view(3, 2, 9, 10).softmax(-1)
    expected = (probabilities - batch.target.view(3, 2, 9, 10)) * batch.mask.unsqueeze(-1) / 2
    torch.testing.assert_close(logits.grad, expected.flatten(-2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sure_answers_stay_finite(dtype: torch.dtype) -> None:
    batch, _ = questions(dtype)
    for output in (batch.target, 1 - batch.target, torch.zeros_like(batch.target), torch.ones_like(batch.target)):
        wanted = output.clone().requires_grad_()
        batch.loss(wanted).backward()
        assert wanted.grad is not None
        assert batch.loss(output).isfinite()
        assert wanted.grad.isfinite().all()
    sure_and_wrong = batch.loss(1 - batch.target) / 13.5
    assert sure_and_wrong > 30


def test_guesses_are_wrong_and_cost_the_logarithm_of_ten() -> None:
    batch, _ = questions()
    for guess in (0.5, 0.03):
        output = torch.full_like(batch.target, guess)
        assert float(batch.bits_per_sequence(output)) == pytest.approx(27 / 2 * math.log2(10))
        assert int(batch.wrong_bits(output).sum()) == 27
    assert not batch.solved(torch.full_like(batch.target, math.nan)).any()


def test_it_stays_what_it_is() -> None:
    batch, logits = questions()
    single = batch.to(torch.float32)
    assert type(single) is DigitBatch
    assert type(batch._replace(mask=batch.mask)) is DigitBatch
    with pytest.raises(ValueError, match=r"DigitBatch: output must be \[3, 2, 90\], got \[2, 90\]"):
        batch.loss(logits[0])
