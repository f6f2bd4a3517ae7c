"""python -m routing_ext is the program routing-ext."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
