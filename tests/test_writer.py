"""The background writer: every token once, stopped between tokens, at the pace of the card, errors as sentences."""

import threading
import time

import pytest
from helpers import GREEDY, Recorder, make, plain, prompt, refused

from mobile_nb import MobileError, offload, systems
from mobile_nb.view.writer import Writer

NEW = 8
CALM = GREEDY | {"max_new_tokens": NEW}


@pytest.fixture
def engine():
    with offload(make(), systems.mobile(gamma=1.1, slots=3)) as engine:
        yield engine


class Notes:
    """What a writer said; `hold` makes it wait in the `at`-th token."""

    def __init__(self, at=None):
        self.steps, self.ends, self.at = [], [], at
        self.reached, self.go_on = threading.Event(), threading.Event()

    def show(self, step):
        self.steps.append(step)
        if len(self.steps) == self.at:
            self.reached.set()
            assert self.go_on.wait(30)

    def writer(self, engine, **named):
        return Writer(engine, self.show, self.ends.append, **({"pace": 0} | named))


def test_every_token_is_shown_once_and_the_thread_is_gone(engine):
    notes = Notes()
    writer = notes.writer(engine)
    writer.start(prompt(), **CALM)
    assert writer.wait(30) and not writer.writing
    assert [step.token_id for step in notes.steps] == plain(make(), prompt(), NEW)
    assert notes.ends == [None]
    writer.start(prompt(), **CALM)
    writer.wait()
    assert len(notes.steps) == 2 * NEW and notes.ends == [None, None]
    assert not [t for t in threading.enumerate() if t.name == "mobile_nb writer"]


def test_stop_ends_the_text_after_the_token_at_hand_and_frees_the_engine(engine):
    notes = Notes(at=3)
    writer = notes.writer(engine)
    writer.start(prompt(), **CALM)
    assert notes.reached.wait(30) and writer.writing
    writer._stop.set()
    notes.go_on.set()
    writer.stop()
    assert len(notes.steps) == 3 and notes.ends == [None]
    assert engine.generate(prompt(), **CALM).token_ids == plain(make(), prompt(), NEW)


def test_gamma_acts_on_the_next_token(engine):
    notes = Notes(at=3)
    writer = notes.writer(engine)
    writer.start(prompt(), **CALM)
    assert notes.reached.wait(30)
    engine.gamma = 0
    notes.go_on.set()
    writer.wait()
    assert [step.wrote for step in notes.steps] == ["big"] * 3 + ["little"] * (NEW - 3)


def test_a_second_writer_on_an_engine_gets_a_sentence(engine):
    first, second = Notes(at=2), Notes()
    one, two = first.writer(engine), second.writer(engine)
    one.start(prompt(), **CALM)
    assert first.reached.wait(30)
    two.start(prompt(), **CALM)
    assert two.wait(30)
    assert second.steps == [] and "writing already" in second.ends[0] and two.error == second.ends[0]
    with refused("under way", kinds=MobileError):
        one.start(prompt(), **CALM)
    first.go_on.set()
    one.wait()
    assert len(first.steps) == NEW and first.ends == [None]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_beams": 3}, "beams"),
        ({"streamer": Recorder(2, OSError("the pipe is shut"))}, "OSError: the pipe is shut"),
        ({"streamer": Recorder(2, KeyboardInterrupt())}, "KeyboardInterrupt"),
    ],
    ids=["no tokens", "beams", "a streamer that fails", "an interrupt"],
)
def test_what_goes_wrong_comes_as_a_sentence(engine, request_, said):
    notes = Notes()
    writer = notes.writer(engine)
    writer.start(prompt(), **(CALM | request_))
    assert writer.wait(30)
    assert said in writer.error and notes.ends == [writer.error]
    writer.start(prompt(), **CALM)
    writer.wait()
    assert writer.error is None and notes.ends[-1] is None


def test_a_reader_that_fails_is_told_too_and_the_engine_is_free(engine):
    ends = []

    def show(step):
        raise ZeroDivisionError("nothing to divide by")

    writer = Writer(engine, show, ends.append, pace=0)
    writer.start(prompt(), **CALM)
    writer.wait()
    assert ends == ["ZeroDivisionError: nothing to divide by"]
    engine.change()


def test_text_comes_at_the_pace_of_the_simulated_card(engine):
    wanted = sum(step.seconds for step in engine.generate(prompt(), **CALM).steps)
    pace = 0.5 / wanted  # half a second in all
    notes = Notes()
    writer = notes.writer(engine, pace=pace)
    began = time.perf_counter()
    writer.start(prompt(), **CALM)
    writer.wait()
    assert 0.4 < time.perf_counter() - began < 20
    assert len(notes.steps) == NEW


def test_stop_does_not_wait_for_a_slow_card(engine):
    notes = Notes()
    writer = notes.writer(engine, pace=1e9)
    writer.start(prompt(), **CALM)
    time.sleep(0.05)
    began = time.perf_counter()
    writer.stop()
    assert time.perf_counter() - began < 20 and len(notes.steps) == 1


def test_a_measured_clock_is_not_waited_for(engine, monkeypatch):
    monkeypatch.setattr(type(engine), "measured", True)
    notes = Notes()
    writer = notes.writer(engine, pace=1e9)
    writer.start(prompt(), **CALM)
    assert writer.wait(30) and len(notes.steps) == NEW


def test_leaving_the_block_ends_the_text_with_a_sentence():
    notes = Notes(at=2)
    with offload(make(), systems.mobile(slots=3)) as engine:
        writer = notes.writer(engine)
        writer.start(prompt(), **CALM)
        assert notes.reached.wait(30)
    notes.go_on.set()
    writer.wait()
    assert len(notes.ends) == 1 and "closed" in notes.ends[0]
