"""Static decoding on a real card: real graphs, real streams, real memory. Skipped, visibly, where there is none."""

import gc
from dataclasses import replace

import pytest
import torch
from helpers import EXPERTS, GREEDY, big_prompt_then_little, gap, make, plain, prompt, refused

from mobile_nb import MobileError, offload, systems
from mobile_nb.bench.card import Options, bench
from mobile_nb.bench.rows import calls_of, profiled
from mobile_nb.policies import Scheduled

pytestmark = pytest.mark.gpu
NEW, LENGTH = 8, 32
NAMES = ["olmoe", "qwen2_moe", "deepseek_v2", "qwen3_moe", "mixtral", "granitemoe"]


def on_card(name="olmoe", dtype=torch.float32, **changes):
    return make(name, **changes).to("cuda", dtype)


def ids_on_card(length=6, **named):
    return prompt(length, **named).to("cuda")


def allocated():
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_recorded_passes_are_exact(name):
    model, ids, other = on_card(name), ids_on_card(), ids_on_card(9, seed=5)
    texts = {len(some[0]): plain(model, some, NEW) for some in (ids, other)}
    logits = model(torch.cat([ids, torch.tensor([texts[6]], device="cuda")], dim=1)).logits[0, 5:-1]
    with offload(model, systems.next_gate(slots=3), static=LENGTH) as engine:
        for config in (None, systems.mobile(gamma=1.1, slots=2), systems.on_demand(slots=EXPERTS)):
            engine.change(config)
            for some in (ids, other):
                assert engine.generate(some, max_new_tokens=NEW, **GREEDY).token_ids == texts[some.shape[1]], config
            out = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
            assert gap(torch.cat(out.logits), logits) < 1e-4, config
            assert engine._static.recorded


def test_eager_attention_writes_the_same_without_graphs():
    model, ids = on_card(), ids_on_card()
    model.set_attn_implementation("eager")
    wanted = plain(model, ids, NEW)
    with offload(model, systems.mobile(gamma=1.1, slots=3), static=LENGTH) as engine:
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted and not engine._static.recorded


@pytest.mark.parametrize("name", NAMES)
def test_gamma_moves_under_the_same_graphs(name):
    model, ids = on_card(name), ids_on_card()
    big = plain(model, ids, NEW)
    little, _ = big_prompt_then_little(model.cpu(), ids.cpu(), NEW, 2)
    with offload(model.cuda(), systems.mobile(gamma=0, slots=3), static=LENGTH) as engine:
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == little
        engine.gamma = 1.1
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == big
        engine.gamma = 0
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == little


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_within_its_rounding(dtype):
    model, ids = on_card("qwen3_moe", dtype), ids_on_card()
    with offload(model, systems.mobile(gamma=1.1, slots=3)) as engine:
        grown = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
    with offload(model, systems.mobile(gamma=1.1, slots=3), static=LENGTH) as engine:
        static = engine.generate(ids, max_new_tokens=NEW, output_logits=True, **GREEDY)
    same = next((n for n in range(NEW) if grown.token_ids[n] != static.token_ids[n]), NEW - 1) + 1
    near = 0.05 if dtype == torch.float16 else 0.4
    assert gap(torch.cat(grown.logits[:same]), torch.cat(static.logits[:same])) < near


def test_sampled_text_follows_the_seed():
    model, ids = on_card(), ids_on_card()
    sampled = GREEDY | {"do_sample": True, "temperature": 1.5}
    torch.manual_seed(4)
    wanted = plain(model, ids, NEW, **sampled)
    with offload(model, systems.on_demand(slots=3), static=LENGTH) as engine:
        for _ in range(2):
            torch.manual_seed(4)
            assert engine.generate(ids, max_new_tokens=NEW, **sampled).token_ids == wanted


@pytest.mark.parametrize("slots", [1, 3])
def test_late_copies_are_waited_for_between_the_graphs_and_while_they_are_recorded(slots):
    """Each copy fills its slot with NaN, waits a while on its own stream, and then copies."""
    model, ids = on_card("qwen2_moe"), ids_on_card()
    wanted = plain(model, ids, NEW)
    for config in (systems.on_demand(slots=slots), systems.mobile(gamma=1.1, slots=slots)):
        with offload(model, config, static=LENGTH) as engine:
            real, server = engine._server.link.mover, engine._server

            def slow(layer, expert, slot, real=real, server=server):
                server._slots[layer].blocks[slot].fill_(float("nan"))
                torch.cuda._sleep(1_000_000)
                real(layer, expert, slot)

            server.link.mover = slow
            for _ in range(2):
                assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted, config


def test_the_reader_may_change_its_stream():
    model, ids = on_card(), ids_on_card()
    wanted, mine = plain(model, ids, NEW), torch.cuda.Stream()
    with offload(model, systems.next_gate(slots=3), static=LENGTH) as engine:
        for stream in (torch.cuda.default_stream(), mine, torch.cuda.default_stream()):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
            torch.cuda.synchronize()


def test_an_engine_that_ends_takes_nothing_from_another():
    (first, second), ids = (on_card(), on_card("qwen3_moe")), ids_on_card()
    wanted = plain(second, ids, NEW)
    with offload(second, systems.on_demand(slots=3), static=LENGTH) as stays:
        with offload(first, systems.on_demand(slots=3), static=LENGTH) as ends:
            for engine in (ends, stays):
                engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        del engine, ends
        torch.cuda.empty_cache()
        noise = [torch.full((2**20,), 1e4, device="cuda") for _ in range(32)]  # whoever reads here writes another text
        assert stays.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
        assert all(bool((each == 1e4).all()) for each in noise)


def test_another_mode_begins_anew():
    model, ids = on_card(), ids_on_card()
    wanted = plain(model, ids, NEW)
    with offload(model, systems.on_demand(slots=3), static=LENGTH) as engine:
        for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
            with mode():
                assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
                assert engine._static.recorded


@pytest.mark.parametrize("name", NAMES)
def test_fallbacks_in_between_write_what_a_growing_cache_writes(name):
    model, ids = on_card(name), ids_on_card()
    config = replace(systems.mobile(slots=3), keep=Scheduled(0.5))
    with offload(model, config) as engine:
        wanted = engine.generate(ids, max_new_tokens=NEW, **GREEDY)
    with offload(model, config, static=LENGTH) as engine:
        out = engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        assert [(s.token_id, s.wrote) for s in out.steps] == [(s.token_id, s.wrote) for s in wanted.steps]
        assert engine._static.recorded


def calls(stream, tokens=2):
    """Launches a token by the host; skips where the profiler does not see the card."""
    with profiled() as profile:
        for _ in range(tokens):
            next(stream)
        torch.cuda.synchronize()
    found = calls_of(profile.events()) / tokens
    if not found:
        pytest.skip("the profiler does not see launches here")
    return found


@pytest.mark.parametrize("slots", [3, EXPERTS])
def test_the_host_launches_less_often(slots):
    """Attention, norms and router of a layer are some dozens of kernels, and one graph."""
    model, ids, found = on_card(), ids_on_card(), {}
    for static in (None, LENGTH):
        with offload(model, systems.on_demand(slots=slots), static=static) as engine:
            stream = engine.stream(ids, max_new_tokens=10, **GREEDY)
            for _ in range(5):
                next(stream)
            found[static] = calls(stream)
            stream.close()
    assert found[LENGTH] < 0.7 * found[None], found


def test_graphs_and_cache_are_freed_also_after_an_interrupt():
    model, ids = on_card(), ids_on_card()
    wanted = plain(model, ids, NEW)
    with offload(model, systems.on_demand(slots=3), static=LENGTH) as engine:  # libraries make their workspaces
        engine.generate(ids, max_new_tokens=NEW, **GREEDY)
    del engine
    before = allocated()
    for ends in (False, True):
        with offload(model, systems.on_demand(slots=3), static=LENGTH) as engine:
            real, moved = engine._server.link.mover, []

            def mover(*where, real=real, moved=moved, ends=ends):
                moved.append(where)
                if ends and len(moved) == 30:  # while passes are recorded, or soon after
                    raise KeyboardInterrupt
                real(*where)

            engine._server.link.mover = mover
            if ends:
                with pytest.raises(KeyboardInterrupt):
                    engine.generate(ids, max_new_tokens=NEW, **GREEDY)
            assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
        del engine, mover, real
        assert allocated() == pytest.approx(before, abs=8192)
        assert plain(model, ids, NEW) == wanted


def test_a_forward_that_waits_for_the_card_is_refused_in_one_sentence_and_the_next_offload_works():
    model, ids = on_card(), ids_on_card()
    wanted = plain(model, ids, NEW)
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, out: out * float(out.sum() > -1e9))
    with offload(model, systems.on_demand(slots=3), static=LENGTH) as engine:
        with refused("cannot be recorded", "static=None", kinds=MobileError):
            engine.generate(ids, max_new_tokens=NEW, **GREEDY)
        hook.remove()
        assert not engine._static.recorded
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted and engine._static.recorded
    torch.cuda.empty_cache()  # nothing believes that a recording goes on, neither memory nor
    assert torch.rand(4, device="cuda").max() < 1  # random numbers
    with offload(model, systems.on_demand(slots=3)) as engine:
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted
    with offload(model, systems.on_demand(slots=3), static=LENGTH) as engine:
        assert engine.generate(ids, max_new_tokens=NEW, **GREEDY).token_ids == wanted


def test_the_bench_has_each_row_with_and_without():
    options = Options(models=("olmoe-1b-7b",), tiny=True, tokens=4, slots=(16,), minutes=3, quick=True, static=True)
    rows = [row for row in bench(options, progress=False)["rows"] if "accelerate" not in row["system"]]
    assert not [row["why"] for row in rows if "why" in row]
    pairs = {}
    for row in rows:
        assert row["time"] == "measured"
        pairs.setdefault((row["system"], row["slots"]), {})[row["static"]] = row
    for name, pair in pairs.items():
        assert set(pair) == {False, True}, name
        if pair[True]["calls"] and pair[False]["calls"]:
            assert pair[True]["calls"] < pair[False]["calls"], name
