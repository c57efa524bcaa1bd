"""`GammaExplorer`: a model that writes in the background while its threshold is moved. Thin: the writing is `writer`'s,
the tokens are `html`'s, the controls `controls`' and the replayed figures `replayed`'s.
"""

from __future__ import annotations

import html as escape
import time
from collections.abc import Sequence

import ipywidgets as widgets

from .. import html
from ..runtime.engine import BUSY, Engine
from ..trace import Trace
from ..vocabulary import MobileError, Step
from .controls import Controls
from .display import Shown, outputs
from .replayed import Replayed
from .writer import Writer, sentence

REDRAWS_PER_S, BYTES_PER_S = 15, 1e6  # what a browser is sent at most while text comes
LEGEND = (
    f'<span style="{html.PLAIN}">little model</span> &nbsp; <b style="{html.TINT}">big model</b> &nbsp; '
    '<span style="opacity:.75">⟨γ moved⟩ &nbsp; rest the pointer on a token for what it cost</span>'
)


class GammaExplorer(Shown):
    """Shown by a notebook as a prompt, a gamma slider, Start and Stop; the text comes coloured by who wrote it.

    Args:
        engine: an open engine whose system has a gamma.
        trace: a recording made with gamma above 1: the slider then also moves over its replay.
        prompt: what the prompt box holds at first.
        generation_kwargs: as in `Engine.stream`; by default 128 tokens, greedy.

    Attributes:
        prompt, gamma, fraction, slots, link, pace: ipywidgets; assign to `.value` as a reader moves them.
        steps: the `Step`s of the text so far.   problem: the sentence that is shown in red, or "".

    Raises:
        MobileError: the engine has no gamma, or the trace no little tokens.
    """

    def __init__(self, engine: Engine, *, trace: Trace | None = None, prompt: str | None = None, **generation_kwargs):
        self.engine, self.steps, self.problem = engine, [], ""
        self._kwargs = {"max_new_tokens": 128, "do_sample": False} | generation_kwargs
        self._writer, self._drawn = Writer(engine, self._show, self._ended), 0.0
        self._controls = Controls(engine, prompt or "")
        for name in ("prompt", "gamma", "fraction", "slots", "link", "pace"):
            setattr(self, name, getattr(self._controls, name))
        self._start = widgets.Button(description="Start", button_style="primary", icon="play")
        self._stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self._tally, self._text, self._said = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._text.layout = widgets.Layout(width="100%", min_height="7em")
        self._replayed = None if trace is None else Replayed(trace)
        halves = [
            widgets.Output(layout={"flex": "1 1 420px", "min_width": "0"}) for _ in range(2 * (trace is not None))
        ]
        self._figures = widgets.HBox(halves, layout=widgets.Layout(flex_flow="row wrap", width="100%"))
        named = {
            "start": self._start,
            "stop": self._stop,
            "tally": self._tally,
            "text": self._text,
            "figures": self._figures,
        }
        for name, part in named.items():
            part.add_class(f"mobile-nb-{name}")
        self._start.on_click(lambda _: self.start())
        self._stop.on_click(lambda _: self.stop())
        self.gamma.observe(lambda change: self._moved(), "value")
        self.pace.observe(lambda change: setattr(self._writer, "pace", change["new"]), "value")
        for control in (self.fraction, self.slots, self.link):
            control.observe(lambda change: self._set_otherwise(), "value")
        self._draw()
        self._replay(anew=True)
        super().__init__(
            self.prompt, widgets.HBox([self._start, self._stop, self._said]), self._controls.box, self._tally,
            self._text, self._figures,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"GammaExplorer({type(self.engine.model).__name__})"

    def start(self) -> None:
        """What the Start button does: applies what was set otherwise, and writes from the prompt."""
        if self._writer.writing:
            return
        try:
            if self.engine.writing:
                raise MobileError(BUSY)
            if self._controls.changes(self.engine):
                self.engine.change(self._controls.config(self.engine), hardware=self._hardware())
            self.engine.gamma = self.gamma.value
            self.steps = []
            self._draw()
            self._busy(True)
            self._tell()
            self._writer.start(self.prompt.value, **self._kwargs)
        except Exception as problem:
            self._ended(sentence(problem))

    def stop(self) -> None:
        """What the Stop button does: the text ends after the token at hand."""
        self._writer.stop()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until the text is over, at most so long; returns whether it is."""
        return self._writer.wait(seconds)

    def close(self) -> None:
        """Stops the text and removes the widgets."""
        self.stop()
        super().close()

    # -- what comes from the writer's thread -----------------------------------------------------------------------

    def _show(self, step: Step) -> None:
        self.steps.append(step)
        pause = max(1 / REDRAWS_PER_S, len(self._text.value) / BYTES_PER_S)
        if time.perf_counter() - self._drawn > pause:
            self._draw()

    def _ended(self, problem: str | None) -> None:
        self._draw()
        self._busy(False)
        self._tell(problem)

    # -- what comes from the controls ------------------------------------------------------------------------------

    def _moved(self) -> None:
        self.engine.gamma = self.gamma.value
        self._replay()

    def _set_otherwise(self) -> None:
        self._tell()
        self._replay(anew=True)

    def _hardware(self):
        return None if self.engine.measured else self.link.value

    def _replay(self, anew: bool = False) -> None:
        if self._replayed is None:
            return
        try:
            if anew:
                self._replayed.under(self._controls.config(self.engine), self.link.value, self.engine.geometry)
            figures = self._replayed.curve(self.gamma.value), self._replayed.lanes(self.gamma.value)
            for output, figure in zip(self._figures.children, figures, strict=True):
                output.outputs = outputs(figure)
        except MobileError as problem:  # a figure less; the model can write all the same
            said = {"text/html": f"<p>{escape.escape(sentence(problem))}</p>", "text/plain": sentence(problem)}
            for output, data in zip(self._figures.children, (said, None), strict=True):
                output.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},) if data else ()

    # -- what is seen ----------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        self._drawn = time.perf_counter()
        self._text.value = html.ribbon(list(self.steps))
        self._tally.value = f"{tally(self.steps, self.engine.trace.conditions['time'])}<br>{LEGEND}"

    def _busy(self, busy: bool) -> None:
        self._start.disabled, self._stop.disabled = busy, not busy

    def _tell(self, problem: str | None = None) -> None:
        """What went wrong, in red, or else what is set and not in force yet."""
        self.problem, changes = problem or "", self._controls.changes(self.engine)
        if problem:
            look, said = 'role="alert" style="color:var(--jp-error-color1, #d32f2f)"', problem
        else:
            look, said = (
                'style="opacity:.75"',
                f"From the next Start: {', '.join(changes.values())}." if changes else "",
            )
        self._said.value = said and f"<span {look}>{escape.escape(said)}</span>"


def tally(steps: Sequence[Step], time: str) -> str:
    """Running figures of the tokens after the first, whose cost is the prompt's."""
    later = steps[1:]
    if not later:
        return f"{len(steps)} tokens · {time}"
    seconds = sum(step.seconds for step in later)
    ratio = sum(step.fell_back for step in later) / len(later)
    moved = sum(step.bytes_moved for step in later) / len(later) / 1e6
    speed = f"{len(later) / seconds:.1f} tokens/s" if seconds else "no time"
    return f"<b>{len(steps)} tokens · {100 * ratio:.0f} % fell back · {speed} · {moved:.0f} MB a token</b> · {time}"


__all__ = ["GammaExplorer", "tally"]
