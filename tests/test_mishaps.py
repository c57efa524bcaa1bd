"""What goes wrong around an offloaded model, and that it is as it was afterwards, or goes on."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Snapshot, gap, plain, prompt, refused
from test_channels import channels

import mobile_nb.hardware as hardware
import mobile_nb.runtime.offloaded as offloaded
from mobile_nb import MobileError, offload, systems
from mobile_nb.memory import host
from mobile_nb.memory.thread import ThreadLink
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import Full
from mobile_nb.runtime.offloaded import Offloaded

WORDS = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}


def once(real, problem=KeyboardInterrupt):
    """Raises at the first call, and is the real function from then on."""
    calls = []

    def either(*given, **named):
        calls.append(1)
        if len(calls) == 1:
            raise problem
        return real(*given, **named)

    return either


def test_a_model_whose_parameters_are_empty_meanwhile_can_be_changed():
    """As those of a model that lay on a card are, while arenas hold its experts."""
    model, ids = random_model("qwen2_moe"), prompt(6)
    expected = plain(model, ids, 4)
    with offload(model, systems.on_demand(slots=2)) as engine:
        own = [p for layer in engine._server.layers for p in layer.experts.parameters(recurse=False)]
        kept = [p.data for p in own]
        for p in own:
            p.data = p.data.new_empty(0)
        engine.change(systems.on_demand(slots=3))
        assert engine.generate(ids, **WORDS).token_ids == expected
        for p, data in zip(own, kept, strict=True):
            p.data = data


@pytest.mark.parametrize("where", ["vacate", "install"])
def test_a_change_that_is_interrupted_leaves_the_engine_as_it_was(where, monkeypatch):
    model, ids = random_model("qwen2_moe"), prompt(6)
    snapshot, expected = Snapshot.of(model), plain(model, ids, 4)
    with offload(model, systems.on_demand(slots=2)) as engine:
        before = engine._server
        if where == "vacate":
            before.link.vacate = once(before.link.vacate)
        else:
            monkeypatch.setattr(offloaded.Server, "install", once(offloaded.Server.install))
        with pytest.raises(KeyboardInterrupt):
            engine.change(systems.on_demand(slots=3))
        assert engine._server is before is engine._offloaded.server
        assert engine.generate(ids, **WORDS).token_ids == expected
    snapshot.check(model)


def test_an_interrupt_while_a_text_ends_does_not_leave_the_engine_busy():
    model, ids = random_model("qwen2_moe"), prompt(6)
    with offload(model, systems.on_demand(slots=2)) as engine:
        engine._server.link.settle = once(engine._server.link.settle)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(ids, **WORDS)
        assert not engine.writing
        assert engine.generate(ids, **WORDS).token_ids == plain(random_model("qwen2_moe"), ids, 4)


@pytest.mark.parametrize("where", ["close", "release"])
def test_an_interrupt_while_the_block_ends_still_gives_the_model_back(where, monkeypatch):
    model = random_model("qwen2_moe")
    snapshot = Snapshot.of(model)
    with pytest.raises(KeyboardInterrupt), offload(model, systems.on_demand(slots=2)) as engine:
        held = engine._server.link if where == "close" else engine._server.arenas[1]
        monkeypatch.setattr(held, where, once(getattr(held, where)))
    snapshot.check(model)


@pytest.mark.parametrize("link", ["simulated", "thread"])
def test_a_block_inside_inference_mode_can_be_written_by_any_thread(link, monkeypatch):
    if link == "thread":
        make = lambda clock, layers, slots, s, mover: ThreadLink(layers, slots, mover)  # noqa: E731
        monkeypatch.setattr(offloaded, "SimulatedLink", make)
    model, ids, texts = random_model("qwen2_moe"), prompt(6), []
    expected = plain(model, ids, 4)
    with torch.inference_mode(), offload(model, systems.on_demand(slots=2)) as engine:
        texts.append(engine.generate(ids, **WORDS).token_ids)
        writer = threading.Thread(target=lambda: texts.append(engine.generate(ids, **WORDS).token_ids))
        writer.start()
        writer.join()
    assert texts == [expected, expected]
    assert not any(parameter.is_inference() for parameter in model.parameters()), "it could not be trained any more"


def test_a_thread_that_still_writes_when_the_block_ends_gets_a_sentence_and_no_slot(monkeypatch):
    def make(clock, layers, slots, s, mover):
        return ThreadLink(layers, slots, lambda *given: (time.sleep(0.002), mover(*given)))

    monkeypatch.setattr(offloaded, "SimulatedLink", make)
    said, model = [], random_model("qwen2_moe")

    def write():
        try:
            engine.generate(prompt(6), max_new_tokens=2000, do_sample=False, eos_token_id=None)
        except MobileError as problem:
            said.append(str(problem))

    with offload(model, systems.on_demand(slots=4)) as engine:
        link, writer = engine._server.link, threading.Thread(target=write, daemon=True)
        writer.start()
        while link._number < 20:
            time.sleep(0.001)
    writer.join(10)
    assert not writer.is_alive()
    one = np.zeros(1, dtype=int)
    with refused("closed", kinds=MobileError):
        link.fetch(one, 0, one, one, np.zeros(1))


@pytest.mark.parametrize("at", range(3, 12))
def test_a_call_of_the_model_that_is_interrupted_leaves_no_wrong_weights_behind(at):
    """Outside a text, where nobody closes the pass: between a copy and what the cache knows of it."""
    model, calls = random_model("qwen2_moe"), []
    with torch.no_grad():
        expected = model(prompt(12, seed=3)).logits
        with offload(model, systems.on_demand(slots=4)) as engine:
            link, real = engine._server.link, engine._server.link.mover

            def mover(*given):
                real(*given)
                calls.append(1)
                if len(calls) == at:
                    raise KeyboardInterrupt

            link.mover = mover
            with pytest.raises(KeyboardInterrupt):
                model(prompt(12))
            link.mover = real
            assert torch.allclose(model(prompt(12, seed=3)).logits, expected, atol=1e-5)


def test_a_card_is_measured_also_where_nothing_more_can_be_page_locked(monkeypatch):
    def refuses(self):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuses)
    monkeypatch.setattr(hardware, "_seconds", lambda work, repeat=5: 1e-3)
    about = SimpleNamespace(name="a card", total_memory=8e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda where: about)
    measured = hardware._measure_current(torch.device("cpu"))
    assert measured.device_gb == 8 and measured.link_gb_per_s == pytest.approx((64 << 20) / 1e-3 / 1e9)


def test_a_full_card_is_a_sentence_not_a_traceback(monkeypatch):
    def full(where):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256 MiB")

    monkeypatch.setattr(hardware, "_measure_current", full)
    monkeypatch.setattr(torch.cuda, "device", lambda where: host.contextlib.nullcontext())
    with refused("free memory there", kinds=MobileError):
        hardware._measure(torch.device("cuda", 0))


def test_memory_is_locked_for_the_card_that_is_used(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: seen.append(device) or host.contextlib.nullcontext())
    with host.current(torch.device("cpu")):
        assert not seen
    model = random_model("olmoe")
    served = Offloaded(model)
    served.device = torch.device("cuda", 1)
    with served._plainly():
        assert seen == [torch.device("cuda", 1)]


def test_a_model_on_two_cards_is_refused_in_a_sentence():
    model = random_model("olmoe")
    spread = [SimpleNamespace(device=torch.device("cuda", at)) for at in (0, 1)]
    model.parameters = lambda recurse=True: iter(spread)
    with refused("cuda:0 and cuda:1", kinds=MobileError):
        Offloaded(model)


def test_slots_that_a_card_cannot_hold_are_refused_before_they_are_made(monkeypatch):
    """A driver that takes host memory in their place would say nothing, and be slow."""
    served = Offloaded(random_model("qwen2_moe"))
    each, slots = served.layout.nbytes, np.array([[3], [3], [2]])
    monkeypatch.setattr(Offloaded, "room", lambda self: 8 * each)
    served._check_room(slots, (None,))
    monkeypatch.setattr(Offloaded, "room", lambda self: 8 * each - 1)
    with refused("no room for up to 3 slots", "fewer slots", kinds=MobileError):
        served._check_room(slots, (None,))
    served._check_room(slots, (0.5,))  # encoded ones are smaller


@pytest.mark.parametrize("at", range(1, 12))
def test_channels_whose_copy_is_interrupted_are_not_taken_for_there(at):
    """FloE's copies of single channels, outside a text."""
    model, calls = random_model("qwen2_moe"), []
    with torch.no_grad():
        expected = model(prompt(12, seed=3)).logits
        with offload(model, systems.floe(channels(model, 0, up=Full()), slots=4)) as engine:
            scheduler = engine._server.scheduler
            fill = scheduler.fill

            def interrupted(*given):
                calls.append(1)
                if len(calls) == at:
                    raise KeyboardInterrupt
                fill(*given)

            scheduler.fill = interrupted
            with pytest.raises(KeyboardInterrupt):
                model(prompt(12))
            scheduler.fill = fill
            assert gap(model(prompt(12, seed=3)).logits, expected) < 1e-5
