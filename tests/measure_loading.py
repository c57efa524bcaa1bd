"""Measures loading: peak host memory and time, beside safetensors, transformers and accelerate on the same files.

    python tests/measure_loading.py --layout per-expert --gb 1.6 --runs 5

Each run is a fresh process; the ways take turns. Peak memory is anonymous memory (pages of files that are mapped do not
count, whoever maps them) above what the process had after its imports. The checkpoint is bfloat16 in three shards, of a
realistic shape and of meaningless numbers; it is written here, read from the page cache, and removed. What transformers
need not convert it leaves mapped in the file, to be read when it is first used: its time then is that of mapping.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WAYS = ("safetensors", "mobile_nb", "transformers", "accelerate")
LAYOUTS = {"per-expert": "olmoe", "fused": "granitemoe"}
SHARDS = 3


# -- the checkpoint ------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, layout: str, gb: float) -> int:
    """Writes about `gb` GB of weights, config and tokenizer, holding little of it in memory; returns its bytes."""
    import torch
    from checkpoints import add_tokenizer
    from transformers import AutoConfig

    from mobile_nb.model.skeleton import skeleton

    hidden, inner, experts, per_token = 1024, 512, 32, 4
    layers = max(1, round(gb * 1e9 / (2 * 3 * hidden * inner * experts)))
    config = AutoConfig.for_model(
        LAYOUTS[layout],
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=8192,
        eos_token_id=1,
        max_position_embeddings=1024,
        num_experts_per_tok=per_token,
        dtype="bfloat16",
        **{"num_local_experts" if layout == "fused" else "num_experts": experts},
    )
    config.architectures = [type(skeleton(config, torch.bfloat16)).__name__]
    shapes = {}
    for name, tensor in skeleton(config, torch.bfloat16).state_dict().items():
        if name.endswith("experts.gate_up_proj") and layout == "per-expert":
            base = name.removesuffix("gate_up_proj")
            for e in range(experts):
                shapes |= {f"{base}{e}.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        elif name.endswith("experts.down_proj") and layout == "per-expert":
            base = name.removesuffix("down_proj")
            shapes |= {f"{base}{e}.down_proj.weight": (hidden, inner) for e in range(experts)}
        else:
            for ours, theirs in (
                ("experts.gate_up_proj", "input_linear.weight"),
                ("experts.down_proj", "output_linear.weight"),
            ):
                name = name.replace(ours, theirs)
            shapes[name.replace("router.weight", "router.layer.weight") if layout == "fused" else name] = tuple(
                tensor.shape
            )
    config.save_pretrained(folder)
    add_tokenizer(folder)
    return _write_shards(folder, shapes)


def _write_shards(folder: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    import numpy as np

    noise = np.random.default_rng(0).integers(0x3C00, 0x3D00, 1 << 20, dtype=np.uint16).tobytes()  # about 0.01 each
    names, total, weight_map = sorted(shapes), 0, {}
    for shard in range(SHARDS):
        mine = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
        header, at = {}, 0
        for name in mine:
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for left in range(at, 0, -len(noise)):
                out.write(noise[: min(left, len(noise))])
        weight_map |= dict.fromkeys(mine, file)
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


# -- one run -------------------------------------------------------------------------------------------------------


def anonymous() -> int:
    """Bytes of anonymous memory of this process (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def run_once(way: str, folder: Path) -> dict:
    """Loads in this process; seconds, and peak anonymous memory above what there was before."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM
    from transformers.models.granitemoe import modeling_granitemoe  # noqa: F401
    from transformers.models.olmoe import modeling_olmoe  # noqa: F401

    import mobile_nb.model.load  # noqa: F401

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
    start, busy = time.perf_counter(), time.process_time()
    kept = _load(way, folder, AutoModelForCausalLM)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = max(peak, anonymous())
    over.set()
    watcher.join()
    del kept
    return {"way": way, "seconds": seconds, "cpu": busy, "peak": peak - before, "imports": before}


def _load(way: str, folder: Path, auto):
    if way == "mobile_nb":
        from mobile_nb import load

        return load(str(folder), device="cpu", progress=False)
    if way == "transformers":
        return auto.from_pretrained(folder, dtype="auto")
    if way == "accelerate":
        return auto.from_pretrained(
            folder, dtype="auto", device_map={"": "disk"}, offload_folder=folder / "offload", offload_buffers=False
        )
    from safetensors import safe_open

    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():
                weights[key] = file.get_tensor(key).clone()  # without it only the mapping is made, and nothing read
    return weights


# -- many runs -----------------------------------------------------------------------------------------------------


def measure(layout: str, gb: float, runs: int, ways=WAYS, folder: str | None = None) -> dict[str, list[dict]]:
    """Way -> runs, interleaved, each in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        nbytes = write_checkpoint(Path(place), layout, gb)
        results = {way: [] for way in ways}
        for _ in range(runs):
            for way in ways:
                done = subprocess.run(
                    [sys.executable, __file__, "--once", way, "--folder", place],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=600,
                )
                if done.returncode:
                    raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
                results[way].append(json.loads(done.stdout.splitlines()[-1]) | {"bytes": nbytes})
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, default="per-expert")
    parser.add_argument("--gb", type=float, default=1.6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--folder", help="where the checkpoint is written")
    parser.add_argument("--once", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(run_once(args.once, Path(args.folder))))
        return
    results = measure(args.layout, args.gb, args.runs, args.ways, args.folder)
    for way, found in results.items():
        seconds, nbytes = [run["seconds"] for run in found], found[0]["bytes"]
        print(
            f"{args.layout:10} {way:12} peak {statistics.median(run['peak'] for run in found) / nbytes:5.3f} x "
            f"{nbytes / 1e9:.2f} GB, {statistics.median(seconds):5.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{statistics.median(run['cpu'] for run in found):.2f} s of CPU"
        )


if __name__ == "__main__":
    main()
