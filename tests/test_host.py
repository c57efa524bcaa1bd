"""Misses that the host computes, and devices that hold a fixed set: who is where, and what it costs."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import EXPERTS, GREEDY, every_architecture, gap, make, plain, prompt, refused
from hypothesis import given
from hypothesis import strategies as st

from mobile_nb import (
    Geometry,
    Hardware,
    MobileConfig,
    MobileError,
    Step,
    Trace,
    figures,
    html,
    metrics,
    offload,
    replay,
    systems,
)
from mobile_nb.clock import VirtualClock
from mobile_nb.costs import Costs
from mobile_nb.hardware import measure_host
from mobile_nb.memory.cache import Cache
from mobile_nb.memory.disk import DiskArena, HostCache
from mobile_nb.memory.link import SimulatedLink
from mobile_nb.memory.scheduler import Scheduler
from mobile_nb.memory.store import Arena
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.experts import HostExperts
from mobile_nb.policies import LRU, NearScore, OnHost, Popular, Popularity
from mobile_nb.policies.miss.ask import Host
from mobile_nb.vocabulary import Wanted

NEW = 6
FETCH, WORK, HOST = 1.0, 0.25, 0.5  # seconds of a copy, of an expert on the device, and on the host


def serve(policy, experts, here, view=None):
    return policy.serve(experts, [1 / len(experts)] * len(experts), [e in here for e in experts], view)


# -- policies ------------------------------------------------------------------------------------------------------


def test_all_misses_are_the_hosts_where_it_is_faster_and_the_links_where_it_is_not():
    assert serve(OnHost(0.99), [4, 1, 3], {1}) == [Host(4), 1, Host(3)]
    assert serve(OnHost(1), [4, 1, 3], {1}) == serve(OnHost(7.5), [4, 1, 3], {1}) == [4, 1, 3]
    assert serve(OnHost(0.1), [4, 1], {1, 4}) == [4, 1]


def test_a_balanced_split_lets_host_and_link_end_together_and_gives_the_host_the_least_weighted():
    """Of three misses at equal speed the link takes two; three times slower, the host takes one of four."""
    assert serve(OnHost(1.0, balance=True), [4, 1, 3, 2], {1}) == [4, 1, 3, Host(2)]
    assert serve(OnHost(0.5, balance=True), [4, 1, 3, 2], {1}) == [4, 1, Host(3), Host(2)]
    assert serve(OnHost(3.0, balance=True), [4, 5, 3, 2], set()) == [4, 5, 3, Host(2)]
    assert serve(OnHost(3.1, balance=True), [4, 5, 3], set()) == [4, 5, 3], "alone the link takes no longer"
    assert serve(OnHost(0.01, balance=True), [4, 5, 3], set()) == [Host(4), Host(5), Host(3)]


@given(ratio=st.floats(0.01, 100), misses=st.integers(0, 9))
def test_no_other_split_ends_sooner(ratio, misses):
    host = OnHost(ratio, balance=True).share(misses)
    ends = [max(n * ratio, misses - n) for n in range(misses + 1)]
    assert ends[host] == min(ends)
    assert OnHost(ratio).share(misses) in (0, misses)


def test_what_another_policy_leaves_absent_is_the_hosts():
    """Scores 0.30 0.22 0.20 0.16: expert 3 stands in for 2 and is there; 0 is too good to be replaced."""
    view = SimpleNamespace(
        at=0, resident=lambda layer: [1, 3], scores=lambda layer: [0.30, 0.22, 0.20, 0.16, 0.08, 0.04]
    )
    policy = OnHost(0.5, before=NearScore(0.3))
    assert serve(policy, [0, 1, 2], {1, 3}, view) == [Host(0), 1, 3]
    assert not policy.lossless and OnHost(0.5).lossless
    assert policy == OnHost(0.5, before=NearScore(0.3)) and hash(policy) != hash(OnHost(0.5))


def test_the_popular_ones_are_placed_and_the_rest_passes_through_what_is_left():
    counts = Popularity([[1, 9, 3, 9], [0, 0, 5, 1]])
    assert [Popular(counts).placed(layer, 3) for layer in (0, 1)] == [[1, 3], [2, 3]]
    assert Popular(counts).placed(0, 1) == [] and Popular(counts, room=2).placed(0, 3) == [1]
    cache = Cache(2, 4, np.array([3]), Popular(counts))
    assert [cache.residents(layer) for layer in (0, 1)] == [[1, 3], [2, 3]]
    scheduler = Scheduler(cache, SimulatedLink(VirtualClock(), 2, 3, np.array([FETCH])))
    for ids in ([0, 2, 1], [2], [0, 2, 3, 1]):
        given = [who for wave in scheduler.request(0, np.array([ids]), np.full((1, len(ids)), WORK)) for who, _ in wave]
        assert sorted(given) == sorted(ids) and cache.residents(0)[:2] == [1, 3]
    scheduler.want([Wanted(0, (0, 2)), Wanted(1, (0, 1))])
    scheduler.link.elapse(9)
    scheduler.pump()
    assert [cache.residents(layer)[:2] for layer in (0, 1)] == [[1, 3], [2, 3]]
    assert {copy.slot for copy in scheduler.take_copies()} == {2}
    cache.clear()
    assert cache.residents(0) == [1, 3] and cache.residents(1) == [2, 3]


def test_popularity_counts_prompts_and_texts_or_sums_their_weights():
    ids = np.array([[[0, 1]], [[0, 2]], [[0, 1]]])  # [T, L, K]
    trace = Trace.from_routing(ids, num_experts=3, scores=np.array([[[0.9, 0.1]], [[0.6, 0.4]], [[0.8, 0.2]]]))
    assert Popularity.from_trace(trace).counts.tolist() == [[3, 2, 1]]
    assert Popularity.from_trace(trace, by_weight=True).counts[0] == pytest.approx([2.3, 0.3, 0.4])
    for request, done in enumerate(trace.passes):
        done.request = request
    assert Popularity.from_trace(trace, latest=2).counts.tolist() == [[2, 1, 1]]


def test_fields_that_cannot_be_are_refused():
    for ratio in (0, -1, float("nan"), "fast", None):
        with refused("OnHost.ratio", kinds=(ValueError, TypeError)):
            OnHost(ratio)
    with refused("OnHost.balance"):
        OnHost(1, balance=0.5)
    with refused("OnHost.before"):
        OnHost(1, before=NearScore)
    with refused("Popular.counts must be a Popularity"):
        Popular(np.ones((2, 4)))
    with refused("Popular.room"):
        Popular(Popularity(np.ones((2, 4))), room=0)
    for counts in (np.ones(4), -np.ones((2, 4)), [[np.nan]]):
        with refused("counts must be"):
            Popularity(counts)
    with (
        refused("knows 1 layers", kinds=MobileError),
        offload(make(), systems.fiddler(Popularity([[1] * 8]), 0.5, slots=3)),
    ):
        pass
    with refused("must place fewer than 3", kinds=MobileError):
        Cache(1, 8, np.array([3]), SimpleNamespace(placed=lambda layer, slots: [0, 1, 9], score=None))


# -- time ----------------------------------------------------------------------------------------------------------


def machine(slots=4, *, layers=1):
    return Scheduler(
        Cache(layers, 8, np.array([slots]), LRU()), SimulatedLink(VirtualClock(), layers, slots, np.array([FETCH]))
    )


def ask(scheduler, *ids, host=0, layer=0):
    if host:
        scheduler.on_host(layer, host, host * HOST)
    return list(scheduler.request(layer, np.array([ids], dtype=int).reshape(1, -1), np.full((1, len(ids)), WORK)))


def test_a_layer_ends_when_link_device_and_host_have_ended():
    scheduler = machine()
    assert ask(scheduler, 5, host=2) == [[(5, 0)]]
    assert scheduler.link.clock.read() == FETCH + WORK, "two on the host took as long as the copy, and it was beside"
    ask(scheduler, 5, host=3)
    assert scheduler.link.clock.read() == FETCH + WORK + 3 * HOST, "one after the other, beside the hit"
    assert ask(scheduler, host=1) == [] and scheduler.link.clock.read() == FETCH + WORK + 4 * HOST
    counts = {name: int(count.sum()) for name, count in scheduler.counts.items()}
    assert counts["requests"] == 8 and (counts["hits"], counts["misses"], counts["host"]) == (1, 1, 6)
    assert scheduler.cache.residents(0) == [5], "what the host computed is not on the device"


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 7), unique=True, max_size=4), st.integers(0, 3)), min_size=1, max_size=12
    ),
    st.integers(1, 5),
)
def test_host_work_beside_the_rest_is_never_slower_than_in_sequence(asks, slots):
    """Nor faster than either alone; and it changes no hit, miss or resident (laws 3 and 7)."""
    both, alone = machine(slots), machine(slots)
    hosted = 0
    for ids, host in asks:
        before, device = both.link.clock.read(), alone.link.clock.read()
        ask(both, *ids, host=host)
        ask(alone, *ids)
        device, took = alone.link.clock.read() - device, both.link.clock.read() - before
        hosted += host
        assert took == pytest.approx(max(device, host * HOST)), "nothing is under way between layers here"
    assert alone.link.clock.read() - 1e-9 <= both.link.clock.read() <= alone.link.clock.read() + hosted * HOST + 1e-9
    same = ("hits", "misses", "late", "wasted")
    assert {name: both.counts[name].tolist() for name in same} == {name: alone.counts[name].tolist() for name in same}
    assert both.cache.residents(0) == alone.cache.residents(0)
    assert (both.counts["hits"] + both.counts["misses"] + both.counts["host"] == both.counts["requests"]).all()


CARD = Hardware("card", 10, 500, 50, 16, link_latency_s=1e-5, launch_s=0, host_gb_per_s=40, host_tflops=1)


def test_the_host_takes_the_larger_of_reading_and_multiplying_and_two_latencies():
    size = Geometry.of("olmoe-1b-7b")
    costs = Costs(CARD, size, 16)
    assert costs.host_s() == pytest.approx(size.expert_bytes / 40e9 + 2e-5)
    assert costs.host_s(1000) == pytest.approx(2 * 1000 * size.expert_params / 1e12 + 2e-5)
    assert Costs(CARD, size, 4).host_s() == pytest.approx(4 * costs.host_s())
    assert costs.host_ratio() == costs.host_s() / (costs.fetch_s + costs.expert_s()) < 0.3
    assert Costs(CARD, size, 4).host_ratio() == pytest.approx(costs.host_ratio())
    assert costs.host_ratio(1000) > 1 > costs.host_ratio(10), "there is a crossover"
    assert OnHost.of(CARD, size, balance=True) == OnHost(costs.host_ratio(), balance=True, crossover=costs.crossover())
    for field in ("host_gb_per_s", "host_tflops"):
        with refused(f"Hardware.{field}", kinds=ValueError):
            Hardware("none", 1, 1, 1, 1, **{field: 0})


def test_this_machines_host_can_be_read():
    found = measure_host()
    assert found.keys() == {"host_gb_per_s", "host_tflops"}
    assert 0.1 < found["host_gb_per_s"] < 2000 and 0.001 < found["host_tflops"] < 200


# -- really computed -----------------------------------------------------------------------------------------------


class Files:
    """What a disk would hold, in memory."""

    def __init__(self, arena):
        self.layout, self.blocks, self.reads, self.busy = arena.layout, arena.blocks, 0, False

    def read(self, expert, block):
        assert not self.busy, "one file, one reader at a time"
        self.busy = True
        time.sleep(0.01)
        self.reads += 1
        block.copy_(self.blocks[expert])
        self.busy = False


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
def test_experts_are_computed_from_the_arena_or_from_their_files(name):
    layer = find_layers(make(name))[0]
    size = make(name).config.hidden_size
    hidden, weights = torch.randn(2, size), torch.rand(2, 3)
    wanted = layer.experts(hidden, torch.tensor([[5, 0, 6]] * 2), weights)
    arena = Arena(layer.experts, layer.num_experts)
    files = Files(arena)
    for place in (arena, DiskArena(files, layer.num_experts, 0), DiskArena(files, layer.num_experts, 0, HostCache(1))):
        on_host = HostExperts(layer.experts, place)
        assert gap(on_host(hidden, [5, 0, 6], weights), wanted) < 1e-5
        assert gap(on_host(hidden[:1], [5, 0, 6], weights[:1]), wanted[:1]) < 1e-5
    assert files.reads == 6 + 3
    blocks = torch.empty(4, arena.layout.numel)
    with ThreadPoolExecutor(4) as pool:  # as the link's thread and the host do
        list(pool.map(DiskArena(files, layer.num_experts, 0).copy_to, range(4), blocks))
    assert torch.equal(blocks, arena.blocks[:4])


def popularity(model):
    with offload(model, systems.on_demand(slots=4)) as engine:
        engine.generate(prompt(9, seed=3), max_new_tokens=9, **GREEDY)
    return Popularity.from_trace(engine.trace)


@every_architecture
def test_fiddler_writes_what_the_full_model_writes_and_its_device_never_changes(name):
    """Laws 1 and 3: nothing is copied once the prompt is read, and the popular ones are there, bit for bit."""
    model, ids = make(name), prompt(seed=2)
    wanted = model.generate(
        ids,
        max_new_tokens=NEW,
        output_logits=True,
        return_dict_in_generate=True,
        attention_mask=torch.ones_like(ids),
        **GREEDY,
    )
    popular = popularity(model)
    for slots in (1, 3):
        with offload(model, systems.fiddler(popular, 0.5, crossover=slots - 1, slots=slots)) as engine:
            out = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
            server = engine._server
            for layer, arena in enumerate(server.arenas):
                named = sorted(range(EXPERTS), key=lambda e: -popular.counts[layer][e])[: slots - 1]
                assert server.scheduler.cache.residents(layer)[: slots - 1] == named
                for slot, expert in enumerate(server.scheduler.cache.residents(layer)):
                    assert torch.equal(server._slots[layer].blocks[slot], arena.blocks[expert])
        report, size = engine.report(), engine.trace.conditions["expert_bytes"]
        assert out.token_ids == wanted.sequences[0, ids.shape[1] :].tolist()
        assert gap(torch.cat(out.logits), torch.cat(wanted.logits)) < 1e-5
        assert not any(done.copies or done.misses.any() for done in engine.trace.passes[1:])
        assert (out.steps[0].host > 0) == (slots > 1), "some experts are asked for by one or two tokens of the prompt"
        assert (report.hits + report.misses + report.host == report.requests).all() and report.host.sum() > 0
        assert sum(step.host for step in out.steps) == report.host.sum()
        assert sum(step.bytes_moved for step in out.steps) == report.misses.sum() * size


def run(model, config, **words):
    with offload(model, config, hardware=CARD, geometry="olmoe-1b-7b", **words) as engine:
        return engine, engine.generate(prompt(seed=2), max_new_tokens=2 * NEW, **GREEDY)


def test_where_the_host_is_faster_than_the_link_it_saves_time_and_a_split_saves_more():
    """Simulated, OLMoE's size: an expert takes 0.33 ms on this host and 1.27 ms over this link."""
    model = make()
    times = {}
    for miss in (None, OnHost.of(CARD, Geometry.of("olmoe-1b-7b")), OnHost(0.27, balance=True), OnHost(3.0)):
        config = MobileConfig(slots=2) if miss is None else MobileConfig(slots=2, miss=miss)
        out = run(model, config)[1]
        assert out.token_ids == plain(model, prompt(seed=2), 2 * NEW)
        times[miss] = sum(step.seconds for step in out.steps[1:])
    waits, fiddles, splits, never = times.values()
    assert waits == never and fiddles < 0.5 * waits and splits < 0.5 * waits


def test_a_recording_that_waited_is_replayed_with_its_misses_on_the_host_and_back():
    """Loss-free, so the routing is the same: the replay is the live run, to the last bit of time (law 6)."""
    model = make()
    popular = popularity(model)
    configs = [systems.on_demand(slots=3), systems.fiddler(popular, 0.5, slots=3)]
    configs += [
        MobileConfig(slots=3, miss=OnHost(0.5, balance=True), prefetch=policy) for policy in (configs[0].prefetch,)
    ]
    runs = [run(model, config)[0] for config in configs]
    for recorded in runs:
        for config, live in zip(configs, runs, strict=True):
            again = replay(recorded.trace, config, hardware=CARD)
            facts = [
                [(p.begin, p.end, p.copies, p.hits.tolist(), p.misses.tolist()) for p in t.passes]
                for t in (again.trace, live.trace)
            ]
            assert facts[0] == facts[1]
    assert len({one.trace.passes[-1].end for one in runs}) == 3
    lossy = MobileConfig(slots=3, miss=OnHost(0.5, before=NearScore()))
    with refused("cannot change miss"):
        replay(runs[0].trace, lossy)


def test_the_split_of_near_scores_is_the_systems_choice():
    assert systems.smoe(0.3, host=0.5).miss == OnHost(0.5, balance=True, before=NearScore(0.3))
    assert systems.smoe(0.3).miss == NearScore(0.3)


def test_a_fixed_subset_serves_every_token_that_fits_without_a_fetch():
    """PreMoe and eMoE: six of eight for good and one that came last; four are asked for, so somebody is always free."""
    model = make()
    popular = popularity(model)
    for config in (systems.premoe(popular, slots=7), systems.emoe(popular, slots=7)):
        engine = run(model, config)[0]
        assert not any(done.copies for done in engine.trace.passes[1:]) and not config.lossless
        with offload(model, config) as engine:  # a text that was cut short, and a change, leave the placement
            stream = engine.stream(prompt(), max_new_tokens=NEW, **GREEDY)
            next(stream)
            stream.close()
            engine.change(config)
            engine.generate(prompt(seed=2), max_new_tokens=NEW, **GREEDY)
            cache, server = engine._server.scheduler.cache, engine._server
            for layer, arena in enumerate(server.arenas):
                assert cache.residents(layer)[:6] == Popular(popular).placed(layer, 7)
                for slot, expert in enumerate(cache.residents(layer)):
                    assert torch.equal(server._slots[layer].blocks[slot], arena.blocks[expert])


def test_what_the_host_computes_has_a_lane_of_its_own():
    engine = run(make(), MobileConfig(slots=2, miss=OnHost(0.5)))[0]
    rows = metrics.spans(engine.trace, steps=[2])
    drawn = figures.timeline(rows).data
    (bars,) = [bar for bar in drawn if bar.name == "experts on the host"]
    assert set(bars.y) == {"host"} and len(bars.x) == (rows.what == "host").sum() > 0
    assert "on the host" in html.details(Step(1, "", "big", 0.5, 0.1, 0, 1, 0, host=3))
