"""A recorded run made ready for replays: which of its passes a configuration would have made, and what they ask for.

A run whose every token fell back holds, at each position, the little and the big outcome. From it any gamma can be
replayed, and the big model alone, without the model: the text and its KV cache are then those of the big model, which
a live run would have mixed (teacher forcing). For the big model alone that is exact.

Legend: P passes · L MoE layers · E experts · K experts routed to · T tokens of a pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..trace import Trace
from ..vocabulary import BIG, LITTLE, PROMPT, MobileError
from .config import MobileConfig
from .facts import decided

LOSS_FREE = re.compile(r"Wait\(\)|OnHost\(.*before=Wait\(\)(, crossover=\w+)?\)")  # misses that leave the text alone


@dataclass(frozen=True)
class Selection:
    """The passes that a configuration makes: `index` into the recording's [P], and whether each wrote a token [P].

    `exact` is False where the text would have been another in a live run.
    """

    index: np.ndarray
    wrote: np.ndarray
    exact: bool


@dataclass
class Recorded:
    """What a keep policy may know of a recorded little token."""

    max_probability: float
    past: Sequence[float]

    def __getattr__(self, name: str):
        raise MobileError(f"a trace holds the largest probability of each token, not its {name}; run this keep live.")


class Tape:
    """A trace as arrays, and the scripts that configurations make of it.

    Args:
        trace: a recording; `conditions` must hold layers, experts and questions.
    """

    def __init__(self, trace: Trace):
        if not isinstance(trace, Trace):
            raise TypeError(f"a replay takes a Trace, such as engine.trace or Trace.load(path), got {trace!r}.")
        if not trace.passes or not {"layers", "experts"} <= trace.conditions.keys():
            raise MobileError("this trace holds no passes of a model: there is nothing to replay.")
        self.trace, self.passes = trace, trace.passes
        self.layers, self.experts = trace.conditions["layers"], trace.conditions["experts"]
        self.drafts = bool(trace.conditions.get("drafts"))  # big passes read what little ones drafted
        self.single = np.array([p.ids.shape[1] == 1 for p in self.passes], dtype=bool)
        self.steps = np.array([p.step for p in self.passes], dtype=np.int64)
        self.tokens = np.array([p.ids.shape[1] for p in self.passes], dtype=np.int64)
        last = [p.ids[:, -1] for p in self.passes]
        self.ids = np.array(last, dtype=np.int64).reshape(len(last), self.layers, -1)  # [P, L, K] of the last token
        weights = np.array([p.weights[:, -1] for p in self.passes], dtype=np.float32).reshape(self.ids.shape)
        order = np.argsort(-weights, axis=2, kind="stable")
        self.best = np.take_along_axis(self.ids, order, axis=2)  # the same, best first
        self.last = None  # what a sweep laid out last

    def without_copies(self) -> Tape:
        """The same for replays, and smaller on its way to another process."""
        return Tape(Trace(self.trace.conditions, [replace(p, copies=[]) for p in self.passes]))

    def select(self, config: MobileConfig) -> Selection:
        """The passes that `config` makes.

        Raises:
            MobileError: the change would change the text, or needs passes that were not recorded.
        """
        if not isinstance(config, MobileConfig):
            raise TypeError(f"config must be a MobileConfig, such as systems.mobile() returns, got {config!r}.")
        about = self.trace.conditions
        asked, whole = about.get("questions"), about.get("exact", True) and about.get("whole", True)
        if asked is None:
            raise MobileError("this trace does not say under which policies it was recorded; record it with offload.")
        for question in ("miss", "codec"):
            given = getattr(config, question)
            if asked[question] != repr(given) and not (LOSS_FREE.fullmatch(asked[question]) and given.lossless):
                raise MobileError(_refusal(question, asked[question], repr(given)))
            if not given.lossless:
                unknown = f"whom {given!r} would have replaced" if question == "miss" else f"what {given!r} changes"
                raise MobileError(f"a replay cannot tell {unknown}; run it live, with offload.")
        if self.drafts or config.drafts:
            return self._drafted(config, asked, whole)
        everything = np.arange(len(self.passes))
        wrote = np.array([p.token_id >= 0 for p in self.passes], dtype=bool)
        same = asked["count"] == repr(config.count)
        if same and (not config.two_passes or (asked["keep"] == repr(config.keep) and self._steady(config.keep))):
            return Selection(everything, wrote, whole)
        if not config.two_passes and not same:
            return self._big_alone(config, asked, whole)
        if not same and not _same_little(asked["count"], config.count):
            raise MobileError(_refusal("count", asked["count"], repr(config.count)))
        return self._judged(config)

    def _drafted(self, config: MobileConfig, asked: dict, whole: bool) -> Selection:
        """All passes, of a recording with drafts under its own count and keep."""
        same = asked["count"] == repr(config.count) and asked["keep"] == repr(config.keep)
        if not (same and self._steady(config.keep)):
            raise MobileError(
                f"a replay cannot change what is drafted and read together, from {asked['count']} and {asked['keep']} "
                f"to {config.count!r} and {config.keep!r}; run it live, with offload."
            )
        wrote = np.array([p.token_id >= 0 for p in self.passes], dtype=bool)
        return Selection(np.arange(len(self.passes)), wrote, whole)

    def _steady(self, keep) -> bool:
        """Whether gamma was that of `keep` all along."""
        gamma = getattr(keep, "gamma", None)
        return gamma is None or all(math.isnan(p.gamma) or p.gamma == gamma for p in self.passes)

    def _big_alone(self, config: MobileConfig, asked: dict, whole: bool) -> Selection:
        modes = [p.mode for p in self.passes]
        steps = {(p.request, p.step) for p in self.passes if p.mode == LITTLE}
        both = {(p.request, p.step) for p in self.passes if p.mode == BIG}
        foreign = bool(both - steps)  # one pass a token, and not of the full model
        if repr(config.count) != "TopK()" or foreign or not steps <= both:
            more = ", or replay a recording with gamma above 1, which holds the big model's passes too"
            raise MobileError(_refusal("count", asked["count"], repr(config.count), more))
        index = np.array([i for i, mode in enumerate(modes) if mode != LITTLE])
        return Selection(index, np.ones(len(index), dtype=bool), whole and "prompt=1.0" in asked["count"])

    def _judged(self, config: MobileConfig) -> Selection:
        """Each position again, little and then perhaps big, as `config.keep` decides it."""
        index, wrote, past, lacking = [], [], [], 0
        follows = [*self.passes[1:], None]
        for i, (done, after) in enumerate(zip(self.passes, follows, strict=True)):
            if done.mode == PROMPT:
                past = []
            if done.mode != LITTLE:
                if done.mode == PROMPT or (index and index[-1] == i - 1 and not wrote[-1]):
                    index.append(i)
                    wrote.append(True)
                continue
            kept = decided(config.keep, Recorded(done.confidence, past))
            past.append(done.confidence)
            place = done.request, done.step
            rewritten = after is not None and after.mode == BIG and (after.request, after.step) == place
            lacking += not kept and not rewritten
            index.append(i)
            wrote.append(kept)
        if lacking:
            raise MobileError(
                f"{config.keep!r} would have had the big model rewrite {lacking} tokens that this trace holds only the "
                "little pass of; record with gamma above 1, so that it holds both."
            )
        return Selection(np.array(index), np.array(wrote, dtype=bool), exact=False)


def _same_little(recorded: str, count) -> bool:
    """Whether two fractions differ in the prompt alone; that changes the KV cache, but not what there is to replay."""
    recorded, given = (re.sub(r"prompt=[^,)]*", "", text) for text in (recorded, repr(count)))
    return recorded == given


def _refusal(question: str, recorded: str, given: str, more: str = "") -> str:
    return (
        f"a replay cannot change {question} from {recorded} to {given}: that changes the text, so it needs the model; "
        f"run it live, with offload{more}."
    )


__all__ = ["Selection", "Tape"]
