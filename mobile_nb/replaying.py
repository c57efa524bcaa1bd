"""The commands `replay` and `sweep`: recorded routing under other policies, sizes and machines, without the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

SYSTEMS = ("mobile", "on_demand", "big", "little", "next_gate")
PREFETCH = ("Nothing", "EvictedRouter", "PreviousToken", "NextGate", "Oracle")
EVICT = ("LRU", "LFU", "Belady")
RECORDED = "traces/tiny-olmoe.parquet"  # in data/


def add_commands(commands) -> None:
    """Adds both to the parsers of the command line."""
    replay = commands.add_parser("replay", help="a recorded run under other slots, eviction, prefetch, gamma or card")
    _about_the_trace(replay)
    replay.add_argument("--gamma", type=float, help="of mobile (0.7)")
    replay.add_argument("--slots", type=int, default=16, help="device slots of each MoE layer (%(default)s)")
    replay.add_argument("--prefetch", choices=PREFETCH, help="instead of the system's own")
    replay.add_argument("--evict", choices=EVICT, help="instead of the system's own")
    replay.add_argument("--hardware", help="a preset, such as t4-colab (the recording's)")
    replay.add_argument("--geometry", help="time it as this model (the recording's)")
    replay.set_defaults(run=_replay)

    sweep = commands.add_parser("sweep", help="every combination of a grid of replays, as a table")
    _about_the_trace(sweep)
    sweep.add_argument("--gamma", type=float, nargs="+", help="of mobile")
    sweep.add_argument("--slots", type=int, nargs="+", default=[16], help="device slots of each MoE layer")
    sweep.add_argument("--prefetch", choices=PREFETCH, nargs="+")
    sweep.add_argument("--evict", choices=EVICT, nargs="+")
    sweep.add_argument("--hardware", nargs="+", help="presets")
    sweep.add_argument("--geometry", nargs="+", help="models to time it as")
    sweep.add_argument("--link-gb-per-s", type=float, nargs="+", help="bandwidths, instead of the hardware's")
    sweep.add_argument("--workers", type=int, help="processes (1)")
    sweep.add_argument("--save", type=Path, help="keep finished points here, and go on from them")
    sweep.set_defaults(run=_sweep)


def _about_the_trace(command) -> None:
    command.add_argument(
        "trace", nargs="?", type=Path, help="of Trace.save (without one: tiny-olmoe on 16 problems, every token twice)"
    )
    command.add_argument("--system", choices=SYSTEMS, default="mobile", help="(%(default)s)")
    command.add_argument("--json", type=Path, help="write the numbers to this file too")


def _replay(args) -> None:
    from . import systems
    from .runtime.replay import replay
    from .view import terminal

    system = getattr(systems, args.system)
    words = {"slots": args.slots}
    words |= {name: _policy(getattr(args, name)) for name in ("prefetch", "evict") if getattr(args, name)}
    if args.gamma is not None:
        if args.system != "mobile":
            raise ValueError(f"--gamma is of mobile, which has a little and a big model; {args.system} has one.")
        words["gamma"] = args.gamma
    done = replay(_trace(args.trace), system(**words), hardware=args.hardware, geometry=args.geometry)
    row = {"system": args.system} | done.summary()
    print(terminal.table([_cells(row)]))
    about = done.conditions
    print(f"\nTime {about['time']}; slots: {about['slots_chosen']}. {_about_text(done.selection.exact)}")
    write(args.json, [row | {"time": done.conditions["time"]}])


def _sweep(args) -> None:
    from . import systems
    from .runtime.sweep import sweep
    from .view import terminal

    grid = {name: getattr(args, name) for name in ("gamma", "slots", "hardware", "geometry", "link_gb_per_s")}
    grid |= {name: [_policy(one) for one in getattr(args, name) or ()] for name in ("prefetch", "evict")}
    frame = sweep(
        _trace(args.trace),
        getattr(systems, args.system)(),
        executor=args.workers,
        save=args.save,
        progress=sys.stderr.isatty(),
        **{name: values for name, values in grid.items() if values},
    )
    rows = frame.to_dict("records")
    print(terminal.table([_cells(row) for row in rows]))
    exact = bool(frame["exact"].all())
    print(f"\n{len(rows)} replays; time {' and '.join(sorted(set(frame['time'])))}. {_about_text(exact)}")
    write(args.json, rows)


def write(path: Path | None, numbers, *, say: bool = True) -> None:
    """Writes a command's numbers where --json says, and says so."""
    from .files import written_whole
    from .vocabulary import MobileError

    if path is None:
        return
    if isinstance(numbers, list):  # JSON knows no NaN
        numbers = [{name: None if value != value else value for name, value in row.items()} for row in numbers]
    try:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    except OSError as problem:
        raise MobileError(f"the numbers cannot be written to {path}: {problem.strerror or problem}.") from problem
    if say:
        print(f"numbers written to {path}")


def _policy(name: str):
    from . import policies

    return getattr(policies, name)()


def _trace(path: Path | None):
    from .files import data_path
    from .trace import Trace

    return Trace.load(data_path(RECORDED) if path is None else path)


def _about_text(exact: bool) -> str:
    if exact:
        return "The text is what a live run would write."
    return "The text is the recording's; a live run would have changed it here and there."


def _cells(row: dict) -> dict[str, str]:
    """A row as people read it."""
    shown = {
        "tokens": lambda x: f"{x}",
        "fallback_ratio": lambda x: f"{x:.1%}",
        "hit_rate": lambda x: f"{x:.1%}",
        "bytes_per_token": lambda x: f"{x / 1e6:.1f} MB",
        "seconds_per_token": lambda x: f"{1e3 * x:.2f} ms",
        "prefetches_used": lambda x: "-" if x != x else f"{x:.1%}",
    }
    named = {"fallback_ratio": "fell back", "hit_rate": "hits", "bytes_per_token": "bytes a token"}
    named |= {"seconds_per_token": "time a token", "prefetches_used": "prefetches used"}
    return {
        named.get(k, k): shown[k](v) if k in shown else str(v) for k, v in row.items() if k not in ("time", "exact")
    }


__all__ = ["add_commands", "write"]
