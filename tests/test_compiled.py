"""The compiled rules are the scheduler's: the same times, counts and copies, to the last bit, on drawn runs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobile_nb.clock import VirtualClock
from mobile_nb.memory.cache import Cache
from mobile_nb.memory.compiled import play
from mobile_nb.memory.link import SimulatedLink
from mobile_nb.memory.scheduler import COUNTERS, Scheduler
from mobile_nb.memory.script import Script, interpret
from mobile_nb.policies import LFU, LRU, Belady
from mobile_nb.runtime.layout import uses

EVICT = LRU(), LFU(), Belady()  # in the order of LEAST_RECENT, LEAST_FREQUENT, FARTHEST


@st.composite
def scripts(draw):
    """A run of a few passes over a few layers: what is asked, and what is wanted when."""
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    passes = draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    chattiness, most = draw(st.sampled_from([0.0, 0.5, 2.0])), draw(st.integers(1, experts))
    counts = random.integers(1, most + 1, size=passes * layers)
    asked = np.concatenate([random.permutation(experts)[:n] for n in counts])
    asked_at = np.concatenate([[0], counts.cumsum()])
    wants = random.poisson(chattiness, size=passes * (layers + 1))
    wanted = np.stack([random.integers(layers, size=wants.sum()), random.integers(experts, size=wants.sum())], axis=1)
    next_ask, first_ask = uses(asked_at, asked, layers, experts)
    grain = draw(st.sampled_from([1.0, 0.125]))  # coarse times make ties, at which orders show
    return (
        layers,
        experts,
        Script(
            asked_at=asked_at,
            asked=asked,
            asked_s=random.integers(1, 4, size=len(asked)) * grain,
            wanted_at=np.concatenate([[0], wants.cumsum()]),
            wanted=wanted,
            next_ask=next_ask,
            first_ask=first_ask,
            layer_s=random.integers(0, 4, size=passes) * grain,
            head_s=random.integers(0, 3, size=passes) * grain,
        ),
    )


def interpreted(layers, experts, script, slots, fetch_s, evict):
    slots = min(slots, experts)
    link = SimulatedLink(VirtualClock(), layers, slots, fetch_s)
    return interpret(script, Scheduler(Cache(layers, experts, np.array([slots]), evict), link))


@pytest.mark.parametrize("leaves", range(3), ids=["LRU", "LFU", "Belady"])
@given(drawn=scripts(), slots=st.integers(1, 7), fetch_s=st.sampled_from([0.125, 0.5, 1.0, 3.3]))
def test_compiled_rules_are_the_schedulers(leaves, drawn, slots, fetch_s):
    layers, experts, script = drawn
    slow = interpreted(layers, experts, script, slots, fetch_s, EVICT[leaves])
    fast = play(script, layers, experts, slots, fetch_s, leaves, record=True)
    for mine, theirs in zip(fast, slow, strict=True):
        assert np.array_equal(mine, theirs)


@given(drawn=scripts(), slots=st.integers(1, 7))
def test_without_a_record_the_numbers_are_the_same(drawn, slots):
    layers, experts, script = drawn
    kept, bare = (play(script, layers, experts, slots, 1.0, 0, record=record) for record in (True, False))
    assert np.array_equal(kept.end, bare.end) and np.array_equal(kept.counts, bare.counts)
    assert not len(bare.copies)


def hits(played):
    return int(played.counts[:, COUNTERS.index("hits")].sum())


@pytest.mark.parametrize("other", [0, 1], ids=["LRU", "LFU"])
@given(drawn=scripts(), slots=st.integers(1, 6))
def test_belady_hits_at_least_as_often_as_any_other_where_what_is_asked_at_once_fits(other, drawn, slots):
    layers, experts, script = drawn
    quiet = script._replace(wanted=script.wanted[:0], wanted_at=np.zeros_like(script.wanted_at))  # law 8, on demand
    slots = max(slots, int(np.diff(script.asked_at).max()))
    best = play(quiet, layers, experts, slots, 1.0, 2)
    assert hits(best) >= hits(play(quiet, layers, experts, slots, 1.0, other))
