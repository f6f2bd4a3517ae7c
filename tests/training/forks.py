"""A process that has imported everything, and runs command lines in forks of itself: they start at once.

It reads a line ``[arguments, seconds]`` in JSON, kills the fork after so many seconds, unless they are null or the fork has
ended, and answers with a line ``status N``, as of ``os.waitpid``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from routing_ext.cli import main, train  # noqa: F401  (imported before the fork)
from routing_ext.training.errors import require

for module in ("tyro", "yaml", "tqdm", "torch._dynamo", "torch.utils.tensorboard"):
    require(module, module)
for line in sys.stdin:
    arguments, seconds = json.loads(line)
    child = os.fork()
    if child == 0:
        os._exit(main(arguments))
    deadline = time.monotonic() + (1e9 if seconds is None else seconds)
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.001)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    print("status", ended[1], flush=True)
