"""Rows as people read them: a progress bar while they come, a table and a frame when they are there."""

from __future__ import annotations

import contextlib

COLUMNS = {  # heading -> key, format
    "slots": ("slots", "{:d}"),
    "ms a token": ("ms_per_token", "{:.1f}"),
    "tokens/s": ("tokens_per_s", "{:.1f}"),
    "fallback %": ("fallback_ratio", "{:.0%}"),
    "hits %": ("hit_rate", "{:.0%}"),
    "MB a token": ("mb_per_token", "{:.0f}"),
    "link bound, ms": ("link_bound_ms", "{:.1f}"),
    "x": ("over_link_bound", "{:.2f}"),
    "bound, ms": ("bound_ms", "{:.1f}"),
    "x bound": ("over_bound", "{:.2f}"),
    "big pass, ms": ("big_pass_ms", "{:.1f}"),
    "x its bound": ("over_big_pass_bound", "{:.2f}"),
    "overlap": ("overlap", "{:.0%}"),
    "link busy": ("link_busy", "{:.0%}"),
    "waits": ("waits", "{:.0f}"),
    "launches": ("launches", "{:.0f}"),
    "calls": ("calls", "{:.0f}"),
    "predicted, ms": ("predicted_ms", "{:.1f}"),
    "fitted, ms": ("fitted_ms", "{:.1f}"),
}


class Bar:
    """Rows so far of those known about, and what is being measured."""

    def __init__(self, bar):
        self._bar = bar

    def say(self, text: str) -> None:
        self._bar.set_description_str(text)

    def more(self, rows: int) -> None:
        self._bar.total = (self._bar.total or 0) + rows
        self._bar.refresh()

    def step(self, text: str) -> None:
        self.say(text)
        self._bar.update(1)


@contextlib.contextmanager
def shown_bar(progress: bool):
    from tqdm.auto import tqdm

    with tqdm(total=0, disable=not progress, leave=False, unit="row") as bar:
        yield Bar(bar)


def to_frame(result: dict):
    """The rows as a pandas frame; `.attrs` holds the conditions and the link's rates."""
    import pandas as pd

    frame = pd.DataFrame(result["rows"])
    frame.attrs.update(result["conditions"], link=result["link"])
    return frame


def cells(rows: list[dict]) -> list[dict[str, str]]:
    """The rows that have figures, as text."""

    def text(row: dict, key: str, form: str) -> str:
        return "-" if row.get(key) is None else form.format(row[key])

    return [
        {"system": row["system"] + (", static" if row.get("static") else "")}
        | {head: text(row, *how) for head, how in COLUMNS.items()}
        for row in rows
        if "why" not in row
    ]


def report(result: dict, table) -> str:
    """All of it for a terminal. `table`: makes one of rows of text."""
    about, parts = result["conditions"], []
    card = about["hardware"]
    parts.append(f"{card['name']}: {card['link_gb_per_s']:.1f} GB/s from host memory. Figures: {about['figures']}.")
    for name in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["model"] == name]
        first = next((row for row in rows if "layers" in row), {})
        parts.append("")
        parts.append(", ".join([name, *(str(first[key]) for key in ("layers", "weights", "dtype") if key in first)]))
        if first:
            parts.append(f"routing: {first['routing']}; link: {_rates(result['link'].get(name, {}))}")
        shown = cells(rows)
        parts += [table(shown)] if shown else []
        parts += [f"{row.get('system', 'not measured')}: {row['why']}" for row in rows if "why" in row]
    return "\n".join(parts)


def _rates(rates: dict) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in rates.items() if isinstance(value, (int, float)))


__all__ = ["Bar", "cells", "report", "shown_bar", "to_frame"]
