"""How many experts run: fixed numbers a layer (LExI) and by the token's own weights (AdapMoE)."""

import itertools

import numpy as np
import pytest
import torch
from helpers import EXPERTS, GREEDY, TOP_K, make, plain, prompt, refused
from hypothesis import given
from hypothesis import strategies as st

from mobile_nb import MobileError, offload, systems
from mobile_nb.model.outputs import deviations, expert_outputs
from mobile_nb.policies import Buddies, PerLayer, Sensitivity
from mobile_nb.runtime.batch import installed

LAYERS, NEW = 3, 6


def test_the_numbers_of_each_layer_lose_least_in_sum():
    """Four experts for two layers: 1 and 3 lose 4 + 0, 2 and 2 lose 1 + 5, 3 and 1 lose 0 + 6."""
    loss = [[4, 1, 0], [6, 5, 0]]
    assert PerLayer.least_loss(loss, 4).runs == (1, 3)
    assert PerLayer.least_loss(loss, 5).runs == (2, 3)
    assert PerLayer.least_loss(loss, 2).runs == (1, 1) and PerLayer.least_loss(loss, 6).runs == (3, 3)
    assert [PerLayer((1, 3)).run(mode, 1, 3) for mode in ("prompt", "big")] == [(3, None)] * 2
    assert PerLayer((1, 9)).run("big", 1, 4) == (4, None)


@given(
    st.integers(1, 4).flatmap(
        lambda k: st.lists(st.lists(st.floats(0, 10), min_size=k, max_size=k), min_size=1, max_size=4)
    ),
    st.data(),
)
def test_nobody_finds_numbers_that_lose_less(loss, data):
    layers, k = len(loss), len(loss[0])
    budget = data.draw(st.integers(layers, layers * k))

    def lost(runs):
        return sum(row[run - 1] for row, run in zip(loss, runs, strict=True))

    found = PerLayer.least_loss(loss, budget).runs
    every = (runs for runs in itertools.product(range(1, k + 1), repeat=layers) if sum(runs) == budget)
    assert sum(found) == budget and lost(found) == pytest.approx(min(map(lost, every)))


def test_as_many_run_as_the_layer_is_sensitive():
    """The best weight has 0.7 of the mass: (1 - 0.7)^2 * 2 = 0.18, with the second 0.9: 0.02, with the third 0."""
    weights = [1.4, 0.4, 0.2]
    runs = {t: Sensitivity((2.0,), t).run("big", 0, 3, weights)[0] for t in (0.2, 0.1, 0.03, 0.01, 0.0)}
    assert runs == {0.2: 1, 0.1: 2, 0.03: 2, 0.01: 3, 0.0: 3}
    assert Sensitivity((0.0,), 0).run("big", 0, 3, weights) == (1, None), "nothing depends on it"
    assert Sensitivity((2.0,), 0.5).run("prompt", 0, 3) == (3, None)


def test_fields_that_cannot_be_are_refused():
    for loss, budget, said in (([[1, 2]], 3, "from 1 to 2"), ([[1, 2]], 0, "at least 1"), ([[np.nan]], 1, "finite")):
        with refused(said):
            PerLayer.least_loss(loss, budget)
    with refused("each of PerLayer.runs"):
        PerLayer((1, 0))
    with refused("each of Sensitivity.layers"):
        Sensitivity((-1,), 0.1)
    for config in (systems.lexi((1, 1), slots=3), systems.adapmoe((1.0, 1.0), 0.1, slots=3)):
        with refused("the model has more", kinds=MobileError), offload(make(), config) as engine:
            engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)


def test_all_of_k_in_every_layer_and_no_threshold_are_the_full_model():
    model = make()
    wanted = plain(model, prompt(), NEW)
    for config in (systems.lexi((TOP_K,) * LAYERS, slots=3), systems.adapmoe((1.0,) * LAYERS, 0.0, slots=3)):
        assert not config.lossless
        with offload(model, config) as engine:
            assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == wanted


def test_a_fixed_number_in_every_layer_is_the_little_model_and_may_run_in_batches():
    model = make()
    few, little = systems.lexi((2,) * LAYERS, slots=3), systems.little(slots=3)
    texts = []
    for config in (few, little):
        with offload(model, config) as engine:
            texts.append(engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids)
    with installed(model, few) as batch:
        inputs = {"input_ids": prompt(), "attention_mask": torch.ones_like(prompt())}
        rows = batch.write(inputs, max_new_tokens=NEW, eos_token_id=None)
    assert texts[0] == texts[1] == rows[0].token_ids
    counting = systems.adapmoe((1.0,) * LAYERS, 0.1)
    with refused("counts for each", kinds=MobileError), installed(model, counting):
        pass


# -- measured on the model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["olmoe", "mixtral", "gpt_oss"])
def test_deviations_fall_to_nothing_as_all_experts_run(name):
    loss = deviations(make(name), 64)
    assert loss.shape == (LAYERS, TOP_K) and (loss[:, -1] < 1e-6).all() and (loss[:, :-1] > 1e-4).all()
    assert (deviations(make(name), 64) == loss).all() and (deviations(make(name), 64, seed=9) != loss).any()
    assert sum(PerLayer.least_loss(loss, 2 * LAYERS).runs) == 2 * LAYERS


def test_outputs_of_experts_are_what_each_of_them_makes_of_the_text():
    model = make()
    outputs = expert_outputs(model, prompt(5))
    assert outputs.shape == (LAYERS, EXPERTS, 5, 32)
    block = next(m for m in model.modules() if hasattr(m, "experts"))
    block.experts.down_proj.data[3] = 2 * block.experts.down_proj.data[1]
    block.experts.gate_up_proj.data[3] = block.experts.gate_up_proj.data[1]
    twins = Buddies.from_outputs(expert_outputs(model, prompt(5)), 1)
    assert twins.of_expert(0, 3)[0] == 1 and twins.of_expert(0, 1)[0] == 3
