"""Every Hugging Face argument keeps working: the text under offloading is the text of plain `generate`."""

import itertools

import pytest
import torch
from helpers import (
    GREEDY,
    OnlyOdd,
    Recorder,
    StopAfter,
    big_prompt_then_little,
    gap,
    make,
    plain,
    prompt,
    refused,
    top_k,
)
from transformers import BatchEncoding, DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from mobile_nb import offload, systems

NEW = 8
SAMPLED = {"do_sample": True}
WAYS = {
    "greedy": {},
    "temperature": {**SAMPLED, "temperature": 1.7},
    "top_k": {**SAMPLED, "top_k": 5},
    "top_p": {**SAMPLED, "top_p": 0.6, "top_k": 0},
    "min_p": {**SAMPLED, "min_p": 0.3},
    "typical_p": {**SAMPLED, "typical_p": 0.5},
    "repetition_penalty": {"repetition_penalty": 2.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": "second token"},
    "suppress_tokens": {"suppress_tokens": "the greedy text"},
    "own processor": {**SAMPLED, "logits_processor": LogitsProcessorList([OnlyOdd()])},
    "all together": {**SAMPLED, "temperature": 1.3, "repetition_penalty": 1.8, "min_p": 0.05, "top_k": 40},
    "prefill_chunk_size": {"prefill_chunk_size": 2},
    "use_cache": {"use_cache": True},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda batch, ids: [3 + len(ids), 50, 60]},
}
FULL = [systems.on_demand(slots=3), systems.mobile(gamma=1.1, slots=5)]
each_full = pytest.mark.parametrize("config", FULL, ids=["on_demand", "always big"])


def write(model, config, ids, n=NEW, **named):
    with offload(model, config) as engine:
        return engine.generate(ids, max_new_tokens=n, **(GREEDY | named))


@each_full
@pytest.mark.parametrize("named", WAYS.values(), ids=WAYS)
def test_text_is_that_of_plain_generate(named, config):
    model, ids = make(), prompt()
    greedy = plain(model, ids, NEW)
    if "bad_words_ids" in named:
        named = {"bad_words_ids": [[greedy[1]], greedy[:1] * 3]}
    if "suppress_tokens" in named:
        named = {"suppress_tokens": greedy}
    torch.manual_seed(5)
    wanted = plain(model, ids, NEW, **named)
    torch.manual_seed(5)
    assert write(model, config, ids, **named).token_ids == wanted
    assert (wanted == greedy) == (set(named) <= {"prefill_chunk_size", "use_cache"}), "the argument must matter"


@each_full
def test_without_a_kv_cache_the_text_is_the_same_or_a_sentence_says_why_not(config):
    model, ids = make(), prompt()
    if config.two_passes:
        with refused("KV cache", "use_cache"):
            write(model, config, ids, use_cache=False)
    else:
        assert write(model, config, ids, use_cache=False).token_ids == plain(model, ids, NEW, use_cache=False)


@each_full
def test_the_end_token_stops(config):
    model, ids = make(), prompt()
    text = plain(model, ids, NEW)
    end, other = text[3], min(set(range(3, 100)) - set(text))
    wanted = plain(model, ids, NEW, eos_token_id=end)
    assert wanted[-1] == end and len(wanted) < NEW
    assert write(model, config, ids, eos_token_id=end).token_ids == wanted
    assert write(model, config, ids, eos_token_id=[end, other]).token_ids == wanted
    later = write(model, config, ids, eos_token_id=end, min_new_tokens=6).token_ids
    assert later == plain(model, ids, NEW, eos_token_id=end, min_new_tokens=6) and len(later) >= 6


@each_full
def test_stopping_criteria_are_asked_after_every_token(config):
    for many in ([StopAfter(3)], StoppingCriteriaList([StopAfter(5), StopAfter(3)])):
        assert len(write(make(), config, prompt(), stopping_criteria=many).token_ids) == 3
        assert many[0].seen == 3


@each_full
def test_a_streamer_gets_the_prompt_every_token_in_order_and_the_end(config):
    streamer = Recorder()
    out = write(make(), config, prompt(), streamer=streamer)
    assert streamer.calls == [prompt().tolist(), *([token] for token in out.token_ids)]
    assert streamer.ended == 1


@each_full
def test_scores_and_logits_are_those_of_transformers(config):
    model, ids = make(), prompt()
    named = {"repetition_penalty": 1.9, "output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    wanted = model.generate(ids, max_new_tokens=NEW, attention_mask=torch.ones_like(ids), **GREEDY, **named)
    out = write(model, config, ids, **named)
    assert out.token_ids == wanted.sequences[0, ids.shape[1] :].tolist()
    assert len(out.scores) == len(out.logits) == NEW
    assert gap(torch.cat(out.scores), torch.cat(wanted.scores)) < 1e-5
    assert gap(torch.cat(out.logits), torch.cat(wanted.logits)) < 1e-5
    assert gap(torch.cat(out.scores), torch.cat(out.logits)) > 0.1
    plain_out = write(model, config, ids)
    assert plain_out.scores is None and plain_out.logits is None


def test_prompts_may_be_lists_vectors_matrices_and_encodings():
    model, ids = make(), prompt()
    wanted = plain(model, ids, NEW)
    encoding = BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    lists = {"input_ids": ids.tolist(), "attention_mask": [[1] * ids.shape[1]], "token_type_ids": [[0] * ids.shape[1]]}
    kinds = [
        ids,
        ids[0],
        ids.tolist(),
        ids[0].tolist(),
        tuple(ids[0].tolist()),
        ids.int(),
        ids.numpy(),
        encoding,
        lists,
    ]
    with offload(model, systems.on_demand(slots=4)) as engine:
        for given in [*kinds, BatchEncoding(lists)]:
            assert engine.generate(given, max_new_tokens=NEW, **GREEDY).token_ids == wanted, type(given)


@pytest.mark.parametrize("name", ["olmoe", "deepseek_v2", "gpt_oss"])
@each_full
def test_a_padded_prompt_is_masked_as_in_transformers(config, name):
    model, ids = make(name), prompt()
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), torch.ones_like(ids)], dim=1)
    wanted = plain(model, padded, NEW, attention_mask=mask)
    assert wanted != plain(model, padded, NEW), "the mask must matter"
    for given in (mask, mask[0], mask.tolist()):
        encoding = {"input_ids": padded, "attention_mask": given}
        assert write(model, config, encoding).token_ids == wanted


def test_a_generation_config_is_obeyed():
    model, ids = make(), prompt()
    settings = GenerationConfig(max_new_tokens=5, do_sample=True, top_k=4, pad_token_id=0)
    torch.manual_seed(1)
    wanted = model.generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids))[0, 6:].tolist()
    with offload(model, systems.on_demand(slots=3)) as engine:
        torch.manual_seed(1)
        assert engine.generate(ids, generation_config=settings).token_ids == wanted
        assert len(engine.generate(ids, generation_config=settings, max_new_tokens=2).token_ids) == 2
        assert len(engine.generate(ids, max_length=10, **GREEDY).token_ids) == 4
        streamed = list(engine.stream(ids, max_new_tokens=3, **GREEDY))
        assert [step.token_id for step in streamed] == plain(make(), ids, 3)


@each_full
def test_a_warm_cache_continues_where_it_ended(config):
    """A second turn: the user keeps the cache, and gives the whole conversation."""
    model, ids = make(), prompt(9)
    wanted = plain(model, ids, NEW)
    for known in (5, 8):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :known], past_key_values=cache)
        assert write(model, config, ids, past_key_values=cache).token_ids == wanted
        assert cache.get_seq_length() == 9 + NEW - 1


@pytest.mark.parametrize(("name", "changes"), [("gpt_oss", {}), ("mixtral", {"sliding_window": 6})])
@pytest.mark.parametrize("length", [4, 12, 20])
def test_tokens_are_taken_back_also_past_a_sliding_window(name, changes, length):
    model, ids = make(name, **changes), prompt(length)
    assert write(model, systems.mobile(gamma=1.1, slots=3), ids, 16).token_ids == plain(model, ids, 16)
    tokens, logits = big_prompt_then_little(model, ids, 16, 2)
    out = write(model, systems.mobile(gamma=0, slots=3), ids, 16, output_logits=True)
    assert out.token_ids == tokens and gap(torch.cat(out.logits), logits) < 1e-5


def test_every_token_follows_from_the_text_before_it_whoever_wrote_it():
    """Big and little mixed: each token is checked against the cache that a bare loop with the same choices builds."""
    model, ids = make(), prompt(seed=9)
    with offload(model, systems.mobile(gamma=0, slots=3)) as engine:
        sure = sorted(s.confidence for s in engine.generate(ids, max_new_tokens=20, **GREEDY).steps[1:])
        engine.gamma = sure[len(sure) // 2]
        out = engine.generate(ids, max_new_tokens=20, output_logits=True, **GREEDY)
    assert {s.wrote for s in out.steps[1:]} == {"little", "big"}
    with torch.no_grad():
        turn = model(ids, use_cache=True)
        for step, logits, after in itertools.zip_longest(out.steps, out.logits, out.steps[1:]):
            assert gap(turn.logits[:, -1], logits) < 1e-5
            assert step.token_id == int(turn.logits[0, -1].argmax())
            if after is not None:
                with top_k(model, 2 if after.wrote == "little" else 4):
                    turn = model(torch.tensor([[step.token_id]]), past_key_values=turn.past_key_values, use_cache=True)


def test_generations_do_not_disturb_each_other():
    model = make()
    prompts = [prompt(4 + n, seed=n) for n in range(3)]
    wanted = [plain(model, ids, NEW) for ids in prompts]
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        assert [engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids for ids in prompts * 2] == wanted * 2
        assert [p.request for p in engine.trace.passes if p.mode == "prompt"] == list(range(6))


def test_one_token_prompts_and_one_token_texts_work():
    model, ids = make(), prompt(1)
    for config in FULL:
        assert write(model, config, ids, 1).token_ids == plain(model, ids, 1)
        assert write(model, config, ids).token_ids == plain(model, ids, NEW)
