"""routing-ext test."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from routing_ext import cli
from routing_ext.training import Run

SIZES = "--hidden-dim 8 --num-read-heads 1 --mem-hei 6 --mem-wid 4 --steps 4 --evaluation-batches 1 --threads 1 --no-progress"


@pytest.fixture(scope="module", params=["dnc", "ntm", "lstm"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    path = tmp_path_factory.mktemp("runs") / f"{request.param}-1"
    assert cli.main(["train", "repeat-copy", "--circuit", request.param, *SIZES.split(), "--out", str(path)]) == 0
    return path


def test_a_table_and_figures_of_sequences(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["test", str(trained), "--sequences", "32"]) == 0
    printed = capsys.readouterr().out
    run = Run.open(trained)
    names = ["as trained", *run.problem.task.harder()]  # type: ignore[attr-defined]
    table = json.loads((run.figures / "generalisation.json").read_text())
    assert list(table) == names
    for name, values in table.items():
        row = re.search(rf"^{name} +(\d+) +(\S+) +(\S+) +(\S+)%$", printed, re.MULTILINE)
        assert row is not None, name
        assert int(row[1]) == values["steps"]
        assert float(row[2]) == pytest.approx(values["bits"], rel=1e-3)
        assert 0.5 < values["bits_per_bit"] < 3
        assert float(row[4]) == pytest.approx(100 * values["right"], abs=0.06)
    for name in names:
        slug = name.replace(",", "").replace(" ", "-")
        with Image.open(run.figures / f"sequence-{slug}.png") as picture:
            assert picture.width == 1960
    with Image.open(run.figures / "sequence-as-trained.gif") as animation:
        assert animation.n_frames == table["as trained"]["steps"]
    assert f"Figures: {run.figures}" in printed

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.tensorboard)).Reload()
    assert [image.step for image in board.Images("sequence-as-trained")] == [4]
    assert board.Scalars("train/loss")  # what training wrote is still there


def test_the_same_seed_tests_the_same(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in ("1", "1", "2"):
        assert cli.main(["test", str(trained), "--sequences", "32", "--seed", seed, "--checkpoint", "last"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_tasks_of_digits_are_measured_in_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "graphs")
    few = "--min-nodes 3 --max-nodes 4 --min-degree 1 --max-degree 2 --min-path-length 1 --max-path-length 2 --no-curriculum"
    assert cli.main(["train", "graph-traversal", *SIZES.split(), *few.split(), "--out", path]) == 0
    capsys.readouterr()
    assert cli.main(["test", path, "--sequences", "1"]) == 0
    printed = capsys.readouterr().out
    assert "whoever guesses pays 3.32 bits a digit" in printed
    assert "bits a digit" in printed.splitlines()[1]


def test_tasks_and_their_modules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "digits")
    options = "--data digits --steps 4 --threads 1 --no-progress --algorithm WPL"
    assert cli.main(["train", "multitask", *options.split(), "--out", path]) == 0
    assert cli.main(["test", path]) == 0
    printed = capsys.readouterr().out
    table = json.loads(Path(path, "figures", "accuracies.json").read_text())
    assert list(table["tasks"]) == [str(digit) for digit in range(10)]
    assert sum(table["tasks"].values()) / 10 == pytest.approx(table["mean"])
    assert re.search(rf"^mean of the tasks +{100 * table['mean']:.1f}$", printed, re.MULTILINE)
    with Image.open(Path(path, "figures", "routes.png")) as picture:
        assert min(picture.size) > 500


def test_without_a_visdom_server_the_rest_is_done(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["test", str(trained), "--sequences", "1", "--visdom", "--visdom-port", "9"]) == 0
    printed = capsys.readouterr().out
    assert f"/env/{trained.name}_test" in printed
    assert printed.count("No Visdom server answers at http://127.0.0.1:9") == 1
    assert "Figures:" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "nowhere is no run"),
        ([], 2, "routing-ext test --help"),
        (["RUN", "--sequences", "0"], 2, "sequences must be at least 1, got 0"),
        (["RUN", "--checkpoint", "worst"], 2, "worst"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["test", *(str(trained) if a == "RUN" else a for a in arguments)]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "copy"
    shutil.copytree(trained, path)
    shutil.rmtree(path / "figures", ignore_errors=True)
    (path / "figures").write_text("in the way")
    assert cli.main(["test", str(path), "--sequences", "1"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"routing-ext: cannot write to .*/copy/figures: .*\n", said)
