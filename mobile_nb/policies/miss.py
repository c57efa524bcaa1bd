"""Question 4: what to do about an expert that is asked for and not on the device?

Asked only for single tokens, never for the prompt. Anything but waiting changes the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .view import View


class Miss(Protocol):
    """Rewrites a token's expert list before it is fetched."""

    lossless: bool

    def serve(
        self, experts: Sequence[int], weights: Sequence[float], resident: Sequence[bool], view: View
    ) -> list[int | None]:
        """For each asked expert, best first: the expert to run in its place (itself: fetch it), or None for nobody.

        An expert that runs in another's place takes over its weight. One may stand in for several.

        Args:
            experts: ids asked for.   weights: their routing weights.   resident: whether each is on the device.
            view: everything else; `view.at` is the layer.
        """
        ...


@dataclass(frozen=True)
class Wait:
    """Fetch it and wait: exact."""

    lossless = True

    def serve(self, experts, weights, resident, view: View | None = None) -> list[int | None]:
        return list(experts)


@dataclass(frozen=True)
class Drop:
    """Leave it out, but fetch the best one if none is there; the other weights stay as they are."""

    lossless = False

    def serve(self, experts, weights, resident, view: View | None = None) -> list[int | None]:
        kept = [expert if there else None for expert, there in zip(experts, resident, strict=True)]
        return kept if any(resident) else [experts[0], *kept[1:]]


__all__ = ["Drop", "Miss", "Wait"]
