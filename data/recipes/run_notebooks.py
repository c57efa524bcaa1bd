"""Execute the notebooks in place, with pictures that show on GitHub too; say how long each took and how large it is.

    python data/recipes/run_notebooks.py                      # all but those that want a card
    python data/recipes/run_notebooks.py notebooks/03*.ipynb

Needs kaleido and a Chromium for the pictures, and makes them smaller where pillow is installed; nobody needs these to
use the notebooks. Widget state and times of execution are left out of the files.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PNG = "image/png"


def smaller(picture: str) -> str:
    """The same PNG with a palette of 128 colours."""
    try:
        from PIL import Image
    except ImportError:
        return picture
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    out = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def cleaned(notebook):
    """Without what differs from run to run and says nothing."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11"}  # of the oldest that is supported
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if PNG in output.get("data", {}):
                output["data"][PNG] = smaller(output["data"][PNG])
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="which (notebooks/[0-8]*.ipynb)")
    options = parser.parse_args()
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+png"
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    import nbformat
    from nbclient import NotebookClient

    for path in options.notebooks or sorted((ROOT / "notebooks").glob("[0-8]*.ipynb")):
        notebook, started = nbformat.read(path, 4), time.perf_counter()
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
        seconds = time.perf_counter() - started
        beside = path.with_suffix(".part")
        nbformat.write(cleaned(notebook), beside)
        os.replace(beside, path)
        print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
