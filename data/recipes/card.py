"""Measure the shipped models on held-out test problems, and write data/README.md and each model's card.

    python data/recipes/card.py                        # measure every model that is there, then write the cards
    python data/recipes/card.py tiny-olmoe --n 500     # measure one
    python data/recipes/card.py --render               # only write the cards from the results

Every number comes out of data/MODEL/results.json and the training logs; the words around them are in card.md. A
measurement that was interrupted goes on where it was (--run holds what it has so far).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import cards  # noqa: E402
import measure  # noqa: E402
import models  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from mobile_nb import systems  # noqa: E402
from mobile_nb.analysis import tasks  # noqa: E402
from mobile_nb.analysis.evaluate import Evaluation, evaluate  # noqa: E402
from mobile_nb.model.load import load  # noqa: E402

GAMMAS = (0.7, 0.5, 0.6, 0.8, 0.9)  # the paper's first, on more problems
FREE = {  # tokens that can stand where the wording is free
    "word-problems": (" So", " Then", " Now", " has", " owns", " keeps"),
    "small-functions": (
        "x", "n", "v", " x", " n", " v", " a", " b", " return", " total", " result", " out", " found", " s", " r", " t",
        " [", " []", " sum", " 0", " (", " if", " elif", " else",
    ),
}  # fmt: skip


def counts(top_k: int) -> list[int]:
    """K, 3K/4, K/2, K/3 and K/4, each where it is a number of experts of its own."""
    wanted = {top_k, int(0.75 * top_k + 0.5), top_k // 2, round(top_k / 3), top_k // 4}
    return sorted((k for k in wanted if k), reverse=True)


def paired(a: list[bool], b: list[bool], z: float = 1.96) -> tuple[float, float]:
    """Mean of a - b over the same problems, and half its 95 % interval (normal, from the problems that differ)."""
    n = len(a)
    gains, losses = sum(x and not y for x, y in zip(a, b)), sum(y and not x for x, y in zip(a, b))
    mean = (gains - losses) / n
    return mean, z * math.sqrt(max(0.0, (gains + losses) / n - mean * mean) / n)


def row(result: Evaluation, reference: list[bool]) -> dict:
    """The columns that every line of a table has."""
    solved = [each.right for each in result.solved]
    low, high = result.interval
    mean, half = paired(solved, reference[: len(solved)])
    return {
        "n": result.n, "right": sum(solved), "accuracy": result.accuracy, "low": low, "high": high,
        "difference": mean, "half_width": half,
    }  # fmt: skip


def by_steps(result: Evaluation) -> dict[str, float]:
    """Accuracy for each difficulty with at least 20 problems."""
    groups: dict[int, list[bool]] = {}
    for each in result.solved:
        groups.setdefault(each.steps, []).append(each.right)
    return {str(k): sum(v) / len(v) for k, v in sorted(groups.items()) if len(v) >= 20}


def solve_task(model, tokenizer, name: str, options, kept: Path) -> dict:
    """All of one model on one task."""
    most = options.functions if name == "small-functions" else options.n
    main = tasks.load(name, split=options.split, n=most, seed=options.seed)
    top_k = model.config.num_experts_per_tok

    def run(what: str, config, problems) -> Evaluation:
        path = kept / f"{name}-{what}.json"
        print(f"{kept.name}, {name}, {what}", flush=True)
        return evaluate(model, tokenizer, problems, config=config, batch_size=options.batch, save=path)

    free = {i for word in FREE[name] for i in tokenizer(word).input_ids}
    reference, fixed, mobile = [], [], []
    for count in counts(top_k):
        n = most if count in (top_k, top_k // 2) else options.fewer
        result = run(f"{count}", measure.fixed(count, top_k), main[:n])
        reference = reference or [each.right for each in result.solved]
        fixed.append({"experts": count, **row(result, reference), "by_steps": by_steps(result)})
    for gamma in GAMMAS:
        result = run(f"gamma{gamma}", systems.mobile(gamma), main[: most if gamma == 0.7 else options.fewer])
        written = [t for each in result.solved for t in zip(each.token_ids[1:], each.fell_back[1:], strict=True)]
        again = [token for token, fell_back in written if fell_back]
        mobile.append({
            "gamma": gamma, **row(result, reference), "fallback_ratio": result.fallback_ratio,
            "free": sum(token in free for token in again) / max(1, len(again)), "precision": result.precision,
        })  # fmt: skip
        if gamma == 0.7:
            sure = [c for each in result.solved for c in each.confidences[1:]]
    below = {str(limit): sum(c < limit for c in sure) / len(sure) for limit in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)}
    mobile.sort(key=lambda each: each["gamma"])
    found = measure.routing(model, tokenizer, main[:100])
    return {"fixed": fixed, "mobile": mobile, "below": below, "tokens": len(sure), "routing": found}


def measured(name: str, options: argparse.Namespace) -> dict:
    """Run everything for one model and return it as plain values."""
    started, folder = time.perf_counter(), options.data / name
    model, tokenizer = load(str(folder), device="cpu", dtype=torch.float32)
    weights = (folder / "model.safetensors").read_bytes()
    kept = options.run / hashlib.sha256(weights).hexdigest()[:12] / name
    kept.mkdir(parents=True, exist_ok=True)
    return {
        "model": name, "split": options.split, "seed": options.seed, "dtype": "float32", "device": processor(),
        "threads": options.threads, "batch": options.batch,
        "tasks": {task: solve_task(model, tokenizer, task, options, kept) for task in tasks.NAMES},
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
        },
        "sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights),
        "parameters": sum(p.numel() for p in model.parameters()), "experts": model.config.num_experts,
        "top_k": model.config.num_experts_per_tok, "layers": model.config.num_hidden_layers,
        "moe_layers": len(models.routers(model)), "seconds": time.perf_counter() - started,
    }  # fmt: skip


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Measure unless told not to, then render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="which models (default: all that are in the data folder)")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the models (default: data)")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "card", help="folder of what is measured so far")
    parser.add_argument("--n", type=int, default=2000, help="problems for K, K/2 and gamma 0.7 (default: 2000)")
    parser.add_argument("--functions", type=int, default=2000, help="as many of the functions (default: 2000)")
    parser.add_argument("--fewer", type=int, default=400, help="problems for the other lines (default: 400)")
    parser.add_argument("--batch", type=int, default=128, help="texts at once (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems (default: 0)")
    parser.add_argument("--split", default="test", choices=tasks.SPLITS, help="split (default: test)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--render", action="store_true", help="do not measure, only write the cards from the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    there = [name for name in models.MODELS if (options.data / name / "model.safetensors").exists()]
    for name in [] if options.render else options.models or there:
        path = options.data / name / "results.json"
        path.write_text(json.dumps(measured(name, options), indent=1) + "\n", encoding="utf-8")
    cards.write(options.data, [name for name in there if (options.data / name / "results.json").exists()])


if __name__ == "__main__":
    main()
