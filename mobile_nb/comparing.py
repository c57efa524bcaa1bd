"""The command `compare`: every system of the literature on the embedded models, with equal device memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .files import written_whole


def add_commands(commands) -> None:
    """Adds it to the parsers of the command line."""
    compare = commands.add_parser("compare", help="the literature on the embedded models: answers, time and bytes")
    compare.add_argument("--worlds", nargs="+", metavar="MODEL", help="embedded models (all of them)")
    compare.add_argument("--systems", nargs="+", metavar="NAME", help="rows of the table (all of them)")
    compare.add_argument("--tasks", nargs="+", metavar="TASK", help="word-problems, small-functions (both)")
    compare.add_argument("--shares", nargs="+", type=float, help="of the experts on the device (as the papers)")
    compare.add_argument("--n", type=int, default=200, help="held-out problems a cell (%(default)s)")
    compare.add_argument("--seed", type=int, default=0, help="of the problems (%(default)s)")
    compare.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    compare.add_argument("--save", type=Path, help="keep finished rows here, and go on from them")
    compare.add_argument("--json", type=Path, help="write all rows to this file")
    compare.set_defaults(run=_compare)


def _compare(args) -> None:
    from tqdm.auto import tqdm

    from .analysis import comparison, literature
    from .model.load import embedded
    from .view import terminal

    some = comparison.cells(
        args.worlds or list(embedded()), names=args.systems, among=args.tasks or literature.TASKS,
        shares=args.shares, n=args.n, seed=args.seed,
    )  # fmt: skip
    found = []
    for row in tqdm(
        comparison.rows(some, workers=args.workers, save=args.save), total=len(some), unit="cell",
        disable=None if sys.stderr.isatty() else True,
    ):  # fmt: skip
        found += [row] if row is not None else []
    frame = comparison.table(found)
    shown = comparison.summary(frame)
    print(terminal.table([_shown(row) for row in shown.to_dict("records")]))
    print(
        f"\nAnswers measured on {args.n} held-out problems a cell (times of a quarter of them where the text is the "
        f"full model's); time simulated on {literature.CARD}, each world timed as the model that it stands for, each "
        "text on an empty device. Speed-up: geometric mean over worlds and tasks, over on demand in as much memory."
    )
    if args.json is not None:
        write_rows(found, args.json)


def _shown(row: dict) -> dict[str, str]:
    return {
        "on the device": f"{100 * row['share']:.0f} %",
        "system": row["system"],
        "speed-up": f"{row['speed_up']:.2f}x ({row['least']:.2f} to {row['most']:.2f})",
        "points": f"{row['difference']:+.1f} (worst {row['worst']:+.1f})",
        "same text": f"{100 * row['same_text']:.0f} %",
        "exact by design": "yes" if row["exact"] else "no",
    }


def write_rows(found: list[dict], path: Path) -> None:
    """One row a line, so that a difference can be read."""
    kept = [{name: value for name, value in row.items() if name != "config"} for row in found]
    for row in kept:
        row |= {name: round(value, 6) for name, value in row.items() if isinstance(value, float)}
    with written_whole(path) as temporary:
        lines = ",\n".join(json.dumps(row, allow_nan=False) for row in _without_nan(kept))
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _without_nan(found: list[dict]) -> list[dict]:
    return [{name: None if value != value else value for name, value in row.items()} for row in found]


__all__ = ["add_commands", "write_rows"]
