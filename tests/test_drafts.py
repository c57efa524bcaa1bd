"""Speculative decoding: drafts that the big model reads several at a time change the time, and never the text."""

import itertools
from functools import cache

import pytest
import torch
from helpers import (
    ARCHITECTURES,
    GREEDY,
    TINY_OLMOE,
    OnlyOdd,
    Recorder,
    StopAfter,
    gap,
    make,
    plain,
    prompt,
    prompt_for,
    refused,
    since,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_literature import check_conservation
from transformers import LogitsProcessorList

from mobile_nb import MobileConfig, MobileError, Trace, offload, replay, systems
from mobile_nb.analysis import metrics
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import (
    AllLow,
    Anybody,
    DraftRouter,
    Drop,
    EvictedRouter,
    Fraction,
    Int4,
    MaxProbability,
    Mixed,
    NextRanked,
    Nothing,
    PreviousToken,
    TopK,
    Verified,
)

NEW = 14
SAMPLED = {"do_sample": True, "temperature": 0.4}
SLOW = {"hardware": "t4-colab", "geometry": "qwen1.5-moe-a2.7b"}
trained = pytest.param(
    "tiny-olmoe", marks=pytest.mark.skipif(not TINY_OLMOE.is_file(), reason="the trained model is not in data/")
)
model = cache(make)


@cache
def full(name="qwen2_moe", seed=0, n=NEW):
    return plain(model(name), prompt_for(name, 7, seed=seed), n)


def write(config, name="qwen2_moe", *, n=NEW, seeds=(0,), **named):
    with offload(model(name), config, **SLOW) as engine:
        texts = [
            engine.generate(prompt_for(name, 7, seed=seed), max_new_tokens=n, **(GREEDY | named)) for seed in seeds
        ]
    return engine, texts


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=since(5, 23)) if name == "gpt_oss" else name for name in ARCHITECTURES] + [trained],
)
def test_the_text_is_that_of_the_full_model(name):
    for length, slots in ((1, 2), (3, 5)):
        engine, (out,) = write(systems.speculative(length, slots=slots), name)
        assert out.token_ids == full(name)
        who = [step.wrote for step in out.steps]
        assert {"little", "big"} <= set(who), "drafts must stay and be evicted for this to say anything"
        check_conservation(engine, slots)


@settings(max_examples=8, deadline=None)
@given(
    length=st.integers(0, 9),
    slots=st.integers(1, 8),
    n=st.integers(1, NEW),
    gamma=st.sampled_from([0, 0.02, 0.05, 1.1]),
    window=st.sampled_from([None, 1, 3]),
    prefetch=st.sampled_from([Nothing(), EvictedRouter(), EvictedRouter(experts=2), DraftRouter(), PreviousToken()]),
    draft=st.sampled_from(
        [
            {},
            {"fraction": 0.25},
            {"miss": Drop()},
            {"miss": NextRanked(), "count": TopK()},
            {"miss": Anybody()},
            {"miss": AllLow(), "count": TopK(), "codec": Mixed(low=Int4(8), low_slots=8)},
        ]
    ),
)
def test_no_length_slots_or_way_of_drafting_changes_the_text(length, slots, n, gamma, window, prefetch, draft):
    config = systems.speculative(
        length, prefetch=prefetch, **({"keep": Verified(length, gamma, window), "slots": slots} | draft)
    )
    assert config.lossless
    engine, texts = write(config, n=n, seeds=(0, 1))
    assert [text.token_ids for text in texts] == [full()[:n], full(seed=1)[:n]]
    check_conservation(engine, slots)
    moments = [moment for done in engine.trace.passes for moment in (done.begin, done.end)]
    assert moments == sorted(moments)
    steps, frame = [step for text in texts for step in text.steps], engine.trace.to_frame("steps")
    for field in ("token_id", "wrote", "confidence", "fell_back", "bytes_moved", "hits", "misses"):
        assert frame[field].tolist() == [getattr(step, field) for step in steps], field
    assert frame.seconds.tolist() == pytest.approx([step.seconds for step in steps])
    assert sum(step.seconds for step in steps) == pytest.approx(moments[-1])
    assert sum(step.bytes_moved for step in steps) == pytest.approx(engine.report().gb_moved.sum() * 1e9)
    if config.miss.lossless and config.codec.lossless:
        assert replay(engine.trace, config).trace.passes == engine.trace.passes


@pytest.mark.parametrize(
    "named", [SAMPLED, SAMPLED | {"repetition_penalty": 1.8, "top_k": 5}, {"no_repeat_ngram_size": 1}]
)
def test_sampled_and_processed_text_is_that_of_plain_generate(named):
    for seed in range(2):
        torch.manual_seed(seed)
        wanted = plain(model("qwen2_moe"), prompt(7), NEW, **named)
        torch.manual_seed(seed)
        _, (out,) = write(systems.speculative(3, slots=4), **named)
        assert out.token_ids == wanted


def test_processors_scores_and_logits_are_those_of_plain_decoding():
    named = {"repetition_penalty": 1.9, "output_scores": True, "output_logits": True}
    _, (one,) = write(systems.on_demand(slots=4), **named)
    _, (two,) = write(systems.speculative(3, slots=4), **named)
    assert one.token_ids == two.token_ids != full()
    assert gap(torch.cat(one.logits), torch.cat(two.logits)) < 1e-5
    assert gap(torch.cat(one.scores), torch.cat(two.scores)) < 1.9e-5  # the penalty multiplies a difference, too
    odd = {"logits_processor": LogitsProcessorList([OnlyOdd()])}
    assert write(systems.speculative(3, slots=4), **odd)[1][0].token_ids == plain(
        model("qwen2_moe"), prompt(7), NEW, **odd
    )


def test_a_coarse_copy_drafts_without_a_byte_over_the_link():
    """MoE-SpeQ: every low form has a slot, so that what travels while it drafts is prefetched for the big pass."""
    engine, (out,) = write(systems.moe_speq(3, low=Int4(8), slots=4))
    assert out.token_ids == full() and "little" in {step.wrote for step in out.steps}
    copies = [copy for p in engine.trace.passes for copy in p.copies]
    assert {copy.form for copy in copies} == {0}
    drafting = [copy for p in engine.trace.passes if p.mode == "little" for copy in p.copies]
    assert drafting and {copy.kind for copy in drafting} == {"prefetch"}
    assert systems.moe_speq().lossless and not systems.moe_speq(keep=MaxProbability()).lossless
    with refused("cannot tell whom", "run it live"):
        replay(engine.trace, engine.config)


# -- ends ----------------------------------------------------------------------------------------------------------


def test_length_zero_is_the_big_model_pass_by_pass():
    engine, _ = write(systems.speculative(0, slots=3))
    alone, _ = write(systems.big(slots=3))
    for one, two in zip(engine.trace.passes, alone.trace.passes, strict=True):
        assert (one.mode, one.token_id, one.begin, one.end) == (two.mode, two.token_id, two.begin, two.end)
        assert one.copies == two.copies


def test_gamma_above_one_is_mobile_above_one_pass_by_pass():
    """Every draft is evicted; only the last token, behind which nothing fits, is not drafted for."""
    engine, (out,) = write(systems.speculative(5, gamma=1.1, slots=5))
    mobile, _ = write(systems.mobile(gamma=1.1, slots=5))
    assert [p.mode for p in engine.trace.passes] == ["prompt"] + ["little", "big"] * (NEW - 2) + ["big"]
    for one, two in zip(engine.trace.passes[:-1], mobile.trace.passes, strict=False):
        assert one == two
    assert all(step.fell_back for step in out.steps[1:-1])


def test_the_full_model_confirms_all_that_it_drafted_itself():
    engine, (out,) = write(systems.speculative(3, 1.0, slots=4))
    assert "".join(step.wrote[0] for step in out.steps[1:]) == "lllblllblllb" + "b"
    assert out.fallback_ratio == 0
    assert engine.report().attrs["accepted_per_verification"] == metrics.accepted_per_verification(
        engine.trace.to_frame("steps")
    )
    assert engine.report().attrs["accepted_per_verification"] == 9 / 4


def test_a_draft_as_long_as_what_fits_is_not_longer():
    """A draft never goes beyond the last token that may be written, one of which the big model writes itself."""
    for n in (1, 2, 3, 6):
        engine, (out,) = write(systems.speculative(4, 1.0, slots=4), n=n)
        assert out.token_ids == full()[:n]
        assert len(engine.trace.passes) == {1: 1, 2: 2, 3: 3, 6: 6}[n]


# -- passes --------------------------------------------------------------------------------------------------------


def test_the_big_pass_reads_the_last_token_and_every_draft():
    engine, _ = write(systems.speculative(3, slots=4))
    turns = "".join({"prompt": "p", "little": "l", "big": "b"}[done.mode] for done in engine.trace.passes)
    assert set(turns[1:].split("b")) <= {"", "l", "ll", "lll"}
    drafts = []
    for done in engine.trace.passes[1:]:
        if done.mode == "little":
            drafts.append(done)
            continue
        assert done.token_id >= 0 and done.ids.shape[1] == len(drafts) + 1
        stayed = [draft.token_id >= 0 for draft in drafts]
        assert stayed == sorted(stayed, reverse=True) and done.step == drafts[0].step + sum(stayed) if drafts else True
        for at, draft in enumerate(drafts):  # law 5, of every draft
            assert (draft.ids[0, 0] == done.ids[0, at]).all()
        drafts = []


@pytest.mark.parametrize("slots", [5, 7])
def test_what_drafts_name_is_there_when_the_first_layer_asks(slots):
    """The union of the drafts' experts is prefetched; the last draft was not read, so its own may be missing."""
    engine, _ = write(systems.speculative(1, slots=slots))
    nothing, _ = write(systems.speculative(1, slots=slots, prefetch=Nothing()))
    missing = [sum(p.misses[0] for p in e.trace.passes if p.mode == "big") for e in (engine, nothing)]
    assert missing[0] < missing[1]
    assert engine.report().used.sum() > 0


def test_prefetching_while_drafting_starts_before_the_big_pass():
    engine, _ = write(systems.speculative(3, slots=6, prefetch=DraftRouter()))
    early = [copy for p in engine.trace.passes if p.mode == "little" for copy in p.copies if copy.kind == "prefetch"]
    assert early
    waits, _ = write(systems.speculative(3, slots=6))
    assert not [copy for p in waits.trace.passes if p.mode == "little" for copy in p.copies if copy.kind == "prefetch"]


def test_a_window_drafts_less_where_little_is_accepted():
    steady, governed = Verified(8), Verified(8, window=2)
    assert steady.drafts([(8, 0)] * 3) == 8
    assert [governed.drafts(past) for past in ([], [(8, 8)], [(8, 2), (8, 0)], [(8, 8), (1, 0), (1, 0)])] == [
        8,
        8,
        2,
        1,
    ]
    one, _ = write(systems.speculative(8, slots=4))
    two, _ = write(systems.speculative(keep=governed, slots=4))
    assert len(two.trace.passes) < len(one.trace.passes)


def test_gamma_moves_while_it_writes_and_the_text_does_not_notice():
    with offload(model("qwen2_moe"), systems.speculative(3, slots=4)) as engine:
        assert engine.gamma == 0
        steps = []
        for step in engine.stream(prompt(7), max_new_tokens=NEW, **GREEDY):
            steps.append(step)
            engine.gamma = 1.1 if len(steps) > 5 else 0
    assert [step.token_id for step in steps] == full()
    assert {step.gamma for step in steps} == {None, 0, 1.1}
    assert [step.wrote for step in steps[-4:]] == ["big"] * 4
    with refused("drafted and read together", "run it live"):
        replay(engine.trace, engine.config)


# -- the end of a text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 3, 4, 6, 7, 9])
def test_an_end_token_in_a_draft_ends_the_text(at):
    end = full()[at]
    wanted = full()[: full().index(end) + 1]
    for length in (2, 6):
        engine, (out,) = write(systems.speculative(length, slots=4), eos_token_id=end)
        assert out.token_ids == wanted
        assert out.steps[-1].wrote == "big"
        check_conservation(engine, 4)


@pytest.mark.parametrize("n", range(1, 9))
def test_a_criterion_that_stops_in_the_middle_of_a_draft_is_asked_after_every_token(n):
    stop, streamer = [StopAfter(n)], Recorder()
    config = systems.speculative(4, 1.0, slots=4)
    engine, (out,) = write(config, stopping_criteria=stop, streamer=streamer)
    assert out.token_ids == full()[:n] and stop[0].seen == n
    assert streamer.calls == [prompt(7).tolist(), *([token] for token in out.token_ids)] and streamer.ended == 1
    assert out.steps[-1].wrote == "big"
    frame = engine.trace.to_frame("steps")
    assert frame.token_id.tolist() == out.token_ids
    assert frame.bytes_moved.tolist() == [step.bytes_moved for step in out.steps]
    assert replay(engine.trace, config).trace.passes == engine.trace.passes


@pytest.mark.parametrize("read", range(1, 7))
def test_a_stream_closed_in_the_middle_of_a_draft_loses_nothing(read, tmp_path):
    config = systems.speculative(4, 1.0, slots=4)
    with offload(model("qwen2_moe"), config, **SLOW) as engine:
        stream = engine.stream(prompt(7), max_new_tokens=NEW, **GREEDY)
        steps = [step.token_id for step in itertools.islice(stream, read)]
        stream.close()
        assert steps == full()[:read] and not engine.writing
        check_conservation(engine, 4)
        assert engine.generate(prompt(7), max_new_tokens=NEW, **GREEDY).token_ids == full()
        check_conservation(engine, 4)
    assert engine.trace.conditions.get("whole", True)
    assert engine.trace.to_frame("steps").token_id.tolist() == steps + full()
    assert replay(engine.trace, config).trace.passes == engine.trace.passes
    engine.trace.save(tmp_path / "trace.parquet")
    assert Trace.load(tmp_path / "trace.parquet") == engine.trace


def test_an_interrupt_in_the_middle_of_a_draft_leaves_the_engine_usable():
    config = systems.speculative(4, slots=4)
    with offload(model("qwen2_moe"), config) as engine:
        for error in (Recorder(5, KeyboardInterrupt()), None):
            named = {"streamer": error} if error else {"stopping_criteria": [StopAfter(5, KeyboardInterrupt())]}
            with pytest.raises(KeyboardInterrupt):
                engine.generate(prompt(7), max_new_tokens=NEW, **GREEDY, **named)
        assert engine.generate(prompt(7), max_new_tokens=NEW, **GREEDY).token_ids == full()


# -- caches --------------------------------------------------------------------------------------------------------


def test_an_old_transformers_says_that_its_windows_cannot(monkeypatch):
    monkeypatch.setattr("mobile_nb.runtime.rollback.WINDOWS_SINCE", (99, 0))
    with (
        offload(random_model("gpt_oss"), systems.speculative(2, slots=3)) as engine,
        pytest.raises(MobileError, match="sliding window need transformers 99"),
    ):
        engine.generate([3, 4, 5], max_new_tokens=4)


@since(5, 23)
@pytest.mark.parametrize(("name", "changes"), [("gpt_oss", {}), ("mixtral", {"sliding_window": 6})])
@pytest.mark.parametrize("length", [4, 20])
def test_drafts_are_taken_back_also_past_a_sliding_window(name, changes, length):
    sliding, ids = make(name, **changes), prompt(length)
    wanted = plain(sliding, ids, 20)
    for drafts in (2, 9):
        with offload(sliding, systems.speculative(drafts, slots=4)) as engine:
            assert engine.generate(ids, max_new_tokens=20, **GREEDY).token_ids == wanted
        assert any(p.token_id < 0 for p in engine.trace.passes)


def test_linear_attention_and_static_caches_are_refused():
    with (
        offload(random_model("qwen3_next"), systems.speculative(slots=4)) as engine,
        refused("KV cache", "several at a time", "systems.mobile()"),
    ):
        engine.generate(prompt(), max_new_tokens=4, **GREEDY)
    for named, word in (({"cache_implementation": "static"}, "StaticCache"), ({"use_cache": False}, "use_cache")):
        with refused("KV cache", word):
            write(systems.speculative(2, slots=4), **named)


# -- sentences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"), [("length", -1), ("length", 2.5), ("gamma", -0.1), ("gamma", "high"), ("window", 0)]
)
def test_what_cannot_be_drafted_is_refused(field, value):
    with refused(field):
        Verified(**{field: value})


def test_a_keep_that_answers_nonsense_is_named():
    class Endless(MaxProbability):
        def drafts(self, past):
            return "many"

    with refused("Endless", "drafts", "many"):
        write(MobileConfig(count=Fraction(), keep=Endless(0), slots=3))


def test_what_is_drafted_cannot_be_changed_in_a_replay():
    engine, _ = write(systems.speculative(2, slots=4))
    for config in (systems.speculative(3, slots=4), systems.mobile(slots=4), systems.on_demand(slots=4)):
        with refused("drafted and read together", "run it live"):
            replay(engine.trace, config)
    slots = replay(engine.trace, systems.speculative(2, slots=6, prefetch=Nothing()))
    live, _ = write(systems.speculative(2, slots=6, prefetch=Nothing()))
    assert [(p.begin, p.end) for p in slots.trace.passes] == [(p.begin, p.end) for p in live.trace.passes]
    other, _ = write(systems.mobile(gamma=1.1, slots=4))
    with refused("drafted and read together"):
        replay(other.trace, systems.speculative(2, slots=4))
