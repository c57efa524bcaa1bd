"""The CUDA link on a machine without CUDA: streams and events are fakes whose copies happen as late as they may.

A copy is carried out only when somebody waits for it, or asks whether it is over and a seeded coin says yes. So a
forgotten event, or one on the wrong slot, leaves old weights in a slot and changes tokens. What fakes cannot show is
left to tests/test_gpu.py: real overlap, and real races.
"""

import random
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Snapshot, plain, prompt, refused
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import mobile_nb.runtime.offloaded as offloaded
from mobile_nb import MobileError, figures, offload, systems
from mobile_nb.analysis.spans import overlap, spans
from mobile_nb.memory import cuda as cuda_module
from mobile_nb.memory.codecs import Encoding, Scratch
from mobile_nb.memory.cuda import CudaLink
from mobile_nb.memory.link import SimulatedLink
from mobile_nb.memory.store import Arena
from mobile_nb.memory.wall import GUESSED, KNOWN
from mobile_nb.model import decoded
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.experts import SlotExperts, listed
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import Full, Int4, LowBits, Mixed, NextGate, OnHost
from mobile_nb.vocabulary import Wanted


class FakeCuda:
    """One copy queue in order, on a clock that ticks once a copy."""

    def __init__(self, seed):
        self.coin, self.queue, self.clock, self.inside = random.Random(seed), [], 0.0, False
        self.waits = self.late = 0

    def run_until(self, event):
        while not event.done and self.queue:
            self.queue.pop(0)()

    def defer(self, mover):
        def enqueue(layer, expert, slot):
            assert self.inside, "a copy was started outside the copy stream"
            self.queue.append(lambda: (mover(layer, expert, slot), setattr(self, "clock", self.clock + 1)))

        return enqueue


class FakeEvent:
    def __init__(self, cuda):
        self.cuda, self.done, self.at = cuda, True, 0.0

    def record(self, stream):
        self.at = self.cuda.clock
        if stream.copies:
            self.done = False

            def reached():
                self.done, self.at = True, self.cuda.clock

            self.cuda.queue.append(reached)

    def query(self):
        if not self.done and self.cuda.coin.random() < 0.3:
            self.cuda.run_until(self)
        return self.done

    def synchronize(self):
        self.cuda.run_until(self)

    def elapsed_time(self, other):
        assert self.done and other.done, "a card knows no time of what is not over"
        return float(np.float32(other.at - self.at))  # as a card counts


class FakeStream:
    def __init__(self, cuda, copies):
        self.cuda, self.copies, self.device = cuda, copies, torch.device("cpu")

    def wait_event(self, event):
        if not self.copies:  # the compute stream needs the copy now
            self.cuda.waits += 1
            self.cuda.run_until(event)

    def wait_stream(self, stream):
        pass

    def synchronize(self):
        while self.cuda.queue:
            self.cuda.queue.pop(0)()


@pytest.fixture(params=range(2))
def cuda(request, monkeypatch):
    """Fakes in place of torch.cuda, and `offload` with a CudaLink on them."""
    fake = FakeCuda(seed=request.param)
    compute = FakeStream(fake, copies=False)

    @contextmanager
    def stream(which):
        fake.inside = which.copies
        yield
        fake.inside = False

    fakes = SimpleNamespace(
        Stream=lambda device=None: FakeStream(fake, copies=True),
        Event=lambda enable_timing=False: FakeEvent(fake),
        current_stream=lambda device=None: compute,
        stream=stream,
    )
    monkeypatch.setattr(cuda_module, "torch", SimpleNamespace(cuda=fakes))
    monkeypatch.setattr(
        offloaded,
        "SimulatedLink",
        lambda clock, layers, slots, fetch_s, mover: CudaLink(layers, slots, fake.defer(mover), torch.device("cpu")),
    )
    return fake


SYSTEMS = {
    "on-demand": lambda slots: systems.on_demand(slots=slots),
    "next gate": lambda slots: systems.next_gate(slots=slots),
    "two gates ahead": lambda slots: systems.on_demand(slots=slots, prefetch=NextGate(2)),
    "half on the host": lambda slots: systems.next_gate(slots=slots, miss=OnHost(1.0, balance=True)),
    "prompts on the host": lambda slots: systems.next_gate(slots=slots, miss=OnHost(0.5, crossover=2)),
    "always rewriting": lambda slots: systems.mobile(gamma=1.1, slots=slots),
    "always rewriting, two layers ahead": lambda slots: systems.mobile(gamma=1.1, ahead=2, slots=slots),
}


@pytest.mark.parametrize("slots", [1, 3, 7])
@pytest.mark.parametrize("name", SYSTEMS)
def test_late_copies_never_change_tokens(cuda, name, slots):
    model = random_model("qwen2_moe")
    ids = prompt(12)
    words = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = plain(model, ids, 12)
    with offload(model, SYSTEMS[name](slots)) as engine:
        assert engine.generate(ids, **words).token_ids == expected
        copies = engine.trace.to_frame("copies")
        report = engine.report()
    assert cuda.waits > 0, "nothing was ever waited for, so the fakes showed nothing"
    assert (report["hits"] + report["misses"] + report["host"] == report["requests"]).all()
    assert len(copies) == report["misses"].sum() + report["prefetches"].sum()
    assert copies["end"].notna().all() and (copies["end"] >= copies["begin"]).all()


def test_a_forgotten_wait_would_be_seen(cuda, monkeypatch):
    monkeypatch.setattr(CudaLink, "compute", lambda *facts: None)
    model = random_model("qwen2_moe")
    ids = prompt(12)
    words = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = plain(model, ids, 12)
    with offload(model, systems.on_demand(slots=3)) as engine:
        try:
            ids = engine.generate(ids, **words).token_ids
        except Exception as problem:  # stale memory may hold NaN
            assert "NaN" in str(problem)
        else:
            assert ids != expected


def test_what_was_computed_when_is_measured_layer_by_layer(cuda):
    model, ids = random_model("qwen2_moe"), prompt(12)
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        engine.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
        passes, report = engine.trace.passes, engine.report()
    waves = [wave for done in passes for wave in done.waves]
    assert {wave.layer for wave in waves} == set(range(len(report))) and {wave.kind for wave in waves} == {"compute"}
    assert all(wave.end >= wave.begin for wave in waves) and not np.isnan([wave.begin for wave in waves]).any()
    for done in passes:
        assert [wave.layer for wave in done.waves] == sorted(wave.layer for wave in done.waves)
    rows = spans(engine.trace)
    assert (rows["end"] >= rows["begin"]).all() and set(rows["lane"]) == {"compute", "link"}
    assert set(rows[rows["what"] == "expert"]["layer"]) == set(range(len(report)))
    assert 0 <= overlap(rows)["share"] <= 1
    figure = figures.timeline(rows[rows["step"] == 2])
    assert figure.layout.title.subtitle.text.startswith("Measured") and len(figure.data) >= 3


def test_a_card_that_runs_for_a_day_still_knows_how_long_a_copy_takes(cuda):
    """It counts milliseconds in 32 bits: times are taken from a moment of the same text."""
    model, ids = random_model("qwen2_moe"), prompt(12)
    with offload(model, systems.on_demand(slots=3)) as engine:
        engine.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None)
        cuda.clock += 1e8
        engine.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None)
        copies = engine.trace.to_frame("copies")
    took = (copies["end"] - copies["begin"])[copies["request"] == 1]
    assert len(took) and took.to_numpy() == pytest.approx(1e-3)


def test_records_are_completed_before_they_are_too_many(cuda, monkeypatch):
    monkeypatch.setattr("mobile_nb.memory.wall.MANY", 20)
    model, ids = random_model("qwen2_moe"), prompt(12)
    with offload(model, systems.on_demand(slots=3)) as engine:
        words = engine.stream(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
        for _ in range(10):
            next(words)
        assert len(engine._server.link._open) < 60
        words.close()
        assert engine.trace.to_frame("copies")["end"].notna().all()


@pytest.mark.parametrize("leave", ["close", "change", "remove"])
def test_no_copy_is_under_way_when_slots_are_given_back(cuda, leave):
    """Not even one of which no record was made, because an interrupt came between the two."""
    model = random_model("qwen2_moe")
    with offload(model, systems.on_demand(slots=3)) as engine:
        link, one = engine._server.link, np.zeros(1, dtype=int)
        link.fetch(one, 0, one, one, np.zeros(1))
        assert cuda.queue and not link._open
        if leave == "change":
            engine.change(systems.on_demand(slots=2))
        elif leave == "close":
            link.close()
        if leave != "remove":
            assert not cuda.queue
    assert not cuda.queue


def test_a_closed_link_hands_out_no_copy_into_memory_that_is_given_away(cuda):
    """A thread that still writes when the block ends."""
    with offload(random_model("qwen2_moe"), systems.on_demand(slots=3)) as engine:
        link, one = engine._server.link, np.zeros(1, dtype=int)
    with refused("closed", kinds=MobileError):
        link.fetch(one, 0, one, one, np.zeros(1))
    assert not cuda.queue


def test_slots_forget_when_they_were_read_once_that_is_over(cuda):
    """What comes next may be other memory: then a copy waits for the streams, not for an event of the past. From text
    to text slots stay what they are."""
    with offload(random_model("qwen2_moe"), systems.on_demand(slots=3)) as engine:
        first = engine._server.link
        engine.generate(prompt(6), max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert all(event for layer in first._released for event in layer)
        engine.change(systems.on_demand(slots=3))
        engine.generate(prompt(6), max_new_tokens=3, do_sample=False, eos_token_id=None)
        second = engine._server.link
    for link in (first, second):
        assert not any(event for layer in link._released for event in layer)


def test_a_layer_that_only_hits_tells_the_link_who_reads_its_slots(cuda, monkeypatch):
    begun = []
    with offload(random_model("qwen2_moe"), systems.on_demand(slots=8)) as engine:
        monkeypatch.setattr(engine._server.link, "begin_layer", lambda: begun.append(1))
        engine.generate(prompt(6), max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert len(begun) == 2 * 3  # passes and layers


@pytest.mark.parametrize(("mode", "window"), [("little", GUESSED), ("big", KNOWN)])
def test_copies_on_demand_take_no_prefetchs_place_on_the_link(cuda, mode, window):
    """The host waits for each layer's routing, and the link lives on what was handed out before."""
    cuda.coin = SimpleNamespace(random=lambda: 1.0)  # no copy is over yet
    under_way = lambda: len(cuda.queue) // 3  # noqa: E731 - an event before each copy, and one after it
    with offload(random_model("qwen2_moe"), systems.on_demand(slots=4)) as engine:
        engine.generate(prompt(6), max_new_tokens=1, do_sample=False, eos_token_id=None)
        server = engine._server
        server.scheduler.cache.clear()
        server.begin_pass(mode, evicted=[[0, 1, 2, 3]] * 3 if mode == "big" else None)
        assert under_way() == 0
        one, free = np.zeros(1, dtype=int), np.zeros((1, 4), dtype=bool)
        for expert in (4, 5):
            server.scheduler._copy(one, 0, np.array([expert]), free, np.zeros(1), demand=True)
        assert under_way() == 2
        server.scheduler.want([Wanted(layer, range(4)) for layer in (1, 2)])
        assert under_way() == 2 + window and len(server.scheduler._queue) == 8 - window


@pytest.mark.parametrize("layer", [0, 2])
def test_no_room_for_the_slots_is_one_sentence_and_the_model_is_as_it_was(monkeypatch, layer):
    model, real, made = random_model("qwen2_moe"), decoded.Slots, []
    snapshot = Snapshot.of(model)

    def slots(*given):
        made.append(given)
        if len(made) > layer:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return real(*given)

    monkeypatch.setattr(decoded, "Slots", slots)
    with refused("no room for 3 slots in each of 3 layers", kinds=MobileError), offload(model, systems.big(slots=3)):
        raise AssertionError("the block must not be entered")
    snapshot.check(model)


def test_a_fault_of_the_card_is_not_taken_for_a_lack_of_room(monkeypatch):
    def broken(*given):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(decoded, "Slots", broken)
    model = random_model("olmoe")
    with pytest.raises(RuntimeError, match="illegal memory access"), offload(model, systems.big(slots=3)):
        raise AssertionError("the block must not be entered")


class Waits(TorchDispatchMode):
    """Operations whose result a host has to wait for, as their shape or value is the device's."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in func.name() for word in ("local_scalar", "nonzero", "unique", "masked_select")):
            self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [systems.on_demand(slots=3), systems.quantized(Int4(8), slots=3)], ids=repr)
def test_a_wave_of_a_prompt_waits_for_no_number_of_the_card(config):
    model, ids = random_model("qwen2_moe"), prompt(12)
    model.set_experts_implementation("batched_mm")
    with offload(model, config) as engine:
        slots, waits = engine._server._slots[0], Waits()
        real = slots.many_tokens

        def watched(*given):
            with waits:
                return real(*given)

        slots.many_tokens = watched
        text = engine.generate(ids, max_new_tokens=1, do_sample=False, eos_token_id=None).token_ids
    assert waits.seen == {"aten::nonzero_static"}
    assert not config.codec.lossless or text == plain(random_model("qwen2_moe"), ids, 1)


def test_one_token_on_a_card_is_not_multiplied_in_groups(monkeypatch):
    layer, ways = find_layers(random_model("gpt_oss"))[0], []
    layer.experts.config._experts_implementation = "grouped_mm"
    arena = Arena(layer.experts, layer.num_experts)
    compute = SlotExperts(layer.experts, SimpleNamespace(blocks=arena.blocks, views=arena.layout.views(arena.blocks)))
    asked = torch.randn(1, layer.experts.hidden_size), torch.tensor([[2, 5]]), torch.rand(1, 2)
    for way in ("grouped_mm", "batched_mm"):
        real = ALL_EXPERTS_FUNCTIONS[way]
        noted = lambda *given, way=way, real=real: (ways.append(way), real(*given))[1]  # noqa: E731
        monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._local_mapping, way, noted)
    outs = []
    for device in ("cpu", "cuda"):
        compute._device = torch.device(device)  # in name only
        outs.append(compute(*asked))
    assert ways == ["grouped_mm", "batched_mm"] and torch.allclose(*outs, atol=1e-6)


def test_slot_numbers_on_a_card_are_made_of_what_lies_there():
    there = torch.arange(9, device="meta")  # any device but the CPU
    assert listed(there, [3, 1, 8]).shape == (3,) and listed(there, [3]).device.type == "meta"
    assert listed(torch.arange(9), [3, 1, 8]).tolist() == [3, 1, 8]


MIXED = {"codec": Mixed(Full(), Int4(), low_slots=2), "miss": LowBits(0.3, 0.7)}


def test_experts_of_several_forms_arrive_late_and_are_named_in_what_was_computed(cuda):
    model, ids = random_model("qwen2_moe"), prompt(12)
    words = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    config = systems.on_demand(slots=4, **MIXED)
    with offload(model, config) as engine:
        texts = [engine.generate(ids, **words).token_ids]
        waves = [wave for done in engine.trace.passes for wave in done.waves]
        copies, experts = engine.trace.to_frame("copies"), engine.trace.conditions["experts"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offloaded, "SimulatedLink", SimulatedLink)
        with offload(model, config) as engine:
            texts.append(engine.generate(ids, **words).token_ids)
    assert texts[0] == texts[1] and cuda.waits > 0
    alone = [wave for wave in waves if wave.expert >= 0]
    assert {wave.form for wave in alone} == set(copies["form"]) == {0, 1}
    assert max(wave.expert for wave in alone) < experts


def test_the_host_computes_while_nothing_is_being_handed_to_the_card(cuda):
    """What it takes is not taken for the card's, and holds up no slot."""
    model, ids, order = random_model("qwen2_moe"), prompt(12), []
    with offload(model, systems.on_demand(slots=3, miss=OnHost(0.5))) as engine:
        server = engine._server
        for name in ("computing", "computed"):
            real = getattr(server.link, name)
            setattr(server.link, name, lambda *wave, name=name, real=real: (order.append(name), real(*wave)))
        take = server._host.take

        def noted(*given):
            work = take(*given)
            return lambda: (order.append("host"), work())[1]

        server._host.take = noted
        engine.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    inside = [after for before, after in pairwise(order) if before == "computing"]
    assert order.count("host") > 3 and set(inside) == {"computed"}


def test_no_room_for_slots_of_another_form_is_one_sentence_too(monkeypatch):
    def full(*given, **words):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    model = random_model("qwen2_moe")
    snapshot = Snapshot.of(model)
    monkeypatch.setattr(decoded, "EncodedArena", full)
    config = systems.on_demand(slots=4, **MIXED)
    with refused("no room for", kinds=MobileError), offload(model, config):
        raise AssertionError("the block must not be entered")
    snapshot.check(model)


def test_slot_numbers_of_encoded_slots_may_be_a_list():
    layer = find_layers(random_model("qwen2_moe"))[0]
    arena = Arena(layer.experts, layer.num_experts)
    encoding, scratch = Encoding(arena.layout, Int4()), Scratch(arena.layout, 3, torch.device("cpu"))
    compute = decoded.DecodedExperts(layer.experts, encoding, encoding.encode(arena.blocks), scratch)
    hidden, weights = torch.randn(1, 32), torch.rand(1, 3)
    assert torch.equal(compute(hidden, [5, 0, 2], weights), compute(hidden, torch.tensor([[5, 0, 2]]), weights))
