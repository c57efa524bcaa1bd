"""The search over combinations (data/recipes/combine.py), on a made-up bench whose truth is known."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

from mobile_nb import policies as p
from mobile_nb import systems
from mobile_nb.model.tiny import random_model

sys.path.append(str(Path(__file__).resolve().parents[1] / "data" / "recipes"))
import combine
from combine import Candidate

GAMMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


def candidates() -> list[Candidate]:
    """From the fastest on: the lower gamma, the faster."""
    return [Candidate(systems.mobile(gamma), (("count", f"gamma {gamma:g}"),)) for gamma in GAMMAS]


def judge_of(lost: dict[float, float], seen: list, seed: int = 0):
    """A bench on which the full model is right, and each candidate wrong on a fixed share of problems."""

    def judge(candidate, n):
        gamma = candidate.config.keep.gamma
        seen.append((gamma, n))
        random = Random(f"{seed}/{gamma}")
        return combine.paired([random.random() >= lost[gamma] for _ in range(n)], [True] * n)

    return judge


def test_the_fastest_that_loses_little_is_accepted_and_nothing_slower_is_tried():
    seen, lost = [], {0.1: 0.3, 0.3: 0.1, 0.5: 0.05, 0.7: 0.0, 0.9: 0.0}
    rows = list(combine.race(candidates(), judge_of(lost, seen), (64, 256, 4096)))
    assert [row["accepted"] for row in rows] == [False, False, False, True]
    assert rows[-1]["candidate"].config.keep.gamma == 0.7 and 0.9 not in [gamma for gamma, _ in seen]


def test_who_loses_much_is_given_up_on_few_problems_and_who_is_accepted_has_seen_all():
    seen, lost = [], {0.1: 0.3, 0.3: 0.1, 0.5: 0.02, 0.7: 0.001, 0.9: 0.0}
    rows = list(combine.race(candidates(), judge_of(lost, seen), (64, 256, 4096)))
    assert [gamma_n for gamma_n in seen if gamma_n[0] == 0.1] == [(0.1, 64)]
    assert [r["n"] for r in rows[-1]["rungs"]] == [64, 256, 4096]
    for row in rows[:-1]:
        last = row["rungs"][-1]
        assert last["difference"] < -0.003  # nobody is given up who may be good enough


def test_who_is_as_good_is_hardly_ever_given_up():
    kept = 0
    for seed in range(200):
        rows = list(combine.race(candidates()[:1], judge_of({0.1: 0.003}, [], seed), (64, 256)))
        kept += len(rows[0]["rungs"]) == 2
    assert kept >= 190


def test_paired_counts_only_problems_that_one_of_both_solves():
    found = combine.paired([True] * 90 + [False] * 10, [True] * 88 + [False] * 7 + [True] * 5)
    assert (found["gains"], found["losses"]) == (2, 5)
    assert found["difference"] == pytest.approx(-0.03)
    assert found["half_width"] == pytest.approx(1.96 * ((0.07 - 0.03**2) / 100) ** 0.5)
    assert combine.paired([True] * 50, [True] * 50)["half_width"] > 0  # nothing seen is not nothing there


def test_exact_parts_are_chosen_by_time_one_after_the_other():
    misses = {"wait": {"miss": p.Wait()}, "split": {"miss": p.OnHost(0.6, balance=True)}}
    options = {"miss": misses, "evict": {"LRU": {"evict": p.LRU()}, "LFU": {"evict": p.LFU()}}}

    def seconds(candidate):
        split, lfu = isinstance(candidate.config.miss, p.OnHost), isinstance(candidate.config.evict, p.LFU)
        return 4 - 2 * split - (lfu if split else -lfu)

    best = combine.fastest(Candidate(systems.on_demand()), options, seconds)
    assert dict(best.words) == {"miss": "split", "evict": "LFU"}
    assert seconds(best) == 1


def test_taking_a_part_back_leaves_the_others():
    options = {
        "count": {"all K": {"count": p.TopK(), "keep": p.Always()}},
        "miss": {"wait": {"miss": p.Wait()}},
        "evict": {"LRU": {"evict": p.LRU()}},
    }
    near = p.OnHost(0.6, balance=True, before=p.NearScore(0.02))
    words = (("count", "MoBiLE"), ("miss", "split"), ("evict", "LFU"), ("near", "near score 0.02"))
    best = Candidate(systems.mobile(0.7, miss=near, evict=p.LFU()), words)
    left = {question: combine.less(best, question, options).config for question, _ in words}
    assert left["count"] == replace(best.config, count=p.TopK(), keep=p.Always())
    assert left["evict"] == replace(best.config, evict=p.LRU())
    assert left["miss"] == replace(best.config, miss=p.NearScore(0.02))
    assert left["near"] == replace(best.config, miss=p.OnHost(0.6, balance=True))


def test_the_command_searches_tests_and_writes(tmp_path, monkeypatch, capsys):
    """Time and answers are made up: half of K loses 5 points, 4 bits 10, near score 20, and all else nothing."""
    experts = 64
    own = tuple(tuple(expert % 3 for expert in range(experts)) for _ in range(4))
    world = SimpleNamespace(name="made-up", hardware="rtx4080-pcie4", geometry="olmoe-1b-7b", experts=experts,
                            sensitivity=[1.0] * 4, fewer=[8] * 4, trace=None)  # fmt: skip
    monkeypatch.setattr(combine, "World", lambda name: world)
    monkeypatch.setattr(combine.tasks, "load", lambda name, *, n, **about: [None] * n)
    some = p.PerExpert((p.Int8(), p.Int4(), p.Int2()), own)
    monkeypatch.setattr(p.PerExpert, "from_trace", staticmethod(lambda *about: some))

    def timed(bench, config, problems):
        part = getattr(config.count, "fraction", 1.0)
        ms = 40 * part / (1 + isinstance(config.miss, p.OnHost)) / (1 + (config.codec.forms[0].bits == 8))
        ms *= 0.5 if "NearScore" in repr(config.miss) else 1
        return {"tokens": 10, "ms": 10 * ms, "computing_ms": 60, "host_ms": 0, "mb": 1, "hits": 1, "requests": 2,
                "texts": 1}  # fmt: skip

    def written(bench, config, problems):
        lost = 0.05 * (getattr(config.count, "fraction", 1.0) == 0.5) + 0.1 * (config.codec.forms[-1].bits in (2, 4))
        lost += 0.2 * ("NearScore" in repr(config.miss))
        return [int(at >= lost * len(problems)) for at in range(len(problems))]

    monkeypatch.setattr(combine.Bench, "_timed", timed)
    monkeypatch.setattr(combine.Bench, "_written", written)
    out = tmp_path / "found.json"
    command = [
        "combine.py",
        "--rungs",
        "40",
        "80",
        "--test",
        "60",
        "--timed",
        "1",
        "--test-timed",
        "2",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--save", str(tmp_path / "save.jsonl")])
    combine.main()
    found = json.loads(out.read_text())
    full, coded = found["full precision"], found["with codecs"]
    assert full["taken"] == {"count": "0.625 K, alone", "miss": "split with the host"}
    assert coded["taken"] == {"count": "0.625 K, alone", "codec": "int8", "miss": "split with the host"}
    assert full["found"]["speed_up"] == pytest.approx(2 / 0.625) and full["found"]["difference"] == 0
    assert coded["found"]["speed_up"] == pytest.approx(4 / 0.625)
    assert full["without"]["miss"]["speed_up"] == pytest.approx(1 / 0.625)
    assert coded["without"]["codec"]["speed_up"] == full["found"]["speed_up"]
    assert coded["without"]["codec"]["n"] == 120
    assert [row["speed_up"] for row in full["sizes"]] == pytest.approx([1, 2 / 0.625, 2] * 4)
    assert [row["share"] for row in full["sizes"][::3]] == [0.125, 0.25, 0.375, 0.5]
    lost = [row["words"] for row in full["tried"] if row["lost"]]
    assert {"0.5 K, alone"} <= {words["count"] for words in lost} and any("near" in words for words in lost)
    assert "0.5 K, alone" not in {row["words"].get("count") for row in coded["tried"]}

    before = (tmp_path / "save.jsonl").read_text()
    combine.main()  # goes on where it was: at the end
    assert (tmp_path / "save.jsonl").read_text() == before
    assert "on test problems: 3.20 x" in capsys.readouterr().out


def test_decoded_experts_are_those_of_the_codec_and_the_model_is_given_back():
    model = random_model("olmoe")
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    with combine.decoded(model, p.Int4(32)):
        for name, weights in model.state_dict().items():
            error = (weights - before[name]).abs().max() / before[name].abs().max()
            assert 0.01 < error < 0.1 if "experts" in name else error == 0
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
