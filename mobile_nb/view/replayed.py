"""A recording under any gamma: what a token takes, and what one token's two lanes look like. Knows no widgets.

A recording made with gamma above 1 holds both outcomes of every token, so that a slider can move over it without the
model: one replay a position, of the whole recording for the curve and of its first text for the lanes.
"""

from __future__ import annotations

from dataclasses import replace

import plotly.graph_objects as go

from ..analysis.spans import spans
from ..hardware import Geometry, Hardware
from ..runtime.config import MobileConfig
from ..runtime.layout import layout
from ..runtime.replay import Replay, play_laid
from ..runtime.tape import Selection, Tape
from ..trace import Trace
from ..vocabulary import LITTLE, MobileError
from . import theme
from .time import draw, timeline

GAMMAS = [n / 20 for n in range(21)]
HEIGHT = 340  # of both figures, pixels


class Replayed:
    """A recording, and the setting under which it is played again.

    Args:
        trace: recorded with gamma above 1.

    Attributes:
        token: (request, step) of the first text's least sure token: the first to fall back as gamma rises.

    Raises:
        MobileError: the recording holds no token of both models.
    """

    def __init__(self, trace: Trace):
        self._tape = Tape(trace)
        first = [done for done in trace.passes if done.request == trace.passes[0].request]
        self._text = Tape(Trace(trace.conditions, first))
        unsure = [(done.confidence, done.request, done.step) for done in first if done.mode == LITTLE]
        if not unsure:
            raise MobileError("this trace holds no little tokens: record it with systems.mobile(gamma=1.1).")
        self.token = min(unsure)[1:]

    def under(self, config: MobileConfig, hardware: Hardware, geometry: Geometry | None = None) -> None:
        """Chooses what is replayed: `config` but for its gamma, on `hardware`; geometry None for the recording's."""
        self._config, self._machine = config, (hardware, geometry)
        self._numbers: dict[bytes, dict] = {}  # by what falls back: many gammas are one
        self._rows: dict[bytes, object] = {}  # the same for the lanes
        self._curve: go.Figure | None = None  # kept, as the lanes: to draw anew takes several times as long
        self._lanes: go.Figure | None = None

    def numbers(self, gamma: float) -> dict:
        """fallback_ratio, seconds_per_token, bytes_per_token and the others of `Replay.summary`."""
        config, selection = self._select(self._tape, gamma)
        key = selection.index.tobytes()
        if key not in self._numbers:
            played = self._play(self._tape, selection, config, record=False)
            self._time = played.conditions["time"]
            self._numbers[key] = played.summary()
        return self._numbers[key]

    def curve(self, gamma: float) -> go.Figure:
        """Milliseconds a token against the fallback ratio, over all gammas, with this one marked."""
        if self._curve is None:
            self._curve = _all_gammas([self.numbers(each) for each in GAMMAS], self._time)
        here = self.numbers(gamma)
        x, y = 100 * here["fallback_ratio"], 1e3 * here["seconds_per_token"]
        (note,) = self._curve.layout.annotations
        note.text = f"<b>γ {gamma:.2f}</b><br>{x:.1f} % fall back<br>{y:.1f} ms a token"
        note.x, note.y, note.ax, note.xanchor = (x, y, -28, "right") if x > 50 else (x, y, 28, "left")
        self._curve.data[1].x, self._curve.data[1].y = [x], [y]
        return self._curve

    def lanes(self, gamma: float) -> go.Figure:
        """What is computed and what is copied while the first text's least sure token is written."""
        config, selection = self._select(self._text, gamma)
        request, step = self.token
        key = selection.index[self._text.steps[selection.index] <= step].tobytes()
        if key not in self._rows:
            played = self._play(self._text, selection, config, record=True)
            self._rows[key] = spans(played.trace, request=request, steps=[step])
        rows = self._rows[key]
        if self._lanes is None:
            self._lanes = timeline(rows).update_layout(height=HEIGHT, legend={"y": -0.5}, margin={"l": 70})
        elif rows is not self._shown:
            self._lanes.data = ()
            draw(self._lanes, rows)
        self._shown = rows
        written = "evicted, and written again" if (rows["mode"] != LITTLE).any() else "kept"
        self._lanes.layout.title.text = f"One token at γ {gamma:.2f}: {written}"
        return self._lanes

    def _select(self, tape: Tape, gamma: float) -> tuple[MobileConfig, Selection]:
        config = replace(self._config, keep=replace(self._config.keep, gamma=gamma))
        return config, tape.select(config)

    def _play(self, tape: Tape, selection: Selection, config: MobileConfig, *, record: bool) -> Replay:
        return play_laid(tape, selection, layout(tape, selection, config), config, *self._machine, record=record)


def _all_gammas(rows: list[dict], time: str) -> go.Figure:
    """The curve, and a mark on it that is still to be moved."""
    figure, most = go.Figure(), max(1e3 * row["seconds_per_token"] for row in rows)
    figure.add_scatter(
        x=[100 * row["fallback_ratio"] for row in rows],
        y=[1e3 * row["seconds_per_token"] for row in rows],
        mode="lines+markers", customdata=GAMMAS, showlegend=False,
        line={"color": theme.WAIT, "width": 2}, marker={"color": theme.LITTLE, "size": 7},
        hovertemplate="γ %{customdata:.2f}: %{x:.1f} % fall back, %{y:.1f} ms a token<extra></extra>",
    )  # fmt: skip
    look = {"color": theme.BIG, "size": 15, "symbol": "diamond", "line": {"width": 2, "color": "white"}}
    figure.add_scatter(x=[0], y=[0], mode="markers", showlegend=False, hoverinfo="skip", marker=look)
    figure.add_annotation(x=0, y=0, align="left", ay=-62, showarrow=True, arrowhead=0)
    figure.update_layout(
        xaxis={"title": "tokens that fall back, %", "range": [-3, 104]},
        yaxis={"title": "ms a token", "range": [0, 1.6 * most]},
    )
    return theme.finished(figure, "What gamma costs", time, height=HEIGHT)


__all__ = ["GAMMAS", "Replayed"]
