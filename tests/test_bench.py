"""The table of `bench`: rehearsed with tiny shapes, its parts one by one, and what must never be silent."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Snapshot, plain, prompt, refused
from hypothesis import given
from hypothesis import strategies as st

from mobile_nb import Geometry, MobileError, Trace, offload, systems
from mobile_nb.__main__ import main
from mobile_nb.analysis import metrics
from mobile_nb.bench import card as card_module
from mobile_nb.bench import link as link_module
from mobile_nb.bench import rows as rows_module
from mobile_nb.bench.bounds import Yardstick, bounds, fitted
from mobile_nb.bench.card import Options, bench
from mobile_nb.bench.rivals import by_accelerate, end_before, experts_gb, tokens_by
from mobile_nb.bench.rows import Job, Setting, calls_of, jobs, launches_of
from mobile_nb.bench.scripted import Recording
from mobile_nb.bench.shown import report, to_frame
from mobile_nb.costs import Costs
from mobile_nb.files import data_path
from mobile_nb.hardware import Hardware
from mobile_nb.memory.thread import ThreadLink
from mobile_nb.model import published
from mobile_nb.model.published import PUBLISHED, published_config, random_published
from mobile_nb.model.skeleton import expert_layouts, own_half, skeleton
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import Nothing, Scheduled
from mobile_nb.runtime import offloaded
from mobile_nb.trace import Copy
from mobile_nb.view import terminal

CPU = torch.device("cpu")
WORDS = {"max_new_tokens": 6, "do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
BILLIONS = {"olmoe-1b-7b": 6.92, "qwen1.5-moe-a2.7b": 14.32, "deepseek-v2-lite": 15.71, "qwen3-30b-a3b": 30.53}


@pytest.fixture(scope="module")
def tiny():
    return random_published("olmoe-1b-7b", device=CPU, tiny=True)


@pytest.fixture(scope="module")
def rehearsed():
    options = Options(models=("qwen1.5-moe-a2.7b",), device="cpu", tiny=True, tokens=6, slots=(8,), minutes=5)
    return bench(options, progress=False)


# -- the whole table -----------------------------------------------------------------------------------------------


def test_a_rehearsal_has_every_row_and_never_calls_itself_measured(rehearsed):
    rows = {row["system"]: row for row in rehearsed["rows"]}
    assert len(rows) == len(rehearsed["rows"]) == 10
    assert "accelerate's offload" in rows and "CUDA" in rows.pop("accelerate's offload")["why"]
    for row in rows.values():
        assert row["tokens"] == (5 if "21 %" in row["system"] else 6)  # whole periods of scripted fallbacks
        assert row["ms_per_token"] * row["tokens_per_s"] == pytest.approx(1e3)
        assert row["time"].startswith("simulated") and row["layers"] == "the first 4 of 24 MoE layers"
        assert row["weights"] == "random" and row["routing"] == "the trace of tiny-qwen2-moe"
    json.dumps(rehearsed, allow_nan=False)
    assert "nothing here is measured" in rehearsed["conditions"]["figures"]
    shown = report(rehearsed, terminal.table)
    assert "nothing here is measured" in shown and all(name in shown for name in rows)
    assert len(to_frame(rehearsed)) == 10 and to_frame(rehearsed).attrs["options"]["seed"] == 0


def test_what_the_simulator_predicts_of_a_simulated_row_is_the_row(rehearsed):
    told = [row for row in rehearsed["rows"] if row.get("predicted_ms")]
    assert len(told) == 6
    for row in told:
        assert row["predicted_over_ms"] == pytest.approx(1), row["system"]
        assert row["fitted_over_ms"] == pytest.approx(1, rel=0.05), row["system"]


def test_bounds_are_bounds_and_the_schedule_is_kept(rehearsed):
    rows = {row["system"]: row for row in rehearsed["rows"]}
    alone, little = (rows[name]["ms_per_token"] for name in (rows_module.ALONE, rows_module.ALONE_LITTLE))
    assert little < alone
    for name, row in rows.items():
        if "link_bound_ms" in row and "why" not in row:
            assert row["over_link_bound"] >= 0.999, name
            assert 0 < row["link_busy"] <= 1 + 1e-9 and 0 <= row["overlap"] <= 1 + 1e-9
    assert rows["on demand, LRU"]["bound_ms"] == pytest.approx(rows["on demand, LRU"]["link_bound_ms"] + alone)
    assert rows["next gate"]["bound_ms"] == pytest.approx(max(rows["next gate"]["link_bound_ms"], alone))
    for share in (0.11, 0.21):
        assert abs(rows[f"MoBiLE, {100 * share:.0f} %"]["fallback_ratio"] * 6 - share * 6) <= 1
    assert rows["on demand, no cache"]["hit_rate"] == 0 < rows["on demand, LRU"]["hit_rate"]


def test_a_row_that_fails_says_why_and_the_others_go_on(monkeypatch):
    real = rows_module.run

    def fails(model, job, *rest):
        if job.system == "next gate":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, job, *rest)

    monkeypatch.setattr(card_module, "run", fails)
    monkeypatch.setattr(card_module, "jobs", lambda *args, **words: jobs(*args, **words)[2:6])
    options = Options(models=("nothing-like-it", "olmoe-1b-7b"), device="cpu", tiny=True, tokens=4, slots=(8,))
    rows = bench(options, progress=False)["rows"]
    assert "no model" in rows[0]["why"]
    (failed,) = [row for row in rows if row.get("system") == "next gate"]
    assert failed["why"] == "OutOfMemoryError: CUDA out of memory" and "ms_per_token" not in failed
    assert sum("ms_per_token" in row for row in rows) == 3


def test_without_time_every_row_says_so_and_none_is_made_up():
    rows = bench(Options(models=("olmoe-1b-7b",), device="cpu", tiny=True, minutes=0), progress=False)["rows"]
    assert len(rows) > 20 and not any("ms_per_token" in row for row in rows)
    assert all("no time was left" in row["why"] or "CUDA device" in row["why"] for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_one_sentence_says_what_it_needs(capsys):
    assert main(["bench"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "CUDA card" in err and "--resident" in err and "--tiny" in err
    assert main(["bench", "--device", "cpu"]) == 2
    assert "--tiny" in capsys.readouterr().err


def test_the_command_writes_what_it_shows(tmp_path, capsys):
    path = tmp_path / "rows.json"
    command = "bench --device cpu --tiny --quick --models deepseek-v2-lite --tokens 4 --slots 6 --routing random --json"
    assert main([*command.split(), str(path)]) == 0
    found, shown = json.loads(path.read_text()), capsys.readouterr().out
    assert {row["routing"] for row in found["rows"]} == {"the router's own"}
    assert all(row["system"] in shown for row in found["rows"]) and "on demand, no cache" not in shown


# -- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_are_exactly_the_published_ones(name):
    model, size = skeleton(published_config(name), torch.bfloat16), Geometry.of(name)
    layouts = list(expert_layouts(model).values())
    assert (len(layouts), layouts[0][1], layouts[0][2].weights) == (
        size.moe_layers,
        size.num_experts,
        size.expert_params,
    )
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], abs=0.01)
    assert layouts[0][2].nbytes == size.expert_bytes, "no padding: a fetch moves the expert and nothing beside"


def test_random_models_lie_in_arenas_and_follow_their_seed(tiny):
    again = random_published("olmoe-1b-7b", device=CPU, tiny=True)
    other = random_published("olmoe-1b-7b", device=CPU, tiny=True, seed=1, layers=2)
    assert len(expert_layouts(other)) == 2
    for (name, p), q in zip(tiny.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q) and not p.is_meta and p.isfinite().all(), name
    for module, count, layout in expert_layouts(tiny).values():
        assert layout.blocks_of(module, count) is not None, "offload would copy it"
        assert 0.015 < module.down_proj.std() < 0.025
    assert not torch.equal(next(tiny.parameters()), next(other.parameters()))


def test_no_room_on_the_host_is_said_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(published, "host_room_gb", lambda: 10.0)
    monkeypatch.setattr(published, "new_blocks", lambda *a, **k: pytest.fail("it allocated"))
    with refused("olmoe-1b-7b take 12.9 GB", "10.0 GB are free", "--layers 11"):
        random_published("olmoe-1b-7b", device=CPU, dtype=torch.bfloat16)
    with refused("no exact shapes", "olmoe-1b-7b"):
        published_config("gpt-5")
    with refused("layers must be", kinds=ValueError):
        published_config("deepseek-v2-lite", layers=1)


def test_cards_that_imitate_bfloat16_get_float16_and_hear_of_it(monkeypatch):
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.warns(UserWarning, match="read as float16"):
        assert own_half(torch.bfloat16, card) == torch.float16
    assert own_half(torch.float32, card) == torch.float32 and own_half(torch.bfloat16, CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert own_half(torch.bfloat16, card) == torch.bfloat16


# -- what is scripted ----------------------------------------------------------------------------------------------


@given(share=st.floats(0, 1), seed=st.integers(0, 9), start=st.integers(0, 200), n=st.integers(1, 200))
def test_of_any_tokens_in_a_row_the_share_falls_back(share, seed, start, n):
    keep = Scheduled(share, seed)
    fell = sum(not keep.keep(SimpleNamespace(past=range(at))) for at in range(start, start + n))
    assert abs(fell - share * n) <= 1 + 1e-6


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "some"])
def test_a_share_is_a_share(share):
    with refused("Scheduled.share must be", kinds=(ValueError, TypeError)):
        Scheduled(share)


def test_layers_are_routed_as_the_recording_says_and_gates_err_as_often(tiny):
    trace = Trace.load(data_path("traces", "tiny-olmoe.parquet"))
    sizes = {"layers": 4, "experts": 64, "top_k": 8, "device": CPU}
    config = systems.mobile(slots=16, keep=Scheduled(0.5))
    with offload(tiny, config) as engine:
        Recording(trace, **sizes).put_into(engine)
        engine.generate(prompt(5), **WORDS)
        passes = engine.trace.passes
    pairs = [p for p in trace.passes if p.mode != "prompt"]
    token = -1
    for done in passes[1:]:
        token += done.mode == "little"
        asked = pairs[2 * token + (done.mode == "big")]
        assert done.mode == asked.mode and (sort(done.ids) == sort(asked.ids)).all()
    assert token == 4 and {done.mode for done in passes} == {"prompt", "little", "big"}
    prompts = next(p for p in trace.passes if p.mode == "prompt")
    assert (sort(passes[0].ids) == sort(prompts.ids[:, :5])).all()
    with offload(tiny, systems.next_gate(slots=16)) as engine:
        Recording(trace, **sizes).put_into(engine)
        engine.generate(prompt(5), **WORDS)
        gates = engine.trace.passes[3].gates
    assert (gates[0, 1:] == pairs[5].gates[0, 1:]).all(), "the third token's big pass"


def sort(ids):
    ids = ids.copy()
    ids.sort(axis=2)
    return ids


def test_a_recording_of_another_model_is_refused():
    trace = Trace.load(data_path("traces", "tiny-qwen2-moe.parquet"))
    with refused("4 of 60 experts", "8 of 64"):
        Recording(trace, layers=16, experts=64, top_k=8, device=CPU)
    lacking = Trace(trace.conditions, [p for p in trace.passes if p.mode != "big"])
    with refused("both passes"):
        Recording(lacking, layers=24, experts=60, top_k=4, device=CPU)
    assert Recording.shipped(layers=2, experts=7, top_k=2, device=CPU) is None
    assert Recording.shipped(layers=26, experts=64, top_k=6, device=CPU).name == "the trace of tiny-olmoe"


# -- rivals and the link -------------------------------------------------------------------------------------------


def test_accelerate_writes_the_same_and_the_model_is_as_it_was():
    model, ids = random_model("olmoe"), prompt(6)
    before, snapshot = plain(model, ids, 5), Snapshot.of(model)
    with by_accelerate(model, CPU) as gb:
        assert {p.device.type for n, p in model.named_parameters() if ".experts." in n} == {"meta"}
        assert gb > 0 and len(tokens_by(model, ids, seconds=0, least=3, most=9)) == 3
        assert plain(model, ids, 5) == before
    snapshot.check(model)


@pytest.mark.parametrize(("gb", "end"), [(13.0, 102.0), (40.0, 75.0), (57.0, 120.0)])
def test_rows_leave_accelerate_its_time_where_that_is_no_more_than_a_third(gb, end):
    assert end_before(gb, 0.0, 120.0) == end


def test_experts_are_counted_whole():
    model = random_model("olmoe")
    assert experts_gb(model) == sum(p.nbytes for n, p in model.named_parameters() if ".experts." in n) / 1e9


def test_without_accelerate_a_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with refused("accelerate is not installed"), by_accelerate(random_model("olmoe"), CPU):
        raise AssertionError("the block must not be entered")


@pytest.mark.parametrize("locks", [True, False])
def test_the_links_rates_are_read_from_both_kinds_of_memory(monkeypatch, locks):
    from contextlib import nullcontext

    real = link_module.host_memory
    fakes = SimpleNamespace(
        Stream=lambda device: SimpleNamespace(synchronize=lambda: None),
        stream=lambda which: nullcontext(),
        synchronize=lambda device: None,
    )
    monkeypatch.setattr(link_module.torch, "cuda", fakes)
    monkeypatch.setattr(link_module, "TOTAL", 1 << 20)
    monkeypatch.setattr(link_module, "host_memory", lambda n, pin: (real(n)[0], pin and locks))
    rates = link_module.link_rates(CPU, 1 << 16)
    assert rates["pageable_gb_per_s"] > 0
    assert (rates["pinned_gb_per_s"] is None) == (not locks) and ("ids_busy_us" in rates) == locks


# -- rows ----------------------------------------------------------------------------------------------------------


def test_a_row_on_the_wall_clock_is_measured_lane_by_lane(tiny, monkeypatch):
    """As on a card: a link whose copies really happen while something is computed."""
    monkeypatch.setattr(
        offloaded, "SimulatedLink", lambda clock, layers, slots, s, mover: ThreadLink(layers, slots, mover)
    )
    setting = Setting(prompt(6), hardware="t4-colab", most=5)
    for job in jobs(8, [16])[::3]:
        row = rows_module.run(tiny, job, setting, Yardstick(1.0, 0.01, 0.01), seconds=0.0)
        least = 5 if isinstance(job.config.keep, Scheduled) else rows_module.LEAST  # a period, cut to `most`
        assert row["tokens"] == least and row["time"] == "measured", job.system
        if job.alone:
            assert 0 < row["pass_ms"] <= row["ms_per_token"]  # drawing the token is no pass
        else:
            assert row["over_link_bound"] == pytest.approx(row["ms_per_token"] / row["link_bound_ms"])
            assert 0 < row["link_busy"] < 1 and 0 <= row["overlap"] <= 1 and row["over_bound"] > 0
            assert job.forget or row["predicted_ms"] > 0, row.get("not_predicted")


def test_computing_alone_copies_nothing(tiny):
    moved = []
    job, setting = Job("alone", systems.on_demand(slots=8), alone=True), Setting(prompt(6), most=4)
    real = rows_module._copy_nothing

    def watched(engine):
        real(engine)
        assert engine._server.link.mover(0, 0, 0) is None
        moved.extend(slots.blocks.isfinite().all() for slots in engine._server._slots)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_copy_nothing", watched)
        row = rows_module.run(tiny, job, setting, Yardstick(1.0), seconds=1.0)
    assert all(moved) and len(moved) == 4 and "mb_per_token" not in row


def test_kernels_are_counted_and_copies_are_not():
    class Event(SimpleNamespace):
        pass

    names = ["void gemv(...)", "Memcpy HtoD (Pinned -> Device)", "Memset (Device)", "silu"]
    events = [Event(name=name, device_type="DeviceType.CUDA") for name in names]
    events.append(Event(name="cudaLaunchKernel", device_type="DeviceType.CPU"))
    assert launches_of(events) == 2


def test_calls_are_launches_by_the_host_a_graph_counting_once():
    def event(name, device="DeviceType.CPU"):
        return SimpleNamespace(name=name, device_type=device)

    names = "cudaLaunchKernel cuLaunchKernelEx cudaGraphLaunch cudaMemcpyAsync aten::add cudaStreamSynchronize".split()
    assert calls_of([*map(event, names), event("cudaLaunchKernel", "DeviceType.CUDA")]) == 3


def test_rows_come_once_more_with_a_static_cache_and_say_so():
    options = Options(models=("olmoe-1b-7b",), device="cpu", tiny=True, tokens=4, slots=(16,), quick=True, static=True)
    result = bench(options, progress=False)
    rows = [row for row in result["rows"] if "ms_per_token" in row]
    assert not [row["why"] for row in result["rows"] if "why" in row and "CUDA" not in row["why"]]
    grown, static = ([row for row in rows if row["static"] is there] for there in (False, True))
    assert [row["system"] for row in grown] == [row["system"] for row in static] and len(static) > 5
    for one, other in zip(grown, static, strict=True):  # simulated, so nothing but the cache differs
        assert other["ms_per_token"] == pytest.approx(one["ms_per_token"]), one["system"]
        assert other["mb_per_token"] == one["mb_per_token"] if "mb_per_token" in one else True
    shown = report(result, terminal.table)
    assert shown.count(", static") == len(static) and result["conditions"]["options"]["static"]


def test_a_budget_of_time_ends_a_row(tiny):
    setting = Setting(prompt(6), most=64)
    row = rows_module.run(tiny, jobs(8, [16])[3], setting, Yardstick(25.0), seconds=0.0)
    assert row["tokens"] == rows_module.LEAST
    with pytest.raises(MobileError):
        rows_module.run(tiny, Job("none", systems.on_demand(budget_gb=1e-9)), setting, Yardstick(25.0), seconds=0.0)


# -- bounds, sizes that fit, and what is kept ----------------------------------------------------------------------


def on_its_bounds(*, prefetch, keep=None):
    """A trace whose passes take exactly what they must: a second a copy, 3 s of computing in a big pass, 2 s in a
    little one."""
    trace = Trace.from_routing(ids=np.tile(np.arange(4), (8, 1, 1)), num_experts=8)
    trace.conditions["expert_bytes"] = 10_000_000
    done, now = [], 0.0
    for at, one in enumerate(trace.passes):
        modes = ("little", "big") if at % 3 == 0 else ("little",)
        for mode in modes if keep else ("big",):
            copies = [Copy("demand", 0, e, e, -1, now, now) for e in range(at % 5)]
            link, compute = float(len(copies)), {"big": 3.0, "little": 2.0}[mode]
            known = prefetch and (mode == "big" or not keep)
            took = max(link, compute) if known else link + compute
            evicted = mode == "little" and len(modes) == 2 and keep
            token = -1 if evicted else 5
            made = replace(one, mode=mode, begin=now, end=now + took, copies=copies, token_id=token)
            done.append(made)
            now += took
    trace.passes[:] = done
    return trace


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("big_little", [False, True])
@pytest.mark.parametrize("rest_s", [0.0, 0.5])
def test_passes_that_take_what_they_must_are_on_their_bounds(prefetch, big_little, rest_s):
    config = systems.mobile(slots=4) if big_little else systems.next_gate(slots=4)
    config = config if prefetch else replace(config, prefetch=Nothing())
    trace = on_its_bounds(prefetch=prefetch, keep=config.keep if big_little else None)
    ms = 1e3 * (metrics.seconds_per_token(trace.to_frame("steps")) + rest_s)  # between passes: a token is drawn
    found = bounds(trace, config, Yardstick(0.01, 3.0, 2.0, rest_s), ms)
    assert found["over_bound"] == pytest.approx(1) == ms / found["bound_ms"]
    assert ("over_big_pass_bound" in found) == (big_little and prefetch)
    assert found.get("over_big_pass_bound", 1) == pytest.approx(1)


def test_sizes_that_the_card_has_no_room_for_become_the_largest_that_it_has(tiny, monkeypatch):
    served = offloaded.Offloaded(tiny)
    each = served.layout.nbytes * len(served.layers)
    monkeypatch.setattr(offloaded.Offloaded, "room", lambda self: 20 * each / 0.9 + 1)
    assert card_module.fitting(tiny, [8, 16, 32]) == [8, 16, 20]
    monkeypatch.setattr(offloaded.Offloaded, "room", lambda self: 0)
    assert card_module.fitting(tiny, [8, 16]) == [1]


def test_nothing_that_was_measured_is_lost_when_something_unforeseen_happens(tmp_path, monkeypatch):
    def strange(*given):
        raise KeyError("internals of another library")

    kept = []
    monkeypatch.setattr(card_module, "_accelerate", strange)
    monkeypatch.setattr(card_module, "jobs", lambda *args, **words: jobs(*args, **words)[:2])
    options = Options(models=("olmoe-1b-7b",), device="cpu", tiny=True, tokens=4, slots=(8,))
    result = bench(options, progress=False, keep=lambda sofar: kept.append(len(sofar["rows"])))
    assert kept == [1, 2, 3] and "KeyError" in result["rows"][-1]["why"]
    assert "ms_per_token" in result["rows"][0] and result["link"]


def test_a_quick_look_keeps_the_layers_that_the_host_has_memory_for(monkeypatch):
    monkeypatch.setattr(published, "host_room_gb", lambda: 6.0)
    assert published.layers_that_fit("olmoe-1b-7b") == 6
    monkeypatch.setattr(published, "host_room_gb", lambda: 20.0)
    assert published.layers_that_fit("olmoe-1b-7b") is None
    monkeypatch.setattr(published, "host_room_gb", lambda: 5.7)  # of 28.8 GB in 26 layers, behind a dense one
    assert published.layers_that_fit("deepseek-v2-lite") == 1 + 4
    monkeypatch.setattr(published, "host_room_gb", lambda: 0.3)
    assert published.layers_that_fit("olmoe-1b-7b") is None
    with refused("GB of host memory", "0.3 GB are free: free memory", kinds=MobileError):
        random_published("olmoe-1b-7b", device=CPU)


def test_a_report_that_cannot_be_kept_meanwhile_ends_no_row(monkeypatch):
    options = Options(models=("olmoe-1b-7b",), quick=True, device="cpu", tiny=True, tokens=4)
    wanted, calls = bench(options, progress=False), []

    def keep(result):
        calls.append(1)
        if len(calls) > 1:
            raise MobileError("no space left on the device.")

    with pytest.warns(UserWarning, match="no space left"):
        result = bench(options, progress=False, keep=keep)
    assert len(calls) == 2 and [row["system"] for row in result["rows"]] == [row["system"] for row in wanted["rows"]]


def test_a_gate_that_is_scripted_is_read_all_the_same(tiny):
    """Its launch and the wait for it belong to a row's time."""
    read = []
    with offload(tiny, systems.next_gate(slots=8)) as engine:
        real = engine._server.view.gate
        engine._server.view.gate = lambda layer: (read.append(layer), real(layer))[1]
        Recording.shipped(layers=4, experts=64, top_k=8, device=CPU).put_into(engine)
        engine.generate(prompt(4), max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert read == [1, 2, 3]


def test_a_fitted_card_takes_for_computing_alone_what_it_took():
    costs = Costs(Hardware.preset("rtx3060-pcie3"), Geometry.of("olmoe-1b-7b"), 16)

    def alone(card, count):
        there = replace(costs, hardware=card)
        return 16 * (there.layer_s() + count * there.expert_s()) + there.head_s()

    slow = replace(costs.hardware, launch_s=37e-6)
    found = fitted(costs, 8, Yardstick(12.0, alone(slow, 8), alone(slow, 4)))
    assert found.launch_s == pytest.approx(37e-6) and replace(found, launch_s=slow.launch_s) == slow
    assert fitted(costs, 8, Yardstick(12.0, alone(slow, 8))) is None
