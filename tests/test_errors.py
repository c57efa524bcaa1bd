"""A user's mistake gets one sentence: what was given, what was expected, what to do. And the model is as it was."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import GREEDY, Prefetcher, Recorder, Snapshot, make, plain, prompt, refused
from transformers import StaticCache

from mobile_nb import Geometry, Hardware, MobileConfig, MobileError, Trace, offload, systems
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import Fraction, MaxProbability
from mobile_nb.policies.miss.ask import Host
from mobile_nb.vocabulary import Wanted

NEW = 4


def steady(value):
    """A name without an address: every process that runs tests must call them the same."""
    return re.sub(r" at 0x\w+", "", repr(value))


BOTH = [systems.on_demand(slots=3), systems.mobile(gamma=1.1, slots=3)]
each = pytest.mark.parametrize("config", BOTH, ids=["on_demand", "mobile"])


def refuse_to_offload(model, config, *fragments, kinds=(ValueError, TypeError, MobileError), **named):
    """Offloading fails with one sentence, and the model is as it was."""
    before = Snapshot.of(model)
    with refused(*fragments, kinds=kinds), offload(model, config, **named):
        raise AssertionError("the block must not be entered")
    before.check(model)


# -- the configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [0, -1, 2.5, "8", True, float("nan"), {3}])
def test_slots_must_be_a_whole_number_of_at_least_one(slots):
    with refused("slots must be", "at least 1", repr(slots), kinds=(ValueError, TypeError)):
        systems.mobile(slots=slots)


@pytest.mark.parametrize("budget", [-1, "lots", float("nan"), float("inf"), True, [1]])
def test_a_budget_must_be_a_number(budget):
    with refused("budget_gb must be", repr(budget), kinds=(ValueError, TypeError)):
        systems.on_demand(budget_gb=budget)


def test_slots_and_budget_together_are_refused():
    with refused("slots or budget_gb, not both", kinds=ValueError):
        MobileConfig(slots=3, budget_gb=1.0)


@pytest.mark.parametrize("geometry", [None, "olmoe-1b-7b", "mixtral-8x7b"])
@pytest.mark.parametrize("budget", [0, 1e-9])
def test_a_budget_below_one_slot_names_the_smallest_which_works(geometry, budget):
    model = make()
    with (
        refused("smallest budget is", kinds=MobileError) as caught,
        offload(model, MobileConfig(budget_gb=budget), geometry=geometry),
    ):
        raise AssertionError("the block must not be entered")
    smallest = float(re.search(r"smallest budget is (\S+) GB", str(caught.value)).group(1))
    with offload(model, MobileConfig(budget_gb=smallest), geometry=geometry) as engine:
        assert engine.slots == 1
        assert engine.generate(prompt(), max_new_tokens=2, **GREEDY).token_ids == plain(make(), prompt(), 2)


def test_a_device_too_small_for_one_slot_is_refused():
    tiny = Hardware("very small", link_gb_per_s=10, memory_gb_per_s=100, tflops=10, device_gb=1.0)
    refuse_to_offload(
        make(), MobileConfig(), "smallest budget", hardware=tiny, geometry="mixtral-8x7b", kinds=MobileError
    )


@pytest.mark.parametrize("question", ["count", "keep", "prefetch", "miss", "evict", "codec"])
@pytest.mark.parametrize("answer", [None, "lru", 3, MaxProbability, object()], ids=steady)
def test_each_question_wants_a_policy(question, answer):
    with refused(f"MobileConfig.{question} must be a policy", f"policies.{question}", kinds=TypeError):
        MobileConfig(**{question: answer})


@pytest.mark.parametrize("config", [0.7, "mobile", systems.mobile, MobileConfig, {"slots": 3}], ids=steady)
def test_the_config_must_be_one(config):
    refuse_to_offload(make(), config, "config must be a MobileConfig", "systems.mobile()", kinds=TypeError)


def test_unknown_names_are_listed():
    with refused("no hardware preset 'rtx9999'", "rtx4080-pcie4", "h100-pcie5", kinds=MobileError):
        Hardware.preset("rtx9999")
    with refused("no geometry 'gpt-7'", "olmoe-1b-7b", "qwen3-30b-a3b", kinds=MobileError):
        Geometry.of("gpt-7")
    refuse_to_offload(make(), None, "no hardware preset 'abacus'", hardware="abacus", kinds=MobileError)
    refuse_to_offload(make(), None, "no geometry 'cube'", geometry="cube", kinds=MobileError)


@pytest.mark.parametrize("given", [5, True, object, ["rtx4080-pcie4"]], ids=steady)
def test_hardware_and_geometry_must_be_what_they_say(given):
    refuse_to_offload(make(), None, "hardware must be a Hardware", hardware=given, kinds=TypeError)
    refuse_to_offload(make(), None, "geometry must be a Geometry", geometry=given, kinds=TypeError)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure")
def test_without_cuda_measuring_says_what_to_do():
    with refused("no CUDA device to measure", "Hardware.preset", kinds=MobileError):
        Hardware.measure()


# -- the model -----------------------------------------------------------------------------------------------------


def test_a_dense_model_is_refused():
    refuse_to_offload(
        random_model("llama"), None, "LlamaForCausalLM has no `experts` module", "OLMoE", kinds=MobileError
    )


def test_a_model_with_another_kind_of_experts_is_refused():
    model = random_model("jetmoe", num_local_experts=4, num_experts_per_tok=2, kv_channels=8, intermediate_size=24)
    refuse_to_offload(model, None, "JetMoeForCausalLM has", "fused `experts` module", kinds=MobileError)


def test_offloading_twice_is_refused_and_the_first_goes_on():
    model = make()
    wanted = plain(model, prompt(), NEW)
    with offload(model, systems.on_demand(slots=3)) as engine:
        with refused("offloaded already", kinds=MobileError), offload(model):
            raise AssertionError("the block must not be entered")
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == wanted


@each
@pytest.mark.parametrize(
    "where", ["lm_head.weight", "model.layers.1.mlp.experts.down_proj", "model.layers.0.mlp.gate.weight"]
)
def test_nan_in_the_weights_is_told(where, config):
    model = make()
    weight = model.get_parameter(where)
    with torch.no_grad():
        weight[..., 0] = float("nan")
    with refused("logits hold NaN", "damaged", kinds=MobileError), offload(model, config) as engine:
        engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)
    assert weight[..., 0].isnan().all() and plain(make(), prompt(), 2)


# -- the request ---------------------------------------------------------------------------------------------------

PROMPTS = {
    "nothing": ([], "prompt is empty"),
    "empty row": ([[]], "prompt is empty"),
    "empty tensor": (torch.empty(1, 0, dtype=torch.long), "prompt is empty"),
    "a batch of two": (torch.ones(2, 3, dtype=torch.long), "one prompt at a time"),
    "rows of two lengths": ([[3, 4], [5]], "token ids [T] or [1, T]"),
    "three axes": (torch.ones(1, 2, 3, dtype=torch.long), "[1, 2, 3]"),
    "beyond the context": (torch.full((1, 128), 5), "128 tokens"),
    "far beyond the context": ([5] * 4000, "shorten it"),
    "ids too large": ([3, 101], "0 to 100"),
    "ids below zero": ([-1, 3], "got -1 to 3"),
    "fractions": ([3.5, 4.0], "whole numbers"),
    "truth values": ([True, False], "whole numbers"),
    "a number": (7, "[T] or [1, T]"),
    "None": (None, "token ids [T]"),
    "words": (["Tom", "has"], "token ids"),
    "text without a tokenizer": ("Tom has 3 apples.", "give one to offload(..., tokenizer=...)"),
    "an encoding without ids": ({"attention_mask": [[1, 1]]}, "must hold input_ids"),
    "a mask of another length": ({"input_ids": [[3, 4, 5]], "attention_mask": [[1, 1]]}, "attention_mask"),
    "a mask that is none": ({"input_ids": [[3, 4, 5]], "attention_mask": "ones"}, "attention_mask"),
}


@pytest.fixture(scope="module")
def engines():
    """Two engines that must survive every bad request of this file."""
    models = [make(), make()]
    wanted = plain(models[0], prompt(), NEW)
    with offload(models[0], BOTH[0]) as one, offload(models[1], BOTH[1]) as two:
        yield one, two
        for engine in (one, two):
            assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == wanted


@pytest.mark.parametrize(("given", "fragment"), PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_that_cannot_be_is_refused(engines, given, fragment):
    for engine in engines:
        wrote = len(engine.trace.passes)
        with refused(fragment, kinds=(ValueError, TypeError)):
            engine.generate(given, max_new_tokens=NEW, **GREEDY)
        with refused(fragment, kinds=(ValueError, TypeError)):
            next(engine.stream(given, max_new_tokens=NEW, **GREEDY))
        assert len(engine.trace.passes) == wrote


REQUESTS = {
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    "negative tokens": ({"max_new_tokens": -3}, "max_new_tokens must be at least 1"),
    "half a token": ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number"),
    "beams": ({"num_beams": 2}, "num_beams=2 is not offered"),
    "several texts": ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2 is not offered"),
    "an assistant": ({"assistant_model": object()}, "assistant_model is not offered"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens is not offered"),
    "attentions": ({"output_attentions": True}, "output_attentions is not offered"),
    "hidden states": ({"output_hidden_states": True}, "output_hidden_states is not offered"),
    "another loop": ({"custom_generate": print}, "custom_generate is taken"),
}


@pytest.mark.parametrize(("named", "fragment"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_that_cannot_be_served_is_refused(engines, named, fragment):
    for engine in engines:
        with refused(fragment):
            engine.generate(prompt(), **(GREEDY | {"max_new_tokens": NEW} | named))


def test_a_cache_that_cannot_take_a_token_back_is_refused_where_it_must():
    model = make()
    wanted = plain(model, prompt(), NEW)
    cache = StaticCache(config=model.config, max_cache_len=32)
    with offload(model, systems.on_demand(slots=3)) as engine:
        assert engine.generate(prompt(), max_new_tokens=NEW, past_key_values=cache, **GREEDY).token_ids == wanted
    with refused("take back", "systems.on_demand()", kinds=MobileError), offload(model, BOTH[1]) as engine:
        cache = StaticCache(config=model.config, max_cache_len=32)
        engine.generate(prompt(), max_new_tokens=NEW, past_key_values=cache, **GREEDY)


# -- policies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Says:
    """A policy that answers every question with whatever a function returns."""

    answer: object
    two_passes = True
    lossless = False

    def _say(self, *facts):
        return self.answer(*facts)

    run = keep = wanted = serve = score = _say


def fails(*facts):
    raise ZeroDivisionError("of my own\nmaking")


GARBAGE = {
    "evict": {
        "raises": (fails, "failed in `score`: ZeroDivisionError: of my own making"),
        "NaN": (lambda h: np.full(h.last_used.shape, np.nan), "without NaN"),
        "another shape": (lambda h: np.zeros(3), "scores"),
        "words": (lambda h: "the second", "failed in `score`"),
        "nothing": (lambda h: None, "scores"),
    },
    "prefetch": {
        "raises": (fails, "failed in `wanted`: ZeroDivisionError: of my own making"),
        "no such expert": (lambda layer, view: [Wanted(1, (99,))], "experts from 0 to 7, got"),
        "negative expert": (lambda layer, view: [Wanted(1, (-1,))], "experts from 0 to 7, got"),
        "no such layer": (lambda layer, view: [Wanted(9, (1,))], "layers from 0 to 2"),
        "fractions": (lambda layer, view: [Wanted(1, (0.5,))], "Wanted(layer, experts)"),
        "ids alone": (lambda layer, view: [1, 2, 3], "Wanted(layer, experts)"),
        "a number": (lambda layer, view: 5, "Wanted(layer, experts)"),
        "a gate beyond the last": (lambda layer, view: view.gate(99), "failed in `wanted`"),
        "a gate before the first": (lambda layer, view: view.gate(0) if layer < 0 else [], "failed in `wanted`"),
    },
    "count": {
        "raises": (fails, "failed in `run`"),
        "none": (lambda mode, layer, k: (0, None), "1 to 4"),
        "too many": (lambda mode, layer, k: (k + 1, None), "1 to 4"),
        "a fraction": (lambda mode, layer, k: (1.5, None), "1 to 4"),
        "a number alone": (lambda mode, layer, k: 2, "1 to 4"),
        "over nothing": (lambda mode, layer, k: (2, 0), "1 to 4 or None"),
        "over too many": (lambda mode, layer, k: (2, 5), "1 to 4 or None"),
    },
    "miss": {
        "raises": (fails, "failed in `serve`"),
        "too few": (lambda experts, *_: experts[:1], "from 0 to 7"),
        "no such expert": (lambda experts, *_: [8] * len(experts), "from 0 to 7"),
        "no such expert on the host": (lambda experts, *_: [Host(8)] * len(experts), "from 0 to 7"),
        "words": (lambda experts, *_: ["one"] * len(experts), "from 0 to 7"),
        "nothing": (lambda experts, *_: None, "from 0 to 7"),
    },
    "keep": {
        "raises": (fails, "failed in `keep`"),
        "several": (lambda evidence: np.array([True, False]), "keep"),
    },
}
CASES = [(question, *case) for question, cases in GARBAGE.items() for case in cases.values()]


@pytest.mark.parametrize(
    ("question", "answer", "fragment"), CASES, ids=[f"{q}-{n}" for q in GARBAGE for n in GARBAGE[q]]
)
def test_a_policy_that_answers_with_garbage_is_named(question, answer, fragment):
    model = make()
    before = Snapshot.of(model)
    config = systems.mobile(gamma=1.1, slots=3, **{question: Says(answer)})
    with refused(fragment, kinds=MobileError), offload(model, config) as engine:
        engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)
    before.check(model)
    assert isinstance(engine.trace, Trace) and len(engine.report()) == 3


def test_a_miss_policy_may_answer_with_nobody_at_all():
    with offload(make(), MobileConfig(slots=2, miss=Says(lambda experts, *_: [None] * len(experts)))) as engine:
        out = engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)
    assert [s.hits + s.misses for s in out.steps[1:]] == [0] * (NEW - 1)


def test_an_infinite_score_is_a_score():
    evict = Says(lambda h: np.where(h.last_used > 2, np.inf, -np.inf))
    model = make()
    with offload(model, MobileConfig(slots=3, evict=evict)) as engine:
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == plain(make(), prompt(), NEW)


def test_errors_of_the_users_own_callbacks_come_through_as_they_are():
    class Mine(Exception):
        pass

    with offload(make(), systems.on_demand(slots=3)) as engine:
        with pytest.raises(Mine):
            engine.generate(prompt(), max_new_tokens=NEW, streamer=Recorder(2, Mine()), **GREEDY)
        assert engine.generate(prompt(), max_new_tokens=2, **GREEDY).token_ids == plain(make(), prompt(), 2)


def test_values_that_only_look_strange_are_allowed():
    assert systems.mobile(gamma=np.float32(0.5)).keep.gamma == np.float32(0.5)
    assert MobileConfig(slots=np.int64(3)).slots == 3
    assert systems.mobile(gamma=7).keep.gamma == 7
    assert Fraction(1).run("little", 0, 4) == (4, None)
    model = make()
    with offload(model, MobileConfig(slots=3, prefetch=Prefetcher(lambda *_: None))) as engine:
        assert engine.generate(prompt(), max_new_tokens=2, **GREEDY).token_ids == plain(make(), prompt(), 2)
