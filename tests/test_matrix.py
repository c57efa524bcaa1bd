"""The architecture matrix: what works on which family of fused experts, so that a family that stops working shows.

`python -m mobile_nb architectures` prints the same table for all of them.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from helpers import GREEDY, gap, make, plain, prompt, refused

from mobile_nb import MobileError, offload, systems
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.matrix import architectures, only_largest, smaller_top_k, written
from mobile_nb.model.tiny import random_model
from mobile_nb.runtime import matrix
from mobile_nb.runtime.rollback import Rollback

RENORMALISED, AS_THEY_ARE = "renormalised", "as they are"
ROUTER, LARGEST = matrix.BY_ROUTER, matrix.BY_WEIGHT
EVERY_CHECK = ["exact", "report", "restored", "little", "rollback"]

# family: (weights where fewer experts run, what the little model equals). LARGEST where a correction bias picks the
# experts, so that first by score is not largest by weight; where shared experts take part in the normalisation
# (inkling); and where the router's K cannot be changed (phimoe).
FAST = {
    "afmoe": (RENORMALISED, LARGEST),
    "cohere2_moe": (RENORMALISED, ROUTER),
    "deepseek_v2": (AS_THEY_ARE, ROUTER),
    "deepseek_v3": (RENORMALISED, LARGEST),
    "ernie4_5_moe": (RENORMALISED, LARGEST),
    "ernie4_5_vl_moe": (RENORMALISED, LARGEST),  # experts of its own for pictures
    "gemma4_text": (RENORMALISED, ROUTER),  # its experts live in the decoder layer, its weights have a scale each
    "glm4_moe": (RENORMALISED, LARGEST),
    "gpt_oss": (RENORMALISED, ROUTER),
    "granitemoe": (RENORMALISED, ROUTER),
    "granitemoehybrid": (RENORMALISED, ROUTER),  # a state space model
    "jamba": (AS_THEY_ARE, ROUTER),
    "lfm2_moe": (RENORMALISED, LARGEST),  # convolutions; the block routes
    "minimax": (RENORMALISED, ROUTER),  # a cache class of its own
    "mixtral": (RENORMALISED, ROUTER),
    "nemotron_h": (RENORMALISED, LARGEST),  # no gate, mamba
    "olmoe": (AS_THEY_ARE, ROUTER),
    "phimoe": (AS_THEY_ARE, LARGEST),
    "qwen2_moe": (AS_THEY_ARE, ROUTER),
    "qwen3_moe": (RENORMALISED, ROUTER),
    "qwen3_next": (RENORMALISED, ROUTER),  # linear attention
    "qwen3_vl_moe": (RENORMALISED, ROUTER),
}
SLOW = {
    "deepseek_v32": (RENORMALISED, LARGEST),  # keys picked by an index
    "deepseek_v4": (RENORMALISED, LARGEST),  # experts picked by the token's id, keys compressed
    "inkling_text": (AS_THEY_ARE, LARGEST),  # convolutions beside sliding windows
    "minimax_m3_vl_text": (RENORMALISED, LARGEST),
    "muse_spark": (RENORMALISED, LARGEST),  # experts narrower than the model
    **dict.fromkeys(("aria_text", "flint", "granitemoe_swa", "granitemoeshared"), (RENORMALISED, ROUTER)),
    **dict.fromkeys(("hunyuan_v1_moe", "mellum", "mistral4", "mistral_large4"), (RENORMALISED, ROUTER)),
    **dict.fromkeys(("qwen3_5_moe_text", "qwen3_omni_moe_thinker", "qwen4_exp_text"), (RENORMALISED, ROUTER)),
    **dict.fromkeys(("axk1", "axk2", "bailing_hybrid", "beam", "dots3_note_text"), (RENORMALISED, LARGEST)),
    **dict.fromkeys(("exaone_moe", "glm4_moe_lite", "glm4v_moe", "glm5_next"), (RENORMALISED, LARGEST)),
    **dict.fromkeys(("glm_moe_dsa", "hy_v3", "hy_v4", "inkling2_text", "kimi_linear"), (RENORMALISED, LARGEST)),
    **dict.fromkeys(("laguna", "mimo_v2_flash", "minimax_m2", "solar_open"), (RENORMALISED, LARGEST)),
    **dict.fromkeys(("deepseek_ocr2", "flex_olmo", "unlimited_ocr"), (AS_THEY_ARE, ROUTER)),
    **dict.fromkeys(("dots1", "kolibri1"), (AS_THEY_ARE, LARGEST)),
}
NOT_QUITE = {
    "diffusion_gemma": (matrix.REFUSED, "does not write text token by token"),
    "openai_privacy_filter": (matrix.REFUSED, "does not write text token by token"),
    "zaya": (matrix.ALONE, "one expert a token"),
}
HYBRIDS = ["minimax", "qwen3_next", "jamba", "deepseek_v4", "inkling_text", "gpt_oss"]


def known(name: str) -> str:
    if name not in architectures():
        pytest.skip(f"this transformers has no {name}")
    return name


def check_row(name, weights, little):
    row = matrix.check(known(name))
    assert (row["verdict"], row["why"]) == (matrix.WORKS, "")
    assert (row["weights"], row["little"], row["checks"]) == (weights, little, EVERY_CHECK)
    assert (row["experts"], row["active"]) == (8, 2 if name == "phimoe" else 4)


@pytest.mark.parametrize(("name", "found"), FAST.items(), ids=FAST)
def test_a_family_works(name, found):
    check_row(name, *found)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "found"), SLOW.items(), ids=SLOW)
def test_another_family_works(name, found):
    check_row(name, *found)


@pytest.mark.parametrize(("name", "found"), NOT_QUITE.items(), ids=NOT_QUITE)
def test_a_family_that_cannot_work_says_why(name, found):
    row = matrix.check(known(name))
    if "cannot be built" in row["why"]:
        pytest.skip(f"this transformers cannot build a {name} from its sizes alone")
    assert row["verdict"] == found[0] and found[1] in row["why"]


def test_every_family_with_fused_experts_is_in_the_lists_above():
    """A new release of transformers brings new families: `python -m mobile_nb architectures`, then a line for each."""
    assert set(architectures()) <= FAST.keys() | SLOW.keys() | NOT_QUITE.keys()


def test_the_readme_has_a_row_for_every_family():
    """It is pasted from `python -m mobile_nb architectures --markdown`; the sentence above it names the version."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    count, version = re.search(r"(\d+) families, transformers ([\d.]+):", text).groups()
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text.partition("| architecture |")[2].partition("</details>")[0], re.M)
    assert len(rows) == int(count)
    if transformers.__version__ == version:
        assert [name for name, _ in rows] == architectures()
    verdicts = {name: "all" if " all |" in cells else "less" for name, cells in rows}
    assert verdicts == dict.fromkeys(FAST.keys() | SLOW.keys(), "all") | dict.fromkeys(NOT_QUITE, "less")


def test_a_family_without_fused_experts_is_refused_with_what_was_found():
    for name, fragment in {
        "jetmoe": "has `model.layers.0.self_attention.experts`, a JetMoeMoA",
        "llama": "has no `experts` module",
        "llama4_text": "expected blocks that call experts(hidden, index, weights)",
    }.items():
        row = matrix.check(name)
        assert row["verdict"] == matrix.REFUSED and fragment in row["why"]


def test_experts_without_weights_are_refused():
    sizes = {"num_layers": 1, "ffn_hidden_size": 24, "expert_ffn_hidden_size": 24, "zero_expert_num": 8}
    model = random_model("longcat_flash", **sizes)
    with refused("holds 8 experts", "without weights of their own", kinds=MobileError):
        find_layers(model)


def test_layers_that_differ_are_refused():
    model = make()
    experts = model.model.layers[1].mlp.experts
    experts.gate_up_proj = torch.nn.Parameter(experts.gate_up_proj[:, :8].clone())
    with refused("MoE layers of OlmoeForCausalLM differ", "`model.layers.1.mlp`", kinds=MobileError):
        find_layers(model)


def test_a_router_that_needs_more_than_hidden_states_has_no_gate_ahead():
    model = random_model(known("deepseek_v4"))
    with refused("`model.layers.0.mlp` cannot be asked ahead", "systems.mobile()", kinds=MobileError):
        find_layers(model)[0].route(torch.randn(3, 32))
    assert find_layers(model)[1].route(torch.randn(3, 32)).shape == (3, 4)


# -- the little model where its definition matters --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe", "ernie4_5_moe"])
@torch.no_grad()
def test_with_a_correction_bias_the_largest_weights_are_kept_and_without_it_that_is_the_routers_choice(name):
    model, ids = random_model(name), prompt(12)
    layers = find_layers(model)

    def three_ways():
        with smaller_top_k(layers, 2):
            first_by_score = model(ids).logits
        with only_largest(layers, 2):
            largest = model(ids).logits
        with offload(model, systems.little(slots=3)):
            return first_by_score, largest, model(ids).logits

    by_score, largest, ours = three_ways()
    assert gap(ours, largest) < 1e-5 and gap(ours, by_score) > 1e-2
    for key, value in [*model.named_buffers(), *model.named_parameters()]:
        if key.endswith("e_score_correction_bias"):
            value.zero_()
    by_score, largest, ours = three_ways()
    assert gap(ours, largest) < 1e-5 and gap(ours, by_score) < 1e-5


# -- rollback ------------------------------------------------------------------------------------------------------


def alike(cache, other) -> bool:
    """Whether two caches hold the same, to the last bit."""
    if isinstance(cache, torch.Tensor):
        return torch.equal(cache, other)
    if isinstance(cache, dict):
        return cache.keys() == other.keys() and all(alike(cache[key], other[key]) for key in cache)
    if isinstance(cache, list):
        return len(cache) == len(other) and all(map(alike, cache, other))
    if type(cache).__module__.startswith("transformers."):
        return alike(vars(cache), vars(other))
    return cache == other


@pytest.mark.parametrize("name", HYBRIDS)
@torch.no_grad()
def test_taking_back_a_pass_leaves_the_cache_as_it_was_to_the_last_bit(name):
    model = random_model(known(name))
    cache = model(prompt(20), use_cache=True).past_key_values
    before = copy.deepcopy(cache)
    for token in (5, 6):
        rollback = Rollback(cache)
        rollback.remember()
        model(torch.tensor([[token]]), past_key_values=cache, position_ids=torch.tensor([[20]]), use_cache=True)
        assert not alike(cache, before)
        rollback.take_back()
        assert alike(cache, before)


@torch.no_grad()
def test_remembering_a_cache_that_only_grows_keeps_nothing_alive():
    cache = make()(prompt(), use_cache=True).past_key_values
    rollback = Rollback(cache)
    rollback.remember()
    assert rollback._kept == []


def test_a_window_smaller_than_the_text_keeps_its_size_while_tokens_are_kept_and_evicted():
    model, ids = make("gpt_oss", sliding_window=6), prompt(20)
    wanted = plain(model, ids, 8)
    for gamma in (0, 1.1):
        seen: list = []

        def look(module, given, out, seen=seen):
            seen.append(out.past_key_values.layers[0].keys)

        with offload(model, systems.mobile(gamma=gamma, slots=3)) as engine:
            hook = model.register_forward_hook(look)
            text = engine.generate(ids, max_new_tokens=8, **GREEDY)
            hook.remove()
        assert max(keys.shape[-2] for keys in seen) == 5
        assert gamma == 0 or text.token_ids == wanted


# -- the table -----------------------------------------------------------------------------------------------------


def test_the_table_in_markdown():
    rows = matrix.matrix(["llama", "mixtral"])
    text = matrix.markdown(rows)
    assert text.startswith("2 families, transformers 5.") and ": 1 works, 1 refused.\n\n| architecture |" in text
    assert "| `mixtral` | 4 of 8 | all | router's top_k = K/2 | renormalised |  |" in text
    assert "| `llama` | - | - | - | - | LlamaForCausalLM has no `experts` module" in text
    assert len({line.count("|") for line in text.splitlines()[2:]}) == 1


def test_a_family_that_writes_the_wrong_text_is_called_wrong(monkeypatch):
    real = written

    def strange(model, ids, new):
        tokens, logits = real(model, ids, new)
        return tokens, logits + 1e-3

    monkeypatch.setattr(matrix, "written", strange)
    row = matrix.check("olmoe")
    assert row["verdict"] == matrix.WRONG
    assert "full K at 1 slots: tokens agree, logits are up to 1.0e-03 apart" in row["why"]


def test_an_unknown_family_is_refused():
    row = matrix.check("no_such_thing")
    assert row["verdict"] == matrix.REFUSED and "transformers knows no architecture 'no_such_thing'" in row["why"]
