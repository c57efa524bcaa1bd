"""What MoE-Beyond (arXiv 2508.17137) claims and what it moves, measured on held-out text with what `beyond.py` trained.

    python data/recipes/measure_beyond.py
    python data/recipes/measure_beyond.py --models tiny-olmoe --problems 5

Writes data/results/moe_beyond.json, and data/beyond/README.md from it: figures of named experts, the paper's simulator
(there is no time in it), and the runtime (tiny-olmoe, simulated on an RTX 4080 over PCIe 4, timed as OLMoE-1B-7B). Some
minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import beyond  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from mobile_nb import Trace, load, offload, replay, systems, tasks  # noqa: E402
from mobile_nb.analysis.beyond import figures, simulated  # noqa: E402
from mobile_nb.files import written_whole  # noqa: E402
from mobile_nb.model.adapters import find_layers  # noqa: E402
from mobile_nb.policies import Network, Oracle, RequestMatrix, Requests, Successors  # noqa: E402

CARD, TIMED_AS, SLOTS = "rtx4080-pcie4", "olmoe-1b-7b", (8, 16, 32)
SIMULATED = ["request matrix", "one histogram", "next layer's gate", "published", "honest", "oracle"]
HALF = "p > 0.5"  # instead of the K likeliest, as in: how the paper trains


CARD_TEXT = """# MoE-Beyond's predictors

Small Transformers that name the experts of the embedded models' layers (MoE-Beyond, arXiv 2508.17137), trained by
`python data/recipes/beyond.py MODEL`, which says what is as in the paper and what is scaled; float16. *published* is
told of the router's own input of the layer that it predicts, and reads in both directions: it can be scored, not run.
*honest* is told of the layer before, and looks back. Only that one ships: `Network.shipped("tiny-olmoe")` loads it; the
command trains both.

*Problems* are of the training split of both tasks, one forward pass over prompt and solution; *BCE* is the loss on 40
validation problems, by which the epoch was chosen; accuracy, macro-F1 over {inactive, active} and F1 of the active
experts are of held-out test problems (data/results/moe_beyond.json), K experts named. Training was kept to half a
minute to one and a half of one core each, and the loss was still falling: a longer one would find more. Measured, one
seed each.

"""


@dataclass
class Sofar:
    """What `RequestMatrix` and `Successors` may know: a view of a text that is read again."""

    activations: np.ndarray
    ids: np.ndarray  # [L, K] of the token at hand
    layers: int

    def routed(self, layer: int) -> tuple[np.ndarray, None]:
        return self.ids[layer], None


def trace_of(texts: list, experts: int) -> Trace:
    """The routing of texts as a trace, each text a request."""
    ids = np.concatenate([text.ids for text in texts])
    trace = Trace.from_routing(ids, num_experts=experts, scores=np.concatenate([text.weights for text in texts]))
    for done, request in zip(trace.passes, np.repeat(range(len(texts)), [len(t.ids) for t in texts]), strict=True):
        done.request = int(request)
    return trace


def said(network: Network, text) -> np.ndarray:
    """What a network says of each row of a text [N, E], NaN for the first where it is honest: nothing came before.

    The published one reads the text in pieces as long as in training; the honest one sees half as much or more before
    each row.
    """
    version = "honest" if network.honest else "published"
    states, layers, _ = beyond.examples(text, version)
    step = beyond.ROWS // 2 if network.honest else beyond.ROWS
    parts = []
    for at in range(0, len(states), step):
        shown = slice(max(0, at - (beyond.ROWS - step)), at + step)
        rows = slice(at - shown.start, None)
        parts.append(network.logits(states[shown], layers[shown], rows))
    found = np.concatenate(parts)
    return np.concatenate([np.full_like(found[:1], np.nan), found]) if network.honest else found


def best(scores: np.ndarray, count: int) -> tuple[int, ...]:
    return () if np.isnan(scores).any() else tuple(np.argsort(-scores, kind="stable")[:count].tolist())


def predictions(name: str, model, texts: list, past: Trace) -> pd.DataFrame:
    """The routing of texts, and what each predictor names for each row; all but `HALF` name K, or nobody."""
    found = find_layers(model)
    layers, experts, k = len(found), found[0].num_experts, found[0].top_k
    networks = {version: Network.shipped(name, version) for version in beyond.VERSIONS}
    requests, following = Requests.from_trace(past), Successors.from_trace(past, 1)
    alike, histogram = RequestMatrix(requests), requests.ratios.mean(axis=0)
    rows = []
    for number, text in enumerate(texts):
        logits = {version: said(network, text) for version, network in networks.items()}
        with torch.inference_mode():
            gates = [None] + [
                found[at].route(torch.from_numpy(text.states[:, at - 1])).tolist() for at in range(1, layers)
            ]
        counts = np.zeros((layers, experts))
        for token, ids in enumerate(text.ids):
            for layer in range(layers):
                view, row = Sofar(counts.copy(), ids, layers), token * layers + layer
                rows.append(
                    {
                        "text": number,
                        "token": token,
                        "layer": layer,
                        "asked": tuple(ids[layer].tolist()),
                        "nobody": (),
                        "most popular": best(following.popular[layer], k),
                        "token before": tuple(text.ids[token - 1, layer].tolist()) if token else (),
                        "successors": best(following.expected(layer - 1, view)[layer], k),
                        "next layer's gate": tuple(gates[layer][token]) if layer else (),
                        "request matrix": best(alike.expected(layer - 1, view)[layer], k),
                        "one histogram": best(histogram[layer], k),
                        "oracle": tuple(ids[layer].tolist()),
                    }
                )
                for version in beyond.VERSIONS:
                    scores = logits[version][row]
                    rows[-1] |= {version: best(scores, k), f"{version}, {HALF}": tuple(np.flatnonzero(scores > 0))}
            np.add.at(counts, (np.arange(layers)[:, None], ids), 1)
    return pd.DataFrame(rows)


def live(problems: int, about: dict) -> pd.DataFrame:
    """Systems in the runtime, on the same problems, everything simulated; and how long a prediction takes here."""
    model, tokenizer = load("tiny-olmoe", device="cpu")
    past = trace_of(past_of(model, tokenizer, about), find_layers(model)[0].num_experts)
    network, rows = Network.shipped("tiny-olmoe"), []
    chosen = [problem for name in tasks.NAMES for problem in tasks.load(name, n=-(-problems // 2), seed=1)][:problems]
    for slots in SLOTS:
        known = {
            "on_demand": systems.on_demand(slots=slots),
            "next_gate": systems.next_gate(slots=slots),
            "moe_infinity": systems.moe_infinity(Requests.from_trace(past), slots=slots),
            "moe_beyond": systems.moe_beyond(network, slots=slots),
        }
        for name, config in known.items():
            with offload(model, config, tokenizer=tokenizer, hardware=CARD, geometry=TIMED_AS) as engine:
                begin = time.process_time()
                for problem in chosen:
                    engine.generate(problem.prompt, max_new_tokens=problem.longest)
                cpu, frame, report = time.process_time() - begin, engine.trace.to_frame("passes"), engine.report()
                trace = engine.trace
            frame = frame[frame.step > 0]
            early = int(report.prefetches.sum())
            rows.append(
                {
                    "system": name,
                    "slots": slots,
                    "tokens": len(frame),
                    "ms_per_token": 1e3 * frame.seconds.mean(),
                    "mb_per_token": frame.bytes_moved.mean() / 1e6,
                    "hit_rate": frame.hits.sum() / frame.requests.sum(),
                    "late": frame.late.sum() / frame.requests.sum(),
                    "prefetches_per_token": early / len(frame),
                    "precision": report.used.sum() / early if early else None,
                    "waste": report.wasted.sum() / early if early else None,
                    "host_cpu_ms_per_token": 1e3 * cpu / len(frame),
                }
            )
            if name == "on_demand":
                bound = replay(trace, systems.on_demand(slots=slots, prefetch=Oracle(1)))
        rows.append(
            {
                "system": "oracle, one layer ahead (replayed)",
                "slots": slots,
                "tokens": bound.tokens,
                "ms_per_token": 1e3 * bound.seconds_per_token,
                "mb_per_token": bound.bytes_per_token / 1e6,
                "hit_rate": bound.hit_rate,
                "precision": bound.prefetches_used,
            }
        )
    return pd.DataFrame(rows)


def prediction_ms(network: Network) -> float:
    """Milliseconds of CPU that one live prediction takes here, best of several."""
    layers, _, hidden = network.shape
    states = np.random.default_rng(0).normal(size=(17 * layers - 1, hidden)).astype(np.float32)
    which, found = np.arange(len(states)) % layers, []
    for _ in range(20):
        begin = time.process_time()
        network.logits(states, which, slice(-1, None))
        found.append(time.process_time() - begin)
    return 1e3 * min(found)


def card(training: dict, result: dict) -> str:
    """What ships, in Markdown."""
    heads = "model problems tokens seed version parameters KB epochs CPU-s BCE accuracy macro-F1 F1".split()
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    found = {(f["model"], f["predictor"]): f for f in result.get("figures", []) if f["layer"] == "all"}
    for name in sorted({model for model, _ in found} & training.keys()):
        about = training[name]
        for version in beyond.VERSIONS:
            how, said = about[version], found[name, version]
            cells = [name, about["problems"], about["tokens"], about["seed"], version, how["parameters"]]
            cells += [round(how["bytes"] / 1e3), len(how["log"]), round(how["cpu_seconds"]), how["held_out_loss"]]
            cells += [f"{said[figure]:.3f}" for figure in ("accuracy", "macro_f1", "f1")]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return CARD_TEXT + "\n".join(lines) + "\n"


def plain(frame: pd.DataFrame) -> list[dict]:
    rounded = frame.round(4).astype(object)
    return rounded.where(frame.notna(), None).to_dict("records")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="embedded names (all with shipped predictors)")
    parser.add_argument("--problems", type=int, default=10, help="test problems of each task (%(default)s)")
    parser.add_argument("--live", type=int, default=6, help="test problems in the runtime, 0 for none (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of problems and of the simulator's contents")
    parser.add_argument("--json", type=Path, default=ROOT / "data" / "results" / "moe_beyond.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = ROOT / "data" / "beyond"
    training = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    done = [
        measured(name, training[name], options) for name in (training if options.models is None else options.models)
    ]
    runtime = live(options.live, training["tiny-olmoe"]) if options.live else None
    result = merged(options.json, done, runtime, options.seed)
    with written_whole(options.json) as temporary:
        temporary.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    (folder / "README.md").write_text(card(training, result))
    print(f"numbers written to {options.json}")


def measured(name: str, about: dict, options) -> dict:
    """Figures and simulator of one model."""
    model, tokenizer = load(name, device="cpu")
    texts = past_of(model, tokenizer, about)
    held_out = beyond.collect(model, tokenizer, beyond.problems("test", options.problems, options.seed))
    experts = find_layers(model)[0].num_experts
    frame = predictions(name, model, held_out, trace_of(texts, experts))
    print(name, len(frame), "rows", flush=True)
    columns = ["text", "token", "layer", "asked", *SIMULATED]
    conditions = {
        "test_problems": len(held_out),
        "test_tokens": sum(len(text.ids) for text in held_out),
        "training_problems": about["problems"],
        "training_seed": about["seed"],
        "prediction_cpu_ms": round(prediction_ms(Network.shipped(name)), 3),
    }
    return {
        "model": name,
        "conditions": conditions,
        "figures": plain(figures(frame, experts).assign(model=name)),
        "simulator": plain(simulated(frame[columns], experts, seed=options.seed).assign(model=name)),
    }


def past_of(model, tokenizer, about: dict) -> list:
    """The texts that a predictor was trained on, from which its rivals learn too."""
    return beyond.collect(model, tokenizer, beyond.problems("train", about["problems"] // 2, about["seed"]))


def merged(path: Path, done: list[dict], runtime: pd.DataFrame | None, seed: int) -> dict:
    """What was measured now in the place of what was measured before; other models' rows stay."""
    result = json.loads(path.read_text()) if path.is_file() else {"conditions": {"models": {}}}
    for one in done:
        result["conditions"]["models"][one["model"]] = one["conditions"]
        for part in ("figures", "simulator"):
            others = [row for row in result.get(part, []) if row["model"] != one["model"]]
            result[part] = others + one[part]
    if runtime is not None:
        result["runtime"] = plain(runtime)
    result["conditions"] |= {
        "text": "prompts and worked solutions of held-out (test) problems of both tasks, one forward pass; the runtime "
        "writes its own",
        "seed": seed,
        "simulator": "one LRU over all layers' experts, texts begin with random contents, 10 tokens warm up, no time",
        "runtime": f"simulated on {CARD}, tiny-olmoe timed as {TIMED_AS}; the predictor's own computing is not charged",
        "host_cpu": f"measured, {platform.machine()}, one thread, other work on the machine",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
    }
    return result


if __name__ == "__main__":
    main()
