"""Experts that come in pieces (FloE): which channels run, that only these are fetched, and what that costs."""

import itertools
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import EXPERTS, GREEDY, Snapshot, gap, make, plain, prompt, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from mobile_nb import Hardware, MobileConfig, Trace, offload, plan, replay, systems
from mobile_nb.analysis.spans import spans
from mobile_nb.clock import VirtualClock
from mobile_nb.costs import Costs
from mobile_nb.hardware import Geometry
from mobile_nb.memory.cache import Cache
from mobile_nb.memory.channels import ChannelScheduler
from mobile_nb.memory.codecs import Encoding, first_piece
from mobile_nb.memory.link import SimulatedLink
from mobile_nb.memory.store import Layout
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.channels import ChannelExperts, up_outputs
from mobile_nb.policies import LRU, Channels, Full, Int2, Int4, OnHost, Popular, Popularity, PreviousToken
from mobile_nb.runtime.needs import refuse
from mobile_nb.vocabulary import Wanted

NEW = 6
SMALL_SET = ("olmoe", "qwen2_moe", "deepseek_v2", "qwen3_moe")
POPULAR = Popular(Popularity(np.arange(3.0 * EXPERTS).reshape(3, EXPERTS)))
calm = settings(derandomize=True, deadline=None, max_examples=20)


def channels(model, sparsity=0.5, up=None, **fields):
    up = Int2(8) if up is None else up
    return Channels.by_sparsity(up_outputs(model, [prompt(20, seed=9)], up), sparsity, up=up, **fields)


def sparse(model, codec):
    """The model itself, its experts as Algorithm 1 of the paper has them: a second opinion, in plain loops."""
    for at, layer in enumerate(find_layers(model)):
        experts = layer.experts
        inner = experts.down_proj.shape[2]
        ups = [matrix[inner:].clone() for matrix in experts.gate_up_proj.data]
        if codec.up.bits is not None:
            piece = first_piece(Layout.of(experts, EXPERTS))
            encoding, out = Encoding(piece, codec.up), torch.zeros(EXPERTS, piece.numel)
            encoding.decode(encoding.encode(torch.stack(ups).flatten(1)), out)
            ups = list(out.view(EXPERTS, inner, -1))

        def forward(self, hidden, index, weights, at=at, ups=ups, inner=inner):
            rows = []
            for x, ids, amounts in zip(hidden, index.tolist(), weights, strict=True):
                y = torch.zeros_like(x)
                for expert, weight in zip(ids, amounts, strict=True):
                    v = ups[expert] @ x
                    mask = v.abs() > codec.thresholds[at][expert]
                    gate = self.gate_up_proj[expert][:inner][mask]
                    y += weight * (self.down_proj[expert][:, mask] @ (self.act_fn(gate @ x) * v[mask]))
                rows.append(y)
            return torch.stack(rows)

        experts.forward = types.MethodType(forward, experts)
    return model


# -- the rule ------------------------------------------------------------------------------------------------------


def test_channels_run_where_up_is_larger_than_the_threshold():
    model = make()
    (layer, *_) = find_layers(model)
    inner = layer.experts.down_proj.shape[2]
    with torch.no_grad():
        for p in layer.experts.parameters():
            p.zero_()
        layer.experts.gate_up_proj[0, :3, 0] = torch.tensor([1.0, 2.0, 3.0])  # gate, then up; x is (1, 2, 0 …)
        layer.experts.gate_up_proj[0, inner : inner + 3, 1] = torch.tensor([0.5, -0.25, 0.25])  # up: 1, -0.5, 0.5
        layer.experts.down_proj[0, 4, :3] = torch.tensor([1.0, 10.0, 100.0])
    layout, x = Layout.of(layer.experts, EXPERTS), torch.zeros(1, model.config.hidden_size)
    x[0, :2] = torch.tensor([1.0, 2.0])
    blocks = torch.zeros(EXPERTS, layout.numel)
    for name, view in layout.views(blocks).items():
        view.copy_(getattr(layer.experts, name).data)
    arena, first, half = types.SimpleNamespace(blocks=blocks, layout=layout), torch.tensor([[0]]), torch.tensor([[0.5]])
    silu = [1 / (1 + np.exp(-1)), 2 / (1 + np.exp(-2)), 3 / (1 + np.exp(-3))]
    for threshold, runs in ((0.0, [0, 1, 2]), (0.25, [0, 1, 2]), (0.5, [0]), (1.0, [])):
        codec = Channels([[threshold] * EXPERTS], up=Full())
        experts = ChannelExperts(layer, 0, arena, codec)
        assert experts.mask(0, x)[0].nonzero()[:, 0].tolist() == runs, "larger, not as large"
        want = sum([silu[0], -0.5 * 10 * silu[1], 0.5 * 100 * silu[2]][c] for c in runs) / 2
        out = experts(x, first, half)[0]
        assert out[4].item() == pytest.approx(want, rel=1e-5) and out.count_nonzero() == bool(runs)


def test_a_threshold_lets_the_share_run_that_was_asked_for():
    made = up_outputs(make(), [prompt(20, seed=9), prompt(9)], Int4(8))
    assert len(made) == 3 and [each.shape[1] for each in made[0]] == [made[0][0].shape[1]] * EXPERTS
    for sparsity in (0.3, 0.9):
        codec = Channels.by_sparsity(made, sparsity)
        for outputs, thresholds in zip(made, codec.thresholds, strict=True):
            for each, threshold in zip(outputs, thresholds, strict=True):
                assert (np.abs(each) <= threshold).mean() == pytest.approx(sparsity, abs=1.5 / each.size)
    assert {t for row in Channels.by_sparsity(made, 0).thresholds for t in row} == {0.0}
    routed = sum(len(each) for each in made[0])
    assert routed >= 29 * 4, "each token is seen by the four experts that it is routed to"


@pytest.mark.parametrize("name", SMALL_SET)
def test_without_a_threshold_and_with_full_ups_it_is_the_full_model(name):
    model, ids = make(name), prompt(9)
    wanted = model.generate(
        ids, max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True,
        attention_mask=torch.ones_like(ids), **GREEDY,
    )  # fmt: skip
    before = Snapshot.of(model)
    for slots in (1, 3, EXPERTS):
        with offload(model, systems.floe(channels(model, 0, up=Full()), slots=slots)) as engine:
            out = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
        assert out.token_ids == wanted.sequences[0, 9:].tolist()
        assert gap(torch.cat(out.logits), torch.cat(wanted.logits)) < 1e-5
    before.check(model)


@pytest.mark.parametrize("name", SMALL_SET)
def test_the_text_is_that_of_the_sparse_experts_with_any_number_of_slots_and_any_prefetch(name):
    """Law 4 for it: caches and prefetches change time, never tokens, though channels come at different times."""
    model, ids = make(name), prompt(9)
    codec = channels(model, 0.9)
    wanted, texts = plain(sparse(make(name), codec), ids, NEW), []
    for config in (
        systems.floe(codec, slots=1),
        systems.floe(codec, slots=3, evict=POPULAR, prefetch=PreviousToken()),
        systems.floe(replace(codec, ahead=False), slots=5),
        systems.floe(codec, slots=EXPERTS),
        systems.speculative(3, slots=4, codec=codec),  # drafts are read several at once
    ):
        with offload(model, config) as engine:
            texts.append(engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids)
    assert texts == [wanted] * 5 and wanted != plain(model, ids, NEW)


# -- what travels --------------------------------------------------------------------------------------------------


def scheduler_of(slots, *, experts=3, size=4, first=4.0, configs=1):
    cache = Cache(2, experts, np.full(configs, slots), LRU())
    link = SimulatedLink(VirtualClock(configs), 2, slots, np.full(configs, first))
    return ChannelScheduler(cache, link, size, lambda amount: 1.0 + amount / 2)


def ask(scheduler, layer, ids, needed, up=1.0, rest=0.5, between=None):
    """Of one configuration. What was copied, and when the layer was over."""
    needed = np.array([[[c in some for c in range(scheduler.there.shape[3])] for some in needed]])
    scheduler.need(needed, np.full((1, len(ids)), rest))
    list(scheduler.request(layer, np.array([ids]), np.full((1, len(ids)), up), between))
    copies = [(c.kind, c.expert, c.form, c.amount, c.begin, c.end) for c in scheduler.take_copies()]
    return copies, float(scheduler.link.clock.now[0])


def test_first_pieces_come_first_and_then_the_channels_that_are_missing():
    scheduler = scheduler_of(2)
    copies, over = ask(scheduler, 0, [0, 1], [{0, 1}, {2}])
    assert copies == [
        ("demand", 0, 0, 1, 0.0, 4.0),
        ("demand", 1, 0, 1, 4.0, 8.0),
        ("demand", 0, 1, 2, 8.0, 10.0),  # its mask was known at 5, and the link was busy
        ("demand", 1, 1, 1, 10.0, 11.5),
    ]
    assert over == 12.0
    copies, over = ask(scheduler, 0, [0], [{1}])
    assert (copies, over) == ([], 13.5), "all is there: it is computed at once"
    copies, over = ask(scheduler, 0, [0], [{1, 2, 3}])
    assert (copies, over) == ([("demand", 0, 1, 2, 14.5, 16.5)], 17.0), "its mask is known when its up was computed"
    copies, _ = ask(scheduler, 0, [2], [{0}])
    assert [copy[1:4] for copy in copies] == [(2, 0, 1), (2, 1, 1)]
    copies, _ = ask(scheduler, 0, [1], [{2}])
    assert [copy[1:4] for copy in copies] == [(1, 0, 1), (1, 1, 1)], "it left, and its channels with it"
    assert scheduler.fetches[0].tolist() == [[4, 7], [0, 0]]


def test_a_prefetch_brings_what_was_foreseen_and_a_resident_what_it_lacks():
    scheduler = scheduler_of(3, experts=5, first=2.0)
    channels_of = {0: {0}, 1: {1, 2}}
    scheduler.foresee = lambda layer, expert: np.array([[c in channels_of[expert] for c in range(4)]])
    scheduler.want([Wanted(1, (0, 1))])
    copies, _ = ask(scheduler, 0, [2], [{3}])
    assert [copy[:4] for copy in copies] == [("prefetch", 0, 0, 1), ("prefetch", 0, 1, 1)] + [
        ("demand", 2, 0, 1), ("demand", 2, 1, 1)
    ]  # fmt: skip
    assert copies[1][4:] == (2.0, 3.5) and copies[2][4] == 3.5
    scheduler.link.elapse(9.0)
    copies, _ = ask(scheduler, 1, [0, 1], [{0}, {1, 3}])
    assert [copy[:4] for copy in copies] == [("prefetch", 1, 0, 1), ("prefetch", 1, 1, 2), ("demand", 1, 1, 1)]
    channels_of[0] = {0, 3}
    scheduler.want([Wanted(1, (0,))])
    assert [(c.kind, c.form, c.amount) for c in scheduler.take_copies()] == [("prefetch", 1, 1)], "3 is what it lacks"
    assert scheduler.counts["prefetches"][0].tolist() == [0, 2], "experts are counted, channels are not"


@calm
@given(
    slots=st.integers(1, 4),
    turns=st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), unique=True, min_size=1, max_size=4),
            st.lists(st.sets(st.integers(0, 3)), min_size=4, max_size=4),
            st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=3),
        ),
        min_size=1, max_size=8,
    ),
    foreseen=st.lists(st.sets(st.integers(0, 3)), min_size=4, max_size=4),
)  # fmt: skip
def test_bytes_are_the_sum_of_the_channels_that_were_fetched_and_nothing_is_fetched_twice(slots, turns, foreseen):
    scheduler, held, moved = scheduler_of(slots, experts=4), {}, [0, 0]
    seated = {(layer, int(slot)): set(range(4)) for layer in range(2) for slot in range(slots) if slots == 4}
    held |= seated

    def came(layer, expert, slot):
        held[layer, slot] = set()
        moved[0] += 1

    def filled(layer, expert, slot, copied):
        more = set(np.flatnonzero(copied).tolist())
        assert more and not more & held[layer, slot], "fetched though it was there"
        held[layer, slot] |= more
        moved[1] += len(more)

    scheduler.link.mover, scheduler.fill = came, filled
    scheduler.foresee = lambda layer, expert: np.array([[c in foreseen[expert] for c in range(4)]])
    copies = []
    for n, (ids, needs, wanted) in enumerate(turns):
        layer, mine = n % 2, dict(zip(range(4), needs, strict=True))
        if not layer:
            scheduler.begin_pass()
        scheduler.need(np.array([[[c in mine[e] for c in range(4)] for e in ids]]), np.full((1, len(ids)), 0.25))
        before, computed = float(scheduler.link.clock.now[0]), []

        def consult(wanted=wanted):
            scheduler.want([Wanted(at, (expert,)) for at, expert in wanted])

        for wave in scheduler.request(layer, np.array([ids]), np.full((1, len(ids)), 0.5), consult):
            for expert, slot in wave:
                computed.append(expert)
                assert held[layer, slot] >= mine[expert], "computed without a channel that it needs"
        assert sorted(computed) == sorted(ids)
        assert scheduler.link.clock.now[0] >= before + 0.5 * len(ids)
        copies += scheduler.take_copies()
        for (at, slot), some in held.items():
            assert set(np.flatnonzero(scheduler.there[0, at, slot]).tolist()) == some
    assert scheduler.fetches[0].sum(axis=0).tolist() == moved
    assert moved[1] == sum(copy.amount for copy in copies if copy.form == 1)
    assert moved[0] == sum(scheduler.counts[name].sum() for name in ("misses", "prefetches"))
    seconds = [4.0 if copy.form == 0 else 1.0 + copy.amount / 2 for copy in copies]
    assert [copy.end - copy.begin for copy in copies] == pytest.approx(seconds)
    assert scheduler.link.copying_s[0] == pytest.approx(sum(seconds))
    assert all(a.end <= b.begin for a, b in itertools.pairwise(copies)), "one copy at a time"


def test_a_run_moves_what_its_trace_says_and_less_than_whole_experts(tmp_path):
    model, ids = make(), prompt(9)
    found = {}
    for name, config in {
        "whole": systems.next_gate(slots=3),
        "pieces": systems.floe(channels(model, 0.8), slots=3),
        "dense": systems.floe(channels(model, 0), slots=3),
        "late": systems.floe(channels(model, 0.8, ahead=False), slots=3),
    }.items():
        with offload(model, config, hardware="t4-colab") as engine:
            steps = engine.generate(ids, max_new_tokens=NEW, **GREEDY).steps
            report, about = engine.report(), engine.trace.conditions
        copies = [copy for p in engine.trace.passes for copy in p.copies]
        found[name] = sum(step.bytes_moved for step in steps)
        sizes = about.get("form_bytes", [about["expert_bytes"]])
        assert found[name] == sum(sizes[copy.form] * copy.amount for copy in copies)
        assert report.gb_moved.sum() * 1e9 == pytest.approx(found[name])
        engine.trace.save(tmp_path / "trace.parquet")
        assert Trace.load(tmp_path / "trace.parquet").passes == engine.trace.passes
        if name == "late":
            assert all(copy.kind == "demand" for copy in copies if copy.form)
    layout = Layout.of(find_layers(model)[0].experts, EXPERTS)
    hidden = model.config.hidden_size
    assert sizes == [Encoding(first_piece(layout), Int2(8)).nbytes, 2 * 4 * hidden], "of `up`, and of one channel"
    assert found["late"] <= found["pieces"] < found["dense"] < found["whole"]


def test_fewer_channels_are_waited_for_where_they_are_foreseen():
    """Of experts that are all asked for and mostly there, so that only channels are left to predict."""
    model, late = make(num_experts_per_tok=EXPERTS), {}
    for ahead in (False, True):
        codec = channels(model, 0.8, ahead=ahead)
        with offload(model, systems.floe(codec, slots=EXPERTS - 1)) as engine:
            engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)
        of_channels = [c for p in engine.trace.passes for c in p.copies if c.form]
        assert any(c.kind == "prefetch" for c in of_channels) == ahead
        late[ahead] = sum(c.amount for c in of_channels if c.kind == "demand")
    assert 0 < late[True] < late[False]


# -- room, time and refusals ---------------------------------------------------------------------------------------


def test_a_slot_has_room_for_every_channel_and_a_budget_counts_it():
    model = make()
    one, codec = plan(model).slots_gb / EXPERTS, channels(model)
    with offload(model, MobileConfig(codec=codec, budget_gb=2.5 * one)) as engine:
        taken, slots = engine._server.slot_bytes, engine.slots
        engine.generate(prompt(), max_new_tokens=2, **GREEDY)
    planned = plan(model, codec=codec, budget_gb=2.5 * one)
    assert slots == 3 and taken <= 2.5 * one * 1e9 and planned.slots == 3
    assert planned.slots_gb == pytest.approx(taken / 1e9)
    layout = Layout.of(find_layers(model)[0].experts, EXPERTS)
    assert taken == 3 * 3 * (Encoding(first_piece(layout), Int2(8)).nbytes + layout.weights * 4 * 2 / 3)


def test_costs_of_pieces():
    geometry, card = Geometry.of("olmoe-1b-7b"), Hardware.preset("rtx4080-pcie4")
    codec = Channels([[0.0]])
    costs = Costs(card, geometry, 16, codec.pieces(geometry.bytes_per_weight, 1024))
    assert costs.bytes_of(1) * 1024 == pytest.approx(geometry.expert_bytes * 2 / 3, rel=1e-3)
    assert costs.bytes_of(0) == round(geometry.expert_params / 3 * Int2().bytes_per_weight)
    up, channel = codec.pieces(2.0, 1000, up=0.25)
    assert 2.0 / (up + 100 * channel) == pytest.approx(9.23, abs=0.01), "of 1000 channels a tenth: the paper's 9.3"
    assert costs.channels_fetch_s(np.array([0, 2])) == pytest.approx(
        card.link_latency_s + np.array([0, 2]) * costs.bytes_of(1) / (card.link_gb_per_s * 1e9)
    )
    plain_costs = Costs(card, geometry, 16, Channels([[0.0]], up=Full()).pieces(geometry.bytes_per_weight, 1024))
    assert plain_costs.up_s() + plain_costs.channels_s(1.0) == pytest.approx(Costs(card, geometry, 16).expert_s())
    assert costs.up_s() > plain_costs.up_s(), "decoding is charged"


def test_what_cannot_come_in_pieces_is_refused():
    model = make()
    codec = channels(model)
    with refused("the thresholds are for 3 layers of 8 experts"), offload(make(num_experts=6), systems.floe(codec)):
        pass
    with refused("act(gate) * up"):
        channels(make("gpt_oss"))
    with refused("act(gate) * up"), offload(make("gpt_oss"), systems.floe(codec)):
        pass
    with refused("whole experts", "miss=Wait()"), offload(model, systems.floe(codec, miss=OnHost(0.5))):
        pass
    with refused("simulated links only"):
        refuse(MobileConfig(codec=codec), find_layers(model), simulated=False)
    with offload(model, systems.floe(codec, slots=3)) as engine:
        engine.generate(prompt(), max_new_tokens=2, **GREEDY)
    with refused("cannot tell what Channels(3 x 8"):
        replay(engine.trace, engine.config)
    with refused("how many channels"):
        spans(engine.trace)
    for rows in ([], [[]], [[0.5], [0.5, 1.0]]):
        with refused("thresholds"):
            Channels(rows)
    with refused("thresholds"):
        Channels([[-1.0]])
    with refused("sparsity"):
        Channels.by_sparsity([[np.ones((2, 3))]], 90)
    with refused("up must be a form"):
        Channels([[0.0]], up=Int2)


def test_the_engine_changes_to_it_and_gives_the_weights_back():
    model = make("qwen2_moe")
    before, wanted, codec = Snapshot.of(model), plain(model, prompt(), NEW), channels(model, 0.8)
    with offload(model, systems.floe(codec, slots=3)) as engine:
        few = engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids
        engine.change(MobileConfig(slots=3))
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == wanted != few
        engine.change(systems.floe(codec, slots=EXPERTS))
        stream = engine.stream(prompt(), max_new_tokens=NEW, **GREEDY)
        next(stream)
        stream.close()
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == few
    before.check(model)
    with pytest.raises(KeyboardInterrupt), offload(model, systems.floe(codec, slots=2)):
        raise KeyboardInterrupt
    before.check(model)
