"""Experts that stay in their files: the same tokens, less memory, and a sentence when a file goes away."""

import pytest
import torch
from helpers import plain, prompt, refused

from mobile_nb import load, offload, systems
from mobile_nb.memory.store import Layout
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.tiny import random_model


@pytest.fixture(params=["olmoe", "deepseek_v2", "gpt_oss", "granitemoe"])
def saved(request, tmp_path):
    """A checkpoint of a random model, with a tokenizer, and the model."""
    model = random_model(request.param)
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    load("tiny-olmoe")[1].save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


@pytest.mark.parametrize("slots", [2, 8])
def test_tokens_are_those_of_the_model_in_memory(saved, slots):
    folder, model = saved
    ids = prompt(9)
    expected = plain(model, ids, 8)
    lazy, _ = load(str(folder), experts="disk")
    for config in (systems.on_demand(slots=slots), systems.mobile(gamma=1.1, slots=slots)):
        with offload(lazy, config, host_gb=0.0001 if slots == 2 else None) as engine:
            generation = engine.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
            assert engine.measured and "experts read from their files" in engine.trace.conditions["time"]
        assert generation.token_ids == expected


def test_what_is_measured_weighs_what_it_weighs(saved):
    """Bytes of another model beside real seconds would be nobody's."""
    folder, model = saved
    lazy, _ = load(str(folder), experts="disk")
    layers = find_layers(model)
    block = Layout.of(layers[0].experts, layers[0].num_experts).nbytes
    budget = 3 * block * len(layers) / 1e9
    for geometry in ("olmoe-1b-7b", None):
        with offload(lazy, systems.on_demand(slots=2), geometry=geometry) as engine:
            engine.generate(prompt(5), max_new_tokens=2, do_sample=False, eos_token_id=None)
            assert engine.measured and engine.trace.conditions["expert_bytes"] == block
        with offload(lazy, systems.on_demand(budget_gb=budget), geometry=geometry) as engine:
            assert engine.trace.conditions["slots"] == 3
    with offload(lazy, systems.on_demand(slots=2), hardware="rtx4080-pcie4", geometry="olmoe-1b-7b") as engine:
        assert not engine.measured and engine.trace.conditions["expert_bytes"] > 100 * block


def test_experts_take_no_memory_until_they_are_read(saved):
    folder, model = saved
    lazy, _ = load(str(folder), experts="disk")
    held = sum(p.numel() for p in lazy.parameters() if p.device.type != "meta")
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert held == sum(p.numel() for p in model.parameters()) - routed


def test_a_file_that_goes_away_is_one_sentence(saved):
    folder, _ = saved
    lazy, _ = load(str(folder), experts="disk")
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    with offload(lazy, systems.on_demand(slots=2)) as engine, refused("could not be read"):
        engine.generate(prompt(5), max_new_tokens=4)


def test_what_cannot_be_is_refused(saved):
    folder, _ = saved
    with refused("'memory' or 'disk'"):
        load(str(folder), experts="tape")
    lazy, _ = load(str(folder), experts="disk")
    with refused("slots= or budget_gb="), offload(lazy):
        pass
    assert torch.is_grad_enabled()
