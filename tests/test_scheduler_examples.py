"""What scheduler, cache and link promise in words, each on the smallest case that shows it."""

from dataclasses import dataclass

import numpy as np
import pytest
from helpers import refused

from mobile_nb.clock import VirtualClock, WallClock
from mobile_nb.memory.cache import Cache
from mobile_nb.memory.link import SimulatedLink
from mobile_nb.memory.scheduler import Scheduler
from mobile_nb.memory.wall import WallLink
from mobile_nb.policies import LRU
from mobile_nb.vocabulary import MobileError, Wanted

FETCH, WORK = 1.0, 0.25  # seconds of a copy, of an expert's computation


def machine(slots, *, layers=3, experts=8, evict=None):
    cache = Cache(layers, experts, np.array([slots]), LRU() if evict is None else evict)
    return Scheduler(cache, SimulatedLink(VirtualClock(), layers, slots, np.array([FETCH])))


def ask(scheduler, layer, *ids):
    """Serves one token; returns its waves."""
    return list(scheduler.request(layer, np.array([ids]), np.full((1, len(ids)), WORK)))


def copies(scheduler):
    return [(c.kind, c.layer, c.expert, c.begin, c.end) for c in scheduler.take_copies()]


def test_a_miss_is_copied_and_computed_when_it_lands_and_a_hit_at_once():
    scheduler = machine(3)
    assert ask(scheduler, 0, 5) == [[(5, 0)]]
    assert scheduler.link.clock.read() == FETCH + WORK
    ask(scheduler, 0, 6, 5)  # 5 is there: computed while 6 is on its way
    assert scheduler.link.clock.read() == (FETCH + WORK) + (FETCH + WORK)


def test_a_demand_overtakes_prefetches_that_have_not_started():
    scheduler = machine(4)
    scheduler.want([Wanted(1, (1, 2, 3))])  # the first starts, the others wait for the link
    ask(scheduler, 0, 7)
    ask(scheduler, 1, 1, 2)
    kinds = [(kind, layer, expert) for kind, layer, expert, _, _ in copies(scheduler)]
    assert kinds == [("prefetch", 1, 1), ("demand", 0, 7), ("prefetch", 1, 2)]  # and 3 comes too late


class ByHand(WallLink):
    """A real link whose copies are over when somebody waits for a later one."""

    def _start(self, layer, expert, slot):
        self.begun.append((layer, expert))
        return Landed(len(self.begun), self)

    def _wait(self, ticket):
        self.landed = max(self.landed, ticket.number)


@dataclass
class Landed:
    number: int
    link: ByHand

    def over(self):
        return self.link.landed >= self.number

    ended = over


def test_a_real_link_gets_prefetches_while_arrivals_are_computed():
    """It would run dry, were they only handed out when the next layer asks."""
    link = ByHand(2, 4, None)
    link.begun, link.landed, link.window = [], 0, 2
    scheduler = Scheduler(Cache(2, 8, np.array([4]), LRU()), link)
    scheduler.want([Wanted(1, (0, 1, 2, 3))])
    assert link.begun == [(1, 0), (1, 1)]
    waves = scheduler.request(0, np.array([[5, 6]]), np.full((1, 2), WORK))
    assert next(waves) == [(5, 0)] and link.begun[2:] == [(0, 5), (0, 6)]  # on demand first
    assert next(waves) == [(6, 1)] and link.begun[4:] == [(1, 2), (1, 3)]  # 5 has landed, and so have both before it
    assert list(waves) == [] and not link.begun[6:]


@pytest.mark.parametrize("real", [False, True])
def test_nobody_makes_room_for_one_who_is_wished_for_with_him(real):
    """Expert 3 has not been read for longest, and its wish comes after that of expert 7, for whom there is no slot."""
    link = ByHand(2, 4, None) if real else SimulatedLink(VirtualClock(), 2, 4, np.array([FETCH]))
    link.begun, link.landed = [], 0
    scheduler = Scheduler(Cache(2, 8, np.array([4]), LRU()), link)
    for expert in (3, 2, 1, 0):
        list(scheduler.request(1, np.array([[expert]]), np.full((1, 1), WORK)))
    scheduler.begin_pass()
    scheduler.take_copies()
    scheduler.want([Wanted(1, (0, 1, 7, 3))])
    assert sorted(scheduler.cache.residents(1)) == [0, 1, 3, 7]
    assert [(copy.expert, copy.evicted) for copy in scheduler.take_copies()] == [(7, 2)]


def test_a_demand_overtakes_also_where_experts_take_turns():
    """One slot, a hit and a miss: what is wanted for later layers must not slip in between the two."""
    scheduler = machine(1)
    ask(scheduler, 0, 4)
    scheduler.take_copies()
    waves = scheduler.request(0, np.array([[4, 5]]), np.full((1, 2), WORK))
    assert next(waves) == [(4, 0)]
    scheduler.want([Wanted(1, (6,))])
    assert list(waves) == [[(5, 0)]]
    scheduler.pump()
    assert [kind for kind, *_ in copies(scheduler)] == ["demand", "prefetch"]


def test_prefetches_fill_the_time_of_the_layers_before():
    scheduler = machine(3)
    scheduler.want([Wanted(2, (1, 2))])
    scheduler.link.elapse(1.5)
    ask(scheduler, 2, 1, 2)
    assert copies(scheduler) == [("prefetch", 2, 1, 0.0, 1.0), ("prefetch", 2, 2, 1.0, 2.0)]
    assert scheduler.link.clock.read() == 2.0 + WORK
    counts = {name: int(count.sum()) for name, count in scheduler.counts.items()}
    assert counts == {
        "requests": 2,
        "hits": 2,
        "late": 1,
        "misses": 0,
        "prefetches": 2,
        "used": 2,
        "wasted": 0,
        "host": 0,
    }


def test_what_has_not_started_when_its_layer_comes_is_dropped():
    scheduler = machine(3)
    scheduler.want([Wanted(0, (1, 2, 3))])
    ask(scheduler, 0, 5)
    scheduler.link.elapse(100)
    scheduler.pump()
    assert [expert for _, _, expert, _, _ in copies(scheduler)] == [1, 5]


def test_a_new_pass_forgets_what_was_queued():
    scheduler = machine(3)
    scheduler.want([Wanted(1, (1, 2))])
    scheduler.begin_pass()
    scheduler.link.elapse(100)
    scheduler.pump()
    assert [expert for _, _, expert, _, _ in copies(scheduler)] == [1]


def test_what_is_there_or_wanted_twice_is_copied_once():
    scheduler = machine(4)
    ask(scheduler, 1, 3)
    scheduler.want([Wanted(1, (3, 4, 4)), Wanted(1, (4, 3))])
    scheduler.link.elapse(100)
    scheduler.pump()
    assert [expert for _, _, expert, _, _ in copies(scheduler)] == [3, 4]


def test_prefetches_do_not_evict_each_other_but_a_demand_may():
    scheduler = machine(2)
    scheduler.want([Wanted(1, (1, 2, 3))])
    scheduler.link.elapse(100)
    scheduler.pump()
    assert scheduler.cache.residents(1) == [1, 2]
    ask(scheduler, 1, 3)
    assert 3 in scheduler.cache.residents(1)
    assert scheduler.counts["wasted"].sum() == 1


def test_a_resident_that_is_wanted_again_is_not_evicted_by_the_prefetch_after_it():
    scheduler = machine(2)
    ask(scheduler, 1, 1)
    ask(scheduler, 1, 2)  # 1 is the least recent now
    scheduler.begin_pass()
    scheduler.want([Wanted(1, (1, 3))])
    scheduler.link.elapse(100)
    scheduler.pump()
    assert sorted(scheduler.cache.residents(1)) == [1, 3]


def test_the_layer_at_hand_is_not_prefetched_into():
    scheduler = machine(2)
    waves = scheduler.request(0, np.array([[1, 2]]), np.full((1, 2), WORK))
    assert next(waves) == [(1, 0), (2, 1)]
    scheduler.link.elapse(100)
    scheduler.want([Wanted(0, (5, 6))])
    assert list(waves) == []
    assert scheduler.cache.residents(0) == [1, 2]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_with_fewer_slots_than_experts_they_take_turns(slots):
    scheduler = machine(slots)
    waves = ask(scheduler, 0, 7, 3, 5, 1)
    given = [expert for wave in waves for expert, _ in wave]
    assert sorted(given) == [1, 3, 5, 7]
    assert all(len({slot for _, slot in wave}) == len(wave) <= slots for wave in waves)
    assert scheduler.counts["misses"].sum() == 4
    last = FETCH * 4 + WORK * (4 if slots == 1 else 1)  # alone in its slot, a copy must wait for the computation before
    assert scheduler.link.clock.read() >= last


def test_residents_are_served_before_a_miss_may_take_their_slot():
    """Two slots, two hits and a miss: the miss is last in the request and first in rank, and evicts nobody in need."""
    scheduler = machine(2)
    ask(scheduler, 0, 1, 2)
    waves = ask(scheduler, 0, 6, 1, 2)
    assert waves[0] == [(1, 0), (2, 1)] and waves[1][0][0] == 6
    assert scheduler.counts["hits"].sum() == 2


def test_room_for_everybody_means_full_from_the_start():
    scheduler = machine(8)
    assert scheduler.settled(0) and scheduler.cache.residents(0) == list(range(8))
    assert ask(scheduler, 0, 6, 1) == [[(6, 6), (1, 1)]]
    assert copies(scheduler) == []


def test_a_config_without_a_request_waits_for_nobody():
    cache = Cache(1, 8, np.array([2, 2]), LRU())
    scheduler = Scheduler(cache, SimulatedLink(VirtualClock(2), 1, 2, np.array([FETCH, FETCH])), record=False)
    list(scheduler.request(0, np.array([[-1], [4]]), np.array([WORK])))
    assert scheduler.link.clock.now.tolist() == [0, FETCH + WORK]
    assert scheduler.counts["requests"][:, 0].tolist() == [0, 1]


STRANGE = [
    [Wanted(0, (8,))],
    [Wanted(0, (-1,))],
    [Wanted(3, (0,))],
    [Wanted(-1, (0,))],
    [Wanted(0, (1.5,))],
    [(0, 1)],
    [7],
    7,
]


@pytest.mark.parametrize("wanted", STRANGE, ids=repr)
def test_what_does_not_exist_cannot_be_wanted(wanted):
    scheduler = machine(2)
    with refused("Wanted(layer, experts)", "0 to 2", "0 to 7", kinds=MobileError):
        scheduler.want(wanted)
    assert scheduler.cache.residents(0) == [] and copies(scheduler) == []


def test_virtual_time_only_goes_forward():
    clock = VirtualClock(2)
    clock.advance(1)
    clock.advance_to(np.array([0.5, 3.0]))
    assert clock.now.tolist() == [1, 3] and clock.read() == 1
    with refused("backwards"):
        clock.advance(-1e-9)
    wall = WallClock()
    assert wall.measured and not clock.measured
    assert 0 <= wall.read() <= wall.read()
