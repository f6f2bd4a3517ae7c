"""The algorithms by which agents decide and learn."""

from .advantage import AdvantageLearning, BootstrapAdvantageLearning, SurpriseLearning
from .actor_critic import AAC, ActorCritic, BootstrapAAC, EGreedyAAC, WPL
from .assignment import PassThrough, PerTaskAssignment
from .gradient import GumbelSoftmax, RELAX
from .q_learning import SARSA, QLearning
from .reinforce import EGreedyREINFORCE, REINFORCE, REINFORCEBl1, REINFORCEBl2
