from __future__ import annotations

import pathlib

import pytest

HERE = pathlib.Path(__file__).parent


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.parent == HERE and item.path.name != "test_gpu_program.py":
        item.add_marker(pytest.mark.cuda)
