"""Every policy and every published system on a card: they write, they count right, and the exact ones are exact."""

from dataclasses import replace
from functools import cache

import pytest
from helpers import EXPERTS, make, prompt, refused
from test_literature import BASES, EVERY, NAME, NEW, RUN, SYSTEMS, choices, full

from mobile_nb import MobileError, evaluate, load, offload, systems, tasks
from mobile_nb.__main__ import main
from mobile_nb.analysis.forced import forced
from mobile_nb.analysis.world import World
from mobile_nb.policies import AllLow, Channels, LowBits, Mixed, OnHost

pytestmark = pytest.mark.gpu


@cache
def model():
    return make(NAME).to("cuda")


def check(config):
    if isinstance(config.codec, Channels):
        with refused("simulated links only"), offload(model(), config):
            raise AssertionError("the block must not be entered")
        return
    with offload(model(), config) as engine:
        assert engine.measured
        text = engine.generate(prompt(7).to("cuda"), **RUN).token_ids
        report, passes, costs = engine.report(), engine.trace.passes, engine._server.costs
    assert len(text) == NEW and (not config.lossless or text == full())
    assert (report.hits + report.misses + report.host == report.requests).all()
    assert isinstance(config.miss, OnHost) or not report.host.any()
    copies = [copy for done in passes for copy in done.copies]
    assert len(copies) == (report.misses + report.prefetches).sum()
    assert report.gb_moved.sum() * 1e9 == pytest.approx(sum(costs.bytes_of(copy.form) for copy in copies))
    assert (report.resident <= report.slots).all()


@pytest.mark.parametrize(("question", "n"), EVERY, ids=[f"{question}-{n}" for question, n in EVERY])
def test_every_policy_works_on_the_card(question, n):
    config = replace(BASES["MoBiLE"](), **{question: choices()[question][n]})
    check(replace(config, codec=Mixed(low_slots=2)) if isinstance(config.miss, (LowBits, AllLow)) else config)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_works_on_the_card(name):
    for slots in (2, EXPERTS):
        check(replace(SYSTEMS[name](), slots=slots))


def test_what_is_measured_weighs_what_it_weighs():
    """Bytes of another model beside real seconds would be nobody's."""
    with offload(model(), systems.on_demand(slots=3), geometry="olmoe-1b-7b") as engine:
        assert engine.trace.conditions["expert_bytes"] == engine._server.arenas[0].layout.nbytes


def test_a_model_as_load_leaves_it_for_a_card_is_evaluated_by_an_engine():
    (away, words), (here, _) = (load("tiny-olmoe", device=where, dtype="float32") for where in ("cuda", "cpu"))
    given = {"n": 2, "config": systems.on_demand(slots=16), "progress": False}
    found, wanted = (evaluate(model, words, "word-problems", **given) for model in (away, here))
    assert [each.text for each in found.solved] == [each.text for each in wanted.solved]
    with refused("offload it", kinds=MobileError):
        forced(away, words, tasks.load("word-problems", n=1), experts=4)


def test_commands_say_where_they_ran(capsys):
    assert main(["evaluate", "tiny-olmoe", "--n", "1"]) == 0
    assert "offloaded, 64 slots a layer; time measured" in capsys.readouterr().out
    assert World("tiny-olmoe").loaded[0].device.type == "cpu", "a comparison is simulated on every machine"
