"""Many replays: a grid of configurations over recorded traces, as one tidy frame. Knows no torch.

The routing is laid out once for each choice of count, keep and prefetch; slots, eviction, link and geometry only play
it again. A grid runs here, on processes, or on anything with the interface of `concurrent.futures.Executor`.
"""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import MISSING, fields, is_dataclass, replace
from multiprocessing import get_context

from ..hardware import Geometry, Hardware
from ..trace import Trace
from ..vocabulary import MobileError
from .book import Book, fingerprint, key_of
from .config import MobileConfig
from .layout import layout
from .replay import machine_of, play_laid
from .tape import Tape

CHUNK = 32  # points that travel together
WITHIN = {"gamma": "keep", "ahead": "prefetch", "fraction": "count"}  # fields of a policy, and whose


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
        bytes_per_token, seconds_per_token, prefetches_used (see `Replay`), time, which says that it is simulated and on
        what, and exact: whether the text is what a live run would write. A policy's column holds its name.

    Raises:
        TypeError: a value of the grid is not a list, or no such field.
        MobileError: a replay refuses a point (see `replay`); points that are done stay in `save`.

    >>> sweep(trace, systems.mobile(), gamma=[0.5, 0.7, 0.8], slots=[8, 16, 32], executor=2)   # doctest: +SKIP
    """
    import pandas as pd

    traces = dict(trace) if isinstance(trace, Mapping) else {"": trace}
    configs = dict(config) if isinstance(config, Mapping) else {"": config}
    for name, values in grid.items():
        grid[name] = values = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise TypeError(f"sweep takes a list of values for {name}, got {values!r}.")
    for one in configs.values():
        if not isinstance(one, MobileConfig):
            raise TypeError(f"config must be a MobileConfig, such as systems.mobile() returns, got {one!r}.")
    if not (executor is None or isinstance(executor, int) or hasattr(executor, "submit")):
        raise TypeError(f"executor must be None, a number of processes or an Executor, got {executor!r}.")
    points = [
        _point(name, system, configs[system], dict(zip(grid, values, strict=True)))
        for name in traces
        for system in configs
        for values in itertools.product(*grid.values())
    ]
    marks = {name: fingerprint(one) for name, one in traces.items()}
    keys = [key_of(marks[point["trace"]], point) for point in points]
    book = Book(save)
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
    for name, value in sorted(values.items(), key=lambda item: item[0] in WITHIN):  # whole policies first
        if name in machine or name == "link_gb_per_s":
            continue
        question = WITHIN.get(name)
        policy = config if question is None else getattr(config, question)
        known = [field.name for field in fields(policy)] if is_dataclass(policy) else []
        if name not in known:
            known = ", ".join(known) or "none"
            raise TypeError(f"sweep finds no field {name!r} in {policy!r}; its fields: {known}.")
        changed = replace(policy, **{name: value})
        config = changed if question is None else replace(config, **{question: changed})
    return {"trace": trace, "system": system, "config": config, "values": values} | machine


def _shown(value):
    """Numbers and names as they are; a policy as its name with what differs from its defaults."""
    if isinstance(value, Hardware | Geometry):
        return value.name
    if value is None or isinstance(value, int | float | str):
        return value
    told = [f.name for f in fields(value) if not _default(f, getattr(value, f.name))] if is_dataclass(value) else []
    return type(value).__name__ + ("(" + ", ".join(f"{n}={getattr(value, n)!r}" for n in told) + ")" if told else "")


def _default(field, value) -> bool:
    plain = field.default_factory() if field.default_factory is not MISSING else field.default
    return plain is not MISSING and plain == value


def _played(traces, marks, points, todo, executor, progress: bool):
    """(indices of points, their rows), as they are finished."""
    from tqdm.auto import tqdm

    def group(i: int):
        return points[i]["trace"], _laid_by(points[i]["config"])

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
        sent = {name: pickle.dumps(Tape(one).without_copies()) for name, one in traces.items()}
        waiting = {}
        for chunk in chunks:
            name = points[chunk[0]]["trace"]
            work = [{key: points[i].get(key) for key in ("config", "hardware", "geometry", "values")} for i in chunk]
            waiting[executor.submit(_remote, marks[name], sent[name], work)] = chunk
        failure = None
        try:
            for done in as_completed(waiting):
                if done.cancelled():
                    continue
                problem = done.exception()
                if problem is None:
                    yield waiting[done], done.result()
                    bar.update(len(waiting[done]))
                elif failure is None:  # nothing new starts, and what is done or under way is still kept
                    failure = problem
                    for future in waiting:
                        future.cancel()
        finally:
            for future in waiting:
                future.cancel()
        if isinstance(failure, BrokenExecutor):
            raise MobileError(
                "a process of the sweep died; a policy that is defined in a notebook does not reach other "
                "processes: put it into a module, or sweep without executor."
            ) from failure
        if failure is not None:
            raise failure


_TAPES: dict[str, Tape] = {}  # what this worker unpacked, by fingerprint: chunks of one trace come in a row


def _remote(mark: str, sent: bytes, points: list[dict]) -> list[dict]:
    tape = _TAPES.get(mark)
    if tape is None:
        tape = pickle.loads(sent)
        _TAPES.clear()
        _TAPES[mark] = tape
    return _rows(tape, points)


def _laid_by(config: MobileConfig) -> str:
    """All of a config that its layout depends on: all but slots and eviction."""
    return repr((config.count, config.keep, config.prefetch, config.miss, config.codec))


def _laid(tape: Tape, config: MobileConfig):
    """Selection and layout of a group; the tape keeps those of the last one, because its chunks come in a row."""
    group = _laid_by(config)
    if tape.last is None or tape.last[0] != group:
        selection = tape.select(config)
        tape.last = group, selection, layout(tape, selection, config)
    return tape.last[1:]


def _rows(tape: Tape, points: list[dict]) -> list[dict]:
    """The rows of points that are laid out alike."""
    selection, laid = _laid(tape, points[0]["config"])
    rows = []
    for point in points:
        hardware = machine_of(tape.trace.conditions, point.get("hardware"))
        rate = point["values"].get("link_gb_per_s")
        if rate is not None:
            hardware = replace(hardware, name=f"{hardware.name} at {rate:g} GB/s", link_gb_per_s=rate)
        done = play_laid(tape, selection, laid, point["config"], hardware, point.get("geometry"), record=False)
        rows.append(done.summary() | {"time": done.conditions["time"], "exact": selection.exact})
    return rows


__all__ = ["sweep"]
