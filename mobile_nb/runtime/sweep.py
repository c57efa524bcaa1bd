"""Many replays: a grid of configurations over recorded traces, as one tidy frame. Knows no torch.

The routing is laid out once for each choice of count, keep and prefetch; slots, eviction, link and geometry only play
it again. A grid runs here, on processes, or on anything with the interface of `concurrent.futures.Executor`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from ..hardware import Hardware
from ..trace import Trace
from ..vocabulary import MobileError
from .config import MobileConfig
from .layout import layout
from .replay import machine_of, play_laid
from .tape import Tape

CHUNK = 32  # points that travel together


def sweep(
    trace: Trace | Mapping[str, Trace],
    config: MobileConfig | Mapping[str, MobileConfig],
    *,
    executor: Executor | int | None = None,
    save: str | os.PathLike | None = None,
    progress: bool = True,
    **grid: Sequence,
):
    """Replays every combination of a grid.

    Args:
        trace, config: one, or several by name; the names become the columns "trace" and "system".
        executor: where replays run: None for here, a number of processes on this machine, or an Executor, such as
            dask.distributed's `Client.get_executor()`.
        save: a file of JSON lines that each finished point is added to. A sweep that was cut short goes on from it.
        progress: show a progress bar.
        grid: lists of values. `hardware`, `geometry`: as in `replay`. `link_gb_per_s`: replaces the hardware's.
            `gamma`, `ahead`, `fraction`: fields of the configuration's keep, prefetch and count policies. Any other:
            a field of `MobileConfig`, such as slots, evict, prefetch.

    Returns:
        A pandas frame, one row a point in the order of the grid: its values, then tokens, fallback_ratio, hit_rate,
        bytes_per_token, seconds_per_token, prefetch_precision (see `Replay`) and time, which says that it is simulated
        and on what. A policy's column holds its name.

    Raises:
        TypeError: a value of the grid is not a list, or no such field.
        MobileError: a replay refuses a point (see `replay`); points that are done stay in `save`.

    >>> sweep(trace, systems.mobile(), gamma=[0.5, 0.7, 0.9], slots=[8, 16, 32], executor=2)   # doctest: +SKIP
    """
    import pandas as pd

    traces = dict(trace) if isinstance(trace, Mapping) else {"": trace}
    configs = dict(config) if isinstance(config, Mapping) else {"": config}
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise TypeError(f"sweep takes a list of values for {name}, got {values!r}.")
    points = [
        _point(name, system, configs[system], dict(zip(grid, values, strict=True)))
        for name in traces
        for system in configs
        for values in itertools.product(*grid.values())
    ]
    marks = {name: _fingerprint(one) for name, one in traces.items()}
    keys = [_key(marks[point["trace"]], point) for point in points]
    book = _Book(save)
    todo = [i for i, key in enumerate(keys) if key not in book.rows]
    for numbers, rows in _played(traces, marks, points, todo, executor, progress):
        for i, row in zip(numbers, rows, strict=True):
            book.add(keys[i], row)
    named = [("trace", trace is not traces.get("")), ("system", config is not configs.get(""))]
    frame = pd.DataFrame(
        [
            {column: point[column] for column, shown in named if shown}
            | {name: _shown(value) for name, value in point["values"].items()}
            | book.rows[key]
            for point, key in zip(points, keys, strict=True)
        ]
    )
    frame.attrs["time"] = "simulated"
    return frame


def _point(trace: str, system: str, config: MobileConfig, values: dict) -> dict:
    """One combination: what `play_laid` needs of it, and what the frame shows."""
    machine = {name: values[name] for name in ("hardware", "geometry") if name in values}
    for name, value in values.items():
        if name in machine or name == "link_gb_per_s":
            continue
        question = {"gamma": "keep", "ahead": "prefetch", "fraction": "count"}.get(name)
        policy = config if question is None else getattr(config, question)
        if name not in {field.name for field in fields(policy)}:
            known = ", ".join(field.name for field in fields(policy)) or "none"
            raise TypeError(f"sweep finds no field {name!r} in {policy!r}; its fields: {known}.")
        changed = replace(policy, **{name: value})
        config = changed if question is None else replace(config, **{question: changed})
    return {"trace": trace, "system": system, "config": config, "values": values} | machine


def _key(mark: str, point: dict) -> str:
    facts = (mark, point["config"], point.get("hardware"), point.get("geometry"), point["values"].get("link_gb_per_s"))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _fingerprint(trace: Trace) -> str:
    digest = hashlib.sha256(json.dumps(trace.conditions, sort_keys=True, default=repr).encode())
    for done in trace.passes:
        digest.update(done.ids.tobytes())
        digest.update(done.weights.tobytes())
        digest.update(f"{done.request} {done.step} {done.mode} {done.token_id} {done.confidence}".encode())
    return digest.hexdigest()


def _shown(value):
    """Numbers and names as they are; a policy as its name with what differs from its defaults."""
    if not is_dataclass(value):
        return value
    if isinstance(value, Hardware) or hasattr(value, "expert_params"):
        return value.name
    plain = type(value)()
    told = [f.name for f in fields(value) if getattr(value, f.name) != getattr(plain, f.name)]
    return type(value).__name__ + ("(" + ", ".join(f"{n}={getattr(value, n)!r}" for n in told) + ")" if told else "")


class _Book:
    """Finished points by key, and the file that keeps them."""

    def __init__(self, path):
        self.path = None if path is None else Path(path)
        self.rows: dict[str, dict] = {}
        if self.path is not None and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines):
                try:
                    row = json.loads(line)
                    self.rows[row.pop("key")] = row
                except (ValueError, KeyError, AttributeError, TypeError) as problem:
                    if number < len(lines) - 1:  # the last line may have been cut off; it is done again
                        raise MobileError(
                            f"line {number + 1} of {self.path} is not a point of a sweep; name another file."
                        ) from problem
            whole = "".join(json.dumps({"key": key} | row) + "\n" for key, row in self.rows.items())
            self.path.write_text(whole, encoding="utf-8")

    def add(self, key: str, row: dict) -> None:
        self.rows[key] = row
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key} | row) + "\n")


def _played(traces, marks, points, todo, executor, progress: bool):
    """(indices of points, their rows), as they are finished."""
    from tqdm.auto import tqdm

    def group(i: int):
        config = points[i]["config"]
        return points[i]["trace"], repr((config.count, config.keep, config.prefetch))

    chunks = []
    for _, some in itertools.groupby(sorted(todo, key=group), key=group):
        some = list(some)
        chunks += [some[at : at + CHUNK] for at in range(0, len(some), CHUNK)]
    with tqdm(total=len(todo), unit="replay", disable=not progress) as bar, ExitStack() as stack:
        if executor is None:
            tapes = {name: Tape(one) for name, one in traces.items()} if todo else {}
            for chunk in chunks:
                yield chunk, _rows(tapes[points[chunk[0]]["trace"]], [points[i] for i in chunk])
                bar.update(len(chunk))
            return
        if isinstance(executor, int):
            executor = ProcessPoolExecutor(executor, mp_context=get_context("spawn"))
            stack.enter_context(executor)
        sent = {name: pickle.dumps(Tape(one)) for name, one in traces.items()}
        waiting = {}
        for chunk in chunks:
            name = points[chunk[0]]["trace"]
            work = [{key: points[i].get(key) for key in ("config", "hardware", "geometry", "values")} for i in chunk]
            waiting[executor.submit(_remote, marks[name], sent[name], work)] = chunk
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
                bar.update(len(waiting[done]))
        finally:
            for future in waiting:
                future.cancel()


_TAPES: dict[str, Tape] = {}  # what this worker unpacked, by fingerprint: chunks of one trace come in a row


def _remote(mark: str, sent: bytes, points: list[dict]) -> list[dict]:
    if mark not in _TAPES:
        _TAPES.clear()
        _TAPES[mark] = pickle.loads(sent)
    return _rows(_TAPES[mark], points)


def _rows(tape: Tape, points: list[dict]) -> list[dict]:
    """The rows of points that share count, keep and prefetch."""
    selection = tape.select(points[0]["config"])
    laid = layout(tape, selection, points[0]["config"])
    rows = []
    for point in points:
        hardware = machine_of(tape.trace.conditions, point.get("hardware"))
        rate = point["values"].get("link_gb_per_s")
        if rate is not None:
            hardware = replace(hardware, name=f"{hardware.name} at {rate:g} GB/s", link_gb_per_s=rate)
        done = play_laid(tape, selection, laid, point["config"], hardware, point.get("geometry"), record=False)
        rows.append(done.summary() | {"time": done.conditions["time"]})
    return rows


__all__ = ["sweep"]
