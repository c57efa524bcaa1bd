"""The paper's table by replay, and what it left open. Everything simulated, on an RTX 4080 (PCIe 4 x16, 25 GB/s).

    python data/recipes/paper_table.py

Writes data/results/paper_table_simulated.json and prints it as tables. Routing: drawn, with routers fitted to published
measurements (data/results/synthetic_fit.json; none is published for Qwen1.5-MoE, which takes DeepSeek-V2-Lite's), and
recorded of tiny-olmoe on 16 held-out problems (data/traces), timed as OLMoE-1B-7B. Speed-ups are over on-demand
loading with LRU and equal slots, on the same routing. About five minutes on one core.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import record  # noqa: E402

from mobile_nb import Geometry, Trace, replay, sweep, systems  # noqa: E402
from mobile_nb.analysis import locality  # noqa: E402
from mobile_nb.analysis.synthetic import Synthetic  # noqa: E402
from mobile_nb.policies import EvictedRouter, MaxProbability, Nothing, Oracle, TargetFallback  # noqa: E402

CARD = "rtx4080-pcie4"
MODELS = ("olmoe-1b-7b", "qwen1.5-moe-a2.7b", "deepseek-v2-lite", "qwen3-30b-a3b")
RATIOS = (0.10, 0.11, 0.21)
PAPER = {0.11: 1.72, 0.21: 1.57}  # what the seed quotes; 1.57 is our reading of "57x" (Table III)
TOKENS = 1000
PREFETCH = [Nothing(), EvictedRouter(), Oracle()]


def drawn(name: str, fallback: float) -> Trace:
    """A model's routing, with that share of tokens below 0.7."""
    fitted = Synthetic.fitted(name if name != "qwen1.5-moe-a2.7b" else "deepseek-v2-lite")
    return replace(fitted, fallback=fallback).trace(name, TOKENS, seed=3)


def speed_ups(trace: Trace, geometry: str, slots: list[int], **grid) -> pd.DataFrame:
    """MoBiLE's rows with `speed_up` over on-demand LRU of the same slots (and hardware and link, if swept)."""
    shared = {"slots": slots, "hardware": [CARD], "geometry": [geometry]}
    shared |= {name: grid.pop(name) for name in ("hardware", "link_gb_per_s") if name in grid}
    base = sweep(trace, systems.on_demand(), progress=False, **shared)
    rows = sweep(trace, systems.mobile(), progress=False, **shared, **grid)
    return rows.merge(base[[*shared, "seconds_per_token"]], on=list(shared), suffixes=("", "_on_demand")).assign(
        speed_up=lambda f: f.seconds_per_token_on_demand / f.seconds_per_token
    )


def table() -> pd.DataFrame:
    """Four geometries, the paper's fallback ratios, four cache sizes, with and without prefetch."""
    parts = []
    for name in MODELS:
        sizes = Geometry.of(name)
        slots = sorted({sizes.top_k, 2 * sizes.top_k, sizes.num_experts // 4, sizes.num_experts // 2})
        for ratio in RATIOS:
            trace = drawn(name, ratio)
            little = locality.routing(trace, "little")
            precision = (little[..., None] == locality.routing(trace)[..., None, :]).any(axis=3).mean()
            rows = speed_ups(trace, name, slots, prefetch=PREFETCH)
            parts.append(rows.assign(model=name, wanted_ratio=ratio, precision=precision, paper=PAPER.get(ratio)))
    recorded = Trace.load(ROOT / "data" / "traces" / "tiny-olmoe.parquet")
    rows = speed_ups(recorded, "olmoe-1b-7b", [8, 16, 32], gamma=[0.7], prefetch=PREFETCH)
    parts.append(rows.assign(model="tiny-olmoe as olmoe-1b-7b", wanted_ratio=rows.fallback_ratio.round(3)))
    frame = pd.concat(parts, ignore_index=True)
    f = frame.fallback_ratio
    return frame.assign(
        closed_form_c1=1 / (0.5 + f), closed_form_c05=1 / (0.5 + 0.5 * f), c=(1 / frame.speed_up - 0.5) / f
    )


def break_even() -> pd.DataFrame:
    """Speed-up and the gain of prefetching over bandwidth, from PCIe 3 x4 to 5 x16, and over layers of look-ahead."""
    trace = drawn("olmoe-1b-7b", 0.21)
    prefetch = [Nothing(), *(EvictedRouter(ahead=ahead) for ahead in (1, 2, 3)), EvictedRouter(), Oracle()]
    rates = [3.0, 6.0, 12.0, 16.0, 25.0, 32.0, 50.0, 100.0, 200.0]
    return speed_ups(trace, "olmoe-1b-7b", [16], link_gb_per_s=rates, prefetch=prefetch)


def fractions() -> pd.DataFrame:
    """How little: shares of K from 1/4 to 3/4, recorded anew on tiny-olmoe, since the share decides who is unsure."""
    parts = []
    for share in (0.25, 0.375, 0.5, 0.625, 0.75):
        trace = record.record("tiny-olmoe", 8, fraction=share)
        base = replay(trace, systems.on_demand(slots=16))
        for gamma in (0.5, 0.7, 0.9):
            done = replay(trace, systems.mobile(gamma=gamma, fraction=share, slots=16))
            gain = base.seconds_per_token / done.seconds_per_token
            parts.append({"fraction": share, "gamma": gamma} | done.summary() | {"speed_up": gain})
    return pd.DataFrame(parts)


def adaptive() -> pd.DataFrame:
    """A fixed gamma against one that holds a ratio, over texts that differ in how sure the little model is of them."""
    parts = []
    for text, ratio in enumerate((0.05, 0.10, 0.20, 0.40)):
        trace = replace(Synthetic.fitted("olmoe-1b-7b"), fallback=ratio).trace("olmoe-1b-7b", 600, seed=10 + text)
        base = replay(trace, systems.on_demand(slots=16), hardware=CARD)
        for keep in (MaxProbability(0.7), TargetFallback(0.1)):
            done = replay(trace, systems.mobile(slots=16, keep=keep), hardware=CARD)
            gain = base.seconds_per_token / done.seconds_per_token
            row = {"unsure_below_0.7": ratio, "keep": type(keep).__name__, "fallback_ratio": done.fallback_ratio}
            parts.append(row | {"speed_up": gain})
    return pd.DataFrame(parts)


def live_error() -> pd.DataFrame:
    """What replaying gamma gets wrong: the same problems live, where little tokens stay in the text and the cache."""
    from mobile_nb import load, metrics, offload, tasks

    trace = Trace.load(ROOT / "data" / "traces" / "tiny-olmoe.parquet")
    model, tokenizer = load("tiny-olmoe", device="cpu")
    parts = []
    for gamma in (0.5, 0.7, 0.9, 0.99):
        config = systems.mobile(gamma=gamma, slots=16)
        with offload(model, config, tokenizer=tokenizer, hardware=CARD, geometry="olmoe-1b-7b") as engine:
            for problem in tasks.load("word-problems", split="test", n=16, seed=0):
                engine.generate(problem.prompt, max_new_tokens=160)
            live = metrics.summary(engine.trace)
        done = replay(trace, config)
        parts.append(
            {"gamma": gamma}
            | {f"{name}_live": live[name] for name in ("tokens", "fallback_ratio", "seconds_per_token")}
            | {f"{name}_replayed": getattr(done, name) for name in ("tokens", "fallback_ratio", "seconds_per_token")}
            | {"time_error": done.seconds_per_token / live["seconds_per_token"] - 1}
        )
    return pd.DataFrame(parts)


def main() -> None:
    found = {part.__name__: part() for part in (table, break_even, fractions, adaptive, live_error)}
    out = ROOT / "data" / "results" / "paper_table_simulated.json"
    about = f"simulated on {CARD}; drawn routing {TOKENS} tokens, seed 3; recorded routing tiny-olmoe, 16 problems"
    rows = {name: json.loads(frame.replace({np.nan: None}).to_json(orient="records")) for name, frame in found.items()}
    out.write_text(json.dumps({"conditions": about, "paper": PAPER} | rows, separators=(",", ":")) + "\n")
    shown = found["table"].pivot_table(
        index=["model", "slots"], columns=["wanted_ratio", "prefetch"], values="speed_up", sort=False
    )
    with pd.option_context("display.width", 250, "display.max_columns", 30, "display.max_rows", 200):
        print(shown.round(2).to_string())
        for name in list(found)[1:]:
            frame = found[name].drop(columns=["time", "hardware", "geometry"], errors="ignore")
            print(f"\n{name}\n{frame.round(3).to_string()}")


if __name__ == "__main__":
    main()
