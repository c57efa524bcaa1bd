"""AdapMoE's sensitivity: gradients against finite differences, and a model that is left as it was."""

import numpy as np
import pytest
import torch
from helpers import GREEDY, Snapshot, make, plain, prompt, refused

from mobile_nb import MobileError, offload, systems
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.sensitivity import sensitivities


@torch.no_grad()
def losses(model, ids, block, extra):
    """Of a text, the loss where `extra` [R, N, H] is added to what a block's experts put out: [R], no library in it."""
    hook = block.experts.register_forward_hook(lambda _, given, out: out + extra.flatten(0, 1))
    try:
        said = model(input_ids=ids.repeat(len(extra), 1), use_cache=False).logits.double().log_softmax(-1)
    finally:
        hook.remove()
    return -said[:, :-1].gather(-1, ids[:, 1:, None].expand(len(extra), -1, -1)).sum((1, 2))


@pytest.mark.parametrize("name", ["olmoe", "mixtral"])
def test_it_is_the_squared_gradient_by_the_experts_output_a_token(name):
    model, step = make(name), 4e-3
    texts, size = [prompt(3), prompt(4, seed=1)], model.config.hidden_size
    found = sensitivities(model, texts)
    for at, layer in enumerate(find_layers(model)):
        total = 0.0
        for ids in texts:
            each = step * torch.eye(ids.numel() * size).view(-1, ids.numel(), size)
            slope = (losses(model, ids, layer.block, each) - losses(model, ids, layer.block, -each)) / (2 * step)
            total += slope.pow(2).sum().item()
        assert found[at] == pytest.approx(total / 7, rel=1e-2)


def test_the_model_is_left_as_it_was_and_needs_no_gradients_of_its_own():
    model = make().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = Snapshot.of(model)
    with torch.no_grad():
        found = sensitivities(model, [prompt(5)])
    before.check(model)
    assert all(parameter.grad is None for parameter in model.parameters()) and (found > 0).all()
    assert sensitivities(model, [prompt(5), prompt(5)]) == pytest.approx(found), "a mean over tokens"


def test_what_cannot_be_measured_is_refused():
    for texts, said in (([], "no text"), ([prompt(1)], "(1, 1)"), ([prompt(4).repeat(2, 1)], "(2, 4)")):
        with refused(said, kinds=MobileError):
            sensitivities(make(), texts)


def test_what_is_measured_is_what_the_count_policy_takes():
    """Where the words do not depend on any layer, one expert of each runs; where they do, no threshold means all."""
    model = make()
    found = sensitivities(model, [prompt(6, seed=seed) for seed in range(2)])
    assert found.shape == (3,) and np.isfinite(found).all() and (found > 0).all()
    with offload(model, systems.adapmoe(found, 0.0, slots=3)) as engine:
        assert engine.generate(prompt(), max_new_tokens=3, **GREEDY).token_ids == plain(model, prompt(), 3)
    model.get_output_embeddings().weight.data.zero_()
    assert sensitivities(model, [prompt(6)]).tolist() == [0, 0, 0]
    with offload(model, systems.adapmoe(sensitivities(model, [prompt(6)]), 0.0, slots=3)) as engine:
        engine.generate(prompt(), max_new_tokens=3, **GREEDY)
    assert all((done.requests == 1).all() for done in engine.trace.passes[1:])
