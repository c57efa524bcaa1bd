"""The architecture matrix: a small random model of every family with fused experts, offloaded and compared with plain
transformers. Each row says what was found, and why where something cannot be.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch

from .. import systems
from ..model.adapters import MoELayer, find_layers
from ..model.matrix import GREEDY, architectures, big_and_little, only_largest, quiet, smaller_top_k, wobble, written
from ..model.tiny import random_model
from ..vocabulary import MobileError
from .offload import offload

WORKS, ALONE, REFUSED, WRONG = "works", "works without a little model", "refused", "wrong"
PROMPT, NEW = 20, 8  # tokens: beyond the sliding window of the small models, which is 16
NEAR = 1e-5  # how far logits may be apart
BY_ROUTER, BY_WEIGHT = "router's top_k = K/2", "K/2 largest weights"


def matrix(names: Iterable[str] | None = None, *, progress: bool = False) -> list[dict]:
    """One row a family.

    Args:
        names: transformers model types; None for every family with fused experts that is installed.
        progress: show a bar.

    Returns:
        dicts with architecture, verdict ("works", "works without a little model", "refused", "wrong"), why (a sentence,
        empty where there is nothing to say), experts and active (E and K), weights ("renormalised" or "as they are"
        where fewer experts run), little (what the little model was found equal to), checks (names of those passed).
    """
    names = list(architectures() if names is None else names)
    if progress:
        from tqdm.auto import tqdm

        names = tqdm(names, desc="architectures", unit="")
    with quiet():
        return [check(name) for name in names]


def check(name: str) -> dict:
    """The row of one family; see `matrix`."""
    row = {"architecture": name, "verdict": WORKS, "why": "", "experts": None, "active": None}
    row |= {"weights": "", "little": "", "checks": []}
    try:
        with torch.no_grad():
            _check(_case(name), row)
    except MobileError as refusal:
        row |= {"verdict": ALONE if "exact" in row["checks"] else REFUSED, "why": str(refusal)}
    except _Wrong as problem:
        row |= {"verdict": WRONG, "why": str(problem)}
    except Exception as problem:
        said = " ".join(str(problem).split())[:200]
        row |= {"verdict": WRONG, "why": f"{type(problem).__name__}: {said}"}
    return row


class _Wrong(Exception):
    """A check that failed."""


class _Case:
    """One model, a prompt, and what plain transformers makes of it."""

    def __init__(self, name: str, seed: int):
        self.model = model = random_model(name, seed=seed)
        self.layers: list[MoELayer] = find_layers(model)
        self.half = max(1, self.layers[0].top_k // 2)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        self.ids = torch.randint(3, vocabulary, (1, PROMPT), generator=torch.Generator().manual_seed(seed))
        self.before = _parts(model)
        self.plain = written(model, self.ids, NEW)

    def write(self, config):
        """Offloads, writes, and returns the tokens, the logits, the generation and the report."""
        with offload(self.model, config) as engine:
            text = engine.generate(self.ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
            return text.token_ids, torch.cat(text.logits).float(), text, engine.report()


def _case(name: str) -> _Case:
    """The first that can prove something: a random model may write one token over and over, or blow rounding up."""
    for seed in range(1, 9):
        case = _Case(name, seed)
        if len(set(case.plain[0])) > 2 and wobble(case.model, case.ids, NEW) < NEAR / 2:
            return case
    raise _Wrong("plain transformers repeats itself, or differs from itself, on eight prompts, which proves nothing")


def _check(case: _Case, row: dict) -> None:
    first = case.layers[0]
    row |= {"experts": first.num_experts, "active": first.top_k}
    for check in (_exact, _report, _restored):
        check(case)
        row["checks"].append(check.__name__[1:])
    if first.top_k == 1:
        raise MobileError("its router picks one expert a token, and there is no half of one.")
    row["weights"] = "renormalised" if first.renormalises else "as they are"
    row["little"] = _little(case)
    row["checks"].append("little")
    for check in (_rollback, _restored):
        check(case)
    row["checks"].append("rollback")


def _exact(case: _Case) -> None:
    """Full K, few slots or all: the tokens and logits of plain transformers."""
    for slots in (1, 3, case.layers[0].num_experts):
        tokens, logits, *_ = case.write(systems.on_demand(slots=slots))
        _same(f"full K at {slots} slots", tokens, logits, *case.plain)


def _report(case: _Case) -> None:
    """One row a layer, and each request a hit or a miss: nothing is computed on the host here."""
    *_, report = case.write(systems.on_demand(slots=2))
    if list(report.layer) != [layer.name for layer in case.layers]:
        raise _Wrong("the report has other rows than the model has MoE layers")
    if not (report.requests == report.hits + report.misses).all() or not report.requests.all():
        raise _Wrong("hits and misses do not add up to requests")


def _restored(case: _Case) -> None:
    """The model is what it was, part by part, and writes what it wrote."""
    now = _parts(case.model)
    if list(now) != list(case.before) or any(now[name][0] is not part for name, (part, _) in case.before.items()):
        raise _Wrong("the model was given back with other parts")
    if any(value is not None and not torch.equal(now[name][1], value) for name, (_, value) in case.before.items()):
        raise _Wrong("the model was given back with other values")
    _same("the model given back", *written(case.model, case.ids, NEW), *case.plain)


def _little(case: _Case) -> str:
    """The little model equals the router's own top_k = K/2, or else the K/2 largest weights of its K."""
    tokens, logits, *_ = case.write(systems.little(slots=3))
    with smaller_top_k(case.layers, case.half):
        if _near(tokens, logits, *written(case.model, case.ids, NEW)):
            return BY_ROUTER
    with only_largest(case.layers, case.half):
        _same("the little model", tokens, logits, *written(case.model, case.ids, NEW))
    return BY_WEIGHT


def _rollback(case: _Case) -> None:
    """Evicting every token gives the full model; evicting some, what a model without a cache makes of the same text."""
    tokens, logits, *_ = case.write(systems.mobile(gamma=1.1, slots=2))
    _same("every token evicted", tokens, logits, *case.plain)
    unsure = sorted(step.confidence for step in case.write(systems.mobile(gamma=0, slots=3))[2].steps[1:])
    for low, high in sorted(pairwise(unsure), key=lambda pair: pair[0] - pair[1]):  # rounding must not decide
        gamma = (low + high) / 2
        tokens, logits, text, _ = case.write(systems.mobile(gamma=gamma, slots=3))
        if {step.wrote for step in text.steps[1:]} == {"little", "big"}:
            break
    else:
        raise _Wrong("no gamma was found that evicts some tokens and keeps others")
    own = _cache_gap(case)
    for cached in (True, False) if own < NEAR else (True,):
        read = (case.model, case.layers, case.ids, NEW, gamma, case.half)
        wanted, wrote, reference = big_and_little(*read, cached=cached)
        what = f"some tokens evicted, beside a {'copied cache' if cached else 'text without a cache'}"
        if [step.wrote for step in text.steps] != wrote:
            raise _Wrong(f"{what}: others were evicted")
        _same(what, tokens, logits, wanted, reference, NEAR if cached else NEAR + 3 * own)


def _cache_gap(case: _Case) -> float:
    """How far plain transformers' own logits are apart with and without a cache: linear attention and state spaces
    compute in chunks what they compute step by step with a cache. Nobody can be nearer to both."""
    tokens, logits = case.plain
    text = torch.cat([case.ids, torch.tensor([tokens[:-1]])], dim=1)
    return (case.model(input_ids=text, use_cache=False).logits[0, PROMPT - 1 :].float() - logits).abs().max().item()


def _parts(model) -> dict:
    """Every module, parameter and buffer by name, with a copy of its values."""
    parts: dict = {f"module {name}": (module, None) for name, module in model.named_modules()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        parts[name] = tensor, tensor.detach().clone()
    return parts


def _near(tokens, logits, wanted, reference, near: float = NEAR) -> bool:
    return tokens == wanted and (logits - reference).abs().max().item() < near


def _same(what: str, tokens, logits, wanted, reference, near: float = NEAR) -> None:
    if not _near(tokens, logits, wanted, reference, near):
        gap = (logits - reference).abs().max().item()
        raise _Wrong(f"{what}: tokens {'differ' if tokens != wanted else 'agree'}, logits are up to {gap:.1e} apart")


def cells(row: dict) -> dict[str, str]:
    """A row as short texts by column, without the reason."""
    passed = ", ".join(row["checks"])
    return {
        "architecture": row["architecture"],
        "experts": f"{row['active']} of {row['experts']}" if row["experts"] else "-",
        "passed": "all" if row["verdict"] == WORKS else passed or "-",
        "little model is": row["little"] or "-",
        "its weights": row["weights"] or "-",
    }


def totals(rows: list[dict]) -> str:
    """How many of each verdict, in a sentence that names the version."""
    import transformers

    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in (WORKS, ALONE, REFUSED, WRONG)}
    found = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{len(rows)} families, transformers {transformers.__version__}: {found}."


def markdown(rows: list[dict]) -> str:
    """The rows as a table for the README, with a line of totals before it."""
    heads = [*cells(rows[0]), "why not"]
    lines = [totals(rows), "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        shown = cells(row) | {"architecture": f"`{row['architecture']}`", "why": row["why"].replace("|", "\\|")}
        lines.append(f"| {' | '.join(shown.values())} |")
    return "\n".join(lines)


__all__ = ["cells", "check", "markdown", "matrix", "totals"]
