"""The command line: `python -m mobile_nb demo`, and the other commands that `--help` lists."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import comparing, replaying
from .bench.command import add_bench
from .replaying import write


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="mobile_nb", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser("demo", help="solve a few problems under three systems, and compare them")
    demo.add_argument("--model", default="tiny-olmoe", help="embedded name, local folder or hub id (%(default)s)")
    demo.add_argument(
        "--gamma", type=float, default=0.7, help="confidence below which the big model rewrites (%(default)s)"
    )
    demo.add_argument("--slots", type=int, default=16, help="device slots of each MoE layer (%(default)s)")
    demo.add_argument(
        "--hardware", help="simulate this card; without it a CUDA device is measured, or an RTX 4080 simulated"
    )
    demo.add_argument(
        "--geometry", help="time the model as if it weighed what this one does (embedded models: their original)"
    )
    demo.add_argument("--prompt", help="write this instead of solving problems")
    demo.add_argument("--problems", type=int, default=8, help="how many held-out problems to solve (%(default)s)")
    demo.add_argument("--max-new-tokens", type=int, default=128, help="most tokens a text (%(default)s)")
    demo.add_argument("--json", type=Path, help="write the numbers to this file too")
    demo.add_argument("--perfetto", type=Path, help="write what was computed and copied when, for ui.perfetto.dev")
    demo.set_defaults(run=_demo)

    solve = commands.add_parser("evaluate", help="how many problems of a task a model solves")
    solve.add_argument(
        "model", nargs="?", default="tiny-olmoe", help="embedded name, local folder or hub id (%(default)s)"
    )
    solve.add_argument("--task", default="word-problems", help="word-problems, small-functions, gsm8k … (%(default)s)")
    solve.add_argument("--path", help="a local copy of a published task: a file, or a folder that datasets saved")
    solve.add_argument("--split", default="test", help="split of the task (%(default)s)")
    solve.add_argument("--n", type=int, default=200, help="how many problems (%(default)s)")
    solve.add_argument("--seed", type=int, default=0, help="seed of the problems (%(default)s)")
    solve.add_argument("--gamma", type=float, help="MoBiLE with this threshold; without it all K experts write")
    solve.add_argument(
        "--fraction",
        type=float,
        default=0.5,
        help="share of the experts in the little model, with --gamma (%(default)s)",
    )
    solve.add_argument(
        "--slots",
        type=int,
        help="offload, with so many device slots a layer: each text on a simulated device of its own",
    )
    solve.add_argument("--batch-size", type=int, default=32, help="texts at once (%(default)s)")
    solve.add_argument("--max-new-tokens", type=int, help="most tokens a text (what the task needs)")
    solve.add_argument("--save", type=Path, help="keep results here as they come; an interrupted run goes on from them")
    solve.add_argument("--json", type=Path, help="write the numbers to this file too")
    solve.set_defaults(run=_evaluate)

    add_bench(commands)

    plan = commands.add_parser("plan", help="what a model needs on the device and on the host, before anything is read")
    plan.add_argument("model", help="embedded name, local folder or hub id; of a hub id only the config is fetched")
    size = plan.add_mutually_exclusive_group()
    size.add_argument("--slots", type=int, help="device slots of each MoE layer (as many as fit)")
    size.add_argument("--budget-gb", type=float, help="device memory for experts, GB, instead of --slots")
    plan.add_argument("--context", type=int, default=4096, help="tokens in the KV cache (%(default)s)")
    plan.add_argument(
        "--hardware", help="a preset such as rtx3060-pcie3 (this machine's CUDA device, else an RTX 4080)"
    )
    plan.add_argument("--dtype", help="of the weights, such as bfloat16 (the config's)")
    plan.set_defaults(run=_plan)

    for module in (comparing, replaying):
        module.add_commands(commands)

    families = commands.add_parser("architectures", help="check every family with fused experts in this transformers")
    families.add_argument("names", nargs="*", metavar="name", help="transformers model types (all of them)")
    families.add_argument("--markdown", action="store_true", help="as the README shows it")
    families.add_argument("--json", type=Path, help="write the rows to this file too")
    families.set_defaults(run=_architectures)
    return top


def _plan(args) -> None:
    from .runtime.plan import plan

    options = {key: value for key, value in vars(args).items() if key not in ("run", "command", "model")}
    print(plan(args.model, **options))


def _architectures(args) -> int:
    from .runtime import matrix

    rows = matrix.matrix(args.names or None, progress=sys.stderr.isatty())
    print(matrix.markdown(rows) if args.markdown else _families(rows))
    write(args.json, rows)
    return int(any(row["verdict"] == matrix.WRONG for row in rows))


def _families(rows: list[dict]) -> str:
    from .runtime import matrix
    from .view import terminal

    remarks = [f"{row['architecture']}: {row['verdict']}: {row['why']}" for row in rows if row["why"]]
    return "\n".join([terminal.table([matrix.cells(row) for row in rows]), "", matrix.totals(rows), *remarks])


def _demo(args) -> None:
    from .demo import Demo
    from .view import terminal

    started = time.perf_counter()
    options = {key: value for key, value in vars(args).items() if key not in ("run", "command", "json")}
    demo = Demo(**options, show=lambda text: print(text, end="", flush=True), colour=terminal.has_colour(sys.stdout))
    rows, numbers = demo.run()
    print("\n" + terminal.table(rows))
    print(
        "\nBytes, hits and time are of the tokens after the prompt, time "
        f"{numbers['conditions']['time']}; router precision is the share of the evicted token's experts that the big "
        f"model then ran.\nThe demo itself took {time.perf_counter() - started:.0f} s."
    )
    write(args.json, numbers)


def _evaluate(args) -> None:
    from .analysis.report import run
    from .view import terminal

    rows, numbers = run(**{key: value for key, value in vars(args).items() if key not in ("run", "command", "json")})
    print(terminal.table(rows))
    print(f"\n{numbers['conditions']}")
    write(args.json, numbers)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; a user's mistake is one sentence on stderr and exit status 2."""
    from .vocabulary import MobileError

    for stream in (sys.stdout, sys.stderr):  # a Windows console may not know every sign
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    args = parser().parse_args(arguments)
    try:
        return args.run(args) or 0
    except (MobileError, ValueError, TypeError) as mistake:
        print(f"mobile_nb: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
