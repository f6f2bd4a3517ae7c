"""routing-ext train: what it refuses, and how it ends. Every error is one line on stderr, without a traceback."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from full_disk import largest_file

from routing_ext.cli import main
from routing_ext.tasks import Copy
from routing_ext.training import PRESETS, Run, SequenceProblem, read_config

TINY = ["--circuit", "lstm", "--hidden-dim", "8", "--batch-size", "4", "--threads", "1", "--evaluation-batches", "1"]
TRAIN = ["train", "copy", *TINY, "--steps", "20", "--checkpoint-every", "5", "--evaluate-every", "10", "--report-every", "5"]
TRAIN += ["--no-progress"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What it says of a command line that it refuses."""
    capsys.readouterr()
    assert main(arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("Run: ", "Going on"))]
    assert len(lines) == 1
    assert lines[0].startswith("routing-ext: ")
    return lines[0]


def test_a_run_is_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TRAIN) == 0
    assert "runs/copy-1: 20 steps; evaluation: loss" in capsys.readouterr().out
    run = Run.open("runs/copy-1")
    assert isinstance(run.problem, SequenceProblem)
    assert run.problem.task == Copy()
    assert run.config.steps == 20
    assert json.loads((run.path / "environment.json").read_text())["torch"] == torch.__version__
    assert [line["step"] for line in run.metrics()] == [5, 10, 10, 15, 20, 20]
    assert "Saved  Model    @ Step: 20" in run.log.read_text()
    assert list(run.tensorboard.iterdir())
    assert main([*TRAIN, "--seed", "1"]) == 0
    assert Run.open("runs/copy-2").config.seed == 1


def test_a_file_a_run_or_a_preset_gives_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--max-num-words", "6", "--out", "first"]) == 0
    assert main(["train", "--config", "first/config.yaml", "--steps", "10", "--no-progress", "--out", "second"]) == 0
    first, second = Run.open("first"), Run.open("second")
    assert second.problem == first.problem
    assert second.config.steps == 10
    few = ["--steps", "2", "--evaluation-batches", "1", "--threads", "1", "--no-progress"]
    assert main(["train", "--preset", "dnc-repeat-copy", *few, "--out", "third"]) == 0
    assert Run.open("third").problem == PRESETS["dnc-repeat-copy"][0]
    assert Run.open("third").config.lr == 1e-4


def test_resuming_a_run_may_change_how_it_goes_on_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--out", "run"]) == 0
    assert main(["train", "--resume", "run", "--no-progress"]) == 0
    assert "run had all its 20 steps before; a larger --steps trains on" in capsys.readouterr().out
    assert main(["train", "--resume", "run", "--steps", "30", "--lr", "1e-4", "--no-progress"]) == 0
    assert (Run.open("run").config.steps, Run.open("run").config.lr) == (30, 1e-4)
    assert "cannot change seed" in complaint(["train", "--resume", "run", "--seed", "3"], 2, capsys)
    assert "cannot change the task" in complaint(["train", "--resume", "run", "--hidden-dim", "9"], 2, capsys)
    assert "--out cannot be given" in complaint(["train", "--resume", "run", "--out", "other"], 2, capsys)
    assert "the task is copy" in complaint(["train", "repeat-copy", "--resume", "run"], 2, capsys)


def test_options_go_into_a_file_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("all.yaml", "all.json"):
        assert main([*TRAIN, "--lr", "0.5", "--max-num-words", "6", "--write-config", name]) == 0
        assert f"routing-ext train --config {name}" in capsys.readouterr().out
        assert not Path("runs").exists()
        problem, config = read_config(name)
        assert isinstance(problem, SequenceProblem)
        assert (config.lr, config.batch_size, problem.circuit.circuit, problem.task) == (0.5, 4, "lstm", Copy(max_num_words=6))
    assert json.loads(Path("all.json").read_text())["task"] == "copy"
    assert "cannot write no/folder.yaml: No such file" in complaint([*TRAIN, "--write-config", "no/folder.yaml"], 1, capsys)


def test_one_process_trains_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--out", "run"]) == 0
    other, before = Run.open("run"), Path("run/config.yaml").read_text()
    other.lock()
    text = complaint(["train", "--resume", "run", "--steps", "30"], 1, capsys)
    assert "run is being trained by another process: wait for its end, or stop it" in text
    assert Path("run/config.yaml").read_text() == before
    other.unlock()
    assert main(["train", "--resume", "run", "--steps", "30", "--no-progress"]) == 0


def test_wrong_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in {
        "dance": "unknown command dance: use one of train, test",
        "train": "no task is given: use routing-ext train TASK, with copy, ",
        "train juggling": "unknown task juggling",
        "train copy --stepz 3": "--stepz, 3; perhaps --steps was meant (see routing-ext train copy --help)",
        "train copy --steps many": "many",
        "train copy --steps 0": "steps must be at least 1, got 0",
        "train copy --circuit gru": "gru",
        "train copy --min-num-words 20": "1 <= min_num_words <= max_num_words, got 20 and 10",
        "train copy --devices 0": "devices must be at least 1, got 0",
        "train copy --threads many": "expected {None}|INT, got ['many'] (see routing-ext train copy --help)",
        "train --preset juggling": "unknown preset juggling: use ntm-copy or dnc-repeat-copy",
        "train copy --preset juggling": "unknown preset juggling",
        "train copy --device abacus": "device abacus cannot be used",
        "train copy --init nowhere.pth": "cannot read nowhere.pth",
        "train copy --config nowhere.yaml": "cannot read nowhere.yaml",
        "train copy --preset ntm-copy --resume somewhere": "give one of --preset and --resume",
        "train multitask --data fashion": "folder must be given for fashion",
        "train multitask --data fashion --folder nowhere": "nowhere",
        "train multitask --data cifar100 --folder nowhere": "nowhere must hold train and test",
    }.items():
        assert text in complaint(arguments.split(), 2, capsys)
    assert not Path("runs").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--version"]) == 0
    for arguments in (["--help"], ["train", "--help"], ["train", "multitask", "--help"]):
        assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--preset", "--clip-grad-norm", "--algorithm", "--resume", "graph-traversal"))


def test_folders_that_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full", "something").write_text("")
    assert "cannot write to file/run" in complaint([*TRAIN, "--out", "file/run"], 1, capsys)
    assert "full is not empty: give another folder" in complaint([*TRAIN, "--out", "full"], 1, capsys)
    assert "full is no run" in complaint(["train", "--resume", "full"], 1, capsys)
    assert os.listdir("full") == ["something"]


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tyro", "yaml", "tensorboard", "tqdm"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert 'pip install "routing_ext[train]"' in complaint([*TRAIN, "--out", package], 1, capsys)


def test_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    text = complaint([*TRAIN, "--optimizer", "sgd", "--lr", "1e39", "--out", "run"], 1, capsys)
    assert "finite any more at step" in text
    assert "there is no checkpoint yet. Try a smaller --lr (now 1e+39)" in text


@pytest.fixture
def hangups_are_heard() -> Iterator[None]:
    """Even if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals(number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str], hangups_are_heard: None) -> None:
    def stop() -> None:
        while not Path("run/checkpoints/step-00000005.pt").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    text = complaint([*TRAIN, "--steps", "100000", "--out", "run"], code, capsys)
    thread.join()
    assert f"stopped by {number.name} after step" in text
    assert "all is saved; go on with: routing-ext train --resume run" in text
    step = int(text.split("after step ")[1].split()[0])
    assert Run.open("run").checkpoints.path(step).is_file()
    assert main(["train", "--resume", "run", "--steps", str(step + 5), "--no-progress"]) == 0


def test_damaged_and_unknown_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--out", "run"]) == 0
    last, before = Run.open("run").checkpoints.last()[:2]
    last.write_bytes(last.read_bytes()[:1000])
    assert main(["train", "--resume", "run", "--no-progress"]) == 0
    assert f"{last} is damaged" in capsys.readouterr().err
    torch.save({"version": 7}, last)
    assert "must be of version 1, got 7" in complaint(["train", "--resume", "run"], 1, capsys)
    assert before.is_file()


def test_a_full_disk_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    train = [*TRAIN, "--hidden-dim", "64", "--out", "run"]
    assert main(train) == 0
    kept = {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()}
    with largest_file(40 << 10):  # less than a checkpoint, more than all others
        text = complaint(["train", "--resume", "run", "--steps", "40", "--no-progress"], 1, capsys)
    assert "step-00000025.pt (File too large); step-00000020.pt is the last one: free some space" in text
    assert {path: path.read_bytes() for path in Path("run/checkpoints").iterdir()} == kept


def test_a_disk_that_is_full_from_the_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    with largest_file(10):
        text = complaint([*TRAIN, "--out", "run"], 1, capsys)
    assert "cannot write to run: File too large; give another folder with --out" in text
    assert main([*TRAIN, "--out", "run"]) == 0, "what was written then is no run, and is not in the way"
    before = Path("run/config.yaml").read_bytes()
    with largest_file(10):
        text = complaint(["train", "--resume", "run", "--steps", "40"], 1, capsys)
    assert "cannot write to run: File too large; it stays as it was" in text
    assert Path("run/config.yaml").read_bytes() == before


def test_a_disk_that_is_full_for_logs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--out", "run"]) == 0
    with Path("run/metrics.jsonl").open("a") as file:
        file.write(f'{{"kind": "train", "step": 20, "seconds": 1, "note": "{" " * (40 << 10)}"}}\n')
    with largest_file(40 << 10):  # less than a checkpoint, more than all others
        text = complaint(["train", "--resume", "run", "--steps", "40", "--no-progress"], 1, capsys)
    assert "File too large at step 25; the last checkpoint is run/checkpoints/step-00000020.pt: make room, then resume" in text
