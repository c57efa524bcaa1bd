"""Laws 3 and 7: what moves is what was missed or prefetched, and never back; and time only goes forward."""

import itertools

import numpy as np
import pytest
import torch
from helpers import EXPERTS, GREEDY, Prefetcher, every_architecture, everything, guessing, make, middle_gamma, prompt

from mobile_nb import Hardware, MobileConfig, offload, systems
from mobile_nb.policies import LFU, LRU, Drop, EvictedRouter, NextGate, Nothing

NEW = 6
SLOW = Hardware("slow link", link_gb_per_s=2, memory_gb_per_s=500, tflops=50, device_gb=16)
PREFETCH = [Nothing(), NextGate(1), EvictedRouter(), Prefetcher(everything), Prefetcher(guessing(1))]


def written(model, config, *, n=NEW, **named):
    """An engine that has written one text, and the text."""
    with offload(model, config, **named) as engine:
        out = engine.generate(prompt(), max_new_tokens=n, **GREEDY)
    return engine, out


@every_architecture
@pytest.mark.parametrize("slots", [2, 5])
def test_every_byte_is_a_miss_or_a_prefetch(name, slots):
    model = make(name)
    prefetch = PREFETCH[(slots + len(name)) % len(PREFETCH)]
    config = systems.mobile(middle_gamma(model, prompt(), NEW), slots=slots, prefetch=prefetch)
    engine, out = written(model, config)
    report, passes = engine.report(), engine.trace.passes
    size = engine.trace.conditions["expert_bytes"]
    copies = [copy for done in passes for copy in done.copies]
    assert (report.hits + report.misses == report.requests).all()
    assert all((p.hits + p.misses == p.requests).all() for p in passes)
    assert all((p.late <= p.hits).all() for p in passes)
    assert (report.used + report.wasted <= report.prefetches).all()
    fetched = int((report.misses + report.prefetches).sum())
    assert fetched == len(copies) > 0
    assert report.misses.sum() == sum(copy.kind == "demand" for copy in copies)
    assert sum(step.bytes_moved for step in out.steps) == fetched * size
    assert report.gb_moved.sum() * 1e9 == pytest.approx(fetched * size)
    assert sum(step.misses for step in out.steps) == report.misses.sum()
    assert sum(step.hits for step in out.steps) == report.hits.sum()
    assert (report.resident <= slots).all() and (report.slots == slots).all()


@every_architecture
@pytest.mark.parametrize("inner", [24, 64])
def test_one_fetch_moves_one_padded_block(name, inner):
    field = "moe_intermediate_size" if name.startswith(("qwen", "deepseek")) else "intermediate_size"
    with offload(make(name, **{field: inner}).half(), systems.on_demand(slots=2)) as engine:
        blocks = engine._server.arenas[0].blocks
        assert engine.trace.conditions["expert_bytes"] == blocks[0].nbytes


@pytest.mark.parametrize("evict", [LRU(), LFU()], ids=["lru", "lfu"])
@pytest.mark.parametrize("prefetch", PREFETCH, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("slots", [1, 4])
def test_slots_hold_what_the_cache_says_at_every_step(slots, prefetch, evict):
    """Never more residents than slots, each of them bit for bit what lies in the arena, and the arena never written."""
    model = make()
    gamma = middle_gamma(model, prompt(), NEW)
    with offload(model, systems.mobile(gamma, slots=slots, prefetch=prefetch, evict=evict)) as engine:
        server, cache = engine._server, engine._server.scheduler.cache
        before = [arena.blocks.clone() for arena in server.arenas]
        for _ in engine.stream(prompt(), max_new_tokens=NEW, **GREEDY):
            for layer, arena in enumerate(server.arenas):
                residents = cache.residents(layer)
                assert len(residents) == len(set(residents)) <= slots
                for slot, expert in enumerate(cache.expert_in[0, layer]):
                    if expert >= 0:
                        assert torch.equal(server._slots[layer].blocks[slot], arena.blocks[expert])
                        assert cache.slot_of[0, layer, expert] == slot
                assert (cache.slot_of[0, layer] >= 0).sum() == len(residents)
        assert all(torch.equal(arena.blocks, old) for arena, old in zip(server.arenas, before))


def test_replaying_the_copies_gives_the_residents():
    """The trace alone says who is where: each copy names who left its slot."""
    engine, _ = written(make(), MobileConfig(slots=3, prefetch=NextGate(1)))
    slots = np.full((3, 3), -1)
    for copy in engine.trace.to_frame("copies").itertuples():
        assert slots[copy.layer, copy.slot] == copy.evicted
        slots[copy.layer, copy.slot] = copy.expert
    cache = engine._server.scheduler.cache
    assert [cache.residents(at) for at in range(3)] == [[e for e in row if e >= 0] for row in slots.tolist()]


def test_a_dropped_expert_is_not_asked_for():
    """With a lossy answer to misses, only what is really asked for counts, and at least one expert runs."""
    engine, _ = written(make(), MobileConfig(slots=3, miss=Drop()))
    for done in engine.trace.passes[1:]:
        assert (done.requests >= 1).all() and (done.requests <= 3).all()
        assert (done.misses == 0).all() or (done.requests == done.misses).any()


def test_everything_resident_moves_nothing():
    engine, out = written(make(), systems.mobile(gamma=1.1, slots=EXPERTS + 5))
    assert engine.slots == EXPERTS
    assert sum(step.bytes_moved for step in out.steps) == sum(step.misses for step in out.steps) == 0
    assert engine.report().hit_rate.eq(1).all()


# -- law 7 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [None, "olmoe-1b-7b"], ids=["own", "olmoe-1b-7b"])
@pytest.mark.parametrize("prefetch", PREFETCH, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("slots", [1, 4, 6])
def test_time_is_monotone_and_overlap_never_slower_than_sequence(slots, prefetch, geometry):
    model = make()
    gamma = middle_gamma(model, prompt(), NEW)
    named = {"hardware": SLOW, "geometry": geometry}
    engine, out = written(model, systems.mobile(gamma, slots=slots, prefetch=prefetch), **named)
    resident, alone = written(model, systems.mobile(gamma, slots=EXPERTS, prefetch=prefetch), **named)
    assert out.token_ids == alone.token_ids
    costs, passes = engine._server.costs, engine.trace.passes
    copies = [copy for done in passes for copy in done.copies]

    moments = [moment for done in passes for moment in (done.begin, done.end)]
    assert moments[0] == 0 and moments == sorted(moments)
    assert all(step.seconds > 0 for step in out.steps)
    assert sum(step.seconds for step in out.steps) == pytest.approx(passes[-1].end)

    for one, after in itertools.pairwise(copies):
        assert one.end <= after.begin, "two copies were on the link at once, or out of order"
    least = costs.expert_bytes / (SLOW.link_gb_per_s * 1e9)
    assert all(copy.end - copy.begin >= least * (1 - 1e-9) for copy in copies)
    for done in passes:
        assert all(copy.begin <= done.end for copy in done.copies)
        assert all(copy.end <= done.end for copy in done.copies if copy.kind == "demand")

    transfers = sum(copy.end - copy.begin for copy in copies)
    compute = resident.trace.passes[-1].end
    on_demand = sum(copy.end - copy.begin for copy in copies if copy.kind == "demand")
    assert max(compute, on_demand) <= passes[-1].end <= (compute + transfers) * (1 + 1e-9)


def test_slower_links_take_longer_and_change_nothing_else():
    model = make()
    links = [Hardware("link", gb, 500, 50, 16) for gb in (1, 4, 16)]
    runs = [written(model, systems.on_demand(slots=2), hardware=link, geometry="olmoe-1b-7b") for link in links]
    times = [engine.trace.passes[-1].end for engine, _ in runs]
    assert times == sorted(times, reverse=True) and len(set(times)) == 3
    assert len({tuple(out.token_ids) for _, out in runs}) == 1
    assert len({int(engine.report().misses.sum()) for engine, _ in runs}) == 1


def test_the_evicted_router_saves_time_when_everything_falls_back():
    """The headline's direction, where the link is the bottleneck: prefetched big passes beat those on demand."""
    times = {EvictedRouter(): 0.0, Nothing(): 0.0}
    for prefetch, slots in itertools.product(times, (4, 5, 6)):
        config = systems.mobile(gamma=1.1, slots=slots, prefetch=prefetch)
        times[prefetch] += written(make(), config, geometry="olmoe-1b-7b", n=12)[0].trace.passes[-1].end
    assert times[EvictedRouter()] < times[Nothing()]
