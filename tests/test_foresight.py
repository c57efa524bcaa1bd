"""What could be foreseen, and what became of what was prefetched."""

from itertools import pairwise

import pytest
from helpers import prompt

from mobile_nb import MobileError, load, metrics, offload, replay, systems, tasks
from mobile_nb.analysis.forced import forced
from mobile_nb.analysis.foresight import foreseen, prefetched
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import Nothing, ReadGates

GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def recording():
    model = random_model("qwen2_moe")
    with offload(model, systems.mobile(gamma=1.1, slots=5, prefetch=ReadGates(ahead=2))) as engine:
        for seed in range(2):
            engine.generate(prompt(9, seed=seed), **GREEDY)
        return engine.trace


def test_the_evicted_router_is_what_the_metric_says_and_exact_at_the_first_layer(recording):
    frame = foreseen(recording, gamma=1.1)
    router = frame[frame.predictor == "evicted token's router"].precision.tolist()
    assert router == pytest.approx(metrics.evicted_router(recording).precision.tolist())
    assert router[0] == 1.0


def test_a_gate_names_nothing_for_layers_that_nobody_could_read_it_for(recording):
    frame = foreseen(recording, gamma=1.1)
    layers = recording.conditions["layers"]
    assert frame[frame.predictor == "next layer's gate"].layer.tolist() == list(range(1, layers))
    assert frame[frame.predictor == "gate 2 layers ahead"].layer.tolist() == list(range(2, layers))
    assert frame.precision.between(0, 1).all()


def test_the_token_before_is_the_one_that_stayed(recording):
    frame = foreseen(recording, gamma=1.1)
    wrote = [done for done in recording.passes if done.token_id >= 0]
    again = [set(now.ids[0, 0]) & set(before.ids[0, -1]) for before, now in pairwise(wrote) if now.mode == "big"]
    share = sum(map(len, again)) / len(again) / recording.conditions["top_k"]
    found = frame[(frame.predictor == "the token before") & (frame.layer == 0)].precision.item()
    assert found == pytest.approx(share)


def test_only_tokens_below_gamma_count_and_none_is_told(recording):
    sure = sorted(done.confidence for done in recording.passes if done.mode == "little")
    assert foreseen(recording, gamma=sure[3]).fallbacks.unique().tolist() == [3]
    with pytest.raises(MobileError, match="nothing to foresee"):
        foreseen(recording, gamma=0)


def test_every_expert_that_the_big_pass_asks_for_was_prefetched_there_or_missed(recording):
    done = replay(recording, systems.mobile(gamma=1.1, slots=5))
    frame = prefetched(done)
    assert frame.attrs["fallbacks"] == 22
    assert frame.asked.tolist() == [recording.conditions["top_k"]] * recording.conditions["layers"]
    outcomes = frame.in_time + frame.late + frame.wasted
    assert (outcomes <= frame.prefetches + 1e-9).all()  # the rest is still there at the end
    assert (frame.asked >= frame.there + frame.missed - 1e-9).all()
    nobody = prefetched(replay(recording, systems.mobile(gamma=1.1, slots=5, prefetch=Nothing())))
    assert nobody[["prefetches", "in_time", "late", "wasted"]].to_numpy().sum() == 0
    assert (nobody.asked - nobody.there - nobody.missed).abs().max() < 1e-9


def test_on_a_given_text_all_experts_agree_with_themselves_and_fewer_need_not():
    model, tokenizer = load("tiny-olmoe", dtype="float32")
    problems = tasks.load("word-problems", n=2)
    same = forced(model, tokenizer, problems, experts=8)
    assert same.agree.all() and same.kl.abs().max() < 1e-6
    fewer = forced(model, tokenizer, problems, experts=1)
    assert not fewer.agree.all() and fewer.kl.max() > 1
    assert "".join(fewer[fewer.problem == 0].token) == problems[0].solution
    assert (fewer.confidence_little == [top[0][1] for top in fewer.top_little]).all()
