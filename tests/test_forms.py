"""Codecs and forms: what encoding loses, that nothing else changes with it, and that two forms keep to their pools."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import EXPERTS, GREEDY, Snapshot, make, plain, prompt, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from mobile_nb import Hardware, MobileConfig, Trace, offload, plan, systems
from mobile_nb.clock import VirtualClock
from mobile_nb.costs import Costs
from mobile_nb.hardware import Geometry
from mobile_nb.memory.cache import Cache
from mobile_nb.memory.codecs import Encoding
from mobile_nb.memory.link import SimulatedLink
from mobile_nb.memory.scheduler import Scheduler
from mobile_nb.memory.store import Layout
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.outputs import form_errors
from mobile_nb.policies import LRU, Full, InForm, Int2, Int4, Int8, LowBits, Mixed, NextGate, PerExpert, WeightRatio
from mobile_nb.policies.evict import History, Weighted
from mobile_nb.policies.miss.ask import Low
from mobile_nb.vocabulary import Wanted

NEW = 6
KINDS = {Int8: (127, 127), Int4: (7, 7), Int2: (2, 1.5)}  # what the largest weight is divided by, the largest code
calm = settings(derandomize=True, deadline=None, max_examples=25)


def experts_like(shapes, count=3, dtype=torch.float32, seed=0, size=1.0):
    """A module with parameters [count, *shape], and its blocks."""
    generator = torch.Generator().manual_seed(seed)
    module = torch.nn.Module()
    for n, shape in enumerate(shapes):
        values = size * torch.randn(count, *shape, generator=generator)
        module.register_parameter(f"p{n}", torch.nn.Parameter(values.to(dtype), requires_grad=False))
    layout = Layout.of(module, count)
    blocks = torch.zeros(count, layout.numel, dtype=dtype)
    for name, view in layout.views(blocks).items():
        view.copy_(getattr(module, name))
    return layout, blocks


def there_and_back(layout, blocks, form):
    encoding = Encoding(layout, form)
    encoded, out = encoding.encode(blocks), torch.full_like(blocks, float("nan"))
    assert encoded.shape == (len(blocks), encoding.nbytes) and encoded.dtype == torch.uint8
    encoding.decode(encoded, out)
    return out


@calm
@given(
    kind=st.sampled_from(sorted(KINDS, key=lambda kind: kind.bits)),
    group=st.sampled_from([8, 16, 64]),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 33)), min_size=1, max_size=3),
    size=st.sampled_from([1e-12, 0.02, 1.0, 1e5]),
    seed=st.integers(0, 99),
)
def test_no_weight_is_farther_off_than_half_a_step_and_vectors_are_kept(kind, group, shapes, size, seed):
    layout, blocks = experts_like([*shapes, (7,)], seed=seed, size=size)
    form = kind(group=group)
    out, (divisor, _) = there_and_back(layout, blocks, form), KINDS[kind]
    for name, before in layout.views(blocks).items():
        after = layout.views(out)[name]
        if before.dim() == 2:
            assert torch.equal(after, before)
            continue
        flat, back = before.flatten(1), after.flatten(1)
        for at in range(0, flat.shape[1], group):
            some, error = flat[:, at : at + group], (flat - back)[:, at : at + group].abs()
            step = some.abs().amax(dim=1, keepdim=True) / divisor
            assert (error <= 0.5 * step * (1 + 2**-6) + 1e-37).all(), "a scale is off by 2^-9 at most"
    assert Encoding(layout, form).nbytes >= sum(p.numel() for p in layout.views(blocks[:1]).values()) * kind.bits / 8


@pytest.mark.parametrize("kind", [Int8, Int4], ids=lambda kind: kind.__name__)
def test_rounding_is_that_of_torchs_own_fake_quantisation(kind):
    layout, blocks = experts_like([(8, 64)], count=1)
    rows = blocks[:, : 8 * 64].view(-1, 16)
    largest = KINDS[kind][0]
    scale = (rows.abs().amax(dim=1) / largest).to(torch.bfloat16).float()
    zero = torch.zeros(len(rows), dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(rows, scale, zero, 0, -largest, largest)
    ours = there_and_back(layout, blocks, kind(group=16))[:, : 8 * 64].view(-1, 16)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_what_is_on_the_grid_comes_back_as_it_was(kind, dtype):
    """Packing loses nothing, and encoding twice is encoding once."""
    layout, blocks = experts_like([(6, 40), (5, 24), (40,)], dtype=dtype)
    codes = torch.arange(blocks.numel()).view(blocks.shape) * 7 % 2**kind.bits
    values = codes - {8: 127.5, 4: 7.5, 2: 1.5}[kind.bits] if kind is Int2 else codes - 2 ** (kind.bits - 1)
    largest = KINDS[kind][1]
    values = values.clamp(-largest, largest).to(dtype) * 0.5
    values[:, ::8] = 0.5 * largest  # each group of 8 holds the largest code
    if kind is Int2:  # its step is half of the largest weight, and no level is that large
        values = torch.where(values.abs() == 0.75, values.sign(), values.sign() * 0.25).to(dtype)
    expected = torch.where(values.abs() == 1, values * 0.75, values) if kind is Int2 else values
    out = there_and_back(layout, values, kind(group=8))
    for name, view in layout.views(expected).items():
        if view.dim() == 3:
            assert torch.equal(layout.views(out)[name], view), name


def test_what_a_form_loses_is_measured_and_falls_with_bits():
    model, ids = make("qwen2_moe"), prompt(5)
    rounded = dequantised(make("qwen2_moe"), Int4(8))
    errors = {form: form_errors(model, form, ids) for form in (Int8(8), Int4(8), Int2(8))}
    for kind in ("weights", "outputs"):
        eight, four, two = (found[kind] for found in errors.values())
        assert eight.shape == (3, EXPERTS) and (eight > 0).all() and (eight < four).all() and (four < two).all()
    for at, (one, two) in enumerate(zip(find_layers(model), find_layers(rounded), strict=True)):
        a, b = (torch.cat([p.detach().flatten(1) for p in layer.experts.parameters()], 1) for layer in (one, two))
        assert errors[Int4(8)]["weights"][at] == pytest.approx(((a - b).norm(dim=1) / a.norm(dim=1)).numpy(), rel=1e-5)


def test_bytes_a_weight_are_codes_and_scales():
    assert (Int8(64).bytes_per_weight, Int4(64).bytes_per_weight, Int2(32).bytes_per_weight) == (
        1 + 1 / 32,
        0.5 + 1 / 32,
        0.25 + 1 / 16,
    )
    layout, _ = experts_like([(256, 512), (512, 128)], dtype=torch.bfloat16)
    for form in (Int8(), Int4(), Int2()):
        assert Encoding(layout, form).nbytes == pytest.approx(layout.weights * form.bytes_per_weight, rel=1e-3)


@pytest.mark.parametrize("group", [0, 7, 12, True, 8.5])
def test_a_group_that_cannot_be_is_refused(group):
    with refused("Int4.group"):
        Int4(group=group)


# -- one form ------------------------------------------------------------------------------------------------------


def dequantised(model, form):
    """The model itself with weights that went there and back: what a codec must compute."""
    for module in [m.experts for m in model.modules() if hasattr(m, "experts")]:
        layout = Layout.of(module, EXPERTS)
        blocks = torch.stack([torch.zeros(layout.numel) for _ in range(EXPERTS)])
        for name, view in layout.views(blocks).items():
            view.copy_(getattr(module, name).data)
        for name, view in layout.views(there_and_back(layout, blocks, form)).items():
            getattr(module, name).data.copy_(view)
    return model


@pytest.mark.parametrize(
    ("name", "form"), [("olmoe", Int8()), ("olmoe", Int4(8)), ("olmoe", Int2(8)), ("gpt_oss", Int4(8))], ids=str
)
def test_the_text_is_that_of_the_rounded_weights_with_any_number_of_slots(name, form):
    """Law 4 for a codec: cache sizes, prefetches and prompts of any length change time, never tokens."""
    model, ids = make(name), prompt(9)
    before = Snapshot.of(model)
    wanted, texts = plain(dequantised(make(name), form), ids, NEW), []
    for slots, fields in ((1, {}), (3, {"prefetch": NextGate(1)}), (EXPERTS - 1, {}), (EXPERTS, {})):
        with offload(model, systems.quantized(form, slots=slots, **fields)) as engine:
            texts.append(engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids)
    assert texts == [wanted] * 4
    before.check(model)


def test_a_fetch_moves_the_encoded_block_and_slots_hold_it():
    model = make()
    with offload(model, systems.quantized(Int4(8), slots=3)) as engine:
        out = engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)
        pools, cache = engine._server._slots, engine._server.scheduler.cache
        encoding = Encoding(engine._server.arenas[0].layout, Int4(8))
        for at, arena in enumerate(engine._server.arenas):
            for slot, expert in enumerate(cache.expert_in[0, at]):
                assert torch.equal(pools[at].blocks[slot], encoding.encode(arena.blocks[expert][None])[0])
        assert engine._server.slot_bytes == 3 * 3 * encoding.nbytes
    about, copies = engine.trace.conditions, [copy for p in engine.trace.passes for copy in p.copies]
    assert about["expert_bytes"] == encoding.nbytes == engine.trace.conditions["form_bytes"][0]
    assert sum(step.bytes_moved for step in out.steps) == len(copies) * encoding.nbytes > 0
    assert "Int4(group=8)" in about["slots_chosen"] and "Int4(group=8)" in engine.report().attrs["system"]


def test_the_same_budget_holds_more_slots_of_fewer_bits():
    model, slots = make(), {}
    one = plan(model).slots_gb / EXPERTS
    for codec in (Full(), Int8(8), Int4(8)):
        with offload(model, MobileConfig(codec=codec, budget_gb=2.5 * one)) as engine:
            slots[type(codec)], taken = engine.slots, engine._server.slot_bytes
            assert taken <= 2.5 * one * 1e9
        planned = plan(model, codec=codec, budget_gb=2.5 * one)
        assert (planned.slots, planned.slots_gb) == (engine.slots, pytest.approx(taken / 1e9))
        assert planned.arenas_gb >= plan(model).arenas_gb
    assert slots[Full] == 2 < slots[Int8] <= slots[Int4] == EXPERTS


def test_costs_follow_the_form():
    geometry, card = Geometry.of("olmoe-1b-7b"), Hardware.preset("rtx4080-pcie4")
    costs = Costs(card, geometry, 16, (None, Int4().bytes_per_weight))
    assert costs.bytes_of(0) == costs.expert_bytes == geometry.expert_bytes
    assert costs.bytes_of(1) == round(geometry.expert_params * (0.5 + 1 / 32))
    assert costs.fetch_of(1) - card.link_latency_s == pytest.approx(
        (costs.fetch_of(0) - card.link_latency_s) * costs.bytes_of(1) / costs.bytes_of(0)
    )
    more = costs.bytes_of(1) + geometry.expert_bytes  # read in its form and written; reading it again is in both
    assert costs.expert_s(1, 1) - costs.expert_s(1) == pytest.approx(
        more / (card.memory_gb_per_s * 1e9) + card.launch_s
    )


def test_the_engine_changes_its_codec_and_gives_the_weights_back():
    model = make("qwen2_moe")
    before, wanted = Snapshot.of(model), plain(model, prompt(), NEW)
    with offload(model, MobileConfig(codec=Int2(8), slots=3)) as engine:
        rough = engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids
        engine.change(MobileConfig(codec=Mixed(low=Int2(8), low_slots=2), slots=3))
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == wanted
        engine.change(MobileConfig(slots=3))
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == wanted != rough
    before.check(model)
    with pytest.raises(KeyboardInterrupt), offload(model, systems.hobbit(slots=2)):
        raise KeyboardInterrupt
    before.check(model)


# -- two forms -----------------------------------------------------------------------------------------------------


def test_hobbit_answers_by_the_weight_that_stands_before_an_expert():
    experts, weights = [3, 1, 4, 0, 5], [8 / 16, 4 / 16, 2 / 16, 1 / 16, 1 / 16]  # before each: 0, .5, .75, .875, .9375
    assert LowBits().serve(experts, weights, [False] * 5) == [3, 1, Low(4), Low(0), None]
    assert LowBits().serve(experts, weights, [False] * 4 + [True]) == [3, 1, Low(4), Low(0), 5]
    assert LowBits(0.5, 0.75).serve(experts, weights, [False] * 5) == [3, 1, Low(4), None, None]
    assert LowBits(0, 0).serve(experts, weights, [False] * 5) == [3, None, None, None, None]
    assert LowBits(0, 1).serve(experts, [2 * w for w in weights], [True, True] + [False] * 3) == [
        3,
        1,
        Low(4),
        Low(0),
        Low(5),
    ]
    with refused("LowBits.t2"):
        LowBits(0.6, 0.5)


def test_a_prefetch_in_form_takes_the_gates_weights():
    view = SimpleNamespace(layers=2, gate=lambda at: [3, 1, 4], scores=lambda at: [0.1, 0.25, 0, 0.5, 0.15], top_k=3)
    (wanted,) = InForm(NextGate(1), LowBits(0.5, 0.8)).wanted(0, view)
    assert wanted == Wanted(1, (3, Low(1))) and isinstance(wanted.experts[1], Low), "before 1 stand 5/9, before 4 7.5/9"


def test_high_precision_uses_keep_an_expert():
    history = History(
        last_used=np.array([[3.0, 2.0, 1.0]]),
        uses=np.array([[4.0, 4.0, 4.0]]),
        fetched=np.zeros((1, 3)),
        finest=np.array([[0.0, 1.0, 4.0]]),
    )
    assert Weighted().score(history).argmin() == 2 and Weighted(0.1, 0.1, 1.0).score(history).argmin() == 0


def two_pools(high, low, *, experts=5, layers=1, fetch=(4.0, 1.0)):
    sizes = np.array([[[high, low]] * layers])
    cache = Cache(layers, experts, sizes, LRU())
    link = SimulatedLink(VirtualClock(), layers, high + low, np.repeat(fetch, [high, low])[None])
    return Scheduler(cache, link)


def test_an_expert_comes_in_two_forms_each_with_its_slots_its_bytes_and_its_time():
    scheduler = two_pools(2, 1)
    low = 5  # entry of expert e in the second form: e + 5

    def ask(*entries):
        scheduler.begin_pass()
        waves = list(scheduler.request(0, np.array([entries]), np.zeros((1, len(entries)))))
        return waves, [(c.expert, c.form, c.slot, c.evicted, c.end - c.begin) for c in scheduler.take_copies()]

    assert ask(3, 1 + low)[1] == [(3, 0, 0, -1, 4.0), (1, 1, 2, -1, 1.0)]
    assert ask(4, 0 + low)[1] == [(4, 0, 1, -1, 4.0), (0, 1, 2, 1, 1.0)], "a low expert leaves for a low one"
    assert ask(1, 3)[1] == [(1, 0, 1, 4, 4.0)], "3 is asked for, so 4 leaves; the low slot is nobody else's"
    waves, copies = ask(2 + low, 1 + low)
    assert [len(wave) for wave in waves] == [1, 1] and len(copies) == 2, "one low slot: they take turns"
    assert scheduler.fetches[0, 0].tolist() == [3, 4] and scheduler.link.copying_s[0] == 3 * 4.0 + 4 * 1.0


@calm
@given(
    high=st.integers(1, 6),
    low=st.integers(1, 6),
    asked=st.lists(st.lists(st.integers(0, 9), unique=True, min_size=1, max_size=6), min_size=1, max_size=12),
    wanted=st.lists(st.integers(0, 9), max_size=5),
)
def test_forms_keep_to_their_pools_whatever_is_asked_for(high, low, asked, wanted):
    high, low = min(high, 5), min(low, 5)
    scheduler, holds = two_pools(high, low), {}
    cache, link = scheduler.cache, scheduler.link
    for slot, entry in enumerate(cache.expert_in[0, 0].tolist()):
        holds[slot] = entry
    link.mover = lambda layer, entry, slot: holds.__setitem__(slot, entry)
    for entries in asked:
        scheduler.begin_pass()
        scheduler.want([Wanted(0, tuple(wanted))])
        link.elapse(2.0)
        given_out = []
        for wave in scheduler.request(0, np.array([entries]), np.ones((1, len(entries)))):
            given_out += [entry for entry, _ in wave]
            assert all(holds[slot] == entry and cache.form_in[slot] == entry // 5 for entry, slot in wave)
        assert sorted(given_out) == sorted(entries)
        there = [(slot, e) for slot, e in enumerate(cache.expert_in[0, 0].tolist()) if e >= 0]
        assert all(cache.form_in[slot] == e // 5 and cache.slot_of[0, 0, e] == slot for slot, e in there)
        assert len({e for _, e in there}) == len(there)
    made = scheduler.take_copies()
    by_form = [sum(copy.form == form for copy in made) for form in (0, 1)]
    assert by_form == scheduler.fetches[0, 0].tolist()
    assert sum(by_form) == sum(scheduler.counts[name].sum() for name in ("misses", "prefetches"))
    assert link.copying_s[0] == 4.0 * by_form[0] + 1.0 * by_form[1]


def hobbit(model, n=3 * NEW, **fields):
    with offload(model, systems.hobbit(**({"low": Int4(8)} | fields)), hardware="t4-colab") as engine:
        text = engine.generate(prompt(8), max_new_tokens=n, **GREEDY).token_ids
    return engine, text


def test_hobbit_fetches_both_forms_and_its_trace_says_which(tmp_path):
    engine, _ = hobbit(make(), t1=0.3, t2=0.7, slots=2, low_slots=2)
    sizes, copies = engine.trace.conditions["form_bytes"], [c for p in engine.trace.passes for c in p.copies]
    by_form = [sum(copy.form == form for copy in copies) for form in (0, 1)]
    assert min(by_form) > 0 and sizes[1] < 0.4 * sizes[0]
    frame = engine.trace.to_frame("passes")
    assert frame.bytes_moved.sum() == by_form[0] * sizes[0] + by_form[1] * sizes[1]
    assert engine.report().gb_moved.sum() * 1e9 == pytest.approx(frame.bytes_moved.sum())
    assert all(copy.slot < 2 if copy.form == 0 else copy.slot >= 2 for copy in copies)
    engine.trace.save(tmp_path / "trace.parquet")
    assert Trace.load(tmp_path / "trace.parquet").passes == engine.trace.passes


def test_hobbit_is_the_full_model_where_nothing_is_absent_or_everything_comes_in_full():
    model = make()
    wanted = plain(model, prompt(8), 3 * NEW)
    assert hobbit(model, slots=EXPERTS)[1] == wanted
    assert hobbit(model, t1=1.0, t2=1.0, slots=2)[1] == wanted
    assert hobbit(model, t1=0.0, t2=1.0, low=Int2(8), slots=2)[1] != wanted


def test_a_low_answer_needs_a_codec_with_two_forms():
    for codec in (Full(), PerExpert.by_importance([range(EXPERTS)] * 3)):
        with (
            offload(make(), MobileConfig(miss=LowBits(0, 1), codec=codec, slots=2)) as engine,
            refused("coarser", "Mixed"),
        ):
            engine.generate(prompt(), max_new_tokens=3, **GREEDY)


# -- a form for each expert ----------------------------------------------------------------------------------------


def test_the_important_experts_have_the_most_bits():
    codec = PerExpert.by_importance([[5, 1, 4, 2], [1, 2, 3, 4]], (Full(), Int4(), Int2()), (0.25, 0.5, 0.25))
    assert codec.own == ((0, 2, 1, 1), (2, 1, 1, 0)) and codec.counts == (1, 2, 1)
    assert [codec.pools(n) for n in (1, 2, 4, 9)] == [(1, 1, 1), (1, 1, 1), (1, 2, 1), (1, 2, 1)]
    with refused("equally many"):
        PerExpert((Full(), Int4()), [[0, 1, 1], [0, 0, 1]])
    with refused("2 layers", "3 of 8"), offload(make(), systems.mc(PerExpert((Full(), Int4()), [[0, 1] * 4] * 2))):
        pass


def test_each_expert_runs_in_its_own_form_and_no_slots_change_the_text():
    importance = torch.rand(3, EXPERTS, generator=torch.Generator().manual_seed(1)).tolist()
    codec = PerExpert.by_importance(importance, (Full(), Int8(8), Int2(8)), (0.25, 0.5, 0.25))
    model, texts = make(), []
    for slots in (1, 4, EXPERTS):
        with offload(model, MobileConfig(codec=codec, slots=slots)) as engine:
            texts.append(engine.generate(prompt(9), max_new_tokens=NEW, **GREEDY).token_ids)
            for done in engine.trace.passes:
                assert all(copy.form == codec.own[copy.layer][copy.expert] for copy in done.copies)
            assert not any(done.copies for done in engine.trace.passes) or slots < EXPERTS
    rounded = make()
    for at, module in enumerate(m.experts for m in rounded.modules() if hasattr(m, "experts")):
        for form in (Int8(8), Int2(8)):
            twin = [m.experts for m in dequantised(make(), form).modules() if hasattr(m, "experts")][at]
            for expert in range(EXPERTS):
                if codec.forms[codec.own[at][expert]] == form:
                    for name, p in module.named_parameters(recurse=False):
                        p.data[expert] = getattr(twin, name).data[expert]
    assert texts == [plain(rounded, prompt(9), NEW)] * 3


def test_small_weights_are_left_out():
    count = WeightRatio(0.5)
    assert count.run("big", 0, 4, [0.4, 0.2, 0.19, 0.01]) == (2, None)
    assert count.run("big", 0, 4, [0.4, 0.1, 0.1, 0.1]) == (1, None) and count.run("prompt", 0, 4) == (4, None)
    assert WeightRatio(0).run("big", 0, 4, [0.4, 0.2, 0.1, 0]) == (4, None)


# -- slots by layer ------------------------------------------------------------------------------------------------


def test_layers_may_have_slots_of_their_own_and_the_text_stays():
    model = make()
    with offload(model, systems.adapmoe((1, 1, 1), 0.0, slots=[1, 4, EXPERTS + 3])) as engine:
        text = engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids
    report = engine.report()
    assert report.slots.tolist() == [1, 4, EXPERTS] and (report.resident <= report.slots).all()
    assert report.misses.tolist()[2] == 0 < min(report.misses.tolist()[:2])
    assert text == plain(model, prompt(), NEW)
    with refused("2 layers", "3"), offload(model, MobileConfig(slots=[1, 4])):
        pass
    with refused("each of slots"):
        MobileConfig(slots=[1, 0])


def test_sizes_by_layer_load_least_and_replay_as_they_run():
    from mobile_nb import replay
    from mobile_nb.analysis.curves import slots_by_layer

    model = make()

    def live(slots):
        with offload(model, systems.on_demand(slots=slots)) as engine:
            engine.generate(prompt(), max_new_tokens=12, **GREEDY)
        return engine.trace

    trace = live(3)
    others = [(3, 3, 3), (1, 4, 4), (4, 1, 4), (4, 4, 1), (2, 2, 5), (5, 2, 2), (1, 1, 7)]
    loads = [sum(int(p.misses.sum()) for p in replay(trace, systems.on_demand(slots=s)).trace.passes) for s in others]
    best = slots_by_layer(trace, 9)
    assert sum(best) == 9 and len(best) == 3
    found = live(best)
    assert sum(int(p.misses.sum()) for p in found.passes) <= min(loads)
    assert replay(found, systems.on_demand(slots=best)).trace.passes == found.passes
