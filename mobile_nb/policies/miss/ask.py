"""What a miss policy is asked, and the loop that substitutions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..view import View


class Low(NamedTuple):
    """An answer: run this expert in its coarser form, and fetch that one if it is not on the device."""

    expert: int


class Host(NamedTuple):
    """An answer: compute this expert on the host, where its weights are; nothing travels."""

    expert: int


Answer = int | Low | Host | None


class Miss(Protocol):
    """Rewrites a token's expert list before it is fetched.

    `lossless` says that the text stays that of the full model. One that has nothing to say, because it fetches all that
    is absent, has `fetches_all = True` and is not asked; others are, loss-free or not.

    One that leaves experts to the host in passes over several tokens too, such as prompts, has
    `several(amounts, resident)`, see `OnHost`; where there is none, all that such a pass misses is fetched.
    """

    lossless: bool

    def serve(
        self, experts: Sequence[int], weights: Sequence[float], resident: Sequence[bool], view: View
    ) -> list[Answer]:
        """For each asked expert, best first: the expert to run in its place (itself: fetch it), in which form or where,
        or None for nobody.

        An expert that runs in another's place takes over its weight. One may stand in for several.

        Args:
            experts: ids asked for.   weights: their routing weights.   resident: whether each is on the device.
            view: everything else; `view.at` is the layer.
        """
        ...


def substituted(
    experts: Sequence[int],
    resident: Sequence[bool],
    view: View,
    choose: Callable[[int, list[int]], int | None],
    most: int | None = None,
) -> list[int]:
    """The asked experts with absent ones replaced, best first, by residents that this token does not use yet.

    Args:
        choose: (absent expert, residents that are free) -> who runs in its place; None: nobody, so it is fetched.
        most: substitutions at most; None for no limit.
    """
    served = list(experts)
    free = [e for e in view.resident(view.at) if e not in served]
    left = len(served) if most is None else most
    for at, (expert, there) in enumerate(zip(experts, resident, strict=True)):
        other = None if there or not left or not free else choose(expert, free)
        if other is not None:
            served[at] = other
            free.remove(other)
            left -= 1
    return served


__all__ = ["Answer", "Host", "Low", "Miss", "substituted"]
