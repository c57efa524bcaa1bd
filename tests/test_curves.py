"""A curve over all cache sizes is what replays of each size give; synthetic routing is what it was asked to be."""

import numpy as np
import pytest
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st

from mobile_nb import Trace, replay, systems
from mobile_nb.analysis import locality
from mobile_nb.analysis.curves import hit_curve
from mobile_nb.analysis.synthetic import Synthetic, steepness
from mobile_nb.policies import LFU, LRU, Belady, EvictedRouter, Nothing

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
    with refused("slots must be at least 1"):
        hit_curve(drawn(0), slots=[0])


def test_a_curve_is_without_prefetch():
    trace = Synthetic().trace("olmoe-1b-7b", 30)
    plain, early = (
        hit_curve(trace, LFU(), [8], config=systems.mobile(prefetch=p)) for p in (Nothing(), EvictedRouter())
    )
    assert plain.equals(early)


def test_drawn_routing_is_the_same_for_a_seed_and_has_the_shape_of_the_model():
    one, two = (Synthetic().trace("qwen1.5-moe-a2.7b", 5, seed=7) for _ in range(2))
    assert one.passes == two.passes and one.passes != Synthetic().trace("qwen1.5-moe-a2.7b", 5, seed=8).passes
    assert [p.mode for p in one.passes] == ["little", "big"] * 5
    assert all(p.ids.shape == (24, 1, 4) and p.ids.max() < 60 for p in one.passes)
    assert (one.passes[0].ids[0] == one.passes[1].ids[0]).all()  # law 5: the first layer's router sees the same


def test_every_parameter_of_a_synthetic_router_does_what_it_says():
    def seen(**words):
        little, big, _ = Synthetic(**({"token": 0.5} | words)).routing(600, 4, 32, 4, seed=1)
        agree = (little[..., None] == big[..., None, :]).any(axis=3).mean(axis=(0, 2))
        used = np.sort(np.bincount(big[:, 1].ravel(), minlength=32))[::-1] / big[:, 1].size
        return {
            "skew": used[:4].sum(),
            "reuse": locality.reuse(big),
            "segment": locality.segment_f1(big, 32),
            "layer": locality.previous_layer_recall(big, 32),
            "agree": agree,
        }

    plain = seen()
    assert seen(popularity=1.5)["skew"] > plain["skew"] + 0.1
    assert seen(context=3.0)["segment"] > plain["segment"] + 0.03
    assert seen(context=3.0, persistence=0.99)["reuse"] > seen(context=3.0, persistence=0.2)["reuse"] + 0.1
    assert seen(token=1.0)["layer"] > seen(token=0.0)["layer"] + 0.1
    assert seen(drift=0.0)["agree"].tolist() == [1, 1, 1, 1]
    drifting = seen(drift=1.0)["agree"]
    assert drifting[0] == 1 and drifting[3] < drifting[1] < 1


@pytest.mark.parametrize(("low", "high"), [(0.21, 0.27), (0.05, 0.2), (0.1, 0.11)])
def test_confidence_meets_the_two_shares_it_was_given(low, high):
    router = Synthetic(fallback=low, steepness=steepness(low, high))
    drawn = router.confidence(np.linspace(0.0005, 0.9995, 1000))
    assert (drawn < 0.7).mean() == pytest.approx(low, abs=2e-3)
    assert (drawn < 0.8).mean() == pytest.approx(high, abs=2e-3)
    trace = Synthetic(fallback=0.21).trace("olmoe-1b-7b", 300)
    again = replay(trace, systems.mobile(slots=8), hardware="rtx4080-pcie4")
    assert again.fallback_ratio == pytest.approx(0.21, abs=2 / 300)


def test_segment_f1_of_a_hand_made_case():
    ids = np.array([[[0, 1]], [[0, 2]]])  # two tokens, one layer, K = 2: expert 0 twice, 1 and 2 once
    assert locality.segment_f1(ids, 4, tokens=2) == pytest.approx(0.8)  # {0, 1, 2}: precision 4 of 6, recall 1
    assert locality.reuse(ids) == 0.5


def test_unknown_fits_and_values_that_cannot_be_are_refused():
    with refused("no router was fitted to 'gpt'", "olmoe-1b-7b"):
        Synthetic.fitted("gpt")
    with refused("Synthetic.persistence", "1.5"):
        Synthetic(persistence=1.5)
