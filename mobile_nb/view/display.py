"""How widgets and the figures in them are handed to a notebook. Knows nothing about models or traces.

A figure in an `Output` is plain data, set from here: it needs no kernel message of its own, can be redrawn at any time,
and stores no script in the notebook.
"""

from __future__ import annotations

import json

import ipywidgets as widgets
import plotly.graph_objects as go
import plotly.io as pio

PLOTLY, VIEW = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"


class Shown:
    """Widgets one below the other, shown by a notebook when this object is the value of a cell.

    It is no widget itself, so that its text is short and the same in every run, and a page without a kernel gets
    `still`.
    """

    def __init__(self, *parts: widgets.Widget):
        self.box = widgets.VBox(list(parts), layout=widgets.Layout(width="100%"))

    def still(self) -> str:
        """HTML of what is shown now, for where no kernel is; empty for nothing."""
        return ""

    def close(self) -> None:
        """Removes the widgets from the page."""
        for widget in _all(self.box):
            widget.close()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        still = self.still()
        return {"text/plain": repr(self), VIEW: view} | ({"text/html": still} if still else {})


def _all(widget):
    for child in getattr(widget, "children", ()):
        yield from _all(child)
    yield widget


def outputs(figure: go.Figure) -> tuple[dict]:
    """What an `Output` holds to show a figure: the renderer's own HTML on Colab, plotly's data everywhere else."""
    colab = "colab" in pio.renderers.default
    data = figure._repr_mimebundle_() if colab else {PLOTLY: json.loads(figure.to_json())}
    return ({"output_type": "display_data", "data": data, "metadata": {}},)


__all__ = ["Shown", "outputs"]
