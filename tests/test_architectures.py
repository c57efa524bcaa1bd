"""Families that are special in some way: how they route, what they need to route, what their cache forgets."""

import itertools

import pytest
import torch
from helpers import EXPERTS, GREEDY, big_prompt_then_little, gap, make, plain, prompt, routers, top_k

from mobile_nb import offload, systems
from mobile_nb.model.adapters import find_layers

NEW = 8
SPECIAL = """
    afmoe deepseek_v3 dots1 ernie4_5_moe glm4_moe granitemoeshared hunyuan_v1_moe minimax_m2 phimoe
"""
HYBRID = ["minimax", "qwen3_next", "nemotron_h"]  # linear attention, whose state forgets


def small(name):
    """A model whose routers choose by their weights alone: with a correction, the best scores have other weights."""
    model = make(name)
    with torch.no_grad():
        for key, value in itertools.chain(model.named_parameters(), model.named_buffers()):
            if "correction" in key or "expert_bias" in key:
                value.zero_()
    return model


@pytest.mark.parametrize("name", SPECIAL.split())
def test_offloading_is_exact_and_the_little_model_is_a_smaller_top_k(name):
    model, ids = small(name), prompt()
    wanted = plain(model, ids, NEW)
    for config in (systems.next_gate(slots=3), systems.mobile(gamma=1.1, slots=2)):
        with offload(model, config) as engine:
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
    if name == "phimoe":  # its router takes two experts, whatever its top_k says
        return
    with torch.no_grad():
        with top_k(model, routers(model)[0].top_k // 2):
            little = model(ids).logits
        assert gap(little, model(ids).logits) > 1e-2
        with offload(model, systems.little(slots=3)):
            assert gap(model(ids).logits, little) < 1e-5


@pytest.mark.parametrize("name", HYBRID)
def test_a_state_that_forgets_is_taken_back_exactly(name):
    model, ids = small(name), prompt()
    wanted = plain(model, ids, NEW)
    for config in (systems.on_demand(slots=2), systems.next_gate(slots=3), systems.mobile(gamma=1.1, slots=3)):
        with offload(model, config) as engine:
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
    tokens, logits = big_prompt_then_little(model, ids, NEW, 2)
    with offload(model, systems.mobile(gamma=0, slots=EXPERTS)) as engine:
        out = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
    assert out.token_ids == tokens and gap(torch.cat(out.logits), logits) < 1e-4


@pytest.mark.parametrize("name", ["afmoe", "qwen2_moe", "deepseek_v3"])
@torch.no_grad()
def test_a_gate_read_ahead_of_time_is_the_gate(name):
    """`route` gives what the block gives its experts, best first, also where a router wants more than hidden states."""
    for layer in find_layers(small(name)):
        seen: list = []
        hook = layer.experts.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given))
        hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
        layer.block(hidden[None])
        hook.remove()
        ((_, index, weights),) = seen
        order = weights.argsort(dim=-1, descending=True, stable=True)
        assert torch.equal(layer.route(hidden), index.gather(-1, order))
