"""The tables of the migration pages: no option of the references is forgotten, and every option that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

from routing_ext.training import PRESETS, default_setup, to_options
from routing_ext.training.presets import TASKS

DOCS = Path(__file__).parent.parent / "docs"
# Each name that utils/options.py of pytorch-dnc assigns.
PYTORCH_DNC = """
    accessor_params agent_params agent_type batch_size circuit_params circuit_type clip_grad clip_value config
    controller_params criteria dtype early_stop env_params env_type eval_freq eval_steps game hidden_dim input_dim
    len_word log_name logger lr machine max_num_words max_repeats max_repeats_norm mem_hei mem_wid memory_params
    min_num_words min_repeats mode model_file model_name num_allowed_shifts num_heads num_read_heads num_read_modes
    num_write_heads optim optim_alpha optim_eps output_dim prog_freq read_head_params read_vec_dim refs render root_dir
    save_best seed steps test_nepisodes timestamp use_cuda verbose vis visualize write_head_params
""".split()
OF_THE_PROGRAM = {"preset", "config", "resume", "out", "devices", "visdom", "visdom-port", "progress", "sequences", "init"}


def rows(page: str, header: str) -> list[tuple[str, str]]:
    """The cells of the table with this header."""
    lines = iter((DOCS / page).read_text().splitlines())
    assert any(line.startswith(f"| {header} |") for line in lines)
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        left, right = line.strip("| ").split(" | ")
        found.append((left, right))
    return found


def options() -> set[str]:
    """All of ``routing-ext train``."""
    setups = [*(default_setup(task) for task in TASKS), *PRESETS.values()]
    return {name.replace("_", "-") for setup in setups for name in to_options(*setup)} - {"task"} | OF_THE_PROGRAM


def assert_exist(table: list[tuple[str, str]]) -> None:
    named = {option.removeprefix("no-") for _, right in table for option in re.findall(r"--([a-z-]+)", right)}
    assert len(named) > 5
    assert named <= options(), named - options()


def test_each_option_of_pytorch_dnc_has_a_row() -> None:
    table = rows("migrate-dnc.md", "`utils/options.py`")
    assert set(PYTORCH_DNC) <= {name for left, _ in table for name in re.findall(r"`(\w+)`", left)}
    assert_exist(table)


def test_experiments_of_pytorch_routing_name_options_that_exist() -> None:
    assert_exist(rows("migrate-routing.md", "`run_experiments.py`"))
