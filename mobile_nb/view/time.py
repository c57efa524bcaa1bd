"""Where time goes: the parts of a token, and the two lanes of a run. Frames of `analysis.spans` in, figures out."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from . import theme

PARTS = ("attention", "expert", "wait", "head")
COPIES = ("demand", "prefetch")
LANES = ("compute", "link", "host")


def breakdown(table, title: str = "Where a token's time goes") -> go.Figure:
    """Stacked bars of milliseconds: what follows one another, and the transfers that run beside it as a line.

    Args:
        table: `analysis.spans.breakdown`, a row a layer or a row a token; or a row for each of a column "system".
    """
    figure = go.Figure()
    if "layer" in table:
        table = table.iloc[[*range(1, len(table)), 0]] if table["layer"].iloc[0] < 0 else table
        x, axis = ["after" if layer < 0 else str(layer) for layer in table["layer"]], "MoE layer"
    elif "step" in table:
        x, axis = list(range(1, len(table) + 1)), "token"
    else:
        x, axis = list(table["system"]), ""
    for part in PARTS:
        figure.add_bar(
            x=x, y=1e3 * table[part], name=theme.SAID[part], marker_color=theme.COLOURS[part], marker_line_width=0,
            hovertemplate="%{y:.2f} ms",
        )  # fmt: skip
    marks = "markers" if axis != "token" else "lines"
    look = {"color": "black", "symbol": "line-ew-open", "size": 26, "line": {"width": 2}}
    figure.add_scatter(
        x=x, y=1e3 * table["transfer"], mode=marks, name="the link is busy (beside all that)", marker=look,
        line={"color": "black", "dash": "dot", "width": 1}, hovertemplate="%{y:.2f} ms on the link",
    )  # fmt: skip
    figure.update_layout(barmode="stack", xaxis_title=axis, yaxis_title="ms a token", hovermode="x unified")
    if axis != "token":
        figure.update_xaxes(type="category")
    return theme.finished(figure, title, theme.said(table), height=430)


def timeline(rows, title: str = "One token, two lanes") -> go.Figure:
    """What is computed and what is copied, as bars over time.

    Args:
        rows: `analysis.spans.spans` of a few tokens; with a column "system", a pair of lanes for each, all from 0.
    """
    figure = go.Figure()
    lanes = draw(figure, rows)
    theme.finished(figure, title, theme.said(rows), height=190 + 46 * lanes)
    figure.update_layout(margin={"l": 150})
    return figure


def draw(figure: go.Figure, rows, *, row: int | None = None, legend: bool = True) -> int:
    """Draws lanes into a figure, or into one row of it; returns how many."""
    where = {} if row is None else {"row": row, "col": 1}
    columns = {name: rows[name].to_numpy() for name in ("begin", "end", "lane", "what", "mode", "layer", "expert")}
    systems = rows["system"].to_numpy() if "system" in rows else np.full(len(rows), "", dtype=object)
    order = list(dict.fromkeys(systems))
    begin, took = 1e3 * columns["begin"], 1e3 * (columns["end"] - columns["begin"])
    for system in order:
        begin[systems == system] -= begin[systems == system].min()
    lanes = [which for which in LANES if which != "host" or (columns["lane"] == "host").any()]
    said = {(system, which): f"{system}: {which}" if system else which for system in order for which in lanes}
    lane = np.array([said[each] for each in zip(systems, columns["lane"], strict=True)], dtype=object)
    for what in (*PARTS, *COPIES, "host"):
        mine = columns["what"] == what
        if not mine.any():
            continue
        about = [
            f"{theme.SAID[what]}, {mode} pass, layer {layer}" + (f", expert {expert}" if expert >= 0 else "")
            for mode, layer, expert in zip(*(columns[name][mine] for name in ("mode", "layer", "expert")), strict=True)
        ]
        figure.add_bar(
            orientation="h", base=begin[mine], x=took[mine], y=lane[mine], name=theme.SAID[what],
            marker={"color": theme.COLOURS[what], "line": {"width": 0.6 * (what in COPIES), "color": "white"}},
            customdata=about, showlegend=legend,
            hovertemplate="%{customdata}<br>%{base:.2f} ms, for %{x:.2f} ms<extra></extra>", **where,
        )  # fmt: skip
    figure.update_layout(barmode="overlay", bargap=0.25)
    figure.update_xaxes(title_text="ms", rangemode="tozero", **where)
    figure.update_yaxes(categoryorder="array", categoryarray=list(said.values())[::-1], title_text="", **where)
    return len(said)


__all__ = ["breakdown", "draw", "timeline"]
