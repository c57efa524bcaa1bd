"""Law 6: a simulated run, replayed under its own configuration, gives its own numbers. And what else replays may do."""

import numpy as np
import pytest
from helpers import prompt, refused

from mobile_nb import Trace, metrics, offload, replay, systems
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import (
    LFU,
    LRU,
    Belady,
    Drop,
    EvictedRouter,
    Fraction,
    Margin,
    Nothing,
    Oracle,
    PreviousToken,
    ReadGates,
    TargetFallback,
)
from mobile_nb.vocabulary import Wanted

RUN = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None}
CONFIGS = {
    "on-demand": lambda slots: systems.on_demand(slots=slots),
    "LFU": lambda slots: systems.on_demand(slots=slots, evict=LFU()),
    "little": lambda slots: systems.little(slots=slots),
    "MoBiLE": lambda slots: systems.mobile(gamma=0.6, slots=slots),
    "two layers ahead": lambda slots: systems.mobile(gamma=1.1, ahead=2, slots=slots),
    "what the token before used": lambda slots: systems.mobile(gamma=0.1, slots=slots, prefetch=PreviousToken()),
    "a ratio of fallbacks": lambda slots: systems.mobile(slots=slots, keep=TargetFallback(0.3)),
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
    trace = record(systems.mobile(gamma=0, slots=3))
    with refused("would have had the big model rewrite", "record with gamma above 1"):
        replay(trace, systems.mobile(gamma=0.9, slots=3))
    with refused("cannot change count", "gamma above 1, which holds the big model's passes"):
        replay(trace, systems.on_demand(slots=3))
    with refused("cannot change count", "run it live"):
        replay(trace, systems.mobile(gamma=0, slots=3, fraction=0.25))
    with refused("cannot change miss"):
        replay(trace, systems.mobile(gamma=0, slots=3, miss=Drop()))
    with refused("not its margin"):
        replay(trace, systems.mobile(slots=3, keep=Margin(0.1)))


def test_a_prefetcher_that_needs_the_model_is_refused_and_one_that_needs_the_future_is_too():
    trace = record(systems.on_demand(slots=3))
    with refused("does not hold what the gates say 1 layers ahead", "ReadGates"):
        replay(trace, systems.next_gate(slots=3))
    with refused("has not chosen yet", "replay"):
        record(systems.big(slots=3, prefetch=Oracle()))
    with refused("only a replay knows"):
        record(systems.big(slots=3, evict=Belady()))


def test_from_a_run_that_always_fell_back_the_big_model_alone_is_replayed_exactly(tmp_path):
    forced = record(systems.mobile(gamma=1.1, slots=3, prefetch=ReadGates()))
    forced.save(tmp_path / "forced.parquet")
    forced = Trace.load(tmp_path / "forced.parquet")
    for config in (systems.on_demand(slots=4), systems.on_demand(slots=2, evict=LFU()), systems.next_gate(slots=4)):
        again = replay(forced, config)
        assert again.trace.conditions["exact"]
        assert numbers(again.trace) == numbers(record(config))


def test_gamma_by_replay_keeps_what_is_sure_enough_and_says_that_the_text_is_the_big_models():
    forced = record(systems.mobile(gamma=1.1, slots=3))
    sure = sorted(p.confidence for p in forced.passes if p.mode == "little")
    ratios = []
    for gamma in (0, sure[len(sure) // 2], 1.1):
        again = replay(forced, systems.mobile(gamma=gamma, slots=3))
        assert [p.token_id for p in again.trace.passes if p.token_id >= 0] == [
            p.token_id for p in forced.passes if p.token_id >= 0
        ]
        assert len(again.trace.to_frame()) == len(forced.to_frame())
        assert again.fallback_ratio == pytest.approx(metrics.fallback_ratio(again.trace.to_frame()))
        ratios.append(again.fallback_ratio)
    assert ratios == [0, 0.5, 1]
    assert not replay(forced, systems.mobile(gamma=0, slots=3)).trace.conditions["exact"]
    assert replay(forced, systems.mobile(gamma=1.1, slots=3)).trace.conditions["exact"]


@pytest.mark.parametrize("prefetch", [Nothing(), EvictedRouter(), PreviousToken(), EvictedRouter(ahead=1)], ids=repr)
def test_nobody_foresees_more_than_the_oracle(prefetch):
    forced = record(systems.mobile(gamma=1.1, slots=4))
    for gamma in (0.0, 0.12, 1.1):
        best, other = (
            replay(forced, systems.mobile(gamma=gamma, slots=4, prefetch=p)) for p in (Oracle(), prefetch)
        )  # law 8
        assert best.hit_rate >= other.hit_rate
        assert best.seconds_per_token <= other.seconds_per_token


def test_policies_in_python_and_their_compiled_twins_give_the_same_replay():
    forced = record(systems.mobile(gamma=1.1, slots=3))
    for compiled, plain in ((LRU, OwnLRU), (LFU, OwnLFU), (Belady, OwnBelady)):
        one, other = (replay(forced, systems.mobile(gamma=1.1, slots=3, evict=evict())) for evict in (compiled, plain))
        assert one.trace.passes == other.trace.passes


class OwnLRU(LRU):
    """Not one of the types that are compiled."""


class OwnLFU(LFU):
    """Not one of the types that are compiled."""


class OwnBelady(Belady):
    """Not one of the types that are compiled."""


def test_the_evicted_tokens_prefetch_moves_bytes_earlier_not_fewer_misses_later():
    trace = record(systems.mobile(gamma=1.1, slots=6, prefetch=Nothing()))
    plain = replay(trace, systems.mobile(gamma=1.1, slots=6, prefetch=Nothing()))
    early = replay(trace, systems.mobile(gamma=1.1, slots=6, prefetch=EvictedRouter()))
    assert early.hit_rate > plain.hit_rate
    assert early.seconds_per_token <= plain.seconds_per_token


def test_routing_recorded_elsewhere_is_the_big_models_and_nothing_else():
    elsewhere = Trace.from_routing(np.arange(24).reshape(6, 2, 2) % 8, num_experts=8)
    machine = {"hardware": "t4-colab", "geometry": "olmoe-1b-7b"}
    assert replay(elsewhere, systems.on_demand(slots=3), **machine).tokens == 6
    with refused("cannot change count"):
        replay(elsewhere, systems.mobile(slots=3), **machine)
    with refused("give hardware="):
        replay(elsewhere, systems.on_demand(slots=3))


def test_a_lossy_recording_and_an_empty_one_are_refused():
    lossy = systems.on_demand(slots=3, miss=Drop())
    with refused("cannot tell whom", "run it live"):
        replay(record(lossy), lossy)
    with refused("nothing to replay"):
        replay(Trace({}), lossy)
    with refused("a replay takes a Trace"):
        replay("run.parquet", lossy)
    trace = record(systems.on_demand(slots=3))
    with refused("config must be a MobileConfig"):
        replay(trace, systems.mobile)
    with refused("hardware must be a Hardware"):
        replay(trace, systems.on_demand(slots=3), hardware=5)


def test_a_gamma_that_moved_while_recording_is_judged_anew():
    model = random_model("olmoe")
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        engine.generate(prompt(9), **RUN)
        engine.gamma = 0
        engine.generate(prompt(9, seed=1), **RUN)
        trace = engine.trace
    with refused("would have had the big model rewrite"):
        replay(trace, systems.mobile(gamma=1.1, slots=3))
    never = replay(trace, systems.mobile(gamma=0, slots=3))
    assert never.fallback_ratio == 0 and not never.selection.exact
    again = replay(never.trace, systems.mobile(gamma=0, slots=3))
    assert not again.selection.exact  # a replay of a replay is no more than it was
    assert {p.gamma for p in never.trace.passes if p.mode == "little"} == {0}


def test_a_run_with_gaps_does_not_count_as_exact():
    def broken(ids, scores):
        raise RuntimeError("no")

    model, config = random_model("olmoe"), systems.on_demand(slots=3)
    with offload(model, config) as engine:
        engine.generate(prompt(9), **RUN)
        whole = replay(engine.trace, config).selection.exact
        with pytest.raises(RuntimeError):
            engine.generate(prompt(9), logits_processor=[broken], **RUN)
        engine.generate(prompt(9), **RUN)
        assert whole and not replay(engine.trace, config).selection.exact


@pytest.mark.parametrize("answer", [[(0, (1,))], [Wanted(0.6, (1,))], [Wanted(99, (1,))], 5])
def test_prefetchers_answers_are_checked_as_in_a_live_run(answer):
    class Odd:
        def wanted(self, layer, view):
            return answer

    trace = record(systems.on_demand(slots=3))
    with refused("a prefetcher must return a list of Wanted"):
        replay(trace, systems.on_demand(slots=3, prefetch=Odd()))


def test_keep_must_say_yes_or_no_and_none_is_no_prefetch():
    class Silent:
        def wanted(self, layer, view):
            return None

        def keep(self, evidence):
            return None

    forced = record(systems.mobile(gamma=1.1, slots=3))
    silent, nothing = (systems.mobile(gamma=1.1, slots=3, prefetch=p) for p in (Silent(), Nothing()))
    assert replay(forced, silent).trace.passes == replay(forced, nothing).trace.passes
    with refused("must answer `keep` with True or False"):
        replay(forced, systems.mobile(slots=3, keep=Silent()))
