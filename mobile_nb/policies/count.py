"""Question 1: how many of the router's K experts run, and what are their weights divided by?

Two separate answers, because they matter separately: going from 8 to 4 experts on a Qwen3.6 model costs 4.65 MMLU
points when the kept weights are renormalised among themselves, 0.35 with a wider denominator (arXiv 2609.04575).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..vocabulary import PROMPT, MobileError, number, whole


class Count(Protocol):
    """Says how many experts run in a pass.

    `two_passes` is True when a little pass and a big pass differ, so that there is something to fall back to;
    `lossless` when all K experts run wherever a token stays. `full_big` (False where it is not there) is True when
    prompts and big passes run all K as they are, whatever little ones do. With `by_token = True` it is asked for each
    single token, and told that token's weights.
    """

    two_passes: bool
    lossless: bool

    def run(self, mode: str, layer: int, k: int, weights: Sequence[float] | None = None) -> tuple[int, int | None]:
        """Experts that run, 1 to k, and over how many of the largest weights the kept ones are normalised.

        `weights` are the token's K weights, largest first, where the policy says `by_token`; None for several tokens.

        The kept weights are multiplied by sum(the K weights) / sum(the `over` largest). None leaves the choice to the
        model: what it would do itself with a smaller top_k.
        """
        ...


@dataclass(frozen=True)
class TopK:
    """All K experts, on every token: the model as it was trained."""

    two_passes = False
    lossless = full_big = True

    def run(self, mode: str, layer: int, k: int) -> tuple[int, int | None]:
        return k, None


@dataclass(frozen=True)
class Fraction:
    """The little model: the best `fraction` of K on a little pass, all K on a big one (MoBiLE, Sec. III).

    Attributes:
        fraction: share of K that the little pass runs, rounded to the nearest whole number of at least 1.
        prompt: share of K on the prompt pass. The paper does not describe it; 1.0, the full model, is the safe reading.
        over: share of K whose weights are the denominator; None for the model's own rule, 1.0 for "leave them as
            the router gave them", the same as `fraction` for "renormalise among the kept ones".
    """

    fraction: float = 0.5
    prompt: float = 1.0
    over: float | None = None

    two_passes = True
    lossless = False

    def __post_init__(self):
        for field in ("fraction", "prompt", "over"):
            value = getattr(self, field)
            if not (field == "over" and value is None):
                number(f"Fraction.{field}", value, low=1e-9, high=1, hint="a share of the router's K experts")

    @property
    def full_big(self) -> bool:
        return self.prompt == 1 and self.over in (None, 1)

    def run(self, mode: str, layer: int, k: int) -> tuple[int, int | None]:
        share = {"little": self.fraction, PROMPT: self.prompt}.get(mode, 1.0)
        return _part(share, k), None if self.over is None else _part(self.over, k)


@dataclass(frozen=True)
class PerLayer:
    """LExI (arXiv 2509.02753): a fixed number of experts in each layer, in prompts too.

    Attributes:
        runs: [L] experts that run in each layer; layers whose router has fewer run all.
    """

    runs: Sequence[int]

    two_passes = False
    lossless = False

    def __post_init__(self):
        object.__setattr__(self, "runs", tuple(whole("each of PerLayer.runs", run) for run in self.runs))

    @staticmethod
    def least_loss(loss: Sequence[Sequence[float]], budget: int) -> PerLayer:
        """The numbers that sum to `budget` and lose least: exactly, by dynamic programming.

        The paper searches by evolution; since its objective is a sum over layers, this finds its optimum.

        Args:
            loss: [L, K] what is lost where a layer runs 1, 2, … K experts, such as the deviation of its output that
                `model.outputs.deviations` measures (the paper's D).
            budget: experts that run in all layers together, from L to L times K.
        """
        loss = np.asarray(loss, dtype=float)
        if loss.ndim != 2 or not np.isfinite(loss).all():
            raise ValueError(f"loss must be finite numbers [layers, experts that run], got shape {loss.shape}.")
        layers, k = loss.shape
        if not layers <= whole("budget", budget) <= layers * k:
            raise ValueError(f"budget must be from {layers} to {layers * k}, one to {k} a layer, got {budget}.")
        least, came = np.full(budget + 1, np.inf), np.zeros((layers, budget + 1), dtype=int)
        least[0] = 0.0
        for layer in range(layers):
            before, least = least, np.full(budget + 1, np.inf)
            for run in range(1, min(k, budget) + 1):
                with_run = np.concatenate([np.full(run, np.inf), before[:-run] + loss[layer, run - 1]])
                came[layer, with_run < least] = run
                least = np.minimum(least, with_run)
        runs = []
        for layer in reversed(range(layers)):
            runs.append(int(came[layer, budget]))
            budget -= runs[-1]
        return PerLayer(runs[::-1])

    def run(self, mode: str, layer: int, k: int) -> tuple[int, int | None]:
        if layer >= len(self.runs):
            raise MobileError(f"PerLayer has numbers for {len(self.runs)} layers, and the model has more.")
        return min(self.runs[layer], k), None


@dataclass(frozen=True)
class Sensitivity:
    """AdapMoE (arXiv 2408.10284): fewer experts where a layer is insensitive and the best weight is large.

    Published for two experts: with alpha the renormalised weight of the better one, the other is left out where
    (1 - alpha)^2 * sensitivity is at most the threshold. For more we take the fewest experts whose weights, alpha
    together, meet the same condition [inference]. Prompts run all of them [inference].

    Attributes:
        layers: [L] each layer's sensitivity (in the paper the Fisher information of its output), such as
            `model.sensitivity.sensitivities` measures.
        threshold: T; the larger, the fewer experts.
    """

    layers: Sequence[float]
    threshold: float

    two_passes = False
    lossless = False
    by_token = True

    def __post_init__(self):
        checked = (number("each of Sensitivity.layers", value, low=0) for value in self.layers)
        object.__setattr__(self, "layers", tuple(checked))
        number("Sensitivity.threshold", self.threshold, low=0)

    def run(self, mode: str, layer: int, k: int, weights: Sequence[float] | None = None) -> tuple[int, int | None]:
        if layer >= len(self.layers):
            raise MobileError(f"Sensitivity knows {len(self.layers)} layers, and the model has more.")
        if weights is None:
            return k, None
        total, alpha = sum(weights), 0.0
        for run, weight in enumerate(weights, 1):
            alpha += weight / total
            if (1 - min(alpha, 1)) ** 2 * self.layers[layer] <= self.threshold:
                return run, None
        return k, None


@dataclass(frozen=True)
class WeightRatio:
    """MC's online pruning (arXiv 2410.06270): an expert of small weight beside the best one is left out.

    Published for two experts, the second of which is left out below a share of the first's weight that is measured on
    a calibration text, and never for tokens that attention marks as important. We take all experts of at least this
    share of the best weight, and know no important tokens [inference]. Prompts run all of them [inference].

    Attributes:
        least: share of the best weight that an expert needs.
    """

    least: float = 0.3

    two_passes = False
    lossless = False
    by_token = True

    def __post_init__(self):
        number("WeightRatio.least", self.least, low=0, high=1, hint="a share of the best expert's weight")

    def run(self, mode: str, layer: int, k: int, weights: Sequence[float] | None = None) -> tuple[int, int | None]:
        if weights is None:
            return k, None
        return max(1, sum(weight >= self.least * weights[0] for weight in weights)), None


def _part(share: float, k: int) -> int:
    return max(1, int(share * k + 0.5))


__all__ = ["Count", "Fraction", "PerLayer", "Sensitivity", "TopK", "WeightRatio"]
