"""The record of an engine: loads back equal, adds up to what the engine says, and never gets lost or half-written."""

import json
import math
import os
import stat

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import GREEDY, make, middle_gamma, prompt, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from mobile_nb import MobileError, Trace, offload, systems
from mobile_nb.files import written_whole
from mobile_nb.trace import VERSION, Copy, Pass

seconds = st.floats(0, 1e6)
small = st.integers(0, 2**15 - 1)
copies = st.builds(
    Copy, st.sampled_from(["demand", "prefetch"]), small, small, small, st.integers(-1, 2**15 - 1), seconds, seconds
)


@st.composite
def passes(draw):
    layers, tokens, k = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    seed = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = [seed.integers(0, 2**31 - 1, layers) for _ in range(4)]
    return Pass(
        draw(st.integers(0, 2**31 - 1)),
        draw(st.integers(0, 2**31 - 1)),
        draw(st.sampled_from(["prompt", "little", "big"])),
        draw(st.integers(-1, 2**31 - 1)),
        draw(st.floats(0, 1) | st.just(math.nan)),
        draw(st.floats(0, 2) | st.just(math.nan)),
        draw(seconds),
        draw(seconds),
        seed.integers(0, 2**15 - 1, (layers, tokens, k)).astype(np.int16),
        seed.random((layers, tokens, k), dtype=np.float32),
        *counts,
        draw(st.lists(copies, max_size=3)),
    )


json_like = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8), max_size=4
)


@given(conditions=json_like, made=st.lists(passes(), max_size=4))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_any_trace_loads_back_equal(conditions, made, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "any.parquet"
    trace = Trace(conditions, made)
    trace.save(path)
    back = Trace.load(path)
    assert back == trace
    assert [p.ids.dtype for p in back.passes] == [p.ids.dtype for p in made]
    assert [p.weights.dtype for p in back.passes] == [p.weights.dtype for p in made]
    assert [p.name for p in path.parent.iterdir()] == ["any.parquet"]


def test_traces_that_differ_anywhere_are_not_equal(real):
    trace, _, _ = real
    one = trace.passes[1]
    for field in Pass.__slots__:
        value = getattr(one, field)
        if field in ("copies", "waves"):
            other = [*value, Copy("demand", 0, 0, 0, -1, 0.0, 0.0)]
        elif isinstance(value, np.ndarray):
            other = value.copy()
            other.flat[0] += 1
        elif value is None:
            other = np.zeros((1, 2, 2), dtype=np.int16)
        else:
            other = "big" if isinstance(value, str) else value + 1
        changed = Pass(**({name: getattr(one, name) for name in Pass.__slots__} | {field: other}))
        assert changed != one, field
    assert one != "something else"


@pytest.fixture(scope="module")
def real():
    """A trace of two generations with fallbacks, the engine's report, and their steps."""
    model = make()
    gamma = middle_gamma(model, prompt(), 10)
    with offload(model, systems.mobile(gamma, slots=3)) as engine:
        texts = [engine.generate(prompt(5 + n), max_new_tokens=10, **GREEDY) for n in range(2)]
    return engine.trace, engine.report(), [step for text in texts for step in text.steps]


def test_a_real_trace_loads_back_equal_and_is_small(real, tmp_path):
    trace, _, _ = real
    trace.save(tmp_path / "run.parquet")
    again = Trace.load(tmp_path / "run.parquet")
    assert again == trace
    again.save(tmp_path / "again.parquet")
    assert (tmp_path / "run.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert (tmp_path / "run.parquet").stat().st_size < 60_000
    for rows in ("steps", "passes", "copies", "routing"):
        frame = again.to_frame(rows)
        assert frame.equals(trace.to_frame(rows)) and frame.attrs == trace.conditions


def test_frames_add_up_to_the_report_and_the_steps(real):
    trace, report, written = real
    steps, passes, moved = (trace.to_frame(rows) for rows in ("steps", "passes", "copies"))
    size = trace.conditions["expert_bytes"]
    for name in ("requests", "hits", "late", "misses"):
        assert steps[name].sum() == passes[name].sum() == report[name].sum()
    assert steps.bytes_moved.sum() == passes.bytes_moved.sum() == len(moved) * size
    assert len(moved) * size == pytest.approx(report.gb_moved.sum() * 1e9)
    assert (moved.kind == "prefetch").sum() == report.prefetches.sum()
    assert moved.groupby("layer").size().tolist() == (report.misses + report.prefetches).tolist()
    assert len(steps) == len(written) == 20 and len(passes) == 20 + sum(s.fell_back for s in written)
    for column in ("token_id", "wrote", "confidence", "bytes_moved", "hits", "misses", "fell_back"):
        assert steps[column].tolist() == [getattr(s, column) for s in written], column
    assert steps.seconds.tolist() == pytest.approx([s.seconds for s in written])
    assert [None if math.isnan(g) else g for g in steps.gamma] == [s.gamma for s in written]
    assert (steps.end - steps.begin).tolist() == pytest.approx(steps.seconds.tolist())
    assert steps.groupby("request").step.apply(list).tolist() == [list(range(10))] * 2
    assert passes[passes["mode"] == "prompt"].tokens.tolist() == [5, 6]
    assert set(passes[passes["mode"] != "prompt"].tokens) == {1}


def test_routing_has_a_row_for_every_rank_of_every_token(real):
    trace, _, _ = real
    routing = trace.to_frame("routing")
    assert len(routing) == sum(p.ids.size for p in trace.passes)
    for number, done in enumerate(trace.passes[:4]):
        part = routing[routing["pass"] == number]
        assert (part["mode"] == done.mode).all()
        for row in part.sample(10, random_state=0).itertuples():
            assert done.ids[row.layer, row.token, row.rank] == row.expert
            assert done.weights[row.layer, row.token, row.rank] == row.weight
    assert list(routing.columns) == ["pass", "mode", "layer", "token", "rank", "expert", "weight"]


def test_an_empty_trace_is_one_too(tmp_path):
    trace = Trace({"model": "none"})
    trace.save(tmp_path / "empty.parquet")
    assert Trace.load(tmp_path / "empty.parquet") == trace
    for rows in ("steps", "passes", "copies", "routing"):
        assert len(trace.to_frame(rows)) == 0


def test_an_unknown_frame_is_refused(real):
    with refused("rows must be one of steps, passes, copies, routing", "'tokens'", kinds=ValueError):
        real[0].to_frame("tokens")


# -- files ---------------------------------------------------------------------------------------------------------


def with_metadata(path, about, columns=None):
    """A Parquet file that says `about` of itself."""
    table = pa.table({"a": [1, 2]} if columns is None else columns)
    pq.write_table(table.replace_schema_metadata({"mobile_nb": json.dumps(about)}), path)


FOREIGN = {
    "text": lambda path: path.write_text("hello"),
    "nothing": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "a plain table": lambda path: pq.write_table(pa.table({"a": [1]}), path),
    "no version": lambda path: with_metadata(path, {"conditions": {}}),
    "no conditions": lambda path: with_metadata(path, {"mobile_nb_trace": VERSION}),
    "no columns": lambda path: with_metadata(path, {"mobile_nb_trace": VERSION, "conditions": {}}),
    "a list": lambda path: with_metadata(path, [1, 2]),
    "a version in words": lambda path: with_metadata(path, {"mobile_nb_trace": "two", "conditions": {}}),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused(write, tmp_path):
    path = tmp_path / "foreign.parquet"
    write(path)
    with refused("foreign.parquet is not a whole mobile_nb trace", "Trace.save", kinds=MobileError):
        Trace.load(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(real, tmp_path, share):
    path = tmp_path / "cut.parquet"
    real[0].save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with refused("cut.parquet is not a whole mobile_nb trace", kinds=MobileError):
        Trace.load(path)


def test_a_newer_version_and_a_missing_file_are_told(tmp_path):
    with_metadata(tmp_path / "new.parquet", {"mobile_nb_trace": VERSION + 1, "conditions": {}})
    with refused(f"version {VERSION + 1}", f"up to {VERSION}", "update", kinds=MobileError):
        Trace.load(tmp_path / "new.parquet")
    for path in (tmp_path / "nowhere.parquet", tmp_path):
        with refused("there is no trace at", str(path), kinds=MobileError):
            Trace.load(path)


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_other(real, tmp_path, monkeypatch, problem):
    path = tmp_path / "run.parquet"
    real[0].save(path)
    before = path.read_bytes()

    def half(table, where, **named):
        with open(where, "wb") as file:
            file.write(b"PAR1 and then")
        raise problem

    monkeypatch.setattr(pq, "write_table", half)
    for target in (path, tmp_path / "new.parquet"):
        with pytest.raises(type(problem)):
            Trace({}, []).save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["run.parquet"]
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert Trace.load(path) == real[0]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_saved_file_can_be_read_by_whom_the_umask_lets(tmp_path):
    old = os.umask(0o022)
    try:
        with written_whole(tmp_path / "file") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
