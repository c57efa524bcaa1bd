"""The laws on a real card: real streams, real copies, real races. Skipped, visibly, where there is none.

Random models again, so that nothing is needed but the card. Their experts are small; delays are put in by hand.
"""

import gc
import itertools
import json
import warnings

import pytest
import torch
from helpers import EXPERTS, GREEDY, big_prompt_then_little, every_architecture, gap, make, plain, prompt, refused

from mobile_nb import Hardware, MobileConfig, MobileError, offload, systems
from mobile_nb.analysis.perfetto import to_perfetto
from mobile_nb.analysis.spans import overlap, spans
from mobile_nb.bench.card import Options, bench
from mobile_nb.bench.rows import WAITED
from mobile_nb.model import experts as experts_module
from mobile_nb.model.published import random_published
from mobile_nb.policies import LFU, LRU, EvictedRouter, Int4, NextGate, Nothing

pytestmark = pytest.mark.gpu
NEW = 8
CARD = Hardware("a card", link_gb_per_s=20, memory_gb_per_s=500, tflops=50, device_gb=8)


@pytest.fixture(autouse=True, scope="module")
def measured_once():
    """Measuring takes two seconds and a quarter of a GB; every `offload` of this file takes the first reading."""
    reading = Hardware.measure()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hardware, "measure", staticmethod(lambda device=None: reading))
        yield reading


def on_card(name="olmoe", dtype=torch.float32, **changes):
    return make(name, **changes).to("cuda", dtype)


def ids_on_card(length=6, **named):
    return prompt(length, **named).to("cuda")


def write(model, config, ids=None, n=NEW, **named):
    with offload(model, config) as engine:
        return engine.generate(ids_on_card() if ids is None else ids, max_new_tokens=n, **(GREEDY | named))


def configs(slots):
    for prefetch, evict in itertools.product((Nothing(), NextGate(1), NextGate(2)), (LRU(), LFU())):
        yield MobileConfig(slots=slots, prefetch=prefetch, evict=evict)
    yield systems.mobile(gamma=1.1, slots=slots)
    yield systems.mobile(gamma=1.1, slots=slots, prefetch=EvictedRouter(ahead=1))


# -- forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_encoded_experts_on_the_card_write_the_same_with_any_slots(dtype):
    model = on_card(dtype=dtype)
    texts = [write(model, systems.quantized(Int4(8), slots=slots)).token_ids for slots in (2, 2, EXPERTS)]
    if dtype == torch.float32:  # in half precision other waves sum in another order
        assert texts[0] == texts[2]
    assert texts[0] == texts[1]
    wanted = plain(model, ids_on_card(), NEW)
    assert write(model, systems.hobbit(slots=EXPERTS)).token_ids == wanted
    with offload(model, systems.hobbit(0.0, 1.0, low=Int4(8), low_slots=2, slots=2)) as engine:
        engine.generate(ids_on_card(), max_new_tokens=NEW, **GREEDY)
    assert {copy.form for done in engine.trace.passes for copy in done.copies} == {0, 1}


# -- exactness -----------------------------------------------------------------------------------------------------


@every_architecture
@pytest.mark.parametrize("slots", [1, 3, EXPERTS])
@torch.no_grad()
def test_full_model_is_exact_on_the_card(name, slots):
    model, ids = on_card(name), ids_on_card()
    tokens = plain(model, ids, NEW)
    logits = model(torch.cat([ids, torch.tensor([tokens], device="cuda")], dim=1)).logits[0]
    start = ids.shape[1] - 1
    for config in configs(slots):
        with offload(model, config) as engine:
            assert engine.measured
            out = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
        assert out.token_ids == tokens, config
        assert gap(torch.cat(out.logits), logits[start : start + NEW]) < 1e-4, config


def test_sampled_text_follows_the_seed_on_the_card():
    model, ids = on_card(), ids_on_card()
    torch.manual_seed(4)
    wanted = plain(model, ids, NEW, do_sample=True, temperature=1.5)
    with offload(model, systems.next_gate(slots=3)) as engine:
        torch.manual_seed(4)
        assert engine.generate(
            ids, max_new_tokens=NEW, **(GREEDY | {"do_sample": True, "temperature": 1.5})
        ).token_ids == (wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["olmoe", "qwen3_moe", "deepseek_v2"])
@torch.no_grad()
def test_half_precision_stays_within_its_rounding(name, dtype):
    """Sums are rounded in another order, so a near tie may fall the other way; a token must be a best one or nearly."""
    model, ids = on_card(name, dtype), ids_on_card()
    near = 0.05 if dtype == torch.float16 else 0.4
    for config in configs(3):
        out = write(model, config, ids, output_logits=True)
        text = torch.cat([ids, torch.tensor([out.token_ids], device="cuda")], dim=1)
        logits = model(text).logits[0, ids.shape[1] - 1 : -1].float()
        assert gap(torch.cat(out.logits), logits) < near, config
        chosen = logits.gather(1, torch.tensor(out.token_ids, device="cuda")[:, None])[:, 0]
        assert (logits.max(dim=1).values - chosen < near).all(), config


@every_architecture
def test_gamma_zero_is_the_little_model_on_the_card(name):
    model, ids = on_card(name), ids_on_card()
    known, _ = big_prompt_then_little(model.cpu(), ids.cpu(), NEW, 2)
    assert write(model.cuda(), systems.mobile(gamma=0, slots=3), ids).token_ids == known


def test_simulated_time_on_a_card_is_exact_too():
    model, ids = on_card(), ids_on_card()
    wanted = plain(model, ids, NEW)
    with offload(model, systems.mobile(gamma=1.1, slots=3), hardware=CARD) as engine:
        assert not engine.measured
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted


def test_experts_that_stay_in_host_memory_are_served_from_there():
    """As `load` leaves a model on a card: everything but the routed experts is on it."""
    model, ids = make(), ids_on_card()
    wanted = plain(make().cuda(), ids, NEW)
    for module in model.modules():
        if not hasattr(module, "down_proj") or module.down_proj.__class__ is not torch.nn.Parameter:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.cuda()
            for key, buffer in module._buffers.items():
                module._buffers[key] = buffer.cuda() if buffer is not None else None
    assert {p.device.type for n, p in model.named_parameters() if ".experts." in n} == {"cpu"}
    for slots in (2, EXPERTS):
        assert write(model, systems.next_gate(slots=slots), ids).token_ids == wanted
        assert {p.device.type for n, p in model.named_parameters() if ".experts." in n} == {"cpu"}


# -- races ---------------------------------------------------------------------------------------------------------


def slow_copies(engine, cycles):
    """Each copy first fills its slot with NaN, then waits a drawn while on its stream, and then copies."""
    real, generator = engine._server.link.mover, torch.Generator().manual_seed(0)

    def mover(layer, expert, slot):
        engine._server._slots[layer].blocks[slot].fill_(float("nan"))
        torch.cuda._sleep(int(torch.randint(0, cycles, (1,), generator=generator)))
        real(layer, expert, slot)

    engine._server.link.mover = mover


@pytest.fixture
def slow_computation(monkeypatch):
    """Each computation of experts first waits a drawn while on its stream, so that copies could overtake it."""
    real, generator = experts_module.SlotExperts.__call__, torch.Generator().manual_seed(1)

    def call(*given):
        torch.cuda._sleep(int(torch.randint(0, 1_000_000, (1,), generator=generator)))
        return real(*given)

    monkeypatch.setattr(experts_module.SlotExperts, "__call__", call)


@pytest.mark.parametrize("slots", [1, 2, 3, 6])
def test_late_copies_never_change_tokens(slots):
    model, ids = on_card("qwen2_moe"), ids_on_card()
    wanted = plain(model, ids, NEW)
    for config in configs(slots):
        with offload(model, config) as engine:
            slow_copies(engine, 2_000_000)
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted, config


@pytest.mark.parametrize("slots", [1, 2, 3, 6])
def test_late_computations_never_lose_their_weights(slots, slow_computation):
    model, ids = on_card("qwen2_moe"), ids_on_card()
    wanted = plain(model, ids, NEW)
    for config in configs(slots):
        with offload(model, config) as engine:
            slow_copies(engine, 300_000)
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted, config


def test_a_copy_that_nobody_waits_for_would_be_seen(monkeypatch):
    """The two tests above can fail: without the wait for an arrival, NaN or old weights reach the text."""
    model, ids = on_card("qwen2_moe"), ids_on_card()
    wanted = plain(model, ids, NEW)
    with offload(model, systems.on_demand(slots=3)) as engine:
        slow_copies(engine, 20_000_000)
        monkeypatch.setattr(type(engine._server.link), "_wait", lambda self, ticket: None)
        try:
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids != wanted
        except MobileError as problem:
            assert "NaN" in str(problem)
        torch.cuda.synchronize()


@pytest.mark.parametrize("reader", ["a stream of its own", "the default stream"])
def test_the_stream_that_the_reader_uses_does_not_matter(reader):
    model, ids = on_card(), ids_on_card()
    wanted = plain(model, ids, NEW)
    mine = torch.cuda.Stream() if reader == "a stream of its own" else torch.cuda.default_stream()
    mine.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(mine), offload(model, systems.next_gate(slots=3)) as engine:
        slow_copies(engine, 500_000)
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
    torch.cuda.synchronize()


# -- what is left behind -------------------------------------------------------------------------------------------


def allocated():
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def test_slots_are_the_only_experts_on_the_card_and_are_freed():
    model, ids = on_card(), ids_on_card()
    plain(model, ids, 2)  # libraries allocate their workspaces at the first use
    write(model, systems.on_demand(slots=2), ids, 2)
    before, logits = allocated(), plain(model, ids, NEW)
    parameters = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    before_block = allocated()
    with offload(model, systems.on_demand(slots=2)) as engine:
        block = engine._server.arenas[0].blocks[0].nbytes
        saved = before_block - allocated()
        assert saved == pytest.approx(3 * (EXPERTS - 2) * block, rel=0.1)
        assert engine.trace.conditions["page_locked"] and all(a.blocks.is_pinned() for a in engine._server.arenas)
        engine.generate(ids, max_new_tokens=NEW, **GREEDY)
    assert allocated() == pytest.approx(before_block, abs=4096)
    for name, p in model.named_parameters():
        assert p is parameters[name][0] and p.is_cuda and p.is_contiguous() and torch.equal(p, parameters[name][1]), (
            name
        )
    del parameters
    assert allocated() == pytest.approx(before, abs=4096)
    assert plain(model, ids, NEW) == logits


def test_an_interrupt_gives_the_card_back_and_the_next_text_is_exact():
    model, ids = on_card(), ids_on_card()
    wanted, before = plain(model, ids, NEW), allocated()
    with pytest.raises(KeyboardInterrupt), offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        real, calls = engine._server.link.mover, []

        def interrupted(*where):
            calls.append(where)
            if len(calls) == 40:
                raise KeyboardInterrupt
            real(*where)

        engine._server.link.mover = interrupted
        with pytest.raises(KeyboardInterrupt):
            engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        engine._server.link.mover = real
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
        raise KeyboardInterrupt
    del engine
    assert allocated() == pytest.approx(before, abs=4096)
    assert plain(model, ids, NEW) == wanted


# -- what is measured ----------------------------------------------------------------------------------------------


def test_copies_have_real_times_in_order_and_below_the_measured_rate(measured_once):
    model, ids = on_card(hidden_size=512, intermediate_size=512), ids_on_card()
    with offload(model, systems.mobile(gamma=1.1, slots=4)) as engine:
        for _ in range(2):
            engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        copies, passes = engine.trace.to_frame("copies"), engine.trace.passes
        report, size = engine.report(), engine.trace.conditions["expert_bytes"]
    assert engine.trace.conditions["measured"] and engine.trace.conditions["time"] == "measured"
    assert copies[["begin", "end"]].notna().all(axis=None)
    assert (copies.end > copies.begin).all()
    assert (copies.begin.to_numpy()[1:] >= copies.end.to_numpy()[:-1] - 2e-6).all(), "one copy at a time, in order"
    assert len(copies) == report.misses.sum() + report.prefetches.sum()
    rate = size / (copies.end - copies.begin).median() / 1e9
    assert 0.05 * measured_once.link_gb_per_s < rate < 1.2 * measured_once.link_gb_per_s
    moments = [moment for done in passes for moment in (done.begin, done.end)]
    assert moments == sorted(moments)
    for done in passes:
        assert all(copy.begin >= done.begin - 1e-3 for copy in done.copies)


def test_the_reading_of_the_card_is_plausible(measured_once, card_with_times):
    assert measured_once.measured
    assert 1 < measured_once.link_gb_per_s < 150 < measured_once.memory_gb_per_s < 20_000
    assert 1 < measured_once.tflops < 5_000
    assert 0 <= measured_once.link_latency_s < 1e-3 and 0 <= measured_once.launch_s < 1e-3


def synchronisations(work):
    """How often the host waited for the card in `work`."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(WAITED in str(warning.message) for warning in seen)


@pytest.mark.parametrize("slots", [4, EXPERTS])
@torch.no_grad()
def test_a_layer_waits_for_nothing_but_its_routing(slots):
    """Beyond what the plain model does: one wait a layer for the router's ids, and a few for the token itself."""
    model, ids = on_card(), ids_on_card()
    past = model(ids, use_cache=True).past_key_values
    alone = synchronisations(lambda: model(ids[:, :1], past_key_values=past, use_cache=True))
    with offload(model, systems.next_gate(slots=slots)) as engine:
        stream = engine.stream(ids, max_new_tokens=NEW, **GREEDY)
        for _ in range(3):
            next(stream)
        counts = [synchronisations(lambda: next(stream)) for _ in range(3)]
        stream.close()
    gates = 2 if slots < EXPERTS else 0  # the next layer's gate is read on the host too
    assert max(counts) <= alone + 3 + gates + 6, counts


def test_the_host_waits_as_often_whether_experts_come_one_by_one_or_not_at_all():
    """Arrivals are waited for on the card, and slot numbers are never copied to it."""
    model, ids, counts = on_card(), ids_on_card(), {}
    for slots in (4, EXPERTS - 1):
        with offload(model, systems.on_demand(slots=slots)) as engine:
            stream = engine.stream(ids, max_new_tokens=NEW, **GREEDY)
            for _ in range(3):
                next(stream)
            counts[slots] = [synchronisations(lambda stream=stream: next(stream)) for _ in range(3)]
            stream.close()
            misses = engine.report()["misses"].sum()
        assert misses > 0
    assert max(counts[4]) <= min(counts[EXPERTS - 1]) + 1, counts


def test_a_prompt_waits_as_often_however_many_waves_it_takes():
    """Or the link would stand still between a wave and the next one's copies."""
    model, ids, counts = on_card(), ids_on_card(24), {}
    model.set_experts_implementation("batched_mm")  # in groups, float32 waits for each product
    for slots in (2, EXPERTS - 1):
        with offload(model, systems.on_demand(slots=slots)) as engine:
            engine.generate(ids, max_new_tokens=1, **GREEDY)
            counts[slots] = synchronisations(lambda engine=engine: engine.generate(ids, max_new_tokens=1, **GREEDY))
    assert counts[2] <= counts[EXPERTS - 1] + 1, counts


def test_without_room_for_one_slot_the_card_is_left_alone():
    model, ids = on_card(), ids_on_card()
    wanted, before = plain(model, ids, 3), allocated()
    with refused("smallest budget", kinds=MobileError), offload(model, MobileConfig(budget_gb=1e-9)):
        raise AssertionError("the block must not be entered")
    assert allocated() == before and plain(model, ids, 3) == wanted


def test_a_card_that_is_full_says_so_in_one_sentence(monkeypatch):
    """The allocator refuses the second layer's slots: what was moved comes back."""
    from mobile_nb.model import decoded

    model, ids = on_card(), ids_on_card()
    wanted, before, real, made = plain(model, ids, 3), allocated(), decoded.Slots, []

    def slots(arena, count, device):
        made.append(count)
        if len(made) == 2:
            torch.empty(1 << 60, dtype=torch.uint8, device=device)
        return real(arena, count, device)

    monkeypatch.setattr(decoded, "Slots", slots)
    with refused("no room for 3 slots", kinds=MobileError), offload(model, systems.on_demand(slots=3)):
        raise AssertionError("the block must not be entered")
    assert allocated() == pytest.approx(before, abs=4096) and plain(model, ids, 3) == wanted


# -- profile, perfetto, bench --------------------------------------------------------------------------------------


def test_copies_and_computation_really_overlap(slow_computation, card_with_times):
    """Everything is wanted ahead and every expert takes a while: the link must work meanwhile."""
    model, ids = on_card("qwen2_moe", hidden_size=512, moe_intermediate_size=512), ids_on_card()
    with offload(model, systems.mobile(gamma=1.1, slots=4)) as engine:
        engine.generate(ids, max_new_tokens=2 * NEW, **GREEDY)
        rows = spans(engine.trace)
    found = overlap(rows)
    assert found["link"] > 0 and found["experts"] > 0
    assert found["both"] > 0 and found["share"] > 0.05, found


def test_what_was_computed_when_lies_inside_its_pass_and_in_order(tmp_path):
    model, ids = on_card(), ids_on_card()
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        for _ in range(2):
            engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        trace = engine.trace
    for done in trace.passes:
        moments = [moment for wave in done.waves for moment in (wave.begin, wave.end)]
        assert {wave.layer for wave in done.waves} == set(range(trace.conditions["layers"]))
        assert all(b >= a - 5e-6 for a, b in itertools.pairwise(moments))
        assert done.begin - 1e-3 <= moments[0] and moments[-1] <= done.end + 1e-3, "the clocks agree to a millisecond"
    path = tmp_path / "run.json"
    to_perfetto(trace, path)
    lanes = {e["tid"] for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"}
    assert len(lanes) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_slots_that_the_host_knows_are_computed_as_the_others(dtype):
    from mobile_nb.memory.store import Arena, Slots

    model = make("qwen2_moe").to("cuda", dtype)
    experts = next(m for m in model.modules() if hasattr(m, "down_proj") and getattr(m.down_proj, "ndim", 0) == 3)
    slots = Slots(Arena(experts, EXPERTS, pin=True), EXPERTS, torch.device("cuda"))
    compute = experts_module.SlotExperts(experts, slots)
    hidden = torch.randn(1, slots.views["down_proj"].shape[1], device="cuda").to(dtype)
    weights = torch.rand(1, 3, device="cuda").to(dtype)
    known, asked = (
        compute(hidden, [5, 0, 2], weights),
        compute(hidden, torch.tensor([[5, 0, 2]], device="cuda"), weights),
    )
    near = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
    assert gap(known, asked) <= near * max(1.0, asked.abs().max().item())


def test_published_shapes_lie_in_page_locked_arenas_and_the_rest_on_the_card():
    model = random_published("deepseek-v2-lite", device=torch.device("cuda", 0), tiny=True)
    assert not any(p.is_meta for p in model.parameters())
    for name, p in model.named_parameters():
        assert p.device.type == ("cpu" if ".mlp.experts." in name else "cuda"), name
    with offload(model, systems.on_demand(slots=6)) as engine:
        assert engine.trace.conditions["page_locked"]
        assert len(engine.generate(ids_on_card(), max_new_tokens=3, **GREEDY).token_ids) == 3


def test_the_bench_measures_every_row_of_a_small_table():
    options = Options(models=("olmoe-1b-7b",), tiny=True, tokens=4, slots=(16,), minutes=3)
    result = bench(options, progress=False)
    rows = {row["system"]: row for row in result["rows"]}
    failed = {name: row["why"] for name, row in rows.items() if "why" in row and "accelerate" not in row["why"]}
    assert not failed
    assert result["conditions"]["figures"] == "measured"
    rates = result["link"]["olmoe-1b-7b"]
    assert rates["pinned_gb_per_s"] > 0 and rates["pageable_gb_per_s"] > 0 and 0 < rates["ids_idle_us"] < 1e4
    for name, row in rows.items():
        if "ms_per_token" in row and "accelerate" not in name:
            assert row["time"] == "measured" and row["waits"] > 0, name
    row = rows["on demand, LRU"]
    assert row["predicted_ms"] > 0 and 0 <= row["overlap"] <= 1 and row["over_link_bound"] > 0


def test_a_changed_engine_leaves_no_copy_behind_in_memory_that_others_use():
    model, ids = on_card("qwen2_moe"), ids_on_card()
    wanted = plain(model, ids, NEW)
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        for slots in (2, 5, 3):
            slow_copies(engine, 5_000_000)
            stream = engine.stream(ids, max_new_tokens=NEW, **GREEDY)
            next(stream)
            next(stream)
            stream.close()  # prefetches may be under way
            engine.change(systems.mobile(gamma=1.1, slots=slots))
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
