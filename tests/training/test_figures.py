"""Figures: that they show what is there, for each kind of network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tiny import CONFIG, config
from torch import Tensor

from routing_ext.tasks import Copy, RepeatCopy, SequenceBatch
from routing_ext.training import CircuitConfig, Run, SequenceProblem
from routing_ext.training.figures import Routes, Trace, animate_trace, draw_curves, draw_routes, draw_trace, trace
from routing_ext.training.figures.curves import grouped, spread
from routing_ext.training.figures.style import LINES

SMALL = CircuitConfig("dnc", hidden_dim=8, num_write_heads=2, num_read_heads=3, mem_hei=5, mem_wid=4)
NETWORKS = {name: dataclasses.replace(SMALL, circuit=name) for name in ("dnc", "ntm", "lstm")}


def followed(circuit: CircuitConfig, task: Copy | RepeatCopy = RepeatCopy(min_num_words=2, min_repeats=2)) -> Trace:  # noqa: B008
    problem = SequenceProblem(task, circuit)
    return trace(problem.network(), problem.batch(1, torch.Generator().manual_seed(0)))


def pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


# ---- a sequence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dnc", "ntm"])
def test_a_trace_is_what_one_unroll_computes(kind: str) -> None:
    problem = SequenceProblem(RepeatCopy(), NETWORKS[kind])
    network, batch = problem.network(), problem.batch(6, torch.Generator().manual_seed(1))
    for sequence in range(6):
        t = trace(network, batch, sequence)
        y, state = network.unroll(batch.input[: t.num_steps, sequence : sequence + 1])
        torch.testing.assert_close(t.output, y[:, 0])
        for field in ("memory", "write_weights", "read_weights", *(("usage", "link") if kind == "dnc" else ())):
            torch.testing.assert_close(getattr(t, field)[-1], getattr(state, field)[0])
        assert t.counts.sum() == batch.mask[:, sequence].sum()
        assert bool(t.counts[-1])  # what follows the answer is left out
    if kind == "ntm":
        assert t.usage is None
        assert t.link is None


def test_a_trace_of_a_network_without_memory_has_none() -> None:
    t = followed(NETWORKS["lstm"])
    assert t.memory is t.usage is t.link is t.write_weights is t.read_weights is None
    assert t.memory_range == 1.0
    assert t.of_used_locations() is t


def test_locations_that_no_head_uses_are_left_out_where_there_are_many() -> None:
    t = followed(NETWORKS["dnc"])
    weights = torch.zeros(t.num_steps, 1, 40)
    weights[:, 0, 7] = weights[3, 0, 20] = 1.0
    memory = torch.arange(40.0).view(1, 40, 1).expand(t.num_steps, 40, 4)
    link = torch.eye(40).expand(t.num_steps, 1, 40, 40)
    many = dataclasses.replace(
        t, memory=memory, write_weights=weights, read_weights=weights, usage=weights[:, 0], link=link, num_locations=40
    )
    few = many.of_used_locations()
    assert few.memory is not None
    assert few.memory[0, :, 0].tolist() == [7, 20]
    assert few.link is not None
    assert few.link.shape == (t.num_steps, 1, 2, 2)
    assert "2 locations,\nused of 40" in texts(draw_trace(many))
    assert t.of_used_locations() is t


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("task", [RepeatCopy(min_num_words=2, min_repeats=2), Copy(min_num_words=10)], ids=["few", "many"])
def test_a_figure_of_a_trace(kind: str, task: Copy | RepeatCopy) -> None:
    figure = draw_trace(followed(NETWORKS[kind], task), "The title", "what it is about")
    shown = texts(figure)
    assert {"The title", "what it is about", "input", "target", "it listens", "it answers"} <= set(shown)
    with_memory = {"memory"} if kind != "lstm" else set()
    with_link = {"usage", "link"} if kind == "dnc" else set()
    assert {name for name in ("memory", "usage", "link") if name in shown} == with_memory | with_link
    picture = pixels(figure)
    assert picture.shape[1] == 1960
    for ax in figure.axes:  # none is blank, and none lies upon another, or beyond the figure
        box = ax.get_position()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1
    boxes = sorted((ax.get_position() for ax in figure.axes if ax.get_position().width > 0.5), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1e-9 for low, high in zip(boxes, boxes[1:], strict=False))


def test_wrong_bits_are_marked() -> None:
    t = followed(NETWORKS["lstm"])
    t = dataclasses.replace(t, wrong=torch.zeros_like(t.wrong), output=t.target)
    right = pixels(draw_trace(t))
    wrong = t.wrong.clone()
    wrong[-1, 0] = True
    assert (right != pixels(draw_trace(dataclasses.replace(t, wrong=wrong)))).any()


@pytest.mark.parametrize(("kind", "suffix"), [("dnc", ".gif"), ("ntm", ".png"), ("lstm", ".gif")])
def test_an_animation_has_a_frame_a_step(kind: str, suffix: str, tmp_path: Path) -> None:
    t = followed(NETWORKS[kind])
    animate_trace(t, tmp_path / f"x{suffix}", "repeat-copy")
    with Image.open(tmp_path / f"x{suffix}") as image:
        assert image.n_frames == t.num_steps
        frames = []
        for step in range(t.num_steps):
            image.seek(step)
            frames.append(np.asarray(image.convert("RGB")))
    assert tuple(frames[0][0, 0]) == (255, 255, 255)
    assert all((a != b).any() for a, b in zip(frames, frames[1:], strict=False))


def test_an_animation_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"animate_trace: path must end with \.gif or \.png, got .*x\.mp4"):
        animate_trace(followed(NETWORKS["lstm"]), tmp_path / "x.mp4")


def test_a_batch_may_have_nothing_that_counts() -> None:
    problem = SequenceProblem(RepeatCopy(), NETWORKS["dnc"])
    empty = SequenceBatch(torch.zeros(3, 1, 6), torch.zeros(3, 1, 5), torch.zeros(3, 1, 1))
    assert trace(problem.network(), empty).num_steps == 3


# ---- runs ----------------------------------------------------------------------------------------------------------------


def make_run(path: Path, losses: list[float], circuit: CircuitConfig = SMALL, **changes: object) -> Run:
    run = Run.create(path, SequenceProblem(RepeatCopy(), circuit), config(**changes))
    reports = [
        {"kind": kind, "step": step, "seconds": float(step), "sequences": 4 * step, "loss": loss, "bits": 10 * loss}
        for step, loss in enumerate(losses, 1)
        for kind in ("train", "evaluation")
    ]
    run.metrics_file.write_text("".join(json.dumps(report) + "\n" for report in reports))
    return run


def test_runs_that_differ_in_the_seed_are_a_group(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"a-{seed}", [1.0, 0.5], seed=seed) for seed in range(3)]
    runs += [make_run(tmp_path / "b", [1.0, 0.5], lr=0.5), make_run(tmp_path / "c", [1.0], NETWORKS["ntm"])]
    groups = grouped(runs)
    assert {name: [run.name for run in group] for name, group in groups.items()} == {
        "circuit dnc, lr 0.01 (3 seeds)": ["a-0", "a-1", "a-2"],
        "circuit dnc, lr 0.5": ["b"],
        "circuit ntm, lr 0.01": ["c"],
    }
    assert list(grouped(runs[:1])) == ["a-0"]


def test_curves_are_medians_and_quartiles(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"a-{seed}", [1.0 + seed, 0.1 * (1 + seed)], seed=seed) for seed in range(5)]
    x, (low, median, high) = spread([run.metrics() for run in runs], "train", "loss")
    assert x.tolist() == [4, 8]
    assert (low[0], median[0], high[0]) == (2.0, 3.0, 4.0)
    figure = draw_curves([*runs, make_run(tmp_path / "b", [3.0, 2.0], lr=0.5)])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["loss", "bits a sequence"]
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    assert [line.get_color() for line in lines] == list(LINES[:2])
    assert list(lines[0].get_ydata()) == pytest.approx([3.0, 0.3])
    assert {"lr 0.01 (5 seeds)", "lr 0.5"} <= set(texts(figure))
    pixels(figure)


def test_a_number_that_was_none_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [1.0, 0.5])
    with run.metrics_file.open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 3, "seconds": 3.0, "sequences": 12, "loss": None}) + "\n")
    x, _ = spread([run.metrics()], "train", "loss")
    assert x.tolist() == [4, 8]


# ---- routes --------------------------------------------------------------------------------------------------------------


def test_a_figure_of_routes_puts_tasks_that_share_modules_together() -> None:
    shares = torch.zeros(2, 4, 6)
    shares[:, [0, 2], 1] = 1.0
    shares[:, [1, 3], 4] = 1.0
    figure = draw_routes(Routes(Tensor([0.5, 0.75, 1.0, 0.25]), shares, ("a", "b", "c", "d")), "The title")
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert set(names[:2]) in ({"a", "c"}, {"b", "d"})
    assert {"layer 1: 2 of 6 modules", "The title", "100.0"} <= set(texts(figure))
    pixels(figure)


def test_routes_of_a_network_are_its_actions() -> None:
    from routing_ext.routing import WPL, PerTaskAssignment
    from routing_ext.tasks import MultiTaskNetwork, digits
    from routing_ext.training.figures import follow_routes

    _, images = digits()
    for decision in (WPL, PerTaskAssignment):
        network = MultiTaskNetwork((1, 8, 8), 2, 10, decision).eval()
        routes = follow_routes(network, images)
        assert routes.shares.shape == (3, 10, 10)
        torch.testing.assert_close(routes.shares.sum(2), torch.ones(3, 10))
        assert routes.names == images.task_names
        assert 0 <= float(routes.accuracies.min()) <= float(routes.accuracies.max()) <= 1
    torch.testing.assert_close(routes.shares[0], torch.eye(10))  # of PerTaskAssignment


def test_config_is_the_tiny_one() -> None:
    assert CONFIG.batch_size == 4  # which make_run's sequences assume
