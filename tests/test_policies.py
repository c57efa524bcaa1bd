"""Each policy answers its question as its docstring says, from ids and numbers alone."""

from dataclasses import FrozenInstanceError, dataclass, fields
from functools import partial

import numpy as np
import pytest
import torch
from helpers import refused

from mobile_nb import policies, systems
from mobile_nb.hardware import Geometry
from mobile_nb.policies import (
    LFU,
    LRU,
    Always,
    Drop,
    Entropy,
    EvictedRouter,
    Fraction,
    Full,
    Int4,
    Margin,
    MaxProbability,
    Never,
    NextGate,
    Nothing,
    PerExpert,
    TopK,
    Wait,
)
from mobile_nb.policies.evict import History
from mobile_nb.runtime.config import MobileConfig, choose_slots
from mobile_nb.runtime.decode import Evidence
from mobile_nb.vocabulary import Wanted


@pytest.mark.parametrize(
    ("fraction", "k", "little"),
    [(0.5, 8, 4), (0.5, 4, 2), (0.5, 2, 1), (0.5, 1, 1), (0.5, 3, 2), (0.5, 5, 3), (0.25, 8, 2), (0.25, 4, 1)]
    + [(0.1, 4, 1), (1 / 3, 8, 3), (1 / 3, 6, 2), (1.0, 6, 6), (0.75, 8, 6)],
)
def test_fraction_rounds_to_the_nearest_whole_number_of_at_least_one(fraction, k, little):
    count = Fraction(fraction)
    assert count.run("little", 0, k) == (little, None)
    assert count.run("big", 0, k) == count.run("prompt", 0, k) == (k, None)
    assert Fraction(fraction, prompt=fraction).run("prompt", 0, k) == (little, None)
    assert Fraction(fraction, over=1.0).run("little", 3, k) == (little, k)
    assert Fraction(fraction, over=fraction).run("little", 3, k) == (little, little)


def test_top_k_runs_all_of_them_and_has_no_little_model():
    assert {TopK().run(mode, 1, 8) for mode in ("little", "big", "prompt")} == {(8, None)}
    assert not TopK.two_passes and Fraction.two_passes


@pytest.mark.parametrize("field", ["fraction", "prompt", "over"])
@pytest.mark.parametrize("value", [0, -0.5, 1.01, float("nan"), float("inf"), "half", True, None])
def test_a_share_of_k_that_cannot_be_is_refused(field, value):
    if field == "over" and value is None:
        assert Fraction(over=None).over is None
        return
    with refused(f"Fraction.{field}", repr(value), "share of the router's K experts"):
        Fraction(**{field: value})


@dataclass
class Sure:
    """Evidence made up for a test."""

    max_probability: float = 0.0
    margin: float = 0.0
    entropy: float = 0.0


@pytest.mark.parametrize(
    ("keep", "measure"), [(MaxProbability, "max_probability"), (Margin, "margin"), (Entropy, "entropy")]
)
def test_a_threshold_keeps_from_gamma_on(keep, measure):
    def decide(gamma, sureness):
        return keep(gamma).keep(Sure(**{measure: 1 - sureness if measure == "entropy" else sureness}))

    assert decide(0.75, 0.75) and decide(0.75, 0.875) and not decide(0.75, 0.625)
    assert decide(0, 0.0) and decide(0, 1.0), "gamma = 0 keeps everything"
    assert not decide(1.0001, 1.0), "gamma above 1 keeps nothing"
    assert keep().gamma == 0.7


def test_always_and_never():
    for sure in (Sure(), Sure(1, 1, 0)):
        assert Always().keep(sure) is True and Never().keep(sure) is False


def test_evidence_is_computed_from_the_logits():
    evidence = Evidence(torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125])))
    assert evidence.max_probability == pytest.approx(0.5)
    assert evidence.margin == pytest.approx(0.25)
    assert evidence.entropy == pytest.approx(1.75 / 2)  # bits of four outcomes
    sure = Evidence(torch.tensor([0.0, -float("inf"), -float("inf")], dtype=torch.float16))
    assert (sure.max_probability, sure.margin, sure.entropy) == (1, 1, 0)


@dataclass
class View:
    """Three layers; gates and evicted routing that can be told apart."""

    layers: int = 3
    mode: str = "big"
    evicted: object = ((4, 2, 7), (5, 1, 0), (6, 3, 2))

    def gate(self, layer):
        return [10 + layer, 20 + layer, 30 + layer]


def flat(wanted):
    return [(w.layer, *w.experts) for w in wanted]


def test_evicted_router_asks_for_every_layer_at_once_best_first():
    assert flat(EvictedRouter().wanted(-1, View())) == [(0, 4, 2, 7), (1, 5, 1, 0), (2, 6, 3, 2)]
    assert [w for layer in range(3) for w in EvictedRouter().wanted(layer, View())] == []
    assert flat(EvictedRouter(experts=2).wanted(-1, View())) == [(0, 4, 2), (1, 5, 1), (2, 6, 3)]


@pytest.mark.parametrize("ahead", [1, 2, 3, 9])
def test_evicted_router_stays_as_far_ahead_as_it_may_and_misses_no_layer(ahead):
    asked = [[w.layer for w in EvictedRouter(ahead).wanted(at, View())] for at in range(-1, 3)]
    assert asked[0] == list(range(min(ahead, 3)))
    assert all(layer == at + ahead for at, layers in enumerate(asked[1:]) for layer in layers)
    assert sorted(layer for layers in asked for layer in layers) == [0, 1, 2]


def test_evicted_router_asks_for_nothing_where_no_token_was_evicted():
    assert EvictedRouter().wanted(-1, View(evicted=None)) == []


def test_next_gate_asks_the_gate_of_the_layer_ahead():
    assert flat(NextGate().wanted(0, View())) == [(1, 11, 21, 31)]
    assert flat(NextGate(2, experts=1).wanted(0, View())) == [(2, 12)]
    assert NextGate().wanted(-1, View()) == NextGate().wanted(2, View()) == NextGate(2).wanted(1, View()) == []
    assert Nothing().wanted(0, View()) == []


@pytest.mark.parametrize(
    "make", [EvictedRouter, lambda v: EvictedRouter(experts=v), NextGate, lambda v: NextGate(1, v)]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "two", True])
def test_layers_ahead_and_numbers_of_experts_must_be_whole(make, value):
    with refused("at least 1", repr(value)):
        make(value)


def test_wait_fetches_all_and_drop_leaves_out_what_is_absent():
    assert Wait().serve([3, 1, 2], [0.5, 0.3, 0.2], [False, True, False]) == [3, 1, 2]
    assert Drop().serve([3, 1, 2], [0.5, 0.3, 0.2], [False, True, False]) == [None, 1, None]
    assert Drop().serve([3, 1, 2], [0.5, 0.3, 0.2], [False] * 3) == [3, None, None]
    assert Wait.lossless and Wait.fetches_all and not Drop.lossless and Full.lossless


def test_lru_and_lfu_rank_residents():
    history = History(
        last_used=np.array([[4.0, 2.0, 3.0]]), uses=np.array([[1.0, 9.0, 1.0]]), fetched=np.array([[1.0, 1.0, 1.0]])
    )
    assert LRU().score(history)[0].argsort().tolist() == [1, 2, 0]
    assert LFU().score(history)[0].argsort().tolist() == [2, 0, 1]


BUDDIES = policies.Buddies.of(np.ones((2, 4, 4)))
REQUESTS, MAPS = policies.Requests(np.ones((1, 2, 4))), policies.Maps(np.ones((1, 2, 4)), np.ones((1, 2, 4)), [0])
SUCCESSORS = policies.Successors(np.ones((1, 2, 4, 4)), np.ones((2, 4)))
NETWORK = policies.Network.shipped("tiny-olmoe")
KNOWN = {  # what has to be learned or measured first, of policies and systems
    "Buddies": (np.ones((2, 4, 4)),),
    "Popularity": (np.ones((2, 4)),),
    **dict.fromkeys(("Popular", "premoe", "emoe"), (policies.Popularity(np.ones((2, 4))),)),
    "OnHost": (0.5,),
    "fiddler": (policies.Popularity(np.ones((2, 4))), 0.5),
    "Maps": (np.ones((1, 2, 4)), np.ones((1, 2, 4)), [0]),
    "Requests": (np.ones((1, 2, 4)),),
    "Successors": (np.ones((1, 2, 4, 4)), np.ones((2, 4))),
    **dict.fromkeys(("Buddy", "buddymoe"), (BUDDIES,)),
    **dict.fromkeys(("RequestMatrix", "moe_infinity"), (REQUESTS,)),
    **dict.fromkeys(("ExpertMap", "finemoe"), (MAPS,)),
    **dict.fromkeys(("AdaptiveDepth", "ByPriority", "Cumulative", "PredictedReuse", "expertflow"), (SUCCESSORS,)),
    **dict.fromkeys(("Sensitivity", "adapmoe"), ((1.0, 2.0), 0.1)),
    **dict.fromkeys(("PerLayer", "lexi"), ((2, 1),)),
    "PerExpert": ((Full(), Int4()), [[0, 1]]),
    "mc": (PerExpert((Full(), Int4()), [[0, 1]]),),
    "quantized": (Int4(),),
    "Channels": ([[0.1, 0.2]],),
    "floe": (policies.Channels([[0.1, 0.2]]),),
    **dict.fromkeys(("Learned", "moe_beyond"), (NETWORK,)),
    "Network": tuple(getattr(NETWORK, field.name) for field in fields(NETWORK)),
}


def test_policies_are_frozen_values():
    for name in policies.__all__:
        policy, same = (getattr(policies, name)(*KNOWN.get(name, ())) for _ in range(2))
        assert policy == same and hash(policy) == hash(same)
        with pytest.raises((FrozenInstanceError, TypeError)):
            policy.gamma = 0.5


def test_systems_are_one_choice_a_question():
    plain = MobileConfig()
    assert systems.on_demand() == systems.big() == plain
    assert systems.next_gate(2, experts=1) == MobileConfig(prefetch=NextGate(2, 1))
    assert systems.little(0.25) == MobileConfig(count=Fraction(0.25, prompt=0.25), keep=Always())
    assert systems.mobile(0.6, fraction=0.25, ahead=2, slots=5) == MobileConfig(
        count=Fraction(0.25), keep=MaxProbability(0.6), prefetch=EvictedRouter(2), slots=5
    )
    assert systems.mobile() == systems.mobile(0.7)
    assert [c.lossless for c in (plain, systems.next_gate(), systems.mobile(), systems.little())] == [1, 1, 0, 0]
    assert not MobileConfig(miss=Drop()).lossless
    for name in systems.__all__:
        system = partial(getattr(systems, name), *KNOWN.get(name, ()))
        assert system(slots=3).slots == 3 and system(budget_gb=2).budget_gb == 2
        assert system(evict=LFU()).evict == LFU()


@pytest.mark.parametrize("geometry", ["olmoe-1b-7b", "qwen3-30b-a3b", "deepseek-v2-lite"])
@pytest.mark.parametrize("slots", [1, 3, 7, 64])
def test_a_budget_of_exactly_n_slots_holds_n(geometry, slots):
    size = Geometry.of(geometry)
    slot_gb = size.moe_layers * size.expert_bytes / 1e9
    assert choose_slots(MobileConfig(budget_gb=slots * slot_gb), size, 200, 0)[0] == slots
    assert choose_slots(MobileConfig(budget_gb=(slots + 1) * slot_gb * 0.999), size, 200, 0)[0] == slots
    assert choose_slots(MobileConfig(), size, 200, slots * slot_gb)[0] == slots
    assert choose_slots(MobileConfig(slots=10**6), size, 200, 0) == (200, "200 of 200 experts a layer, as asked for")


def test_wanted_is_a_plain_value():
    assert Wanted(1, (2, 3)) == Wanted(1, (2, 3)) != Wanted(1, (3, 2))
