"""A curve over all cache sizes is what replays of each size give; synthetic routing is what it was asked to be."""

import numpy as np
import pytest
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st

from mobile_nb import Trace, replay, systems
from mobile_nb.analysis.curves import hit_curve
from mobile_nb.policies import LFU, LRU, Belady

MACHINE = {"hardware": "rtx4080-pcie4", "geometry": "olmoe-1b-7b"}


def drawn(seed, tokens=40, layers=2, experts=9, k=3):
    """Routing with some reuse: each token's experts are drawn near the token's before."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(tokens, layers, experts)).cumsum(axis=0) * 0.4 + random.normal(
        size=(tokens, layers, experts)
    )
    return Trace.from_routing(np.argsort(-scores, axis=2)[..., :k], num_experts=experts)


@pytest.mark.parametrize("evict", [LRU(), LFU(), Belady()], ids=repr)
@given(seed=st.integers(0, 2**32))
def test_a_curve_is_the_replays_of_its_sizes(evict, seed):
    trace = drawn(seed)
    curve = hit_curve(trace, evict)
    assert curve.slots.tolist() == list(range(1, 10))
    for row in curve.itertuples():
        alone = replay(trace, systems.on_demand(slots=row.slots, evict=evict), **MACHINE)
        assert row.hit_rate == pytest.approx(alone.hit_rate)
    assert curve.hit_rate.iloc[2:].is_monotonic_increasing and curve.hit_rate.iloc[-1] == 1


@given(seed=st.integers(0, 2**32))
def test_no_policy_is_above_beladys_curve_where_a_tokens_experts_fit(seed):
    trace = drawn(seed)
    bound = hit_curve(trace, Belady(), slots=range(3, 10)).hit_rate
    for evict in (LRU(), LFU()):
        assert (hit_curve(trace, evict, slots=range(3, 10)).hit_rate <= bound + 1e-12).all()


def test_a_policy_that_is_not_compiled_is_refused():
    class Own(LRU):
        pass

    with refused("hit_curve knows LRU, LFU, Belady"):
        hit_curve(drawn(0), Own())
