"""The whole idea in one picture: a text by who wrote it, over the two lanes of a token, before and after."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from . import ribbon, theme, time

LINE, LANE = 24, 34  # pixels of a line of text, and of a lane


def overview(
    steps, rows, title: str = "Who wrote what, and what the link carried", about: str | None = None
) -> go.Figure:
    """A ribbon above a timeline.

    Args:
        steps: a `Generation` or a list of `Step`.
        rows: spans of the same tokens under several systems (column "system"), as for `figures.timeline`.
    """
    steps = getattr(steps, "steps", steps)
    lines = 1 + max((line for line, *_ in ribbon._placed(steps)), default=0)
    lanes = 2 * rows["system"].nunique()
    text, bars = LINE * lines + 10, LANE * lanes
    figure = make_subplots(rows=2, cols=1, row_heights=[text, bars], vertical_spacing=44 / (text + bars + 44))
    ribbon.draw(figure, steps, row=1)
    time.draw(figure, rows, row=2)
    theme.finished(figure, title, theme.said(rows) if about is None else about, height=104 + text + bars + 44 + 120)
    figure.update_xaxes(visible=False, range=[0, ribbon.COLUMNS], row=1, col=1)
    figure.update_yaxes(visible=False, range=[lines - 0.4, -0.6], row=1, col=1)
    margin = {"l": 150, "r": 20, "t": 104, "b": 120}
    figure.update_layout(width=round(ribbon.COLUMNS * ribbon.CHARACTER) + 170, margin=margin)
    figure.update_layout(legend={"y": -56 / (text + bars + 44)})
    return figure


__all__ = ["overview"]
