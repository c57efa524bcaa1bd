"""Measure how long a grid of 1,000 replays takes, here and on processes.

    python data/recipes/measure_sweep.py

gamma x slots x bandwidth over the shipped recording (tiny-olmoe, 16 problems), without compiling, which happens once
an installation. Writes data/results/sweep_speed.json. Measured.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mobile_nb import Trace, replay, sweep, systems  # noqa: E402

GRID = {
    "gamma": [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.1],
    "slots": [4, 6, 8, 12, 16, 20, 24, 32, 40, 48],
    "link_gb_per_s": [3, 6, 8, 12, 16, 20, 25, 32, 50, 64],
}


def main() -> None:
    trace = Trace.load(ROOT / "data" / "traces" / "tiny-olmoe.parquet")
    replay(trace, systems.mobile(slots=8))
    found, frames = {}, {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        sweep(trace, systems.mobile(), slots=[8, 9], gamma=[0.1, 0.2], executor=pool, progress=False)  # they start
        for name, executor in {"here": None, "two processes": pool}.items():
            begin, cpu = time.perf_counter(), time.process_time()
            frames[name] = sweep(trace, systems.mobile(), executor=executor, progress=False, **GRID)
            found[name] = {"seconds": time.perf_counter() - begin, "cpu_seconds_here": time.process_time() - cpu}
    begin = time.perf_counter()
    for point in range(10):
        sweep(trace, systems.mobile(), gamma=[0.05 * point], slots=[8, 16], progress=False)
    found["a slider's step of two replays"] = {"seconds": (time.perf_counter() - begin) / 10}
    assert frames["here"].equals(frames["two processes"])
    decisions = 1000 * sum(p.mode != "big" for p in trace.passes) * trace.conditions["layers"]
    out = ROOT / "data" / "results" / "sweep_speed.json"
    about = f"measured, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    out.write_text(
        json.dumps({"conditions": about, "points": 1000, "layer_decisions_at_least": decisions} | found, indent=1)
        + "\n"
    )
    print(out.read_text())


if __name__ == "__main__":
    main()
