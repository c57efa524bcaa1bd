"""Evaluation: batches write what an engine writes one by one (law 10), results resume, and mistakes get a sentence."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mobile_nb
from mobile_nb import MobileError, systems
from mobile_nb.__main__ import main
from mobile_nb.analysis import tasks
from mobile_nb.analysis.evaluate import evaluate, wilson
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import Always, Drop, Fraction, Never, TargetFallback
from mobile_nb.runtime.batch import BatchDecoder, installed

ARCHITECTURES = ("olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "mixtral")
NEW = 6  # tokens a text


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return random_model(request.param)


@pytest.fixture(scope="module")
def shipped():
    return mobile_nb.load("tiny-olmoe")


def padded(prompts):
    """Prompts of different lengths as one batch, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def middle_gamma(model):
    """A threshold that some tokens of this model reach and some do not."""
    with torch.no_grad():
        logits = model(torch.arange(3, 40)[None]).logits[0]
    return logits.softmax(-1).amax(-1).median().item()


@settings(max_examples=4)
@given(data=st.data())
def test_each_row_of_a_batch_is_written_as_if_it_were_alone(model, data):
    prompts = data.draw(st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=9), min_size=2, max_size=4))
    gamma = data.draw(st.sampled_from((0.0, middle_gamma(model), 1.1)))
    config = systems.mobile(gamma, slots=3)
    with installed(model, config) as decoder:
        rows = decoder.write(padded(prompts), max_new_tokens=NEW, eos_token_id=2)
    with mobile_nb.offload(model, config) as engine:
        for prompt, row in zip(prompts, rows, strict=True):
            steps = engine.generate(prompt, max_new_tokens=NEW, eos_token_id=2, do_sample=False).steps
            assert row.token_ids == [s.token_id for s in steps]
            assert row.fell_back == [s.fell_back for s in steps]
            assert row.confidences == pytest.approx([s.confidence for s in steps], abs=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        systems.big(),
        systems.little(),
        systems.mobile(0.5, fraction=0.25, count=Fraction(0.5, over=1.0)),
        systems.mobile(keep=TargetFallback(0.5, start=0)),  # decides by what the same row wrote before
    ],
)
def test_other_systems_write_the_same_in_batches_too(model, config):
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4]]
    with installed(model, config) as decoder:
        rows = decoder.write(padded(prompts), max_new_tokens=NEW, eos_token_id=99)
    with mobile_nb.offload(model, config) as engine:
        for prompt, row in zip(prompts, rows, strict=True):
            steps = engine.generate(prompt, max_new_tokens=NEW, eos_token_id=99, do_sample=False).steps
            assert row.token_ids == [s.token_id for s in steps]
            assert row.fell_back == [s.fell_back for s in steps]


@pytest.mark.parametrize("config", [systems.big(), systems.mobile(0.7)])
def test_rows_whose_text_has_ended_leave_the_batch(shipped, config, monkeypatch):
    model, tokenizer = shipped
    problems = sorted(tasks.load("word-problems", split="validation", n=40), key=lambda p: p.steps)
    problems = [*problems[:3], *problems[-3:]]
    sizes, use = [], BatchDecoder.use
    monkeypatch.setattr(BatchDecoder, "use", lambda self, modes: (sizes.append(len(modes)), use(self, modes)))
    together = evaluate(model, tokenizer, problems, config=config, batch_size=6, progress=False).solved
    assert sizes[0] == 6 and 0 < min(sizes) <= 3
    for problem, row in zip(problems, together, strict=True):
        alone = evaluate(model, tokenizer, [problem], config=config, progress=False).solved[0]
        assert (alone.text, alone.fell_back, alone.right) == (row.text, row.fell_back, row.right)
        assert alone.confidences == pytest.approx(row.confidences, abs=1e-4)


def test_all_k_is_what_transformers_writes(model):
    batch = padded([[5, 6, 7], [9, 8, 7, 6, 5, 4]])
    with installed(model, systems.big()) as decoder:
        rows = decoder.write(batch, max_new_tokens=NEW, eos_token_id=99)
    out = model.generate(**batch, max_new_tokens=NEW, eos_token_id=99, do_sample=False, pad_token_id=0)
    assert [row.token_ids for row in rows] == out[:, batch["input_ids"].shape[1] :].tolist()


def test_the_ends_of_keep(model):
    batch = padded([[5, 6, 7], [9, 8, 7, 6, 5, 4]])
    for keep, share in ((Always(), 0), (Never(), 1)):
        with installed(model, systems.mobile(keep=keep)) as decoder:
            rows = decoder.write(batch, max_new_tokens=NEW, eos_token_id=99)
        assert {again for row in rows for again in row.fell_back[1:]} == {bool(share)}
        assert not any(row.fell_back[0] for row in rows)


def test_the_model_is_given_back_also_after_an_exception(model):
    before = [m.experts for m in model.modules() if hasattr(m, "experts")]
    with pytest.raises(ZeroDivisionError), installed(model, systems.mobile()):
        raise ZeroDivisionError
    assert before == [m.experts for m in model.modules() if hasattr(m, "experts")]


def test_the_first_layers_evicted_router_is_exact(model):
    with installed(model, systems.mobile(1.1)) as decoder:
        decoder.write(padded([[5, 6, 7], [9, 8, 7, 6]]), max_new_tokens=NEW, eos_token_id=99)
    agreement = decoder.agreement
    assert agreement.fallbacks == 2 * (NEW - 1)
    assert agreement.shared[0] == agreement.fallbacks * decoder.top_k
    assert (agreement.shared <= agreement.fallbacks * decoder.top_k).all()


def test_a_system_whose_misses_change_the_text_is_refused(model):
    with (
        pytest.raises(MobileError, match="evaluate an engine, which has one"),
        installed(model, systems.mobile(miss=Drop())),
    ):
        pass


def test_an_engine_and_batches_solve_the_same_problems(shipped):
    model, tokenizer = shipped
    few = {"n": 3, "seed": 5, "split": "validation", "max_new_tokens": 24, "progress": False}
    batches = mobile_nb.evaluate(model, tokenizer, "word-problems", config=systems.mobile(0.7), batch_size=2, **few)
    with mobile_nb.offload(model, systems.mobile(0.7, slots=16)) as engine:
        single = mobile_nb.evaluate(engine, tokenizer, "word-problems", **few)
    assert [s.token_ids for s in batches.solved] == [s.token_ids for s in single.solved]
    assert batches.fallback_ratio == single.fallback_ratio > 0
    assert batches.precision == pytest.approx(single.precision)
    assert batches.precision[0] == 1
    frame = batches.to_frame("tokens")
    assert len(frame) == 3 * 24
    assert frame["confidence"].between(0, 1).all()
    assert list(batches.to_frame()["problem"]) == [0, 1, 2]


def test_an_interrupted_evaluation_goes_on(shipped, tmp_path, monkeypatch):
    model, tokenizer = shipped
    few = {"n": 4, "batch_size": 2, "max_new_tokens": 6, "progress": False, "config": systems.mobile()}
    whole = mobile_nb.evaluate(model, tokenizer, "word-problems", **few)
    calls, check = [], tasks.check_all

    def once(problems, texts):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return check(problems, texts)

    monkeypatch.setattr(tasks, "check_all", once)
    with pytest.raises(KeyboardInterrupt):
        mobile_nb.evaluate(model, tokenizer, "word-problems", save=tmp_path / "kept.json", **few)
    again = mobile_nb.evaluate(model, tokenizer, "word-problems", save=tmp_path / "kept.json", **few)
    assert calls == [2, 2, 2]
    assert again == whole
    with pytest.raises(MobileError, match="holds another evaluation"):
        mobile_nb.evaluate(model, tokenizer, "word-problems", save=tmp_path / "kept.json", **(few | {"seed": 1}))
    (tmp_path / "kept.json").write_text("[1")
    with pytest.raises(MobileError, match="holds no saved evaluation"):
        mobile_nb.evaluate(model, tokenizer, "word-problems", save=tmp_path / "kept.json", **few)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (3, 7), (980, 1000)])
def test_the_interval_holds_the_share_and_is_the_known_one(right, n):
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    for end in (low, high):  # the ends are where the share is exactly z standard errors away
        assert end in (0.0, 1.0) or abs(end - right / n) / math.sqrt(end * (1 - end) / n) == pytest.approx(
            1.96, rel=1e-6
        )


def test_mistakes_get_a_sentence(shipped):
    model, tokenizer = shipped
    evaluate = mobile_nb.evaluate
    with pytest.raises(ValueError, match="no task named 'riddles'"):
        evaluate(model, tokenizer, "riddles")
    with pytest.raises(ValueError, match="no problems to solve"):
        evaluate(model, tokenizer, [])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate(model, tokenizer, "word-problems", n=1, batch_size=0)
    with pytest.raises(TypeError, match="a tokenizer is needed"):
        evaluate(model, None, "word-problems", n=1)
    with pytest.raises(TypeError, match="an Engine or a transformers model is needed, got a str"):
        evaluate("tiny-olmoe", tokenizer, "word-problems", n=1)
    with (
        mobile_nb.offload(model, systems.mobile(slots=8)) as engine,
        pytest.raises(ValueError, match="has its config already"),
    ):
        evaluate(engine, tokenizer, "word-problems", n=1, config=systems.big())


@pytest.mark.parametrize("slots", [[], ["--slots", "16"]])
def test_the_command_prints_and_keeps_numbers(slots, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    command = ["evaluate", "--n", "2", "--gamma", "0.7", "--max-new-tokens", "24", "--json", str(path), *slots]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "all K below 0.7" in said
    assert "n = 2 of the test split, seed 0" in said
    numbers = json.loads(path.read_text())
    assert numbers["n"] == 2
    assert 0 < numbers["fallback_ratio"] < 1


def test_the_commands_mistakes_are_one_line(capsys):
    assert main(["evaluate", "--task", "riddles"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
