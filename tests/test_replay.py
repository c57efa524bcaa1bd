"""Law 6: a simulated run, replayed under its own configuration, gives its own numbers. And what else replays may do."""

import pytest
from helpers import prompt, refused

from mobile_nb import Trace, metrics, offload, replay, systems
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import LFU, EvictedRouter, Fraction, Nothing

RUN = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None}
CONFIGS = {
    "on-demand": lambda slots: systems.on_demand(slots=slots),
    "LFU": lambda slots: systems.on_demand(slots=slots, evict=LFU()),
    "little": lambda slots: systems.little(slots=slots),
    "MoBiLE": lambda slots: systems.mobile(gamma=0.6, slots=slots),
    "two layers ahead": lambda slots: systems.mobile(gamma=1.1, ahead=2, slots=slots),
    "a wider denominator": lambda slots: systems.mobile(slots=slots, count=Fraction(0.5, over=1.0)),
}


def record(config, architecture="deepseek_v2", **words):
    model = random_model(architecture)
    with offload(model, config, **words) as engine:
        for seed in range(2):
            engine.generate(prompt(9, seed=seed), **RUN)
        return engine.trace


def numbers(trace):
    """All that a replay decides; weights and confidences may differ in the last bit, where slots change sums' order."""
    facts = ("begin", "end", "copies")
    return [[getattr(p, fact) for fact in facts] + [p.hits.tolist(), p.late.tolist()] for p in trace.passes]


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_replaying_a_run_under_its_own_configuration_gives_every_number_of_it(name, slots):
    config = CONFIGS[name](slots)
    trace = record(config, geometry="deepseek-v2-lite", hardware="t4-colab")
    again = replay(trace, config)
    assert again.trace.passes == trace.passes  # times, copies, hits and misses, to the last bit
    live = metrics.summary(trace)
    assert again.hit_rate == pytest.approx(live["hit_rate"])
    assert again.bytes_per_token == pytest.approx(live["bytes_per_token"])
    assert again.seconds_per_token == pytest.approx(live["seconds_per_token"])


def test_a_replay_under_other_slots_is_the_live_run_under_other_slots():
    trace = record(systems.mobile(gamma=0.6, slots=2))
    other = systems.mobile(gamma=0.6, slots=5, prefetch=Nothing(), evict=LFU())
    assert numbers(replay(trace, other).trace) == numbers(record(other))


def test_a_replay_on_other_hardware_is_the_live_run_on_it(tmp_path):
    config = systems.mobile(gamma=0.6, slots=3)
    record(config).save(tmp_path / "run.parquet")
    again = replay(Trace.load(tmp_path / "run.parquet"), config, hardware="t4-colab", geometry="mixtral-8x7b")
    live = record(config, hardware="t4-colab", geometry="mixtral-8x7b")
    assert numbers(again.trace) == numbers(live)
    assert again.trace.conditions["time"] == "simulated on t4-colab, timed as mixtral-8x7b, replayed"


def test_what_would_change_the_text_is_refused():
    trace = record(systems.mobile(gamma=0.6, slots=3))
    with refused("cannot change keep", "run it live"):
        replay(trace, systems.mobile(gamma=0.9, slots=3))
    with refused("cannot change count"):
        replay(trace, systems.on_demand(slots=3))


def test_a_prefetcher_that_needs_the_model_is_refused():
    trace = record(systems.on_demand(slots=3))
    with refused("no model whose gates"):
        replay(trace, systems.next_gate(slots=3))


def test_the_evicted_tokens_prefetch_moves_bytes_earlier_not_fewer_misses_later():
    trace = record(systems.mobile(gamma=1.1, slots=6, prefetch=Nothing()))
    plain = replay(trace, systems.mobile(gamma=1.1, slots=6, prefetch=Nothing()))
    early = replay(trace, systems.mobile(gamma=1.1, slots=6, prefetch=EvictedRouter()))
    assert early.hit_rate > plain.hit_rate
    assert early.seconds_per_token <= plain.seconds_per_token
