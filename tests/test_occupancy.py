"""What the trace tells of the slots is what the engine's own cache held."""

import pytest
from helpers import EXPERTS, GREEDY, TOP_K, every_architecture, make, prompt, refused

from mobile_nb import MobileError, Trace, offload, replay, systems
from mobile_nb.analysis.occupancy import STATES, occupancy
from mobile_nb.policies import Popularity

CONFIGS = {
    "on demand": systems.on_demand,
    "little": systems.little,
    "next gate": systems.next_gate,
    "mobile, all fall back": lambda slots: systems.mobile(gamma=1.1, slots=slots),
    "static, on the host": lambda slots: systems.fiddler(Popularity([range(8)] * 3), 0.5, slots=slots),
    "mobile, none does": lambda slots: systems.mobile(gamma=0, slots=slots),
}


def run(config, name="olmoe", texts=2):
    with offload(make(name), config) as engine:
        for seed in range(texts):
            engine.generate(prompt(seed=seed), max_new_tokens=6, **GREEDY)
    return engine


def grid(frame, column, layers, slots):
    return frame[column].to_numpy().reshape(-1, layers, slots)


@pytest.mark.parametrize("slots", [1, 3, TOP_K, EXPERTS])
@pytest.mark.parametrize("system", CONFIGS)
def test_the_last_token_leaves_what_the_cache_holds(system, slots):
    engine = run(CONFIGS[system](slots=slots))
    cache, frame = engine._server.scheduler.cache, occupancy(engine.trace)
    assert (grid(frame, "expert", cache.layers, slots)[-1] == cache.expert_in[0]).all()
    assert len(frame) == len(engine.trace.to_frame()) * cache.layers * slots
    held = frame[frame["expert"] >= 0]
    assert not held.duplicated(["request", "step", "layer", "expert"]).any(), "an expert lies in two slots of a layer"
    assert ((frame["state"] == "empty") == (frame["expert"] < 0)).all()


@pytest.mark.parametrize("system", CONFIGS)
def test_nobody_appears_without_a_copy_or_leaves_without_another(system):
    slots = 5
    engine = run(CONFIGS[system](slots=slots))
    copies, frame = engine.trace.to_frame("copies"), occupancy(engine.trace)
    last = frame.tail(engine.trace.conditions["layers"] * slots)
    placed = sum(map(len, engine.trace.conditions.get("placed", ())))
    assert (last["expert"] >= 0).sum() == placed + len(copies) - (copies["evicted"] >= 0).sum()


@every_architecture
def test_states_count_what_the_token_counted(name):
    """With a slot for each of K, a token of one pass leaves every request's expert in its slot."""
    engine = run(systems.little(slots=TOP_K + 1), name)
    frame, steps = occupancy(engine.trace), engine.trace.to_frame()
    counts = frame.groupby(["request", "step"])["state"].value_counts().unstack(fill_value=0)
    counts, steps = counts[counts.index.get_level_values("step") > 0], steps[steps["step"] > 0]
    assert counts["hit"].tolist() == steps["hits"].tolist()
    assert counts["demand"].tolist() == steps["misses"].tolist()


def test_prefetches_are_used_or_not():
    engine = run(systems.mobile(gamma=1.1, slots=EXPERTS - 1), texts=3)
    states = occupancy(engine.trace)["state"]
    assert list(states.cat.categories) == list(STATES)
    early = engine.trace.to_frame("copies")["kind"].eq("prefetch").sum()
    assert 0 < states.isin(["prefetched", "unused"]).sum() <= early


def test_a_replay_has_slots_too_and_a_recording_from_elsewhere_has_none():
    engine = run(systems.on_demand(slots=3))
    frame = occupancy(replay(engine.trace, systems.on_demand(slots=2)).trace)
    assert frame["slot"].max() == 1 and frame.attrs["slots"] == 2
    with refused("replay", kinds=MobileError):
        occupancy(Trace.from_routing([[[0, 1]], [[1, 2]]], num_experts=4))
