"""A process that has imported everything, and runs command lines in forks of itself: they start at once.

It reads a JSON list of arguments a line, and answers with the process id of the fork, then with its exit status.
"""

from __future__ import annotations

import json
import os
import sys

from routing_ext.cli import main, train  # noqa: F401  (imported before the fork)
from routing_ext.training.errors import require

for module in ("tyro", "yaml", "tqdm", "torch._dynamo", "torch.utils.tensorboard"):
    require(module, module)
for line in sys.stdin:
    arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os._exit(main(arguments))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
