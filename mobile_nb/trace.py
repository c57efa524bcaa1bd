"""What happened, append-only: each pass with its routing and each copy with its times. Knows no torch.

Written as Parquet, one row a pass; loads back equal. Legend: T tokens · K experts routed to · L MoE layers.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .files import write_table
from .vocabulary import MobileError

VERSION = 1
PASS_COLUMNS = {"request": "int32", "step": "int32", "mode": "string", "token_id": "int32"}
PASS_COLUMNS |= dict.fromkeys(("confidence", "gamma", "begin", "end"), "float64")
_IDS = dict.fromkeys(("layer", "expert", "slot", "evicted"), "int16")
COPY_COLUMNS = {"kind": "string", **_IDS, "begin": "float64", "end": "float64", "form": "int16", "amount": "int32"}


@dataclass(slots=True)
class Copy:
    """One expert over the link. Times in seconds of the clock; `kind` is "demand" or "prefetch"; evicted -1: nobody.

    Measured computations of experts are noted likewise, as `kind` "compute"; expert -1: several at once.
    """

    kind: str
    layer: int
    expert: int
    slot: int
    evicted: int
    begin: float
    end: float
    form: int = 0  # of the codec's
    amount: int = 1  # of them: how many channels, where an expert comes in pieces


@dataclass(slots=True)
class Pass:
    """One forward pass.

    Attributes:
        request, step: which generation, and which of its tokens (0 is written by the prompt pass).
        mode: "prompt", "little" or "big".   gamma: threshold in force, NaN for none.
        token_id: what it wrote, -1 where its token was evicted; of a pass that read drafts, what follows those kept.
        confidence: largest softmax probability of its logits.   begin, end: seconds of the clock.
        ids, weights: the router's K experts [L, T, K] and their weights, as the router gave them.
        requests, hits, late, misses: of each layer [L]; the host has the rest.  copies: started since the pass before.
        gates: the K experts that each layer's router named some layers ahead, read on the hidden state of the layer
            `a + 1` before: [A, L, K], -1 where nobody read it; None where no gate was read.
        waves: when experts were computed, where that was measured.
    """

    request: int
    step: int
    mode: str
    token_id: int
    confidence: float
    gamma: float
    begin: float
    end: float
    ids: np.ndarray
    weights: np.ndarray
    requests: np.ndarray
    hits: np.ndarray
    late: np.ndarray
    misses: np.ndarray
    copies: list[Copy] = field(default_factory=list)
    gates: np.ndarray | None = None
    waves: list[Copy] = field(default_factory=list)

    def __eq__(self, other) -> bool:
        def same(a, b):
            if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
                return a is not None and b is not None and np.array_equal(a, b)
            return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))

        return isinstance(other, Pass) and all(same(getattr(self, f), getattr(other, f)) for f in self.__slots__)


@dataclass
class Trace:
    """The record of an engine: `passes`, and the `conditions` under which they were made.

    Attributes:
        conditions: JSON-like: model, hardware, geometry, whether times are measured, slots, expert_bytes, system …
        passes: in order of time.
    """

    conditions: dict
    passes: list[Pass] = field(default_factory=list)

    def to_frame(self, rows: str = "steps"):
        """A tidy pandas frame.

        Args:
            rows: "steps" (a row a token), "passes" (a row a forward pass), "copies" (a row a transfer) or
                "routing" (a row for each pass, layer, token and rank: expert and weight).
        """
        import pandas as pd

        makers = {"steps": self._steps, "passes": self._passes, "copies": self._copies, "routing": self._routing}
        if rows not in makers:
            raise ValueError(f"rows must be one of {', '.join(makers)}, got {rows!r}.")
        frame = pd.DataFrame(makers[rows]())
        frame.attrs.update(self.conditions)
        return frame

    def save(self, path: str | os.PathLike) -> None:
        """Writes the trace as one Parquet file, whole or not at all."""
        import pyarrow as pa

        p = self.passes
        columns = {name: pa.array([getattr(x, name) for x in p], kind) for name, kind in PASS_COLUMNS.items()} | {
            "shape": pa.array([list(x.ids.shape) for x in p], pa.list_(pa.int32())),
            "ids": pa.array([x.ids.ravel() for x in p], pa.list_(pa.int16())),
            "weights": pa.array([x.weights.ravel() for x in p], pa.list_(pa.float32())),
            "gates": pa.array([[] if x.gates is None else x.gates.ravel() for x in p], pa.list_(pa.int16())),
        }
        for name in ("requests", "hits", "late", "misses"):
            columns[name] = pa.array([getattr(x, name) for x in p], pa.list_(pa.int32()))
        for name, kind in COPY_COLUMNS.items():
            kind = pa.list_(pa.type_for_alias(kind))
            columns[f"copy_{name}"] = pa.array([[getattr(c, name) for c in x.copies] for x in p], kind)
            columns[f"wave_{name}"] = pa.array([[getattr(c, name) for c in x.waves] for x in p], kind)
        about = {"mobile_nb_trace": VERSION, "conditions": self.conditions}
        table = pa.table(columns).replace_schema_metadata({"mobile_nb": json.dumps(about)})
        write_table(table, path)

    @staticmethod
    def load(path: str | os.PathLike) -> Trace:
        """Reads what `save` wrote.

        Raises:
            MobileError: no such file, not a trace, truncated, or of a newer version.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise MobileError(f"there is no trace at {path}.")
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[b"mobile_nb"])
            version, conditions = int(about["mobile_nb_trace"]), about["conditions"]
            passes = [_pass(row) for row in table.to_pylist()] if version <= VERSION else []
        except (TypeError, pa.ArrowInvalid, OSError, KeyError, ValueError) as problem:
            raise MobileError(
                f"{path} is not a whole mobile_nb trace ({type(problem).__name__}); write one with Trace.save."
            ) from problem
        if version > VERSION:
            raise MobileError(
                f"{path} is a trace of version {version}, and this mobile_nb reads up to {VERSION}; update it."
            )
        return Trace(conditions, passes)

    @staticmethod
    def from_routing(ids, *, num_experts: int, scores=None, name: str = "routing recorded elsewhere") -> Trace:
        """A trace from routing alone, as other engines and papers publish it: one pass of the full model a token.

        Args:
            ids: [T, L, K] experts that token T was routed to at layer L, each at most once.
            num_experts: E, of every layer.
            scores: [T, L, K] their weights; None for best first as given.
            name: what the model is called in reports.

        Raises:
            ValueError: shapes or ids that cannot be.
        """
        from .routing import conditions, one_token, ranked

        ids, scores = ranked(ids, num_experts, scores)
        about = conditions(name, ids.shape[1], num_experts, ids.shape[2])
        return Trace(about, [one_token("big", t + 1, ids[t], scores[t]) for t in range(len(ids))])

    def _passes(self) -> list[dict]:
        sizes = self.conditions.get("form_bytes") or [self.conditions.get("expert_bytes", 0)]
        return [
            {name: getattr(p, name) for name in PASS_COLUMNS}
            | {"tokens": p.ids.shape[1], "seconds": p.end - p.begin}
            | {"bytes_moved": sum(sizes[c.form] * c.amount for c in p.copies)}
            | {name: int(getattr(p, name).sum()) for name in ("requests", "hits", "late", "misses")}
            for p in self.passes
        ]

    def _steps(self) -> list[dict]:
        steps: list[dict] = []
        for row in self._passes():
            last = steps[-1] if steps else None
            if last and last["token_id"] < 0 and last["request"] == row["request"]:
                added = {n: last[n] + row[n] for n in ("seconds", "bytes_moved", "requests", "hits", "late", "misses")}
                judged = {"confidence": last["confidence"], "begin": last["begin"], "fell_back": True}
                steps[-1] = row | added | judged
            else:
                steps.append(row | {"fell_back": False})
        for row in steps:
            row["wrote"] = "little" if row.pop("mode") == "little" else "big"
        return [row for row in steps if row["token_id"] >= 0]

    def _copies(self) -> list[dict]:
        return [
            {"request": p.request, "step": p.step, "mode": p.mode} | {name: getattr(c, name) for name in c.__slots__}
            for p in self.passes
            for c in p.copies
        ]

    def _routing(self) -> dict[str, np.ndarray]:
        if not self.passes:
            return {}
        shapes = [p.ids.shape for p in self.passes]
        which = np.repeat(np.arange(len(shapes)), [math.prod(s) for s in shapes])
        grids = [np.indices(s).reshape(3, -1) for s in shapes]
        layer, token, rank = np.concatenate(grids, axis=1)
        return {
            "pass": which,
            "mode": np.array([p.mode for p in self.passes])[which],
            "layer": layer,
            "token": token,
            "rank": rank,
            "expert": np.concatenate([p.ids.ravel() for p in self.passes]),
            "weight": np.concatenate([p.weights.ravel() for p in self.passes]),
        }


def _pass(row: dict) -> Pass:
    shape, copies, waves = tuple(row.pop("shape")), _copies(row, "copy_"), _copies(row, "wave_")
    row["ids"] = np.array(row["ids"], dtype=np.int16).reshape(shape)
    row["weights"] = np.array(row["weights"], dtype=np.float32).reshape(shape)
    gates = np.array(row["gates"], dtype=np.int16)
    row["gates"] = gates.reshape(-1, shape[0], shape[2]) if gates.size else None
    for name in ("requests", "hits", "late", "misses"):
        row[name] = np.array(row[name], dtype=np.int64)
    return Pass(**row, copies=copies, waves=waves)


def _copies(row: dict, prefix: str) -> list[Copy]:
    """Takes them out of a row; older files have no waves, and know no forms."""
    found = {name: row.pop(prefix + name) for name in COPY_COLUMNS if prefix + name in row}
    return [Copy(**dict(zip(found, values, strict=True))) for values in zip(*found.values(), strict=True)]


__all__ = ["Copy", "Pass", "Trace"]
