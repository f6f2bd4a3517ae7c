"""routing-ext bench."""

from __future__ import annotations

import re
import time

import pytest
import torch

from routing_ext import cli
from routing_ext.cli.bench import Row, rates_in_turns, rows

ROW = re.compile(
    r"^(\S.*?) +([\d,]+) \(([\d,]+) to ([\d,]+)\) +([\d,]+) \(([\d,]+) to ([\d,]+)\) +([\d.]+)x  against .*$", re.MULTILINE
)


def test_a_row_for_each_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert cli.main(["bench", "--seconds", "0.01", "--threads", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    found = ROW.findall(printed)
    assert [name for name, *_ in found] == [row.name for row in rows()]
    for _, *numbers in found:
        median, low, high, plain, plain_low, plain_high, ratio = (float(n.replace(",", "")) for n in numbers)
        assert 0 < low <= median <= high
        assert 0 < plain_low <= plain <= plain_high
        half = 0.5  # of the last digit of the rates; 0.005 of the ratio's
        assert (median - half) / (plain + half) - 0.0051 <= ratio <= (median + half) / (plain - half) + 0.0051
    assert "1 thread," in printed
    assert ("slower" in printed) == any(float(row[-1]) < 1 for row in found) == ("plain PyTorch is faster here" in printed)


def test_rates_are_quartiles_of_calls_in_turns() -> None:
    calls: list[str] = []

    def fast() -> None:
        calls.append("fast")
        time.sleep(0.001)

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.004)

    ours, plain = rates_in_turns(fast, slow, amount=10, seconds=0.0)
    assert ours.low <= ours.median <= ours.high < 10_000
    assert plain.median < 2500 < 10_000
    assert str(plain) == f"{plain.median:,.0f} ({plain.low:,.0f} to {plain.high:,.0f})"
    between = "".join(call[0] for call in calls).split("s")
    assert sum(len(run) > 0 for run in between) >= 8


def test_what_does_not_agree_is_not_timed() -> None:
    row = Row("wrong", "", lambda: torch.zeros(2), lambda: torch.ones(2), [], 1)
    with pytest.raises(AssertionError, match="not close"):
        row.measure(0.01)


def test_options_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--seconds", "0"]) == 2
    assert cli.main(["bench", "--threads", "0"]) == 2
    assert capsys.readouterr().err.count("must be above 0") == 2
