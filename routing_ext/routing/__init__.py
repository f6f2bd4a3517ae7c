"""Layers of Routing Networks (Rosenbaum et al., 2018): each sample of a batch goes through the module chosen for it."""

from .decision import Agents, Choice, Decision
from .decisions import (
    AAC,
    REINFORCE,
    RELAX,
    SARSA,
    WPL,
    ActorCritic,
    AdvantageLearning,
    BootstrapAAC,
    BootstrapAdvantageLearning,
    EGreedyAAC,
    EGreedyREINFORCE,
    GumbelSoftmax,
    PassThrough,
    PerTaskAssignment,
    QLearning,
    REINFORCEBl1,
    REINFORCEBl2,
    SurpriseLearning,
)
from .initialization import Initialization
from .linear_bank import LinearBank
from .loss import Loss
from .mlp import MLP
from .recurrent import RoutingGRUCell, RoutingLSTMCell
from .rewards import (
    BaseReward,
    CollaborationReward,
    CorrectClassifiedReward,
    ManualReward,
    NegLossReward,
    PerActionBaseReward,
    RunningAverageCollaborationReward,
)
from .sampling import fast_sampling, replay
from .selection import Selection
from .sequential import Sequential
from .trajectory import SampleMetaInformation, Trajectory

__all__ = [
    "AAC",
    "MLP",
    "REINFORCE",
    "RELAX",
    "SARSA",
    "WPL",
    "ActorCritic",
    "AdvantageLearning",
    "Agents",
    "BaseReward",
    "BootstrapAAC",
    "BootstrapAdvantageLearning",
    "Choice",
    "CollaborationReward",
    "CorrectClassifiedReward",
    "Decision",
    "EGreedyAAC",
    "EGreedyREINFORCE",
    "GumbelSoftmax",
    "Initialization",
    "LinearBank",
    "Loss",
    "ManualReward",
    "NegLossReward",
    "PassThrough",
    "PerActionBaseReward",
    "PerTaskAssignment",
    "QLearning",
    "REINFORCEBl1",
    "REINFORCEBl2",
    "RoutingGRUCell",
    "RoutingLSTMCell",
    "RunningAverageCollaborationReward",
    "SampleMetaInformation",
    "Selection",
    "Sequential",
    "SurpriseLearning",
    "Trajectory",
    "fast_sampling",
    "replay",
]
