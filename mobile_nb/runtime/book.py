"""Finished points of a sweep, by what they depend on, in a file that an interrupted sweep goes on from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..files import written_whole
from ..trace import Trace
from ..vocabulary import MobileError

START = '{"key": "'  # of every line


class Book:
    """Finished points by key, and the file that keeps them, a line each."""

    def __init__(self, path):
        self.path = None if path is None else Path(path)
        self.rows: dict[str, dict] = {}
        if self.path is None:
            return
        try:
            self.path.touch()
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise MobileError(
                f"the sweep cannot keep its points in {self.path}: {problem}; name another file."
            ) from problem
        lines = text.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                self.rows[row.pop("key")] = row
            except (ValueError, KeyError, AttributeError, TypeError) as problem:
                cut_off = number == len(lines) and not text.endswith("\n") and line.startswith(START[: len(line)])
                if not cut_off:
                    raise MobileError(
                        f"line {number} of {self.path} is not a point of a sweep; name another file."
                    ) from problem
                with written_whole(self.path) as temporary:  # it is done again
                    temporary.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")

    def add(self, key: str, row: dict) -> None:
        self.rows[key] = row
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key} | row) + "\n")


def key_of(mark: str, point: dict) -> str:
    facts = (mark, point["config"], point.get("hardware"), point.get("geometry"), point["values"].get("link_gb_per_s"))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def fingerprint(trace: Trace) -> str:
    digest = hashlib.sha256(json.dumps(trace.conditions, sort_keys=True, default=repr).encode())
    for done in trace.passes:
        digest.update(done.ids.tobytes())
        digest.update(done.weights.tobytes())
        digest.update(b"" if done.gates is None else done.gates.tobytes())
        digest.update(f"{done.request} {done.step} {done.mode} {done.token_id} {done.confidence}".encode())
    return digest.hexdigest()


__all__ = ["Book", "fingerprint", "key_of"]
