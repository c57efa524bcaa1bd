"""What is gained and what it costs: gamma, Pareto fronts, break-even maps, the gap to the oracle."""

from __future__ import annotations

import plotly.graph_objects as go

from . import theme


def pareto(
    frame,
    x: str = "speed_up",
    y: str = "accuracy",
    *,
    by: str | None = None,
    label: str | None = None,
    title: str = "Accuracy against speed",
    about: str | None = None,
    x_title: str = "times as fast as on-demand",
    y_title: str = "solved, %",
    front: bool = True,
    join: bool = True,
) -> go.Figure:
    """Points of two measures that both want to be high, one colour and symbol for each value of `by`.

    Args:
        frame: a row a point. Columns `low` and `high`, where there are, are drawn as the interval of y.
        label: a column whose values stand beside the points.
        front: mark what no other point beats in both.   join: draw lines through the points of each colour.
    """
    figure, about = go.Figure(), theme.said(frame) if about is None else about
    frame = frame.reset_index(drop=True)
    sides = _sides(frame, x, y, label) if label else None
    names = [None] if by is None else list(dict.fromkeys(frame[by]))
    for n, name in enumerate(names):
        mine = (frame if name is None else frame[frame[by] == name]).sort_values(x)
        interval = {}
        if {"low", "high"} <= set(frame):
            interval = {
                "array": mine["high"] - mine[y],
                "arrayminus": mine[y] - mine["low"],
                "width": 3,
                "thickness": 1,
            }
        colour = theme.OTHERS[n % len(theme.OTHERS)]
        figure.add_scatter(
            x=mine[x], y=mine[y], name="" if name is None else str(name), showlegend=name is not None,
            mode="+".join(["lines"] * join + ["markers"] + ["text"] * bool(label)), text=mine[label] if label else None,
            textposition=sides[mine.index].tolist() if label else None, textfont={"size": 11}, error_y=interval or None,
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"size": 9, "color": colour, "symbol": theme.MARKERS[n % len(theme.MARKERS)]},
        )  # fmt: skip
    if front:
        best = efficient(frame, x, y)
        figure.add_scatter(
            x=best[x], y=best[y], mode="lines", name="nobody is better in both", hoverinfo="skip",
            line={"color": "rgba(0,0,0,.18)", "width": 9, "shape": "hv"},
        )  # fmt: skip
    figure.update_layout(xaxis_title=x_title, yaxis_title=y_title)
    return theme.finished(figure, title, about, height=460)


def _sides(frame, x: str, y: str, label: str):
    """Where each row's label stands: above its point, or below where fewer other points and labels are in its way."""
    words = frame[label].fillna("").astype(str)
    sides = words.map(lambda _: "top center")
    width, height = (float(frame[axis].max() - frame[axis].min()) or 1.0 for axis in (x, y))
    letters, up = words.str.len() * 0.006 * width, frame[y] / height  # half a word's width, of some 600 pixels
    for at in frame[words != ""].sort_values(x).index:
        near, rise = (frame[x] - frame[x][at]).abs(), up - up[at]
        beside = (near < letters + letters[at]) & (rise.abs() < 0.06) & (frame[x] < frame[x][at]) & (words != "")
        over, under = near < letters[at] + 0.01 * width, sides == "bottom center"
        above = (over & (rise > 0) & (rise < 0.1)).sum() + 2 * (beside & ~under).sum()
        below = (over & (rise < 0) & (rise > -0.1)).sum() + 2 * (beside & under).sum()
        sides[at] = "bottom center" if below < above else "top center"
    return sides


def efficient(frame, x: str, y: str):
    """The rows that no other beats in one measure without losing in the other, by rising x."""
    kept, best = [], float("-inf")
    for at, row in frame.sort_values([x, y], ascending=False).iterrows():
        if row[y] > best:
            kept.append(at)
            best = row[y]
    return frame.loc[kept[::-1]]


def thresholds(
    frame,
    columns: dict[str, str],
    *,
    by: str | None = None,
    title: str = "What gamma decides",
    about: str | None = None,
) -> go.Figure:
    """Panels one above the other over gamma, a line for each value of `by`.

    Args:
        frame: a row for each gamma (column "gamma").
        columns: column -> what its axis is called. Where there is a column of that name with "_half" behind it, half an
            interval, it is drawn.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(columns), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    names = [None] if by is None else list(dict.fromkeys(frame[by]))
    for row, (column, axis) in enumerate(columns.items(), 1):
        for n, name in enumerate(names):
            mine = (frame if name is None else frame[frame[by] == name]).sort_values("gamma")
            colour = theme.OTHERS[n % len(theme.OTHERS)]
            half = f"{column}_half" if f"{column}_half" in frame else None
            figure.add_scatter(
                x=mine["gamma"], y=mine[column], name="" if name is None else str(name), legendgroup=str(name),
                showlegend=row == 1 and name is not None, mode="lines+markers", row=row, col=1,
                line={"color": colour, "dash": theme.DASHES[n % len(theme.DASHES)]},
                marker={"symbol": theme.MARKERS[n % len(theme.MARKERS)], "color": colour, "size": 7},
                error_y=half and {"array": mine[half], "width": 2, "thickness": 0.7},
            )  # fmt: skip
        figure.update_yaxes(title_text=axis, title_font_size=12, row=row, col=1)
    figure.add_vline(x=0.7, line={"color": "#888", "dash": "dot", "width": 1})
    figure.update_xaxes(title_text="γ (the paper's 0.7 is dotted)", row=len(columns), col=1)
    return theme.finished(figure, title, theme.said(frame) if about is None else about, height=150 + 165 * len(columns))


def break_even(
    frame, x: str, y: str, value: str = "speed_up", *, x_title: str = "", y_title: str = "",
    title: str = "Where it pays", about: str | None = None,
) -> go.Figure:  # fmt: skip
    """A map of how many times as fast, over two conditions; what is slower than before is on the other side of white.

    Args:
        frame: a row a point, as `sweep` returns with a speed-up added.
    """
    grid = frame.pivot_table(index=y, columns=x, values=value)
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            x=[f"{one:g}" for one in grid.columns],
            y=[f"{one:g}" for one in grid.index],
            zmid=1.0,
            colorscale=[[0, theme.BIG], [0.5, "white"], [1, theme.LITTLE]],
            texttemplate="%{z:.2f}",
            colorbar={"title": "times"},
            hovertemplate="%{x}, %{y}: %{z:.3f} times<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis={"title": x_title or x, "type": "category"}, yaxis={"title": y_title or y, "type": "category"}
    )
    return theme.finished(figure, title, theme.said(frame) if about is None else about, height=420)


def oracle_gap(curves, title: str = "What slots buy, and what nobody can beat", about: str = "") -> go.Figure:
    """Hit rate over slots, a line a policy; the area up to Belady's bound is what a better eviction could win.

    Args:
        curves: columns slots, hit_rate and evict, the bound last: of `sweep`, or of `hit_curve` policy by policy.
    """
    figure = go.Figure()
    for n, (name, mine) in enumerate(curves.groupby("evict", sort=False)):
        bound = name == "Belady"
        figure.add_scatter(
            x=mine["slots"], y=100 * mine["hit_rate"], name="Belady, who knows the future" if bound else name,
            mode="lines", fill="tonexty" if bound and n else None, fillcolor="rgba(0,0,0,.07)",
            line={"color": "black" if bound else theme.OTHERS[n], "dash": "dot" if bound else theme.DASHES[n]},
        )  # fmt: skip
    figure.update_layout(xaxis_title="slots a layer", yaxis_title="requests that hit, %", hovermode="x unified")
    return theme.finished(figure, title, about, height=400)


__all__ = ["break_even", "efficient", "oracle_gap", "pareto", "thresholds"]
