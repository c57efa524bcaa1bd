"""Search the six questions for the fastest system that is as often right as the full model; say what each part adds.

    python data/recipes/combine.py                       # tiny-olmoe, a quarter of the experts on the device
    python data/recipes/combine.py --model tiny-qwen3-moe --n 64

Steepest descent on validation problems of both tasks: from on-demand loading, the one change that saves most time
without losing more than 0.3 points is taken, until none is left. Two searches: with weights as they are, and with
codecs, always in the same device memory. What is found is then tried on test problems, whole and with each part taken
back. Answers are measured, times simulated. Writes data/results/combination.json; goes on where it was (--save).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from mobile_nb import evaluate, offload, systems, tasks  # noqa: E402
from mobile_nb import policies as p  # noqa: E402
from mobile_nb.analysis.evaluate import wilson  # noqa: E402
from mobile_nb.analysis.literature import TASKS, World  # noqa: E402
from mobile_nb.runtime.config import MobileConfig  # noqa: E402

ALLOWED = 0.003  # accuracy that may be lost


def choices(world: World, codecs: bool) -> dict[str, dict[str, dict]]:
    """For each question the changes that may be tried: words -> fields of a `MobileConfig`."""
    near = {f"near score {a:g}": p.NearScore(a) for a in (0.1, 0.25)}
    host = {f"{word}, rest split with the host": p.OnHost(world.ratio, True, miss) for word, miss in near.items()}
    host["split with the host"] = p.OnHost(world.ratio, balance=True)
    mobile = {f"MoBiLE {gamma:g}": systems.mobile(gamma) for gamma in (0.7, 0.9)}
    found = {
        "count": {"all K": {"count": p.TopK(), "keep": p.Always()}}
        | {word: {"count": each.count, "keep": each.keep} for word, each in mobile.items()},
        "prefetch": {"none": p.Nothing(), "evicted router": p.EvictedRouter()},
        "miss": {"wait": p.Wait()} | near | host,
        "evict": {"LRU": p.LRU(), "mean score": p.PredictedReuse(p.MeanScore(16))},
    }
    if codecs:
        found["codec"] = {
            "full": p.Full(),
            "int8": p.Int8(),
            "int4": p.Int4(),
            "MC": p.PerExpert.from_trace(world.trace),
        }
    return {q: {word: v if isinstance(v, dict) else {q: v} for word, v in each.items()} for q, each in found.items()}


class Bench:
    """Tries configurations on problems of both tasks; remembers what it has tried."""

    def __init__(self, world: World, split: str, n: int, seed: int, save: Path):
        self.world, self.save, self.about = world, save, [world.name, split, n, seed]
        self.problems = {task: tasks.load(task, split=split, n=n, seed=seed) for task in TASKS}
        lines = save.read_text(encoding="utf-8").splitlines() if save.exists() else []
        self.known = dict(json.loads(line) for line in lines)

    def __call__(self, config: MobileConfig) -> dict:
        key = json.dumps([*self.about, repr(config)])
        if key not in self.known:
            self.known[key] = self._tried(config)
            with self.save.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self.known[key]]) + "\n")
        return self.known[key]

    def _tried(self, config: MobileConfig) -> dict:
        model, tokenizer = self.world.loaded
        right, tokens, seconds, moved = [], 0, 0.0, 0.0
        for problems in self.problems.values():
            with offload(model, config, tokenizer=tokenizer, geometry=self.world.geometry) as engine:
                result = evaluate(engine, tokenizer, problems, batch_size=64, progress=False)
            right += [each.right for each in result.solved]
            count = sum(len(each.token_ids) - 1 for each in result.solved)
            tokens += count
            seconds += count * result.device["seconds_per_token"]
            moved += count * result.device["bytes_per_token"]
        low, high = wilson(sum(right), len(right))
        numbers = {"accuracy": sum(right) / len(right), "low": low, "high": high, "n": len(right)}
        return numbers | {"ms": 1e3 * seconds / tokens, "mb": moved / tokens / 1e6}


def search(bench: Bench, start: MobileConfig, options: dict) -> tuple[MobileConfig, dict[str, str]]:
    """The configuration that no single change makes faster, and the words of what was taken."""
    best, taken, full = start, {}, bench(start)
    while True:
        tried = []
        for question, each in options.items():
            for word, fields in each.items():
                config = replace(best, **fields)
                if config != best and (row := bench(config))["accuracy"] >= full["accuracy"] - ALLOWED:
                    tried.append((row["ms"], question, word, config))
        if not tried or min(tried, key=lambda one: one[0])[0] >= bench(best)["ms"] * 0.995:
            return best, taken
        ms, question, word, best = min(tried, key=lambda one: one[0])
        taken[question] = word
        row = bench(best)
        print(f"{question}: {word} -> {ms:.2f} ms, {full['ms'] / ms:.2f} x, {100 * row['accuracy']:.1f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-olmoe", help="embedded name (%(default)s)")
    parser.add_argument("--share", type=float, default=0.25, help="of the experts on the device (%(default)s)")
    parser.add_argument("--n", type=int, default=64, help="validation problems of each task (%(default)s)")
    parser.add_argument("--test", type=int, default=250, help="test problems of each task (%(default)s)")
    parser.add_argument("--save", type=Path, default=ROOT / "runs" / "combine.jsonl", help="what was tried so far")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results" / "combination.json")
    options = parser.parse_args()
    options.save.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    world = World(options.model)
    geometry = systems.on_demand(slots=round(options.share * world.experts))
    with offload(world.loaded[0], geometry, geometry=world.geometry) as engine:
        gb = engine.slots * engine.geometry.moe_layers * engine.geometry.expert_bytes / 1e9
    start = systems.on_demand(budget_gb=gb)
    found = {"model": options.model, "share": options.share, "budget_gb": gb, "hardware": world.hardware,
             "geometry": world.geometry, "validation_n": options.n, "test_n": options.test}  # fmt: skip
    for name, codecs in (("full precision", False), ("with codecs", True)):
        space = choices(world, codecs)
        best, taken = search(Bench(world, "validation", options.n, 3, options.save), start, space)
        test = Bench(world, "test", options.test, 0, options.save)
        full, whole = test(start), test(best)
        plain = {question: next(iter(each.values())) for question, each in space.items()}  # the first of each
        without = {question: test(replace(best, **plain[question])) for question in taken}
        for row in (whole, *without.values()):
            row["speed_up"] = full["ms"] / row["ms"]
            row["difference"] = row["accuracy"] - full["accuracy"]
        found[name] = {"taken": taken, "config": repr(best), "on_demand": full, "found": whole, "without": without}
        print(f"{name}: {taken}; test {whole['speed_up']:.2f} x, {100 * whole['difference']:+.1f} points", flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
