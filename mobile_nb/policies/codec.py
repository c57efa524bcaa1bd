"""Question 6: in what form do experts lie in host memory, travel over the link and lie in device slots?

A form is how the weights of one expert are written down; a codec is one form for all of them, or says which of several
each expert has. Experts are computed in full precision in any form: from slots that are decoded on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..routing import texts
from ..trace import Trace
from ..vocabulary import number, whole

SCALE_BYTES = 2  # of the scale that a group of weights shares


class Form(Protocol):
    """How the weights of an expert are written down.

    `bits` a weight (None: as they are), `group` weights that share a scale, `bytes_per_weight` scales included (None:
    what the model has), `lossless`.
    """

    bits: int | None
    lossless: bool
    bytes_per_weight: float | None


class Codec(Protocol):
    """Which forms there are, who has which, and how many device slots each form has.

    `forms` are told apart by their place; the first is the finest. `own` is [L, E], the one form that each expert is
    kept in, or None where all are kept in every form and asked for in the first, unless a miss policy answers `Low`.
    """

    forms: tuple[Form, ...]
    own: Sequence[Sequence[int]] | None
    lossless: bool

    def pools(self, slots: int) -> tuple[int, ...]:
        """Slots a layer of each form, where the configuration says `slots`."""
        ...


class _Alone:
    """A form that is the codec: all experts, in every slot."""

    own = None

    @property
    def forms(self) -> tuple:
        return (self,)

    def pools(self, slots: int) -> tuple[int, ...]:
        return (slots,)


@dataclass(frozen=True)
class Full(_Alone):
    """As they are in the checkpoint: exact."""

    lossless = True
    bits = None
    bytes_per_weight = None


@dataclass(frozen=True)
class _Grouped(_Alone):
    group: int = 64

    lossless = False

    def __post_init__(self):
        if whole(f"{type(self).__name__}.group", self.group, low=8) % 8:
            raise ValueError(f"{type(self).__name__}.group must be a multiple of 8 weights, got {self.group}.")

    @property
    def bytes_per_weight(self) -> float:
        return self.bits / 8 + SCALE_BYTES / self.group


@dataclass(frozen=True)
class Int8(_Grouped):
    """Whole numbers from -127 to 127 times a scale that `group` neighbouring weights share."""

    bits = 8


@dataclass(frozen=True)
class Int4(_Grouped):
    """Whole numbers from -7 to 7 times a scale that `group` neighbouring weights share."""

    bits = 4


@dataclass(frozen=True)
class Int2(_Grouped):
    """-1.5, -0.5, 0.5 or 1.5 times a scale that `group` neighbouring weights share. Without calibration a model loses
    much at two bits; published systems calibrate.
    """

    group: int = 32

    bits = 2


@dataclass(frozen=True)
class Mixed:
    """Every expert in two forms, each with device slots of its own (HOBBIT, arXiv 2411.01433).

    An expert is asked for in the first form, and in the second where a miss policy answers `Low`. The host holds both.

    Attributes:
        high, low: the two forms.
        low_slots: slots of each layer for the second. `MobileConfig.slots` are those of the first; `budget_gb` is for
            both together.
    """

    high: Form = field(default_factory=Full)
    low: Form = field(default_factory=Int4)
    low_slots: int = 4

    own = None
    lossless = False

    def __post_init__(self):
        for name in ("high", "low"):
            _form(f"Mixed.{name}", getattr(self, name))
        whole("Mixed.low_slots", self.low_slots)

    @property
    def forms(self) -> tuple[Form, ...]:
        return (self.high, self.low)

    def pools(self, slots: int) -> tuple[int, ...]:
        return (slots, self.low_slots)


@dataclass(frozen=True)
class PerExpert:
    """Each expert in one form of its own, such as more bits for those that matter more (MC, arXiv 2410.06270).

    Attributes:
        forms: the finest first.
        own: [L, E] which of them each expert has. All layers have equally many experts in each form; a layer's slots
            are divided among the forms in proportion, at least one for each.
    """

    forms: Sequence[Form]
    own: Sequence[Sequence[int]]

    lossless = False

    def __post_init__(self):
        for form in self.forms:
            _form("each of PerExpert.forms", form)
        own = tuple(tuple(whole("each of PerExpert.own", f, low=0) for f in layer) for layer in self.own)
        object.__setattr__(self, "forms", tuple(self.forms))
        object.__setattr__(self, "own", own)
        counts = {tuple(layer.count(f) for f in range(len(self.forms))) for layer in own}
        if len(counts) != 1 or sum(next(iter(counts))) != len(own[0]) or 0 in next(iter(counts)):
            raise ValueError(
                f"PerExpert.own must give every layer equally many experts of each of the {len(self.forms)} forms, "
                f"at least one, got {sorted(counts)}."
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Experts of a layer in each form."""
        return tuple(self.own[0].count(f) for f in range(len(self.forms)))

    def pools(self, slots: int) -> tuple[int, ...]:
        return tuple(min(count, max(1, round(slots * count / len(self.own[0])))) for count in self.counts)

    @staticmethod
    def from_trace(
        trace: Trace, forms: Sequence[Form] | None = None, shares: Sequence[float] | None = None
    ) -> PerExpert:
        """By how often an expert was asked for in past texts, times its mean weight where it was.

        Args:
            trace: of live runs.   forms, shares: see `by_importance`.
        """
        mass = np.zeros((trace.conditions["layers"], trace.conditions["experts"]))
        for ids, weights in texts(trace):  # [L, N, K]
            np.add.at(mass, (np.arange(len(mass))[:, None, None], ids), weights)
        return PerExpert.by_importance(mass.tolist(), forms, shares)

    @staticmethod
    def by_importance(
        importance: Sequence[Sequence[float]],
        forms: Sequence[Form] | None = None,
        shares: Sequence[float] | None = None,
    ) -> PerExpert:
        """The most important experts of each layer in the finest form, and so on.

        MC finds each layer's forms by integer programming over how often an expert is asked for, its weight and its
        error; with as many experts of each form in every layer, and errors that grow with importance alone, the best
        assignment is this ranking [inference].

        Args:
            importance: [L, E]; `from_trace` measures one.
            forms: the finest first; None for 8, 4 and 2 bits.   shares: of the experts, for each form; None for equal
                ones. The last form takes those that rounding leaves over.
        """
        forms = (Int8(), Int4(), Int2()) if forms is None else tuple(forms)
        shares = (1 / len(forms),) * len(forms) if shares is None else shares
        if len(shares) != len(forms) or abs(sum(number("each of shares", s, low=0) for s in shares) - 1) > 1e-6:
            raise ValueError(f"shares must be {len(forms)} numbers that sum to 1, one a form, got {shares!r}.")
        experts, own = len(importance[0]), []
        bounds = [round(experts * sum(shares[: f + 1])) for f in range(len(forms) - 1)]
        for layer in importance:
            ranked = sorted(range(experts), key=lambda e, layer=layer: (-layer[e], e))
            place = {expert: rank for rank, expert in enumerate(ranked)}
            own.append(tuple(sum(place[e] >= bound for bound in bounds) for e in range(experts)))
        return PerExpert(forms, own)


def _form(name: str, given) -> None:
    if isinstance(given, type) or not hasattr(given, "bytes_per_weight"):
        raise TypeError(f"{name} must be a form, such as Full() or Int4(), got {given!r}.")


__all__ = ["Codec", "Form", "Full", "Int2", "Int4", "Int8", "Mixed", "PerExpert"]
