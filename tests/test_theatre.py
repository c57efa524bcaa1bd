"""The cache theatre: forwards and back over a trace, and a still without a kernel."""

import pytest
from helpers import GREEDY, make, prompt, refused

from mobile_nb import CacheTheatre, MobileError, Trace, offload, systems
from mobile_nb.analysis.occupancy import occupancy
from mobile_nb.view.display import VIEW
from mobile_nb.view.seats import LOOKS

NEW, SLOTS, LAYERS = 6, 3, 3


@pytest.fixture(scope="module")
def trace():
    with offload(make(), systems.mobile(gamma=1.1, slots=SLOTS)) as engine:
        for seed in range(2):
            engine.generate(prompt(seed=seed), max_new_tokens=NEW, **GREEDY)
    return engine.trace


def test_the_slider_goes_through_all_tokens_and_the_buttons_stay_within(trace):
    theatre = CacheTheatre(trace)
    assert (theatre.step.min, theatre.step.max) == (0, 2 * NEW - 1)
    theatre._back.click()
    assert theatre.step.value == 0
    seen = [theatre._slots.value]
    for _ in range(2 * NEW):
        theatre._on.click()
        seen.append(theatre._slots.value)
    assert theatre.step.value == 2 * NEW - 1 and len(set(seen)) == 2 * NEW
    theatre.step.value = 3
    assert theatre._slots.value == seen[3]
    theatre._back.click()
    assert theatre._slots.value == seen[2]


def test_each_picture_shows_every_slot_as_the_trace_tells_it(trace):
    theatre, frame = CacheTheatre(trace), occupancy(trace)
    marks = {state: look[-1] for state, look in LOOKS.items()}
    for at, (_, rows) in enumerate(frame.groupby(["request", "step"])):
        picture = theatre.svg(at)
        for expert, state in zip(rows["expert"], rows["state"], strict=True):
            assert state == "empty" or f">{marks[state]}{expert}</text>" in picture
        assert picture.count("<rect") == LAYERS * SLOTS + len(LOOKS)


def test_the_text_starts_anew_with_each_request(trace):
    theatre = CacheTheatre(trace)
    assert theatre.still(NEW - 1).count("⟨") == NEW + 1  # and once in the title
    assert theatre.still(NEW).count("⟨") == 2


def test_a_still_needs_no_kernel_and_names_what_cannot_be(trace):
    theatre = CacheTheatre(trace)
    bundle = theatre._repr_mimebundle_()
    assert (
        bundle["text/plain"] == f"CacheTheatre({2 * NEW} tokens, {LAYERS} layers of {SLOTS} slots)" and VIEW in bundle
    )
    assert bundle["text/html"] == theatre.still(0) != theatre.still(1)
    assert "simulated on" in theatre.still()
    with refused("below 12", "got 12"):
        theatre.still(12)


def test_an_empty_trace_and_a_recording_from_elsewhere_are_refused():
    with refused("no tokens", kinds=MobileError):
        CacheTheatre(Trace({"layers": 1}))
    with refused("replay", kinds=MobileError):
        CacheTheatre(Trace.from_routing([[[0, 1]], [[1, 2]]], num_experts=4))
