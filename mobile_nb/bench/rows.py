"""One configuration, measured: tokens/s beside what its bytes and its arithmetic alone take, and what the host did.

Where the clock is simulated (no card) every figure is, and the row says so.
"""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass, replace

import torch

from .. import systems
from ..analysis import metrics
from ..analysis.spans import overlap, spans
from ..hardware import Hardware
from ..policies import Nothing, Scheduled
from ..runtime.config import MobileConfig
from ..runtime.offload import offload
from ..runtime.replay import replay
from ..trace import Trace
from ..vocabulary import MobileError
from .bounds import Yardstick, bounds, fitted
from .scripted import Recording

SHARES = (0.11, 0.21)  # of tokens that fall back, in the paper (arXiv 2510.12357)
COUNTED = 2  # tokens after the timed ones whose waits and launches are counted, each
LEAST = 4  # tokens that a row needs
WAITED = "called a synchronizing CUDA operation"  # torch's words where the host waits; its notice has others


@dataclass(frozen=True)
class Job:
    """What a row runs.

    Attributes:
        system: its name in the table.   config: see `MobileConfig`.
        forget: the slots are emptied before each token: offloading without a cache.
        alone: nothing is copied, so that the arithmetic and its launches are timed alone; the text means nothing.
        static: with a static KV cache and, on a card, CUDA graphs.
    """

    system: str
    config: MobileConfig
    forget: bool = False
    alone: bool = False
    static: bool = False


@dataclass
class Setting:
    """What rows of one model share.

    Attributes:
        prompt: ids [1, T].   recording: routing in the routers' place, or None.   sampled: draw tokens, seeded.
        hardware, geometry: as in `offload`; None where time is measured.
    """

    prompt: torch.Tensor
    seed: int = 0
    recording: Recording | None = None
    sampled: bool = True
    hardware: object = None
    geometry: object = None
    most: int = 64


def jobs(top_k: int, slots: list[int], *, seed: int = 0, gamma: float | None = None, quick: bool = False) -> list[Job]:
    """The rows of a model, without what needs another engine. `gamma`: None for scripted fallbacks."""
    found = [Job(ALONE, systems.on_demand(slots=slots[-1]), alone=True)]
    found += [Job(ALONE_LITTLE, systems.little(slots=slots[-1]), alone=True)]
    if not quick:
        found.append(Job("on demand, no cache", systems.on_demand(slots=min(slots[0], top_k)), forget=True))
    for s in slots:
        found += [Job("on demand, LRU", systems.on_demand(slots=s)), Job("next gate", systems.next_gate(slots=s))]
        found.append(Job("all little", systems.little(slots=s)))
        keeps = (
            {f"MoBiLE, gamma {gamma:g}": None} if gamma is not None else {f"MoBiLE, {100 * x:.0f} %": x for x in SHARES}
        )
        for name, share in keeps.items():
            config = systems.mobile(0.7 if gamma is None else gamma, slots=s)
            config = config if share is None else replace(config, keep=Scheduled(share, seed))
            found.append(Job(name, config))
            if share in (None, SHARES[0]):
                found.append(Job(f"{name}, no prefetch", replace(config, prefetch=Nothing())))
    return found


ALONE, ALONE_LITTLE = "computing K alone", "computing K/2 alone"


def run(model, job: Job, setting: Setting, yardstick: Yardstick, seconds: float) -> dict:
    """Writes tokens for about `seconds` (at least LEAST of them) and returns the row.

    Keys: tokens, fallback_ratio, tokens_per_s, ms_per_token, mb_per_token, hit_rate, time; those of `bounds`; overlap
    (part of the smaller of copying and computing that lay within the other) and link_busy (part of the time in which
    something was copied); waits, launches (kernels that ran) and calls (how often the host launched a kernel or a graph
    of them) a token, None without a card; predicted_ms (`replay` of the same routing on the card's own rates) and
    predicted_over_ms; fitted_ms and fitted_over_ms, the same with launches as long as `fitted` finds them and with what
    lies between passes. A row that computes alone has pass_ms instead: of a token, what its pass took. Scripted
    fallbacks come in whole periods: of nine tokens one where the share is 11 %.
    """
    static = setting.prompt.shape[1] + _most(setting) if job.static else None
    with offload(model, job.config, hardware=setting.hardware, geometry=setting.geometry, static=static) as engine:
        if job.static:  # passes are recorded in a text of their own; slots and trace begin anew
            engine.generate(setting.prompt, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
            engine.change()
        if setting.recording is not None:
            setting.recording.put_into(engine)
        if job.alone:
            _copy_nothing(engine)
        took, counted = _write(engine, job, setting, seconds)
        trace = engine.trace
    whole = Trace(trace.conditions, [done for done in trace.passes if done.step <= len(took)])
    row = {"tokens": len(took), "tokens_per_s": len(took) / sum(took), "ms_per_token": 1e3 * sum(took) / len(took)}
    if job.alone:
        row["pass_ms"] = 1e3 * metrics.seconds_per_token(whole.to_frame("steps"))
    else:
        row |= _bytes(whole) | bounds(whole, job.config, yardstick, row["ms_per_token"]) | _lanes(whole, sum(took))
        card = fitted(engine._server.costs, engine._server.layers[0].top_k, yardstick)
        row |= _predicted(whole, job, engine, row["ms_per_token"], engine.hardware, 0.0, "predicted")
        row |= _predicted(whole, job, engine, row["ms_per_token"], card, yardstick.rest_s, "fitted")
    return row | counted | {"time": trace.conditions["time"], "page_locked": trace.conditions["page_locked"]}


def _write(engine, job: Job, setting: Setting, seconds: float) -> tuple[list[float], dict]:
    torch.manual_seed(setting.seed)
    how = {"do_sample": True, "top_k": 0} if setting.sampled else {"do_sample": False}
    words = engine.stream(setting.prompt, max_new_tokens=_most(setting), eos_token_id=None, pad_token_id=0, **how)
    took: list[float] = []
    try:
        next(words)
        begun, period = time.perf_counter(), _period(job, setting.most)
        while len(took) + period <= setting.most and (len(took) < LEAST or time.perf_counter() - begun < seconds):
            for _ in range(period):
                if job.forget:
                    engine._server.scheduler.cache.clear()
                took.append(next(words).seconds)
        counted = _counted(words, engine) if engine.measured and torch.cuda.is_available() else {}
    finally:
        words.close()
    return took, {"waits": None, "launches": None, "calls": None} | counted


def _period(job: Job, most: int) -> int:
    """Tokens that are timed together: as many as one scripted fallback comes in, so that every row has its share."""
    return min(most, round(1 / job.config.keep.share)) if isinstance(job.config.keep, Scheduled) else 1


def _most(setting: Setting) -> int:
    """New tokens of a row: the first, those that are timed, and those that are counted twice."""
    return setting.most + 2 * COUNTED + 1


def _counted(words, engine) -> dict:
    """How often the host waits for the card in a token, how many kernels run, and how often the host launches."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(COUNTED):
                next(words)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    waits = sum(WAITED in str(warning.message) for warning in seen) / COUNTED
    for name, value in (("TEARDOWN_CUPTI", "0"), ("DISABLE_CUPTI_LAZY_REINIT", "1")):
        os.environ.setdefault(name, value)  # a profiler that is begun anew can crash beside CUDA graphs, torch says
    try:
        with profiled() as profile:
            for _ in range(COUNTED):
                next(words)
            torch.cuda.synchronize()
        events = profile.events()
        launches, calls = launches_of(events) / COUNTED, calls_of(events) / COUNTED
    except StopIteration:
        raise
    except Exception:  # some containers do not let the profiler see the card
        launches = calls = None
    return {"waits": waits, "launches": launches or None, "calls": calls or None}


def profiled():
    """torch's profiler, of host and card; torch 2.11 warns of events that it forgets unless it is told to keep them."""
    return torch.profiler.profile(activities=list(torch.profiler.supported_activities()), acc_events=True)


def launches_of(events) -> int:
    """Kernels among a profiler's events: what ran on the card and is neither a copy nor a fill."""
    there = [event for event in events if str(event.device_type).endswith("CUDA")]
    return sum(not event.name.startswith(("Memcpy", "Memset", "ProfilerStep")) for event in there)


def calls_of(events) -> int:
    """Launches by the host among a profiler's events: of one kernel, or of a CUDA graph, however many it holds."""
    here = [event for event in events if not str(event.device_type).endswith("CUDA")]
    return sum(event.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")) for event in here)


def _copy_nothing(engine) -> None:
    """Fills every slot with some expert once, and then has the link do nothing."""
    server = engine._server
    for arena, slots in zip(server.arenas, server._slots, strict=True):
        for at, block in enumerate(slots.blocks):
            arena.copy_to(at, block)
    if engine.measured and torch.cuda.is_available():
        torch.cuda.synchronize()
    server.link.mover = lambda layer, expert, slot: None
    if hasattr(server.link, "fetch_s"):  # simulated
        server.link.fetch_s = server.link.fetch_s * 0


def _bytes(trace: Trace) -> dict:
    steps = trace.to_frame("steps")
    found = {"fallback_ratio": metrics.fallback_ratio(steps), "hit_rate": metrics.hit_rate(steps)}
    return found | {"mb_per_token": metrics.bytes_per_token(steps) / 1e6}


def _lanes(trace: Trace, seconds: float) -> dict:
    try:
        found = overlap(spans(trace))
    except MobileError:  # everything was on the device
        return {"overlap": None, "link_busy": 0.0}
    return {"overlap": found["share"], "link_busy": found["link"] / seconds}


def _predicted(trace: Trace, job: Job, engine, ms: float, card: Hardware | None, rest_s: float, name: str) -> dict:
    """What the simulator says of the same routing on a card's rates, `rest_s` between the passes of a token."""
    row = {f"{name}_ms": None, f"{name}_over_ms": None}
    if job.forget or card is None:
        return row  # a replay does not forget
    try:
        done = replay(trace, job.config, hardware=card, geometry=engine.geometry)
    except MobileError as problem:
        return row | {f"not_{name}": str(problem)}
    found = 1e3 * (done.seconds_per_token + rest_s)
    return {f"{name}_ms": found, f"{name}_over_ms": found / ms}


__all__ = ["ALONE", "ALONE_LITTLE", "Job", "Setting", "calls_of", "jobs", "launches_of", "run"]
