"""How every figure looks: fixed colours that the colour-blind tell apart (Okabe and Ito), and a caption that says
whether numbers were measured or simulated."""

from __future__ import annotations

import plotly.graph_objects as go

LITTLE, BIG = "#0072B2", "#D55E00"
DEMAND, PREFETCH = "#E69F00", "#CC79A7"
ATTENTION, EXPERT, WAIT, HEAD = "#56B4E9", "#009E73", "#C8C8C8", "#7F7F7F"
# Of series without a meaning, as many as there are models and tasks.
OTHERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")
MARKERS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross", "pentagon")
SEQUENTIAL = "Cividis"

COLOURS = {
    "little": LITTLE, "big": BIG, "demand": DEMAND, "prefetch": PREFETCH, "transfer": DEMAND,
    "attention": ATTENTION, "expert": EXPERT, "wait": WAIT, "head": HEAD, "host": EXPERT,
}  # fmt: skip
SAID = {  # what the parts of a token are called in legends
    "attention": "attention, router, shared experts", "expert": "experts", "wait": "waiting for the link",
    "head": "output matrix", "demand": "fetch on demand", "prefetch": "prefetch", "transfer": "transfer",
    "host": "experts on the host",
}  # fmt: skip


def finished(figure: go.Figure, title: str, about: str = "", *, height: int = 380) -> go.Figure:
    """Title, caption, fonts and margins.

    Args:
        about: measured or simulated, on what; `frame.attrs["time"]` says it for frames of a trace.
    """
    heading = {"text": title, "font": {"size": 17}, "x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top"}
    if about:
        heading["subtitle"] = {"text": about[:1].upper() + about[1:], "font": {"size": 12, "color": "#666666"}}
    figure.update_layout(
        template="plotly_white",
        title=heading,
        height=height,
        font={"size": 13},
        margin={"l": 70, "r": 20, "t": 84, "b": 54},
        legend={"orientation": "h", "y": -66 / (height - 138), "yanchor": "top", "x": 0, "xanchor": "left"},
        hoverlabel={"align": "left"},
    )
    return figure


def said(frame, extra: str = "") -> str:
    """The caption of a frame: its `attrs["time"]`, and what else is to be said."""
    return ". ".join(part for part in (str(frame.attrs.get("time", "")), extra) if part)


__all__ = ["COLOURS", "DASHES", "MARKERS", "OTHERS", "SAID", "SEQUENTIAL", "finished", "said"]
