"""`CacheTheatre`: slots that fill and empty, token by token, forwards and back. Thin: `analysis.occupancy` knows who
was where, `seats` draws it.
"""

from __future__ import annotations

import math

import ipywidgets as widgets

from .. import html
from ..analysis.occupancy import occupancy
from ..runtime.text import TextStream
from ..trace import Trace
from ..vocabulary import MobileError, Step, whole
from .display import Shown
from .seats import picture

FRAME_MS = 400  # of Play, a token


class CacheTheatre(Shown):
    """Shown by a notebook as a picture of the slots with Play, a slider over the tokens, and one token back or forth.

    Args:
        trace: of a live run or of a replay.
        tokenizer: gives the tokens their text.

    Attributes:
        step: the slider; assign to its `.value` as a reader would move it.

    Raises:
        MobileError: the trace holds no tokens, or knows of no slots.
    """

    def __init__(self, trace: Trace, *, tokenizer=None):
        if not trace.passes:
            raise MobileError("this trace holds no tokens: let its engine write something first.")
        frame = occupancy(trace)
        shape = -1, trace.conditions["layers"], trace.conditions["slots"]
        self._experts = frame["expert"].to_numpy().reshape(shape)  # [N, L, S]
        self._states = frame["state"].to_numpy().reshape(shape)
        self._time = trace.conditions.get("time", "")
        self._requests, self._steps = _steps(trace, tokenizer)
        last = len(self._steps) - 1
        self.step = widgets.IntSlider(value=0, min=0, max=last, description="token", layout={"width": "100%"})
        play = widgets.Play(value=0, min=0, max=last, interval=FRAME_MS, show_repeat=False)
        self._link = widgets.jslink((play, "value"), (self.step, "value"))
        self._back = widgets.Button(icon="step-backward", tooltip="one token back", layout={"width": "3em"})
        self._on = widgets.Button(icon="step-forward", tooltip="one token on", layout={"width": "3em"})
        self._back.on_click(lambda _: self._by(-1))
        self._on.on_click(lambda _: self._by(1))
        self._text, self._slots = widgets.HTML(), widgets.HTML()
        self._slots.add_class("mobile-nb-slots")
        self.step.observe(lambda change: self._draw(), "value")
        self._draw()
        super().__init__(widgets.HBox([play, self._back, self._on, self.step]), self._text, self._slots)

    def __repr__(self) -> str:
        tokens, layers, slots = self._experts.shape
        return f"CacheTheatre({tokens} tokens, {layers} layers of {slots} slots)"

    def still(self, step: int | None = None) -> str:
        """The picture of one token as HTML; by default of the one that is shown."""
        at = self.step.value if step is None else whole("step", step, low=0, hint="a token's number")
        if at >= len(self._steps):
            raise ValueError(f"step must be below {len(self._steps)}, the number of tokens, got {at}.")
        return self._ribbon(at) + self.svg(at)

    def svg(self, at: int) -> str:
        """The slots after token number `at`, as SVG."""
        step = self._steps[at]
        title = f"The slots after token {at + 1} of {len(self._steps)}: “{step.text.strip()}”"
        return picture(self._experts[at], self._states[at], title, html.details(step), self._time)

    def _by(self, tokens: int) -> None:
        self.step.value += tokens  # the slider keeps its bounds

    def _draw(self) -> None:
        self._text.value, self._slots.value = self._ribbon(self.step.value), self.svg(self.step.value)

    def _ribbon(self, at: int) -> str:
        """The text up to a token."""
        same = [n for n in range(at + 1) if self._requests[n] == self._requests[at]]
        return html.ribbon(self._steps[n] for n in same)


def _steps(trace: Trace, tokenizer) -> tuple[list[int], list[Step]]:
    """Which text each token belongs to, and its `Step`."""
    requests, steps, text = [], [], None
    for row in trace.to_frame("steps").to_dict("records"):
        if text is None or row["request"] != requests[-1]:
            text = TextStream(tokenizer)
        requests.append(row["request"])
        names = "token_id wrote confidence seconds bytes_moved hits misses fell_back".split()
        said = text.add(row["token_id"]) if tokenizer is not None else f" ⟨{row['token_id']}⟩"
        gamma = None if math.isnan(row["gamma"]) else row["gamma"]
        steps.append(Step(text=said, gamma=gamma, **{name: row[name] for name in names}))
    return requests, steps


__all__ = ["CacheTheatre"]
