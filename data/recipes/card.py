"""Measure the shipped model on held-out test problems and write its card.

    python data/recipes/card.py                 # measure, write results.json, render README.md from it
    python data/recipes/card.py --render        # only render README.md from results.json

Every number of the card comes out of results.json and the training log; the words around them are in card.md.
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

import measure  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from mobile_nb.analysis import tasks  # noqa: E402

COUNTS = (8, 6, 4, 3, 2)
GAMMAS = (0.5, 0.6, 0.7, 0.8, 0.9)


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share."""
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return middle - half, middle + half


def paired(a: list[bool], b: list[bool], z: float = 1.96) -> tuple[float, float]:
    """Mean of a - b over the same problems, and half its 95 % interval (normal, from the problems that differ)."""
    n = len(a)
    gains, losses = sum(x and not y for x, y in zip(a, b)), sum(y and not x for x, y in zip(a, b))
    mean = (gains - losses) / n
    return mean, z * math.sqrt(max(0.0, (gains + losses) / n - mean * mean) / n)


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def row(problems: list, texts: list[str]) -> tuple[list[bool], dict]:
    """Which problems were solved, and the table's columns that follow from it."""
    solved = [p.check(t) for p, t in zip(problems, texts, strict=True)]
    low, high = wilson(sum(solved), len(solved))
    return solved, {"right": sum(solved), "accuracy": sum(solved) / len(solved), "low": low, "high": high}


def measured(options: argparse.Namespace) -> dict:
    """Run everything and return it as plain values."""
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    problems = tasks.load("word-problems", split=options.split, n=options.n, seed=options.seed)
    started, fixed, mobile, reference = time.perf_counter(), [], [], None
    for count in tqdm(COUNTS, desc="fixed"):
        solved, values = row(problems, measure.solve(model, tokenizer, problems, count=count))
        reference = solved if reference is None else reference
        mean, half = paired(solved, reference)
        by_steps = {
            steps: sum(s for s, p in zip(solved, problems, strict=True) if p.steps == steps)
            / max(1, sum(p.steps == steps for p in problems))
            for steps in sorted({p.steps for p in problems})
        }
        fixed.append({"experts": count, **values, "difference": mean, "half_width": half, "by_steps": by_steps})
    openers = {tokenizer.convert_tokens_to_ids("Ġ" + word) for word in ("So", "Then", "Now")}
    for gamma in tqdm(GAMMAS, desc="MoBiLE"):
        result = measure.solve_mobile(model, tokenizer, problems, gamma=gamma)
        solved, values = row(problems, result.texts)
        mean, half = paired(solved, reference)
        mobile.append({
            "gamma": gamma, **values, "difference": mean, "half_width": half,
            "written": result.written, "fell_back": result.fell_back, "fallback_ratio": result.fallback_ratio,
            "wording": sum(count for token, count in result.fell_back_on.items() if token in openers),
            "precision": result.precision,
        })  # fmt: skip
    mass = measure.router_mass(model, tokenizer, problems[:200])
    return {
        "n": options.n, "split": options.split, "seed": options.seed, "dtype": "float32", "device": processor(),
        "threads": options.threads, "seconds": time.perf_counter() - started,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
        },
        "sha256": hashlib.sha256((options.model / "model.safetensors").read_bytes()).hexdigest(),
        "bytes": (options.model / "model.safetensors").stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "fixed": fixed, "mobile": mobile,
        "router": {"best": mass[:, 0].tolist(), "chosen": mass.sum(-1).tolist()},
    }  # fmt: skip


def points(values: dict) -> str:
    """A difference to full K with its interval, in points."""
    return f"{100 * values['difference']:+.1f} ± {100 * values['half_width']:.1f}"


def percent(values: list[float]) -> str:
    return " · ".join(f"{100 * value:.0f}" for value in values)


def render(results: dict, log: list[dict], words: str) -> str:
    """The card: the words with the numbers filled in."""
    steps = list(results["fixed"][0]["by_steps"])
    head = "| experts | exact match % | 95 % interval | against K, points | " + " | ".join(f"{s} steps" for s in steps)
    fixed = [head + " |", "|---" * (4 + len(steps)) + "|"]
    for r in results["fixed"]:
        cells = [str(r["experts"]), f"{100 * r['accuracy']:.1f}", f"{100 * r['low']:.1f} to {100 * r['high']:.1f}"]
        cells += ["" if r["experts"] == 8 else points(r), *(f"{100 * share:.0f}" for share in r["by_steps"].values())]
        fixed.append("| " + " | ".join(cells) + " |")
    mobile = [
        "| γ | exact match % | 95 % interval | against K, points | fallback % | of it wording % "
        "| precision % by layer |",
        "|---" * 7 + "|",
    ]
    for r in results["mobile"]:
        mobile.append(
            f"| {r['gamma']} | {100 * r['accuracy']:.1f} | {100 * r['low']:.1f} to {100 * r['high']:.1f} | {points(r)} "
            f"| {100 * r['fallback_ratio']:.1f} | {100 * r['wording'] / max(1, r['fell_back']):.0f} "
            f"| {percent(r['precision'])} |"
        )
    stages = [f"- from {line['tokens'] / 1e6:.1f} million tokens: {line['stage']}" for line in log if "stage" in line]
    last, entropy = log[-1], [line["router_entropy"] for line in log if "router_entropy" in line][-1]
    return words.format(
        **{key: results[key] for key in ("n", "split", "seed", "dtype", "device", "threads")},
        minutes=f"{results['seconds'] / 60:.0f}", megabytes=f"{results['bytes'] / 1e6:.1f}",
        parameters=f"{results['parameters'] / 1e6:.1f}", fixed="\n".join(fixed), mobile="\n".join(mobile),
        versions=", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        tokens=f"{last['tokens'] / 1e6:.1f}", steps=f"{last['step']:,}", training=f"{last['seconds'] / 60:.0f}",
        stages="\n".join(stages), entropy=f"{entropy:.2f}", even=f"{math.log(64):.2f}",
        best=percent(results["router"]["best"]), chosen=percent(results["router"]["chosen"]),
    )  # fmt: skip


def main() -> None:
    """Measure unless told not to, then render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-olmoe", help="folder of the model")
    parser.add_argument("--n", type=int, default=2000, help="problems (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems (default: 0)")
    parser.add_argument("--split", default="test", choices=tasks.SPLITS, help="split (default: test)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--render", action="store_true", help="do not measure, only write README.md from results.json")
    options = parser.parse_args()
    path = options.model / "results.json"
    if not options.render:
        path.write_text(json.dumps(measured(options), indent=1) + "\n")
    log = [json.loads(line) for line in (options.model / "training_log.jsonl").read_text().splitlines()]
    text = render(json.loads(path.read_text()), log, (HERE / "card.md").read_text())
    (options.model / "README.md").write_text(text)


if __name__ == "__main__":
    main()
