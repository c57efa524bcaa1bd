"""The export for Perfetto: what a reader of Chrome's trace events finds in it."""

import json
from itertools import pairwise

import pytest
from helpers import prompt, refused

from mobile_nb import Trace, offload, systems
from mobile_nb.analysis.perfetto import COMPUTE, HOST, LINK, TOKENS, to_perfetto
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import OnHost

SYSTEMS = {"on demand": systems.on_demand(slots=3), "MoBiLE": systems.mobile(gamma=1.1, slots=5)}


@pytest.fixture(scope="module")
def traces():
    model, found = random_model("qwen2_moe"), {}
    for name, config in SYSTEMS.items():
        with offload(model, config, geometry="olmoe-1b-7b") as engine:
            engine.generate(prompt(9), max_new_tokens=6, do_sample=False, eos_token_id=None)
            found[name] = engine.trace
    return found


@pytest.fixture(scope="module")
def written(traces, tmp_path_factory):
    path = tmp_path_factory.mktemp("perfetto") / "run.json"
    to_perfetto(traces, path)
    return json.loads(path.read_text())


def lane(written, process, thread):
    return [e for e in written["traceEvents"] if e["ph"] == "X" and (e["pid"], e["tid"]) == (process, thread)]


def test_a_run_is_a_process_with_three_named_lanes(written, traces):
    about = [e for e in written["traceEvents"] if e["ph"] == "M"]
    names = {e["pid"]: e["args"]["name"] for e in about if e["name"] == "process_name"}
    assert list(names) == [1, 2] and all(name in names[n] for n, name in enumerate(traces, 1))
    assert all("simulated on" in name for name in names.values())
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in about if e["name"] == "thread_name"}
    assert threads[1, LINK] == "link" and threads[2, COMPUTE] == "compute" and len(threads) == 6
    assert written["otherData"]["MoBiLE"]["slots"] == 5
    assert {e["ph"] for e in written["traceEvents"]} == {"X", "M"}


def test_copies_lie_one_after_the_other_and_are_those_of_the_trace(written, traces):
    for process, trace in enumerate(traces.values(), 1):
        copies, found = trace.to_frame("copies"), lane(written, process, LINK)
        assert len(found) == len(copies) > 10
        for event, copy in zip(found, copies.to_dict("records"), strict=True):
            assert event["name"] == f"{copy['kind']} layer {copy['layer']} expert {copy['expert']}"
            assert event["ts"] == pytest.approx(1e6 * copy["begin"], abs=2e-3)
            assert event["dur"] == pytest.approx(1e6 * (copy["end"] - copy["begin"]), abs=2e-3)
        for before, after in pairwise(found):
            assert after["ts"] >= before["ts"] + before["dur"] - 1e-6


def test_computation_is_in_order_and_ends_with_the_passes(written, traces):
    for process, trace in enumerate(traces.values(), 1):
        found = lane(written, process, COMPUTE)
        for before, after in pairwise(found):
            assert after["ts"] >= before["ts"] + before["dur"] - 1e-6
        assert found[-1]["ts"] + found[-1]["dur"] == pytest.approx(1e6 * trace.passes[-1].end, abs=2e-3)


def test_passes_lie_inside_their_tokens(written, traces):
    found = lane(written, 2, TOKENS)
    tokens = [e for e in found if e["cat"] == "token"]
    passes = [e for e in found if e["cat"] == "pass"]
    assert len(tokens) == 6 and len(passes) == len(traces["MoBiLE"].passes) == 11
    for each in passes:
        mine = [t for t in tokens if t["args"]["id"] >= 0 and t["ts"] <= each["ts"] + 1e-6]
        assert each["ts"] + each["dur"] <= mine[-1]["ts"] + mine[-1]["dur"] + 1e-6
    assert tokens[1]["name"] == "token 1: little, then big"


def test_what_the_host_computes_is_a_lane_where_there_is_any(written, tmp_path):
    with offload(random_model("qwen2_moe"), systems.on_demand(slots=3, miss=OnHost(0.5))) as engine:
        engine.generate(prompt(9), max_new_tokens=4, do_sample=False, eos_token_id=None)
        wanted = engine.report()["host"].sum()
    to_perfetto(engine.trace, tmp_path / "host.json")
    drawn = json.loads((tmp_path / "host.json").read_text())
    found = lane(drawn, 1, HOST)
    assert len(found) == wanted > 0 and all(event["cat"] == "host" for event in found)
    assert {e["tid"] for e in drawn["traceEvents"] if e["name"] == "thread_name"} == {TOKENS, COMPUTE, LINK, HOST}
    assert not lane(written, 1, HOST)


def test_one_trace_needs_no_name_and_one_without_times_is_refused(traces, tmp_path):
    to_perfetto(traces["on demand"], tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["traceEvents"]
    bare = Trace.from_routing([[[0, 1]], [[1, 2]]], num_experts=4)
    with refused("holds no times"):
        to_perfetto(bare, tmp_path / "none.json")
    with refused("cannot be written"):
        to_perfetto(traces["on demand"], tmp_path / "no folder" / "one.json")
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]
