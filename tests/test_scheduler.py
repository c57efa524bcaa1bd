"""Scheduler, cache and simulated link against a naive second opinion, on drawn programs of passes and prefetches."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from naive import Naive

from mobile_nb.clock import VirtualClock
from mobile_nb.memory.cache import Cache
from mobile_nb.memory.link import SimulatedLink
from mobile_nb.memory.scheduler import COUNTERS, Scheduler
from mobile_nb.policies import LFU, LRU
from mobile_nb.vocabulary import Wanted

UNIT = 1 / 64  # seconds; sums of multiples of it are exact
calm = settings(derandomize=True, deadline=None, max_examples=50)


@dataclass(frozen=True)
class Program:
    """Passes: (wanted before it, layers). Layers: (elapsed, ids, seconds, wanted in mid-layer, wanted after it).

    `slots`, `fetch`, ids and what is wanted between layers have an entry for each configuration.
    """

    layers: int
    experts: int
    slots: tuple[int, ...]
    fetch: tuple[float, ...]
    passes: list


@st.composite
def programs(draw, configs=1):
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(2, 7))
    ids = st.lists(st.integers(0, experts - 1), unique=True, max_size=min(5, experts))
    pair = st.tuples(st.integers(0, layers - 1), st.integers(0, experts - 1))
    wanted = st.lists(pair, max_size=4)
    time = st.integers(0, 6).map(UNIT.__mul__)

    def row(strategy):
        return st.tuples(*[strategy] * configs)

    layer = st.tuples(time, row(ids), st.lists(time, min_size=5, max_size=5), wanted, row(wanted))
    one = st.tuples(row(wanted), st.lists(layer, min_size=layers, max_size=layers))
    return Program(
        layers,
        experts,
        draw(row(st.integers(1, experts + 1))),
        draw(row(st.integers(1, 9).map(UNIT.__mul__))),
        draw(st.lists(one, min_size=1, max_size=7)),
    )


@dataclass(frozen=True)
class MostRecent:
    """The worst rule there is: whoever was asked for last leaves first."""

    def score(self, history):
        return -history.last_used


class Device:
    """A fake device: what the mover really put where."""

    def __init__(self):
        self.holds = {}

    def __call__(self, layer, expert, slot):
        self.holds[layer, slot] = expert


def machine(program, evict, *, only=None, mover=None):
    slots = np.array(program.slots if only is None else program.slots[only : only + 1])
    fetch = np.array(program.fetch if only is None else program.fetch[only : only + 1])
    slots = np.minimum(slots, program.experts)
    cache = Cache(program.layers, program.experts, slots, evict)
    link = SimulatedLink(VirtualClock(len(slots)), program.layers, int(slots.max()), fetch, mover)
    return Scheduler(cache, link, record=len(slots) == 1)


def as_wanted(pairs):
    return [Wanted(layer, (expert,)) for layer, expert in pairs]


def run(program, scheduler, config=0, *, watch=None):
    """Drives a machine of one configuration through row `config` of a program; yields after each layer."""
    for begin, layers in program.passes:
        scheduler.begin_pass()
        scheduler.want(as_wanted(begin[config]))
        for layer, (elapsed, ids, seconds, between, after) in enumerate(layers):
            scheduler.link.elapse(elapsed)
            ids = ids[config]
            first, given_out = True, []
            for wave in scheduler.request(layer, np.array([ids], dtype=np.int64), np.array([seconds[: len(ids)]])):
                if first:
                    scheduler.want(as_wanted(between))
                first = False
                given_out += wave
                for expert, slot in wave:
                    assert scheduler.cache.expert_in[0, layer, slot] == expert
                    if watch is not None:
                        assert watch.holds.get((layer, slot), slot) == expert, "the slot holds another expert's weights"
            assert sorted(expert for expert, _ in given_out) == sorted(ids), "each asked expert is computed once"
            scheduler.want(as_wanted(after[config]))
            yield layer


def run_naive(program, naive, config=0):
    for begin, layers in program.passes:
        naive.begin_pass()
        naive.want(begin[config])
        for layer, (elapsed, ids, seconds, between, after) in enumerate(layers):
            naive.elapse(elapsed)
            naive.request(layer, ids[config], seconds[: len(ids[config])], between)
            naive.want(after[config])
            yield layer


def check_same(scheduler, naive):
    assert scheduler.link.clock.read() == naive.now
    cache = scheduler.cache
    for layer, slots in enumerate(naive.slots):
        assert [int(e) for e in cache.expert_in[0, layer]] == [-1 if s.expert is None else s.expert for s in slots]
        for expert in range(cache.experts):
            assert cache.slot_of[0, layer, expert] == (-1 if (at := naive.find(layer, expert)) is None else at)
    assert {name: scheduler.counts[name][0].tolist() for name in COUNTERS} == naive.counts


@pytest.mark.parametrize(("evict", "rule"), [(LRU(), "lru"), (LFU(), "lfu")], ids=["lru", "lfu"])
@given(program=programs())
@calm
def test_every_event_is_that_of_the_naive_machine(evict, rule, program):
    device = Device()
    scheduler = machine(program, evict, mover=device)
    slots = min(program.slots[0], program.experts)
    naive = Naive(program.layers, program.experts, slots, program.fetch[0], rule)
    for _ in zip(run(program, scheduler, watch=device), run_naive(program, naive), strict=True):
        check_same(scheduler, naive)
    names = ("kind", "layer", "expert", "slot", "evicted", "begin", "end")
    assert [tuple(getattr(copy, name) for name in names) for copy in scheduler.take_copies()] == naive.copies


@given(program=programs())
@calm
def test_the_worst_eviction_rule_breaks_nothing(program):
    device = Device()
    scheduler = machine(program, MostRecent(), mover=device)
    before = 0.0
    for _ in run(program, scheduler, watch=device):
        assert scheduler.link.clock.read() >= before
        before = scheduler.link.clock.read()
        for layer in range(program.layers):
            residents = scheduler.cache.residents(layer)
            assert len(residents) == len(set(residents)) <= program.slots[0]
    counts, copies = scheduler.counts, scheduler.take_copies()
    assert (counts["hits"] + counts["misses"] == counts["requests"]).all()
    assert (counts["late"] <= counts["hits"]).all()
    assert (counts["used"] + counts["wasted"] <= counts["prefetches"]).all()
    assert (counts["misses"] + counts["prefetches"]).sum() == len(copies)
    for one, after in itertools.pairwise(copies):
        assert one.end <= after.begin
    assert all(copy.end - copy.begin == program.fetch[0] for copy in copies)
    assert scheduler.link.copying_s[0] == sum(copy.end - copy.begin for copy in copies)


@given(program=programs(configs=3))
@calm
def test_three_configurations_at_once_are_three_runs_of_one(program):
    # Nothing is wanted in mid-layer: when that is depends on how many waves a configuration needs.
    passes = [(begin, [(e, i, s, (), a) for e, i, s, _, a in layers]) for begin, layers in program.passes]
    program = replace(program, passes=passes)
    together, alone = machine(program, LRU()), [machine(program, LRU(), only=c) for c in range(3)]
    runs = [run(program, alone[c], c) for c in range(3)]
    for begin, layers in program.passes:
        together.begin_pass()
        for c in range(3):
            together.want(as_wanted(begin[c]), rows=np.array([c]))
        for layer, (elapsed, ids, seconds, _, after) in enumerate(layers):
            together.link.elapse(elapsed)
            width = max(map(len, ids))
            padded = np.array([[*row, *[-1] * (width - len(row))] for row in ids]).reshape(3, width).astype(np.int64)
            waves = list(together.request(layer, padded, np.array(seconds[:width])))
            assert sorted(e for wave in waves for e, _ in wave) == sorted(ids[0])
            for c in range(3):
                together.want(as_wanted(after[c]), rows=np.array([c]))
            for c, single in enumerate(runs):
                next(single)
                assert together.link.clock.now[c] == alone[c].link.clock.now[0]
                assert together.link.free[c] == alone[c].link.free[0]
                mine = together.cache.expert_in[c][:, : alone[c].cache.expert_in.shape[2]]
                assert (mine == alone[c].cache.expert_in[0]).all()
                assert (together.cache.slot_of[c] == alone[c].cache.slot_of[0]).all()
                for name in COUNTERS:
                    assert (together.counts[name][c] == alone[c].counts[name][0]).all(), name


asked_sets = st.lists(st.lists(st.integers(0, 8), unique=True, min_size=1, max_size=4), min_size=1, max_size=30)


@given(requests=asked_sets)
@example([[0, 4, 3], [4, 3, 5], [5, 7, 3], [5], [3, 0, 6, 8], [0, 1, 2, 4], [1, 8, 2], [1], [7, 2]])
@calm
def test_more_slots_never_give_fewer_hits_under_lru(requests):
    """The stack property, where all that one token asks for fits at once."""
    hits = []
    for slots in (4, 5, 6, 7, 8):
        program = Program(1, 9, (slots,), (UNIT,), [])
        scheduler = machine(program, LRU())
        for ids in requests:
            for _ in scheduler.request(0, np.array([ids]), np.zeros((1, len(ids)))):
                pass
        hits.append(int(scheduler.counts["hits"].sum()))
    assert hits == sorted(hits)
