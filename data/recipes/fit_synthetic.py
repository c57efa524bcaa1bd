"""Fit the synthetic router to what was measured of real ones, and show the fit beside its targets.

    python data/recipes/fit_synthetic.py

Targets: per-layer caches over DeepSeek-V2-Lite-Chat's published traces (60 prompts of 128 to 256 tokens, every third
layer), the share of experts reused from the token before and foreseen from the layer before; and SRP (arXiv
2505.16056), the best F1 of a fixed set of experts over 16 tokens, for three models. Found by coordinate search on
3,000 tokens, reported on 11,520 others. Writes data/results/synthetic_fit.json. Simulated, in about five minutes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mobile_nb import Trace  # noqa: E402
from mobile_nb.analysis import locality  # noqa: E402
from mobile_nb.analysis.curves import hit_curve  # noqa: E402
from mobile_nb.analysis.synthetic import Synthetic  # noqa: E402
from mobile_nb.policies import LFU, LRU, Belady  # noqa: E402

E, K, LAYERS = 64, 6, 8
SLOTS = [12, 16, 32, 48]
MEASURED = {
    "LRU": [0.399, 0.475, 0.716, 0.881],
    "LFU": [0.386, 0.470, 0.722, 0.881],
    "Belady": [0.624, 0.696, 0.862, 0.932],
}
REUSE, PREVIOUS_LAYER = 0.267, 0.467
SRP = {"deepseek-v2-lite": (64, 6, 0.379), "olmoe-1b-7b": (64, 8, 0.509), "qwen3-30b-a3b": (128, 8, 0.541)}


def seen(router: Synthetic, tokens: int, seed: int) -> dict:
    """What the measurements were, of drawn routing."""
    ids = router.routing(tokens, LAYERS, E, K, seed=seed)[1]
    trace = Trace.from_routing(ids, num_experts=E)
    curves = {type(e).__name__: hit_curve(trace, e, slots=SLOTS).hit_rate.tolist() for e in (LRU(), LFU(), Belady())}
    return curves | {
        "reuse": locality.reuse(ids),
        "previous_layer": locality.previous_layer_recall(ids, E),
        "srp": locality.segment_f1(ids, E),
    }


def error(router: Synthetic) -> float:
    """Sum of squared differences, on the tokens that the search may see."""
    found = seen(router, 3000, seed=1)
    cells = [(a - b) ** 2 for name, row in MEASURED.items() for a, b in zip(found[name], row, strict=True)]
    return sum(cells) + (found["reuse"] - REUSE) ** 2 + (found["previous_layer"] - PREVIOUS_LAYER) ** 2


def srp_error(router: Synthetic, experts: int, k: int, wanted: float) -> float:
    """The same for models of which SRP alone is known."""
    ids = router.routing(3000, LAYERS, experts, k, seed=1)[1]
    return (locality.segment_f1(ids, experts) - wanted) ** 2


def search(start: Synthetic, names: tuple[str, ...], loss, rounds: int = 14, step: float = 0.25) -> Synthetic:
    """Coordinate search: each field up or down by a share of itself (persistence: of what it lacks to 1; token: of what
    it lacks to either end), halving the share where nothing helps."""
    best, lowest = start, loss(start)
    for _ in range(rounds):
        before = lowest
        for name in names:
            for sign in (1, -1):
                value = getattr(best, name)
                if name == "persistence":
                    value = 1 - (1 - value) * (1 + sign * step)
                elif name == "token":
                    value += sign * step * min(value, 1 - value)
                else:
                    value *= 1 + sign * step
                tried = replace(best, **{name: max(0.0, value)})
                found = loss(tried)
                if found < lowest:
                    best, lowest = tried, found
                    break
        print(
            f"share {step:.3f}: error {lowest:.5f}", {name: round(getattr(best, name), 3) for name in names}, flush=True
        )
        if lowest == before:
            step /= 2
    return best


def main() -> None:
    fitted = search(Synthetic(), ("popularity", "context", "persistence", "token"), error)
    fitted = replace(fitted, **{name: round(getattr(fitted, name), 3) for name in asdict(fitted)})
    models = {"deepseek-v2-lite": fitted}
    for name in ("olmoe-1b-7b", "qwen3-30b-a3b"):  # one figure each: how much of routing the text decides
        experts, k, srp = SRP[name]
        found = search(
            fitted, ("context", "persistence"), partial(srp_error, experts=experts, k=k, wanted=srp), rounds=8
        )
        models[name] = replace(found, context=round(found.context, 3), persistence=round(found.persistence, 3))
    rows = {}
    for name, router in models.items():
        experts, k, srp = SRP[name]
        ids = router.routing(11_520, LAYERS, experts, k, seed=2)[1]
        rows[name] = {"router": asdict(router), "srp": locality.segment_f1(ids, experts), "srp_measured": srp}
    rows["deepseek-v2-lite"] |= {
        "slots": SLOTS,
        "found": seen(fitted, 11_520, seed=2),
        "measured": MEASURED | {"reuse": REUSE, "previous_layer": PREVIOUS_LAYER, "srp": SRP["deepseek-v2-lite"][2]},
    }
    out = ROOT / "data" / "results" / "synthetic_fit.json"
    out.write_text(
        json.dumps({"conditions": "drawn routing, 8 layers, 11,520 tokens, seed 2", "models": rows}, indent=1) + "\n"
    )
    print(out.read_text())


if __name__ == "__main__":
    main()
