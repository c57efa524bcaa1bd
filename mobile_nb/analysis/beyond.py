"""How MoE-Beyond (arXiv 2508.17137) is judged: figures of named experts, and its simulator. Frames in, frames out.

Both take a frame of routing: a row for each layer of each token, in the order of computation, with the columns text,
token, layer, asked (ids of the experts that ran), and a column of ids for each predictor. Knows no model, no torch.

Legend: E experts of a layer · L MoE layers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from random import Random

from ..vocabulary import number, whole

PLAIN = ("text", "token", "layer", "asked")  # every other column is a predictor's
SHARES = tuple(n / 10 for n in range(1, 11))  # of all experts of all layers


def figures(routing, experts: int):
    """What the paper reports of a predictor, and what it does not.

    Accuracy and `macro_f1`, the mean of the F1 of "active" and of "inactive", are its headline; most experts are
    inactive, so whoever names nobody is right about most. `f1`, `precision` and `recall` are of the active ones alone.

    Args:
        routing: see the module.   experts: E.

    Returns:
        A frame: predictor, layer (a number, or "all"), named (experts a row), accuracy, macro_f1, f1, precision,
        recall.
    """
    import pandas as pd

    rows = []
    for name in _predictors(routing):
        counts = pd.DataFrame(
            [
                (layer, len(asked), len(said), len(set(asked) & set(said)))
                for layer, asked, said in zip(routing.layer, routing.asked, routing[name], strict=True)
            ],
            columns=["layer", "asked", "said", "both"],
        )
        for layer, part in [("all", counts), *counts.groupby("layer")]:
            right, asked, said, total = part.both.sum(), part.asked.sum(), part.said.sum(), len(part) * experts
            neither = total - asked - said + right
            active, inactive = _share(2 * right, asked + said), _share(2 * neither, 2 * total - asked - said)
            rows.append(
                {
                    "predictor": name,
                    "layer": layer if layer == "all" else int(layer),
                    "named": said / len(part),
                    "accuracy": (right + neither) / total,
                    "macro_f1": (active + inactive) / 2,
                    "f1": active,
                    "precision": _share(right, said),
                    "recall": _share(right, asked),
                }
            )
    return pd.DataFrame(rows)


def simulated(routing, experts: int, shares: Sequence[float] = SHARES, *, warm_up: int = 10, seed: int = 0):
    """The paper's simulator: one LRU over all layers' experts, which takes predictions in before each look-up, for
    nothing. A text begins with random contents; its first `warm_up` tokens fill the cache and are not counted.

    Args:
        routing: see the module.   experts: E of each layer.
        shares: capacities, as shares of all experts of all layers.
        seed: of the contents; the same for all predictors.

    Returns:
        A frame: predictor ("LRU" predicts nothing), capacity, slots, hit_rate, loads (experts fetched a token and
        layer, on demand and for predictions), early (of them, for predictions), rows (that were counted).
    """
    import pandas as pd

    whole("warm_up", warm_up, low=0)
    layers, found = sorted(set(routing.layer)), []
    everybody = [(layer, expert) for layer in layers for expert in range(experts)]
    asked = list(zip(routing.text, routing.token, routing.layer, routing.asked, strict=True))
    for share in shares:
        slots = max(1, round(number("a capacity", share, low=0, high=1) * len(everybody)))
        for name in ["LRU", *_predictors(routing)]:
            said = [()] * len(asked) if name == "LRU" else list(routing[name])
            found.append({"predictor": name, "capacity": share, "slots": slots})
            found[-1] |= _played(asked, said, everybody, slots, warm_up, seed)
    return pd.DataFrame(found)


def table(figures, simulated, capacities: Sequence[float] = (0.1, 0.3)):
    """A row for each predictor: what the paper's headline says of it, and what lies behind it.

    Args:
        figures, simulated: what the functions of that name return, of one model.
        capacities: those to show.

    Returns:
        A frame indexed by predictor: accuracy and macro_f1 (the headline), f1 (of the active experts), and of each
        capacity the hit rate and the loads a token and layer, in columns such as "hit_rate at 10 %"; NaN where a
        predictor was not simulated.
    """
    import pandas as pd

    found = figures[figures.layer == "all"].set_index("predictor")[["accuracy", "macro_f1", "f1"]]
    for share in capacities:
        part = simulated[(simulated.capacity - share).abs() < 1e-9].set_index("predictor")[["hit_rate", "loads"]]
        part.columns = [f"{name} at {share:.0%}".replace("%", " %") for name in part.columns]
        found = pd.concat([found, part], axis=1)
    return found.rename_axis("predictor")


def _played(asked: Iterable, said: Iterable, everybody: list, slots: int, warm_up: int, seed: int) -> dict:
    hits = requests = loads = early = rows = 0
    cache, of = OrderedDict(), None

    def there(key) -> bool:
        if key in cache:
            cache.move_to_end(key)
            return True
        cache.popitem(last=False)
        cache[key] = None
        return False

    for (text, token, layer, ran), guess in zip(asked, said, strict=True):
        if text != of:
            first, of = token, text
            cache = OrderedDict.fromkeys(Random(f"{seed}/{text}").sample(everybody, slots))
        if token - first < warm_up:
            for expert in ran:
                there((layer, expert))
            continue
        early += sum([not there((layer, expert)) for expert in guess])
        hit = sum([there((layer, expert)) for expert in ran])
        hits, requests, rows = hits + hit, requests + len(ran), rows + 1
        loads += len(ran) - hit
    per = max(1, rows)
    return {"hit_rate": _share(hits, requests), "loads": (loads + early) / per, "early": early / per, "rows": rows}


def _predictors(routing) -> list[str]:
    return [name for name in routing.columns if name not in PLAIN]


def _share(part, of) -> float:
    return float(part / of) if of else float("nan")


__all__ = ["SHARES", "figures", "simulated", "table"]
