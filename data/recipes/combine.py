"""Search the six questions for the fastest system that is as often right as the full model; say what each part adds.

    python data/recipes/combine.py                       # tiny-olmoe, a quarter of the experts on the device
    python data/recipes/combine.py --model tiny-qwen2-moe --out runs/qwen2.json

1. What leaves the text alone (misses split with the host, evict, prefetch) is chosen by time, on a few texts.
2. What changes it on any device alike (codec, then count and keep) is ordered by time with that, and raced from the
   fastest on: each is paired with the full model on the same validation problems, few first, more for those that
   survive. One is given up as soon as the 95 % interval of its difference ends below what may be lost, and accepted
   when on all problems the difference itself does not. Counts that were given up are not tried with codecs.
3. Near score, whose text depends on the device, is raced on top of the winner.
4. Winners are tried once on test problems, whole and with each part taken back, and timed in other amounts of device
   memory. Nothing is chosen there.

With weights as they are, and with codecs, in the same device memory. Answers are measured, in large batches, times
simulated. Writes data/results/combination.json; every measurement is kept (--save), and an interrupted search goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from mobile_nb import evaluate, offload, systems, tasks  # noqa: E402
from mobile_nb import policies as p  # noqa: E402
from mobile_nb.analysis.evaluate import wilson  # noqa: E402
from mobile_nb.analysis.literature import TASKS, World  # noqa: E402
from mobile_nb.costs import Costs  # noqa: E402
from mobile_nb.hardware import Geometry, Hardware  # noqa: E402
from mobile_nb.memory.codecs import Encoding  # noqa: E402
from mobile_nb.memory.store import Arena  # noqa: E402
from mobile_nb.model.adapters import find_layers  # noqa: E402
from mobile_nb.runtime.config import MobileConfig  # noqa: E402

ALLOWED = 0.003  # accuracy that may be lost
TYPICAL = "0.5 K, gamma 0.7"  # with which exact parts are timed
TOGETHER = 128  # texts that are written at once

Options = dict[str, dict[str, dict]]  # question -> words -> fields of a `MobileConfig`; the first words: as it was


@dataclass(frozen=True)
class Candidate:
    """A configuration, and the words of its answers: ((question, words), …)."""

    config: MobileConfig
    words: tuple[tuple[str, str], ...] = ()

    def but(self, question: str, word: str, fields: dict) -> Candidate:
        return Candidate(replace(self.config, **fields), tuple((dict(self.words) | {question: word}).items()))


# -- the space -----------------------------------------------------------------------------------------------------


def text_options(world: World, codecs: bool) -> Options:
    """What changes the text, on any device alike. `count` is for count and keep."""
    keeps = {"alone": p.Always()} | {f"gamma {gamma:g}": p.MaxProbability(gamma) for gamma in (0.7, 0.9)}
    counts = {f"{part:g} K, {word}": (p.Fraction(part), keep)
              for part in (0.5, 0.625, 0.75, 0.875) for word, keep in keeps.items()}  # fmt: skip
    others = {"gamma 0.95": p.MaxProbability(0.95), "gamma 0.99": p.MaxProbability(0.99), "margin 0.9": p.Margin(0.9)}
    others |= {"entropy 0.95": p.Entropy(0.95), "20 % fall back": p.TargetFallback(0.2)}
    counts |= {f"0.5 K, {word}": (p.Fraction(0.5), keep) for word, keep in others.items()}
    for least in (0.55, 0.6, 0.65, 0.7):
        counts[f"at least {least:g} of the best weight"] = (p.WeightRatio(least), p.Always())
    middle = sorted(world.sensitivity)[len(world.sensitivity) // 2]
    counts["AdapMoE"] = (p.Sensitivity(world.sensitivity, 0.05 * middle), p.Always())
    counts["LExI"] = (p.PerLayer(world.fewer), p.Always())
    count = {word: {"count": how, "keep": keep} for word, (how, keep) in counts.items()}
    forms = {"full": p.Full()}
    if codecs:
        forms = {"int4": p.Int4(), "int4 in groups of 32": p.Int4(32), "int8": p.Int8()}
        forms["a quarter int8, the rest int4"] = p.PerExpert.from_trace(world.trace, (p.Int8(), p.Int4()), (0.25, 0.75))
        forms["MC: int8, int4, int2"] = p.PerExpert.from_trace(world.trace)
    plain = {"all K": {"count": p.TopK(), "keep": p.Always()}}
    return {"count": plain | count, "codec": {word: {"codec": form} for word, form in forms.items()}}


def exact_options(world: World, codec) -> Options:
    """What leaves the text alone. The host computes what the codec's forms decode to, in the time of whole experts."""
    geometry = Geometry.of(world.geometry)
    coded = tuple(form.bytes_per_weight for form in codec.forms)
    costs, many = Costs(Hardware.preset(world.hardware), geometry, geometry.moe_layers, coded), len(coded)
    shares = [1 / many] * many if codec.own is None else [count / world.experts for count in codec.counts]
    mean = sum(share * (costs.fetch_of(form) + costs.expert_s(1, form)) for form, share in enumerate(shares))
    ratio = costs.host_s() / mean
    options = {
        "miss": {"wait": p.Wait(), "split with the host": p.OnHost(ratio, True), "all on the host": p.OnHost(ratio)},
        "evict": {"LRU": p.LRU(), "LFU": p.LFU(), "mean score": p.PredictedReuse(p.MeanScore(16))},
        "prefetch": {"none": p.Nothing(), "evicted router": p.EvictedRouter(), "next gate": p.NextGate(1, 1)},
    }
    return {question: {word: {question: v} for word, v in each.items()} for question, each in options.items()}


# -- the search, which knows no model --------------------------------------------------------------------------------


def fastest(start: Candidate, options: Options, seconds: Callable[[Candidate], float]) -> Candidate:
    """One question after the other, the answer that takes least time; on a tie the first."""
    best = start
    for question, each in options.items():
        best = min((best.but(question, *answer) for answer in each.items()), key=seconds)
    return best


def race(ordered: Sequence[Candidate], judge: Callable, rungs: Sequence[int]) -> Iterator[dict]:
    """Tries candidates, the fastest first, until one is accepted; yields what became of each: how it did on each rung,
    whether it was accepted, and whether it lost so much that noise does not explain it.

    Args:
        judge: (candidate, n) -> {"difference", "half_width", …} from the full model, on the first n problems.
    """
    for candidate in ordered:
        ran, lost = [], False
        for n in rungs:
            ran.append(judge(candidate, n))
            lost = ran[-1]["difference"] + ran[-1]["half_width"] < -ALLOWED
            if lost:
                break
        accepted = not lost and ran[-1]["difference"] >= -ALLOWED
        yield {"candidate": candidate, "rungs": ran, "accepted": accepted, "lost": lost}
        if accepted:
            return


def paired(right: Sequence[bool], before: Sequence[bool]) -> dict:
    """How much more often `right` than `before` on the same problems, with the half width of the 95 % interval."""
    n, pairs = len(right), list(zip(right, before, strict=True))
    gains, losses = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    difference = (gains - losses) / n
    half = 1.96 * math.sqrt(max((gains + losses) / n - difference**2, 1 / n**2) / n)
    return {"difference": difference, "half_width": half, "gains": gains, "losses": losses, "n": n}


def less(best: Candidate, question: str, options: Options) -> Candidate:
    """With the plain answer to one question; `near` is what a miss policy asks before it splits."""
    miss = best.config.miss
    if question == "near":
        return best.but(question, "none", {"miss": replace(miss, before=p.Wait())})
    if question == "miss" and _near(best.config):
        return best.but(question, "wait", {"miss": miss.before})
    return best.but(question, *next(iter(options[question].items())))


def _near(config: MobileConfig) -> bool:
    return isinstance(getattr(config.miss, "before", config.miss), p.NearScore)


def search(bench: Bench, start: Candidate, text: Options, nears: Sequence[float], worse: set[str]):
    """Steps 1 to 3: the winner, and what was tried. Counts in `worse` are left out; those given up are added."""
    exact = {word: exact_options(bench.world, fields["codec"]) for word, fields in text["codec"].items()}
    typical = start.but("count", TYPICAL, text["count"][TYPICAL])
    parts = fastest(typical, exact_options(bench.world, p.Full()), bench.seconds).words
    print(f"by time: {dict(parts)}", flush=True)
    each = []
    for codec, fields in text["codec"].items():
        each.append(start.but("codec", codec, fields))
        for question, word in parts[1:]:
            each[-1] = each[-1].but(question, word, exact[codec][question][word])
    tried, best = _raced(bench, each, start)
    codec = dict(best.words).get("codec", "full")
    counts = [answer for answer in text["count"].items() if answer[0] not in worse]
    more, best = _raced(bench, [best.but("count", *answer) for answer in counts], best)
    worse |= {row["words"]["count"] for row in more if row["lost"]}
    best = fastest(best, exact.get(codec, exact_options(bench.world, p.Full())), bench.seconds)
    near = {a: {"miss": replace(best.config.miss, before=p.NearScore(a))} for a in nears}
    last, best = _raced(bench, [best.but("near", f"near score {a:g}", near[a]) for a in near], best)
    return best, tried + more + last


def _raced(bench: Bench, some: list[Candidate], best: Candidate) -> tuple[list[dict], Candidate]:
    rows = []
    for row in race(sorted(some, key=bench.seconds), bench.judge, bench.rungs):
        candidate = row.pop("candidate")
        best = candidate if row["accepted"] else best
        each = " -> ".join(f"{100 * r['difference']:+.2f} ± {100 * r['half_width']:.2f}" for r in row["rungs"])
        rows.append({"words": dict(candidate.words), "ms": bench.time(candidate)["ms"]} | row)
        print(f"{rows[-1]['ms']:.2f} ms, {rows[-1]['words']}: {each}{', accepted' * row['accepted']}", flush=True)
        rows[-1]["rungs"] = [[r["n"], r["gains"], r["losses"]] for r in row["rungs"]]
    return rows, best


# -- measurements ----------------------------------------------------------------------------------------------------


class Bench:
    """Measures on problems of one split, and remembers (`save`) what it has measured.

    Args:
        timed: problems of each task that are timed.   rungs: numbers of those that are judged.
    """

    def __init__(self, world: World, split: str, seed: int, timed: int, rungs: Sequence[int], save: Path):
        self.world, self.split, self.seed, self.timed, self.save = world, split, seed, timed, save
        self.rungs, self.edges = list(rungs), (0, *rungs)
        self.problems = {task: tasks.load(task, split=split, n=max(timed, *rungs), seed=seed) for task in TASKS}
        lines = save.read_text(encoding="utf-8").splitlines() if save.exists() else []
        self.known = dict(json.loads(line) for line in lines)
        self.texts: dict[tuple, int] = {}

    def right(self, config: MobileConfig, n: int) -> list[bool]:
        """Which of the first n problems of each task are solved."""
        found: list[int] = []
        for task, (a, b) in product(TASKS, pairwise(self.edges)):
            if b <= n:
                some = self.problems[task][a:b]
                found += self._once(["right", task, a, b, self._text(config)], self._written, config, some)
        return [bool(each) for each in found]

    def judge(self, candidate: Candidate, n: int) -> dict:
        right = self.right(candidate.config, n)
        low, high = wilson(sum(right), len(right))
        accuracy = {"accuracy": sum(right) / len(right), "low": low, "high": high}
        return paired(right, self.right(MobileConfig(), n)) | accuracy

    def time(self, candidate: Candidate) -> dict:
        """Simulated, a token: ms, of computation and of the host alone (None: not known), and MB; each text on an empty
        device."""
        config, rows = candidate.config, []
        for task, problems in self.problems.items():
            what = ["time", task, self.timed, repr(config)]
            rows.append(self._once(what, self._timed, config, problems[: self.timed]))
            same = self.texts.setdefault((task, self._text(config)), rows[-1]["texts"])
            assert same == rows[-1]["texts"], f"{config} shall not change the text"
        tokens = sum(row["tokens"] for row in rows)
        each: dict = {name: sum(row[name] for row in rows) / tokens for name in ("ms", "computing_ms", "mb")}
        hosted = [row["host_ms"] for row in rows]
        each["host_ms"] = None if None in hosted else sum(hosted) / tokens
        hits = sum(row["hits"] for row in rows) / sum(row["requests"] for row in rows)
        return each | {"hit_rate": hits, "n_timed": self.timed * len(rows)}

    def seconds(self, candidate: Candidate) -> float:
        return self.time(candidate)["ms"] / 1e3

    def _text(self, config: MobileConfig) -> str:
        """What the text depends on."""
        return repr(config if _near(config) else (config.count, config.keep, config.codec))

    def _once(self, what: list, measure: Callable, *about):
        key = json.dumps([self.world.name, self.split, self.seed, *what])
        if key not in self.known:
            self.known[key] = measure(*about)
            with self.save.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self.known[key]]) + "\n")
        return self.known[key]

    def _written(self, config: MobileConfig, problems: list) -> list[int]:
        (model, tokenizer), right = self.world.loaded, [0] * len(problems)
        told = MobileConfig(count=config.count, keep=config.keep)
        alone = not _near(config) and not getattr(config.count, "by_token", False)
        if not alone:  # an engine is asked; where the device does not matter, one that holds all experts
            told = config if _near(config) else replace(told, codec=config.codec, slots=self.world.experts)
        order = sorted(range(len(problems)), key=lambda at: len(problems[at].solution))  # texts that end together
        with decoded(model, config.codec) if alone else offload(model, told, geometry=self.world.geometry) as engine:
            for some in (order[at : at + TOGETHER] for at in range(0, len(order), TOGETHER)):
                who, how = (model, {"config": told}) if alone else (engine, {})
                batch = [problems[at] for at in some]
                result = evaluate(who, tokenizer, batch, batch_size=TOGETHER, progress=False, **how)
                for at, each in zip(some, result.solved, strict=True):
                    right[at] = int(each.right)
        return right

    def _timed(self, config: MobileConfig, problems: list) -> dict:
        model, tokenizer = self.world.loaded
        with offload(model, config, tokenizer=tokenizer, geometry=self.world.geometry) as engine:
            result = evaluate(engine, tokenizer, problems, batch_size=64, progress=False)
            size, host_s = engine._server.costs.expert_bytes, engine._server.costs.host_s()
        of = {name: sum(each.device[name] for each in result.solved) for name in result.solved[0].device}
        misses, host_ms = of["requests"] - of["hits"], 0.0
        if isinstance(config.miss, p.OnHost):  # what was neither there nor fetched; bytes of several forms do not tell
            alone = len(config.codec.forms) == 1
            host_ms = 1e3 * host_s * (misses - of["bytes"] / size + of["prefetches"]) if alone else None
        return {
            "tokens": sum(len(each.token_ids) - 1 for each in result.solved),
            "ms": 1e3 * of["seconds"], "computing_ms": 1e3 * of["computing_s"], "host_ms": host_ms,
            "mb": of["bytes"] / 1e6, "hits": of["hits"], "requests": of["requests"],
            "texts": zlib.crc32(json.dumps([each.token_ids for each in result.solved]).encode()),
        }  # fmt: skip


@contextmanager
def decoded(model, codec) -> Iterator[None]:
    """Inside the block the model has the experts that the codec's forms decode to."""
    layers = [] if codec.lossless else find_layers(model)
    arenas = [Arena(layer.experts, layer.num_experts) for layer in layers]
    kept = [arena.blocks.clone() for arena in arenas]
    try:
        for at, arena in enumerate(arenas):
            own = torch.zeros(arena.count) if codec.own is None else torch.tensor(codec.own[at])
            for number, form in enumerate(codec.forms):
                encoding, rough = Encoding(arena.layout, form), torch.zeros_like(arena.blocks)
                encoding.decode(encoding.encode(kept[at]), rough)
                arena.blocks[own == number] = rough[own == number]
        yield
    finally:
        for arena, blocks in zip(arenas, kept, strict=True):
            arena.blocks.copy_(blocks)
            arena.release()


def tested(bench: Bench, start: Candidate, best: Candidate, text: Options) -> dict:
    """Step 4."""
    options = text | exact_options(bench.world, p.Full())
    whole = options["miss"].get(dict(best.words).get("miss"), {})  # the host's share is another with whole experts
    whole = {} if best.config.codec.lossless else whole
    options["codec"] = {"full": {"codec": p.Full()} | whole}

    def row(candidate: Candidate) -> dict:
        found = bench.judge(candidate, bench.rungs[-1]) | bench.time(candidate)
        return found | {"speed_up": bench.seconds(start) / bench.seconds(candidate)}

    taken = {question: word for question, word in best.words if less(best, question, options).config != best.config}
    without = {question: row(less(best, question, options)) for question in taken}
    whole = {"on_demand": row(start), "found": row(best), "without": without}
    return {"taken": taken, "config": repr(best.config)} | whole


def timed_in(bench: Bench, start: Candidate, best: Candidate, budgets: dict[float, float]) -> list[dict]:
    """Milliseconds a token in other amounts of memory, of whose `budgets` (share of the experts -> GB) the text knows
    nothing: on demand, the winner, and the winner with all K experts."""
    alone = best.but("count", "all K", {"count": p.TopK(), "keep": p.Always()})
    rows = []
    for share, gb in budgets.items():
        budget = [replace(one.config, budget_gb=gb) for one in (start, best, alone)]
        ms = [bench.time(Candidate(config))["ms"] for config in budget]
        for system, each in zip(("on demand", "found", "found, all K"), ms, strict=True):
            rows.append({"share": share, "system": system, "ms": each, "speed_up": ms[0] / each})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-olmoe", help="embedded name (%(default)s)")
    parser.add_argument("--share", type=float, default=0.25, help="of the experts on the device (%(default)s)")
    parser.add_argument("--rungs", type=int, nargs="+", default=[64, 192, 600], help="validation problems of each task")
    parser.add_argument("--timed", type=int, default=3, help="of each task, timed in the search (%(default)s)")
    parser.add_argument("--test", type=int, default=600, help="test problems of each task, 0 for no test (%(default)s)")
    parser.add_argument("--test-timed", type=int, default=24, help="of them, timed (%(default)s)")
    parser.add_argument("--also", type=float, nargs="*", default=[0.125, 0.25, 0.375, 0.5], help="shares to time it in")
    parser.add_argument("--near", type=float, nargs="*", default=[0.05, 0.02], help="a of near score (%(default)s)")
    parser.add_argument("--save", type=Path, default=ROOT / "runs" / "combine.jsonl", help="what was measured so far")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results" / "combination.json")
    options = parser.parse_args()
    options.save.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    world = World(options.model)
    bench = Bench(world, "validation", 3, options.timed, options.rungs, options.save)
    test = Bench(world, "test", 0, options.test_timed, [max(options.test, 1)], options.save)
    geometry = Geometry.of(world.geometry)

    def gb(share: float) -> float:
        return round(share * world.experts) * geometry.moe_layers * geometry.expert_bytes / 1e9

    start = Candidate(systems.on_demand(budget_gb=gb(options.share)))
    seeds = {"validation": bench.seed, "test": test.seed}
    found = {"model": options.model, "share": options.share, "budget_gb": gb(options.share), "hardware": world.hardware,
             "geometry": world.geometry, "allowed": ALLOWED, "rungs": options.rungs, "seeds": seeds,
             "test_n": options.test}  # fmt: skip
    worse: set[str] = set()
    for name, codecs in (("full precision", False), ("with codecs", True)):
        text = text_options(world, codecs)
        best, tried = search(bench, start, text, () if codecs else options.near, worse)
        if options.test:
            sizes = timed_in(test, start, best, {share: gb(share) for share in options.also})
            found[name] = tested(test, start, best, text) | {"sizes": sizes, "tried": tried}
            whole = found[name]["found"]
            points = f"{100 * whole['difference']:+.2f} ± {100 * whole['half_width']:.2f} points"
            print(f"{name}, on test problems: {whole['speed_up']:.2f} x, {points}", flush=True)
    if options.test:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
