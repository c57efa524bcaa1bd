"""Runs a recorded trace through the scheduler again, without the model: other slots, eviction, prefetch, link or size.

The routing is taken as it was recorded. What would change the text is refused, but for gamma: a recording whose every
token fell back holds both outcomes of each position (see `tape`). Replayed under its own configuration, a simulated
run gives its own numbers, to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..clock import VirtualClock
from ..costs import Costs
from ..hardware import Geometry, Hardware
from ..memory.cache import Cache
from ..memory.link import SimulatedLink
from ..memory.scheduler import COUNTERS, Scheduler
from ..memory.script import Played, interpret
from ..policies import LFU, LRU, Belady, Nothing
from ..trace import Copy, Trace
from ..vocabulary import PROMPT, MobileError
from .config import MobileConfig, choose_slots, conditions, found
from .facts import looks_ahead, revises
from .foresight import Foresight
from .forms import Forms
from .layout import costed, layout
from .missed import answers
from .tape import Selection, Tape

COMPILED = (LRU, LFU, Belady)  # their places are those of LEAST_RECENT, LEAST_FREQUENT and FARTHEST in memory.rules


@dataclass
class Replay:
    """What `replay` returns. Every figure is simulated, and of the tokens after the prompts."""

    tape: Tape
    selection: Selection
    played: Played
    conditions: dict
    gamma: float

    @cached_property
    def trace(self) -> Trace:
        """The recording with the times, copies, hits and misses of the replay."""
        return Trace(self.conditions, list(self._passes()))

    @property
    def tokens(self) -> int:
        """Tokens written after the prompts."""
        return int((self._decoded & self.selection.wrote).sum())

    @property
    def fallback_ratio(self) -> float:
        """Share of tokens whose little version was evicted."""
        wrote = self.selection.wrote
        return self._a_token(int((~wrote[:-1] & wrote[1:]).sum()))  # several drafts of one turn make one token

    @property
    def hit_rate(self) -> float:
        """Share of expert requests that found their expert in a slot."""
        return self._count("hits") / max(1, self._count("requests"))

    @property
    def seconds_per_token(self) -> float:
        """Mean simulated seconds of a token."""
        return self._a_token(float((self.played.end - self.played.begin)[self._decoded].sum()))

    @property
    def bytes_per_token(self) -> float:
        """Mean expert bytes over the link."""
        fetched = self._count("misses") + self._count("prefetches")
        return self._a_token(fetched * self.conditions["expert_bytes"])

    @property
    def prefetches_used(self) -> float:
        """Share of the prefetched experts that were asked for before they had to leave; NaN without prefetches."""
        prefetched = self._count("prefetches")
        return self._count("used") / prefetched if prefetched else float("nan")

    def summary(self) -> dict:
        """All figures, as a row of a table."""
        names = "tokens fallback_ratio hit_rate bytes_per_token seconds_per_token prefetches_used".split()
        return {name: getattr(self, name) for name in names}

    def _a_token(self, total: float) -> float:
        return total / self.tokens if self.tokens else float("nan")

    @cached_property
    def _decoded(self) -> np.ndarray:
        return self.tape.steps[self.selection.index] > 0

    def _count(self, name: str) -> int:
        return int(self.played.counts[self._decoded, COUNTERS.index(name)].sum())

    def _passes(self):
        bounds = np.searchsorted(self.played.copies["pass_"], np.arange(len(self.selection.index) + 1))
        begin, end = self.played.begin.tolist(), self.played.end.tolist()
        copies = self.played.copies.tolist()
        for n, i in enumerate(self.selection.index):
            done = self.tape.passes[i]
            made = [
                Copy("prefetch" if early else "demand", *rest) for _, early, *rest in copies[slice(*bounds[n:][:2])]
            ]
            counts = dict(zip(COUNTERS[:4], self.played.counts[n], strict=False))
            token = done.token_id
            if self.selection.wrote[n] and token < 0:  # kept here, evicted there: the text is the recording's
                token = self.tape.passes[i + 1].token_id
            gamma = done.gamma if done.mode == PROMPT else self.gamma
            yield replace(
                done, token_id=token, gamma=gamma, begin=begin[n], end=end[n], copies=made, waves=[], **counts
            )


def replay(
    trace: Trace | Tape,
    config: MobileConfig,
    *,
    hardware: Hardware | str | None = None,
    geometry: Geometry | str | None = None,
) -> Replay:
    """Plays a trace again under other slots, eviction, prefetch, gamma, hardware or geometry.

    Args:
        trace: of a live run, or `Trace.from_routing`.
        config: with the recording's count, miss and codec. Its keep may be another where the recording holds the
            passes that it asks for: all of them if it was made with gamma above 1. From such a recording the big
            model alone can be replayed too, whose count is `TopK()`.
        hardware, geometry: as in `offload`; None for the recording's.

    Raises:
        MobileError: the change would change the text, or needs what was not recorded.
    """
    tape = trace if isinstance(trace, Tape) else Tape(trace)
    selection = tape.select(config)
    everybody = isinstance(config.slots, int) and config.slots >= tape.experts  # then nobody is asked whom to fetch
    laid = layout(tape, selection, replace(config, prefetch=Nothing()) if everybody else config)
    return play_laid(tape, selection, laid, config, hardware, geometry, record=True)


def play_laid(tape: Tape, selection: Selection, laid: dict, config, hardware, geometry, *, record: bool) -> Replay:
    """`replay`, of a selection that is laid out already; without `record` it keeps no copies."""
    about = tape.trace.conditions
    hardware, geometry = machine_of(about, hardware), _sizes(about, geometry)
    costs = Costs(hardware, geometry, tape.layers)
    free_gb = 0.9 * hardware.device_gb - geometry.other_gb
    slots, chosen = choose_slots(config, geometry, tape.experts, free_gb)
    script = costed(laid, costs)
    asked = looks_ahead(config) or revises(config) or answers(config)  # while it plays
    if type(config.evict) in COMPILED and not asked and isinstance(slots, int):
        from ..memory.compiled import play

        leaves = COMPILED.index(type(config.evict))
        played = play(script, tape.layers, tape.experts, slots, costs.fetch_s, leaves, record=record)
    else:
        sizes = Forms(config.codec, tape.layers, tape.experts).sizes(slots)
        link = SimulatedLink(VirtualClock(), tape.layers, int(sizes.max()), costs.fetch_s)
        cache = Cache(tape.layers, tape.experts, sizes[None], config.evict)
        scheduler = Scheduler(cache, link, record=record)
        view = Foresight(tape, selection, laid["asked_at"], laid["asked"])
        beside = view.beside(config, scheduler) if asked else None
        hosted = view.hosted(config, laid["amounts"], costs.host_s) if answers(config) else None
        played = interpret(script, scheduler, beside, hosted)
    about = about | conditions(config, costs, slots, chosen) | {"exact": selection.exact}
    about["time"] += ", replayed"
    gamma = getattr(config.keep, "gamma", math.nan) if config.two_passes else math.nan
    return Replay(tape, selection, played, about, gamma)


def machine_of(about: dict, hardware: Hardware | str | None) -> Hardware:
    """The hardware of a replay: as given, or the recording's."""
    if hardware is None and not about.get("hardware_rates"):
        raise MobileError("this trace holds no machine's rates (it was measured, or made elsewhere): give hardware=.")
    return found(Hardware, Hardware(**about["hardware_rates"]) if hardware is None else hardware, Hardware.preset)


def _sizes(about: dict, geometry: Geometry | str | None) -> Geometry:
    if geometry is None and not about.get("geometry_sizes"):
        raise MobileError("this trace does not say what the model weighs: give geometry=.")
    return found(Geometry, Geometry(**about["geometry_sizes"]) if geometry is None else geometry, Geometry.of)


__all__ = ["Replay", "machine_of", "play_laid", "replay"]
