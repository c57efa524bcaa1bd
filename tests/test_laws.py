"""Laws 1, 2, 4 and 5: caching, prefetching and evicting never touch the text; gamma's ends are the two models."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from helpers import (
    ARCHITECTURES,
    GREEDY,
    TINY_OLMOE,
    TOP_K,
    Prefetcher,
    behind,
    big_prompt_then_little,
    every_architecture,
    everything,
    gap,
    guessing,
    make,
    middle_gamma,
    plain,
    prompt,
    prompt_for,
    routers,
    top_k,
    twice,
)

from mobile_nb import MobileConfig, offload, systems
from mobile_nb.policies import LFU, LRU, EvictedRouter, Fraction, NextGate, Nothing

NEW = 5
SAMPLED = {"do_sample": True, "temperature": 1.4, "top_k": 30, "top_p": 0.95}
PREFETCH = [Nothing(), NextGate(1), NextGate(2), EvictedRouter()]
ADVERSARIES = {"everything": everything, "behind": behind, "twice": twice, "guessing": guessing(5)}
trained = pytest.param(
    "tiny-olmoe", marks=pytest.mark.skipif(not TINY_OLMOE.is_file(), reason="the trained model is not in data/")
)
every_model = pytest.mark.parametrize("name", [*ARCHITECTURES, trained])


def exact_config(slots, prefetch, evict):
    """A configuration that must write what the full model writes. With EvictedRouter every token is evicted first."""
    if isinstance(prefetch, EvictedRouter):
        return systems.mobile(gamma=1.1, slots=slots, prefetch=prefetch, evict=evict)
    return MobileConfig(slots=slots, prefetch=prefetch, evict=evict)


@dataclass
class Alone:
    """What transformers writes by itself: greedy tokens, sampled tokens, logits of both kinds of forward."""

    greedy: list
    sampled: list
    logits: torch.Tensor  # [NEW, V], token by token
    whole: torch.Tensor  # [T, V], of the whole greedy text at once
    text: torch.Tensor

    @staticmethod
    @torch.no_grad()
    def of(model, ids):
        named = {"attention_mask": torch.ones_like(ids), "output_logits": True, "return_dict_in_generate": True}
        out = model.generate(ids, max_new_tokens=NEW, **GREEDY, **named)
        torch.manual_seed(11)
        sampled = plain(model, ids, NEW, **SAMPLED)
        greedy = out.sequences[0, ids.shape[1] :].tolist()
        return Alone(greedy, sampled, torch.cat(out.logits), model(out.sequences).logits[0], out.sequences)


@torch.no_grad()
def check_exact(model, ids, config, alone):
    with offload(model, config) as engine:
        greedy = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
        torch.manual_seed(11)
        drawn = engine.generate(ids, max_new_tokens=NEW, **(GREEDY | SAMPLED))
        whole = model(alone.text).logits[0]
    assert greedy.token_ids == alone.greedy, config
    assert drawn.token_ids == alone.sampled, config
    assert gap(torch.cat(greedy.logits), alone.logits) < 1e-5, config
    assert gap(whole, alone.whole) < 1e-5, config


def num_experts(model) -> int:
    return next(m.experts.down_proj.shape[0] for m in model.modules() if hasattr(m, "experts"))


@every_model
def test_full_model_is_exact_with_any_number_of_slots(name):
    model, ids = make(name), prompt_for(name)
    wanted, experts = Alone.of(model, ids), num_experts(model)
    assert len(set(wanted.greedy)) > 1, "a text that says nothing proves nothing"
    assert name == "tiny-olmoe" or wanted.greedy != wanted.sampled
    policies = itertools.cycle(itertools.product(PREFETCH, (LRU(), LFU())))
    for slots in (1, 2, 3, experts - 1, experts):
        check_exact(model, ids, exact_config(slots, *next(policies)), wanted)


@pytest.mark.parametrize("slots", [1, 3, 7])
def test_full_model_is_exact_under_every_prefetch_and_eviction(slots):
    model, ids = make("qwen2_moe"), prompt(seed=3)
    wanted = Alone.of(model, ids)
    for prefetch, evict in itertools.product(PREFETCH, (LRU(), LFU())):
        check_exact(model, ids, exact_config(slots, prefetch, evict), wanted)


@pytest.mark.parametrize("slots", [2, 4])
@pytest.mark.parametrize("ask", ADVERSARIES.values(), ids=ADVERSARIES)
def test_no_prefetcher_can_change_tokens(ask, slots):
    model, ids = make(), prompt(seed=4)
    wanted = Alone.of(model, ids)
    for evict in (LRU(), LFU()):
        check_exact(model, ids, MobileConfig(slots=slots, prefetch=Prefetcher(ask), evict=evict), wanted)


@pytest.mark.parametrize("slots", [2, 5])
def test_prefetch_and_eviction_change_time_but_not_the_big_little_text(slots):
    model, ids = make(), prompt(seed=1)
    gamma, texts, times = middle_gamma(model, ids, 2 * NEW), set(), set()
    choices = [Nothing(), NextGate(1), EvictedRouter(), EvictedRouter(1, experts=2), Prefetcher(everything)]
    for prefetch, evict in itertools.product(choices, (LRU(), LFU())):
        config = systems.mobile(gamma, slots=slots, prefetch=prefetch, evict=evict)
        with offload(model, config, geometry="olmoe-1b-7b") as engine:
            written = engine.generate(ids, max_new_tokens=2 * NEW, **GREEDY)
        assert 0 < written.fallback_ratio < 1, "both models must have written for this to say anything"
        texts.add((tuple(written.token_ids), tuple((s.wrote, s.confidence) for s in written.steps)))
        times.add(sum(s.seconds for s in written.steps))
    assert len({tokens for tokens, _ in texts}) == 1
    assert len({tuple(wrote for wrote, _ in steps) for _, steps in texts}) == 1
    assert len(times) > 2


# -- law 2 ---------------------------------------------------------------------------------------------------------


@every_model
def test_gamma_zero_never_falls_back_and_is_the_little_model(name):
    model, ids = make(name), prompt_for(name, seed=2)
    k = routers(model)[0].top_k // 2
    full = plain(model, ids, 2 * NEW)
    tokens, logits = big_prompt_then_little(model, ids, 2 * NEW, k)
    with top_k(model, k):
        wholly = plain(model, ids, 2 * NEW)
    with offload(model, systems.mobile(gamma=0, slots=3)) as engine:
        written = engine.generate(ids, max_new_tokens=2 * NEW, output_logits=True, **GREEDY)
    assert written.token_ids == tokens
    assert gap(torch.cat(written.logits), logits) < 1e-5
    assert [s.wrote for s in written.steps] == ["big"] + ["little"] * (2 * NEW - 1)
    assert written.fallback_ratio == 0 and not any(s.fell_back for s in written.steps)
    for config in (systems.mobile(gamma=0, count=Fraction(0.5, prompt=0.5), slots=3), systems.little(slots=3)):
        with offload(model, config) as engine:
            assert engine.generate(ids, max_new_tokens=2 * NEW, **GREEDY).token_ids == wholly
    assert name == "tiny-olmoe" or len({*map(tuple, (full, tokens, wholly))}) > 1, "full and little must differ"


@every_model
def test_gamma_above_one_always_falls_back_and_is_the_big_model(name):
    model, ids = make(name), prompt_for(name, seed=2)
    tokens = plain(model, ids, NEW)
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        written = engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        passes = [p.mode for p in engine.trace.passes]
    assert written.token_ids == tokens
    assert written.fallback_ratio == 1 and all(s.fell_back for s in written.steps[1:])
    assert {s.wrote for s in written.steps} == {"big"}
    assert passes == ["prompt"] + ["little", "big"] * (NEW - 1)


@every_model
@pytest.mark.parametrize("fraction", [0.5, 0.25])
@torch.no_grad()
def test_little_logits_are_those_of_a_smaller_top_k(name, fraction):
    model, ids = make(name), prompt_for(name, 9, seed=5)
    with top_k(model, int(routers(model)[0].top_k * fraction)):
        wanted = model(ids).logits
    assert gap(wanted, model(ids).logits) > 1e-3, "top_k must matter for this to say anything"
    for slots in (1, 5):
        with offload(model, systems.little(fraction, slots=slots)) as engine:
            written = engine.generate(ids, max_new_tokens=1, output_logits=True, **GREEDY)
            assert gap(model(ids).logits, wanted) < 1e-5
        assert gap(written.logits[0], wanted[:, -1]) < 1e-5


@pytest.mark.parametrize("name", ["olmoe", "mixtral"])
@torch.no_grad()
def test_over_sets_what_the_kept_weights_are_divided_by(name):
    """Kept weights times sum(K) / sum(the `over` largest): checked on the experts themselves, run one by one."""
    model = make(name)
    block = next(m for m in model.modules() if hasattr(m, "experts"))
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    _, weights, index = routers(model)[0](hidden)
    ranked, order = weights.sort(dim=-1, descending=True)
    index = index.gather(-1, order)
    for over, share in ((None, None), (1.0, TOP_K), (0.5, 2), (0.25, 1)):
        denominator = 2 if share is None and name == "mixtral" else share
        scale = 1 if denominator is None else ranked.sum(-1) / ranked[:, :denominator].sum(-1)
        wanted = torch.zeros_like(hidden)
        for token, rank in itertools.product(range(5), range(2)):
            expert = index[token : token + 1, rank : rank + 1]
            one = block.experts(hidden[token : token + 1], expert, torch.ones(1, 1))[0]
            wanted[token] += one * (
                ranked[token, rank] * scale if isinstance(scale, int) else (ranked[:, rank] * scale)[token]
            )
        with offload(model, MobileConfig(count=Fraction(0.5, prompt=0.5, over=over), slots=3)):
            got = block.experts(hidden, index, ranked)
        assert gap(got, wanted) < 1e-5, over


# -- law 5 ---------------------------------------------------------------------------------------------------------


@every_architecture
def test_evicted_routing_of_the_first_layer_is_exactly_the_big_one(name):
    model, ids = make(name), prompt(seed=6)
    with offload(model, systems.mobile(gamma=1.1, slots=5)) as engine:
        engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        passes = engine.trace.passes
    pairs = [(a, b) for a, b in itertools.pairwise(passes) if a.mode == "little" and b.mode == "big"]
    assert len(pairs) == NEW - 1
    for little, big in pairs:
        assert (little.ids[0] == big.ids[0]).all() and (little.weights[0] == big.weights[0]).all()
    assert any((little.ids != big.ids).any() for little, big in pairs), "later layers must differ now and then"


@every_architecture
def test_evicted_router_prefetch_leaves_nothing_to_miss_in_the_first_layer(name):
    model = make(name)
    with offload(model, systems.mobile(gamma=1.1, slots=TOP_K)) as engine:
        engine.generate(prompt(seed=6), max_new_tokens=NEW, **GREEDY)
        big = [p for p in engine.trace.passes if p.mode == "big"]
    assert all(p.misses[0] == 0 for p in big)
    assert all(p.requests[0] == TOP_K for p in big)


@pytest.mark.parametrize("name", ["olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "mixtral"])
def test_common_experts_take_the_short_way_after_the_prompt(name, monkeypatch):
    """On every release of transformers: the module's own forward waits for the card, for each expert it runs."""
    model, ids = make(name), prompt()
    wanted = plain(model, ids, NEW)
    kind = next(type(m.experts) for m in model.modules() if hasattr(m, "experts"))
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        words = engine.stream(ids, max_new_tokens=NEW, **GREEDY)
        text = [next(words).token_id]
        monkeypatch.setattr(kind, "forward", None)
        assert text + [step.token_id for step in words] == wanted


@pytest.mark.parametrize("name", ["olmoe", "qwen2_moe", "qwen3_moe", "mixtral"])
def test_large_experts_which_are_computed_in_turn_write_the_same(name, monkeypatch):
    """The weights of small ones are gathered; those of published models are too large for that."""
    monkeypatch.setattr("mobile_nb.model.experts.GATHER_LIMIT", 0)
    model, ids = make(name), prompt()
    wanted = Alone.of(model, ids)
    for slots in (1, 3, 8):
        for config in (systems.next_gate(slots=slots), systems.mobile(gamma=1.1, slots=slots)):
            check_exact(model, ids, config, wanted)
