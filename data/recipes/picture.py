"""The picture of the README: one text, who wrote it, and a few of its tokens on demand and with MoBiLE. Simulated.

    python data/recipes/picture.py

Writes data/results/overview.png. Needs kaleido and a Chromium.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402

from mobile_nb import figures, load, metrics, offload, systems, tasks  # noqa: E402
from mobile_nb.demo import TELLING  # noqa: E402

GEOMETRY, CARD = "olmoe-1b-7b", "RTX 4080, PCIe 4"


def main() -> None:
    model, tokenizer = load("tiny-olmoe", device="cpu")
    problem = tasks.load("word-problems", n=TELLING["tiny-olmoe"] + 1)[-1]
    runs = {"on demand": systems.on_demand(slots=16), "MoBiLE, γ 0.7": systems.mobile(0.7, slots=16)}
    traces = {}
    for name, config in runs.items():
        with offload(model, config, tokenizer=tokenizer, geometry=GEOMETRY) as engine:
            written = engine.generate(problem.prompt, max_new_tokens=128)
        traces[name] = engine.trace
    fell = [step for step, one in enumerate(written.steps) if one.fell_back]
    number = next((step for step in fell if written.steps[step].text.strip().isdigit()), fell[0])
    shown = range(max(1, number - 6), number + 2)  # around one that was written again: a number, if there is one
    lanes = [metrics.spans(trace, steps=shown).assign(system=name) for name, trace in traces.items()]
    words = "".join(written.steps[at].text for at in shown).strip()
    ms = {name: 1e3 * metrics.seconds_per_token(trace.to_frame()) for name, trace in traces.items()}
    before, after = ms.values()
    about = (
        f"Simulated: {CARD}, timed as OLMoE-1B-7B, 16 of 64 experts a layer on the card.<br>"
        f"A token takes {before:.1f} ms on demand and {after:.1f} ms with MoBiLE; below, the tokens “{words}”"
    )
    figure = figures.overview(written, pd.concat(lanes, ignore_index=True), about=about)
    out = ROOT / "data" / "results" / "overview.png"
    figure.write_image(out, scale=1.5)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
