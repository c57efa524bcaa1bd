"""What was measured of the embedded models, as frames: accuracy by number of experts and by gamma. Knows no torch."""

from __future__ import annotations

import json

from ..files import data_path
from ..vocabulary import MobileError


def cards(names=None):
    """The results behind data/README.md, a row for each model, task and way to write.

    Args:
        names: embedded models; None for all that were measured.

    Returns:
        A frame: model, task, system ("fixed": so many experts on every token; "MoBiLE"), experts (of K, those that the
        little model runs), top_k, gamma (NaN for fixed), n, accuracy with its 95 % interval low and high,
        difference to K on the same problems with its half_width (all in [0, 1]), fallback_ratio, precision (mean over
        layers of the evicted token's router).

    Raises:
        MobileError: a model whose results are not there.
    """
    import pandas as pd

    from ..model.find import embedded

    rows = []
    for name in embedded() if names is None else names:
        path = data_path(name, "results.json")
        if not path.is_file():
            raise MobileError(f"nothing was measured of {name!r} yet: there is no {path.name} beside it.")
        found = json.loads(path.read_text(encoding="utf-8"))
        for task, measured in found["tasks"].items():
            about = {"model": name, "task": task, "top_k": found["top_k"]}
            rows += [about | {"system": "fixed", "experts": row["experts"]} | _of(row) for row in measured["fixed"]]
            half = found["top_k"] // 2
            rows += [about | {"system": "MoBiLE", "experts": half} | _of(row) for row in measured["mobile"]]
    return pd.DataFrame(rows)


def _of(row: dict) -> dict:
    names = ("gamma", "n", "accuracy", "low", "high", "difference", "half_width", "fallback_ratio")
    layers = row.get("precision") or [float("nan")]
    return {name: row.get(name, float("nan")) for name in names} | {"precision": sum(layers) / len(layers)}


__all__ = ["cards"]
