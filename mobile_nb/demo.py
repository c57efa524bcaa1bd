"""The main job, as a command shows it: a few held-out problems under three systems with equal slots, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from . import systems
from .analysis import metrics, tasks
from .analysis.perfetto import to_perfetto
from .model.load import STANDS_FOR, embedded, load
from .policies import Always
from .runtime.engine import Engine
from .runtime.offload import offload
from .runtime.plan import plan
from .view import terminal
from .vocabulary import whole

TELLING = {"tiny-olmoe": 264}  # one of 32 test problems in 2,000 that half of the experts get wrong, and all do not


@dataclass
class Demo:
    """What to run, and on what; the fields are the command's options.

    Attributes:
        prompt: text to be continued; None for `problems` held-out word problems, whose answers are checked. The first
            is one that half of the experts get wrong, where we know one.
        hardware, geometry: as in `offload`; an embedded model is timed as the published model that it stands for.
        perfetto: a file for what was computed and copied when, a process a system; None for none.
        show: receives the pieces of text as they come.   colour: whether they may hold colours.
    """

    model: str = "tiny-olmoe"
    gamma: float = 0.7
    slots: int = 16
    hardware: str | None = None
    geometry: str | None = None
    prompt: str | None = None
    problems: int = 8
    max_new_tokens: int = 128
    perfetto: str | os.PathLike | None = None
    show: Callable[[str], None] = field(default=lambda text: None, repr=False)
    colour: bool = False

    def run(self) -> tuple[list[dict], dict]:
        """Runs on-demand, little and MoBiLE. Returns the comparison table's rows, as text, and all numbers."""
        configs = {
            "on-demand LRU, K experts": systems.on_demand(slots=self.slots),
            "all little, K/2 experts": systems.little(slots=self.slots),
            f"MoBiLE, gamma {self.gamma:g}": systems.mobile(self.gamma, slots=self.slots),
        }
        whole("problems", self.problems)
        if self.model in embedded():
            torch.set_num_threads(1)  # a second thread only waits on models of this size
        else:  # a load may take minutes: first what goes where
            self.show(f"{plan(self.model, slots=self.slots, hardware=self.hardware)}\n")
        model, tokenizer = load(self.model)
        problems, picked = None, TELLING.get(self.model, 0)
        if self.prompt is None:
            problems = tasks.load("word-problems", split="test", n=max(self.problems, picked + 1))
            problems = [problems.pop(picked), *problems][: self.problems]
        geometry = self.geometry or STANDS_FOR.get(self.model)
        numbers: dict = {"model": self.model, "slots": self.slots, "systems": {}}
        traces = {}
        for name, config in configs.items():
            with offload(model, config, tokenizer=tokenizer, hardware=self.hardware, geometry=geometry) as engine:
                if not numbers["systems"]:
                    self._introduce(engine, numbers)
                    if problems and picked:
                        self.show("The first problem was picked: half of the experts get it wrong, which is rare.\n")
                self.show(f"\n== {name}\n")
                right = self._write(engine, problems, every=config.two_passes and "MoBiLE" in name)
                numbers["systems"][name] = {"right": right} | metrics.summary(engine.trace)
                traces[name] = engine.trace
        if self.perfetto is not None:
            to_perfetto(traces, self.perfetto)
        base = next(iter(numbers["systems"].values()))["seconds_per_token"]
        for row in numbers["systems"].values():
            row["speed_up"] = base / row["seconds_per_token"]
        return [_row(name, row, self.problems) for name, row in numbers["systems"].items()], numbers

    def _introduce(self, engine: Engine, numbers: dict) -> None:
        about = engine.trace.conditions
        numbers["conditions"] = {key: about[key] for key in ("time", "hardware", "geometry", "experts", "top_k")}
        self.show(
            f"{self.model}: {about['layers']} MoE layers of {about['experts']} experts, {about['top_k']} a token; "
            f"{about['slots']} of them fit on the device.\nClock: {about['time']}.\n{terminal.legend(self.colour)}\n"
        )

    def _write(self, engine: Engine, problems: list | None, *, every: bool) -> int | None:
        """Writes every text, shows the first or all; returns how many answers were right, None without problems."""
        from tqdm.auto import tqdm

        prompts = [self.prompt] if problems is None else [problem.prompt for problem in problems]
        right = self._one(engine, prompts[0], problems and problems[0], self.show)
        rest = range(1, len(prompts))
        for at in rest if every else tqdm(rest, desc="more problems", leave=False, disable=None):
            right += self._one(engine, prompts[at], problems[at], self.show if every else lambda text: None)
        if not every and rest:
            self.show(f"… and {len(rest)} more problems\n")
        return None if problems is None else right

    def _one(self, engine: Engine, prompt: str, problem, show: Callable[[str], None]) -> bool:
        show(prompt)
        text, alone = "", isinstance(engine.config.keep, Always)
        for step in engine.stream(prompt, max_new_tokens=self.max_new_tokens, do_sample=False):
            text += step.text
            if alone and engine.config.two_passes:  # the little model read the prompt too
                step = replace(step, wrote="little")
            show(step.text if alone and not self.colour else terminal.token(step, self.colour))
        right = problem is not None and problem.check(text)
        verdict = "" if problem is None else "  (right)" if right else f"  (wrong: it is {problem.answer})"
        show(f"{verdict}\n")
        return right


def _row(name: str, row: dict, problems: int) -> dict:
    def share(value: float) -> str:
        return f"{100 * value:.1f} %" if value == value else "-"

    return {
        "system": name,
        "right": "-" if row["right"] is None else f"{row['right']}/{problems}",
        "fallback": share(row["fallback_ratio"]) if row["fallback_ratio"] else "-",
        "hits": share(row["hit_rate"]),
        "expert MB a token": f"{row['bytes_per_token'] / 1e6:.1f}",
        "router precision": share(row["evicted_router_precision"]),
        "ms a token": f"{1e3 * row['seconds_per_token']:.2f}",
        "speed-up": f"{row['speed_up']:.2f}x",
    }


__all__ = ["Demo"]
