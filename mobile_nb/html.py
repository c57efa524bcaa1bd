"""Text as HTML, each token marked by who wrote it; knows nothing of models, figures or widgets.

What the little model wrote is plain; what the big one wrote again is bold on a tint, so that colour is not the only
mark. Tints are see-through, which suits light and dark pages.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

from .vocabulary import BIG, Step

TINT = "background:rgba(213,94,0,.28);border-bottom:2px solid #D55E00;border-radius:2px"
PLAIN = "border-bottom:2px solid rgba(0,114,178,.35)"
RIBBON = "font-family:monospace;white-space:pre-wrap;line-height:1.9;max-width:60em"


def details(step: Step) -> str:
    """One line about a token: who wrote it, how sure it was, and what it cost."""
    who = "big, after the little model's token was evicted" if step.fell_back else step.wrote
    sure = "" if math.isnan(step.confidence) else f" · p {step.confidence:.2f}"
    return (
        f"{who}{sure} · {1e3 * step.seconds:.1f} ms · {step.bytes_moved / 1e6:.1f} MB · "
        f"{step.hits} hits, {step.misses} misses" + (f", {step.host} on the host" if step.host else "")
    )


def token(step: Step) -> str:
    """One token as a span, with `details` where the pointer rests on it."""
    tag, style = ("b", TINT) if step.wrote == BIG else ("span", PLAIN)
    text = html.escape(step.text).replace("\n", "<br>")
    return f'<{tag} style="{style}" title="{html.escape(details(step), quote=True)}">{text}</{tag}>'


def mark(old: float, new: float) -> str:
    """The place in a text where gamma was moved."""
    return f'<small style="opacity:.75;margin:0 .3em">⟨γ {old:g} → {new:g}⟩</small>'


def ribbon(steps: Iterable[Step]) -> str:
    """Tokens one after the other, with a mark wherever gamma changed between two."""
    pieces, gamma = [], None
    for step in steps:
        if gamma is not None and step.gamma is not None and step.gamma != gamma:
            pieces.append(mark(gamma, step.gamma))
        gamma = step.gamma
        pieces.append(token(step))
    return f'<div style="{RIBBON}">{"".join(pieces)}</div>'


def table(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, side by side."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table><caption style='text-align:left'>{html.escape(caption)}</caption>{cells}</table>"


__all__ = ["details", "mark", "ribbon", "table", "token"]
