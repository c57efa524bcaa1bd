"""The link on a thread: real copies that take real, random time, on any machine."""

import random
import time

import pytest
from helpers import plain, prompt

import mobile_nb.runtime.offloaded as offloaded
from mobile_nb import MobileConfig, MobileError, offload, systems
from mobile_nb.memory.thread import ThreadLink
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import OnHost


@pytest.fixture
def threaded(monkeypatch):
    """`offload` with a ThreadLink; returns a function that sets what happens before each copy."""
    before = [lambda: None]

    def make(clock, layers, slots, fetch_s, mover):
        def move(layer, expert, slot):
            before[0]()
            mover(layer, expert, slot)

        return ThreadLink(layers, slots, move)

    monkeypatch.setattr(offloaded, "SimulatedLink", make)
    return lambda action: before.__setitem__(0, action)


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize(
    "config",
    [
        *(systems.on_demand(), systems.next_gate(), systems.mobile(gamma=1.1)),
        systems.on_demand(miss=OnHost(1.0, balance=True)),
        systems.on_demand(miss=OnHost(1.0, crossover=3)),
    ],
    ids=["on-demand", "next gate", "always rewriting", "half on the host", "prompts on the host"],
)
def test_slow_copies_never_change_tokens(threaded, config, slots):
    coin = random.Random(slots)
    threaded(lambda: time.sleep(0.002 * coin.random()))
    model, ids = random_model("olmoe"), prompt(12)
    expected = plain(model, ids, 10)
    config = MobileConfig(**(vars(config) | {"slots": slots}))
    with offload(model, config) as engine:
        generation = engine.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None)
        assert engine.measured
        copies = engine.trace.to_frame("copies")
    assert generation.token_ids == expected
    assert sum(step.seconds for step in generation.steps) >= (copies["end"] - copies["begin"]).sum() * 0.5
    assert (copies["begin"].to_numpy()[1:] >= copies["end"].to_numpy()[:-1]).all(), "one copy at a time, in order"


def test_a_copy_that_fails_is_one_sentence_and_loses_nothing(threaded):
    model, ids = random_model("olmoe"), prompt(12)
    expected = plain(model, ids, 4)
    left = [40]

    def fail_later():
        left[0] -= 1
        if left[0] == 0:
            raise OSError("the disk is gone")

    threaded(fail_later)
    with offload(model, systems.on_demand(slots=2)) as engine:
        with pytest.raises(MobileError, match=r"an expert could not be read .*the disk is gone.*\.$"):
            engine.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None)
        assert len(engine.trace.passes) > 0
        again = engine.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert again.token_ids == expected
    assert plain(model, ids, 4) == expected


def test_a_copy_that_failed_does_not_hold_up_those_after_it():
    def fails(layer, expert, slot):
        raise OSError("the file went away")

    link, one = ThreadLink(1, 4, fails), [0]
    try:
        for slot in range(link.window):
            link.fetch(one, 0, one, [slot], None)
        for ticket in link._under_way:
            ticket.times()
        assert link.can_start(None).all()
        with pytest.raises(MobileError, match="went away"):
            link.compute(one, 0, one, None)
    finally:
        link.close()
