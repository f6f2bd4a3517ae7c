"""Batches are made by another thread, and depend on seed and step only."""

from __future__ import annotations

import threading

import pytest
import torch

from routing_ext.training import Batches, batch_seed


def draw(generator: torch.Generator) -> int:
    return int(torch.randint(1 << 40, (), generator=generator))


def test_each_step_has_its_batch_wherever_one_begins() -> None:
    with Batches(draw, seed=3) as batches:
        all_of_them = [batches.next() for _ in range(20)]
    with Batches(draw, seed=3, start=12, stop=20) as batches:
        assert [batches.next() for _ in range(8)] == all_of_them[12:]
        assert draw(torch.Generator().manual_seed(batches.seed_of(15))) == all_of_them[15]
    assert len(set(all_of_them)) == 20
    with Batches(draw, seed=4) as batches:
        assert batches.next() not in all_of_them


def test_seeds_do_not_meet() -> None:
    seeds = [
        batch_seed(seed, purpose, step) for seed in (0, 1, 11) for purpose in ("train", "evaluation") for step in (0, 1, 11)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_only_so_many_are_made_ahead() -> None:
    made = []
    with Batches(made.append, seed=0, ahead=3) as batches:
        batches.next()
    assert len(made) <= 4


def test_errors_of_the_thread_arrive_and_the_thread_ends() -> None:
    def fail(generator: torch.Generator) -> int:
        raise ZeroDivisionError("in the thread")

    with Batches(fail, seed=0) as batches, pytest.raises(ZeroDivisionError, match="in the thread"):
        batches.next()
    with Batches(draw, seed=0):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]
