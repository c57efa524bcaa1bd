"""Runs a recorded trace through the scheduler again, without the model: other slots, eviction, prefetch, link or size.

The routing is taken as it was recorded, so only what does not change the text can be changed: count, keep, miss and
codec must be those of the recording. Replayed under its own configuration, a simulated run gives its own numbers.

Legend: T tokens of a pass · K experts routed to · k of them run · L MoE layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..clock import VirtualClock
from ..costs import Costs
from ..hardware import Geometry, Hardware
from ..memory.cache import Cache
from ..memory.link import SimulatedLink
from ..memory.scheduler import Scheduler
from ..trace import Pass, Trace
from ..vocabulary import PROMPT, MobileError
from .config import QUESTIONS, MobileConfig, choose_slots
from .serve import ask, best_first

FIXED = ("count", "keep", "miss", "codec")  # what changes the text


@dataclass
class Replay:
    """What `replay` returns: `trace`, the recording with the times, copies, hits and misses of the replay."""

    trace: Trace

    @property
    def hit_rate(self) -> float:
        """Share of expert requests after the prompt that found their expert in a slot."""
        rows = self._rows()
        return sum(int(p.hits.sum()) for p in rows) / max(1, sum(int(p.requests.sum()) for p in rows))

    @property
    def seconds_per_token(self) -> float:
        """Mean simulated seconds of the tokens after the prompt."""
        return sum(p.end - p.begin for p in self._rows()) / max(1, self._tokens())

    @property
    def bytes_per_token(self) -> float:
        """Mean expert bytes over the link of the tokens after the prompt."""
        copies = sum(len(p.copies) for p in self._rows())
        return copies * self.trace.conditions["expert_bytes"] / max(1, self._tokens())

    def _rows(self) -> list[Pass]:
        return [p for p in self.trace.passes if p.step > 0]

    def _tokens(self) -> int:
        return sum(p.token_id >= 0 for p in self._rows())


@dataclass
class _View:
    """What a prefetcher may know in a replay: everything but the model's own gates."""

    layers: int
    mode: str = PROMPT
    evicted: list[list[int]] | None = None

    def gate(self, layer: int):
        raise MobileError("a replay has no model whose gates could be read; run this prefetcher live, with offload.")


def replay(
    trace: Trace,
    config: MobileConfig,
    *,
    hardware: Hardware | str | None = None,
    geometry: Geometry | str | None = None,
) -> Replay:
    """Plays a trace again under other slots, eviction, prefetch, hardware or geometry.

    Args:
        trace: of a live run.
        config: with the recording's count, keep (gamma included), miss and codec.
        hardware, geometry: as in `offload`; None for the recording's.

    Raises:
        MobileError: the change would change the text.
    """
    about = trace.conditions
    recorded = about.get("questions", {})
    for question in FIXED:
        given = repr(getattr(config, question))
        if recorded.get(question, given) != given:
            raise MobileError(
                f"a replay cannot change {question} from {recorded[question]} to {given}: that changes the text, so it "
                "needs the model; run it live, with offload."
            )
    if hardware is None and not about.get("hardware_rates"):
        raise MobileError("this trace was measured on a machine without a model of its rates: give hardware=.")
    hardware = Hardware(**about["hardware_rates"]) if hardware is None else hardware
    hardware = Hardware.preset(hardware) if isinstance(hardware, str) else hardware
    geometry = Geometry(**about["geometry_sizes"]) if geometry is None else geometry
    geometry = Geometry.of(geometry) if isinstance(geometry, str) else geometry
    costs = Costs(hardware, geometry, about["layers"])
    free_gb = 0.9 * hardware.device_gb - geometry.other_gb
    slots, chosen = choose_slots(config, geometry, about["experts"], free_gb)
    link = SimulatedLink(VirtualClock(), about["layers"], slots, costs.fetch_s)
    scheduler = Scheduler(Cache(about["layers"], about["experts"], np.array([slots]), config.evict), link)
    passes = list(_passes(trace.passes, scheduler, config, costs))
    conditions = about | {
        "time": f"simulated on {hardware.name}, timed as {geometry.name}, replayed",
        "measured": False,
        "hardware": hardware.name,
        "geometry": geometry.name,
        "system": repr(config),
        "questions": {question: repr(getattr(config, question)) for question in QUESTIONS},
        "hardware_rates": asdict(hardware),
        "geometry_sizes": asdict(geometry),
        "slots": slots,
        "slots_chosen": chosen,
        "expert_bytes": costs.expert_bytes,
    }
    return Replay(Trace(conditions, passes))


def _passes(recorded: list[Pass], scheduler: Scheduler, config: MobileConfig, costs: Costs) -> Iterable[Pass]:
    """The recording's passes with what the scheduler makes of them."""
    link, counts, view = scheduler.link, scheduler.counts, _View(costs.layers)
    little: Pass | None = None  # the pass before, where its token was evicted
    for done in recorded:
        begin, before = link.clock.read(), {name: count[0].copy() for name, count in counts.items()}
        evicted = best_first(little.ids, little.weights) if little is not None and done.mode == "big" else None
        view.mode, view.evicted = done.mode, evicted
        scheduler.begin_pass()
        _prefetch(-1, scheduler, config, view)
        tokens = done.ids.shape[1]
        for layer in range(costs.layers):
            link.elapse(costs.layer_s(tokens))
            asked, amounts = _asked(done, layer, config)
            seconds = np.array([[costs.expert_s(n) for n in amounts]])
            if scheduler.settled(layer):
                scheduler.all_hit(layer, len(asked), costs.experts_s(amounts))
                continue
            for first, _ in enumerate(scheduler.request(layer, np.array([asked], dtype=np.int64), seconds)):
                if first == 0 and tokens == 1:
                    _prefetch(layer, scheduler, config, view)
        link.elapse(costs.head_s(tokens))
        since = {n: counts[n][0] - before[n] for n in ("requests", "hits", "late", "misses")}
        yield replace(done, begin=begin, end=link.clock.read(), copies=scheduler.take_copies(), **since)
        little = done if done.mode == "little" and done.token_id < 0 else None


def _prefetch(layer: int, scheduler: Scheduler, config: MobileConfig, view: _View) -> None:
    if view.mode != PROMPT and not all(scheduler.settled(at) for at in range(view.layers)):
        wanted = ask(config.prefetch, "wanted", layer, view)
        if wanted:
            scheduler.want(wanted)


def _asked(done: Pass, layer: int, config: MobileConfig) -> tuple[list[int], list[int]]:
    """The experts that a pass asked a layer for, in the order of asking, and how many tokens each served."""
    ids, weights = done.ids[layer], done.weights[layer]  # [T, K]
    run, over = config.count.run(done.mode, layer, ids.shape[1])
    if run < ids.shape[1] or over is not None:
        order = np.argsort(-weights, axis=1, kind="stable")[:, :run]
        ids = np.take_along_axis(ids, order, axis=1)
    if len(ids) == 1:
        return ids[0].tolist(), [1] * ids.shape[1]
    experts, amounts = np.unique(ids, return_counts=True)
    order = np.argsort(-amounts, kind="stable")
    return experts[order].tolist(), amounts[order].tolist()


__all__ = ["Replay", "replay"]
