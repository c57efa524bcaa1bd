"""Many texts, each on a device of its own: texts and accounts are those of a fresh engine for each (law 10)."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mobile_nb
from mobile_nb import MobileConfig, MobileError, systems
from mobile_nb import policies as p
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.tiny import random_model

NEW = 5


@pytest.fixture(scope="module", params=("olmoe", "qwen3_moe", "deepseek_v2"))
def model(request):
    return random_model(request.param)


def padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(q)) + q for q in prompts])
    mask = torch.tensor([[0] * (width - len(q)) + [1] * len(q) for q in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def middle_gamma(model):
    with torch.no_grad():
        logits = model(torch.arange(3, 40)[None]).logits[0]
    return logits.softmax(-1).amax(-1).median().item()


def alone(model, config, prompt, end=-1):
    """A text by a fresh engine, and what its tokens after the first cost."""
    with mobile_nb.offload(model, config) as engine:
        steps = engine.generate(prompt, max_new_tokens=NEW, eos_token_id=end, do_sample=False).steps
        after = [s for s in engine.trace.passes if s.mode != "prompt"]
    later = steps[1:]
    return steps, {
        "seconds": sum(s.seconds for s in later),
        "bytes": sum(s.bytes_moved for s in later),
        "hits": sum(s.hits for s in later),
        "requests": sum(int(q.requests.sum()) for q in after),
    }


@functools.cache
def early(model, prompt):
    """A token at which this text ends soon, so that it leaves the batch before the others."""
    return alone(model, systems.on_demand(), list(prompt))[0][2].token_id


def check(model, config, prompts):
    end = early(model, tuple(prompts[0]))
    with mobile_nb.offload(model, config) as engine, engine.batch() as decoder:
        rows = decoder.write(padded(prompts), max_new_tokens=NEW, eos_token_id=end)
    for prompt, row in zip(prompts, rows, strict=True):
        steps, account = alone(model, config, prompt, end)
        assert row.token_ids == [s.token_id for s in steps]
        assert row.fell_back == [s.fell_back for s in steps]
        assert {name: row.device[name] for name in account} == pytest.approx(account)
        assert row.device["computing_s"] <= row.device["seconds"] * (1 + 1e-9)


def sizes(model):
    """Layers, experts and hidden size."""
    layers = find_layers(model)
    return len(layers), layers[0].num_experts, model.config.hidden_size


def network(model):
    """A predictor that has learned nothing: right or wrong, it changes when things are fetched."""
    random, (layers, experts, hidden) = np.random.default_rng(0), sizes(model)
    shapes = {
        "layer": (layers, 8), "enter": (8, hidden + 8), "qkv": (1, 24, 8), "out": (1, 8, 8),
        "up": (1, 16, 8), "down": (1, 8, 16), "head": (8, 8), "tell": (experts, 8),
    }  # fmt: skip
    parts = {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    parts |= {f"{name}_bias": part[..., 0] for name, part in parts.items() if name != "layer"}
    return p.Network(**parts, norm=random.normal(size=(1, 2, 2, 8)).astype("float32"), heads=2, honest=True)


def halves(model):
    """Every second expert in the second form."""
    layers, experts, _ = sizes(model)
    return [[expert % 2 for expert in range(experts)] for _ in range(layers)]


def channels(model, **fields):
    """Half of the channels, of 4-bit ups."""
    from mobile_nb.model.channels import up_outputs

    texts = [torch.arange(3, 40)[None]]
    return p.Channels.by_sparsity(up_outputs(model, texts, p.Int4(8)), 0.5, up=p.Int4(8), **fields)


SYSTEMS = {
    "on_demand": lambda m: systems.on_demand(slots=2),
    "resident": lambda m: systems.on_demand(slots=99),
    "mobile": lambda m: systems.mobile(middle_gamma(m), slots=3),
    "drop": lambda m: systems.drop(slots=3),
    "anybody": lambda m: systems.anybody(slots=3),
    "smoe": lambda m: systems.smoe(0.9, slots=4),
    "early_routing": lambda m: systems.early_routing(slots=3),
    "next_ranked": lambda m: systems.next_gate(miss=p.NextRanked(), evict=p.Weighted(), slots=3),
    "adapmoe": lambda m: systems.adapmoe([1.0, 0.2, 0.5, 0.1][: sizes(m)[0]], 0.3, slots=3),
    "fiddler": lambda m: systems.fiddler(p.Popularity(np.ones(sizes(m)[:2])), 0.5, 2, slots=3),
    "on_host": lambda m: systems.on_demand(miss=p.OnHost(0.5), slots=3),
    "split": lambda m: systems.next_gate(miss=p.OnHost(0.7, balance=True), slots=3),
    "int4": lambda m: systems.quantized(p.Int4(8), slots=3),
    "hobbit": lambda m: systems.hobbit(0.3, 0.6, low=p.Int2(8), low_slots=2, slots=3),
    "floe": lambda m: systems.floe(channels(m), slots=3),
    "floe_resident": lambda m: systems.floe(channels(m), slots=99),
    "floe_mobile": lambda m: systems.mobile(middle_gamma(m), codec=channels(m, ahead=False), slots=2),
    "floe_drop": lambda m: systems.floe(channels(m), slots=5, miss=p.Drop(), prefetch=p.NearestAbsent(2)),
    "beyond": lambda m: systems.moe_beyond(network(m), context=3, slots=3),
    "by_layer": lambda m: systems.on_demand(slots=[2, 4, 3, 5][: sizes(m)[0]]),
    "by_expert": lambda m: systems.mc(p.PerExpert((p.Int4(8), p.Int2(8)), halves(m)), slots=4),
    "mobile_drop": lambda m: systems.mobile(middle_gamma(m), slots=3, miss=p.Drop(), evict=p.LFU()),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_row_has_the_text_and_the_account_of_an_engine_of_its_own(model, name):
    config = SYSTEMS[name](model)
    check(model, config, [[5, 6, 7], [9], [9, 8, 7, 6, 5, 4, 3], [11, 12]])


@settings(max_examples=6)
@given(data=st.data())
def test_whatever_the_prompts_slots_and_threshold(data):
    model = random_model("olmoe")
    prompts = data.draw(st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=9), min_size=1, max_size=4))
    prefetch = data.draw(st.sampled_from((p.Nothing(), p.EvictedRouter(2), p.NextGate(1), p.NearestAbsent(2))))
    miss = data.draw(st.sampled_from((p.Wait(), p.Drop(), p.NearScore(0.8))))
    gamma = data.draw(st.sampled_from((0.0, middle_gamma(model), 1.1)))
    slots = data.draw(st.integers(1, 6))
    check(model, systems.mobile(gamma, prefetch=prefetch, miss=miss, slots=slots), prompts)


@pytest.mark.parametrize(
    "codec",
    (p.Int2(group=32), p.PerExpert((p.Int8(32), p.Int2(32)), ((0, 1, 1, 0, 1, 0, 0, 1),) * 3), p.Mixed(low=p.Int2(32))),
    ids=("one form", "a form of its own each", "two forms each"),
)
def test_the_host_computes_experts_in_the_form_that_they_lie_there_in(codec):
    model, prompt = random_model("olmoe"), [9, 8, 7, 6, 5]
    texts = []
    for miss in (p.Wait(), p.OnHost(0.5, crossover=99)):
        config = MobileConfig(miss=miss, codec=codec, slots=3)
        check(model, config, [prompt, [5, 6]])
        with mobile_nb.offload(model, config) as engine:
            out = engine.generate(prompt, max_new_tokens=12, do_sample=False)
            texts.append((out.token_ids, [step.confidence for step in out.steps]))
            assert engine.report().misses.sum() > 0 if isinstance(miss, p.Wait) else engine.report().host.sum() > 0
    assert texts[0][0] == texts[1][0] and texts[0][1] == pytest.approx(texts[1][1], rel=1e-4)


def test_the_model_and_the_engine_are_given_back():
    model = random_model("olmoe")
    prompt = [5, 6, 7]
    with mobile_nb.offload(model, systems.drop(slots=3)) as engine:
        with engine.batch(), pytest.raises(MobileError, match="writing already"), engine.batch():
            pass
        first = engine.generate(prompt, max_new_tokens=3).token_ids
    with mobile_nb.offload(model, systems.drop(slots=3)) as engine:
        assert engine.generate(prompt, max_new_tokens=3).token_ids == first
