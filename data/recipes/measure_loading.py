"""Measures loading: peak host memory and time, beside safetensors, transformers and accelerate on the same files.

    OMP_NUM_THREADS=1 python data/recipes/measure_loading.py --json data/results/loading_cpu.json

Each run is a process of its own, forked when all imports are done, and the ways take turns. The checkpoint is synthetic
(`synthetic.py`), about 1.6 GB of bfloat16; it is written to a temporary folder and removed. `peak` is the most
anonymous memory above what the process had at its start: pages of files that are mapped do not count, whoever maps
them. `seconds` is the time of the call, `ready` the time until each page of every weight has been touched as
well: transformers and accelerate return while weights are still in mapped files, to be read when they are first used.
accelerate's disk offload keeps none in memory.

    warm    the files are in the page cache
    cold    they were dropped from it before each run (posix_fadvise); `disk` says how much really came from the disk

Knows nothing about how any of them loads.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at the imports below

import accelerate
import safetensors
import torch
import transformers
from safetensors import safe_open
from synthetic import LAYOUTS, forget, from_disk, machine, write
from transformers import AutoModelForCausalLM as Auto
from transformers.models.granitemoe import modeling_granitemoe  # noqa: F401
from transformers.models.olmoe import modeling_olmoe  # noqa: F401

from mobile_nb import load
from mobile_nb.files import written_whole

WAYS = ("safetensors", "mobile_nb", "transformers", "accelerate")
CACHES = ("warm", "cold")
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 1024,
    "num_experts_per_tok": 4,
}
EXPERTS = 32


def anonymous() -> int:
    """Bytes of anonymous memory of this process (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def run_once(way: str, folder: Path) -> dict:
    """Loads in this process."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.AutoTokenizer.from_pretrained(folder)  # its imports are nobody's loading time
    before = peak = anonymous()
    over = threading.Event()

    def watch():
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    read, start, busy = from_disk(), time.perf_counter(), time.process_time()
    kept = _load(way, folder)
    seconds = time.perf_counter() - start
    for tensor in kept.values() if isinstance(kept, dict) else kept.state_dict().values():
        for part in () if tensor.is_meta else tensor if tensor.dim() == 3 else [tensor]:
            part.detach().view(-1)[::1024].clone()  # every page, and some twice
    ready, busy = time.perf_counter() - start, time.process_time() - busy
    peak = max(peak, anonymous())
    over.set()
    watcher.join()
    return {"seconds": seconds, "ready": ready, "cpu": busy, "peak": peak - before, "disk": from_disk() - read}


def _load(way: str, folder: Path):
    if way == "mobile_nb":
        return load(str(folder), device="cpu", progress=False)[0]
    if way == "transformers":
        return Auto.from_pretrained(folder, dtype="auto")
    if way == "accelerate":
        kept = folder / "offload"
        return Auto.from_pretrained(folder, dtype="auto", device_map={"": "disk"}, offload_folder=kept)
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():
                weights[key] = file.get_tensor(key).clone()  # without it only the mapping is made, and nothing read
    return weights


def measure(layout: str, gb: float, runs: int, ways, caches, folder: str | None = None) -> list[dict]:
    """One row a cache and way: medians, and the least and the most seconds; every run in a process of its own."""
    layers = max(1, round(gb * 1e9 / (2 * 3 * SIZES["hidden_size"] * SIZES["intermediate_size"] * EXPERTS)))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        nbytes = apart(write, Path(place), layout, experts=EXPERTS, num_hidden_layers=layers, **SIZES)
        found = {(cache, way): [] for cache in caches for way in ways}
        for _ in range(runs):
            for cache, way in found:
                if cache == "cold":
                    forget(Path(place))
                else:
                    _read_through(Path(place))
                found[cache, way].append(apart(run_once, way, Path(place)))
    return [_row(layout, cache, way, nbytes, got) for (cache, way), got in found.items()]


def apart(work, *args, **kwargs):
    """What `work` returns, done in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(work, args, kwargs)


def _read_through(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def _row(layout: str, cache: str, way: str, nbytes: int, runs: list[dict]) -> dict:
    def middle(name: str) -> float:
        return statistics.median(run[name] for run in runs)

    return {
        "layout": layout,
        "cache": cache,
        "way": way,
        "model_bytes": nbytes,
        "runs": len(runs),
        "peak_over_model": round(max(run["peak"] for run in runs) / nbytes, 4),
        "seconds": round(middle("seconds"), 3),
        "ready_seconds": round(middle("ready"), 3),
        "ready_least_and_most": [round(pick(run["ready"] for run in runs), 3) for pick in (min, max)],
        "least_cpu_seconds": round(min(run["cpu"] for run in runs), 3),
        "disk_over_model": round(middle("disk") / nbytes, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--gb", type=float, default=1.6, help="of each checkpoint (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each way (%(default)s)")
    parser.add_argument("--folder", help="where the checkpoint is written")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    rows = []
    for layout in args.layouts:
        rows += measure(layout, args.gb, args.runs, args.ways, args.caches, args.folder)
    alone = {(r["layout"], r["cache"]): r["ready_seconds"] for r in rows if r["way"] == "safetensors"}
    for row in rows:
        if (row["layout"], row["cache"]) in alone:
            row["speed_over_safetensors"] = round(alone[row["layout"], row["cache"]] / row["ready_seconds"], 3)
        least, most = row["ready_least_and_most"]
        print(
            f"{row['layout']:10} {row['cache']:4} {row['way']:12} peak {row['peak_over_model']:5.3f} x "
            f"{row['model_bytes'] / 1e9:.2f} GB, {row['seconds']:6.2f} s, ready after {row['ready_seconds']:.2f} s "
            f"({least:.2f} to {most:.2f}), CPU {row['least_cpu_seconds']:.2f} s, disk {row['disk_over_model']:.2f} x"
        )
    if args.json:
        about = machine() | {"accelerate": accelerate.__version__, "safetensors": safetensors.__version__}
        with written_whole(args.json) as temporary:
            temporary.write_text(json.dumps({"conditions": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
