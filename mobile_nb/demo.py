"""The main job, as a command shows it: a few held-out problems under three systems with equal slots, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import systems
from .analysis import metrics, tasks
from .model.load import STANDS_FOR, embedded, load
from .runtime.offload import offload
from .view import terminal
from .vocabulary import whole


@dataclass
class Session:
    """What the demo runs on."""

    model: object
    tokenizer: object
    problems: list | None  # None: a prompt of the user's own, which has no answer
    geometry: str | None
    model_line: str
    time_line: str = ""


def read_problems(args) -> Session:
    """Loads the model and the problems, and says what will be timed as what."""
    model, tokenizer = load(args.model)
    problems = None
    if args.prompt is None:
        whole("--problems", args.problems)
        problems = tasks.load("word-problems", split="test", n=args.problems)
    geometry = args.geometry or STANDS_FOR.get(args.model)
    with offload(model, systems.on_demand(slots=args.slots), hardware=args.hardware, geometry=geometry) as engine:
        about = engine.trace.conditions
    kind = "embedded, trained for this package" if args.model in embedded() else "loaded"
    line = (
        f"{args.model} ({kind}): {about['layers']} MoE layers of {about['experts']} experts, "
        f"{about['top_k']} a token, {about['slots']} on the device"
    )
    return Session(model, tokenizer, problems, geometry, line, about["time"])


def compare(session: Session, args, show: Callable[[str], None], colour: bool) -> tuple[list[dict], dict]:
    """Runs on-demand, little and MoBiLE. Returns the table's rows, as text, and all numbers.

    Args:
        show: receives pieces of text as they come; the first problem of each system is streamed, MoBiLE's all.
    """
    chosen = {
        "on-demand LRU, K experts": systems.on_demand(slots=args.slots),
        "all little, K/2 experts": systems.little(slots=args.slots),
        f"MoBiLE, gamma {args.gamma:g}": systems.mobile(args.gamma, slots=args.slots),
    }
    numbers = {"model": args.model, "time": session.time_line, "slots": args.slots, "systems": {}}
    for name, config in chosen.items():
        show(f"== {name}\n")
        with offload(
            session.model, config, tokenizer=session.tokenizer, hardware=args.hardware, geometry=session.geometry
        ) as engine:
            right = _solve(engine, session, args, show, colour, all_shown=name.startswith("MoBiLE"))
            numbers["systems"][name] = {"right": right, "problems": len(session.problems or [])} | metrics.summary(
                engine.trace
            )
    base = next(iter(numbers["systems"].values()))["seconds_per_token"]
    for row in numbers["systems"].values():
        row["speed_up"] = base / row["seconds_per_token"]
    return [_row(name, row) for name, row in numbers["systems"].items()], numbers


def _solve(engine, session: Session, args, show, colour: bool, *, all_shown: bool) -> int | None:
    """Writes every text; returns how many answers were right, None without problems."""
    right = 0
    prompts = [args.prompt] if session.problems is None else [p.prompt for p in session.problems]
    for at, prompt in enumerate(prompts):
        shown = all_shown or at == 0
        if shown:
            show(f"{prompt.strip()} ")
        pieces = []
        for step in engine.stream(prompt, max_new_tokens=args.max_new_tokens, do_sample=False):
            pieces.append(step.text)
            if shown:
                show(terminal.token(step, colour))
        if session.problems is not None:
            correct = session.problems[at].check("".join(pieces))
            right += correct
            if shown:
                show("  (right)" if correct else f"  (wrong: {session.problems[at].answer})")
        if shown:
            show("\n")
    if not all_shown and len(prompts) > 1:
        show(f"… and {len(prompts) - 1} more\n")
    return None if session.problems is None else right


def _row(name: str, row: dict) -> dict:
    def share(value: float) -> str:
        return f"{100 * value:.1f} %" if value == value else "-"

    return {
        "system": name,
        "right": "-" if row["right"] is None else f"{row['right']}/{row['problems']}",
        "fallback": share(row["fallback_ratio"]) if "MoBiLE" in name else "-",
        "hits": share(row["hit_rate"]),
        "expert MB a token": f"{row['bytes_per_token'] / 1e6:.1f}",
        "prefetch precision": share(row["evicted_router_precision"]),
        "ms a token": f"{1e3 * row['seconds_per_token']:.2f}",
        "speed-up": f"{row['speed_up']:.2f}x",
    }


__all__ = ["Session", "compare", "read_problems"]
