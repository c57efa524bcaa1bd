"""The plan: what it counts from a config alone is what the model then weighs, and `offload` gets the slots it says."""

import dataclasses
import re

import pytest
import torch
from checkpoints import FAMILIES, save, shards
from helpers import make, prompt, refused
from transformers import AutoConfig

from mobile_nb import Hardware, MobileConfig, MobileError, offload, plan, systems
from mobile_nb.memory import host
from mobile_nb.model import context as context_module
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.skeleton import skeleton
from mobile_nb.runtime import plan as plan_module

SMALL = Hardware("small", 10, 100, 10, device_gb=0.008)


def gb(*tensors):
    return sum(tensor.nbytes for tensor in tensors) / 1e9


def kept(cache):
    """Bytes that a real cache holds, in GB."""
    return sum(value.nbytes for layer in cache.layers for value in vars(layer).values() if torch.is_tensor(value)) / 1e9


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_alone_says_what_the_model_weighs(name):
    model = make(name)
    found = plan(model.config, context=48, dtype=torch.float32)
    experts = [p for layer in find_layers(model) for p in layer.experts.parameters(recurse=False)]
    embeddings = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    everything = gb(*model.parameters(), *model.buffers())
    assert found.embeddings_gb == pytest.approx(gb(*embeddings))
    assert found.attention_gb == pytest.approx(everything - gb(*experts) - gb(*embeddings))
    assert gb(*experts) <= found.arenas_gb <= 1.1 * gb(*experts), "padded blocks"
    assert (found.layers, found.experts, found.context) == (len(find_layers(model)), 8, 48)
    with torch.no_grad():
        cache = model(prompt(48), use_cache=True).past_key_values
    assert found.cache_gb == pytest.approx(kept(cache), rel=1e-6) and found.cache_gb > 0
    twin = plan(model, context=48)
    assert dataclasses.replace(twin, model=found.model) == found, "of the model itself"


@pytest.mark.parametrize(("name", "slots"), [("olmoe", 1), ("deepseek_v2", 5), ("gpt_oss", 7), ("granitemoe", 2)])
def test_a_budget_gives_the_slots_that_offload_gets(name, slots):
    model = make(name)
    large = plan(model)
    one = large.slots_gb / large.slots
    found = plan(model, budget_gb=one * (slots + 0.5), hardware=SMALL)
    assert found.slots == slots and found.slots_gb == pytest.approx(slots * one)
    with offload(model, MobileConfig(budget_gb=one * (slots + 0.5))) as engine:
        assert engine.trace.conditions["slots"] == slots


def test_a_budget_below_one_slot_is_refused_with_the_smallest_that_is_enough():
    model = make("olmoe")
    with refused("cannot hold one", "smallest budget", kinds=MobileError) as caught:
        plan(model, budget_gb=1e-6)
    smallest = float(re.search(r"smallest budget is ([\d.e-]+) GB", str(caught.value))[1])
    assert plan(model, budget_gb=smallest).slots == 1
    with refused("smallest budget"):
        plan(model, budget_gb=0.99 * smallest)


def test_without_a_budget_the_slots_are_what_the_card_leaves_beside_the_rest():
    model = make("qwen2_moe", moe_intermediate_size=1000, max_position_embeddings=4096)
    large, tight = plan(model), plan(model, hardware=SMALL)
    assert large.slots == large.experts == 8 and large.fits
    assert 1 <= tight.slots < 8 and tight.fits and tight.together_gb <= 0.9 * SMALL.device_gb
    one = tight.slots_gb / tight.slots
    assert tight.together_gb + one > 0.9 * SMALL.device_gb, "another slot would have fitted"
    assert plan(model, hardware=SMALL, context=4096).slots < plan(model, hardware=SMALL, context=16).slots
    assert plan(model, hardware="t4-colab").device_gb == Hardware.preset("t4-colab").device_gb


def test_what_does_not_fit_is_named_with_its_size(monkeypatch):
    monkeypatch.setattr(plan_module, "host_gb", lambda: 0.01)
    model = make("mixtral", intermediate_size=2000)
    found = plan(model, hardware=dataclasses.replace(SMALL, device_gb=0.001))
    assert found.slots == 1 and not found.fits
    assert found.device_short_gb == pytest.approx(found.together_gb - 0.001)
    assert found.host_short_gb == pytest.approx(found.arenas_gb - 0.01)
    assert str(found).count("too much") == 2 and f"{found.device_short_gb:.2f} GB too much" in str(found)
    monkeypatch.setattr(plan_module, "host_gb", lambda: None)
    unknown = plan(model)
    assert unknown.fits and unknown.host_short_gb == 0 and "too much" not in str(unknown)


def test_the_table_says_every_part_in_text_and_in_html():
    found = plan(AutoConfig.for_model("olmoe"), hardware="rtx3060-pcie3", context=4096)
    text, page = str(found), found._repr_html_()
    assert text.splitlines()[0] == found.title and "rtx3060-pcie3" in found.title and "bfloat16" in found.title
    sums = [found.attention_gb, found.embeddings_gb, found.cache_gb, found.slots_gb, found.together_gb, found.arenas_gb]
    for part in [*(f"{number:.2f}" for number in sums), "4,096 tokens", f"{found.slots} of 64", "page"]:
        assert part in text and part in page, part
    assert page.startswith("<table>") and page.count("<tr>") == 1 + len(found.rows())
    assert all(len(line) < 160 for line in text.splitlines())
    assert found.together_gb == pytest.approx(sum(sums[:4]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.slots = 3
    risky = dataclasses.replace(found, model="<b>")
    assert "<b>" not in risky._repr_html_()


def test_a_name_is_enough_and_no_weight_is_read(tmp_path):
    folder = save(tmp_path / "small-olmoe")
    whole = plan(str(folder))
    for path in shards(folder):
        path.unlink()
    assert plan(str(folder)) == whole and whole.model == "small-olmoe" and whole.dtype == "float32"
    assert plan(str(folder), dtype="bfloat16").arenas_gb < whole.arenas_gb
    with refused("no model"):
        plan("someone/nothing")
    with refused("config.json"):
        plan(str(tmp_path))


def test_the_planned_size_is_what_load_then_allocates(tmp_path):
    from mobile_nb import load

    folder = save(tmp_path, "gpt_oss")
    found, model = plan(str(folder)), load(str(folder))[0]
    with offload(model, systems.on_demand(slots=2)) as engine:
        assert gb(*(arena.blocks for arena in engine._server.arenas)) == pytest.approx(found.arenas_gb)
        assert gb(*(slots.blocks for slots in engine._server._slots)) == pytest.approx(2 * found.slots_gb / found.slots)


def test_a_context_beyond_the_model_is_the_models_own():
    assert plan(make("olmoe"), context=10**6).context == 128


def test_the_cache_of_recurrent_layers_is_extrapolated_rightly(monkeypatch):
    fields = {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        **{
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        **{"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
        **{"num_hidden_layers": 3, "hidden_size": 32, "vocab_size": 101, "num_key_value_heads": 2},
        **{"num_attention_heads": 4, "intermediate_size": 32, "shared_expert_intermediate_size": 16},
    }
    bones = skeleton(AutoConfig.for_model("qwen3_next", **fields), torch.float32)
    guessed = context_module.cache_bytes(bones, 512)
    monkeypatch.setattr(context_module, "FEW", 10**6)
    assert guessed == context_module.cache_bytes(bones, 512) > 0


def test_what_cannot_be_planned_is_refused():
    with refused("dense"):
        plan(AutoConfig.for_model("llama", num_hidden_layers=1, hidden_size=64, vocab_size=100))
    with refused("name, a transformers config or a model"):
        plan(7)
    with refused("context"):
        plan(make(), context=0)
    with refused("budget_gb"):
        plan(make(), budget_gb=float("nan"))
    with refused("preset"):
        plan(make(), hardware="abacus")
    with refused("Hardware"):
        plan(make(), hardware=3)
    with refused("dtype"):
        plan(make(), dtype="purple")


def test_this_machine_has_memory():
    assert host.host_gb() is None or host.host_gb() > 0.5
