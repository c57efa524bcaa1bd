"""The shipped model: its files, its tokenizer, what it solves, and that its card says what was measured."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobile_nb.analysis import tasks

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HERE = Path(__file__).resolve().parents[1] / "data" / "tiny-olmoe"
FILES = (
    "README.md config.json generation_config.json model.safetensors results.json tokenizer.json tokenizer_config.json "
    "training_log.jsonl"
).split()
LARGEST = 14_000_000  # bytes


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(HERE)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def results():
    return json.loads((HERE / "results.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_the_file_ships_and_is_small(name):
    assert 0 < (HERE / name).stat().st_size <= LARGEST


def test_the_model_is_an_olmoe_with_64_experts_of_which_8_run(model):
    assert type(model).__name__ == "OlmoeForCausalLM"
    assert (model.config.num_experts, model.config.num_experts_per_tok) == (64, 8)
    assert model.config.norm_topk_prob is False
    assert model.config.num_hidden_layers >= 4
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_weights_on_disk_are_bfloat16():
    from safetensors import safe_open

    with safe_open(HERE / "model.safetensors", "pt") as file:
        assert {str(file.get_slice(key).get_dtype()) for key in file.keys()} == {"BF16"}


def test_every_word_and_number_of_the_task_is_one_token(tokenizer):
    for number in range(100):
        assert len(tokenizer(f" {number}").input_ids) == 1
    pieces = tokenizer.backend_tokenizer.pre_tokenizer
    for split in tasks.SPLITS:
        for problem in tasks.load("word-problems", split=split, n=300, seed=11):
            text = problem.prompt + problem.solution
            assert len(tokenizer(text).input_ids) == len(pieces.pre_tokenize_str(text))


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
    out = model.generate(**inputs, max_new_tokens=96, do_sample=False)
    return tokenizer.batch_decode(out[:, inputs.input_ids.size(1) :], skip_special_tokens=True)


def test_it_solves_at_least_15_of_20_held_out_problems(model, tokenizer):
    problems = tasks.load("word-problems", split="test", n=20, seed=0)
    assert sum(p.check(text) for p, text in zip(problems, _solve(model, tokenizer, problems), strict=True)) >= 15


def test_a_batch_writes_what_single_prompts_write(model, tokenizer):
    problems = tasks.load("word-problems", split="validation", n=4, seed=5)
    together = _solve(model, tokenizer, problems)
    assert together == [_solve(model, tokenizer, [problem])[0] for problem in problems]


def test_the_card_is_rendered_from_the_results(results):
    card = (HERE / "README.md").read_text()
    for row in results["fixed"]:
        assert f"{100 * row['accuracy']:.1f}" in card
    for row in results["mobile"]:
        assert f"{100 * row['accuracy']:.1f}" in card
        assert f"{100 * row['fallback_ratio']:.1f}" in card
    assert str(results["n"]) in card


def test_the_results_belong_to_the_shipped_weights(results):
    import hashlib

    assert results["sha256"] == hashlib.sha256((HERE / "model.safetensors").read_bytes()).hexdigest()
