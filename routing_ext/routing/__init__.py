"""Layers of Routing Networks (Rosenbaum et al., 2018): each sample of a batch goes through the module chosen for it."""

from .decision import Agents, Choice, Decision
from .decisions import (
    AAC,
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
    REINFORCE,
    REINFORCEBl1,
    REINFORCEBl2,
    SurpriseLearning,
)
from .initialization import Initialization
from .linear_bank import LinearBank
from .loss import Loss
from .mlp import MLP
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
