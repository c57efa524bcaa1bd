"""What a codec means for one model: entries, pools of slots, and what each form weighs. Knows nothing about tensors.

An entry is expert + E * form: the scheduler caches entries, and with one form an entry is the expert.

Legend: L MoE layers · E experts · F forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..memory.wishes import pairs_of
from ..policies.codec import Codec
from ..policies.miss.ask import Low
from ..trace import Copy
from ..vocabulary import MobileError, Wanted


class Forms:
    """The forms of a codec for a model of `layers` MoE layers of `experts`.

    Attributes:
        several: whether there is more than one.   counts: [F] experts of a layer that come in each.
        own: [L, E] the only form of each expert, or None.

    Raises:
        MobileError: the codec is about another model.
    """

    def __init__(self, codec: Codec, layers: int, experts: int):
        self.codec, self.layers, self.experts = codec, layers, experts
        self.several = len(codec.forms) > 1
        self.own = None if codec.own is None else np.asarray(codec.own)
        self.counts = [experts] * len(codec.forms) if self.own is None else list(codec.counts)
        if self.own is not None and self.own.shape != (layers, experts):
            raise MobileError(
                f"the codec is for {self.own.shape[0]} layers of {self.own.shape[1]} experts, and the model has "
                f"{layers} of {experts}."
            )

    def sizes(self, slots: int | Sequence[int]) -> np.ndarray:
        """[L, F] slots of each pool where the configuration says `slots`; at most one for each of its experts.

        Raises:
            MobileError: there are not as many numbers as layers.
        """
        each = [slots] * self.layers if isinstance(slots, int) else slots
        if len(each) != self.layers:
            raise MobileError(f"slots has numbers for {len(each)} layers, and the model has {self.layers}.")
        return np.array([[min(pair) for pair in zip(self.codec.pools(n), self.counts, strict=True)] for n in each])

    def entry(self, at: int, expert: int) -> int:
        """What is fetched for an expert that is asked for as it is."""
        return expert if self.own is None else expert + self.experts * int(self.own[at, expert])

    def there(self, at: int, experts: Iterable[int], cache, row: int = 0) -> list[bool]:
        """Which experts are on the device, or on their way, as they are asked for."""
        return (cache.slot_of[row, at, [self.entry(at, expert) for expert in experts]] >= 0).tolist()

    def entries(self, at: int, answers: list, cache, row: int = 0) -> list:
        """What is fetched for each answer of a miss policy: an expert, `Low` of one, or None for nobody. An expert
        whose finer form is on the device is served from there."""
        if not self.several and all(type(answer) is int for answer in answers):
            return answers
        return [None if answer is None else self._entry(at, answer, cache, row) for answer in answers]

    def wanted(self, answer, cache, row: int = 0) -> list[Wanted]:
        """A prefetcher's answer, experts and `Low` of some, as entries."""
        plain = [Wanted(w.layer, tuple(e.expert if isinstance(e, Low) else e for e in w.experts)) for w in answer]
        pairs = pairs_of(plain, self.layers, self.experts)
        given = [e for w in answer for e in w.experts]
        return [Wanted(at, (self._entry(at, e, cache, row),)) for (at, _), e in zip(pairs, given, strict=True)]

    def named(self, waves: list[Copy]) -> list[Copy]:
        """Computations of entries, as of experts in their forms."""
        for wave in waves:
            if wave.expert >= 0:
                wave.form, wave.expert = divmod(wave.expert, self.experts)
        return waves

    def _entry(self, at: int, answer, cache, row: int) -> int:
        if not isinstance(answer, Low):
            return self.entry(at, int(answer))
        if not self.several or self.own is not None:
            raise MobileError(
                f"the miss policy answers {answer!r}, and the codec {self.codec!r} keeps no coarser form "
                "beside the one that runs; use codec=Mixed(Full(), Int4(), low_slots=...)."
            )
        there = cache.slot_of[row, at, answer.expert] >= 0
        return int(answer.expert) + (0 if there else self.experts)


__all__ = ["Forms"]
