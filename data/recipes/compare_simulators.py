"""Time our replays beside the cache simulators of two public projects, on the same routing, and check them equal.

    python data/recipes/compare_simulators.py --moe-beyond CHECKOUT --moe-lrc CHECKOUT

CHECKOUT: clones of github.com/ngavhane/moe-beyond and github.com/ljcleo/moe-lrc; their imports (scikit-learn,
sortedcontainers, torch) must be installed. None of their code or data is kept here: the routing is drawn. Writes
data/results/replay_speed.json. Measured, one thread, best of five for ours and of two for theirs.

Theirs as they are: moe-beyond walks through one global LRU, an access at a time, reading a CSV with pandas; moe-lrc
keeps a sorted set a layer and finds LRU's hits at every size. Ours for the first: the same accesses through the whole
scheduler, link and clock included, and its experiment of ten capacities in one walk by stack distance; for the second
such a walk too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from mobile_nb import Trace, systems  # noqa: E402
from mobile_nb.analysis.synthetic import Synthetic  # noqa: E402
from mobile_nb.clock import VirtualClock  # noqa: E402
from mobile_nb.costs import Costs  # noqa: E402
from mobile_nb.hardware import Geometry, Hardware  # noqa: E402
from mobile_nb.memory.cache import Cache  # noqa: E402
from mobile_nb.memory.compiled import play  # noqa: E402
from mobile_nb.memory.link import SimulatedLink  # noqa: E402
from mobile_nb.memory.scheduler import COUNTERS, Scheduler  # noqa: E402
from mobile_nb.memory.script import Script, interpret  # noqa: E402
from mobile_nb.memory.stack import stack_distances  # noqa: E402
from mobile_nb.policies import LRU  # noqa: E402
from mobile_nb.runtime.layout import costed, layout  # noqa: E402
from mobile_nb.runtime.replay import replay  # noqa: E402
from mobile_nb.runtime.tape import Tape  # noqa: E402

LAYERS, E, K, TOKENS = 26, 64, 6, 400  # DeepSeek-V2-Lite
WARM_UP = 10 * LAYERS


def best(work, repeat: int = 5) -> tuple[float, object]:
    """Fewest seconds of CPU time, and what it returned."""
    times = []
    for _ in range(repeat):
        begin = time.process_time()
        found = work()
        times.append(time.process_time() - begin)
    return min(times), found


def imported(path: Path):
    """A module from a file of another project, with its neighbours importable."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem.lstrip("0123456789_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def moe_beyond(checkout: Path, ids: np.ndarray, slots: int) -> dict:
    """Their global LRU of `slots` experts against ours as one layer of all experts, an access a pass."""
    theirs = imported(checkout / "cache_simulator" / "infinity_moe_sim.py")
    with tempfile.TemporaryDirectory() as folder:
        path = _csv(ids, folder)

        def simulate():
            np.random.seed(0)
            return theirs.test_single_csv_predict_mode_with_predicted(path, slots)[:2]

        seconds, (hits, misses) = best(simulate, repeat=2)
    np.random.seed(0)
    content = [(layer - 1) * E + expert for layer, expert in theirs.ExpertCache(slots).cache]
    flat = (ids + np.arange(LAYERS)[None, :, None] * E).reshape(-1, K)  # rows (token, layer), ids of one big layer
    walked = np.concatenate([flat[: WARM_UP + 1].ravel(), flat[WARM_UP:].ravel()])  # they access the row between twice
    asked = np.concatenate([content, walked])
    none = np.zeros(2 * len(asked) + 1, dtype=np.int64)
    script = Script(
        np.arange(len(asked) + 1), asked, np.full(len(asked), 1e-5), none, np.zeros((0, 2), dtype=np.int64),
        np.full(len(asked), np.inf), np.full((1, LAYERS * E), np.inf), np.full(len(asked), 1e-5), np.zeros(len(asked)),
    )  # fmt: skip
    play(script, 1, LAYERS * E, slots, 1e-3, 0)  # compiles
    ours, played = best(lambda: play(script, 1, LAYERS * E, slots, 1e-3, 0))
    counted = played.counts[len(content) + (WARM_UP + 1) * K :, COUNTERS.index("hits"), 0]
    bare, _ = best(lambda: _bare(asked.tolist(), slots))
    return {
        "slots": slots,
        "accesses": len(walked),
        "hits": [hits, int(counted.sum())],
        "equal": (hits, misses) == (int(counted.sum()), len(counted) - int(counted.sum())),
        "their_ns_an_access": 1e9 * seconds / len(walked),
        "our_ns_an_access": 1e9 * ours / len(asked),
        "ratio": (seconds / len(walked)) / (ours / len(asked)),
        "bare_ordered_dict_ns_an_access": 1e9 * bare / len(asked),
    }


def ten_capacities(checkout: Path, ids: np.ndarray) -> dict:
    """Their experiment, 10 % to 100 % of all experts: ten runs of theirs, one walk of ours. The caches start empty."""
    theirs = imported(checkout / "cache_simulator" / "infinity_moe_sim.py")
    theirs.np.random.shuffle = lambda content: content.clear()  # what they would fill the cache with at first
    sizes = [int(LAYERS * E * share / 10) for share in range(1, 11)]
    with tempfile.TemporaryDirectory() as folder:
        path = _csv(ids, folder)
        seconds, found = best(
            lambda: [theirs.test_single_csv_predict_mode_with_predicted(path, size)[0] for size in sizes], repeat=1
        )
    flat = (ids + np.arange(LAYERS)[None, :, None] * E).reshape(-1, K)
    walked = np.concatenate([flat[: WARM_UP + 1].ravel(), flat[WARM_UP:].ravel()])
    warm = (WARM_UP + 1) * K

    def walk():
        all_of_it, before = (
            stack_distances(np.arange(n + 1), walked[:n], 1, LAYERS * E).cumsum() for n in (len(walked), warm)
        )
        return [int((all_of_it - before)[size - 1]) for size in sizes]

    walk()
    ours, same = best(walk)
    return {
        "capacities": sizes,
        "equal": found == same,
        "their_seconds": seconds,
        "our_seconds": ours,
        "ratio": seconds / ours,
    }


def _csv(ids: np.ndarray, folder: str) -> Path:
    """Routing as they read it, without predictions."""
    rows = [
        {"Layer ID": layer + 1, "Activated Expert IDs": str(ids[t, layer].tolist()), "Predicted Expert IDs": "[]"}
        for layer in range(LAYERS)
        for t in range(len(ids))
    ]
    path = Path(folder) / "routing.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def _bare(asked: list[int], slots: int) -> int:
    """LRU and nothing else, as Python does it best: what is left of theirs without CSV and pandas."""
    cache, hits = OrderedDict(), 0
    for expert in asked:
        if expert in cache:
            cache.move_to_end(expert)
            hits += 1
        else:
            if len(cache) >= slots:
                cache.popitem(last=False)
            cache[expert] = True
    return hits


def moe_lrc(checkout: Path, ids: np.ndarray) -> dict:
    """Their LRU at all sizes, layer by layer, against ours. They count an expert's first use as a hit of the size
    that holds all seen so far; that is one more at each depth where every expert is used."""
    import torch

    sys.argv = sys.argv[:1] + ["none"]
    theirs = imported(checkout / "src" / "50_chr_calc.py")
    layers = [torch.from_numpy(np.ascontiguousarray(ids[:, layer, ::-1])) for layer in range(LAYERS)]  # the best last
    seconds, found = best(lambda: [theirs.calc_lru(seq, E) for seq in layers], repeat=2)
    at = np.arange(len(ids) * LAYERS + 1) * K
    asked = ids.reshape(-1).astype(np.int64)
    stack_distances(at, asked, LAYERS, E)
    ours, stack = best(lambda: stack_distances(at, asked, LAYERS, E))
    used = [len(np.unique(ids[:, layer])) for layer in range(LAYERS)]
    cold = np.sum([np.arange(E) < u for u in used], axis=0)
    expected = (stack + cold).cumsum() / (len(ids) * K)
    return {
        "decisions": len(ids) * LAYERS,
        "equal": bool(np.allclose(sum(found).numpy(), expected, atol=1e-4)),
        "their_us_a_decision": 1e6 * seconds / len(ids) / LAYERS,
        "our_us_a_decision": 1e6 * ours / len(ids) / LAYERS,
        "ratio": seconds / ours,
    }


def engines(ids: np.ndarray) -> dict:
    """What compiling gave: layer decisions a second of the same replay by the scheduler in NumPy and by its twin."""
    found = {}
    trace = Trace.load(ROOT / "data" / "traces" / "tiny-olmoe.parquet")
    drawn = Synthetic.fitted("olmoe-1b-7b").trace("olmoe-1b-7b", 1000, seed=4)
    cases = {
        "tiny-olmoe, 16 problems, MoBiLE": (trace, systems.mobile()),
        "tiny-olmoe, 16 problems, on demand": (trace, systems.on_demand()),
        "drawn OLMoE, 16 layers, MoBiLE": (drawn, systems.mobile()),
        "drawn OLMoE, 16 layers, on demand": (drawn, systems.on_demand()),
        "drawn DeepSeek-V2-Lite, 26 layers, on demand": (Trace.from_routing(ids, num_experts=E), systems.on_demand()),
    }
    hardware, slots = Hardware.preset("rtx4080-pcie4"), 16
    for name, (recorded, config) in cases.items():
        geometry = Geometry.of("deepseek-v2-lite" if "DeepSeek" in name else "olmoe-1b-7b")
        tape = Tape(recorded)
        selection = tape.select(config)
        laying, laid = best(lambda t=tape, s=selection, c=config: layout(t, s, c), repeat=2)
        costs = Costs(hardware, geometry, tape.layers)
        script, sizes = costed(laid, costs), (tape.layers, tape.experts)
        fast, played = best(lambda s=script, n=sizes, c=costs: play(s, *n, slots, c.fetch_s, 0))

        def slow(script=script, sizes=sizes, costs=costs):
            link = SimulatedLink(VirtualClock(), sizes[0], slots, costs.fetch_s)
            return interpret(script, Scheduler(Cache(*sizes, np.array([slots]), LRU()), link, record=False))

        python, same = best(slow, repeat=1)
        whole, _ = best(lambda r=recorded, c=config, g=geometry: replay(r, c, hardware=hardware, geometry=g), repeat=2)
        decisions = len(selection.index) * tape.layers
        found[name] = {
            "decisions": decisions,
            "equal": bool(np.array_equal(played.end, same.end) and np.array_equal(played.counts, same.counts)),
            "compiled_million_a_second": decisions / fast / 1e6,
            "numpy_million_a_second": decisions / python / 1e6,
            "layout_s": laying,
            "whole_replay_million_a_second": decisions / whole / 1e6,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moe-beyond", type=Path, required=True, help="clone of ngavhane/moe-beyond")
    parser.add_argument("--moe-lrc", type=Path, required=True, help="clone of ljcleo/moe-lrc")
    options = parser.parse_args()
    ids = Synthetic.fitted("deepseek-v2-lite").routing(TOKENS, LAYERS, E, K, seed=5)[1].astype(np.int64)
    rows = {
        "conditions": f"measured, CPU time, one thread, {platform.machine()}, Python {platform.python_version()}; "
        f"drawn routing of DeepSeek-V2-Lite, {TOKENS} tokens, {LAYERS} layers, {K} of {E} experts",
        "engines": engines(ids),
        "moe-beyond": [moe_beyond(options.moe_beyond, ids, slots) for slots in (166, 832)],
        "moe-beyond, ten capacities": ten_capacities(options.moe_beyond, ids),
        "moe-lrc": moe_lrc(options.moe_lrc, ids),
    }
    out = ROOT / "data" / "results" / "replay_speed.json"
    out.write_text(json.dumps(rows, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
