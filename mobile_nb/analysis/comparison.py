"""All systems on the same problems with the same device memory: who is right, how long a token takes, what it moves.

Answers are measured; times and bytes are simulated, each text on an empty device of its own. A row is a cell: a world,
a task, a share of the experts on the device, and a system. See `analysis.literature` for who takes part.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from ..runtime.offload import offload
from ..vocabulary import MobileError, number, whole
from . import literature, tasks
from .evaluate import evaluate, wilson
from .literature import ENTRIES, TASKS, World

FULL = "on demand, LRU"  # what all K experts write, and how long it takes them
SHARES = (0.25, 0.5, 0.75)
ANSWERS = ["n", "accuracy", "low", "high", "difference", "half_width", "same_text", "fallback_ratio"]


@dataclass(frozen=True)
class Cell:
    """What to measure. n: problems. Systems whose text is known already, from the full model or from the smallest
    share, are timed on the first `few` of them: a quarter, at least 8."""

    world: str
    task: str
    system: str
    share: float
    n: int
    seed: int = 0
    split: str = "test"
    hardware: str = literature.CARD

    @property
    def few(self) -> int:
        return min(self.n, max(8, self.n // 4))

    @property
    def key(self) -> str:
        return json.dumps(astuple(self))


def cells(
    worlds: Sequence[str], *, names: Sequence[str] | None = None, among: Sequence[str] = TASKS,
    shares: Sequence[float] | None = None, n: int = 200, seed: int = 0,
) -> list[Cell]:  # fmt: skip
    """Every combination, ordered so that a process need not change worlds often.

    Args:
        names: of `literature.ENTRIES`, or "PreMoe"; None for all.
        shares: of a layer's experts that the device holds; None for `SHARES` and those that a system's paper adds.
    """
    names = [*ENTRIES, "PreMoe"] if names is None else list(names)
    unknown = [name for name in names if name not in ENTRIES and name != "PreMoe"]
    if unknown:
        raise MobileError(f"there is no system {unknown[0]!r} to compare; there are {', '.join([*ENTRIES, 'PreMoe'])}.")
    for share in shares or ():
        number("each of shares", share, low=0, high=1, hint="of the experts that the device holds")
    whole("n", n)
    names = [FULL, *(name for name in names if name != FULL)]
    of = {name: shares or (*SHARES, *(ENTRIES[name].also if name in ENTRIES else ())) for name in names}
    every = sorted({share for each in of.values() for share in each})
    each = ((w, t, s, name) for w in worlds for t in among for s in every for name in names if s in of[name])
    return [Cell(world, task, name, share, n, seed) for world, task, share, name in each]


def measure(cell: Cell) -> dict | None:
    """A row: accuracy with its 95 % interval and the paired difference from all K experts, the share of texts that are
    the full model's to the letter, and a token's simulated time, stall, bytes and hits. None where the world lacks what
    the system takes."""
    world = _world(cell.world, cell.hardware)
    slots = max(1, round(cell.share * world.experts))
    entry = ENTRIES.get(cell.system)
    config = literature.premoe(world, cell.task, slots) if entry is None else entry.make(world, slots)
    if config is None:
        return None
    exact = entry is not None and entry.exact
    known = exact or (entry is not None and entry.fixed and cell.share != min(SHARES))
    n = cell.few if known and cell.system != FULL else cell.n
    result, full = _written(world, cell, config, n), _full(cell, cell.n)
    alike = full if n == cell.n else _full(cell, n)  # batches of other sizes round otherwise
    right = [each.right for each in result.solved]
    before = [each.right for each in full.solved[: len(right)]]
    same = [a.token_ids == b.token_ids for a, b in zip(result.solved, alike.solved, strict=True)]
    gains, losses = (sum(a and not b for a, b in pairs) for pairs in (zip(right, before), zip(before, right)))
    difference = (gains - losses) / n
    if exact and all(same):  # then it is right wherever the full model is
        right, difference = [each.right for each in full.solved], 0.0
    low, high = wilson(sum(right), len(right))
    device, few = result.device, replace(result, solved=result.solved[: cell.few]).device
    return {
        **{name: getattr(cell, name) for name in ("world", "task", "system", "share", "seed", "split", "hardware")},
        "geometry": world.geometry, "slots": slots, "exact": exact, "n": len(right), "n_timed": n,
        "accuracy": sum(right) / len(right), "low": low, "high": high, "difference": difference,
        "half_width": 1.96 * math.sqrt(max(0.0, (gains + losses) / n - difference**2) / n),
        "same_text": sum(same) / n, "fallback_ratio": result.fallback_ratio,
        "ms": 1e3 * device["seconds_per_token"], "ms_few": 1e3 * few["seconds_per_token"],
        "computing_ms": 1e3 * device["computing_per_token"],
        "mb": device["bytes_per_token"] / 1e6, "hit_rate": device["hit_rate"], "config": repr(config),
    }  # fmt: skip


def rows(some: Sequence[Cell], *, workers: int = 1, save: str | Path | None = None) -> Iterator[dict | None]:
    """Measures cells, in any number of processes, and yields a row as each is there, None for one that does not apply.

    Args:
        save: a file that rows are added to; those that it holds already are not measured again.
    """
    path = None if save is None else Path(save)
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
    known = dict(json.loads(line) for line in lines)
    todo = [cell for cell in some if cell.key not in known]
    yield from (known[cell.key] for cell in some if cell.key in known)
    with _processes(min(workers, len(todo))) as run:
        for cell, row in zip(todo, run(measure, todo), strict=True):
            if path is not None:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([cell.key, row]) + "\n")
            yield row


def table(found: Sequence[dict]):
    """A pandas frame of rows, with `speed_up` over on demand with as much memory on the same texts, and `front`: nobody
    of the same world, task and share is faster and at least as often right."""
    import pandas as pd

    frame = pd.DataFrame([row for row in found if row is not None])
    for at, row in frame.iterrows():  # what does not depend on the device was measured once, on more problems
        if ENTRIES.get(row.system) is not None and ENTRIES[row.system].fixed:
            alike = frame[(frame[["world", "task", "system"]] == row[["world", "task", "system"]]).all(axis=1)]
            frame.loc[at, ANSWERS] = alike.loc[alike.n.idxmax(), ANSWERS]
    where = ["world", "task", "share"]
    full = frame[frame.system == FULL].set_index(where)
    full = full.loc[list(frame[where].itertuples(index=False, name=None))].set_index(frame.index)
    few = full.get("ms_few", full.ms)  # rows of older versions do not know it
    frame["speed_up"] = full.ms.where(frame.n_timed == full.n_timed, few) / frame.ms
    frame["front"] = [
        not any((each.ms < row.ms) & (each.accuracy >= row.accuracy) for each in group.itertuples())
        for row, group in ((row, frame[(frame[where] == [row.world, row.task, row.share]).all(axis=1)]) for row in
                           frame.itertuples())
    ]  # fmt: skip
    return frame


def summary(frame):
    """One row a system and share, over worlds and tasks: `speed_up` (geometric mean), `least` and `most` of it,
    `difference` in points (mean of the paired ones) and the worst of them, `same_text`, `cells` and whether it is
    `exact`."""
    import numpy as np

    each = frame.assign(log=np.log(frame.speed_up), points=100 * frame.difference).groupby(["share", "system"])
    found = each.agg(
        speed_up=("log", lambda log: float(np.exp(log.mean()))), least=("speed_up", "min"), most=("speed_up", "max"),
        difference=("points", "mean"), worst=("points", "min"), same_text=("same_text", "mean"),
        exact=("exact", "first"), cells=("ms", "size"),
    ).reset_index()  # fmt: skip
    return found.sort_values(["share", "speed_up"], ascending=[True, False], ignore_index=True)


@functools.lru_cache(maxsize=1)
def _world(name: str, hardware: str) -> World:
    import torch

    torch.set_num_threads(1)  # a second thread only waits on models of this size
    return World(name, hardware)


@functools.lru_cache(maxsize=4)
def _full_of(world: str, task: str, share: float, n: int, seed: int, split: str, hardware: str):
    one = _world(world, hardware)
    config = ENTRIES[FULL].make(one, max(1, round(share * one.experts)))
    return _written(one, Cell(world, task, FULL, share, n, seed, split, hardware), config, n)


def _full(cell: Cell, n: int):
    return _full_of(cell.world, cell.task, 0.25, n, cell.seed, cell.split, cell.hardware)


def _written(world: World, cell: Cell, config, n: int):
    model, tokenizer = world.loaded
    problems = tasks.load(cell.task, split=cell.split, n=n, seed=cell.seed)
    with offload(model, config, tokenizer=tokenizer, hardware=cell.hardware, geometry=world.geometry) as engine:
        return evaluate(engine, tokenizer, problems, batch_size=128, progress=False)


class _processes:
    """`map` over so many processes; one of them is this one."""

    def __init__(self, workers: int):
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None

    def __enter__(self):
        return map if self._pool is None else self._pool.map

    def __exit__(self, *_):
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


__all__ = ["FULL", "SHARES", "Cell", "cells", "measure", "rows", "summary", "table"]
