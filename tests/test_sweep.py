"""A sweep is its replays, on any executor, and nothing is lost when it is cut short."""

import concurrent.futures
import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from helpers import prompt, refused

from mobile_nb import Hardware, MobileError, Trace, offload, replay, sweep, systems
from mobile_nb.model.tiny import random_model
from mobile_nb.policies import LFU, LRU, Belady, Drop, EvictedRouter, MaxProbability, Nothing, Wait

GRID = {"gamma": [0.0, 0.115, 1.1], "slots": [2, 5], "evict": [LRU(), LFU(), Belady()], "link_gb_per_s": [3, 25.0]}


@pytest.fixture(scope="module")
def forced():
    model = random_model("olmoe")
    with offload(model, systems.mobile(gamma=1.1, slots=3), hardware="t4-colab", geometry="olmoe-1b-7b") as engine:
        for seed in range(2):
            engine.generate(prompt(9, seed=seed), max_new_tokens=10, do_sample=False, eos_token_id=None)
        return engine.trace


def test_every_row_is_the_replay_of_its_point(forced):
    frame = sweep(forced, systems.mobile(), progress=False, **GRID)
    assert len(frame) == 36
    for row, (gamma, slots, evict, rate) in zip(
        frame.to_dict("records"), itertools.product(*GRID.values()), strict=True
    ):
        assert [row[name] for name in GRID] == [gamma, slots, type(evict).__name__, rate]
        hardware = dataclasses.replace(Hardware.preset("t4-colab"), link_gb_per_s=rate)
        alone = replay(forced, systems.mobile(gamma=gamma, slots=slots, evict=evict), hardware=hardware)
        for name, value in alone.summary().items():
            assert row[name] == value or (np.isnan(row[name]) and np.isnan(value)), name
        assert row["exact"] == alone.selection.exact == (gamma > 1)
    fast, slow = (frame[frame.link_gb_per_s == rate].seconds_per_token.to_numpy() for rate in (25, 3))
    assert (fast < slow).all()
    assert frame.time.str.contains("simulated on t4-colab at 3 GB/s, timed as olmoe-1b-7b").any()


def test_hardware_geometry_systems_and_traces_can_be_swept_too(forced):
    one = Trace.from_routing(np.arange(24).reshape(6, 2, 2) % 8, num_experts=8)
    frame = sweep(
        {"one": one, "again": one},
        {"on demand": systems.on_demand(), "LFU": systems.on_demand(evict=LFU())},
        hardware=["rtx4080-pcie4", "t4-colab"],
        geometry=["olmoe-1b-7b"],
        slots=[3],
        progress=False,
    )
    assert list(frame.columns[:5]) == ["trace", "system", "hardware", "geometry", "slots"]
    assert frame.system.tolist() == ["on demand", "on demand", "LFU", "LFU"] * 2
    assert (
        frame[frame.trace == "one"].seconds_per_token.tolist()
        == frame[frame.trace == "again"].seconds_per_token.tolist()
    )


def test_policies_are_shown_by_name_and_fields_of_policies_can_be_swept(forced):
    prefetch = [Nothing(), EvictedRouter(), EvictedRouter(ahead=2)]
    frame = sweep(forced, systems.mobile(gamma=1.1, slots=4), prefetch=prefetch, progress=False)
    assert frame.prefetch.tolist() == ["Nothing", "EvictedRouter", "EvictedRouter(ahead=2)"]
    ahead = sweep(forced, systems.mobile(gamma=1.1, slots=4), ahead=[None, 2], progress=False)
    assert ahead.seconds_per_token.tolist() == frame.seconds_per_token.tolist()[1:]


def test_two_processes_give_the_frame_of_one(forced):
    here = sweep(forced, systems.mobile(), progress=False, **GRID)
    there = sweep(forced, systems.mobile(), progress=False, executor=2, **GRID)
    pd.testing.assert_frame_equal(here, there)


@pytest.mark.filterwarnings("ignore")  # a cluster's own: ports, clean-up, deprecations inside
def test_a_cluster_gives_the_frame_of_one(forced):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = sweep(forced, systems.mobile(), progress=False, executor=client.get_executor(), **GRID)
    pd.testing.assert_frame_equal(sweep(forced, systems.mobile(), progress=False, **GRID), there)


class Fragile(concurrent.futures.Executor):
    """Runs everything at once, and fails from the n-th chunk on."""

    def __init__(self, works):
        self.works, self.done = works, 0

    def submit(self, function, *arguments):
        future = concurrent.futures.Future()
        self.done += 1
        if self.done > self.works:
            future.set_exception(OSError("the machine is gone"))
        else:
            future.set_result(function(*arguments))
        return future


def test_a_sweep_that_was_cut_short_goes_on_from_its_file(forced, tmp_path):
    kept = tmp_path / "points.jsonl"
    with pytest.raises(OSError, match="the machine is gone"):
        sweep(forced, systems.mobile(), progress=False, save=kept, executor=Fragile(2), **GRID)
    some = len(kept.read_text().splitlines())
    assert 0 < some < 36
    kept.write_text(kept.read_text() + '{"key": "half a li')
    later = Fragile(99)
    again = sweep(forced, systems.mobile(), progress=False, save=kept, executor=later, **GRID)
    assert later.done < 3  # gamma groups that were done are not played again
    pd.testing.assert_frame_equal(again, sweep(forced, systems.mobile(), progress=False, **GRID))
    assert len(kept.read_text().splitlines()) == 36
    assert all("key" in json.loads(line) for line in kept.read_text().splitlines())
    done = Fragile(0)
    sweep(forced, systems.mobile(), progress=False, save=kept, executor=done, **GRID)
    assert done.done == 0


def test_mistakes_are_sentences(forced, tmp_path):
    with refused("a list of values for slots", "got 3"):
        sweep(forced, systems.mobile(), slots=3)
    with refused("no field 'slotss'"):
        sweep(forced, systems.mobile(), slotss=[3])
    with refused("no field 'gamma'", "its fields: none"):
        sweep(forced, systems.on_demand(), gamma=[0.5])
    with refused("cannot change count"):
        sweep(forced, systems.mobile(), fraction=[0.25], progress=False)
    with refused("a replay cannot change miss"):
        sweep(forced, systems.mobile(gamma=1.1), miss=[Wait(), Drop()], progress=False)
    with refused("config must be a MobileConfig"):
        sweep(forced, systems.mobile, slots=[3])
    with refused("executor must be None"):
        sweep(forced, systems.mobile(), slots=[3], executor="2")
    with refused("cannot keep its points"):
        sweep(forced, systems.mobile(), slots=[3], save=tmp_path / "no" / "folder.jsonl")


@pytest.mark.parametrize("text", ["something else\nand more\n", "my notes", '{"a": 1}', '{"key": "x"}\n3\n'])
def test_a_file_that_is_not_a_sweeps_is_left_alone(forced, tmp_path, text):
    (tmp_path / "other.jsonl").write_text(text)
    with refused("of", "name another file", kinds=MobileError):
        sweep(forced, systems.mobile(), slots=[3], save=tmp_path / "other.jsonl", progress=False)
    assert (tmp_path / "other.jsonl").read_text() == text


def test_the_order_of_a_grids_words_does_not_matter(forced):
    grid = {"ahead": [1, None], "prefetch": [EvictedRouter(), Nothing()][:1], "gamma": [0.05, 1.1]}
    grid["keep"] = [MaxProbability(0.5)]
    one = sweep(forced, systems.mobile(slots=3), progress=False, **grid)
    other = sweep(forced, systems.mobile(slots=3), progress=False, **dict(reversed(grid.items())))
    assert sorted(one.seconds_per_token) == sorted(other.seconds_per_token)
    assert set(one.fallback_ratio) == {0, 1}


def test_numpy_grids_and_policies_of_ones_own_are_shown_by_name(forced):
    class Own:
        def score(self, history):
            return history.fetched

    frame = sweep(forced, systems.mobile(), gamma=np.linspace(0, 1.1, 2), evict=[Own()], slots=[3], progress=False)
    assert frame.evict.tolist() == ["Own", "Own"] and frame.gamma.tolist() == [0, 1.1]
