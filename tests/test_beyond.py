"""MoE-Beyond: its network, how it is judged, what it may know, and how it runs."""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import EXPERTS, GREEDY, make, plain, prompt, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from mobile_nb import load, offload, replay, systems
from mobile_nb.analysis.beyond import figures, simulated, table
from mobile_nb.files import data_path
from mobile_nb.model.adapters import find_layers
from mobile_nb.policies import Learned, Network, PredictedReuse

sys.path.append(str(Path(__file__).resolve().parents[1] / "data" / "recipes"))
import beyond

SIZES = {"layers": 3, "experts": EXPERTS, "hidden": 32}


@cache
def drawn(*, honest: bool = True, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return beyond.Predictor(**SIZES, honest=honest, width=16, feed=24, blocks=2).eval().network()


# -- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("honest", [False, True])
def test_the_policys_network_is_the_trained_one(honest):
    torch.manual_seed(1)
    trained = beyond.Predictor(**SIZES, honest=honest, width=16, feed=24, blocks=2).eval()
    states, layers = torch.randn(11, 32), torch.arange(11) % 3
    with torch.no_grad():
        said = trained(states[None], layers[None], torch.ones(1, 11, dtype=torch.bool))[0]
    ours = trained.network().logits(states.numpy(), layers.numpy())
    assert np.abs(ours - said.numpy()).max() < 1e-5
    one = trained.network().logits(states.numpy(), layers.numpy(), slice(4, 5))
    assert np.abs(one - ours[4:5]).max() < 1e-6


@settings(max_examples=30)
@given(st.integers(0, 8), st.floats(0.5, 50))
def test_the_honest_one_does_not_look_ahead_and_the_published_one_does(row, change):
    states, layers = np.random.default_rng(0).normal(size=(9, 32)).astype(np.float32), np.arange(9) % 3
    other = states.copy()
    other[row] += change * np.sign(np.arange(32) - 15.5)
    for network, sees in ((drawn(), False), (drawn(honest=False), True)):
        before, after = network.logits(states, layers), network.logits(other, layers)
        assert np.abs(after[row:] - before[row:]).max() > 1e-6
        assert row == 0 or (np.abs(after[:row] - before[:row]).max() > 1e-7) == sees


def test_a_network_is_a_value_and_comes_back_from_its_file(tmp_path):
    network, path = drawn(), tmp_path / "one.safetensors"
    other = Network(**{name: getattr(network, name) + 0 for name in network.__dataclass_fields__})
    assert network == other and network != drawn(seed=1) and hash(network) == hash(other)
    network.save(path)
    again = Network.load(path)
    assert again.shape == network.shape == (3, EXPERTS, 32) and again.honest and not drawn(honest=False).honest
    assert max(np.abs(a - b).max() for a, b in ((again.tell, network.tell), (again.qkv, network.qkv))) < 1e-3
    path.write_bytes(path.read_bytes()[:100])
    with refused("holds no predictor that can be read"):
        Network.load(path)
    with refused("there is no shipped predictor tiny-nothing-honest"):
        Network.shipped("tiny-nothing")


@pytest.mark.parametrize("name", sorted(path.stem for path in data_path("beyond").glob("*.json")))
def test_shipped_ones_are_small_and_fit_their_models(name):
    config = json.loads(data_path(name, "config.json").read_text())
    (experts,) = [config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config]
    network = Network.shipped(name)
    assert network.shape[1:] == (experts, config["hidden_size"])
    assert network.honest
    assert data_path("beyond", f"{name}-honest.safetensors").stat().st_size < 1e6


# -- what it is trained on -----------------------------------------------------------------------------------------


def test_the_published_feature_is_the_gates_own_input_and_the_honest_one_comes_before_it():
    """The router, a linear map, gives the answer from the published feature exactly, for each row."""
    model, tokenizer = load("tiny-olmoe", dtype="float32")
    layers = find_layers(model)
    (text,) = beyond.collect(model, tokenizer, beyond.problems("test", 1)[:1])
    states, which, ids = beyond.examples(text, "published")
    for at, layer in enumerate(layers):
        rows = which == at
        with torch.no_grad():
            answer = layer.route(torch.from_numpy(states[rows]))
            linear = torch.from_numpy(states[rows]) @ layer.router.weight.T
        assert torch.equal(answer, torch.from_numpy(ids[rows]))
        assert torch.equal(linear.topk(layer.top_k).indices.sort().values, answer.sort().values)
    before, following, asked = beyond.examples(text, "honest")
    assert np.array_equal(before, states[:-1]) and np.array_equal(asked, ids[1:])
    assert following.tolist() == which[1:].tolist()


def test_every_row_is_trained_on_once_an_epoch():
    random = np.random.default_rng(0)
    texts = [
        beyond.Text(random.normal(size=(tokens, 2, 5)).astype(np.float32), np.full((tokens, 2, 1), 3), None)
        for tokens in (50, 7, 1)
    ]
    for version, rows in (("published", 116), ("honest", 113)):
        for order in (None, np.random.default_rng(1)):
            made = list(beyond.batches(texts, version, 4, order))
            assert sum(int(real.sum()) for _, _, real, _ in made) == rows
            assert sum(float(wanted.sum()) for *_, wanted in made) == rows
            seen = torch.cat([states[real] for states, _, real, _ in made]).sum().item()
            told = sum(beyond.examples(text, version)[0].sum() for text in texts)
            assert seen == pytest.approx(told, abs=1e-2)


# -- how it is judged ----------------------------------------------------------------------------------------------


def routing(**predictors):
    """Two layers, five experts, one text of three tokens, one expert a row: 0 1, 0 2, 3 1."""
    asked = [(0,), (1,), (0,), (2,), (3,), (1,)]
    plain = {"text": 0, "token": [0, 0, 1, 1, 2, 2], "layer": [0, 1] * 3, "asked": asked}
    return pd.DataFrame(plain | predictors)


def test_naming_nobody_is_mostly_right_and_half_of_the_headline():
    """30 pairs, 6 active. Nobody: accuracy 24/30, F1 of inactive 48/54, of active 0. Half of them named rightly and
    half wrongly: accuracy 24/30 too, F1 of inactive 42/48, of active 1/2."""
    half = [(0,), (1,), (0,), (4,), (0,), (0,)]
    found = figures(routing(nobody=[()] * 6, half=half), 5)
    rows = found[found.layer == "all"].set_index("predictor")
    assert rows.accuracy.tolist() == pytest.approx([0.8, 0.8])
    assert rows.macro_f1.tolist() == pytest.approx([24 / 54, (21 / 24 + 1 / 2) / 2])
    assert rows.f1.tolist() == pytest.approx([0, 0.5])
    assert rows.loc["half", ["precision", "recall", "named"]].tolist() == pytest.approx([0.5, 0.5, 1])
    assert np.isnan(rows.loc["nobody", "precision"]) and rows.loc["nobody", "recall"] == 0
    first = found[(found.layer == 0) & (found.predictor == "half")].iloc[0]
    assert first.precision == pytest.approx(2 / 3) and first.accuracy == pytest.approx(13 / 15)


def test_one_lru_over_all_layers_takes_predictions_in_before_it_is_asked():
    """After a warm-up of one token the two slots hold 0.0 and 1.1 (layer.expert). LRU: 0.0 is there, 1.2 takes the
    place of 1.1, 0.3 of 0.0, and 1.1 is gone: 1 hit of 4, 3 loads. An oracle loads the same three early, and all hit.
    Useless predictions 0.4 and 1.4 each push out what is asked for next: no hit, and 4 more loads."""
    oracle = [(0,), (1,), (0,), (2,), (3,), (1,)]
    found = simulated(routing(oracle=oracle, useless=[(4,)] * 6), 5, [0.2], warm_up=1).set_index("predictor")
    assert found.slots.tolist() == [2, 2, 2] and found["rows"].tolist() == [4, 4, 4]
    assert found.loc["LRU", ["hit_rate", "loads", "early"]].tolist() == [0.25, 0.75, 0]
    assert found.loc["oracle", ["hit_rate", "loads", "early"]].tolist() == [1, 0.75, 0.75]
    assert found.loc["useless", ["hit_rate", "loads", "early"]].tolist() == [0, 2, 1]


def test_the_table_puts_the_headline_beside_what_it_hides():
    frame = routing(half=[(0,), (1,), (0,), (4,), (0,), (0,)])
    found = table(figures(frame, 5), simulated(frame, 5, [0.2, 0.5], warm_up=1), [0.2])
    assert list(found) == ["accuracy", "macro_f1", "f1", "hit_rate at 20 %", "loads at 20 %"]
    assert sorted(found.index) == ["LRU", "half"] and np.isnan(found.f1["LRU"]) and found.f1["half"] == 0.5
    assert found.loc["LRU", ["hit_rate at 20 %", "loads at 20 %"]].tolist() == [0.25, 0.75]


def test_with_room_for_all_everything_hits_and_nothing_is_loaded():
    found = simulated(routing(useless=[(4,)] * 6), 5, [1.0], warm_up=0)
    assert found.hit_rate.tolist() == [1, 1] and found.loads.tolist() == [0, 0]


def test_texts_begin_anew_with_contents_that_the_seed_decides():
    two = pd.concat([routing(), routing().assign(text=1)], ignore_index=True)
    found = [simulated(two, 5, [0.4], warm_up=0, seed=seed) for seed in (3, 3, 4)]
    assert found[0].equals(found[1]) and found[0]["rows"].tolist() == [12]
    rates = {simulated(two, 5, [0.4], warm_up=0, seed=seed).hit_rate.item() for seed in range(9)}
    assert len(rates) > 1, "the first look-ups depend on the contents"
    once = simulated(two, 5, [0.4], warm_up=3)
    assert once["rows"].item() == 0 and np.isnan(once.hit_rate.item())


# -- at run time ---------------------------------------------------------------------------------------------------


def test_only_what_is_there_in_time_can_run():
    with refused("published version", "own router input", "honest"):
        Learned(drawn(honest=False))
    with refused("Learned.network must be a Network"):
        Learned("tiny-olmoe")
    with refused("Learned.context", "at least 1"):
        Learned(drawn(), 0)
    with (
        refused("(3, 8, 32)"),
        offload(make("qwen2_moe", hidden_size=48), systems.moe_beyond(drawn(), slots=4)) as engine,
    ):
        engine.generate(prompt(5), max_new_tokens=3, **GREEDY)


class Listens:
    """A predictor that keeps what it is shown."""

    context = 3

    def __init__(self):
        self.seen = []

    def expected(self, layer, view):
        self.seen.append((layer, view.mode, view.states(self.context)))
        return np.zeros((view.layers, view.experts))


@pytest.mark.parametrize("slots", [2, EXPERTS - 1])
@pytest.mark.parametrize("cached", [True, False])
def test_states_are_what_the_routers_of_the_last_tokens_were_given(slots, cached):
    """Beside one pass of plain transformers over the whole text."""
    model, listens = make("qwen2_moe"), Listens()
    with offload(model, systems.on_demand(slots=slots, evict=PredictedReuse(listens))) as engine:
        written = engine.generate(prompt(6), max_new_tokens=4, use_cache=cached, **GREEDY).token_ids
    given = []
    hooks = [at.experts.register_forward_pre_hook(lambda _, a: given.append(a[0])) for at in find_layers(model)]
    with torch.no_grad():
        model(torch.cat([prompt(6), torch.tensor([written])], dim=1))
    for hook in hooks:
        hook.remove()
    states = torch.stack(given, dim=1)  # [T, L, H]
    passes = [n for n, (layer, _, _) in enumerate(listens.seen) if layer < 0]
    assert len(passes) == 3 and listens.seen[-1][2].dtype == np.float32
    for token, first in enumerate(passes):
        for layer, _, shown in listens.seen[first : [*passes, len(listens.seen)][token + 1]]:
            at = 6 + token  # tokens of the text before the one at hand
            wanted = torch.cat([states[at - 3 : at].flatten(0, 1), states[at, : layer + 1]])
            assert shown == pytest.approx(wanted.numpy(), abs=1e-5)


def test_an_evicted_tokens_states_are_forgotten():
    listens = Listens()
    with offload(make(), systems.mobile(1.1, slots=3, evict=PredictedReuse(listens))) as engine:
        engine.generate(prompt(6), max_new_tokens=4, **GREEDY)
    before = {mode: [rows for at, of, rows in listens.seen if at < 0 and of == mode] for mode in ("little", "big")}
    assert len(before["big"]) == 3
    assert all(np.array_equal(*pair) for pair in zip(before["little"], before["big"], strict=True))


def test_nobody_asks_and_nothing_is_kept():
    with offload(make(), systems.next_gate(slots=3)) as engine:
        engine.generate(prompt(6), max_new_tokens=3, **GREEDY)
        assert engine._server.view.given._now == engine._server.view.given._text == {}


def test_it_predicts_one_layer_ahead_and_an_eviction_may_ask_too():
    """What is prefetched is the network's choice for the next layer, from the states that are there."""
    model, by = make("qwen2_moe"), Learned(drawn(), 3)
    shown, wanted = [], []

    class Spy:
        revises, context = True, 3

        def wanted(self, layer, view):
            shown.append((layer, view.states(3)))
            wanted.append(systems.moe_beyond(by.network, context=3).prefetch.wanted(layer, view))
            return wanted[-1]

    ids = prompt(6)
    with offload(model, systems.on_demand(slots=4, prefetch=Spy(), evict=PredictedReuse(by))) as engine:
        text = engine.generate(ids, max_new_tokens=4, **GREEDY).token_ids
        assert engine.report().prefetches.sum() > 0
        trace = engine.trace
    assert text == plain(model, ids, 4)
    for (layer, states), named in zip(shown, wanted, strict=True):
        layers = (np.arange(len(states)) + (layer + 1 - len(states) + 1)) % 3
        best = np.argsort(-by.network.logits(states, layers)[-1])[:4]
        assert [(w.layer, w.experts[0]) for w in named] == ([(layer + 1, e) for e in best] if layer < 2 else [])
    with refused("hidden states", "run it live"):
        replay(trace, systems.moe_beyond(by.network, slots=3))
