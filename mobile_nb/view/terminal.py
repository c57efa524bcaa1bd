"""Steps and tables as text for a terminal: two colours where there are colours, marks where there are none."""

from __future__ import annotations

import os

from ..vocabulary import Step

BLUE, ORANGE, END = "\033[38;5;39m", "\033[1;38;5;208m", "\033[0m"  # told apart by colour-blind readers too


def has_colour(stream) -> bool:
    """Whether a stream is a terminal that shows colours (NO_COLOR turns them off)."""
    return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb" and stream.isatty()


def token(step: Step, colour: bool) -> str:
    """A step's text: the little model's blue or bare, the big model's orange or in [brackets]."""
    if step.wrote == "little" or not step.text.strip():
        return f"{BLUE}{step.text}{END}" if colour else step.text
    if colour:
        return f"{ORANGE}{step.text}{END}"
    bare = step.text.strip()
    return step.text.replace(bare, f"[{bare}]", 1)


def legend(colour: bool) -> str:
    """What the colours or marks mean."""
    if colour:
        return f"{BLUE}little model (K/2 experts){END} · {ORANGE}big model (K experts){END}"
    return "plain: the little model (K/2 experts) wrote it · [brackets]: the big model (K experts) did"


def table(rows: list[dict]) -> str:
    """Rows of strings, with equal keys, as an aligned table: the first column to the left, the others to the right."""
    heads = list(rows[0])
    widths = [max(len(head), *(len(row[head]) for row in rows)) for head in heads]
    lines = [heads, ["-" * width for width in widths], *([row[head] for head in heads] for row in rows)]
    first, *others = widths
    return "\n".join(
        "  ".join([line[0].ljust(first), *(cell.rjust(w) for cell, w in zip(line[1:], others, strict=True))])
        for line in lines
    )


__all__ = ["has_colour", "legend", "table", "token"]
