"""The CUDA link on a machine without CUDA: streams and events are fakes whose copies happen as late as they may.

A copy is carried out only when somebody waits for it, or asks whether it is over and a seeded coin says yes. So a
forgotten event, or one on the wrong slot, leaves old weights in a slot and changes tokens. What fakes cannot show is
left to tests/test_gpu.py: real overlap, and real races.
"""

import random
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from helpers import plain, prompt

import mobile_nb.runtime.offloaded as offloaded
from mobile_nb import offload, systems
from mobile_nb.memory import cuda as cuda_module
from mobile_nb.memory.cuda import CudaLink
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import NextGate, OnHost


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
        return other.at - self.at


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
