"""Visdom: against a real server, and its page in a real browser."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONFIG, PROBLEM, config
from visdom_scripts import FOLDER

from routing_ext.training import Run, Trainer
from routing_ext.training.figures import trace
from routing_ext.training.watch import Visdom, open_sinks
from routing_ext.training.watch.visdom import VisdomServer, play

# What `python -m visdom.server -bind_local` does, less the download of scripts, and with those of FOLDER.
SERVER = """
import sys
from visdom.server import app, run_server
port, envs, scripts = sys.argv[1:]
if scripts:
    app.tornado_settings["static_path"] = scripts
run_server.start_server(port=int(port), base_url="", env_path=envs, bind_local=True)
"""
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_server = pytest.mark.skipif(importlib.util.find_spec("visdom") is None, reason="visdom is not installed: make visdom")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, **message: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(message).encode()), timeout=10) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server."""
    number, envs = free_port(), tmp_path_factory.mktemp("visdom")
    scripts = str(FOLDER) if FOLDER.is_dir() else ""
    with (envs / "log").open("w") as log:
        command = [sys.executable, "-c", SERVER, str(number), f"{envs}/", scripts]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", number)) == 0:
                    break
            assert process.poll() is None, (envs / "log").read_text()
            time.sleep(0.1)
        yield number
    finally:
        process.terminate()
        process.wait(timeout=30)


def page(url: str) -> str:
    """The page, once its scripts have run."""
    assert BROWSER is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    return subprocess.run([BROWSER, *flags, url], capture_output=True, text=True, timeout=120, check=True).stdout


@needs_server
def test_curves_of_a_training(port: int, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "visdom-run", PROBLEM, CONFIG)
    for steps in (10, 20):  # the second time it goes on
        trainer = Trainer(run.problem, config(steps=steps), run)
        trainer.sinks = open_sinks(run, steps, trainer.step, 4, visdom=True, visdom_port=port, progress=False)
        trainer.fit()
        for sink in trainer.sinks:
            sink.close()
    window = ask(f"http://127.0.0.1:{port}/win_data", eid="visdom-run", win="loss")
    curves = {curve["name"]: curve for curve in window["content"]["data"]}
    for kind in ("train", "evaluation"):
        told = [line for line in run.metrics() if line["kind"] == kind]
        assert curves[kind]["x"] == [line["sequences"] for line in told]
        assert curves[kind]["y"] == [line["loss"] for line in told]
    assert "visdom-run" in ask(f"http://127.0.0.1:{port}/env_state")


@needs_server
def test_heads_and_memory_of_a_sequence(port: int) -> None:
    followed = trace(PROBLEM.network(), PROBLEM.batch(1, torch.Generator().manual_seed(0)))
    play(VisdomServer("played_test", port), followed, seconds_a_step=0)
    assert followed.memory is not None
    assert followed.read_weights is not None
    shown = {
        window: ask(f"http://127.0.0.1:{port}/win_data", eid="played_test", win=window)["content"]["data"][0]["z"]
        for window in ("write_head", "read_head", "memory", "usage", "link", "input", "target", "output")
    }
    torch.testing.assert_close(torch.tensor(shown["memory"]), followed.memory[-1])
    torch.testing.assert_close(torch.tensor(shown["read_head"]), followed.read_weights[-1].T)
    torch.testing.assert_close(torch.tensor(shown["output"]), followed.output.T)


@needs_server
@pytest.mark.skipif(BROWSER is None, reason="no chromium")
@pytest.mark.skipif(not FOLDER.is_dir(), reason="the scripts of the page are not there: make visdom")
def test_the_page_in_a_browser(port: int) -> None:
    visdom = Visdom(VisdomServer("browsed", port), 16, pytest.fail)
    for step in (1, 2, 3):
        visdom.report("train", step, {"loss": 1 / step, "bits": 8 / step})
    dom = page(VisdomServer("browsed", port).page)
    assert dom.count("js-plotly-plot") == 2
    for text in (">loss<", ">bits<", ">sequences<", ">bits a sequence<"):
        assert text in dom


def test_without_a_server_training_goes_on_and_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(tmp_path / "run", PROBLEM, CONFIG)
    trainer = Trainer(run.problem, config(steps=20), run)
    trainer.sinks = open_sinks(run, 20, 0, 4, visdom=True, visdom_port=free_port(), progress=False)
    trainer.fit()
    assert trainer.step == 20
    for said in (capsys.readouterr().err, run.log.read_text()):
        assert said.count("No Visdom server answers at http://127.0.0.1:") == 1
        assert "python -m visdom.server -bind_local" in said
