"""Training as a program: runs that are folders, checkpoints, resuming, watching."""

from .batches import Batches, batch_seed
from .checkpoints import Checkpoints, load_checkpoint
from .circuits import CircuitConfig, LSTMNetwork
from .config import TrainConfig
from .config_file import from_options, read_config, to_options, write_config
from .errors import (
    CheckpointError,
    ConfigError,
    Diverged,
    Interrupted,
    MissingPackage,
    RunError,
    TrainingError,
)
from .presets import PRESETS, default_setup
from .problems import Outcome, Problem, RoutingProblem, SequenceProblem
from .replicas import Replicas, join_replicas
from .run import Run
from .trainer import Trainer

__all__ = [
    "PRESETS",
    "Batches",
    "CheckpointError",
    "Checkpoints",
    "CircuitConfig",
    "ConfigError",
    "Diverged",
    "Interrupted",
    "LSTMNetwork",
    "MissingPackage",
    "Outcome",
    "Problem",
    "Replicas",
    "RoutingProblem",
    "Run",
    "RunError",
    "SequenceProblem",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "batch_seed",
    "default_setup",
    "from_options",
    "join_replicas",
    "load_checkpoint",
    "read_config",
    "to_options",
    "write_config",
]
