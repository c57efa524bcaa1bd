"""Record the routing of an embedded model for replays: every token little and big, and what the gates ahead say.

    python data/recipes/record.py
    python data/recipes/record.py --model tiny-qwen3-moe --problems 6

Writes data/traces/MODEL.parquet (about a minute). Gamma above 1 makes every token fall back, so the recording
holds both outcomes of each position, and any gamma can be replayed from it (see mobile_nb/runtime/tape.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tqdm.auto import tqdm  # noqa: E402

from mobile_nb import Geometry, load, offload, systems, tasks  # noqa: E402
from mobile_nb.model.find import STANDS_FOR  # noqa: E402
from mobile_nb.policies import ReadGates  # noqa: E402


def record(name: str, problems: int, *, fraction: float = 0.5, hardware="rtx4080-pcie4"):
    """The trace of `name` on that many held-out problems, a quarter of the experts in slots, simulated."""
    model, tokenizer = load(name, device="cpu")
    slots = Geometry.of(STANDS_FOR[name]).num_experts // 4
    config = systems.mobile(gamma=1.1, fraction=fraction, slots=slots, prefetch=ReadGates())
    with offload(model, config, tokenizer=tokenizer, hardware=hardware, geometry=STANDS_FOR[name]) as engine:
        for problem in tqdm(tasks.load("word-problems", split="test", n=problems, seed=0), unit="problem"):
            engine.generate(problem.prompt, max_new_tokens=160)
        return engine.trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-olmoe", help="embedded name (%(default)s)")
    parser.add_argument("--problems", type=int, default=16, help="held-out problems (%(default)s)")
    parser.add_argument("--fraction", type=float, default=0.5, help="share of K in the little model (%(default)s)")
    parser.add_argument("--out", type=Path, help="the file (data/traces/MODEL.parquet)")
    options = parser.parse_args()
    out = options.out or ROOT / "data" / "traces" / f"{options.model}.parquet"
    out.parent.mkdir(parents=True, exist_ok=True)
    record(options.model, options.problems, fraction=options.fraction).save(out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
