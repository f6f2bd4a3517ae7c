"""In a checkout of pytorch-dnc, its package `core` leads to our circuits and to its own agents and environments."""

from __future__ import annotations

import importlib
import runpy
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from routing_ext import compat, memory
from routing_ext.compat import pytorch_dnc

# The modules that have a counterpart here, and what the others import from them.
PATHS = {
    "accessor": "Accessor",
    "accessors.dynamic_accessor": "DynamicAccessor",
    "accessors.static_accessor": "StaticAccessor",
    "circuit": "Circuit",
    "circuits.dnc_circuit": "DNCCircuit",
    "circuits.ntm_circuit": "NTMCircuit",
    "controller": "Controller",
    "controllers.lstm_controller": "LSTMController",
    "head": "Head",
    "heads.dynamic_head": "DynamicHead",
    "heads.dynamic_read_head": "DynamicReadHead",
    "heads.dynamic_write_head": "DynamicWriteHead",
    "heads.static_head": "StaticHead",
    "heads.static_read_head": "StaticReadHead",
    "heads.static_write_head": "StaticWriteHead",
    "memory": "ExternalMemory External2DMemory",
}

# A checkout in small: its own main program, factory, options, agent and environment. Its circuits must not run.
FILES = {
    "main.py": """
        from utils.factory import AgentDict, CircuitDict, EnvDict
        from utils.options import AgentParams

        agents = {}
        for name, circuit_prototype in CircuitDict.items():
            agents[name] = AgentDict["sl"](AgentParams(name), EnvDict["copy"], circuit_prototype)
            agents[name].fit_model()
    """,
    "utils/__init__.py": "",
    "utils/factory.py": """
        from core.envs.copy_env import CopyEnv
        EnvDict = {"copy": CopyEnv}
        from core.circuits.ntm_circuit import NTMCircuit
        from core.circuits.dnc_circuit import DNCCircuit
        CircuitDict = {"ntm": NTMCircuit, "dnc": DNCCircuit}
        from core.agents.sl_agent import SLAgent
        AgentDict = {"sl": SLAgent}
    """,
    "utils/options.py": """
        import logging
        import torch

        class Params(object):
            def __init__(self):
                self.logger, self.use_cuda, self.visualize = logging.getLogger("reference"), False, False
                self.dtype, self.batch_size = torch.FloatTensor, None

        class HeadParams(Params):
            def __init__(self):
                super().__init__()
                self.num_heads = self.hidden_dim = self.mem_hei = self.mem_wid = None
                self.num_allowed_shifts = 3

        class AccessorParams(Params):
            def __init__(self):
                super().__init__()
                self.hidden_dim = self.num_write_heads = self.num_read_heads = self.mem_hei = self.mem_wid = None
                self.write_head_params, self.read_head_params, self.memory_params = HeadParams(), HeadParams(), Params()

        class CircuitParams(Params):
            def __init__(self):
                super().__init__()
                self.input_dim = self.output_dim = None
                self.hidden_dim, self.num_write_heads, self.num_read_heads, self.mem_hei, self.mem_wid = 12, 1, 2, 8, 6
                self.clip_value = 20.
                self.controller_params, self.accessor_params = Params(), AccessorParams()

        class AgentParams(Params):
            def __init__(self, circuit_type):
                super().__init__()
                self.batch_size, self.steps, self.circuit_params = 3, 4, CircuitParams()
    """,
    "core/__init__.py": "",
    "core/agents/__init__.py": "",
    "core/agents/sl_agent.py": """
        import torch
        import torch.nn.functional as F

        class SLAgent(object):
            def __init__(self, args, env_prototype, circuit_prototype):
                self.env = env_prototype(args)
                args.circuit_params.batch_size = args.batch_size
                args.circuit_params.input_dim, args.circuit_params.output_dim = self.env.state_shape, self.env.action_dim
                self.circuit, self.steps = circuit_prototype(args.circuit_params), args.steps
                self.optimizer = torch.optim.RMSprop(self.circuit.parameters(), lr=1e-2)
                self.losses = []

            def fit_model(self):
                for step in range(self.steps):
                    inputs, target = self.env.sample()
                    self.circuit._reset_states()
                    output_vb = torch.cat([self.circuit.forward(inputs[i]) for i in range(inputs.size(0))], 0)
                    loss_vb = F.binary_cross_entropy(output_vb, target)
                    self.optimizer.zero_grad()
                    loss_vb.backward()
                    self.optimizer.step()
                    self.losses.append(loss_vb.item())
    """,
    "core/circuit.py": "raise AssertionError('the circuit of the checkout')",
    "core/circuits/__init__.py": "raise AssertionError('the circuits of the checkout')",
    "core/circuits/dnc_circuit.py": "from core.circuit import Circuit",
    "core/envs/__init__.py": "",
    "core/envs/copy_env.py": """
        import torch

        class CopyEnv(object):
            state_shape, action_dim = 6, 4

            def __init__(self, args):
                self.batch_size = args.batch_size

            def sample(self):
                words = torch.eye(4)[[0, 2, 1, 2]].unsqueeze(1).expand(-1, self.batch_size, -1)
                flags = torch.zeros(4, self.batch_size, 2)
                silence = torch.zeros(4, self.batch_size, 6)
                return torch.cat([torch.cat([words, flags], 2), silence]), torch.cat([torch.zeros_like(words), words])
    """,
}


@pytest.fixture(autouse=True)
def _nothing_imported() -> Iterator[None]:
    def clear() -> None:
        compat.disable()
        for name in [name for name in sys.modules if name.partition(".")[0] in ("core", "utils")]:
            del sys.modules[name]

    clear()
    yield
    clear()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", PATHS)
def test_every_path_leads_to_ours(path: str) -> None:
    compat.enable("pytorch_dnc")
    module = importlib.import_module(f"core.{path}")
    for name in PATHS[path].split():
        assert getattr(module, name) is getattr(memory, name)


def test_the_table_has_no_other_paths() -> None:
    packages = {"", *(path.partition(".")[0] for path in PATHS if "." in path)}
    assert set(pytorch_dnc.MODULES) == packages | set(PATHS)


def test_the_main_program_trains_our_circuits(checkout: Path) -> None:
    compat.enable("pytorch_dnc")
    agents = runpy.run_path(str(checkout / "main.py"))["agents"]
    assert type(agents["dnc"].circuit) is memory.DNCCircuit
    assert type(agents["ntm"].circuit) is memory.NTMCircuit
    for agent in agents.values():
        assert type(agent).__module__ == "core.agents.sl_agent"
        assert agent.losses[-1] < agent.losses[0]


def test_our_own_imports_in_the_factory(checkout: Path) -> None:
    """Without compat: the two import lines of the factory are enough."""
    factory = checkout / "utils/factory.py"
    swapped = [line for line in factory.read_text().splitlines() if "core.circuits" not in line]
    factory.write_text("\n".join(["from routing_ext.memory import DNCCircuit, NTMCircuit", *swapped]))
    agents = runpy.run_path(str(checkout / "main.py"))["agents"]
    assert type(agents["dnc"].circuit) is memory.DNCCircuit


def test_disable_restores_the_checkout(checkout: Path) -> None:
    compat.enable("pytorch_dnc")
    importlib.import_module("core.circuits.dnc_circuit")
    compat.disable("pytorch_dnc")
    assert not [name for name in sys.modules if name.partition(".")[0] == "core"]
    with pytest.raises(AssertionError, match="the circuits of the checkout"):
        importlib.import_module("core.circuits.dnc_circuit")


def test_too_late(checkout: Path) -> None:
    importlib.import_module("core.envs.copy_env")
    with pytest.raises(RuntimeError, match=r"before anything is imported from core, got it after core, core\.envs"):
        compat.enable("pytorch_dnc")
