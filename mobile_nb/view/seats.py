"""Slots as a picture: who sits where after one token, and why. SVG from two small arrays; knows no traces or widgets.

Colours are those of every figure; a mark or a border says the same without them. Cells bring their own ground, so that
the picture is readable on light and dark pages.

Legend: L MoE layers · S slots a layer.
"""

from __future__ import annotations

import html

from . import theme

# state -> what it is called, fill, colour of the text, border, mark before the expert's number
LOOKS = {
    "hit": ("hit by this token", theme.EXPERT, "white", theme.EXPERT, ""),
    "demand": ("fetched on demand", theme.DEMAND, "black", theme.DEMAND, "↓"),
    "prefetched": ("prefetched, and used", theme.PREFETCH, "black", theme.PREFETCH, "⇣"),
    "unused": ("prefetched, not used", "#FBEAF3", "black", theme.PREFETCH, "⇣"),
    "resident": ("resident", "#E4E4E4", "#444444", "#E4E4E4", ""),
    "empty": ("empty", "none", "#888888", "#AAAAAA", ""),
}
CELL, ROW, LEFT, TOP, GREY = 34, 28, 66, 58, "#808080"  # pixels; a grey for both kinds of page
FONT = 'font-family="DejaVu Sans, Helvetica, Arial, sans-serif"'


def picture(experts, states, title: str, about: str = "", caption: str = "") -> str:
    """An SVG of layers × slots, each cell with its expert's id and the look of its state.

    Args:
        experts, states: [L, S], ids (-1 where empty) and names of states.
        title, about: two lines above, the second smaller.   caption: a line below.
    """
    layers, slots = len(experts), len(experts[0])
    key = list(LOOKS.items())
    width = max(LEFT + slots * CELL + 8, LEFT + 4 * 170)
    below = TOP + layers * ROW + 12
    height = below + 22 * -(-len(key) // 4) + 22
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {FONT}>',
        _words(0, 20, title, 15, GREY, weight="bold"),
        _words(0, 42, about, 12, GREY),
    ]
    for layer in range(layers):
        y = TOP + layer * ROW
        parts.append(_words(0, y + 17, f"layer {layer}", 12, GREY))
        for slot in range(slots):
            state = str(states[layer][slot])
            text = "" if state == "empty" else LOOKS[state][4] + str(experts[layer][slot])
            parts.append(_cell(LEFT + slot * CELL, y, text, state))
    for n, (state, (said, *_, mark)) in enumerate(key):
        x, y = LEFT + 170 * (n % 4), below + 22 * (n // 4)
        parts += [_cell(x, y, mark, state, 20, 16), _words(x + 26, y + 12, said, 12, GREY)]
    return "".join([*parts, _words(LEFT, height - 6, caption, 11, GREY), "</svg>"])


def _cell(x: int, y: int, text: str, state: str, width: int = CELL - 4, height: int = ROW - 4) -> str:
    _, fill, colour, border, _ = LOOKS[state]
    dashed = ' stroke-dasharray="3 2"' if state in ("unused", "empty") else ""
    weight = "normal" if state in ("resident", "empty") else "bold"
    box = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{fill}" stroke="{border}"{dashed}/>'
    return box + _words(x + width / 2, y + height / 2 + 4, text, 12, colour, weight=weight, anchor="middle")


def _words(x: float, y: float, text: str, size: int, colour: str, *, weight="normal", anchor="start") -> str:
    if not text:
        return ""
    look = f'font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" {look} xml:space="preserve">{html.escape(text)}</text>'


__all__ = ["LOOKS", "picture"]
