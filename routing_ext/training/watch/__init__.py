"""What shows, and keeps, how a training goes."""

from .json_lines import JsonLines
from .log_file import LogFile
from .open_sinks import open_sinks
from .progress_bar import ProgressBar
from .sink import Kind, Sink
from .tensorboard import TensorBoard
from .visdom import Visdom

__all__ = ["JsonLines", "Kind", "LogFile", "ProgressBar", "Sink", "TensorBoard", "Visdom", "open_sinks"]
