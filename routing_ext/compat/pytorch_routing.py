"""What the modules of PytorchRouting offer, ours in place of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import routing as r
from ..routing.decisions.gradient import GumbelSoftmaxSampling, entropy, make_samples
from ..routing.policies import ApproxPolicyStorage, TabularPolicyStorage
from ..routing.recurrent import RoutingGRUCell, RoutingLSTMCell, RoutingRNNCellBase


@dataclass(eq=False)
class RLSample:
    """A decision and what came of it. Nothing here makes or takes one."""

    loss_function: Any
    state: Any
    action: Any
    reward: Any
    cum_return: Any
    prior_action: Any
    next_state: Any
    next_action: Any


class FakeFlatModuleList(nn.ModuleList):
    """A list of one module, which every index gives."""

    def __getitem__(self, idx: Any) -> Any:
        if isinstance(idx, slice):
            raise ValueError(f"FakeFlatModuleList: idx must be an integer, got {idx}")
        if len(self) != 1:
            raise ValueError(f"FakeFlatModuleList: must hold one module, got {len(self)}")
        return super().__getitem__(0)


MODULES: Mapping[str, tuple[Any, ...]] = {
    "": (),
    "CoreLayers": (r.Initialization, r.Loss, r.Selection),
    "CoreLayers.Initialization": (r.Initialization,),
    "CoreLayers.Loss": (r.Loss,),
    "CoreLayers.Selection": (r.Selection,),
    "DecisionLayers": (
        r.REINFORCE,
        r.EGreedyREINFORCE,
        r.REINFORCEBl1,
        r.REINFORCEBl2,
        r.QLearning,
        r.AdvantageLearning,
        r.SARSA,
        r.ActorCritic,
        r.AAC,
        r.BootstrapAAC,
        r.EGreedyAAC,
        r.WPL,
        r.GumbelSoftmax,
        r.PerTaskAssignment,
        r.RELAX,
        r.Decision,
    ),
    "DecisionLayers.Decision": (r.Decision,),
    "DecisionLayers.PolicyStorage": (ApproxPolicyStorage, TabularPolicyStorage),
    "DecisionLayers.Others": (),
    "DecisionLayers.Others.GumbelSoftmax": (r.GumbelSoftmax, GumbelSoftmaxSampling),
    "DecisionLayers.Others.PassThrough": (r.PassThrough,),
    "DecisionLayers.Others.PerTaskAssignment": (r.PerTaskAssignment,),
    "DecisionLayers.Others.RELAX": (r.RELAX, entropy, make_samples),
    "DecisionLayers.ReinforcementLearning": (),
    "DecisionLayers.ReinforcementLearning.AAC": (r.AAC, r.BootstrapAAC, r.EGreedyAAC),
    "DecisionLayers.ReinforcementLearning.ActorCritic": (r.ActorCritic,),
    "DecisionLayers.ReinforcementLearning.AdvantageLearning": (
        r.AdvantageLearning,
        r.BootstrapAdvantageLearning,
        r.SurpriseLearning,
    ),
    "DecisionLayers.ReinforcementLearning.QLearning": (r.QLearning,),
    "DecisionLayers.ReinforcementLearning.REINFORCE": (r.REINFORCE, r.REINFORCEBl1, r.REINFORCEBl2, r.EGreedyREINFORCE),
    "DecisionLayers.ReinforcementLearning.SARSA": (r.SARSA,),
    "DecisionLayers.ReinforcementLearning.WPL": (r.WPL,),
    "Helpers": (),
    "Helpers.MLP": (r.MLP,),
    "Helpers.RLSample": (RLSample,),
    "Helpers.SampleMetaInformation": (r.SampleMetaInformation,),
    "Helpers.TorchHelpers": (FakeFlatModuleList, nn.Identity),
    "PreFabs": (RoutingLSTMCell,),
    "PreFabs.RNNcells": (RoutingLSTMCell, RoutingGRUCell, RoutingRNNCellBase),
    "RewardFunctions": (),
    "RewardFunctions.Final": (r.NegLossReward, r.CorrectClassifiedReward),
    "RewardFunctions.Final.BaseReward": (r.BaseReward,),
    "RewardFunctions.Final.CorrectClassifiedReward": (r.CorrectClassifiedReward,),
    "RewardFunctions.Final.NegLossReward": (r.NegLossReward,),
    "RewardFunctions.PerAction": (r.CollaborationReward, r.RunningAverageCollaborationReward, r.ManualReward),
    "RewardFunctions.PerAction.CollaborationReward": (r.CollaborationReward, r.RunningAverageCollaborationReward),
    "RewardFunctions.PerAction.ManualReward": (r.ManualReward,),
    "RewardFunctions.PerAction.PerActionBaseReward": (r.PerActionBaseReward,),
    "UtilLayers": (r.Sequential,),
    "UtilLayers.Sequential": (r.Sequential,),
}
