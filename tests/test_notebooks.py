"""What every committed notebook keeps to; `make notebooks` runs them again and compares what they say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LADDER = "00 01 02 03 04 05 06 07 08 90".split()
LARGEST = 300_000  # bytes
LONGEST = 15  # lines of a cell
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_the_ladder_is_whole():
    assert [path.name[:2] for path in NOTEBOOKS] == LADDER


@each_notebook
def test_it_asks_one_question_and_says_where_its_numbers_come_from(path):
    first = "".join(cells(path, "markdown")[0]["source"])
    title = first.splitlines()[0]
    assert re.fullmatch(r"# \d\d · .*\?", title), title
    assert re.search("simulated|measured", first), "say in the first cell what is measured and what is simulated"
    assert "".join(cells(path, "markdown")[1]["source"]).startswith("On Colab")


@each_notebook
def test_it_was_run_from_top_to_bottom_without_an_error(path):
    code = cells(path, "code")
    numbers = [cell["execution_count"] for cell in code]
    if path.name.startswith("90"):  # wants a card; its outputs are those of a real run, or none
        assert numbers in ([None] * len(code), list(range(1, len(code) + 1)))
    else:
        assert numbers == list(range(1, len(code) + 1))
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds
    streams = [output["name"] for cell in code for output in cell["outputs"] if output["output_type"] == "stream"]
    assert "stderr" not in streams


@each_notebook
def test_it_is_small_and_carries_nothing_of_the_machine_it_ran_on(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST
    assert "widgets" not in json.loads(text)["metadata"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert not any("execution" in cell["metadata"] for cell in cells(path, "code"))


@each_notebook
def test_its_cells_are_short_and_figures_stand_between_words(path):
    assert all(len("".join(cell["source"]).splitlines()) <= LONGEST for cell in cells(path, "code"))
    assert len(cells(path, "markdown")) >= len(cells(path, "code")) / 2


@each_notebook
def test_every_picture_is_there_as_a_still_too(path):
    outputs = [output.get("data", {}) for cell in cells(path, "code") for output in cell["outputs"]]
    for data in outputs:
        if "application/vnd.plotly.v1+json" in data:
            assert "image/png" in data, "run it with data/recipes/run_notebooks.py, which adds the stills"
