"""Figures: from real frames, with captions that say where numbers come from, and who wrote what told apart."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from mobile_nb import Step, Trace, figures, load, offload, replay, sweep, systems
from mobile_nb.analysis.curves import hit_curve
from mobile_nb.analysis.foresight import foreseen, prefetched
from mobile_nb.analysis.occupancy import occupancy
from mobile_nb.analysis.spans import breakdown, spans
from mobile_nb.files import data_path
from mobile_nb.html import ribbon as as_html
from mobile_nb.policies import LRU, Belady
from mobile_nb.view import theme
from mobile_nb.view.trade import efficient


@pytest.fixture(scope="module")
def recording():
    return Trace.load(data_path("traces", "tiny-olmoe.parquet"))


@pytest.fixture(scope="module")
def written():
    model, tokenizer = load("tiny-olmoe", dtype="float32")
    with offload(model, systems.mobile(gamma=0.7, slots=16), tokenizer=tokenizer, geometry="olmoe-1b-7b") as engine:
        text = "Question: Tom has 3 apples. Tom buys 4 more apples. How many apples does Tom have?\nAnswer:"
        return engine.generate(text, max_new_tokens=40), engine.trace


def caption(figure):
    return figure.layout.title.subtitle.text


def step(text, wrote="little", **more):
    return Step(
        token_id=1, text=text, wrote=wrote, confidence=0.5, seconds=0.01, bytes_moved=0, hits=1, misses=0, **more
    )


def test_every_figure_of_a_run_says_that_it_is_simulated_and_on_what(written, recording):
    rows = spans(written[1])
    drawn = [
        figures.breakdown(breakdown(rows)),
        figures.breakdown(breakdown(rows, by="token")),
        figures.timeline(rows[rows.step == 3]),
        figures.expert_map(written[1].to_frame("routing"), layers=[0]),
        figures.confidence(written[1].to_frame()),
        figures.precision(foreseen(recording)),
        figures.occupancy(occupancy(written[1]), layer=2),
        figures.outcomes(prefetched(replay(recording, systems.mobile(slots=16))).assign(label="16", used=1.0)),
    ]
    for figure in drawn:
        assert isinstance(figure, go.Figure)
        assert caption(figure).startswith("Simulated on rtx4080-pcie4, timed as olmoe-1b-7b")
        assert figure.layout.title.text


def test_a_ribbon_shows_each_token_once_and_tells_who_wrote_it(written):
    steps = written[0].steps
    figure = figures.ribbon(written[0])
    texts = [text for trace in figure.data if trace.mode == "text" for text in trace.text]
    assert len(texts) == sum(one.text != "" for one in steps)  # the end of the text has none
    assert sum(text.startswith("<b>") for text in texts) == sum(one.wrote == "big" for one in steps)
    assert len(figure.layout.shapes) == sum(one.wrote == "big" for one in steps)


def test_a_ribbon_breaks_lines_between_words_and_at_line_ends():
    steps = [step(" word"), step("ing")] * 30 + [step("\n"), step(" last")]
    figure = figures.ribbon(steps)
    (trace,) = [one for one in figure.data if one.mode == "text"]
    places = list(zip(trace.y, trace.x, strict=True))
    assert len(places) == len(steps) - 1
    assert all(a[0] == b[0] for a, b in zip(places[:60:2], places[1:60:2], strict=True))  # "word" and "ing" together
    assert max(trace.y) == 3 and places[-1] == (3, 0)  # eleven words a line, and one after the break


def test_html_escapes_what_a_model_writes_and_marks_where_gamma_moved():
    text = as_html([step("<b>&", gamma=0.7), step('"x"', "big", fell_back=True, gamma=0.9)])
    assert "&lt;b&gt;&amp;" in text and "γ 0.7 → 0.9" in text
    assert text.count("<span") == 1 and "evicted" in text


def test_timeline_puts_systems_one_under_the_other_from_zero(written):
    rows = spans(written[1], steps=[4, 5])
    both = pd.concat(
        [rows.assign(system="before"), rows.assign(system="after", begin=rows.begin + 1, end=rows.end + 1)]
    )
    figure = figures.timeline(both)
    assert list(figure.layout.yaxis.categoryarray) == [
        "after: link",
        "after: compute",
        "before: link",
        "before: compute",
    ]
    starts = {
        lane: min(b for t in figure.data for b, y in zip(t.base, t.y, strict=True) if y == lane)
        for lane in both.system + ": compute"
    }
    assert set(starts.values()) == {0.0}


def test_the_front_is_what_nobody_beats():
    frame = pd.DataFrame({"speed_up": [1, 2, 3, 2.5], "accuracy": [9, 8, 5, 4]})
    assert efficient(frame, "speed_up", "accuracy").speed_up.tolist() == [1, 2, 3]
    figure = figures.pareto(frame.assign(low=frame.accuracy - 1, high=frame.accuracy + 1), about="measured here")
    assert caption(figure) == "Measured here"
    assert list(figure.data[0].error_y.array) == [1, 1, 1, 1]


def test_labels_that_would_run_into_each_other_stand_on_two_sides():
    frame = pd.DataFrame(
        {"speed_up": [1.0, 1.02, 2.0, 2.0], "accuracy": [90.0, 90.0, 50.0, 53.0], "name": ["LRU", "LFU", "K", ""]}
    )
    (points,) = figures.pareto(frame, label="name", front=False).data
    assert points.textposition == ("top center", "bottom center", "bottom center", "top center")


def test_gamma_and_break_even_are_drawn_from_a_sweep(recording):
    rows = sweep(recording, systems.mobile(slots=16), gamma=[0.5, 0.9], slots=[8, 16], progress=False)
    rows = rows.assign(speed_up=rows.seconds_per_token.max() / rows.seconds_per_token)
    assert len(figures.thresholds(rows, {"fallback_ratio": "share", "speed_up": "times"}, by="slots").data) == 4
    grid = figures.break_even(rows, "gamma", "slots").data[0]
    assert grid.z.shape == (2, 2) and grid.zmid == 1.0


def test_the_gap_is_filled_up_to_the_bound(recording):
    curves = pd.concat([hit_curve(recording, evict, slots=[8, 16]) for evict in (LRU(), Belady())])
    lru, belady = figures.oracle_gap(curves).data
    assert belady.fill == "tonexty" and (belady.y >= lru.y).all()


def test_little_and_big_have_the_same_colours_everywhere():
    frame = pd.DataFrame({"wrote": ["little", "big"], "token": ["a", "a"], "probability": [0.2, 0.9]})
    assert [bar.marker.color for bar in figures.alternatives(frame).data] == [theme.LITTLE, theme.BIG]


def test_every_slot_is_in_one_state_after_every_token(written):
    frame = occupancy(written[1])
    grids = [np.nan_to_num(one.z) for one in figures.occupancy(frame, layer=1).data if one.type == "heatmap"]
    assert (sum(grids) == 1).all() and grids[0].shape == (16, len(written[1].to_frame()))
