"""What the reader of a stream sees: Steps, text, gamma that moves while the model writes, one writer at a time."""

import threading

import pytest
import torch
from helpers import GREEDY, big_prompt_then_little, make, middle_gamma, plain, prompt, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mobile_nb import MobileConfig, MobileError, offload, systems
from mobile_nb.policies import Always, Entropy, Margin, Never
from mobile_nb.runtime.text import TextStream

NEW = 8


def words():
    """A tokenizer of 101 words; 0 to 2 are special."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 101)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def bytes_():
    """A tokenizer whose tokens are single bytes, so that most characters outside ASCII take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<s>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def run(config, n=NEW, *, model=None, tokenizer=None, ids=None, **named):
    with offload(make() if model is None else model, config, tokenizer=tokenizer) as engine:
        return engine, engine.generate(prompt() if ids is None else ids, max_new_tokens=n, **(GREEDY | named))


def test_steps_say_who_wrote_how_sure_and_at_what_price():
    model = make()
    gamma = middle_gamma(model, prompt(), 16)
    engine, out = run(systems.mobile(gamma, slots=3), 16, model=model)
    first, later = out.steps[0], out.steps[1:]
    assert [s.token_id for s in out.steps] == out.token_ids
    assert (first.wrote, first.fell_back, first.gamma) == ("big", False, None)
    assert {s.wrote for s in later} == {"little", "big"}
    for step in later:
        assert step.gamma == gamma
        assert step.fell_back == (step.wrote == "big") == (step.confidence < gamma)
    assert all(0 < s.confidence <= 1 and s.seconds > 0 and s.text == "" for s in out.steps)
    assert out.fallback_ratio == sum(s.fell_back for s in later) / 15
    assert out.seconds_per_token == pytest.approx(sum(s.seconds for s in later) / 15)
    asked = [s.hits + s.misses for s in later]
    assert asked == [3 * (2 + 4) if s.fell_back else 3 * 2 for s in later]
    frame = engine.trace.to_frame("steps")
    assert frame.wrote.tolist() == [s.wrote for s in out.steps]
    assert frame.confidence.tolist() == [s.confidence for s in out.steps]


def test_steps_of_a_system_without_a_little_model_have_no_gamma():
    engine, out = run(systems.next_gate(slots=3))
    assert {(s.wrote, s.gamma, s.fell_back) for s in out.steps} == {("big", None, False)}
    assert engine.gamma is None
    engine, out = run(systems.little(slots=3))
    assert {(s.wrote, s.gamma) for s in out.steps[1:]} == {("little", None)}
    assert engine.gamma is None


def test_confidence_is_the_largest_probability_before_processors():
    _, out = run(systems.on_demand(slots=3), output_logits=True, repetition_penalty=3.0)
    wanted = [torch.softmax(logits[0], 0).max().item() for logits in out.logits]
    assert [s.confidence for s in out.steps] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("keep", "ratio"),
    [(Always(), 0), (Never(), 1), (Margin(0), 0), (Margin(1.01), 1), (Entropy(0), 0), (Entropy(1.01), 1)],
)
def test_every_keep_policy_has_its_ends(keep, ratio):
    model = make()
    _, out = run(systems.mobile(keep=keep, slots=3), model=model)
    assert out.fallback_ratio == ratio
    wanted = plain(model, prompt(), NEW) if ratio else big_prompt_then_little(model, prompt(), NEW, 2)[0]
    assert out.token_ids == wanted


# -- gamma while it writes -----------------------------------------------------------------------------------------


def test_gamma_acts_from_the_next_token_on():
    with offload(make(), systems.mobile(gamma=0, slots=3)) as engine:
        steps = []
        for step in engine.stream(prompt(), max_new_tokens=9, **GREEDY):
            steps.append(step)
            engine.gamma = {2: 1.1, 5: 0}.get(len(steps), engine.gamma)
    assert [s.wrote for s in steps] == ["big", "little", "big", "big", "big", "little", "little", "little", "little"]
    assert [s.gamma for s in steps] == [None, 0, 1.1, 1.1, 1.1, 0, 0, 0, 0]
    assert [p.mode for p in engine.trace.passes].count("big") == 3


def test_gamma_of_another_thread_acts_from_the_next_token_on():
    with offload(make(), systems.mobile(gamma=0, slots=3)) as engine:
        for _ in range(3):
            written, moved, steps = threading.Event(), threading.Event(), []

            def move(value=1.1 if engine.gamma == 0 else 0, go=written, done=moved):
                go.wait(30)
                engine.gamma = value
                done.set()

            before = engine.gamma
            thread = threading.Thread(target=move)
            thread.start()
            for step in engine.stream(prompt(), max_new_tokens=6, **GREEDY):
                steps.append(step.gamma)
                if len(steps) == 3:
                    written.set()
                    assert moved.wait(30)
            thread.join(30)
            assert steps == [None, before, before] + [engine.gamma] * 3 and engine.gamma != before


def test_a_thread_that_moves_gamma_all_the_time_never_breaks_a_step():
    stop = threading.Event()
    with offload(make(), systems.mobile(gamma=0, slots=3)) as engine:

        def shake():
            while not stop.is_set():
                engine.gamma = 1.1
                engine.gamma = 0

        thread = threading.Thread(target=shake)
        thread.start()
        try:
            out = engine.generate(prompt(), max_new_tokens=24, **GREEDY)
        finally:
            stop.set()
            thread.join(30)
    assert all(s.fell_back == (s.gamma == 1.1) for s in out.steps[1:])
    assert {s.gamma for s in out.steps[1:]} <= {0, 1.1}


@pytest.mark.parametrize("value", [-1, -1e-9, "high", float("nan"), float("inf"), -float("inf"), True, None, [0.5]])
def test_a_gamma_that_cannot_be_is_refused_and_the_old_one_stays(value):
    with offload(make(), systems.mobile(gamma=0.6, slots=3)) as engine:
        with refused("gamma must be", "of at least 0", repr(value), "0.7", kinds=(ValueError, TypeError)):
            engine.gamma = value
        assert engine.gamma == 0.6
        engine.gamma = 3
        assert engine.gamma == 3
    with refused("gamma must be", repr(value), kinds=(ValueError, TypeError)):
        systems.mobile(gamma=value)


@pytest.mark.parametrize("config", [systems.on_demand(), systems.little(), MobileConfig(keep=Margin(0.5))], ids=repr)
def test_a_system_without_a_threshold_has_no_gamma_to_set(config):
    with offload(make(), config) as engine:
        assert engine.gamma is None
        with refused("no gamma to set", "systems.mobile", kinds=MobileError):
            engine.gamma = 0.5


# -- text ----------------------------------------------------------------------------------------------------------


def test_text_prompts_and_pieces_of_text():
    tokenizer, model = words(), make()
    _, out = run(systems.mobile(gamma=1.1, slots=3), model=model, tokenizer=tokenizer, ids="w5 w6 w7")
    assert out.token_ids == plain(model, torch.tensor([[5, 6, 7]]), NEW)
    assert out.text == "".join(s.text for s in out.steps) == tokenizer.decode(out.token_ids, skip_special_tokens=True)
    assert out.text.split() == [f"w{token}" for token in out.token_ids if token > 2]


@given(text=st.text(min_size=1, max_size=12))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_pieces_of_text_join_to_the_text(text):
    """Characters of several tokens appear once they are whole, and nothing is lost or doubled."""
    tokenizer = bytes_()
    ids = tokenizer(text).input_ids
    stream = TextStream(tokenizer)
    pieces = [stream.add(i) for i in ids]
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)


def test_special_tokens_have_no_text():
    stream = TextStream(words())
    assert "".join(map(stream.add, [1, 5, 0, 6, 2])) == "w5 w6"
    assert TextStream(None).add(5) == ""


# -- one writer at a time ------------------------------------------------------------------------------------------


def test_two_streams_at_once_are_refused_and_the_first_goes_on():
    model = make()
    with offload(model, systems.on_demand(slots=3)) as engine:
        first = engine.stream(prompt(), max_new_tokens=NEW, **GREEDY)
        tokens = [next(first).token_id]
        for use in (lambda: next(engine.stream(prompt(), max_new_tokens=2)), lambda: engine.generate(prompt())):
            with refused("writing already", kinds=MobileError):
                use()
        tokens += [step.token_id for step in first]
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == tokens
    assert tokens == plain(model, prompt(), NEW)


def test_a_second_thread_is_refused_too():
    said = []
    with offload(make(), systems.on_demand(slots=3)) as engine:
        stream = engine.stream(prompt(), max_new_tokens=3, **GREEDY)
        next(stream)

        def intrude():
            with refused("writing already", kinds=MobileError) as caught:
                engine.generate(prompt(), max_new_tokens=1)
            said.append(caught)

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join(30)
        assert len(said) == 1 and len(list(stream)) == 2


def test_nothing_is_computed_before_the_stream_is_read():
    with offload(make(), systems.on_demand(slots=3)) as engine:
        unread = engine.stream(prompt(), max_new_tokens=NEW, **GREEDY)
        engine.generate(prompt(), max_new_tokens=1, **GREEDY)
        assert len(engine.trace.passes) == 1
        next(unread)
        assert len(engine.trace.passes) == 2
