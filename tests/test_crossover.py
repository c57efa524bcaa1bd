"""Prompts whose misses are the host's or the link's, by how many tokens ask for an expert (Fiddler's crossover)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import EXPERTS, GREEDY, every_architecture, gap, make, plain, prompt, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from mobile_nb import Geometry, Hardware, MobileConfig, MobileError, load, offload, replay, systems
from mobile_nb.analysis.spans import spans
from mobile_nb.costs import NEVER, Costs
from mobile_nb.memory.disk import DiskArena
from mobile_nb.memory.store import Arena
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.experts import HostExperts
from mobile_nb.policies import LFU, NearScore, OnHost, Popularity, Wait

NEW = 5
# a slow host: from two tokens on its time grows with them
CARD = Hardware("card", 10, 500, 50, 16, link_latency_s=1e-5, launch_s=0, host_gb_per_s=40, host_tflops=0.05)
TIMED = {"hardware": CARD, "geometry": "olmoe-1b-7b"}


def facts(trace):
    """Of each pass: times, copies and counts."""
    return [
        (p.mode, p.begin, p.end, p.copies, *(x.tolist() for x in (p.requests, p.hits, p.misses))) for p in trace.passes
    ]


def write(model, config, *prompts, new=NEW, **words):
    with offload(model, config, **(TIMED | words)) as engine:
        return engine, [engine.generate(each, max_new_tokens=new, **GREEDY).token_ids for each in prompts]


# -- the rule ------------------------------------------------------------------------------------------------------


def test_few_tokens_are_the_hosts_and_many_are_fetched_for():
    there = [False, False, False, True]
    assert OnHost(0.5, crossover=3).several([9, 4, 3, 1], there) == [False, False, True, False]
    assert OnHost(0.5).several([9, 4, 3, 1], there) == OnHost(0.5, crossover=0).several([9, 4, 3, 1], there)
    assert not any(OnHost(0.5).several([9, 4, 3, 1], there))
    assert OnHost(2, balance=True, crossover=1).several([1], [False]) == [True], "whatever single tokens do"
    for wrong in (-1, 1.5, "few", True):
        with refused("OnHost.crossover", kinds=(ValueError, TypeError)):
            OnHost(0.5, crossover=wrong)


rates = st.floats(0.5, 400)


@given(
    link=rates,
    memory=st.floats(100, 4000),
    host=rates,
    tflops=st.floats(0.05, 8),
    name=st.sampled_from(["olmoe-1b-7b", "deepseek-v2-lite"]),
)
def test_the_crossover_is_where_host_and_fetch_take_equally_long(link, memory, host, tflops, name):
    machine = Hardware("any", link, memory, 60, 16, host_gb_per_s=host, host_tflops=tflops)
    costs = Costs(machine, Geometry.of(name), Geometry.of(name).moe_layers)
    most = costs.crossover()
    assert 0 <= most < NEVER
    assert most == 0 or costs.host_s(most) < costs.fetch_s + costs.expert_s(most)
    assert costs.host_s(most + 1) >= costs.fetch_s + costs.expert_s(most + 1)
    assert OnHost.of(machine, Geometry.of(name)) == OnHost(costs.host_ratio(), crossover=most)
    assert (most > 0) == (costs.host_ratio() < 1), "a prompt of one token is served like a token that is written"


def test_fiddler_decides_so_by_default():
    """Without a profiled one, host seconds grow with tokens: at a third of a fetch's for one token, two are faster."""
    popular = Popularity(np.ones((3, 8)))
    assert [systems.fiddler(popular, r).miss.crossover for r in (0.1, 1 / 3, 0.4, 0.5, 1, 7)] == [9, 2, 2, 1, 0, 0]
    assert systems.fiddler(popular, 0.5, 20).miss == OnHost(0.5, crossover=20)


# -- one layer, by hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crossover", [None, 0, 1, 3, 4])
def test_one_expert_that_many_ask_for_and_one_that_few_do(crossover):
    """Four tokens ask for expert 5, one for 2 and one for the resident 7, in one layer of a prompt."""
    model = make()
    index, weights = torch.tensor([[5], [5], [2], [5], [7], [5]]), torch.rand(6, 1)
    hidden = torch.randn(6, model.config.hidden_size)
    with offload(model, MobileConfig(slots=3, miss=OnHost(0.5, crossover=crossover)), **TIMED) as engine:
        server = engine._server
        block, costs, clock = server.layers[0], server.costs, server.link.clock
        wanted = block.experts(hidden, index, weights)
        server.begin_pass("prompt")
        list(server.scheduler.request(0, np.array([[7]]), np.array([[0.0]])))  # it is there, and so is its copy
        counts = {name: count[0, 0] for name, count in server.scheduler.counts.items()}
        server.scheduler.take_copies()
        begin = clock.read()
        out = block.block.experts(hidden, index, weights)
        took = clock.read() - begin - costs.layer_s(6)
        counts = {name: int(count[0, 0] - counts[name]) for name, count in server.scheduler.counts.items()}
        copied = [copy.expert for copy in server.scheduler.take_copies()]
        server.give_up()
    fetch, on_host = costs.fetch_s, {0: 0, 1: 1, 3: 1, 4: 2, None: 0}[crossover]
    assert gap(out, wanted) < 1e-5
    assert copied == {0: [5, 2], 1: [5], 2: []}[on_host]
    assert (counts["requests"], counts["hits"], counts["misses"], counts["host"]) == (3, 1, 2 - on_host, on_host)
    if on_host == 0:
        wait = max(fetch + costs.expert_s(4), 2 * fetch) + costs.expert_s(1)
    elif on_host == 1:
        wait = max(max(fetch, costs.expert_s(1)) + costs.expert_s(4), costs.host_s(1))
    else:
        wait = max(costs.host_s(4) + costs.host_s(1), costs.expert_s(1))
    assert took == pytest.approx(wait)


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
def test_the_host_computes_its_experts_of_many_tokens_and_reads_each_once(name):
    layer, size = find_layers(make(name))[0], make(name).config.hidden_size
    hidden, weights = torch.randn(9, size), torch.rand(9, 4)
    index = torch.stack([torch.randperm(EXPERTS)[:4] for _ in range(9)])
    arena = Arena(layer.experts, layer.num_experts)
    files = SimpleNamespace(
        layout=arena.layout, read=lambda expert, block: reads.append(expert) or block.copy_(arena.blocks[expert])
    )
    mine = [6, 1, 3]
    wanted = layer.experts(hidden, index, weights * torch.isin(index, torch.tensor(mine)))
    for place in (arena, DiskArena(files, layer.num_experts, 0)):
        reads = []
        got = HostExperts(layer.experts, place).several(hidden, index, weights, mine)
        assert gap(got, wanted) < 1e-5
        assert reads in ([], mine)


# -- laws ----------------------------------------------------------------------------------------------------------


@every_architecture
def test_the_text_stays_and_every_request_is_a_hit_a_miss_or_the_hosts(name):
    """Laws 1 and 3."""
    model, ids = make(name), prompt(9, seed=2)
    reference = model.generate(
        ids,
        max_new_tokens=NEW,
        output_logits=True,
        return_dict_in_generate=True,
        attention_mask=torch.ones_like(ids),
        **GREEDY,
    )
    for slots, crossover in ((1, 2), (3, 1), (3, 99)):
        config = MobileConfig(slots=slots, miss=OnHost(0.5, crossover=crossover))
        with offload(model, config) as engine:
            out = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
        assert out.token_ids == reference.sequences[0, ids.shape[1] :].tolist()
        assert gap(torch.cat(out.logits), torch.cat(reference.logits)) < 1e-5
        report, size = engine.report(), engine.trace.conditions["expert_bytes"]
        assert (report.hits + report.misses + report.host == report.requests).all()
        assert sum(step.bytes_moved for step in out.steps) == report.misses.sum() * size
        assert sum(step.host for step in out.steps) == report.host.sum()
        read = engine.trace.passes[0]
        for layer in range(len(read.requests)):
            experts, amounts = np.unique(read.ids[layer], return_counts=True)
            few = int((amounts <= crossover).sum())
            assert read.requests[layer] == len(experts)
            assert read.requests[layer] - read.hits[layer] - read.misses[layer] == few, "the device was empty"
            fetched = [copy.expert for copy in read.copies if copy.layer == layer]
            assert sorted(fetched) == experts[amounts > crossover].tolist()


@settings(max_examples=5)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=3), st.integers(1, 7), st.booleans()
)
def test_nought_fetches_all_and_a_huge_one_fetches_nothing_in_a_prompt(asks, slots, lfu):
    model, ids = make(), [prompt(length, seed=seed) for length, seed in asks]
    base = MobileConfig(slots=slots, **({"evict": LFU()} if lfu else {}))
    runs = {}
    for miss in (OnHost(2), OnHost(2, crossover=0), OnHost(2, crossover=99), Wait()):
        config = MobileConfig(slots=slots, miss=miss, evict=base.evict)
        runs[miss] = write(model, config, *ids, new=3)
    (never, texts), (nought, _), (huge, _), (waits, _) = runs.values()
    assert all(texts == each for _, each in runs.values())
    assert facts(never.trace) == facts(nought.trace) == facts(waits.trace)
    read = [p for p in huge.trace.passes if p.mode == "prompt"]
    assert not any(p.copies or p.misses.any() for p in read)
    assert all(p.ids.shape[1] * 4 >= p.requests.max() for p in read)
    for engine in (never, huge):
        report = engine.report()
        assert (report.hits + report.misses + report.host == report.requests).all()


@pytest.mark.parametrize("miss", [OnHost(0.5, crossover=2), OnHost(0.5, True, Wait(), 1)])
def test_fleet_engine_and_replay_agree(miss):
    """Laws 6 and 10, prompts included: a long one, a short one, one token, and texts one after the other."""
    model = make()
    prompts = [prompt(length, seed=length) for length in (9, 2, 1, 5)]
    config = MobileConfig(slots=3, miss=miss)
    width = max(q.shape[1] for q in prompts)
    ids = torch.cat([torch.nn.functional.pad(q, (width - q.shape[1], 0)) for q in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(q), (width - q.shape[1], 0)) for q in prompts])
    with offload(model, config, **TIMED) as engine, engine.batch() as decoder:
        rows = decoder.write({"input_ids": ids, "attention_mask": mask}, max_new_tokens=NEW, eos_token_id=2)
        account = decoder.fleet.account()
    for at, each in enumerate(prompts):
        with offload(model, config, **TIMED) as engine:
            steps = engine.generate(each, max_new_tokens=NEW, do_sample=False, eos_token_id=2).steps
        report, passes = engine.report(), engine.trace.passes
        assert rows[at].token_ids == [step.token_id for step in steps]
        assert account["seconds"][at] == pytest.approx(passes[-1].end) and account["hits"][at] == report.hits.sum()
        assert (
            account["bytes"][at] == sum(s.bytes_moved for s in steps)
            and account["requests"][at] == report.requests.sum()
        )
        assert steps[0].host == (passes[0].requests - passes[0].hits - passes[0].misses).sum() > 0
    recorded, texts = write(model, MobileConfig(slots=3), *prompts)
    live, same = write(model, config, *prompts)
    assert texts == same == [plain(model, each, NEW) for each in prompts]
    for trace in (recorded.trace, live.trace):
        assert facts(replay(trace, config, hardware=CARD).trace) == facts(live.trace)
        assert facts(replay(trace, recorded.config, hardware=CARD).trace) == facts(recorded.trace)
    assert facts(recorded.trace) != facts(live.trace)


def test_drafts_that_are_read_together_follow_it_too():
    model, ids = make(), prompt(7, seed=3)
    config = systems.speculative(4, slots=3, miss=OnHost(0.5, crossover=1))
    live, texts = write(model, config, ids, new=12)
    assert texts == [plain(model, ids, 12)]
    read = [p for p in live.trace.passes if p.mode == "big" and p.ids.shape[1] > 1]
    assert sum((p.requests - p.hits - p.misses).sum() for p in read) > 0 and sum(p.misses.sum() for p in read) > 0
    assert facts(replay(live.trace, config, hardware=CARD).trace) == facts(live.trace)


def test_what_was_not_asked_before_is_asked_where_a_lossy_policy_comes_first():
    miss = OnHost(0.5, before=NearScore(0.9), crossover=99)
    engine, _ = write(make(), MobileConfig(slots=3, miss=miss), prompt(9))
    assert not engine.trace.passes[0].copies and not miss.lossless


def test_the_host_is_drawn_for_as_long_as_it_takes():
    engine, _ = write(make(), MobileConfig(slots=3, miss=OnHost(0.5, crossover=99)), prompt(12))
    rows = spans(engine.trace)
    ends = rows[rows.lane == "compute"].groupby("step").end.max()
    assert ends.tolist() == pytest.approx([p.end for p in engine.trace.passes])
    host = rows[(rows.what == "host") & (rows.step == 0)]
    assert len(host) == (engine.trace.passes[0].requests - engine.trace.passes[0].misses).sum() > 0


def test_a_policy_that_answers_for_prompts_with_something_else_is_told_so():
    class Some(Wait):
        fetches_all = False

        def several(self, amounts, resident):
            return amounts

    with (
        offload(make(), MobileConfig(slots=3, miss=Some())) as engine,
        refused("must answer `several`", kinds=MobileError),
    ):
        engine.generate(prompt(9), max_new_tokens=1, **GREEDY)


def test_experts_on_disk_are_read_for_it():
    lazy, _ = load("tiny-olmoe", experts="disk", dtype="float32")
    model, _ = load("tiny-olmoe", dtype="float32")
    ids = prompt(6, seed=1)
    config = MobileConfig(slots=8, miss=OnHost(0.5, crossover=1))
    with offload(lazy, config) as engine:
        text = engine.generate(ids, max_new_tokens=3, **GREEDY)
    assert text.token_ids == plain(model, ids, 3) and text.steps[0].host > 0
