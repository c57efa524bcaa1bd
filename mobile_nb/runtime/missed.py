"""Asks miss policies, in a live run and in a replay alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..policies.miss.ask import Answer, Host, Low
from ..vocabulary import MobileError
from .facts import ask


def answers(config) -> bool:
    """Whether its miss policy may do anything but fetch what is absent."""
    return not getattr(config.miss, "fetches_all", False)


def answered(miss, ids: Sequence[int], weights: Sequence[float], resident: Sequence[bool], view) -> list[Answer]:
    """What a miss policy, which is asked best first, says of each expert.

    Raises:
        MobileError: it is not an answer for each of them, or names an expert that does not exist.
    """
    order = sorted(range(len(ids)), key=lambda position: -weights[position])
    asked, *facts = ([each[position] for position in order] for each in (ids, weights, resident))
    answer, experts = ask(miss, "serve", asked, *facts, view), view.experts
    right = isinstance(answer, Sequence) and len(answer) == len(asked)
    plain = [each.expert if isinstance(each, Host | Low) else each for each in answer] if right else []
    if not right or not all(e is None or e in range(experts) for e in plain):
        raise MobileError(
            f"the policy {miss!r} must answer `serve` with {len(asked)} ids from 0 to {experts - 1}, Low(id), Host(id) "
            f"or None for nobody, got {answer!r}."
        )
    return [each for _, each in sorted(zip(order, answer, strict=True), key=lambda pair: pair[0])]


def left_to_host(miss, wanted: Mapping[int, int], resident: Sequence[bool]) -> list[int | Host]:
    """Experts that a prompt, or another pass over several tokens, asks for, with those that are the host's as such.

    Args:
        wanted: expert -> how many of the tokens ask for it.

    Raises:
        MobileError: the policy does not say yes or no for each of them.
    """
    if not hasattr(miss, "several"):
        return list(wanted)
    answer = ask(miss, "several", list(wanted.values()), list(resident))
    if not isinstance(answer, Sequence) or len(answer) != len(wanted) or not {*answer} <= {True, False}:
        raise MobileError(
            f"the policy {miss!r} must answer `several` with {len(wanted)} times True or False, got {answer!r}."
        )
    return [Host(expert) if away else expert for expert, away in zip(wanted, answer, strict=True)]


__all__ = ["answered", "answers", "left_to_host"]
