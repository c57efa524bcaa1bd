"""The two lanes of a trace: they end when the pass ended, nothing overlaps within a lane, and shares add up."""

import pytest
from helpers import prompt

from mobile_nb import MobileError, Trace, offload, replay, systems
from mobile_nb.analysis.spans import breakdown, overlap, spans
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import LFU, Drop, EvictedRouter, OnHost, Popularity

CONFIGS = {
    "on-demand": systems.on_demand,
    "next gate": systems.next_gate,
    "little": systems.little,
    "MoBiLE": lambda **words: systems.mobile(gamma=0.3, **words),
    "always rewritten, LFU": lambda **words: systems.mobile(gamma=1.1, evict=LFU(), **words),
    "on the host": lambda **words: systems.on_demand(miss=OnHost(0.5), **words),
    "half on the host": lambda **words: systems.next_gate(miss=OnHost(1.0, balance=True), **words),
    "prompts on the host": lambda **words: systems.next_gate(miss=OnHost(1.0, True, crossover=3), **words),
    "static, on the host": lambda **words: systems.fiddler(Popularity([range(8)] * 3), 0.5, **words),
    "dropped": lambda **words: systems.on_demand(miss=Drop(), **words),
}


@pytest.fixture(scope="module", params=CONFIGS)
def traces(request):
    """A system's traces at 1, 3, 5 and all 8 slots a layer: fewer than K, K or a few more, and everything."""
    model, found = random_model("qwen2_moe"), []
    for slots in (1, 3, 5, 8):
        config = CONFIGS[request.param](slots=slots)
        with offload(model, config, geometry="olmoe-1b-7b", hardware="t4-colab") as engine:
            for seed in range(2):
                engine.generate(prompt(9, seed=seed), max_new_tokens=8, do_sample=False, eos_token_id=None)
            found.append(engine.trace)
    return found


def test_the_compute_lane_has_no_gap_and_ends_when_the_pass_ended(traces):
    for trace in traces:
        rows = spans(trace)
        lane = rows[rows.lane == "compute"]
        ends = []
        for _, one in lane.groupby(["request", "step", "mode"], sort=False):
            assert (one.begin.to_numpy()[1:] == one.end.to_numpy()[:-1]).all()
            ends.append((one.begin.iloc[0], one.end.iloc[-1]))
        assert [begin for begin, _ in ends] == [done.begin for done in trace.passes]
        assert [end for _, end in ends] == pytest.approx([done.end for done in trace.passes], rel=1e-12)


def test_an_expert_is_computed_after_its_copy_and_as_often_as_it_was_asked_for(traces):
    for trace in traces:
        rows = spans(trace)
        computed = rows[rows.what == "expert"]
        hosted = (rows.what == "host").sum()
        assert len(computed) + hosted == sum(done.requests.sum() for done in trace.passes)
        assert hosted == sum((done.requests - done.hits - done.misses).sum() for done in trace.passes)
        copied = rows[rows.what == "demand"]
        keys = ["request", "step", "mode", "layer", "expert"]
        both = copied.merge(computed, on=keys, suffixes=("_copy", "_run"))
        assert len(both) == len(copied)
        assert (both.begin_run >= both.end_copy).all()


def test_the_link_carries_one_copy_at_a_time(traces):
    for trace in traces:
        rows = spans(trace)
        link = rows[rows.lane == "link"].sort_values("begin")
        assert (link.begin.to_numpy()[1:] >= link.end.to_numpy()[:-1] - 1e-15).all()


def test_what_a_token_took_is_attention_experts_waiting_and_head(traces):
    for trace in traces:
        tokens = breakdown(spans(trace), by="token")
        steps = trace.to_frame()
        steps = steps[steps.step > 0]
        parts = tokens[["attention", "expert", "wait", "head"]].sum(axis=1)
        assert parts.tolist() == pytest.approx(steps.seconds.tolist(), rel=1e-9)
        layers = breakdown(spans(trace))
        assert layers.drop(columns=["layer", "transfer"]).sum().sum() == pytest.approx(steps.seconds.mean(), rel=1e-9)


def test_some_tokens_are_the_same_rows_as_among_all(traces):
    trace = traces[1]
    rows = spans(trace)
    some = spans(trace, request=1, steps=[2, 5])
    assert some.equals(rows[(rows.request == 1) & rows.step.isin([2, 5])].reset_index(drop=True))


def test_a_replay_has_lanes_too():
    with offload(random_model("olmoe"), systems.mobile(gamma=1.1, slots=3)) as engine:
        engine.generate(prompt(), max_new_tokens=6, do_sample=False, eos_token_id=None)
    again = replay(engine.trace, systems.mobile(gamma=0.2, slots=5, prefetch=EvictedRouter(ahead=1)))
    tokens = breakdown(spans(again.trace), by="token")
    assert tokens[["attention", "expert", "wait", "head"]].sum(axis=1).mean() == pytest.approx(again.seconds_per_token)


def test_what_has_no_lanes_is_told_in_a_sentence():
    trace = Trace.from_routing([[[0, 1]], [[1, 2]]], num_experts=4)
    with pytest.raises(MobileError, match="replay it"):
        spans(trace)
    with pytest.raises(ValueError, match="by must be one of"):
        breakdown(None, by="month")


def test_overlap_is_what_both_lanes_cover_together():
    import pandas as pd

    bars = [
        ("link", "demand", 0, 4),
        ("link", "prefetch", 6, 9),
        ("compute", "expert", 1, 2),
        ("compute", "expert", 2, 7),
    ]
    rows = pd.DataFrame([(1, *bar) for bar in bars], columns=["step", "lane", "what", "begin", "end"])
    assert overlap(rows) == {"link": 7, "experts": 6, "both": 4, "share": pytest.approx(4 / 6)}


def test_prefetches_overlap_with_computation_and_nothing_without_copies_does(traces):
    shares = [overlap(spans(trace)) for trace in traces]
    assert all(0 <= found["share"] <= 1 and found["both"] <= found["link"] + 1e-12 for found in shares)
    assert shares[-1]["both"] == 0 or shares[-1]["link"] > 0
