"""What is kept of a training, and what a person sees of it."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import pytest
from tiny import CONFIG, PROBLEM, config

from routing_ext.training import MissingPackage, Run, Trainer
from routing_ext.training.watch import JsonLines, LogFile, ProgressBar, Sink, TensorBoard, open_sinks


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", PROBLEM, CONFIG)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def train(run: Run, steps: int) -> None:
    """Up to a step, as one process would."""
    trainer = Trainer(run.problem, config(steps=steps), run)
    trainer.sinks = open_sinks(run, steps, trainer.step, CONFIG.batch_size, progress=False)
    trainer.fit()
    for sink in trainer.sinks:
        sink.close()


def test_a_run_is_kept_in_three_forms(run: Run) -> None:
    train(run, 20)
    reports = run.metrics()
    assert [(line["kind"], line["step"]) for line in reports] == [
        ("train", 7),
        ("evaluation", 10),
        ("train", 14),
        ("train", 20),
        ("evaluation", 20),
    ]
    for line in reports:
        assert line["sequences"] == 4 * line["step"]
        assert ({"loss", "bits", "wrong"} if line["kind"] == "evaluation" else {"loss", "lr"}) < line.keys()
    seconds = [line["seconds"] for line in reports]
    assert seconds == sorted(seconds)
    board = scalars(run.tensorboard)
    assert [step for step, _ in board["train/loss"]] == [7, 14, 20]
    assert [step for step, _ in board["evaluation/bits"]] == [10, 20]
    assert board["train/loss"][0][1] == pytest.approx(reports[0]["loss"])
    log = run.log.read_text()
    assert re.search(rf"Evaluating      @ Step: 10\n.*Took: [\d.]+\n.*Iteration: 10; loss_avg: {reports[1]['loss']:.9g};", log)


def test_the_log_has_the_fields_of_pytorch_dnc(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.txt")
    log.report("train", 500, {"loss": 0.0148, "bits": 12.5})
    log.report("evaluation", 500, {"loss": 0.014, "took": 1.6})
    log.saved(500, Path("model.pt"))
    log.close()
    texts = [line.partition("] ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert re.fullmatch(r"Reporting       @ Step: 500 \| Elapsed Time: \d+\.\d+", texts[0])
    assert texts[1:] == [
        "Training Stats:   avg_loss:         0.0148; bits: 12.5",
        "Evaluating      @ Step: 500",
        "Evaluation        Took: 1.600",
        "Iteration: 500; loss_avg: 0.014",
        "Saved  Model    @ Step: 500: model.pt.",
    ]


def test_a_resumed_run_reports_each_step_once(run: Run) -> None:
    """As if it had been killed at step 24, after the checkpoint of step 20, in the middle of a line."""
    train(run, 24)
    run.checkpoints.path(24).unlink()
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "train", "step": 27, "los')
    train(run, 30)
    steps = [line["step"] for line in run.metrics() if line["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 30
    assert 24 not in steps
    seconds = [line["seconds"] for line in run.metrics()]
    assert seconds == sorted(seconds)
    board = [step for step, _ in scalars(run.tensorboard)["train/loss"]]
    assert board == steps


@pytest.mark.parametrize(("start", "kept"), [(0, []), (1, [1]), (2, [1, 2]), (9, [1, 2, 3])])
def test_lines_beyond_the_checkpoint_are_cut(tmp_path: Path, start: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path, 0, 8)
    for step in (1, 2, 3):
        sink.report("train", step, {"loss": 1.0})
    sink.close()
    JsonLines(path, start, 8).close()
    assert [line["step"] for line in lines(path)] == kept


def test_what_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", 0, 8)
    sink.report("train", 1, {"loss": math.nan, "bits": math.inf, "lr": 0.5})
    sink.close()
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert (line["loss"], line["bits"], line["lr"]) == (None, None, 0.5)


def test_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(total_steps=10, start_step=4, batch_size=100, name="copy-1")
    for step in range(5, 11):
        bar.advance(step)
    bar.report("train", 10, {"loss": 0.25, "bits": 3.5, "wrong": 0.5})
    bar.report("evaluation", 10, {"loss": 77.0})
    bar.message("Lesson 1 of 2 learned")
    bar.close()
    shown = capsys.readouterr().err
    assert re.search(r"copy-1:  ?40%.* 400/1\.00k", shown)
    assert re.search(r"copy-1: 100%.*1\.00k/1\.00k \[.*sequences/s, loss 0\.25000, 3\.50 bits, 50% wrong\]", shown)
    assert "Lesson 1 of 2 learned\n" in shown
    assert "77" not in shown


def test_without_a_bar_messages_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(10, 0, 1, shown=False)
    bar.advance(5)
    bar.message("Lesson 1 of 2 learned")
    bar.close()
    assert capsys.readouterr().err == "Lesson 1 of 2 learned\n"


def test_figures_are_images_of_tensorboard(tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.figure("sequence", 3, Figure(figsize=(1, 1)))
    board.close()
    (image,) = EventAccumulator(str(tmp_path)).Reload().Images("sequence")
    assert image.step == 3


def test_a_sink_of_your_own_overrides_what_it_needs() -> None:
    sink = Sink()
    sink.advance(1)
    sink.report("train", 1, {"loss": 0.0})
    sink.saved(1, Path("x"))
    sink.message("text")
    sink.close()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(MissingPackage, match=r'tensorboard .*pip install "routing_ext\[train\]"'):
        TensorBoard(tmp_path)


def test_a_terminal_that_is_gone_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError("Input/output error")
            return len(text)

    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        bar = ProgressBar(100, 0, 4)
        terminal.gone = True
        for step in range(1, 101):
            bar.advance(step)
        bar.report("train", 100, {"loss": 0.5})
        bar.message("Lesson 1 learned")
        bar.close()
