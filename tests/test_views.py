"""What policies see: the same facts in a live run and in its replay, and nothing that is still to come."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from helpers import EXPERTS, GREEDY, TOP_K, make, prompt, refused, since

from mobile_nb import MobileConfig, MobileError, offload, replay, systems
from mobile_nb.policies import LRU, Fraction, MaxProbability
from mobile_nb.vocabulary import Wanted

LAYERS, NEW = 3, 6
RUN = GREEDY | {"max_new_tokens": NEW}


def seen(layer, view):
    """All that a view tells anywhere, as plain values."""
    told = {
        "shape": (view.layers, view.experts, view.top_k),
        "where": (view.mode, view.at, layer),
        "evicted": view.evicted,
        "previous": view.previous,
        "activations": view.activations.tolist(),
        "recent": [part.tolist() for part in view.recent(8)],
        "routed": [[part.tolist() for part in view.routed(at)] for at in range(layer + 1)],
    }
    return told


@dataclass(frozen=True)
class Spy:
    """A prefetcher that notes what it sees and asks for two experts of the next layer."""

    look: object = seen
    revises: bool = False
    notes: list = field(default_factory=list, compare=False, repr=False)

    def wanted(self, layer, view):
        self.notes.append(self.look(layer, view))
        return [Wanted(layer + 1, (layer + 2, 7))] if layer + 1 < view.layers else []


def both(config, spy, other):
    """What `spy` notes while two texts are written, and `other`, in the same configuration, while they are replayed."""
    with offload(make(), config) as engine:
        for seed in range(2):
            engine.generate(prompt(7, seed=seed), **RUN)
        trace = engine.trace
    return trace, replay(trace, replace(config, prefetch=other))


@pytest.mark.parametrize("gamma", [0, 0.12, 1.1])
def test_a_replay_shows_what_the_live_run_showed(gamma):
    live, played = Spy(), Spy()
    words = {"count": Fraction(), "keep": MaxProbability(gamma), "slots": 5}
    trace, again = both(MobileConfig(prefetch=live, **words), live, played)
    assert live.notes == played.notes
    assert again.trace.passes == trace.passes


def device(layer, view):
    outcomes = [{name: count.tolist() for name, count in each.items()} for each in view.outcomes]
    return seen(layer, view) | {"residents": [view.resident(at) for at in range(view.layers)], "outcomes": outcomes}


@pytest.mark.parametrize("slots", [2, 5])
def test_a_prefetcher_that_revises_sees_the_device_live_and_in_the_replay(slots):
    live, played = Spy(device, revises=True), Spy(device, revises=True)
    config = systems.mobile(1.1, slots=slots, prefetch=live)
    trace, again = both(config, live, played)
    assert live.notes == played.notes
    assert again.trace.passes == trace.passes
    assert any(note["residents"] != live.notes[0]["residents"] for note in live.notes)


def test_outcomes_are_the_counters_of_each_pass_of_this_text():
    spy = Spy(device, revises=True)
    with offload(make(), systems.on_demand(slots=3, prefetch=spy)) as engine:
        for seed in range(2):
            engine.generate(prompt(7, seed=seed), **RUN)
    before = [note for note in spy.notes if note["where"][1] == -1]
    assert [len(note["outcomes"]) for note in before] == [1, 2, 3, 4, 5] * 2
    second = engine.trace.passes[NEW:]
    for done, outcome in zip(second, before[-1]["outcomes"], strict=False):
        for name in ("requests", "hits", "late", "misses"):
            assert outcome[name] == getattr(done, name).tolist()


def test_who_looks_at_the_device_without_saying_so_is_refused_by_a_replay():
    trace, _ = both(systems.on_demand(slots=3, prefetch=Spy()), Spy(), Spy())
    with refused("must say so", "revises = True", kinds=MobileError):
        replay(trace, systems.on_demand(slots=3, prefetch=Spy(device)))


def test_the_text_so_far_is_its_prompt_and_the_tokens_that_stayed():
    spy = Spy()
    with offload(make(), systems.mobile(1.1, slots=3, prefetch=spy)) as engine:
        engine.generate(prompt(7), **RUN)
        passes = engine.trace.passes
    stayed, wanted = [], []
    for done in passes:
        if done.mode != "prompt":
            counts = np.zeros((LAYERS, EXPERTS))
            for before in stayed:
                for layer in range(LAYERS):
                    np.add.at(counts[layer], before.ids[layer], 1)
            wanted.append(counts.tolist())
        if done.token_id >= 0:
            stayed.append(done)
    assert [note["activations"] for note in spy.notes if note["where"][1] == -1] == wanted
    assert {np.sum(counts) for counts in wanted} == {(7 + n) * LAYERS * TOP_K for n in range(NEW - 1)}
    last = spy.notes[-1]
    ids = np.concatenate([p.ids for p in stayed[:-1]], axis=1)[:, -8:]
    assert last["recent"][0] == ids.tolist()
    best = np.argsort(-passes[-1].weights[1, 0])
    assert last["routed"][1][0] == passes[-1].ids[1, 0][best].tolist()


@pytest.mark.parametrize("ask", [lambda v: v.routed(1), lambda v: v.routed(-1)])
def test_nobody_sees_routing_that_is_still_to_come(ask):
    config = systems.on_demand(slots=3, prefetch=Spy(lambda layer, view: ask(view) if layer < 1 else None))
    with refused("not routed yet", kinds=MobileError), offload(make(), config) as engine:
        engine.generate(prompt(7), **RUN)


@dataclass(frozen=True)
class Fond(LRU):
    """Keeps the experts with the highest ids, and, among prompts, the least recent."""

    answer: object = field(default=None, repr=False)

    def expects(self, layer, view):
        return np.tile(np.arange(view.experts, dtype=float), (view.layers, 1)) if self.answer is None else self.answer

    def score(self, history):
        return history.last_used if history.expected is None else history.expected


def test_evictions_see_what_was_expected_of_each_resident_and_replay_the_same():
    config = systems.on_demand(slots=4, evict=Fond())
    with offload(make(), config) as engine:
        for seed in range(2):
            engine.generate(prompt(7, seed=seed), **RUN)
        cache = engine._server.scheduler.cache
        assert (cache.expected == np.arange(EXPERTS)).all()
    again = replay(engine.trace, config)
    assert again.trace.passes == engine.trace.passes
    assert replay(engine.trace, systems.on_demand(slots=4)).trace.passes != engine.trace.passes


ODD = {"a row": np.zeros(3), "NaN": np.full((LAYERS, EXPERTS), np.nan), "a list": [[1.0]], "a word": "none"}


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_expectations_must_be_a_number_for_each_expert(answer):
    config = systems.on_demand(slots=4, evict=Fond(answer))
    with refused("must answer `expects`", "[3, 8]", kinds=MobileError), offload(make(), config) as engine:
        engine.generate(prompt(7), **RUN)


@dataclass(frozen=True)
class Counting:
    """Runs one expert where the best weight has most of the mass."""

    two_passes = False
    lossless = False
    by_token = True

    def run(self, mode, layer, k, weights=None):
        if weights is None:
            return k, None
        assert list(weights) == sorted(weights, reverse=True) and len(weights) == k
        return (1 if weights[0] / sum(weights) > 0.4 else k), None


def test_a_count_by_token_sees_its_weights_and_is_replayed_under_itself():
    config = MobileConfig(count=Counting(), slots=3)
    assert not config.lossless
    with offload(make(), config) as engine:
        engine.generate(prompt(7), **RUN)
    requests = {int(r) for p in engine.trace.passes[1:] for r in p.requests}
    assert requests == {1, TOP_K}
    assert replay(engine.trace, config).trace.passes == engine.trace.passes
    with refused("cannot change count"):
        replay(engine.trace, systems.on_demand(slots=3))


@dataclass(frozen=True)
class Curious:
    """A miss policy that notes what it sees and fetches all."""

    notes: list = field(default_factory=list, compare=False)
    lossless = False

    def serve(self, experts, weights, resident, view):
        scores = view.scores(view.at)
        self.notes.append((view.at, list(experts), list(weights), scores, view.foretold(view.at)))
        assert [e in view.resident(view.at) for e in experts] == list(resident)
        return list(experts)


@pytest.mark.parametrize(
    "name", ["olmoe", "mixtral", "gpt_oss", "deepseek_v2", pytest.param("granitemoe", marks=since(5, 21))]
)
def test_misses_see_all_that_the_router_says_and_what_it_said_ahead(name):
    spy = Curious()
    with offload(make(name), systems.next_gate(slots=5, miss=spy)) as engine:
        engine.generate(prompt(7), **RUN)
    assert len(spy.notes) == (NEW - 1) * engine.report().shape[0]
    for layer, experts, weights, scores, foretold in spy.notes:
        assert weights == sorted(weights, reverse=True)
        assert sum(scores) == pytest.approx(1) and len(scores) == EXPERTS
        assert experts == sorted(range(EXPERTS), key=lambda e: -scores[e])[:TOP_K]
        assert (foretold is None) == (layer == 0) and (foretold is None or len(foretold) == TOP_K)
