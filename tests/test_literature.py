"""Every policy in every slot of the matrix, and every published system, on one tiny model: the laws that each passes.

Law 3 (conservation) holds for all; those that are loss-free write the full model's tokens (laws 1 and 4) and, where a
trace holds what they ask for, a replay is the live run to the last bit (law 6).
"""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from helpers import EXPERTS, GREEDY, make, middle_gamma, plain, prompt, refused

from mobile_nb import offload, policies, replay, systems
from mobile_nb.model.channels import up_outputs
from mobile_nb.policies import (
    LFU,
    LRU,
    AdaptiveDepth,
    AllLow,
    Always,
    Anybody,
    Buddies,
    Buddy,
    ByPriority,
    Channels,
    Cumulative,
    DraftRouter,
    Drop,
    Entropy,
    EvictedRouter,
    ExpertMap,
    Foretold,
    Fraction,
    Full,
    InForm,
    Int2,
    Int4,
    Int8,
    Learned,
    LowBits,
    Maps,
    Margin,
    MaxProbability,
    MeanScore,
    Mixed,
    NearestAbsent,
    NearScore,
    Network,
    Never,
    NextGate,
    NextRanked,
    Nothing,
    OnHost,
    PerExpert,
    PerLayer,
    Popular,
    Popularity,
    PredictedReuse,
    PreviousToken,
    ReadGates,
    RequestMatrix,
    Requests,
    Scheduled,
    Sensitivity,
    Successors,
    TargetFallback,
    TopK,
    TopScore,
    TwoLevel,
    Verified,
    Wait,
    Weighted,
    WeightRatio,
)
from mobile_nb.runtime.config import QUESTIONS

NAME, LAYERS, NEW = "qwen2_moe", 3, 7
RUN = GREEDY | {"max_new_tokens": NEW}
MACHINE = {"hardware": "t4-colab", "geometry": "qwen1.5-moe-a2.7b"}  # a slow link: prefetches are late, or never start


@cache
def model():
    return make(NAME)


@cache
def past():
    """What there is to learn from: other texts of the same model."""
    with offload(model(), systems.on_demand(slots=4)) as engine:
        for seed in range(3, 7):
            engine.generate(prompt(9, seed=seed), max_new_tokens=9, **GREEDY)
        return engine.trace


@cache
def predictors():
    trace = past()
    found = [RequestMatrix(Requests.from_trace(trace)), ExpertMap(Maps.from_trace(trace)), Successors.from_trace(trace)]
    return [*found, MeanScore(4)]


@cache
def learned():
    """A small network of the model's shape that has learned nothing: right or wrong, it may only change times."""
    random = np.random.default_rng(0)
    shapes = {
        "layer": (LAYERS, 8), "enter": (8, 32 + 8), "qkv": (1, 24, 8), "out": (1, 8, 8),
        "up": (1, 16, 8), "down": (1, 8, 16), "head": (8, 8), "tell": (EXPERTS, 8),
    }  # fmt: skip
    parts = {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    parts |= {f"{name}_bias": part[..., 0] for name, part in parts.items() if name != "layer"}
    norm = random.normal(size=(1, 2, 2, 8)).astype("float32")
    return Learned(Network(**parts, norm=norm, heads=2, honest=True), context=3)


@cache
def channels():
    """Half of them run, in 2 bits."""
    return Channels.by_sparsity(up_outputs(model(), [prompt(20, seed=9)], Int2(8)), 0.5, up=Int2(8))


@cache
def choices():
    """Every policy that a live run can have, by question."""
    return {
        "count": [TopK(), Fraction(), PerLayer((3, 2, 4)), Sensitivity((1.0, 0.5, 2.0), 0.1), WeightRatio(0.9)],
        "keep": [Always(), Never(), MaxProbability(0.1), Margin(0.02), Entropy(0.03), TargetFallback(0.3)]
        + [Scheduled(0.4), Verified(3), Verified(6, gamma=0.05, window=2)],
        "prefetch": [
            *(Nothing(), EvictedRouter(), PreviousToken(), NextGate(), ReadGates(), NearestAbsent(), TopScore()),
            *(InForm(miss=Wait()), DraftRouter()),
            *(make(by) for make in (ByPriority, Cumulative, AdaptiveDepth) for by in [*predictors(), learned()]),
        ],
        "miss": [
            *(Wait(), Drop(), Buddy(Buddies.from_trace(past()), tau=0, beta=2), Anybody(), NearScore(), NextRanked()),
            *(Foretold(), OnHost(0.5), OnHost(0.5, balance=True), OnHost(0.5, balance=True, before=NearScore())),
            *(LowBits(0.3, 0.6), AllLow()),
        ],
        "evict": [LRU(), LFU(), Weighted(), TwoLevel(), Popular(Popularity.from_trace(past()))]
        + [PredictedReuse(by, frequency) for by in predictors() for frequency in (False, True)],
        "codec": [Full(), Int8(), Int4(8), Int2(8), Mixed(low_slots=2), PerExpert.from_trace(past()), channels()],
    }


BASES = {
    "on demand": lambda: systems.on_demand(slots=3),
    "MoBiLE": lambda: systems.mobile(middle_gamma(model(), prompt(), NEW), slots=5),
    "everything learned": lambda: systems.moe_infinity(
        Requests.from_trace(past()), slots=4, miss=Buddy(Buddies.from_trace(past()), tau=0, beta=2)
    ),
}
SIZES = {"count": 5, "keep": 9, "prefetch": 24, "miss": 12, "evict": 13, "codec": 7}  # of `choices`
EVERY = [(question, n) for question, size in SIZES.items() for n in range(size)]


def write(config, seeds=(0, 1), **words):
    """The texts of two prompts, and the engine that wrote them."""
    with offload(model(), config, **(MACHINE | words)) as engine:
        texts = [engine.generate(prompt(7, seed=seed), **RUN).token_ids for seed in seeds]
    return texts, engine


@cache
def full():
    return plain(model(), prompt(7), NEW)


def check_conservation(engine, slots):
    report, passes = engine.report(), engine.trace.passes
    assert (report.hits + report.misses + report.host == report.requests).all()
    host = sum(p.requests - p.hits - p.misses for p in passes)
    assert (report.host == host).all() and all((p.hits + p.misses <= p.requests).all() for p in passes)
    assert all((p.late <= p.hits).all() for p in passes)
    assert not host.any() or isinstance(engine.config.miss, OnHost)
    copies = [copy for p in passes for copy in p.copies]
    pieces = isinstance(engine.config.codec, Channels)  # then a copy of the second form is one of channels
    experts = [copy for copy in copies if not (pieces and copy.form)]
    assert len(experts) == (report.misses + report.prefetches).sum()
    assert sum(copy.kind == "demand" for copy in experts) == report.misses.sum()
    assert (report.used + report.wasted <= report.prefetches).all()
    assert (report.resident <= report.slots).all()
    if len(engine.config.codec.forms) == 1:
        assert (report.slots == slots).all()
    costs = engine._server.costs
    assert report.gb_moved.sum() * 1e9 == pytest.approx(sum(costs.bytes_of(copy.form) * copy.amount for copy in copies))
    assert all(a.end <= b.begin + 1e-12 for a, b in itertools.pairwise(copies)), "one copy at a time"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("question", "n"), EVERY, ids=[f"{question}-{n}" for question, n in EVERY])
def test_every_policy_works_in_its_slot_and_moves_what_it_says(base, question, n):
    config = replace(BASES[base](), **{question: choices()[question][n]})
    if isinstance(config.miss, (LowBits, AllLow)):
        config = replace(config, codec=Mixed(low_slots=2))
    (text,), engine = write(config, seeds=[0])
    check_conservation(engine, config.slots)
    assert len(text) == NEW
    if config.lossless:
        assert text == full()


def test_the_list_of_choices_is_complete():
    """Whoever adds a policy adds it here, or says why not."""
    here = {type(policy).__name__ for some in choices().values() for policy in some}
    predicts = {"ExpertMap", "Learned", "MeanScore", "RequestMatrix", "Successors"}
    learned, replays = {"Buddies", "Maps", "Network", "Popularity", "Requests"}, {"Belady", "Oracle"}
    assert here == set(policies.__all__) - predicts - learned - replays
    assert {question: len(some) for question, some in choices().items()} == SIZES
    assert set(SIZES) == set(QUESTIONS)


# -- the table -----------------------------------------------------------------------------------------------------

SYSTEMS = {
    "big": lambda: systems.big(slots=3),
    "on_demand": lambda: systems.on_demand(slots=3),
    "little": lambda: systems.little(slots=3),
    "mobile": lambda: systems.mobile(middle_gamma(model(), prompt(), NEW), slots=4),
    "speculative": lambda: systems.speculative(3, slots=4),
    "moe_speq": lambda: systems.moe_speq(3, low=Int4(8), slots=4),
    "next_gate": lambda: systems.next_gate(slots=4),
    "moe_infinity": lambda: systems.moe_infinity(Requests.from_trace(past()), slots=4),
    "finemoe": lambda: systems.finemoe(Maps.from_trace(past()), ahead=1, slots=4),
    "expertflow": lambda: systems.expertflow(Successors.from_trace(past()), start=1, slots=4),
    "moe_beyond": lambda: systems.moe_beyond(learned().network, context=3, slots=4),
    "adapmoe": lambda: systems.adapmoe((1.0, 0.5, 2.0), 0.1, slots=4),
    "lexi": lambda: systems.lexi((3, 2, 4), slots=4),
    "fiddler": lambda: systems.fiddler(Popularity.from_trace(past()), 0.5, slots=4),
    "early_routing": lambda: systems.early_routing(slots=4),
    "buddymoe": lambda: systems.buddymoe(Buddies.from_trace(past()), tau=0, beta=2, slots=5),
    "smoe": lambda: systems.smoe(slots=5),
    "premoe": lambda: systems.premoe(Popularity.from_trace(past(), by_weight=True), slots=5),
    "emoe": lambda: systems.emoe(Popularity.from_trace(past(), latest=2), slots=5),
    "anybody": lambda: systems.anybody(slots=5),
    "drop": lambda: systems.drop(slots=5),
    "quantized": lambda: systems.quantized(Int2(8), slots=4),
    "mc": lambda: systems.mc(PerExpert.from_trace(past(), (Int4(8), Int2(8))), slots=4),
    "floe": lambda: systems.floe(channels(), slots=3),
    "hobbit": lambda: systems.hobbit(0.3, 0.6, low=Int2(8), low_slots=2, slots=3),
}
EXACT = {
    *("big", "on_demand", "speculative", "moe_speq", "next_gate", "moe_infinity", "finemoe", "expertflow"),
    *("fiddler", "moe_beyond"),
}
CHANGES_EXPERTS = {  # a replay cannot tell whom
    *("early_routing", "buddymoe", "smoe", "premoe", "emoe", "anybody", "drop", "hobbit"),
}
CHANGES_WEIGHTS = {"quantized", "mc", "floe"}
LIVE = {"moe_beyond"}  # reads hidden states, which a trace does not hold
DRAFTS_LOW = {"moe_speq"}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_exact_where_its_row_says_so_and_conserves_in_any_case(name):
    config = SYSTEMS[name]()
    assert config.lossless == (name in EXACT)
    for slots in (1, 2, config.slots, EXPERTS - 1, EXPERTS):
        (text,), engine = write(replace(config, slots=slots), seeds=[0])
        check_conservation(engine, slots)
        if config.lossless:
            assert text == full()


def test_the_lossy_ones_change_the_text():
    """Otherwise they would not be tried here at all."""
    for name in CHANGES_EXPERTS | CHANGES_WEIGHTS:
        texts = [write(replace(SYSTEMS[name](), slots=slots), seeds=[0])[0] for slots in (2, 5)]
        assert any(text != full() for (text,) in texts), name


@pytest.mark.parametrize("slots", [1, 3, 6, EXPERTS])
@pytest.mark.parametrize("name", sorted(SYSTEMS.keys() - CHANGES_EXPERTS - CHANGES_WEIGHTS - LIVE - DRAFTS_LOW))
def test_a_systems_replay_is_its_live_run(name, slots):
    config = replace(SYSTEMS[name](), slots=slots)
    _, engine = write(config)
    assert replay(engine.trace, config).trace.passes == engine.trace.passes


@pytest.mark.parametrize("name", sorted(CHANGES_EXPERTS | CHANGES_WEIGHTS | DRAFTS_LOW))
def test_who_changes_experts_cannot_be_replayed(name):
    _, engine = write(SYSTEMS[name]())
    with refused("cannot tell wh", "run it live"):
        replay(engine.trace, SYSTEMS[name]())


@pytest.mark.parametrize("name", sorted(LIVE))
def test_who_reads_hidden_states_cannot_be_replayed(name):
    _, engine = write(SYSTEMS[name](), seeds=[0])
    with refused("hidden states", "run it live"):
        replay(engine.trace, SYSTEMS[name]())


@pytest.mark.parametrize("evict", range(SIZES["evict"]))
def test_an_eviction_replayed_on_another_run_is_what_it_would_have_done(evict):
    recorded, other = write(systems.on_demand(slots=2)), systems.on_demand(slots=4, evict=choices()["evict"][evict])
    again, live = replay(recorded[1].trace, other).trace.passes, write(other)[1].trace.passes
    for one, two in zip(again, live, strict=True):  # other slots sum weights in another order
        assert (one.begin, one.end, one.copies, one.hits.tolist()) == (
            two.begin,
            two.end,
            two.copies,
            two.hits.tolist(),
        )


@pytest.mark.parametrize(  # others start filled, or make other passes
    "name", sorted(EXACT - LIVE - {"fiddler", "speculative", "moe_speq"})
)
def test_nobody_hits_more_than_an_oracle_or_evicts_better_than_belady(name):
    """Law 8, on a run that holds what all of them ask for."""
    gates = systems.on_demand(slots=4, prefetch=ReadGates(ahead=3))
    trace = write(gates)[1].trace
    config = replace(SYSTEMS[name](), slots=4)
    found = replay(trace, config, **MACHINE)
    oracle = replay(trace, systems.on_demand(slots=4, prefetch=policies.Oracle()), **MACHINE)
    assert found.hit_rate <= oracle.hit_rate
    alone = replay(trace, replace(config, prefetch=Nothing()), **MACHINE)
    assert alone.hit_rate <= replay(trace, systems.on_demand(slots=4, evict=policies.Belady()), **MACHINE).hit_rate


def test_every_system_is_tried_here():
    assert SYSTEMS.keys() == set(systems.__all__)
