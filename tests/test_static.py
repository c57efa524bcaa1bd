"""Static decoding: laws 1, 2, 4 and 9 with a cache that stays where it is, with and without recorded passes.

A CPU has no CUDA graphs, so the few names of `torch.cuda` that record them are fakes. A fake graph notes the operations
that the model asks for, with the very tensors that they were given, and replays them without any of the model's Python.
So a pass that reads anything but buffers that stay, or that has a number of the first pass in it, writes another text.
What a graph cannot hold (a value that the host reads, or one that it brings) is refused while it is noted. What fakes
cannot show is left to tests/test_static_gpu.py: streams, memory that is used again, and time.
"""

import contextlib
import gc
import threading
import weakref
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from helpers import GREEDY, TOP_K, Snapshot, big_prompt_then_little, gap, make, plain, prompt, refused
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobile_nb import MobileConfig, MobileError, offload, systems
from mobile_nb.policies import NearScore, OnHost, Scheduled
from mobile_nb.runtime import graphs as graphs_module
from mobile_nb.runtime import static as static_module
from mobile_nb.runtime.graphs import CudaGraphs
from mobile_nb.runtime.offloaded import Offloaded
from mobile_nb.runtime.static import FixedCache

NEW = 6
LENGTH = 16
NAMES = ["olmoe", "qwen2_moe", "deepseek_v2", "qwen3_moe"]
SAMPLED = {"do_sample": True, "temperature": 1.4, "top_k": 30}
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "is_pinned")


class Tape(TorchDispatchMode):
    """Operations, what they were given, and where what they gave is."""

    def __init__(self):
        super().__init__()
        self.done, self.broken = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in func.name() for word in FORBIDDEN):
            self.broken = True
            raise RuntimeError(f"{func.name()} is not permitted when a stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.done:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class FakeCard:
    """Streams in name only, and graphs that are tapes; complains as a card does."""

    def __init__(self):
        self.default, self.recorded, self.waits = FakeStream(self), 0, 0
        self.now, self.open = self.default, None
        self.busy, self.random_is_captured, self.scratch_dropped = set(), False, 0
        self.living = {}  # pool -> its graphs

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    def synchronize(self, device):
        assert self.open is None
        self.waits += 1

    def drop_scratch(self):
        assert self.open is None
        self.scratch_dropped += 1

    def end_pool(self, device, pool):
        if pool not in self.busy:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.busy.remove(pool)


class FakeStream:
    def __init__(self, card):
        self.card = card

    def wait_stream(self, other):
        assert self.card.open is None and other is not self


class FakeGraph:
    def __init__(self, card):
        self.card, self.tape, self.ran = card, Tape(), False

    def capture_begin(self, pool=None, capture_error_mode="global"):
        card = self.card
        assert card.open is None and card.now is not card.default
        assert capture_error_mode == "thread_local"
        if card.busy:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if not card.living.setdefault(pool, weakref.WeakSet([self])):
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")  # a pool dies with its last graph
        card.living[pool].add(self)
        card.busy.add(pool)
        card.open, self.stream, self.pool, card.random_is_captured = self, card.now, pool, True
        self.tape.__enter__()

    def capture_end(self):
        if self.card.open is not self:
            raise RuntimeError("it never began")
        assert self.card.now is self.stream
        self.card.open = None
        self.tape.__exit__(None, None, None)
        if self.tape.broken:  # torch 2.11 leaves the rest as it is
            raise RuntimeError("operation failed due to a previous error during capture")
        assert self.tape.done
        self.card.busy.remove(self.pool)
        self.card.random_is_captured = False
        self.card.recorded += 1

    def replay(self):
        assert self.card.open is None
        if self.ran:  # a CPU cannot note without doing
            self.tape.replay()
        self.ran = True


@dataclass
class FakeTorch:
    """torch, as the module sees it."""

    cuda: SimpleNamespace
    _C: SimpleNamespace

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def card(monkeypatch):
    fake = FakeCard()
    names = {
        "CUDAGraph": lambda: FakeGraph(fake),
        "Stream": lambda device, priority: FakeStream(fake),
        "current_stream": lambda device: fake.now,
        "stream": fake.stream,
        "graph_pool_handle": object,
        "synchronize": fake.synchronize,
    }
    inner = SimpleNamespace(_cuda_clearCublasWorkspaces=fake.drop_scratch, _cuda_endAllocateToPool=fake.end_pool)
    monkeypatch.setattr(graphs_module, "torch", FakeTorch(SimpleNamespace(**names), inner))
    graphs_module._stream.cache_clear()
    yield fake
    graphs_module._stream.cache_clear()
    assert fake.now is fake.default and fake.open is None and not fake.busy and not fake.random_is_captured


@contextlib.contextmanager
def static(model, config, *, taped=True, length=LENGTH):
    with offload(model, config, static=length) as engine:
        if taped:
            engine._static._graphs = CudaGraphs(torch.device("cpu"))
        yield engine


with_and_without = pytest.mark.parametrize(
    "name, taped", [*((name, True) for name in NAMES), ("olmoe", False), ("deepseek_v2", False)]
)
taped_or_not = pytest.mark.parametrize("taped", [False, True], ids=["as it is", "recorded"])


# -- exactness -----------------------------------------------------------------------------------------------------


@with_and_without
@torch.no_grad()
def test_the_full_model_is_exact(name, taped, card):
    """Its second text finds the first one's cache and graphs, the next ones another configuration too."""
    model, ids = make(name), prompt()
    named = {"attention_mask": torch.ones_like(ids), "output_logits": True, "return_dict_in_generate": True}
    alone = model.generate(ids, max_new_tokens=NEW, **GREEDY, **named)
    tokens, logits = alone.sequences[0, ids.shape[1] :].tolist(), torch.cat(alone.logits)
    with static(model, systems.next_gate(slots=3), taped=taped) as engine:
        for config in (None, systems.mobile(gamma=1.1, slots=2), systems.on_demand(slots=100)):
            engine.change(config)
            out = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
            assert out.token_ids == tokens and gap(torch.cat(out.logits), logits) < 1e-5, config
            assert engine._static.recorded == taped and engine.trace.conditions["static"] == LENGTH
        assert not taped or card.recorded == len(engine._offloaded.layers) + 1


def test_sampled_text_follows_the_seed(card):
    model, ids = make(), prompt()
    torch.manual_seed(3)
    drawn = plain(model, ids, NEW, **SAMPLED)
    with static(model, systems.mobile(gamma=1.1, slots=2)) as engine:
        torch.manual_seed(3)
        assert engine.generate(ids, max_new_tokens=NEW, **(GREEDY | SAMPLED)).token_ids == drawn


@with_and_without
def test_gamma_zero_is_the_little_model_and_above_one_the_big_one(name, taped, card):
    model, ids = make(name), prompt()
    little, logits = big_prompt_then_little(model, ids, NEW, TOP_K // 2)
    with static(model, systems.mobile(gamma=0, slots=3), taped=taped) as engine:
        out = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
        assert out.token_ids == little and out.fallback_ratio == 0
        assert gap(torch.cat(out.logits), logits) < 1e-5
        engine.gamma = 1.1  # the same graphs, another threshold
        again = engine.generate(ids, max_new_tokens=NEW, **GREEDY)
    assert again.token_ids == plain(model, ids, NEW) and again.fallback_ratio == 1


@with_and_without
def test_fallbacks_in_between_write_what_a_growing_cache_writes(name, taped, card):
    """Each fallback takes one position back; the account of experts is the same too."""
    model, ids, n = make(name), prompt(), 8
    config = replace(systems.mobile(slots=3), keep=Scheduled(0.5))
    with offload(model, config) as engine:
        wanted, report = engine.generate(ids, max_new_tokens=n, **GREEDY), engine.report()
    assert 0 < wanted.fallback_ratio < 1
    with static(model, config, taped=taped) as engine:
        out = engine.generate(ids, max_new_tokens=n, **GREEDY)
        assert [(s.token_id, s.wrote, s.fell_back, s.hits, s.misses) for s in out.steps] == [
            (s.token_id, s.wrote, s.fell_back, s.hits, s.misses) for s in wanted.steps
        ]
        assert engine.report().equals(report)
        assert int(engine._static.cache.get_seq_length()) == ids.shape[1] + n - 1


def test_gamma_moves_under_the_same_graphs(card):
    model, ids = make("qwen2_moe"), prompt()
    with static(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        stream = engine.stream(ids, max_new_tokens=NEW, **GREEDY)
        wrote = [next(stream).wrote for _ in range(4)]
        assert engine._static.recorded
        engine.gamma = 0.0
        wrote += [step.wrote for step in stream]
    assert wrote == ["big"] * 4 + ["little"] * (NEW - 4)


@pytest.mark.parametrize("miss", [NearScore(), OnHost(0.5)], ids=["near score", "on host"])
def test_what_answers_a_miss_is_asked_between_the_graphs(miss, card):
    model, ids = make("qwen3_moe"), prompt()
    config = MobileConfig(slots=3, miss=miss)
    with offload(model, config) as engine:
        wanted = engine.generate(ids, max_new_tokens=NEW, **GREEDY)
    with static(model, config) as engine:
        out = engine.generate(ids, max_new_tokens=NEW, **GREEDY)
    assert [(s.token_id, s.hits, s.misses, s.host) for s in out.steps] == [
        (s.token_id, s.hits, s.misses, s.host) for s in wanted.steps
    ]


@taped_or_not
def test_drafts_are_taken_back_several_at_a_time(taped, card):
    model, ids = make(), prompt()
    config, wanted = systems.speculative(length=3, slots=3), plain(model, ids, NEW)
    with static(model, config, taped=taped) as engine:
        for _ in range(2):
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
        assert engine._static.recorded == taped


# -- what is recorded ----------------------------------------------------------------------------------------------


def test_a_number_of_the_first_pass_in_a_graph_would_be_seen(card):
    """The tests above can fail: what the host changes from pass to pass stays as it was recorded."""
    model, ids, texts = make(), prompt(), []
    for taped in (False, True):
        calls = []

        def louder(module, args, out, calls=calls):
            calls.append(0)
            return out * (1 + len(calls))

        hook = model.get_input_embeddings().register_forward_hook(louder)
        with static(model, systems.on_demand(slots=3), taped=taped) as engine:
            texts.append(engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY).logits)
        hook.remove()
    assert gap(torch.cat(texts[0][:3]), torch.cat(texts[1][:3])) < 1e-5
    assert gap(torch.cat(texts[0][3:]), torch.cat(texts[1][3:])) > 1e-3


def test_without_the_rollback_the_text_would_be_another(card):
    model, ids = make(), prompt()
    with pytest.MonkeyPatch.context() as patch, static(model, systems.mobile(1.1, slots=3)) as engine:
        patch.setattr(FixedCache, "crop", lambda self, tokens: None)
        with contextlib.suppress(IndexError):  # the cache is full too early
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids != plain(model, ids, NEW)


def test_a_forward_that_waits_for_the_device_cannot_be_recorded_and_the_model_comes_back(card):
    model, ids = make(), prompt()
    before = Snapshot.of(model)
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, out: out * float(out.sum() > -1e9))
    with static(model, systems.on_demand(slots=3)) as engine:
        with refused("cannot be recorded", "OlmoeForCausalLM", "static=None", kinds=MobileError):
            engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        assert card.open is None and card.now is card.default and not engine._static.recorded
        assert not card.busy and not card.random_is_captured and gc.isenabled()
        hook.remove()
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == plain_text(ids)
        assert engine._static.recorded and card.scratch_dropped
    before.check(model)


def test_a_text_in_another_mode_or_thread_begins_anew(card):
    """Tensors of inference mode cannot be written outside it; libraries make their workspaces for each thread."""
    model, ids = make(), prompt()
    wanted = plain_text(ids)
    with static(model, systems.on_demand(slots=3)) as engine:
        for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
            with mode():
                assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
                assert engine._static.recorded
    with static(model, systems.on_demand(slots=3)) as engine:
        engine.generate(ids, max_new_tokens=2, **GREEDY)  # one pass over one token
        texts = []
        elsewhere = threading.Thread(
            target=lambda: texts.append(engine.generate(ids, max_new_tokens=2, **GREEDY).token_ids)
        )
        elsewhere.start()
        elsewhere.join()
        assert texts == [wanted[:2]] and not engine._static.recorded
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted and engine._static.recorded


def test_under_autocast_passes_run_as_they_are(card, monkeypatch):
    ids = prompt()
    names = {"is_autocast_enabled": lambda kind: True, "is_inference_mode_enabled": lambda: False}
    monkeypatch.setattr(static_module, "torch", SimpleNamespace(**names, zeros=torch.zeros, long=torch.long))
    with static(make(), systems.on_demand(slots=3)) as engine:
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == plain_text(ids)
        assert not engine._static.recorded and not card.recorded


def test_eager_attention_brings_its_mask_from_the_host_and_is_not_recorded(card):
    model, ids = make(), prompt()
    model.set_attn_implementation("eager")
    with static(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == plain_text(ids)
        assert not engine._static.recorded and not card.recorded


def plain_text(ids):
    return plain(make(), ids, NEW)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, MobileError, ValueError])
def test_an_end_between_two_graphs_leaves_nothing_open(problem, card):
    model, ids = make(), prompt()
    before, fetched = Snapshot.of(model), []
    with static(model, systems.on_demand(slots=3)) as engine:
        real = engine._server.link.mover

        def interrupted(*where):
            if card.recorded:  # the recording has begun
                fetched.append(where)
                if len(fetched) == 2:
                    raise problem("in the middle of it.")
            real(*where)

        engine._server.link.mover = interrupted
        with pytest.raises(problem, match="in the middle"):
            engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        assert not engine._static.recorded and card.open is None
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == plain_text(ids)
        assert engine._static.recorded
        decoding = engine._static
    assert card.waits == 1 and decoding.cache is None and not decoding._parts and decoding._outputs is None
    before.check(model)


# -- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, kind", [("gpt_oss", "Sliding"), ("qwen3_next", "Linear")])
def test_a_model_that_forgets_is_refused_and_given_back(name, kind):
    model = make(name)
    before = Snapshot.of(model)
    with refused("static", kind, kinds=MobileError), offload(model, systems.on_demand(slots=3), static=LENGTH):
        pass
    before.check(model)


def test_attention_that_sees_no_mask_is_refused_and_the_model_given_back():
    model = make()
    before = Snapshot.of(model)
    kind, model.config._attn_implementation = model.config._attn_implementation, "flash_attention_2"
    with refused("'flash_attention_2'", "sdpa", kinds=MobileError), offload(model, static=LENGTH):
        pass
    model.config._attn_implementation = kind
    before.check(model)


def test_slots_that_take_what_is_left_leave_room_for_the_cache(monkeypatch):
    """The cache is made by the first text, after the slots."""
    model, room = make(), {}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    for length in (None, 100, 200):
        with offload(model, systems.on_demand(slots=3), static=length) as engine:
            if length == 200:
                engine.generate(prompt(), max_new_tokens=2, **GREEDY)
                keys = [layer.keys for layer in engine._static.cache.layers]
        room[length] = Offloaded(model, static=length).room()
    assert (
        room[None] - room[100] == room[100] - room[200] == sum(each.nbytes for each in keys)
    )  # keys and values, halved


@pytest.mark.parametrize("length", [0, -1, 1.5, True, "many"])
def test_a_length_is_a_whole_number(length):
    with refused("static"), offload(make(), static=length):
        pass


def test_what_finds_no_place_is_refused_before_the_first_token():
    model, ids = make(), prompt()
    with static(model, systems.mobile(1.1, slots=3), taped=False, length=8) as engine:
        with refused("6 tokens", "11 positions", "holds 8", kinds=ValueError):
            engine.generate(ids, max_new_tokens=6, **GREEDY)
        with refused("9 tokens", "holds 8", kinds=ValueError):
            engine.generate(prompt(9), max_new_tokens=1, **GREEDY)
        with refused("KV cache", kinds=MobileError):
            engine.generate(ids, use_cache=False, max_new_tokens=2, **GREEDY)
        with refused("padding", kinds=MobileError):
            mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
            engine.generate({"input_ids": ids, "attention_mask": mask}, max_new_tokens=2, **GREEDY)
        assert not engine.trace.passes
        assert engine.generate(ids, max_new_tokens=3, **GREEDY).token_ids == plain(make(), ids, 3)
