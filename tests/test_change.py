"""`Engine.change`: another configuration on another machine while the `with offload` block is open."""

import threading
from dataclasses import replace

import pytest
from helpers import EXPERTS, GREEDY, Snapshot, every_architecture, make, plain, prompt, refused

from mobile_nb import MobileError, offload, replay, systems
from mobile_nb.memory import store

NEW = 6


def write(engine, n=NEW):
    return engine.generate(prompt(), max_new_tokens=n, **GREEDY)


@every_architecture
def test_after_a_change_the_engine_is_one_that_was_offloaded_so(name):
    model, config = make(name), systems.mobile(gamma=1.1, slots=3)
    with offload(model, config, hardware="t4-colab") as engine:
        wanted, trace, report = write(engine), engine.trace, engine.report()
    before = Snapshot.of(model)
    with offload(model, systems.on_demand(slots=5)) as engine:
        write(engine)
        engine.change(config, hardware="t4-colab")
        assert (engine.gamma, engine.slots, engine.hardware.name) == (1.1, 3, "t4-colab")
        assert write(engine).steps == wanted.steps
        assert engine.trace == trace
        assert engine.report().equals(report)
        again = replay(engine.trace, config)
        assert [p.end for p in again.trace.passes] == [p.end for p in trace.passes]
    before.check(model)


@pytest.mark.parametrize("slots", [1, EXPERTS])
def test_what_is_not_named_stays(slots):
    model = make()
    with offload(model, systems.mobile(gamma=0.3, slots=slots), hardware="rtx3060-pcie3") as engine:
        engine.gamma = 0.9
        engine.change()
        assert (engine.gamma, engine.slots, engine.hardware.name) == (0.3, slots, "rtx3060-pcie3")
        engine.change(hardware="t4-colab")
        assert (engine.config.slots, engine.hardware.name) == (slots, "t4-colab")
        engine.change(systems.on_demand(slots=2))
        assert (engine.gamma, engine.slots, engine.hardware.name) == (None, 2, "t4-colab")
        assert write(engine).token_ids == plain(make(), prompt(), NEW)


def test_a_change_in_mid_text_is_refused_and_the_text_goes_on():
    model = make()
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        stream = engine.stream(prompt(), max_new_tokens=NEW, **GREEDY)
        ids = [next(stream).token_id]
        with refused("writing", kinds=MobileError):
            engine.change(systems.mobile(slots=2))
        ids += [step.token_id for step in stream]
        assert ids == plain(make(), prompt(), NEW)
        engine.change(systems.mobile(slots=2))
        assert engine.slots == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": systems.mobile(budget_gb=1e-9)}, "smallest budget"),
        ({"config": "mobile"}, "MobileConfig"),
        ({"hardware": "abacus"}, "preset"),
    ],
    ids=["budget", "config", "hardware"],
)
def test_a_change_that_cannot_be_leaves_everything_at_work(change, said):
    model = make()
    before = Snapshot.of(model)
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        wanted = write(engine, 3)
        residents = engine.report().resident.tolist()
        with refused(said):
            engine.change(**change)
        assert engine.slots == 3 and engine.report().resident.tolist() == residents
        assert len(engine.trace.to_frame()) == len(wanted.steps)
        assert write(engine).token_ids == plain(make(), prompt(), NEW)
        assert engine.trace.conditions.get("whole", True)
    before.check(model)


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_change_without_memory_goes_on_with_empty_slots(fails_at, monkeypatch):
    model = make()
    before = Snapshot.of(model)
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        write(engine, 3)
        done, real, made = len(engine.trace.passes), store.Slots.__init__, []

        def fail(self, *arguments):
            made.append(self)
            if len(made) == fails_at:
                raise MemoryError("no room")
            real(self, *arguments)

        monkeypatch.setattr(store.Slots, "__init__", fail)
        with pytest.raises(MemoryError):
            engine.change(systems.mobile(gamma=0, slots=5))
        assert (engine.slots, engine.gamma) == (3, 1.1)
        assert write(engine).token_ids == plain(make(), prompt(), NEW)
        assert len(engine.trace.passes) > done
        assert not replay(engine.trace, engine.config).selection.exact
    before.check(model)


def test_a_closed_engine_cannot_be_changed():
    with offload(make()) as engine:
        pass
    with refused("closed", kinds=MobileError):
        engine.change(systems.mobile())


def test_a_block_that_ends_in_the_middle_of_a_token_says_so():
    model, inside, left, said = make(), threading.Event(), threading.Event(), []
    before = Snapshot.of(model)

    def read(stream):
        try:
            list(stream)
        except MobileError as problem:
            said.append(str(problem))

    with offload(model, replace(systems.on_demand(), slots=2)) as engine:
        move = engine._server.link.mover

        def slow(*arguments):
            inside.set()
            left.wait(30)
            move(*arguments)

        engine._server.link.mover = slow
        thread = threading.Thread(target=read, args=(engine.stream(prompt(), max_new_tokens=NEW, **GREEDY),))
        thread.start()
        assert inside.wait(30)
    left.set()
    thread.join(30)
    assert len(said) == 1 and "closed" in said[0]
    before.check(model)
