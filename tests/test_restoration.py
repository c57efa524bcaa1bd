"""Law 9: leaving `offload` gives the model back as it was, however the block was left, and what was written stays."""

import gc
import threading
import weakref

import pytest
import torch
from helpers import (
    EXPERTS,
    GREEDY,
    Prefetcher,
    Recorder,
    Snapshot,
    StopAfter,
    every_architecture,
    make,
    plain,
    prompt,
    refused,
)

from mobile_nb import MobileConfig, MobileError, Trace, offload, systems
from mobile_nb.memory import store

NEW = 6


class Oops(Exception):
    """Raised on purpose."""


@every_architecture
@pytest.mark.parametrize("slots", [2, EXPERTS])
def test_the_model_is_given_back(name, slots):
    model = make(name)
    before = Snapshot.of(model)
    with offload(model, systems.mobile(gamma=0.1, slots=slots)) as engine:
        assert {type(m.experts).__name__ for m in model.modules() if hasattr(m, "experts")} == {"OffloadedExperts"}
        engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)
    before.check(model)
    assert plain(model, prompt(), NEW) == plain(make(name), prompt(), NEW)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_are_given_back_too(dtype):
    model = make().to(dtype)
    before = Snapshot.of(model)
    with offload(model, systems.on_demand(slots=3)) as engine:
        engine.generate(prompt(), max_new_tokens=2, **GREEDY)
    before.check(model)


def test_training_flags_of_every_module_are_given_back():
    model = make().train()
    model.model.layers[1].eval()  # a frozen part of a model in training
    model.requires_grad_(False)
    model.model.layers[0].mlp.experts.requires_grad_(True)
    before = Snapshot.of(model)
    with offload(model) as engine:
        assert not model.training
        engine.generate(prompt(), max_new_tokens=2, **GREEDY)
    before.check(model)


def leave_by_exception(engine):
    engine.generate(prompt(), max_new_tokens=2, **GREEDY)
    raise Oops


def leave_by_streamer(engine):
    engine.generate(prompt(), max_new_tokens=NEW, streamer=Recorder(3, KeyboardInterrupt()), **GREEDY)


def leave_by_criterion(engine):
    stop = [StopAfter(3, KeyboardInterrupt())]
    engine.generate(prompt(), max_new_tokens=NEW, stopping_criteria=stop, **GREEDY)


def leave_in_the_middle_of_a_copy(engine):
    """The weights are in the slot, and nobody has noted it: the second copy after the prompt."""
    server, real = engine._server, engine._server.link.mover
    calls = []

    def interrupted(at, expert, slot):
        real(at, expert, slot)
        calls.extend([expert] * bool(engine.trace.passes))
        if len(calls) == 2:
            raise KeyboardInterrupt

    server.link.mover = interrupted
    engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)


def leave_a_stream(engine):
    next(engine.stream(prompt(), max_new_tokens=NEW, **GREEDY))
    raise Oops


WAYS = {
    "exception in the block": (leave_by_exception, Oops),
    "interrupt from a streamer": (leave_by_streamer, KeyboardInterrupt),
    "interrupt from a stopping criterion": (leave_by_criterion, KeyboardInterrupt),
    "interrupt in the middle of a copy": (leave_in_the_middle_of_a_copy, KeyboardInterrupt),
    "a stream that nobody reads on": (leave_a_stream, Oops),
}


@pytest.mark.parametrize(("leave", "error"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    "config", [systems.mobile(gamma=1.1, slots=3), systems.next_gate(slots=5)], ids=["mobile", "gate"]
)
def test_leaving_in_a_hurry_gives_the_model_back_and_keeps_the_trace(leave, error, config, tmp_path):
    model = make()
    before = Snapshot.of(model)
    with pytest.raises(error), offload(model, config) as engine:
        leave(engine)
    before.check(model)
    assert plain(model, prompt(), 3) == plain(make(), prompt(), 3)
    assert len(engine.trace.passes) >= 1
    engine.trace.save(tmp_path / "trace.parquet")
    assert Trace.load(tmp_path / "trace.parquet") == engine.trace
    assert len(engine.trace.to_frame("steps")) >= 1 and len(engine.report()) == 3
    with refused("closed"):
        engine.generate(prompt(), max_new_tokens=1)
    with offload(model, config) as again:
        assert again.generate(prompt(), max_new_tokens=3, **GREEDY).token_ids == plain(make(), prompt(), 3)


@pytest.mark.parametrize("leave", [way for way, _ in WAYS.values()], ids=WAYS)
@pytest.mark.parametrize("slots", [1, 4])
def test_a_generation_after_a_failed_one_is_exact(leave, slots):
    model = make()
    wanted = plain(model, prompt(seed=8), NEW)
    with offload(model, systems.mobile(gamma=1.1, slots=slots)) as engine:
        mover = engine._server.link.mover
        with pytest.raises((Oops, KeyboardInterrupt)):
            leave(engine)
        engine._server.link.mover = mover
        done = len(engine.trace.passes)
        assert engine.generate(prompt(seed=8), max_new_tokens=NEW, **GREEDY).token_ids == wanted
        assert [p.mode for p in engine.trace.passes[done:]] == ["prompt"] + ["little", "big"] * (NEW - 1)
        assert len({p.request for p in engine.trace.passes}) == 2


def test_a_policy_that_raises_in_mid_generation_is_named_and_the_model_given_back():
    model = make()
    before = Snapshot.of(model)

    def fail_at_the_third_token(layer, view):
        if len(engine.trace.passes) == 2:
            raise ValueError("no idea\nat all")
        return []

    config = MobileConfig(slots=3, prefetch=Prefetcher(fail_at_the_third_token))
    with refused("Prefetcher", "wanted", "no idea at all", kinds=MobileError), offload(model, config) as engine:
        engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)
    before.check(model)
    assert [p.token_id for p in engine.trace.passes] == plain(model, prompt(), 2)


def test_a_failure_while_installing_gives_the_model_back(monkeypatch):
    model = make()
    before = Snapshot.of(model)
    real, made = store.Slots.__init__, []

    def fail(self, *arguments):
        made.append(self)
        if len(made) == 2:
            raise MemoryError("no room for the second layer")
        real(self, *arguments)

    monkeypatch.setattr(store.Slots, "__init__", fail)
    with pytest.raises(MemoryError), offload(model):
        raise AssertionError("the block must not be entered")
    before.check(model)


def test_the_engine_says_that_it_is_closed():
    model = make()
    with offload(model) as engine:
        stream = engine.stream(prompt(), max_new_tokens=NEW, **GREEDY)
        next(stream)
        wrote = len(engine.trace.passes)
    for use in (
        lambda: engine.generate(prompt(), max_new_tokens=1),
        lambda: next(engine.stream(prompt(), max_new_tokens=1)),
        lambda: next(stream),
    ):
        with refused("closed", "offload the model again", kinds=MobileError):
            use()
    assert len(engine.trace.passes) == wrote
    assert plain(model, prompt(), 3) == plain(make(), prompt(), 3)


def test_an_engine_that_is_kept_keeps_no_weights():
    """The trace may be read long after the block; the arenas and slots must not live as long."""
    model = make()
    with offload(model, systems.on_demand(slots=2)) as engine:
        engine.generate(prompt(), max_new_tokens=2, **GREEDY)
        arenas = [weakref.ref(arena.blocks) for arena in engine._server.arenas]
        slots = [weakref.ref(slots.blocks) for slots in engine._server._slots]
        assert all(ref() is not None for ref in arenas + slots)
    gc.collect()
    assert all(ref() is None for ref in slots), "device slots outlive the block"
    assert all(ref() is None for ref in arenas), "host arenas outlive the block"
    assert engine.report().requests.sum() > 0


def test_offloading_leaves_the_random_generator_alone():
    model = make()
    state = torch.get_rng_state()
    with offload(model, systems.mobile(gamma=0.5, slots=2)) as engine:
        engine.generate(prompt(), max_new_tokens=3, **GREEDY)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_dropped_half_way_frees_the_engine_for_the_next():
    model = make()
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        for _ in range(3):
            stream = engine.stream(prompt(), max_new_tokens=NEW, **GREEDY)
            next(stream)
            next(stream)
            stream.close()
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == plain(make(), prompt(), NEW)


def test_leaving_while_another_thread_reads_a_stream_gives_the_model_back():
    model = make()
    before = Snapshot.of(model)
    half_way, left, said = threading.Event(), threading.Event(), []

    def read(stream):
        next(stream)
        half_way.set()
        left.wait(30)
        try:
            next(stream)
        except MobileError as problem:
            said.append(str(problem))

    with offload(model, systems.mobile(slots=3)) as engine:
        thread = threading.Thread(target=read, args=(engine.stream(prompt(), max_new_tokens=NEW, **GREEDY),))
        thread.start()
        assert half_way.wait(30)
    before.check(model)
    left.set()
    thread.join(30)
    assert len(said) == 1 and "closed" in said[0]
