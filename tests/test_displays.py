"""What a notebook shows of a value that stands at the end of a cell: text that is escaped, and its conditions."""

import pandas as pd
from helpers import prompt

from mobile_nb import Step, offload, plan, systems
from mobile_nb.model.tiny import random_model
from mobile_nb.runtime.generation import Generation


def step(text, wrote="little", **more):
    return Step(1, text, wrote, confidence=0.5, seconds=0.01, bytes_moved=2_000_000, hits=1, misses=2, **more)


def test_a_generation_shows_each_token_by_who_wrote_it_and_what_it_cost():
    shown = Generation([1, 1], "a<b", [step("a"), step("<b", "big", fell_back=True)])._repr_html_()
    assert shown.count('title="') == 2 and "&lt;b" in shown and "<b style" in shown
    assert "2.0 MB" in shown and "100 % written again" in shown


def test_a_config_shows_its_six_answers_and_whether_it_is_exact():
    shown = systems.mobile(0.7, budget_gb=2.5)._repr_html_()
    assert "changes the text" in shown and "MaxProbability(gamma=0.7)" in shown and "2.5 GB" in shown
    assert "exact" in systems.on_demand(slots=4)._repr_html_()


def test_a_report_shows_its_conditions_and_is_a_plain_frame_to_everything_else():
    with offload(random_model("olmoe"), systems.mobile(slots=3)) as engine:
        engine.generate(prompt(), max_new_tokens=4)
        report = engine.report()
    shown = report._repr_html_()
    assert "simulated on rtx4080-pcie4" in shown and "3 of 8 experts a layer" in shown
    assert type(report[report.hits > 0]) is pd.DataFrame
    assert report.equals(pd.DataFrame(report))


def test_a_plan_is_a_table():
    assert plan("tiny-olmoe")._repr_html_().startswith("<table>")
