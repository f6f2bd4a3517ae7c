"""Checkpoints: whole or not there, damaged ones are passed over, unknown ones refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import largest_file

from routing_ext.training import CheckpointError, Checkpoints, load_checkpoint


def state(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.full((1000,), float(step))}}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_last_few_and_the_best_are_kept(checkpoints: Checkpoints) -> None:
    assert checkpoints.load_last() is None
    checkpoints.save_best(state(1))
    for step in (1, 2, 10):
        checkpoints.save(state(step), step)
    assert names(checkpoints) == ["best.pt", "step-00000002.pt", "step-00000010.pt"]
    last = checkpoints.load_last()
    assert last is not None
    assert last["step"] == 10
    assert load_checkpoint(checkpoints.best)["step"] == 1


@pytest.mark.parametrize("damage", ["cut", "emptied", "a bit", "text"])
def test_a_damaged_one_is_passed_over(checkpoints: Checkpoints, damage: str) -> None:
    checkpoints.save(state(1), 1)
    path = checkpoints.save(state(2), 2)
    content = bytearray(path.read_bytes())
    if damage == "a bit":
        content[content.index(torch.tensor(2.0).numpy().tobytes()) + 400] ^= 1
    changed = {"cut": content[: len(content) // 2], "emptied": b"", "a bit": content, "text": b"no checkpoint"}
    path.write_bytes(changed[damage])
    said: list[str] = []
    last = checkpoints.load_last(said.append)
    assert last is not None
    assert last["step"] == 1
    assert len(said) == 1
    assert f"{path} is damaged" in said[0]
    assert "going on from step-00000001.pt" in said[0]
    (checkpoints.folder / "step-00000001.pt").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* can be read: .*00002\.pt is damaged.*00001\.pt is damaged"
    ):
        checkpoints.load_last()


def test_an_unknown_version_is_refused(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(state(1), 1)
    torch.save({**state(1), "version": 99}, path)
    with pytest.raises(CheckpointError, match=r"00001\.pt must be of version 1, got 99"):
        checkpoints.load_last()
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="must be of version 1, got None"):
        load_checkpoint(path)


def test_nothing_but_data_is_loaded(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(state(1), 1)
    torch.save({"version": 1, "model": Path("a")}, path)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)


def test_a_missing_one() -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint nowhere\.pt"):
        load_checkpoint("nowhere.pt")


def test_a_full_disk_leaves_the_one_before(checkpoints: Checkpoints) -> None:
    checkpoints.save(state(1), 1)
    before = {path: path.read_bytes() for path in checkpoints.folder.iterdir()}
    message = r"cannot write .*00002\.pt \(File too large\); step-00000001\.pt is the last one"
    with largest_file(4096), pytest.raises(CheckpointError, match=message):
        checkpoints.save({"model": {"w": torch.zeros(10_000)}}, 2)
    assert {path: path.read_bytes() for path in checkpoints.folder.iterdir()} == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_whatever_fails_leaves_the_one_before(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    checkpoints.save(state(1), 1)
    before = {path: path.read_bytes() for path in checkpoints.folder.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoints.save(state(2), 2)
    assert {path: path.read_bytes() for path in checkpoints.folder.iterdir()} == before
