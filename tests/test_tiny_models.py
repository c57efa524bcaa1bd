"""The shipped models: their files, the tokenizer, what they solve, and that the cards say what was measured."""

import json
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobile_nb.analysis import tasks

sys.path.append(str(Path(__file__).resolve().parents[1] / "data" / "recipes"))
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DATA = Path(__file__).resolve().parents[1] / "data"
KINDS = {  # what each must be: class, experts, how many run, whether their weights are normalised
    "tiny-olmoe": ("OlmoeForCausalLM", 64, 8, False),
    "tiny-qwen2-moe": ("Qwen2MoeForCausalLM", 60, 4, False),
    "tiny-deepseek-v2": ("DeepseekV2ForCausalLM", 64, 6, False),
    "tiny-qwen3-moe": ("Qwen3MoeForCausalLM", 128, 8, True),
}
SHIPPED = [name for name in KINDS if (DATA / name / "model.safetensors").exists()]
FILES = (
    "README.md config.json generation_config.json model.safetensors results.json tokenizer.json tokenizer_config.json "
    "training_log.jsonl"
).split()
LARGEST, ALL = 14_000_000, 45_000_000  # bytes


@pytest.fixture(scope="module", params=SHIPPED)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def here(name):
    return DATA / name


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(DATA / "tiny-olmoe")


@pytest.fixture(scope="module")
def model(here):
    return transformers.AutoModelForCausalLM.from_pretrained(here, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def results(here):
    return json.loads((here / "results.json").read_text())


def test_the_files_ship_and_are_small(here):
    for name in FILES:
        assert 0 < (here / name).stat().st_size <= LARGEST, name
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < ALL


def test_the_models_are_what_their_names_say(model, name):
    kind, experts, run, normalised = KINDS[name]
    assert type(model).__name__ == kind
    assert (model.config.num_experts, model.config.num_experts_per_tok) == (experts, run)
    assert model.config.norm_topk_prob is normalised
    assert model.config.num_hidden_layers >= 4
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_all_share_one_tokenizer(here):
    assert (here / "tokenizer.json").read_bytes() == (DATA / "tiny-olmoe" / "tokenizer.json").read_bytes()


def test_the_weights_on_disk_are_bfloat16(here):
    from safetensors import safe_open

    with safe_open(here / "model.safetensors", "pt") as file:
        assert {str(file.get_slice(key).get_dtype()) for key in file.keys()} == {"BF16"}


def test_every_word_and_number_of_the_task_is_one_token(tokenizer):
    for number in range(100):
        assert len(tokenizer(f" {number}").input_ids) == 1
    pieces = tokenizer.backend_tokenizer.pre_tokenizer
    for task, split in product(tasks.NAMES, tasks.SPLITS):
        for problem in tasks.load(task, split=split, n=300, seed=11):
            text = problem.prompt + problem.solution
            assert len(tokenizer(text).input_ids) == len(pieces.pre_tokenize_str(text))
            assert tokenizer.decode(tokenizer(text).input_ids) == text
            parts = [tokenizer(part).input_ids for part in (problem.prompt, problem.solution)]
            assert tokenizer(text).input_ids == parts[0] + parts[1]


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["", "Zoë's naïve 日本 🙂.", "def f(x):\n    return x + 100", " <eos> a <pad>", "a  b ,c ."]
)
def test_known_awkward_texts_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_agree_with_the_configuration(tokenizer, model):
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.padding_side == "left"


def _solve(model, tokenizer, problems):
    inputs = tokenizer([p.prompt for p in problems], return_tensors="pt", padding=True)
    out = model.generate(**inputs, max_new_tokens=112, do_sample=False)
    return tokenizer.batch_decode(out[:, inputs.input_ids.size(1) :], skip_special_tokens=True)


@pytest.mark.parametrize("task", tasks.NAMES)
def test_they_solve_at_least_15_of_20_held_out_problems(model, tokenizer, task):
    problems = tasks.load(task, split="test", n=20, seed=0)
    assert sum(tasks.check_all(problems, _solve(model, tokenizer, problems))) >= 15


def test_a_batch_writes_what_single_prompts_write(model, tokenizer):
    problems = tasks.load("word-problems", split="validation", n=4, seed=5)
    together = _solve(model, tokenizer, problems)
    assert together == [_solve(model, tokenizer, [problem])[0] for problem in problems]


def test_the_cards_are_rendered_from_the_results(results, here):
    for card in (here / "README.md", DATA / "README.md"):
        text = card.read_text(encoding="utf-8")
        for task in results["tasks"].values():
            for row in task["fixed"] + task["mobile"]:
                assert f"| {row['n']:,} | {100 * row['accuracy']:.1f} |" in text
            for row in task["mobile"]:
                assert f"| {100 * row['fallback_ratio']:.1f} |" in text


def test_the_results_belong_to_the_shipped_weights(results, here):
    import hashlib

    assert results["sha256"] == hashlib.sha256((here / "model.safetensors").read_bytes()).hexdigest()


def test_the_papers_shape_is_in_the_results(results):
    """Measured numbers, so they move only with the weights."""
    for task in results["tasks"].values():
        big, least = task["fixed"][0], task["fixed"][-1]
        half = next(row for row in task["fixed"] if row["experts"] == results["top_k"] // 2)
        at = next(row for row in task["mobile"] if row["gamma"] == 0.7)
        assert big["n"] == half["n"] == at["n"] == 2000
        assert big["accuracy"] >= 0.9 and half["accuracy"] - least["accuracy"] >= 0.1
        assert half["difference"] + half["half_width"] < 0, "half of the experts cost less than chance alone"
        assert at["accuracy"] > half["accuracy"]
        assert at["difference"] >= -0.003 or at["difference"] + at["half_width"] >= 0, (
            "MoBiLE costs more than in the paper"
        )
        assert 0.1 <= at["fallback_ratio"] <= 0.25
        assert at["precision"][0] == 1 and sum(at["precision"]) / len(at["precision"]) > 0.8


def test_what_experts_write_moves_as_much_slower_as_it_is_scaled_up(name, tokenizer):
    import models

    model = models.build_model(name, tokenizer, seed=0)
    muon, _ = models.optimizers(model, muon=0.016, adam=0.003, router=0.1)
    rates = {id(p): group["peak"] for group in muon.param_groups for p in group["params"]}
    last = {id(layer.mlp.experts.down_proj) for layer in model.model.layers if hasattr(layer.mlp, "experts")}
    scaling = 16 if name == "tiny-deepseek-v2" else 1
    assert {each: rate for each, rate in rates.items() if each in last} == dict.fromkeys(last, 0.016 / scaling)
    assert {rate for each, rate in rates.items() if each not in last} == {0.016}
