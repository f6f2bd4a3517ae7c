"""How benchmarks compare times."""

from __future__ import annotations

import pytest

from benchmarks.measure import Times


def test_a_ratio_is_of_times_near_each_other() -> None:
    # The machine runs at half its speed from round 50 on.
    fast = Times({r: 1.0 if r < 50 else 2.0 for r in range(100)})
    slow = Times({10: 10.0, 30: 10.0, 70: 20.0, 90: 22.0})
    assert slow.ratio_to(fast) == pytest.approx((10.0, 10.0, 10.25))
    assert fast.ratio_to(slow)[0] == pytest.approx(0.1)


def test_a_ratio_needs_no_common_round() -> None:
    assert Times({0: 6.0, 2: 6.0}).ratio_to(Times({1: 2.0, 3: 2.0})) == (3.0, 3.0, 3.0)


def test_a_ratio_outlives_a_disturbed_call() -> None:
    fast = Times({r: 100.0 if r == 10 else 1.0 for r in range(100)})
    assert Times({10: 5.0}).ratio_to(fast)[0] == 5.0
