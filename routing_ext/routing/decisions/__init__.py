"""The algorithms by which agents decide and learn."""

from .actor_critic import AAC, WPL, ActorCritic, BootstrapAAC, EGreedyAAC
from .advantage import AdvantageLearning, BootstrapAdvantageLearning, SurpriseLearning
from .assignment import PassThrough, PerTaskAssignment
from .gradient import RELAX, GumbelSoftmax
from .q_learning import SARSA, QLearning
from .reinforce import REINFORCE, EGreedyREINFORCE, REINFORCEBl1, REINFORCEBl2

__all__ = [
    "AAC",
    "REINFORCE",
    "RELAX",
    "SARSA",
    "WPL",
    "ActorCritic",
    "AdvantageLearning",
    "BootstrapAAC",
    "BootstrapAdvantageLearning",
    "EGreedyAAC",
    "EGreedyREINFORCE",
    "GumbelSoftmax",
    "PassThrough",
    "PerTaskAssignment",
    "QLearning",
    "REINFORCEBl1",
    "REINFORCEBl2",
    "SurpriseLearning",
]
