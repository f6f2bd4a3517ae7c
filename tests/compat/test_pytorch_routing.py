"""The import paths of the reference lead to our classes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from routing_ext import compat, routing

# Every module of the reference, and what its users import from it.
PATHS = {
    "CoreLayers": "Initialization Loss Selection",
    "CoreLayers.Initialization": "Initialization",
    "CoreLayers.Loss": "Loss",
    "CoreLayers.Selection": "Selection",
    "DecisionLayers": "REINFORCE EGreedyREINFORCE REINFORCEBl1 REINFORCEBl2 QLearning AdvantageLearning SARSA ActorCritic AAC "
    "BootstrapAAC EGreedyAAC WPL GumbelSoftmax PerTaskAssignment RELAX Decision",
    "DecisionLayers.Decision": "Decision",
    "DecisionLayers.PolicyStorage": "ApproxPolicyStorage TabularPolicyStorage",
    "DecisionLayers.Others": "",
    "DecisionLayers.Others.GumbelSoftmax": "GumbelSoftmax GumbelSoftmaxSampling",
    "DecisionLayers.Others.PassThrough": "PassThrough",
    "DecisionLayers.Others.PerTaskAssignment": "PerTaskAssignment",
    "DecisionLayers.Others.RELAX": "RELAX entropy make_samples",
    "DecisionLayers.ReinforcementLearning": "",
    "DecisionLayers.ReinforcementLearning.AAC": "AAC BootstrapAAC EGreedyAAC",
    "DecisionLayers.ReinforcementLearning.ActorCritic": "ActorCritic",
    "DecisionLayers.ReinforcementLearning.AdvantageLearning": "AdvantageLearning BootstrapAdvantageLearning SurpriseLearning",
    "DecisionLayers.ReinforcementLearning.QLearning": "QLearning",
    "DecisionLayers.ReinforcementLearning.REINFORCE": "REINFORCE EGreedyREINFORCE REINFORCEBl1 REINFORCEBl2",
    "DecisionLayers.ReinforcementLearning.SARSA": "SARSA",
    "DecisionLayers.ReinforcementLearning.WPL": "WPL",
    "Helpers": "",
    "Helpers.MLP": "MLP",
    "Helpers.RLSample": "RLSample",
    "Helpers.SampleMetaInformation": "SampleMetaInformation",
    "Helpers.TorchHelpers": "FakeFlatModuleList Identity",
    "PreFabs": "RoutingLSTMCell",
    "PreFabs.RNNcells": "RoutingLSTMCell RoutingGRUCell RoutingRNNCellBase",
    "RewardFunctions": "",
    "RewardFunctions.Final": "NegLossReward CorrectClassifiedReward",
    "RewardFunctions.Final.BaseReward": "BaseReward",
    "RewardFunctions.Final.CorrectClassifiedReward": "CorrectClassifiedReward",
    "RewardFunctions.Final.NegLossReward": "NegLossReward",
    "RewardFunctions.PerAction": "CollaborationReward RunningAverageCollaborationReward ManualReward",
    "RewardFunctions.PerAction.CollaborationReward": "CollaborationReward RunningAverageCollaborationReward",
    "RewardFunctions.PerAction.ManualReward": "ManualReward",
    "RewardFunctions.PerAction.PerActionBaseReward": "PerActionBaseReward",
    "UtilLayers": "Sequential",
    "UtilLayers.Sequential": "Sequential",
}

# A package of the reference's name. Of it, only what has no counterpart here may run.
FILES = {
    "__init__.py": "",
    "CoreLayers/__init__.py": "raise AssertionError('CoreLayers of the package on disk')",
    "DecisionLayers/__init__.py": "THEIRS = True",
    "DecisionLayers/Mine.py": "from .Decision import Decision\nclass Mine(Decision): pass",
    "Examples/__init__.py": "",
    "Examples/Small.py": """
        import torch.nn as nn
        from PytorchRouting.CoreLayers import Initialization, Loss, Selection
        from PytorchRouting.DecisionLayers import WPL, PerTaskAssignment
        from PytorchRouting.DecisionLayers.Decision import Decision
        from PytorchRouting.RewardFunctions.Final import NegLossReward
        from PytorchRouting.RewardFunctions.PerAction import CollaborationReward
        import PytorchRouting.DecisionLayers as layers
        from ..UtilLayers import Sequential

        class Small(nn.Module):
            def __init__(self):
                super().__init__()
                assert issubclass(WPL, layers.Decision)
                self.start, self.assign = Initialization(), PerTaskAssignment()
                reward = CollaborationReward(reward_ratio=0.3, num_actions=3)
                self.decide = WPL(3, 4, num_agents=2, policy_storage_type="tabular", additional_reward_func=reward)
                self.select = Selection(*[nn.Linear(4, 2) for _ in range(3)])
                self.loss = Loss(nn.MSELoss(), NegLossReward(), discounting=1.0)

            def forward(self, x, tasks):
                y, meta, actions = self.start(x, tasks=tasks)
                y, meta, actions = self.assign(y, meta, actions)
                y, meta, actions = self.decide(y, meta, actions)
                y, meta, actions = self.select(y, meta, actions)
                return y, meta
        """,
}


@pytest.fixture(autouse=True)
def _disabled() -> Iterator[None]:
    compat.disable()
    yield
    compat.disable()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "PytorchRouting" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", PATHS)
def test_every_path_leads_to_ours(path: str) -> None:
    compat.enable("PytorchRouting")
    module = importlib.import_module(f"PytorchRouting.{path}")
    for name in PATHS[path].split():
        item = getattr(module, name)
        assert callable(item), f"{path}.{name} is {item}"
        assert item.__module__.startswith(("routing_ext.", "torch."))
        assert item is getattr(routing, name, item)


def test_the_table_has_no_other_paths() -> None:
    from routing_ext.compat import pytorch_routing

    assert set(pytorch_routing.MODULES) == {"", *PATHS}


@pytest.mark.parametrize("first", ["", ".CoreLayers.Selection", ".DecisionLayers.Others.RELAX"])
def test_whatever_comes_first_a_package_has_classes_not_modules(first: str) -> None:
    """As in the reference, where `CoreLayers.Selection` is a module to `import` and a class to everybody else."""
    compat.enable("PytorchRouting")
    importlib.import_module(f"PytorchRouting{first}")
    package = importlib.import_module("PytorchRouting")
    assert package.CoreLayers.Selection is routing.Selection
    assert package.DecisionLayers.RELAX is routing.RELAX
    assert importlib.import_module("PytorchRouting.CoreLayers.Selection").Selection is routing.Selection


def test_star_import() -> None:
    compat.enable("PytorchRouting")
    names: dict[str, object] = {}
    exec("from PytorchRouting.DecisionLayers import *", names)
    assert names["WPL"] is routing.WPL
    assert names["Decision"] is routing.Decision


def test_an_installed_package_keeps_its_examples(installed: Path) -> None:
    compat.enable("PytorchRouting")
    small = importlib.import_module("PytorchRouting.Examples.Small")
    assert small.__file__ == str(installed / "PytorchRouting/Examples/Small.py")
    assert small.Selection is routing.Selection
    assert small.Sequential is routing.Sequential
    model = small.Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y, tasks = torch.randn(12, 4), torch.randn(12, 2), torch.arange(12) % 2
    for _ in range(3):
        ys, meta = model(x, tasks)
        module_loss, routing_loss = model.loss(ys, meta, y)
        optimizer.zero_grad()
        (module_loss + routing_loss).backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_modules_added_to_an_installed_package_are_found(installed: Path) -> None:
    compat.enable("PytorchRouting")
    mine = importlib.import_module("PytorchRouting.DecisionLayers.Mine")
    assert issubclass(mine.Mine, routing.Decision)
    assert not hasattr(importlib.import_module("PytorchRouting.DecisionLayers"), "THEIRS")


def test_disable_restores_the_installed_package(installed: Path) -> None:
    compat.enable("PytorchRouting")
    importlib.import_module("PytorchRouting.Examples.Small")
    compat.disable("PytorchRouting")
    assert not [name for name in sys.modules if name.split(".")[0] == "PytorchRouting"]
    assert importlib.import_module("PytorchRouting.DecisionLayers").THEIRS
    with pytest.raises(AssertionError, match="CoreLayers of the package on disk"):
        importlib.import_module("PytorchRouting.CoreLayers")
    for name in [name for name in sys.modules if name.split(".")[0] == "PytorchRouting"]:
        del sys.modules[name]


def test_disable_restores_its_absence() -> None:
    if importlib.util.find_spec("PytorchRouting") is not None:
        pytest.skip("PytorchRouting is installed")
    before = list(sys.meta_path)
    compat.enable("PytorchRouting")
    assert importlib.util.find_spec("PytorchRouting.UtilLayers") is not None
    compat.disable()
    assert sys.meta_path == before
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("PytorchRouting")


def test_enabling_and_disabling_twice_does_no_harm() -> None:
    before = list(sys.meta_path)
    compat.enable("PytorchRouting")
    module = importlib.import_module("PytorchRouting.CoreLayers")
    compat.enable("PytorchRouting")
    assert importlib.import_module("PytorchRouting.CoreLayers") is module
    compat.disable("PytorchRouting")
    compat.disable("PytorchRouting")
    assert sys.meta_path == before


def test_too_late(installed: Path) -> None:
    importlib.import_module("PytorchRouting.DecisionLayers")
    before = list(sys.meta_path)
    try:
        with pytest.raises(
            RuntimeError, match="before anything is imported from PytorchRouting, got it after PytorchRouting, Py"
        ):
            compat.enable("PytorchRouting")
        assert sys.meta_path == before
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "PytorchRouting"]:
            del sys.modules[name]
    compat.enable("PytorchRouting")
    assert importlib.import_module("PytorchRouting.UtilLayers").Sequential is routing.Sequential


@pytest.mark.parametrize("call", [compat.enable, compat.disable])
def test_unknown_package(call: object) -> None:
    message = r"package must be one of \['PytorchRouting', 'dnc', 'pytorch_dnc'\], got 'PyTorchRouting'"
    with pytest.raises(ValueError, match=message):
        call("PyTorchRouting")  # type: ignore[operator]


def test_unknown_module() -> None:
    compat.enable("PytorchRouting")
    with pytest.raises(ModuleNotFoundError, match="NoSuchLayers"):
        importlib.import_module("PytorchRouting.NoSuchLayers")


def test_helper_classes() -> None:
    compat.enable("PytorchRouting")
    helpers = importlib.import_module("PytorchRouting.Helpers.TorchHelpers")
    linear = torch.nn.Linear(2, 2)
    assert helpers.FakeFlatModuleList([linear])[7] is linear
    with pytest.raises(ValueError, match="must hold one module, got 2"):
        helpers.FakeFlatModuleList([linear, linear])[0]
    with pytest.raises(ValueError, match="must be an integer"):
        helpers.FakeFlatModuleList([linear])[:1]
    sample = importlib.import_module("PytorchRouting.Helpers.RLSample").RLSample(*range(8))
    assert (sample.loss_function, sample.prior_action, sample.next_action) == (0, 5, 7)
