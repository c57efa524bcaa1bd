"""Traces in the JSON of Chrome's trace events, which https://ui.perfetto.dev and chrome://tracing open. No torch here.

Each run is a process with three lanes: its tokens and, inside them, their passes; what is computed; what is copied.
Where the host computes experts, that is a fourth.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping

from ..files import written_whole
from ..trace import Trace
from ..vocabulary import MobileError
from .spans import spans

TOKENS, COMPUTE, LINK, HOST = 1, 2, 3, 4  # thread ids, in the order in which they are shown
LANES = {TOKENS: "tokens and passes", COMPUTE: "compute", LINK: "link", HOST: "host"}


def to_perfetto(traces: Trace | Mapping[str, Trace], path: str | os.PathLike) -> None:
    """Writes one trace, or several by name, as one file, whole or not at all.

    Times are microseconds of each run's clock; `otherData` holds the conditions, which say whether they were measured.

    Raises:
        MobileError: a trace without times, or a path that cannot be written.
    """
    traces = {"run": traces} if isinstance(traces, Trace) else traces
    events: list[dict] = []
    for process, (name, trace) in enumerate(traces.items(), 1):
        events += _process(process, name, trace)
    about = {name: trace.conditions for name, trace in traces.items()}
    whole = {"displayTimeUnit": "ms", "otherData": about, "traceEvents": events}
    try:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(whole), encoding="utf-8")
    except OSError as problem:
        raise MobileError(f"the trace cannot be written to {path}: {problem.strerror or problem}.") from problem


def _process(process: int, name: str, trace: Trace) -> list[dict]:
    if not trace.passes or trace.passes[-1].end <= 0:
        raise MobileError(f"the trace {name!r} holds no times, so there is nothing to draw: replay it, or run it live.")
    title = f"{name} ({trace.conditions.get('time', 'not timed')})"
    drawn = _tokens(process, trace) + _lanes(process, trace)
    events = [_named("process_name", process, 0, title)]
    for thread, lane in LANES.items():
        if thread == HOST and all(event["tid"] != HOST for event in drawn):
            continue
        events.append(_named("thread_name", process, thread, lane))
        events.append(_about("thread_sort_index", process, thread, {"sort_index": thread}))
    return events + drawn


def _tokens(process: int, trace: Trace) -> list[dict]:
    events = []
    for row in trace.to_frame("steps").to_dict("records"):
        text = f"token {row['step']}: " + ("little, then big" if row["fell_back"] else row["wrote"])
        about = {"id": row["token_id"], "confidence": row["confidence"], "hits": row["hits"], "misses": row["misses"]}
        events.append(_span(process, TOKENS, text, "token", row["begin"], row["end"], about))
    for done in trace.passes:
        about = {"request": done.request, "step": done.step, "tokens": done.ids.shape[1], "copies": len(done.copies)}
        events.append(_span(process, TOKENS, f"{done.mode} pass", "pass", done.begin, done.end, about))
    return sorted(events, key=lambda event: (event["ts"], -event["dur"]))  # what encloses others comes first


def _lanes(process: int, trace: Trace) -> list[dict]:
    try:
        rows = spans(trace).to_dict("records")
    except MobileError:  # nobody knows what was computed when
        rows = [row | {"lane": "link", "what": row["kind"]} for row in trace.to_frame("copies").to_dict("records")]
    threads = {lane: thread for thread, lane in LANES.items()}
    events: dict[int, list[dict]] = {COMPUTE: [], LINK: [], HOST: []}
    over = 0.0  # copies go one after the other; a card's clock counts them to about a microsecond
    for row in rows:
        begin, lane = row["begin"], row["lane"]
        if math.isnan(begin):
            continue
        if lane == "link":
            begin, over = max(begin, over), max(row["end"], over)
        text = row["what"] + (f" layer {row['layer']}" if row["layer"] >= 0 else "")
        text += f" expert {row['expert']}" if row["expert"] >= 0 else ""
        about = {"pass": row["mode"], "step": row["step"], "layer": row["layer"], "expert": row["expert"]}
        thread = threads[lane]
        events[thread].append(_span(process, thread, text, row["what"], begin, max(begin, row["end"]), about))
    return sorted(events[COMPUTE], key=lambda event: event["ts"]) + events[LINK] + events[HOST]


def _span(process: int, thread: int, name: str, kind: str, begin: float, end: float, about: dict) -> dict:
    ns = round(1e9 * begin), round(1e9 * end)  # whole ones, so that what touches does not overlap
    times = {"ts": ns[0] / 1e3, "dur": (ns[1] - ns[0]) / 1e3}
    about = {key: None if value != value else value for key, value in about.items()}  # JSON knows no NaN
    return {"name": name, "cat": kind, "ph": "X", "pid": process, "tid": thread, **times, "args": about}


def _named(what: str, process: int, thread: int, name: str) -> dict:
    return _about(what, process, thread, {"name": name})


def _about(what: str, process: int, thread: int, args: dict) -> dict:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": args}


__all__ = ["to_perfetto"]
