"""Brings what the page of a Visdom server loads from npm into build/visdom. The server itself downloads it at each start."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "visdom"
# Of each package of npm, a file, and where the page expects it.
FILES = (
    ("jquery@3.1.1", "dist/jquery.min.js", "js/jquery.min.js"),
    ("bootstrap@3.3.7", "dist/js/bootstrap.min.js", "js/bootstrap.min.js"),
    ("bootstrap@3.3.7", "dist/css/bootstrap.min.css", "css/bootstrap.min.css"),
    ("react@16.2.0", "umd/react.production.min.js", "js/react-react.min.js"),
    ("react-dom@16.2.0", "umd/react-dom.production.min.js", "js/react-dom.min.js"),
    ("plotly.js-dist-min@2.11.1", "plotly.min.js", "js/plotly-plotly.min.js"),
    ("layout-bin-packer@1.4.0", "dist/layout-bin-packer.js", "js/layout_bin_packer.js"),
    ("react-resizable@1.4.6", "css/styles.css", "css/react-resizable-styles.css"),
    ("react-grid-layout@0.16.3", "css/styles.css", "css/react-grid-layout-styles.css"),
)


def main() -> None:
    spec = importlib.util.find_spec("visdom")
    assert spec is not None, "visdom is not installed"
    assert spec.submodule_search_locations is not None
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch, "page")
        shutil.copytree(Path(spec.submodule_search_locations[0], "static"), page)
        for package, name, place in FILES:
            command = ["npm", "pack", "--silent", package]
            packed = subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True).stdout.split()[-1]
            with tarfile.open(Path(scratch, packed)) as archive:
                content = archive.extractfile(f"package/{name}")
                assert content is not None
                (page / place).write_bytes(content.read())
        shutil.rmtree(FOLDER, ignore_errors=True)
        shutil.copytree(page, FOLDER)


if __name__ == "__main__":
    main()
