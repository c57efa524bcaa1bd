"""The command `bench`: the card's table, or `--resident`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from ..replaying import write


def add_bench(commands) -> None:
    """Adds it to the parsers of the command line."""
    bench = commands.add_parser(
        "bench",
        help="measure a CUDA card at real sizes, or this machine where everything fits",
        description="Published models as random weights of their exact shapes (real ones by name or path), slots and "
        "systems, on the CUDA card at hand: time, bytes, bounds, overlap, and what the simulator predicts.",
    )
    bench.add_argument("--models", nargs="+", metavar="NAME", help="published shapes, folders or hub ids (four shapes)")
    bench.add_argument("--layers", type=int, help="keep the first so many layers; figures are then of those alone")
    bench.add_argument("--slots", type=int, nargs="+", help="device slots a layer (K, 2K, a quarter, half)")
    bench.add_argument("--routing", default="recorded", help="recorded, random, or the path of a trace (%(default)s)")
    bench.add_argument("--minutes", type=float, default=8.0, help="for everything (%(default)s)")
    bench.add_argument("--quick", action="store_true", help="one model, two sizes, a minute")
    bench.add_argument("--device", default="cuda", help="a CUDA device; cpu needs --tiny (%(default)s)")
    bench.add_argument("--tiny", action="store_true", help="a rehearsal with small shapes")
    bench.add_argument("--gamma", type=float, default=0.7, help="of models with real weights (%(default)s)")
    bench.add_argument("--seed", type=int, default=0, help="of weights, fallbacks and tokens (%(default)s)")
    bench.add_argument("--tokens", type=int, help="most new tokens a row (64; with --resident 100)")
    bench.add_argument("--static", action="store_true", help="each row once more with a static cache and CUDA graphs")
    bench.add_argument("--resident", action="store_true", help="instead: everything on the device, beside transformers")
    bench.add_argument("--repeats", type=int, default=5, help="pairs of runs, with --resident (%(default)s)")
    bench.add_argument("--json", type=Path, help="write the numbers to this file too")
    bench.set_defaults(run=_bench)


def _bench(args) -> None:
    from ..view import terminal

    if args.resident:
        return _resident(args)
    from .card import Options, bench
    from .shown import report

    names = "models layers slots routing minutes quick device tiny gamma seed tokens static".split()
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    keep = functools.partial(write, args.json, say=False)  # after each row: nothing is lost when something fails
    result = bench(Options(**given), progress=sys.stderr.isatty(), keep=keep)
    print(report(result, terminal.table))
    write(args.json, result)


def _resident(args) -> None:
    from ..view import terminal
    from .resident import resident

    rows = resident(args.tokens or 100, args.repeats, static=args.static)
    shown = [
        {
            "model": row["model"],
            "transformers": f"{row['transformers_ms']:.2f} ms a token",
            "mobile_nb": f"{row['mobile_nb_ms']:.2f} ms a token",
            "ratio of tokens/s": f"{row['ratio']:.2f} (pairs {min(row['pairs']):.2f} to {max(row['pairs']):.2f})",
        }
        for row in rows
    ]
    print(terminal.table(shown))
    print(f"\nMedians of {args.repeats} pairs, {rows[0]['conditions']}.")
    write(args.json, rows)


__all__ = ["add_bench"]
