"""routing-ext plot: draws how runs learned, side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from ..training.errors import RunError, require
from ..training.run import Run
from .errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """routing-ext plot RUN... draws loss and bits against training sequences. Runs that differ in the seed only are one line,
    their median, with a band from quartile to quartile.

    Attributes:
        runs: folders of runs
        out: the picture, .png, .svg or .pdf; by default figures/curves.png in the run, or curves.png here if there are several
    """

    runs: Positional[tuple[Path, ...]]
    out: Path | None = None


def run(options: Options) -> None:
    """Writes the picture."""
    if not options.runs:
        raise UserError("give at least one run: routing-ext plot runs/copy-1", exit_code=2)
    runs = [Run.open(path) for path in options.runs]
    for one in runs:
        if not one.metrics():
            raise RunError(f"{one.path} has no reports yet: train it first (routing-ext train --resume {one.path})")
    require("matplotlib", "matplotlib")
    from ..training.figures import draw_curves

    out = options.out or (runs[0].figures / "curves.png" if len(runs) == 1 else Path("curves.png"))
    try:
        if options.out is None:
            out.parent.mkdir(exist_ok=True)
        draw_curves(runs).savefig(out)
    except (OSError, ValueError) as error:  # an unwritable file, or an unknown ending
        raise UserError(
            f"cannot write {out}: {getattr(error, 'strerror', None) or error}; give another one with --out"
        ) from None
    print(f"Figure: {out}")
