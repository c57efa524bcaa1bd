"""What a run's bytes and arithmetic take at least, pass by pass: a pass whose needs are known ahead can copy while it
computes, one on demand does first the one and then the other. Knows nothing about how a run was made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..analysis import metrics
from ..costs import Costs
from ..hardware import Hardware
from ..policies import Nothing
from ..runtime.config import MobileConfig
from ..trace import Trace


@dataclass
class Yardstick:
    """What rows of one model are held against.

    Attributes:
        link_gb_per_s: the link's rate.
        big_s, little_s: seconds of a pass's computation alone, with K experts and with K/2; None where not known.
        rest_s: seconds of a token between its passes, in which it is drawn.
    """

    link_gb_per_s: float
    big_s: float | None = None
    little_s: float | None = None
    rest_s: float = 0.0

    def learn(self, row: dict, *, big: bool) -> None:
        """Takes over what a row took that computed alone."""
        setattr(self, "big_s" if big else "little_s", row["pass_ms"] / 1e3)
        self.rest_s = (row["ms_per_token"] - row["pass_ms"]) / 1e3


def bounds(trace: Trace, config: MobileConfig, yardstick: Yardstick, ms: float) -> dict:
    """A token's figures in milliseconds, after the prompt; `ms` is what it took.

    Keys: link_bound_ms, bytes over the link's rate, and over_link_bound, the time over it. Where computation alone is
    known: compute_ms; bound_ms, the mean over tokens of the sum over passes of the larger of both where needs are known
    ahead (the big pass after an eviction; a gate that is read ahead), else of their sum, and of what lies between
    passes; over_bound; and of the big passes after an eviction by themselves, where their needs are known: big_pass_ms,
    big_pass_bound_ms, over_big_pass_bound.
    """
    steps, passes = trace.to_frame("steps"), metrics.decoded(trace.to_frame("passes"))
    rate = yardstick.link_gb_per_s * 1e9
    link_ms = 1e3 * metrics.bytes_per_token(steps) / rate
    found = {"link_bound_ms": link_ms, "over_link_bound": ms / link_ms if link_ms else None}
    if yardstick.big_s is None or yardstick.little_s is None:
        return found
    big = passes["mode"] == "big"
    link_s, compute_s = passes["bytes_moved"] / rate, big * yardstick.big_s + ~big * yardstick.little_s
    known = not isinstance(config.prefetch, Nothing)  # of each big pass, or where there is no other of each pass
    least_s = link_s + compute_s
    if known:
        least_s = link_s.combine(compute_s, max).where(big if config.two_passes else big | True, least_s)
    bound_ms = 1e3 * (least_s.sum() / len(metrics.decoded(steps)) + yardstick.rest_s)
    found |= {"compute_ms": 1e3 * compute_s.sum() / len(metrics.decoded(steps)), "bound_ms": bound_ms}
    found |= {"over_bound": ms / bound_ms}
    if known and config.two_passes and big.any():
        took, least = (1e3 * values[big].mean() for values in (passes["seconds"], least_s))
        found |= {"big_pass_ms": took, "big_pass_bound_ms": least, "over_big_pass_bound": took / least}
    return found


def fitted(costs: Costs, top_k: int, yardstick: Yardstick) -> Hardware | None:
    """The card with a launch as long as this engine's are: so long that passes that compute K and K/2 experts alone
    take, in the mean of the two, what they took. `Hardware.measure` times launches back to back, and an engine has work
    between them. None where computation alone is not known."""
    if yardstick.big_s is None or yardstick.little_s is None:
        return None

    def alone(launch_s: float, count: int) -> float:
        there = replace(costs, hardware=replace(costs.hardware, launch_s=launch_s))
        return there.layers * (there.layer_s() + count * there.expert_s()) + there.head_s()

    took = {top_k: yardstick.big_s, max(1, top_k // 2): yardstick.little_s}
    slopes = {count: (alone(1e-6, count) - alone(0.0, count)) / 1e-6 for count in took}
    found = [(seconds - alone(0.0, count)) / slopes[count] for count, seconds in took.items()]
    return replace(costs.hardware, launch_s=max(0.0, sum(found) / len(found)))


__all__ = ["Yardstick", "bounds", "fitted"]
