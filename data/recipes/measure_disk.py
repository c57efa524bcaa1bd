"""Measures MoBiLE beside on-demand LRU on a link that is real and slow: experts stay on disk, and reads are cold.

    OMP_NUM_THREADS=1 python data/recipes/measure_disk.py --json data/results/disk_cpu.json

The model has OLMoE's layers (64 experts, 8 active, 12.58 MB each in bfloat16), few of them, and random weights. So
routing is flat, and its largest probability says nothing: which tokens fall back is scripted, the same share of them in
every run at seeded places, and tokens are sampled so that the text does not go round in circles. Real models repeat
experts more often, which helps every system's cache.

Every read is a read of the disk: what was read is dropped from the page cache at once (posix_fadvise), and the bytes
that the disk really gave are counted beside those that were asked for. A virtual machine's disk may be cached by its
host, which nobody can see from inside.

    link bound    bytes moved / the bandwidth of reading single experts cold in random order, same run
    resident      all experts in memory, K of them run: computation alone

Systems take turns; figures are medians over the repeats, with the least and the most. A token is one after the prompt.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from synthetic import forget, from_disk, machine, write

from mobile_nb import load, offload, systems
from mobile_nb.analysis import metrics
from mobile_nb.files import written_whole
from mobile_nb.model.adapters import find_layers
from mobile_nb.policies import Nothing

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts_per_tok": 8,
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
}
EXPERTS, PROMPT, SHARES = 64, 16, (0.11, 0.21)


@dataclass(frozen=True)
class Script:
    """Evicts a share of the tokens at places drawn from a seed, whatever the logits are."""

    share: float
    tokens: int
    seed: int = 0
    _asked: itertools.count = field(default_factory=itertools.count, repr=False, compare=False)

    def keep(self, evidence) -> bool:
        places = random.Random(self.seed).sample(range(self.tokens), round(self.share * self.tokens))
        return next(self._asked) not in places


def configs(slots: int, tokens: int) -> dict:
    """Name -> a fresh configuration; all have as many slots."""
    found = {"on_demand": systems.on_demand(slots=slots), "little": systems.little(slots=slots)}
    for share in SHARES:
        scripted = systems.mobile(slots=slots, keep=Script(share, tokens))
        found[f"mobile, {100 * share:.0f} % fall back"] = scripted
        without = replace(scripted, keep=Script(share, tokens), prefetch=Nothing())
        found[f"mobile, {100 * share:.0f} % fall back, no prefetch"] = without
    return found


def bandwidth(files: list, folder: Path, seed: int) -> float:
    """Bytes a second of reading every expert of these layers, one at a time, in random order."""
    order = [(layer, expert) for layer in files for expert in range(EXPERTS)]
    random.Random(seed).shuffle(order)
    block = torch.empty(files[0].layout.numel, dtype=files[0].layout.dtype)
    forget(folder)
    start = time.perf_counter()
    for layer, expert in order:
        layer.read(expert, block)
    return len(order) * block.nbytes / (time.perf_counter() - start)


def write_text(model, config, tokens: int, seed: int) -> dict:
    """One text; the numbers of `metrics.summary`, prefetches, and what came from the disk for each byte asked for."""
    prompt = torch.randint(3, SIZES["vocab_size"], (1, PROMPT), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    before = from_disk()
    with offload(model, config) as engine:
        engine.generate(prompt, max_new_tokens=tokens + 1, min_new_tokens=tokens + 1, do_sample=True, top_k=0)
        report = engine.report()
        numbers = metrics.summary(engine.trace)
    numbers["from_disk_over_moved"] = (from_disk() - before) / (1e9 * report["gb_moved"].sum())
    return numbers | {name: int(report[name].sum()) for name in ("prefetches", "used", "late")}


def measure(folder: Path, slots: int, tokens: int, repeats: int) -> dict:
    """The runs, in turns, and the bandwidth before each turn."""
    model, _ = load(str(folder), device="cpu", experts="disk", progress=False)
    files = [layer.experts.on_disk for layer in find_layers(model)]
    for layer in files:
        layer.read_cold()
    speeds, runs = [], {name: [] for name in configs(slots, tokens)}
    for turn in range(repeats):
        speeds.append(bandwidth(files, folder, turn))
        for name, config in configs(slots, tokens).items():
            forget(folder)
            runs[name].append(write_text(model, config, tokens, turn))
    del model
    resident, _ = load(str(folder), device="cpu", progress=False)
    alone = [_resident(resident, tokens, turn) for turn in range(repeats)]
    base = [run["seconds_per_token"] for run in runs["on_demand"]]
    return {
        "bandwidth_gb_per_s": _spread([speed / 1e9 for speed in speeds]),
        "resident_ms_per_token": _spread([1e3 * seconds for seconds in alone]),
        "systems": {name: _row(found, base, speeds) for name, found in runs.items()},
    }


def _resident(model, tokens: int, seed: int) -> float:
    """Seconds a token with every expert in a slot, on the wall clock."""
    prompt = torch.randint(3, SIZES["vocab_size"], (1, PROMPT), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    with offload(model, systems.on_demand(slots=EXPERTS)) as engine:
        words = engine.stream(prompt, max_new_tokens=tokens + 1, min_new_tokens=tokens + 1, do_sample=True, top_k=0)
        next(words)
        start = time.perf_counter()
        count = sum(1 for _ in words)
    return (time.perf_counter() - start) / count


def _row(runs: list[dict], base: list[float], speeds: list[float]) -> dict:
    def middle(name: str) -> float:
        return statistics.median(run[name] for run in runs)

    seconds = [run["seconds_per_token"] for run in runs]
    bounds = [run["bytes_per_token"] / speed for run, speed in zip(runs, speeds, strict=True)]
    return {
        "ms_per_token": _spread([1e3 * each for each in seconds]),
        "speed_up": _spread([theirs / ours for theirs, ours in zip(base, seconds, strict=True)]),
        "over_link_bound": _spread([each / bound for each, bound in zip(seconds, bounds, strict=True)]),
        "link_bound_ms": round(1e3 * statistics.median(bounds), 1),
        "mb_per_token": round(middle("bytes_per_token") / 1e6, 1),
        "hit_rate": round(middle("hit_rate"), 4),
        "fallback_ratio": round(middle("fallback_ratio"), 4),
        "prefetches": middle("prefetches"),
        "prefetches_used": middle("used"),
        "hits_still_under_way": middle("late"),
        "from_disk_over_moved": round(middle("from_disk_over_moved"), 3),
    }


def _spread(values: list[float]) -> dict:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of the model, 0.8 GB each (%(default)s)")
    parser.add_argument("--slots", type=int, default=16, help="of each layer (%(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="of each text (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--folder", help="where the checkpoint is written")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        nbytes = write(Path(place), "per-expert", experts=EXPERTS, num_hidden_layers=args.layers, **SIZES)
        found = measure(Path(place), args.slots, args.tokens, args.repeats)
    about = machine() | {
        "model": f"OLMoE's layers, {args.layers} of them, random bfloat16 weights, {nbytes / 1e9:.2f} GB on disk",
        "slots": f"{args.slots} of {EXPERTS} a layer",
        "reads": "cold: dropped from the page cache at once with posix_fadvise(DONTNEED), one copying thread",
        "fallback": "scripted at seeded places: random weights have no confidence",
        "tokens": args.tokens,
        "repeats": args.repeats,
    }
    speed = found["bandwidth_gb_per_s"]
    print(f"{about['model']}, {about['slots']}; {speed['median']:.2f} GB/s ({speed['least']} to {speed['most']})")
    print(f"resident: {found['resident_ms_per_token']['median']:.1f} ms a token")
    for name, row in found["systems"].items():
        print(
            f"{name:36} {row['ms_per_token']['median']:7.1f} ms a token, {row['speed_up']['median']:.2f} x "
            f"({row['speed_up']['least']:.2f} to {row['speed_up']['most']:.2f}), {row['mb_per_token']:.1f} MB, "
            f"{row['over_link_bound']['median']:.2f} x link bound, {100 * row['hit_rate']:.1f} % hits"
        )
    if args.json:
        with written_whole(args.json) as temporary:
            temporary.write_text(json.dumps({"conditions": about} | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
