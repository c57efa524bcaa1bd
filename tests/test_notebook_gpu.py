"""Notebook 90, which wants a card: every cell of it, on the embedded model."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
HERE = Path(__file__).resolve().parents[1] / "notebooks" / "90_your_own_card.ipynb"


def test_every_cell_runs(monkeypatch):
    go = pytest.importorskip("plotly.graph_objects")
    shown = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure.to_json()))
    space: dict = {}
    for cell in json.loads(HERE.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(line for line in cell["source"] if not line.startswith(("%", "!")))
            code = code.replace("n=32", "n=2").replace("n=4", "n=1")
            exec(compile(code, HERE.name, "exec"), space)
            if "NAME" in code and "TASK" in code and "wanted" not in space:
                space |= {"NAME": "tiny-olmoe", "TASK": "word-problems", "CONTEXT": 512}
    assert len(shown) == 3 and all("measured" in each.lower() for each in shown)
    assert space["table"].ms.notna().all()
    assert set(space["points"].label) == {"big", "little", "γ 0.5", "γ 0.7", "γ 0.9"}
