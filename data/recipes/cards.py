"""Writes the cards: results and logs in, Markdown out. Knows nothing about how anything was measured."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
ABOUT = {
    "tiny-olmoe": ("olmoe", "OLMoE", "64 experts, 8 run, their weights are not normalised"),
    "tiny-qwen2-moe": ("qwen2_moe", "Qwen1.5-MoE", "60 experts, 4 run beside a shared one, weights not normalised"),
    "tiny-deepseek-v2": ("deepseek_v2", "DeepSeek-V2", "64 experts, 6 run beside two shared ones, latent attention"),
    "tiny-qwen3-moe": ("qwen3_moe", "Qwen3-MoE", "128 experts, 8 run, their weights are normalised"),
}


def points(values: dict) -> str:
    """A difference to full K with its interval, in points."""
    return f"{100 * values['difference']:+.2f} ± {100 * values['half_width']:.2f}"


def percent(values: list[float]) -> str:
    return " · ".join(f"{100 * value:.0f}" for value in values)


def nats(values: list[float]) -> str:
    return " · ".join(f"{value:.2f}" for value in values)


def share(values: dict) -> list[str]:
    """n, accuracy and interval."""
    return [
        f"{values['n']:,}",
        f"{100 * values['accuracy']:.1f}",
        f"{100 * values['low']:.1f} to {100 * values['high']:.1f}",
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def fixed(task: dict, top_k: int) -> str:
    """One row for each number of experts."""
    steps = list(task["fixed"][0]["by_steps"])
    rows = [
        [
            str(r["experts"]), *share(r), "" if r["experts"] == top_k else points(r),
            *(f"{100 * r['by_steps'][s]:.0f}" if s in r["by_steps"] else "" for s in steps),
        ]
        for r in task["fixed"]
    ]  # fmt: skip
    head = ["experts", "n", "solved %", "95 % interval", "against K, points", *(f"{s} steps" for s in steps)]
    return table(head, rows)


def mobile(task: dict) -> str:
    """One row for each gamma."""
    rows = [
        [
            f"{r['gamma']}", *share(r), points(r), f"{100 * r['fallback_ratio']:.1f}", f"{100 * r['free']:.0f}",
            percent(r["precision"]), f"{100 * sum(r['precision']) / len(r['precision']):.0f}" if r["precision"] else "",
        ]
        for r in task["mobile"]
    ]  # fmt: skip
    head = ["γ", "n", "solved %", "95 % interval", "against K, points", "fallback %", "of it free words %"]
    return table([*head, "precision = recall, % by layer", "mean"], rows)


def routers(task: dict) -> str:
    """How the experts are used."""
    r = task["routing"]
    rows = [
        ["mass on the best expert, %", percent(r["best"])],
        ["mass on the K that run, %", percent(r["chosen"])],
        [f"entropy of the router, nats (even: {r['even']:.2f})", nats(r["entropy"])],
        [f"entropy of the experts' use, nats (even: {r['even']:.2f})", nats(r["usage"])],
        ["requests to the busiest expert, %", " · ".join(f"{100 * v:.1f}" for v in r["busiest"])],
        ["experts that the token before ran too, %", percent(r["reuse"])],
    ]
    return table(["router, by MoE layer", "measured"], rows)


def measured(results: dict) -> str:
    """All tables of one model."""
    parts = []
    for name, task in results["tasks"].items():
        below = ", ".join(f"{limit}: {100 * value:.1f} %" for limit, value in task["below"].items())
        parts += [
            f"### {name}", fixed(task, results["top_k"]), mobile(task),
            f"Share of the little model's {task['tokens']:,} tokens whose top probability is below … {below}.",
            routers(task),
        ]  # fmt: skip
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    parts.append(
        f"Measured in {results['seconds'] / 60:.0f} minutes: {results['split']} split, seed {results['seed']}, greedy, "
        f"{results['dtype']}, {results['threads']} thread(s), batches of {results['batch']}, {results['device']}; "
        f"{versions}."
    )
    return "\n\n".join(parts)


def trained(log: list[dict]) -> str:
    """What the training log says."""
    run, last = log[0]["stage"], log[-1]
    entropy = [line["router_entropy"] for line in log if "router_entropy" in line][-1]
    return (
        f"{run[0].upper()}{run[1:]}. It took {last['step']:,} steps and {last['seconds'] / 60:.0f} minutes of one CPU "
        f"thread; the routers ended at an entropy of {entropy:.2f} nats."
    )


def write(data: Path, names: list[str]) -> None:
    """The card of each model into its folder, and all of them into data/README.md."""
    words, sections, rows = (HERE / "card.md").read_text(encoding="utf-8"), [], []
    for name in names:
        results = json.loads((data / name / "results.json").read_text(encoding="utf-8"))
        log = [json.loads(line) for line in (data / name / "training_log.jsonl").read_text().splitlines()]
        kind, family, about = ABOUT[name]
        tables = measured(results)
        facts = {
            "name": name, "kind": kind, "family": family, "about": about, "layers": results["layers"],
            "moe_layers": results["moe_layers"], "parameters": f"{results['parameters'] / 1e6:.1f}",
            "megabytes": f"{results['bytes'] / 1e6:.1f}", "measured": tables, "trained": trained(log),
        }  # fmt: skip
        (data / name / "README.md").write_text(words.format(**facts), encoding="utf-8")
        sections.append(f"## {name}\n\n{family}: {about}.\n\n{tables}")
        for task, values in results["tasks"].items():
            big, little = (next(r for r in values["fixed"] if r["experts"] == results["top_k"] // d) for d in (1, 2))
            least, at = values["fixed"][-1], next(r for r in values["mobile"] if r["gamma"] == 0.7)
            rows.append([
                name, task, f"{100 * big['accuracy']:.2f}", f"{100 * little['accuracy']:.2f}", points(little),
                f"{100 * least['accuracy']:.1f} ({least['experts']})", f"{100 * at['accuracy']:.2f}", points(at),
                f"{100 * at['fallback_ratio']:.1f}", f"{100 * sum(at['precision']) / max(1, len(at['precision'])):.0f}",
            ])  # fmt: skip
    head = ["model", "task", "K %", "K/2 %", "K/2 against K", "fewest % (experts)", "MoBiLE, γ 0.7 %"]
    text = (HERE / "cards.md").read_text(encoding="utf-8")
    summary = table([*head, "MoBiLE against K", "fallback %", "router precision %"], rows)
    (data / "README.md").write_text(text.format(summary=summary, models="\n\n".join(sections)), encoding="utf-8")
