"""What routers chose and what was foreseen of it: heat maps, precision, confidence. Frames in, figures out."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from . import theme
from .seats import LOOKS


def expert_map(
    rows, title: str = "Which experts the tokens run", *, layers=None, about: str | None = None
) -> go.Figure:
    """Layer by layer, tokens from left to right and experts from top to bottom; the darker, the larger the weight.

    Args:
        rows: `Trace.to_frame("routing")`; the passes of one token are drawn.
        layers: which; None for all.
    """
    sizes = rows.groupby("pass")["token"].transform("max")
    rows = rows[sizes == 0]
    layers = sorted(rows["layer"].unique()) if layers is None else list(layers)
    order = {p: n for n, p in enumerate(sorted(rows["pass"].unique()))}
    experts = int(rows.attrs.get("experts", rows["expert"].max() + 1))
    titles = [f"layer {layer}" for layer in layers]
    figure = make_subplots(rows=len(layers), cols=1, shared_xaxes=True, vertical_spacing=0.05, row_titles=titles)
    for at, layer in enumerate(layers, 1):
        mine = rows[rows["layer"] == layer]
        grid = np.full((experts, len(order)), np.nan)
        grid[mine["expert"], mine["pass"].map(order)] = 100 * mine["weight"]
        figure.add_heatmap(
            z=grid, row=at, col=1, coloraxis="coloraxis", hoverongaps=False,
            hovertemplate="pass %{x}, expert %{y}: weight %{z:.1f} %<extra></extra>",
        )  # fmt: skip
        figure.update_yaxes(title_text="expert", row=at, col=1)
    figure.update_xaxes(title_text="pass of one token", row=len(layers), col=1)
    theme.finished(figure, title, theme.said(rows) if about is None else about, height=130 + 150 * len(layers))
    figure.update_layout(
        coloraxis={"colorscale": theme.SEQUENTIAL, "colorbar": {"title": "weight, %"}, "reversescale": True}
    )
    return figure


def occupancy(frame, layer: int = 0, title: str | None = None, *, about: str | None = None) -> go.Figure:
    """One layer's slots through time: for each token and slot which expert is there, and why.

    Args:
        frame: `analysis.occupancy.occupancy` of a trace.   layer: which.
    """
    mine = frame[frame["layer"] == layer]
    mine = mine.assign(token=mine.groupby(["request", "step"], sort=False).ngroup() + 1)
    ids, figure = mine.pivot_table(index="slot", columns="token", values="expert"), go.Figure()
    for state, (name, fill, *_) in LOOKS.items():
        colour = "white" if fill == "none" else fill
        held = mine.assign(on=(mine["state"] == state).astype(float)).pivot_table(
            index="slot", columns="token", values="on"
        )
        if not held.to_numpy().any():
            continue
        figure.add_heatmap(
            z=held.where(held > 0), x=held.columns, y=held.index, customdata=ids, showscale=False, xgap=1, ygap=1,
            colorscale=[[0, colour], [1, colour]], hoverongaps=False,
            hovertemplate=f"token %{{x}}, slot %{{y}}: expert %{{customdata}}, {name}<extra></extra>",
        )  # fmt: skip
        look = {"size": 11, "symbol": "square", "color": colour, "line": {"width": 1}}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=look, name=name)
    figure.update_layout(xaxis_title="token", yaxis={"title": "slot", "autorange": "reversed"})
    title = f"The slots of layer {layer}, token by token" if title is None else title
    return theme.finished(figure, title, theme.said(frame) if about is None else about, height=460)


def precision(
    frame, title: str = "How much was foreseen", *, paper: bool = True, about: str | None = None
) -> go.Figure:
    """Share of the big pass's experts that each predictor named, by layer.

    Args:
        frame: columns predictor, layer, precision (as `analysis.foresight.foreseen` returns).
        paper: draw the paper's "above 80 %" as a line.
    """
    figure = go.Figure()
    for n, (name, mine) in enumerate(frame.groupby("predictor", sort=False)):
        colour = theme.OTHERS[n % len(theme.OTHERS)]
        figure.add_scatter(
            x=mine["layer"], y=100 * mine["precision"], name=str(name), mode="lines+markers",
            line={"color": colour, "dash": theme.DASHES[n % len(theme.DASHES)]},
            marker={"symbol": theme.MARKERS[n % len(theme.MARKERS)], "size": 9},
        )  # fmt: skip
    if paper:
        figure.add_hline(
            y=80, line={"color": "#888", "dash": "dot", "width": 1}, annotation_text="the paper: above 80 %"
        )
    figure.update_layout(xaxis={"title": "MoE layer", "dtick": 1}, yaxis={"title": "named, %", "range": [0, 105]})
    return theme.finished(figure, title, theme.said(frame) if about is None else about, height=420)


def outcomes(frame, title: str = "What became of the prefetched experts", *, about: str | None = None) -> go.Figure:
    """Stacked bars: used in time, used but late, evicted unused; a bar for each row.

    Args:
        frame: columns label, used, late, wasted, in experts a fallback.
    """
    figure = go.Figure()
    for column, name, colour in (
        ("used", "there in time", theme.EXPERT), ("late", "asked for while under way", theme.DEMAND),
        ("wasted", "never asked for", theme.BIG),
    ):  # fmt: skip
        figure.add_bar(x=frame["label"], y=frame[column], name=name, marker_color=colour)
    figure.update_layout(barmode="stack", yaxis_title="experts a layer and fallback")
    figure.update_xaxes(type="category")
    return theme.finished(figure, title, theme.said(frame) if about is None else about, height=400)


def confidence(
    steps, gamma: float = 0.7, title: str = "How sure the little model is", about: str | None = None
) -> go.Figure:
    """A histogram of the largest probability of each little token; those left of gamma are written again.

    Args:
        steps: `Trace.to_frame()`; tokens after the prompt.
    """
    found = steps[(steps["step"] > 0) & steps["confidence"].notna()]["confidence"]
    figure = go.Figure()
    for name, mine, colour in (
        ("below γ: the big model writes", found[found < gamma], theme.BIG),
        ("at least γ: it stays", found[found >= gamma], theme.LITTLE),
    ):
        figure.add_histogram(x=mine, xbins={"start": 0, "end": 1, "size": 0.02}, name=name, marker_color=colour)
    figure.add_vline(x=gamma, line={"color": "black", "dash": "dot"}, annotation_text=f"γ = {gamma:g}")
    figure.update_layout(barmode="stack", xaxis={"title": "largest probability", "range": [0, 1]}, yaxis_title="tokens")
    return theme.finished(figure, title, theme.said(steps) if about is None else about, height=380)


def alternatives(frame, title: str = "One token, two models", about: str = "") -> go.Figure:
    """The most probable tokens under each model, side by side.

    Args:
        frame: columns wrote ("little" or "big"), token, probability.
    """
    figure = go.Figure()
    words = list(dict.fromkeys(frame.sort_values("probability")["token"]))
    for who in ("little", "big"):
        mine = frame[frame["wrote"] == who].set_index("token")["probability"].reindex(words, fill_value=0)
        figure.add_bar(orientation="h", y=words, x=mine, name=f"{who} model", marker_color=theme.COLOURS[who])
    figure.update_layout(barmode="group", xaxis={"title": "probability", "range": [0, 1]}, yaxis_type="category")
    return theme.finished(figure, title, about, height=140 + 40 * len(words))


__all__ = ["alternatives", "confidence", "expert_map", "occupancy", "outcomes", "precision"]
