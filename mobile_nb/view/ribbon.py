"""The ribbon: a text, token by token, coloured by who wrote it. Knows nothing of models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from ..html import details
from ..vocabulary import BIG, Step
from . import theme

COLUMNS = 92  # characters a line
CHARACTER = 8.0  # pixels of one, in the font below
FONT = {"family": "DejaVu Sans Mono, Menlo, Consolas, monospace", "size": 13}


def ribbon(steps, title: str = "Who wrote what", about: str = "") -> go.Figure:
    """A text as a picture: what the big model wrote again stands on a tint, and each token tells what it cost.

    Args:
        steps: a `Generation` or a list of `Step`.
        about: measured or simulated, on what.
    """
    figure = go.Figure()
    lines = draw(figure, getattr(steps, "steps", steps))
    theme.finished(figure, title, about, height=84 + 22 * lines + 40)
    figure.update_layout(
        width=round(COLUMNS * CHARACTER) + 40,
        margin={"l": 20, "r": 20, "b": 40},
        legend={"y": -0.02},
        xaxis={"visible": False, "range": [0, COLUMNS]},
        yaxis={"visible": False, "range": [lines - 0.4, -0.6]},
    )
    return figure


def draw(figure: go.Figure, steps: Sequence[Step], *, row: int | None = None, legend: bool = True) -> int:
    """Draws the tokens into a figure, or into one row of it; returns how many lines they take."""
    where = {} if row is None else {"row": row, "col": 1}
    placed = list(_placed(steps))
    for line, at, step, text in placed:
        if step.wrote == BIG and text.strip():
            blank = len(text) - len(text.lstrip())
            box = {"x0": at + blank, "x1": at + len(text), "y0": line - 0.42, "y1": line + 0.42, "line_width": 0}
            figure.add_shape(type="rect", fillcolor=theme.BIG, opacity=0.25, layer="below", **box, **where)
    for who, words in (("little", "the little model wrote"), ("big", "the big model wrote")):
        mine = [one for one in placed if one[2].wrote == who]
        if not mine:
            continue
        bold = "<b>{}</b>" if who == "big" else "{}"
        figure.add_scatter(
            x=[at for _, at, _, _ in mine],
            y=[line for line, _, _, _ in mine],
            text=[bold.format(_plain(text)) for *_, text in mine],
            customdata=[details(step) for _, _, step, _ in mine],
            hovertemplate="%{customdata}<extra></extra>",
            mode="text",
            textposition="middle right",
            textfont=FONT | {"color": theme.COLOURS[who]},
            name=words,
            showlegend=False,
            **where,
        )
        if legend:  # a text trace has no symbol of its own
            look = {"size": 11, "symbol": "square", "color": theme.COLOURS[who]}
            figure.add_scatter(x=[None], y=[None], mode="markers", marker=look, name=words, **where)
    return 1 + max((line for line, *_ in placed), default=0)


def _placed(steps: Sequence[Step]) -> Iterator[tuple[int, int, Step, str]]:
    """(line, column, step, text) of each token; a line ends where the next word would not fit."""
    line = at = 0
    for word in _words(steps):
        if at and at + sum(len(text) for _, text in word) > COLUMNS:
            line, at = line + 1, 0
            word[0] = word[0][0], word[0][1].lstrip()
        for step, text in word:
            if text == "\n":
                line, at = line + 1, 0
            elif text:
                yield line, at, step, text
                at += len(text)


def _words(steps: Sequence[Step]) -> Iterator[list[tuple[Step, str]]]:
    """Tokens with what follows them without a blank; a line's end is a word of its own."""
    word: list[tuple[Step, str]] = []
    for step in steps:
        for piece in re.findall(r"\n|[^\n]+", step.text):
            if word and (piece[0] in " \n" or word[-1][1] == "\n"):
                yield word
                word = []
            word.append((step, piece))
    if word:
        yield word


def _plain(text: str) -> str:
    """As it is, for a renderer that takes tags for tags and drops leading blanks."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(" ", "\u00a0")


__all__ = ["draw", "ribbon"]
