"""What machines do, what models weigh, and the seconds that follow."""

import dataclasses
import json

import pytest
from helpers import make, refused

from mobile_nb import Geometry, Hardware
from mobile_nb.costs import Costs
from mobile_nb.files import data_path
from mobile_nb.hardware import PRESETS
from mobile_nb.memory.store import Layout
from mobile_nb.model.adapters import find_layers, geometry_of

# Published configs in half precision, routed experts only: MoE layers, E, K, one expert in MB, all of them in GB,
# GB a token without a cache, milliseconds of that at 25 GB/s.
SIZES = {
    "olmoe-1b-7b": (16, 64, 8, 12.58, 12.88, 1.611, 64),
    "qwen1.5-moe-a2.7b": (24, 60, 4, 17.30, 24.91, 1.661, 66),
    "deepseek-v2-lite": (26, 64, 6, 17.30, 28.79, 2.699, 108),
    "deepseek-moe-16b": (27, 64, 6, 17.30, 29.90, 2.803, 112),
    "qwen3-30b-a3b": (48, 128, 8, 9.44, 57.98, 3.624, 145),
    "phi-3.5-moe": (32, 16, 2, 157.3, 80.5, 10.07, 403),
    "mixtral-8x7b": (32, 8, 2, 352.3, 90.2, 22.55, 902),
}
# All weights of the published models, in billions, without the input embedding.
TOTALS = {"olmoe-1b-7b": 6.82, "qwen1.5-moe-a2.7b": 14.0, "deepseek-v2-lite": 15.5, "qwen3-30b-a3b": 30.2}


@pytest.mark.parametrize(("name", "row"), SIZES.items(), ids=SIZES)
def test_geometries_weigh_what_is_published(name, row):
    size = Geometry.of(name)
    layers, experts, k, expert_mb, experts_gb, gb_a_token, ms = row
    assert (size.name, size.moe_layers, size.num_experts, size.top_k) == (name, layers, experts, k)
    assert size.expert_bytes / 1e6 == pytest.approx(expert_mb, rel=1e-3)
    assert size.experts_gb == pytest.approx(experts_gb, rel=1e-3)
    a_token = layers * k * size.expert_bytes / 1e9
    assert a_token == pytest.approx(gb_a_token, rel=2e-3)
    assert a_token / 25 * 1e3 == pytest.approx(ms, abs=1)


@pytest.mark.parametrize(("name", "billions"), TOTALS.items(), ids=TOTALS)
def test_all_weights_together_are_the_published_number(name, billions):
    size = Geometry.of(name)
    assert (size.experts_gb + size.other_gb) / 2 == pytest.approx(billions, rel=0.03)


def test_every_shipped_geometry_can_be_read():
    shipped = json.loads(data_path("geometries.json").read_text(encoding="utf-8"))["models"]
    assert len(shipped) >= 8 and set(SIZES) <= set(shipped)
    for name in shipped:
        size = Geometry.of(name)
        assert size.top_k < size.num_experts and 0 < size.other_gb < size.experts_gb


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "deepseek_v2"])
def test_a_models_own_geometry_is_counted_from_its_weights(name):
    model = make(name)
    layers = find_layers(model)
    size, layout = geometry_of(model, layers), Layout.of(layers[0].experts, layers[0].num_experts)
    assert (size.moe_layers, size.num_experts, size.top_k) == (len(layers), 8, 4)
    assert size.expert_params == sum(p[0].numel() for p in layers[0].experts.parameters(recurse=False))
    assert size.expert_bytes == layout.nbytes, "bytes are those of a padded block"
    embedding = model.get_input_embeddings().weight.numel()
    counted = size.moe_layers * (8 * size.expert_params + size.layer_params) + size.head_params
    assert counted == pytest.approx(model.num_parameters() - embedding, abs=len(layers))


def test_presets_are_cards_by_name():
    assert {"rtx4080-pcie4", "rtx3060-pcie3", "t4-colab", "laptop4060-pcie4x8", "h100-pcie5"} <= set(PRESETS)
    for name, card in PRESETS.items():
        assert Hardware.preset(name) is card and card.name == name and not card.measured
        assert card.link_gb_per_s < card.memory_gb_per_s < 1e4 and 4 <= card.device_gb <= 80
    assert Hardware.preset("rtx4080-pcie4").link_gb_per_s == 25


@pytest.mark.parametrize("field", ["link_gb_per_s", "memory_gb_per_s", "tflops", "device_gb"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "fast", None, True])
def test_rates_must_be_positive_numbers(field, value):
    rates = {"link_gb_per_s": 1, "memory_gb_per_s": 1, "tflops": 1, "device_gb": 1}
    with refused(f"Hardware.{field} must be", repr(value), kinds=(ValueError, TypeError)):
        Hardware("mine", **(rates | {field: value}))
    for waits in ("link_latency_s", "launch_s"):
        assert Hardware("mine", **rates, **{waits: 0})
        with refused(f"Hardware.{waits} must be", kinds=ValueError):
            Hardware("mine", **rates, **{waits: -1e-9})


CARD = Hardware("card", link_gb_per_s=10, memory_gb_per_s=500, tflops=50, device_gb=16, link_latency_s=1e-5, launch_s=0)


def costs(hardware=CARD, name="olmoe-1b-7b", layers=16):
    return Costs(hardware, Geometry.of(name), layers)


def test_a_transfer_is_latency_plus_bytes_over_bandwidth():
    assert costs().fetch_s == pytest.approx(1e-5 + costs().expert_bytes / 10e9)
    assert costs().expert_bytes == Geometry.of("olmoe-1b-7b").expert_bytes
    faster = dataclasses.replace(CARD, link_gb_per_s=20, link_latency_s=0)
    assert costs(faster).fetch_s == pytest.approx((costs().fetch_s - 1e-5) / 2)


def test_compute_is_the_larger_of_reading_and_multiplying():
    size = Geometry.of("olmoe-1b-7b")
    read, one = size.expert_bytes / 500e9, 2 * size.expert_params / 50e12
    assert costs().expert_s() == pytest.approx(read)
    assert costs().expert_s(10) == pytest.approx(read), "a few tokens cost no more than one"
    assert costs().expert_s(1000) == pytest.approx(1000 * one)
    slow = dataclasses.replace(CARD, launch_s=1e-6)
    assert costs(slow).expert_s() == pytest.approx(read + 3e-6)


@pytest.mark.parametrize("event", ["expert_s", "layer_s"])
def test_more_tokens_never_take_less_time(event):
    for name in SIZES:
        times = [getattr(costs(name=name), event)(tokens) for tokens in (1, 2, 16, 128, 1024, 8192)]
        assert times == sorted(times) and times[-1] > times[0] > 0


@pytest.mark.parametrize("field", ["link_gb_per_s", "memory_gb_per_s", "tflops"])
def test_faster_parts_never_make_an_event_slower(field):
    better = dataclasses.replace(CARD, **{field: 2 * getattr(CARD, field)})
    for tokens in (1, 100, 10_000):
        for event in ("expert_s", "layer_s", "head_s"):
            assert getattr(costs(better), event)(tokens) <= getattr(costs(), event)(tokens)
    assert costs(better).fetch_s <= costs().fetch_s
    changed = [costs(better).fetch_s < costs().fetch_s, costs(better).expert_s(10_000) < costs().expert_s(10_000)]
    assert any(changed) or costs(better).expert_s() < costs().expert_s()


@pytest.mark.parametrize("layers", [1, 3, 4, 16, 26])
@pytest.mark.parametrize("name", ["olmoe-1b-7b", "deepseek-v2-lite"])
def test_a_model_of_few_layers_stands_for_all_of_the_real_ones(name, layers):
    """Each of its layers is stretched: what a whole token costs is the real model's, whatever the number of layers."""
    mine, real = costs(name=name, layers=layers), costs(name=name, layers=Geometry.of(name).moe_layers)
    assert real.stretch == 1
    assert mine.stretch * layers == pytest.approx(real.geometry.moe_layers)
    for event in (lambda c: c.fetch_s, lambda c: c.expert_s(), lambda c: c.layer_s(7), lambda c: c.expert_bytes):
        assert layers * event(mine) == pytest.approx(real.geometry.moe_layers * event(real), rel=1e-6)
    assert mine.head_s(5) == real.head_s(5)


def test_dense_layers_are_paid_once_a_pass():
    size = Geometry.of("deepseek-v2-lite")
    without = dataclasses.replace(size, dense_layers=0)
    assert Costs(CARD, size, 26).head_s() > Costs(CARD, without, 26).head_s()


@pytest.mark.parametrize("field", ["moe_layers", "expert_params"])
@pytest.mark.parametrize("value", [0, -4, 1.5, "many"])
def test_a_geometry_must_have_layers_and_weights(field, value):
    with refused(f"Geometry.{field}", repr(value), kinds=(ValueError, TypeError)):
        dataclasses.replace(Geometry.of("olmoe-1b-7b"), **{field: value})
